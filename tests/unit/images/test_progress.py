"""Progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

from typing_extensions import override

from images.progress import LINE_EVERY_SECONDS, shown

MIB = 1024 * 1024


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


def test_a_line_appears_every_few_seconds_and_not_more_often() -> None:
    stream, clock = io.StringIO(), Clock()

    with shown("build", stream, clock=clock) as progress:
        for step in range(12):
            clock.now = 100.0 + step
            progress(step * MIB, 12 * MIB)

    assert LINE_EVERY_SECONDS == 5.0
    assert stream.getvalue() == "build: 41 % of 12 MiB\nbuild: 83 % of 12 MiB\n"


def test_quick_work_says_nothing() -> None:
    stream = io.StringIO()

    with shown("verify", stream, clock=Clock()) as progress:
        progress(5, 5)

    assert stream.getvalue() == ""


def test_nothing_to_do_is_no_division_by_zero() -> None:
    stream, clock = io.StringIO(), Clock()

    with shown("verify", stream, clock=clock) as progress:
        clock.now += 60
        progress(0, 0)

    assert stream.getvalue() == "verify: 0 % of 0 MiB\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()

    with shown("build", stream, clock=Clock()) as progress:
        progress(5 * MIB, 10 * MIB)

    assert "build" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
