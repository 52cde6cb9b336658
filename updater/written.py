"""Which operations of an install are written: all before one number, and some that ran ahead.

Operations are written in their order, but for those that come late: they are slow, and others pass
them meanwhile. A journal names only a number, so it waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from updater.download import DownloadStoppedError


class Written:
    """The first operation that is not written; safe in threads."""

    def __init__(self, begin: int) -> None:
        """Begin with the first operation that is carried out."""
        self._next = begin  # no operation before it is missing but late ones
        self._late: set[int] = set()  # missing
        self._early: set[int] = set()  # late ones that were written before one before them
        self._changed = threading.Condition()
        self._closed = False

    @property
    def first_left(self) -> int:
        """The first operation that is not written: all before it are."""
        with self._changed:
            return self._first_left()

    def expect_late(self, number: int) -> None:
        """Let those behind an operation be written before it; before any of them is."""
        with self._changed:
            self._late.add(number)

    def note(self, number: int) -> int:
        """Note that an operation is written; return the first that is not.

        Those that are not late are noted in their order.
        """
        with self._changed:
            if number in self._late:
                self._late.remove(number)
                self._early.add(number)
            else:
                self._next = number + 1
            self._early = {early for early in self._early if early >= self._next}
            while self._next in self._early:
                self._early.remove(self._next)
                self._next += 1
            self._changed.notify_all()
            return self._first_left()

    def _first_left(self) -> int:
        return min(self._next, *self._late) if self._late else self._next

    @property
    def awaits_late(self) -> bool:
        """Whether one that comes late is not written yet."""
        with self._changed:
            return bool(self._late)

    def wait(self, near: Callable[[int], bool]) -> None:
        """Wait until no late operation is left, or the first that is left is near enough.

        Raises:
            DownloadStoppedError: the install ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._late or near(min(self._late)))
            if self._closed:
                raise DownloadStoppedError("the install ended")

    def close(self) -> None:
        """Wake whoever waits: the install ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
