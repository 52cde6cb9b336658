"""Which operations are written, where some come late: what a journal may name, who waits."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.download import DownloadStoppedError
from updater.written import Written


def test_all_are_written_before_the_next_one() -> None:
    written = Written(3)
    assert written.first_left == 3
    assert [written.note(number) for number in (3, 4, 5)] == [4, 5, 6]
    assert not written.awaits_late


def test_late_ones_hold_back_what_is_named_until_the_last_of_them() -> None:
    written = Written(0)
    written.expect_late(1)
    written.expect_late(3)
    assert [written.note(number) for number in (0, 2, 4)] == [1, 1, 1]
    assert written.note(3) == 1
    assert (written.first_left, written.awaits_late) == (1, True)
    assert written.note(1) == 5
    assert not written.awaits_late


@given(st.lists(st.booleans(), max_size=12), st.randoms(use_true_random=False))
def test_what_is_named_is_what_is_written(late: list[bool], chance: random.Random) -> None:
    """Late ones are told of before any behind them is written, and come whenever they like."""
    written = Written(0)
    done: set[int] = set()
    told = 0
    waiting: list[int] = []
    while len(done) < len(late):
        assert written.awaits_late == bool(waiting)
        if told < len(late) and late[told] and chance.random() < 0.5:
            written.expect_late(told)
            waiting.append(told)
            told += 1
            continue
        in_order = [number for number in range(told) if not late[number] and number not in done]
        choices = [*in_order[:1], *waiting]
        if not choices:
            if late[told]:
                written.expect_late(told)
                waiting.append(told)
            told += 1
            continue
        number = chance.choice(choices)
        if number in waiting:
            waiting.remove(number)
        done.add(number)
        left = next(number for number in range(len(late) + 1) if number not in done)
        assert written.note(number) == written.first_left == left


def test_who_is_too_far_ahead_waits_for_the_first_late_one() -> None:
    written = Written(0)
    written.expect_late(0)
    written.expect_late(8)

    def wait() -> None:
        written.wait(lambda first: first >= 8)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    written.note(0)
    waiter.join(60)
    assert not waiter.is_alive()
    written.note(8)
    written.wait(lambda _first: False)  # none is left


def test_who_waits_is_told_of_the_end() -> None:
    written = Written(0)
    written.expect_late(0)
    ending = threading.Thread(target=written.close)
    ending.start()
    with pytest.raises(DownloadStoppedError):
        written.wait(lambda _first: False)
    ending.join()
