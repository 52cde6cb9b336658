"""The tree of errors: codes are stable, unique and explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import errors
from images.errors import ImagesError

README = Path(errors.__file__).parent / "README.md"


def leaves(kind: type[ImagesError]) -> Iterator[type[ImagesError]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


LEAVES = sorted(leaves(ImagesError), key=lambda kind: kind.__name__)


def test_every_code_is_kebab_case_and_used_once() -> None:
    codes = [kind.code for kind in LEAVES]

    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in codes)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_hint_of_one_sentence_and_a_status(kind: type[ImagesError]) -> None:
    assert "code" in vars(kind)
    assert "hint" in vars(kind)
    assert "\n" not in kind.hint
    assert kind.hint.rstrip().endswith((".", ")"))
    assert kind.exit_status in (1, 3)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_code_is_in_the_readme_and_every_class_in_the_tree(kind: type[ImagesError]) -> None:
    assert f"`{kind.code}`" in README.read_text()
    assert kind.__name__ in (errors.__doc__ or "")
