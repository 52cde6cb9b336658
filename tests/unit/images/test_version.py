"""Versions and their order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.errors import VersionInvalidError
from images.version import parse_version

ASCENDING = [
    "0",
    "0.0.1",
    "0.9",
    "1-0",
    "1.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.1.0",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0-rc-1",
    "1",
    "1.0.0.0.0.1",
    "1.0.1",
    "1.2",
    "1.10",
    "24.04.1",
    "24.10",
    "4081.3.6",
    "4230.2.1",
    "20261120",
]


def test_versions_are_ordered_by_number_then_pre_release() -> None:
    versions = [parse_version(text) for text in ASCENDING]

    for (i, lower), (j, higher) in itertools.combinations(enumerate(versions), 2):
        assert i < j
        assert lower < higher, f"{lower} < {higher}"
        assert lower != higher


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0.0"), ("1.2.0", "1.2"), ("24.04", "24.4"), ("1.0+a", "1.0+b"), ("1-a+x", "1.0-a")],
)
def test_some_texts_spell_the_same_version(one: str, other: str) -> None:
    assert parse_version(one) == parse_version(other)
    assert hash(parse_version(one)) == hash(parse_version(other))


def test_a_version_keeps_its_text() -> None:
    version = parse_version("1.0.0-rc.1+build.5")

    assert version.text == str(version) == f"{version}" == "1.0.0-rc.1+build.5"


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "1.", ".1", "1..2", "a", "v1.0", "1.2.3.4.5.6.7", "1.0-", "1.0+", "1.0-a..b",
        "1.0-a+", "1.0 ", " 1.0", "1.0\n", "1.0/..", "../1", "-1", "1.0-a_b", "1.0-ä",
        "\u0661.\u0662", "\u00b2",
        "1.0+a+b",
    ],
)  # fmt: skip
def test_a_text_of_another_shape_is_no_version(text: str) -> None:
    with pytest.raises(VersionInvalidError, match="is not a version"):
        parse_version(text)


def test_a_version_has_at_most_64_characters() -> None:
    assert parse_version("1" * 64).text == "1" * 64
    with pytest.raises(VersionInvalidError, match="65 characters, at most 64"):
        parse_version("1" * 65)


texts = st.from_regex(
    r"[0-9]{1,3}(\.[0-9]{1,3}){0,5}(-[0-9a-z-]{1,4}(\.[0-9a-z-]{1,4}){0,2})?", fullmatch=True
).filter(lambda text: len(text) <= 64)


@settings(deadline=None)
@given(texts, texts, texts)
def test_the_order_is_total(first: str, second: str, third: str) -> None:
    a, b, c = (parse_version(text) for text in (first, second, third))

    assert (a < b) + (a == b) + (a > b) == 1
    if a <= b <= c:
        assert a <= c
