"""How an install steps back behind the node's real work: CPU and disk time.

Both belong to threads (sched(7), ioprio_set(2)), and a new thread has what its maker has. So they
are changed for the calling thread and those that it starts meanwhile, and for nobody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

log = logging.getLogger(__name__)

IoPriority: TypeAlias = Literal["normal", "low", "idle"]

# ioprio_get(2) has no wrapper in libc; ioprio_set is the number before it. By uname's machine.
_IOPRIO_GET: Final[Mapping[str, int]] = MappingProxyType(
    {
        "x86_64": 252,
        "aarch64": 31,
        "riscv64": 31,
        "loongarch64": 31,
        "i686": 290,
        "armv7l": 315,
        "armv6l": 315,
        "ppc64le": 274,
        "s390x": 283,
    }
)
_WHO_THREAD: Final = 1  # linux/ioprio.h: IOPRIO_WHO_PROCESS
_CLASS_SHIFT: Final = 13
_BEST_EFFORT: Final = 2
_IDLE: Final = 3
_LOWEST: Final = 7
_VALUES: Final[Mapping[IoPriority, int]] = MappingProxyType(
    {"low": _BEST_EFFORT << _CLASS_SHIFT | _LOWEST, "idle": _IDLE << _CLASS_SHIFT}
)


@contextmanager
def polite(*, nice: int, io: IoPriority) -> Iterator[None]:
    """Run with less of CPU and disk; afterwards as before, where the kernel lets us go back.

    Args:
        nice: at least this niceness, 0 to 19; who is nicer already stays so.
        io: "normal" leaves the disk's scheduler alone. Only schedulers that know priorities (bfq,
            mq-deadline) heed it.
    """
    thread = threading.get_native_id()
    with _niceness(thread, nice), _io_priority(thread, io):
        yield


@contextmanager
def _niceness(thread: int, nice: int) -> Iterator[None]:
    before = os.getpriority(os.PRIO_PROCESS, thread)
    if nice <= before:
        yield
        return
    os.setpriority(os.PRIO_PROCESS, thread, nice)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # only root may; a process of its own ends anyway
            os.setpriority(os.PRIO_PROCESS, thread, before)


@contextmanager
def _io_priority(thread: int, io: IoPriority) -> Iterator[None]:
    number = _IOPRIO_GET.get(platform.machine())
    if io == "normal" or number is None:
        yield
        return
    call = ctypes.CDLL(None, use_errno=True).syscall
    before = call(number, _WHO_THREAD, thread)
    if call(number - 1, _WHO_THREAD, thread, _VALUES[io]):
        log.debug("no i/o priority error=%s", os.strerror(ctypes.get_errno()))
    try:
        yield
    finally:
        if before >= 0:
            call(number - 1, _WHO_THREAD, thread, before)
