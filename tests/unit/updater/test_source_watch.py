"""The booted slot is read beside an install: what it finds ends the install, and is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from images.errors import OperationOutputError, SourceMismatchError
from updater import source_watch
from updater.download import DownloadStoppedError
from updater.source_watch import SourceWatch

FACTS = cast("Any", object())
OTHER = SourceMismatchError("another image: the delta from 1 is not installed")


class Node:
    """What a watch knows of a node."""

    def __init__(self) -> None:
        self.stop = threading.Event()


Reading = Callable[[Callable[[], None]], None]


@pytest.fixture
def watch_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reading], SourceWatch]:
    """Return what makes a watch for which reading the slot is this function."""

    def made(read: Reading) -> SourceWatch:
        monkeypatch.setattr(source_watch, "require_source", lambda _n, _f, look: read(look))
        return SourceWatch(cast("Any", Node()), FACTS)

    return made


def other(_look: Callable[[], None]) -> None:
    raise OTHER


def install(watch: SourceWatch, step: Callable[[], object]) -> None:
    with watch:
        watch.start()
        step()


def failing(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def test_another_image_is_told_to_whoever_looks_and_ends_it(
    watch_with: Callable[[Reading], SourceWatch],
) -> None:
    watch = watch_with(other)

    def go_on() -> None:
        while True:
            watch.look()

    with pytest.raises(SourceMismatchError):
        install(watch, go_on)


def test_an_install_is_not_done_before_all_was_read(
    watch_with: Callable[[Reading], SourceWatch],
) -> None:
    go_on = threading.Event()

    def slow(_look: Callable[[], None]) -> None:
        go_on.wait(60)
        raise OTHER

    watch = watch_with(slow)

    def end() -> None:
        watch.look()  # nothing is known yet
        go_on.set()
        watch.finish()

    with pytest.raises(SourceMismatchError):
        install(watch, end)


def test_what_fails_of_another_image_is_not_taken_for_a_wrong_payload(
    watch_with: Callable[[Reading], SourceWatch],
) -> None:
    go_on = threading.Event()

    def slow(_look: Callable[[], None]) -> None:
        go_on.wait(0.2)
        raise OTHER

    with pytest.raises(SourceMismatchError) as told:
        install(watch_with(slow), failing(OperationOutputError("a copy is not what was signed")))
    assert isinstance(told.value.__cause__, OperationOutputError)


def test_a_wrong_payload_stays_one_where_the_slot_is_right(
    watch_with: Callable[[Reading], SourceWatch],
) -> None:
    with pytest.raises(OperationOutputError):
        install(watch_with(lambda _look: None), failing(OperationOutputError("wrong")))


def test_a_stop_ends_the_reading(watch_with: Callable[[Reading], SourceWatch]) -> None:
    ended: list[BaseException] = []

    def endless(look: Callable[[], None]) -> None:
        try:
            while True:
                look()
        except DownloadStoppedError as error:
            ended.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        install(watch_with(endless), failing(KeyboardInterrupt()))
    assert len(ended) == 1


def test_nothing_is_read_where_nothing_is_to_be_read() -> None:
    with SourceWatch(cast("Any", Node()), None) as watch:
        watch.start()
        watch.finish()
