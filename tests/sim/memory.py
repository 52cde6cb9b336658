"""A test's folder in memory: what these worlds flush to is a file that stands for a disk.

A node asks for hundreds of flushes in a life, and each is some milliseconds of waiting on a real
disk. What they make durable is judged by `recorder.py`, which sees the calls; a killed process
leaves the same behind in either place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

SHARED_MEMORY: Final = Path("/dev/shm")
VARIABLE: Final = "BASCULE_TEST_MEMORY"  # names a run's folder there, for all its processes
ROOM_BYTES: Final = 1024 * 1024 * 1024
FAILED: Final = pytest.StashKey[bool]()


@contextmanager
def in_memory(item: pytest.Item, kept: Path) -> Iterator[Path]:
    """Lend a folder in memory, or `kept` itself where there is little; a failure is copied there.

    Args:
        item: the test; `FAILED` in its stash tells how it ended.
        kept: its folder on the disk.
    """
    place = memory_or(kept)
    if place is kept:
        yield kept
        return
    with tempfile.TemporaryDirectory(dir=place, prefix="bascule-test-") as name:
        yield Path(name)
        if item.stash.get(FAILED, False):
            shutil.copytree(name, kept, symlinks=True, dirs_exist_ok=True)


@contextmanager
def scratch(otherwise: Path) -> Iterator[Path]:
    """Lend a folder that nobody looks at afterwards: in memory, or in `otherwise`."""
    otherwise.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=memory_or(otherwise), prefix="bascule-test-") as name:
        yield Path(name)


def memory_or(otherwise: Path) -> Path:
    """Return where files of this run lie in memory, or `otherwise` where there is little of it."""
    place = os.environ.get(VARIABLE)
    if place is None or shutil.disk_usage(place).free < ROOM_BYTES:
        return otherwise
    return Path(place)


def open_memory() -> Path | None:
    """Make the folder of this run, where there is none; who gets it removes it in the end."""
    if VARIABLE in os.environ or not os.access(SHARED_MEMORY, os.W_OK):
        return None
    made = Path(tempfile.mkdtemp(dir=SHARED_MEMORY, prefix="bascule-tests-"))
    made.chmod(0o711)  # a bus in it has clients that are not root
    os.environ[VARIABLE] = str(made)
    return made
