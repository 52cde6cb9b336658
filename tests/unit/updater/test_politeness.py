"""An install steps back for what runs beside it, and whoever ran it is as before."""

from __future__ import annotations

import ctypes
import os
import platform
import threading

import pytest

from updater import politeness
from updater.politeness import IoPriority, polite


def io_priority() -> int:
    """Ask the kernel for the calling thread's: class and level."""
    number = politeness._IOPRIO_GET.get(platform.machine())
    if number is None:
        pytest.skip(f"no number of ioprio_get is known for {platform.machine()}")
    return int(ctypes.CDLL(None).syscall(number, 1, 0))


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize(("io", "value"), [("low", 2 << 13 | 7), ("idle", 3 << 13)])
def test_threads_that_start_meanwhile_step_back_too(io: IoPriority, value: int) -> None:
    before = io_priority(), niceness()
    nicer = min(19, niceness() + 3)
    seen: list[tuple[int, int]] = []
    with polite(nice=nicer, io=io):
        seen.append((io_priority(), niceness()))
        thread = threading.Thread(target=lambda: seen.append((io_priority(), niceness())))
        thread.start()
        thread.join()
    assert seen == [(value, nicer)] * 2
    if os.geteuid() == 0:
        assert (io_priority(), niceness()) == before


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    before = io_priority(), niceness()
    with polite(nice=0, io="normal"):
        assert (io_priority(), niceness()) == before


def test_who_is_nicer_already_stays_so() -> None:
    before = niceness()
    with polite(nice=max(0, before - 1), io="normal"):
        assert niceness() == before


def test_it_ends_with_an_error_too() -> None:
    before = io_priority()
    with pytest.raises(RuntimeError), polite(nice=0, io="idle"):
        raise RuntimeError
    assert io_priority() == before


def test_a_machine_whose_numbers_we_do_not_know_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with polite(nice=0, io="idle"):
        pass
