"""Who may have a release: the arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rollout import Grant, Hold, Policy, Situation, decide, place_of

OPEN = Policy(paused=False, pause_reason="", share=1.0, max_concurrent=None)
NEW = Situation(place=0.5, holds_grant=False, failed_here=False, under_way=0, stopped="")


def reason(policy: Policy, situation: Situation) -> str:
    decision = decide(policy, situation)
    return decision.reason if isinstance(decision, Hold) else "grant"


@given(st.text(), st.text())
def test_a_place_is_stable_and_lies_in_zero_to_one(version: str, node: str) -> None:
    assert place_of(version, node) == place_of(version, node)
    assert 0.0 <= place_of(version, node) < 1.0


def test_places_are_dealt_evenly() -> None:
    places = [place_of("2.0.0", f"{n:032x}") for n in range(4000)]
    for tenth in range(10):
        share = sum(tenth / 10 <= place < (tenth + 1) / 10 for place in places) / len(places)
        assert 0.07 < share < 0.13


def test_another_release_deals_anew() -> None:
    first = [n for n in range(1000) if place_of("2.0.0", str(n)) < 0.1]
    again = [n for n in first if place_of("3.0.0", str(n)) < 0.1]
    assert len(again) < len(first) / 2


def test_the_places_do_not_move_between_versions_of_this_program() -> None:
    # printf '2.0.0\n3d12…' | sha256sum begins with these 12 digits
    assert place_of("2.0.0", "3d1219c7c4c5404aaa1f6d2a48adfda4") == 0x56BEAA2FA30E / 2**48


def test_an_open_group_grants() -> None:
    assert decide(OPEN, NEW) == Grant()


@pytest.mark.parametrize(
    ("place", "share", "expected"),
    [
        (0.0, 0.0, "rollout-share"),
        (0.0, 0.01, "grant"),
        (0.25, 0.25, "rollout-share"),
        (0.2499, 0.25, "grant"),
        (0.9999, 1.0, "grant"),
    ],
)
def test_a_node_below_the_share_may_have_it(place: float, share: float, expected: str) -> None:
    assert reason(replace(OPEN, share=share), replace(NEW, place=place)) == expected


@pytest.mark.parametrize(
    ("under_way", "limit", "expected"),
    [
        (0, 0, "rollout-concurrency"),
        (0, 1, "grant"),
        (1, 1, "rollout-concurrency"),
        (4, 5, "grant"),
        (7, 5, "rollout-concurrency"),
    ],
)
def test_no_more_than_the_limit_are_under_way(under_way: int, limit: int, expected: str) -> None:
    situation = replace(NEW, under_way=under_way)
    assert reason(replace(OPEN, max_concurrent=limit), situation) == expected


@pytest.mark.parametrize(
    ("policy", "situation", "expected"),
    [
        (replace(OPEN, paused=True), NEW, "rollout-paused"),
        (OPEN, replace(NEW, stopped="bad"), "rollout-stopped"),
        (OPEN, replace(NEW, failed_here=True), "failed-here"),
        (replace(OPEN, paused=True), replace(NEW, stopped="bad"), "rollout-stopped"),
        (replace(OPEN, paused=True, share=0.0), NEW, "rollout-paused"),
        (replace(OPEN, share=0.0, max_concurrent=0), NEW, "rollout-share"),
    ],
)
def test_the_first_reason_against_it_wins(
    policy: Policy, situation: Situation, expected: str
) -> None:
    assert reason(policy, situation) == expected


def test_a_node_under_way_keeps_its_grant_through_a_pause_and_a_smaller_share() -> None:
    closed = Policy(paused=True, pause_reason="", share=0.0, max_concurrent=0)
    assert decide(closed, replace(NEW, holds_grant=True, under_way=9)) == Grant()


def test_a_node_under_way_loses_its_grant_once_the_release_proved_bad() -> None:
    assert reason(OPEN, replace(NEW, holds_grant=True, stopped="bad")) == "rollout-stopped"


def test_every_hold_has_a_sentence_with_its_values() -> None:
    policy = replace(OPEN, max_concurrent=2)
    decision = decide(policy, replace(NEW, under_way=2))
    assert isinstance(decision, Hold)
    assert decision.sentence == "2 nodes are under way, at most 2 may be"
    decision = decide(replace(OPEN, paused=True, pause_reason="holiday"), NEW)
    assert isinstance(decision, Hold)
    assert decision.sentence == "the group is paused: holiday"
