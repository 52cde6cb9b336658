"""The engine's error numbers in words."""

from __future__ import annotations

import pytest

from updater.omaha.codes import EngineError
from updater.omaha.explanations import EXPLANATIONS, sentence_of


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            44,
            "the new version did not come up; the machine runs the old one (RollbackError, 44)",
        ),
        (
            268435490,
            "the server's answer was an error or lacked something (OmahaResponseInvalid, 34)",
        ),
        (
            -2147483604,  # dev mode, printed as a signed word
            "the new version did not come up; the machine runs the old one (RollbackError, 44)",
        ),
        (
            268435456 + 1073741824 + 10,  # not the built-in server, resumed
            "the payload is not the one that was offered (PayloadHashMismatchError, 10)",
        ),
        (2500, "the server answered HTTP 500 (OmahaRequestHTTPResponseBase, 2500)"),
        (2000, "the server did not answer (OmahaRequestHTTPResponseBase, 2000)"),
        (
            2999,
            "the server answered with no HTTP status (OmahaRequestHTTPResponseBase, 2999)",
        ),
        (777, "an error that has no name here (777)"),
    ],
)
def test_a_number_has_words_and_the_engines_own_name(number: int, sentence: str) -> None:
    assert sentence_of(number) == sentence


@pytest.mark.parametrize("flags", [1 << 28, 1 << 29, 1 << 30, 1 << 31, 0xF << 28])
def test_the_flag_bits_change_nothing_about_the_words(flags: int) -> None:
    for number in EXPLANATIONS:
        assert sentence_of(number | flags) == sentence_of(number)


def test_every_number_that_we_send_or_read_is_explained() -> None:
    assert set(EXPLANATIONS) >= set(EngineError)
