"""The numbers of events and errors."""

from __future__ import annotations

import pytest

from updater.omaha.codes import (
    BASCULE_CODE_NUMBERS,
    EngineError,
    is_failed_trial,
    number_of,
    speaks_against_version,
    without_flags,
)


def test_a_failed_trial_is_a_rollback_to_every_server() -> None:
    assert number_of("trial-unhealthy") == 44


def test_a_code_without_a_number_of_its_own_points_to_the_attribute() -> None:
    assert number_of("trust-expired") == 5000


@pytest.mark.parametrize(("code", "number"), sorted(BASCULE_CODE_NUMBERS.items()))
def test_a_code_the_stock_engine_knows_has_its_number(code: str, number: EngineError) -> None:
    assert number_of(code) == number


def test_the_four_flag_bits_are_no_part_of_the_number() -> None:
    assert without_flags(268435490) == 34
    assert without_flags(-2147483604) == 44  # dev mode, printed as a signed word


@pytest.mark.parametrize(
    ("error_code", "bascule_code", "failed"),
    [
        (44, "", True),
        (44 + (1 << 28), "", True),
        (5000, "trial-timeout", True),
        (None, "trial-unhealthy", True),
        (10, "payload-hash", False),
        (None, "", False),
        (9, "", False),
    ],
)
def test_only_a_trial_that_did_not_hold_counts_as_one(
    error_code: int | None, bascule_code: str, *, failed: bool
) -> None:
    assert is_failed_trial(error_code=error_code, bascule_code=bascule_code) is failed


@pytest.mark.parametrize("code", ["trial-shut-down", "trial-fell-back"])
def test_a_trial_that_people_ended_failed_and_says_nothing_against_the_version(code: str) -> None:
    number = number_of(code)
    assert is_failed_trial(error_code=number, bascule_code=code)
    assert not speaks_against_version(error_code=number, bascule_code=code)


@pytest.mark.parametrize(
    ("error_code", "bascule_code", "against"),
    [
        (44, "", True),  # a stock engine gives no cause
        (44, "trial-unhealthy", True),
        (44, "trial-something-new", True),
        (5000, "reset-once", False),
        (9, "", False),
    ],
)
def test_any_other_failed_trial_speaks_against_the_version(
    error_code: int, bascule_code: str, *, against: bool
) -> None:
    assert speaks_against_version(error_code=error_code, bascule_code=bascule_code) is against
