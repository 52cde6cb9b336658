"""The limit of memory: what counts for it, who passes, who waits."""

from __future__ import annotations

import threading
from typing import Final

import pytest

from images.payload import Extent, Operation, OperationKind
from updater.download import DownloadStoppedError
from updater.in_flight import LIMIT_BYTES, QUICK_BYTES, InFlight, cost_of

BLOCK: Final = 4096
MIB: Final = 1024 * 1024


def operation(kind: OperationKind, mib: int) -> Operation:
    """Return one that reads and makes so many MiB."""
    extents = (Extent(0, mib * MIB // BLOCK),)
    return Operation(
        kind=kind,
        data_offset=0,
        data_length=1000,
        dst_extents=extents,
        dst_length=None,
        output_limit=mib * MIB,
        data_sha256=b"",
        dst_sha256=None,
        src_extents=extents,
        src_length=mib * MIB,
    )


QUICK = operation(OperationKind.SOURCE_ZSTD, 2)
SLOW = operation(OperationKind.SOURCE_BSDIFF, 2)


def begins(memory: InFlight, wanted: Operation, cost: int) -> threading.Thread:
    """Let a thread take memory; it ends when it could."""
    taker = threading.Thread(target=memory.take, args=(wanted, cost), daemon=True)
    taker.start()
    return taker


def test_large_outputs_count_since_they_are_held_until_they_are_written() -> None:
    large = operation(OperationKind.SOURCE_BSDIFF, 32)
    assert cost_of(large, block_size=BLOCK) > 32 * MIB
    assert cost_of(large, block_size=BLOCK) + cost_of(SLOW, block_size=BLOCK) > LIMIT_BYTES
    assert 2 * cost_of(SLOW, block_size=BLOCK) <= LIMIT_BYTES


def test_slow_ones_run_beside_quick_ones_that_fill_their_part() -> None:
    memory = InFlight()
    memory.take(QUICK, QUICK_BYTES)
    beside = begins(memory, SLOW, LIMIT_BYTES - QUICK_BYTES)
    beside.join(60)
    assert not beside.is_alive()
    waiting = [begins(memory, QUICK, 1), begins(memory, SLOW, 1)]
    for taker in waiting:
        taker.join(0.05)
        assert taker.is_alive()
    memory.give(QUICK, QUICK_BYTES)
    for taker in waiting:
        taker.join(60)
        assert not taker.is_alive()


@pytest.mark.parametrize("wanted", [QUICK, SLOW])
def test_any_size_passes_alone(wanted: Operation) -> None:
    memory = InFlight()
    memory.take(wanted, 10 * LIMIT_BYTES)
    other = begins(memory, wanted, 1)
    other.join(0.05)
    assert other.is_alive()
    memory.give(wanted, 10 * LIMIT_BYTES)
    other.join(60)
    assert not other.is_alive()


@pytest.mark.parametrize("wanted", [QUICK, SLOW])
def test_who_has_some_of_it_passes_alone_with_more(wanted: Operation) -> None:
    """A blob is fetched before it is known what more it takes."""
    memory = InFlight()
    memory.take(wanted, 1000)
    memory.take(wanted, 10 * LIMIT_BYTES, has=1000)
    memory.give(wanted, 10 * LIMIT_BYTES)
    other = operation(OperationKind.SOURCE_BSDIFF, 2)
    memory.take(other, 1)
    taker = threading.Thread(
        target=memory.take, args=(wanted, 10 * LIMIT_BYTES), kwargs={"has": 1000}, daemon=True
    )
    taker.start()
    taker.join(0.05)
    assert taker.is_alive()
    memory.give(other, 1)
    taker.join(60)
    assert not taker.is_alive()


@pytest.mark.parametrize("wanted", [QUICK, SLOW])
def test_who_waits_is_told_of_the_end(wanted: Operation) -> None:
    memory = InFlight()
    memory.take(wanted, LIMIT_BYTES)
    ending = threading.Thread(target=memory.close)
    ending.start()
    with pytest.raises(DownloadStoppedError):
        memory.take(wanted, 1)
    ending.join()
