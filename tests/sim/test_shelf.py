"""What an attempt read of a payload beside its blobs is not fetched again, and never believed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from partitions.slots import Slot
from tests.sim.any_to_any import BLOCK, BLOCKS, Disk, Versions
from tests.sim.full_disk import fill, read_only, small_disk
from tests.sim.payload_server import Manners
from tests.sim.plain import is_armed, stop_after
from tests.sim.world import World
from updater.download import DownloadError, DownloadStoppedError
from updater.node import Node
from updater.pipeline import Pipeline
from updater.shelf import SHELF_MAX_BYTES, Shelf
from updater.state import SHELF_FILE, SHELF_FILE_MAX_BYTES, Journal, Pieces, Store
from updater.verbs import perform

HEADER_BYTES = 24  # what is asked for to learn whether a mirror serves ranges


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions.make(tmp_path_factory.mktemp("versions"))


class Killed(BaseException):
    """No handler under test outlives it."""


def killed(disk: Disk, monkeypatch: pytest.MonkeyPatch, *, number: int = 0, after: int = 3) -> int:
    """Let an install die after so many operations; return where the journal goes on."""
    left = after

    def write(self: Pipeline, step: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            self._retire_all()
            self._flusher.finish()
            raise Killed
        original(self, step)  # type: ignore[arg-type]  # its own item

    with monkeypatch.context() as patch:
        original = Pipeline._write
        patch.setattr(Pipeline, "_write", write)
        with pytest.raises(Killed):
            disk.install(number)
    return disk.noted[-1].next_operation


@pytest.fixture
def disk(versions: Versions, tmp_path: Path) -> Disk:
    """A disk whose booted slot has the version before; what its passive one has is in none."""
    other = random.Random(60_000).randbytes(BLOCKS * BLOCK)
    store = Store(tmp_path / "state")
    store.prepare()
    return Disk(tmp_path, versions.payload(2), versions.images[1], other, store=store)


def spans(requests: list[str]) -> Iterator[tuple[int, int]]:
    for one in requests:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", one)
        assert found, one
        yield int(found[1]), int(found[2]) + 1


def blob_span(versions: Versions) -> tuple[int, int]:
    data = versions.payload(2).read_bytes()
    start = 24 + int.from_bytes(data[12:20], "big") + int.from_bytes(data[20:24], "big")
    return start, start + versions.manifest(2).blob_bytes


def test_a_resumed_install_fetches_neither_metadata_nor_index(
    disk: Disk, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = killed(disk, monkeypatch)
    assert number > 0
    assert (disk.folder / "state" / SHELF_FILE).stat().st_size > versions.manifest(2).index_bytes
    disk.requests.clear()
    disk.requests.append("")  # it was begun
    sent = disk.sent
    disk.install(number)

    assert disk.content() == versions.images[2]
    first, *others = spans(disk.requests[1:])
    start, end = blob_span(versions)
    assert first == (0, HEADER_BYTES)
    assert all(start <= one and other <= end for one, other in others)
    assert disk.sent - sent == HEADER_BYTES + sum(other - one for one, other in others)


def test_ten_attempts_that_get_nowhere_cost_what_one_does(
    disk: Disk, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Pipeline) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", run)
        for _ in range(10):
            with pytest.raises(Killed):
                disk.install()
    start, _ = blob_span(versions)
    signatures = 267
    once = start + versions.manifest(2).index_bytes + signatures
    assert disk.sent <= once + 1024 + 9 * HEADER_BYTES  # more is asked for than the metadata has
    disk.install()
    assert disk.content() == versions.images[2]


def test_a_mirror_without_ranges_sends_nothing_twice(
    disk: Disk, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = killed(disk, monkeypatch)
    disk.manners = Manners(ranges=False)
    before, sent = len(disk.requests), disk.sent
    disk.install(number)
    assert disk.content() == versions.images[2]
    assert len(disk.requests) == before + 1
    assert disk.sent - sent <= disk.plan().size


def pieces_of(disk: Disk) -> dict[int, bytes]:
    assert disk.store is not None
    return disk.store.read_pieces(disk.plan().identity)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGE: dict[str, Callable[[dict[int, bytes]], dict[int, bytes]]] = {
    "all flipped": lambda pieces: {start: flipped(data) for start, data in pieces.items()},
    "all cut short": lambda pieces: {start: data[:-1] for start, data in pieces.items()},
    "all empty": lambda pieces: dict.fromkeys(pieces, b""),
    "index and tail one longer": lambda pieces: {  # of the metadata its header says how long it is
        start: data + b"\0" if start else data for start, data in pieces.items()
    },
    "the metadata flipped": lambda pieces: pieces | {0: flipped(pieces[0])},
    "the index and the tail flipped": lambda pieces: {
        start: flipped(data) if start else data for start, data in pieces.items()
    },
    "what belongs elsewhere": lambda pieces: dict(
        zip(pieces, [*list(pieces.values())[1:], pieces[0]], strict=True)
    ),
    "nothing": lambda _: {},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_fetched_again_and_kept_again(
    disk: Disk,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[int, bytes]], dict[int, bytes]],
) -> None:
    number = killed(disk, monkeypatch)
    whole = pieces_of(disk)
    assert len(whole) >= 3
    assert disk.store is not None
    damaged = damage(whole)
    disk.store.write_pieces(disk.plan().identity, damaged)
    again = sum(len(data) for start, data in whole.items() if damaged.get(start) != data)
    sent = disk.sent

    later = killed(disk, monkeypatch, number=number, after=1)

    assert disk.sent - sent >= again
    now = pieces_of(disk)
    assert all(whole[start] == data for start, data in now.items() if start in whole)
    assert 0 in now
    disk.install(later)
    assert disk.content() == versions.images[2]


@pytest.mark.parametrize("damage", [b"", b"\x80", bytes(4096), b"\xc1" * 77])
def test_a_file_that_makes_no_sense_is_fetched_again(
    disk: Disk, versions: Versions, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    number = killed(disk, monkeypatch)
    (disk.folder / "state" / SHELF_FILE).write_bytes(damage)
    disk.install(number)
    assert disk.content() == versions.images[2]


def test_a_state_folder_that_takes_nothing_costs_bytes_and_not_the_update(
    disk: Disk, versions: Versions
) -> None:
    assert disk.store is not None
    with read_only(disk.store.folder):
        disk.install()
    assert disk.content() == versions.images[2]
    assert list(disk.store.folder.iterdir()) == []


def test_a_full_state_folder_keeps_nothing_and_no_draft(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state") as folder:
        store = Store(folder)
        store.prepare()
        fill(folder)
        before = sorted(path.name for path in folder.iterdir())
        shelf = Shelf({}, lambda pieces: store.write_pieces("one", pieces))
        shelf.add(0, bytes(100_000))
        shelf.close()
        assert sorted(path.name for path in folder.iterdir()) == before


def test_the_file_is_bounded() -> None:
    kept: list[dict[int, bytes]] = []
    shelf = Shelf({}, kept.append)
    for start in range(0, 16 * 2**20, 2**20):
        shelf.add(start, bytes(2**20))
    shelf.close()
    assert sum(map(len, kept[0].values())) == SHELF_MAX_BYTES
    encoded = msgspec.msgpack.encode(Pieces(identity="a" * 64, pieces=kept[0], sha256=bytes(32)))
    assert len(encoded) <= SHELF_FILE_MAX_BYTES


def journal_of_a_stopped_update(node: Node, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Update until something is flushed, and no further."""
    stop_after(node, 1, monkeypatch)
    with pytest.raises(DownloadStoppedError):
        perform(node, "update", {}, by="test")
    monkeypatch.undo()
    journal = node.store.read_journal()
    assert journal is not None
    return journal


class TestANode:
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        with World(tmp_path) as made:
            made.release("2.0.0", rollback_index=2)
            made.boot()
            yield made

    def test_keeps_it_until_the_slot_is_armed_and_counts_what_came(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = journal_of_a_stopped_update(world.node(), monkeypatch)
        kept = world.folder / "state" / SHELF_FILE
        assert kept.exists()
        first = world.payloads.sent
        assert 0 < journal.downloaded <= first
        size = (world.folder / "2.0.0.crau").stat().st_size

        perform(world.node(), "update", {}, by="test")

        assert is_armed(world.node())
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        assert not kept.exists()
        update = world.node().store.read_state().update
        assert update is not None
        assert update.downloaded - journal.downloaded <= size - journal.spared
        assert update.downloaded >= size - journal.spared

    def test_does_not_give_up_another_payload_for_what_only_it_remembers(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The metadata is known, but nobody showed that the payload itself is still there."""
        node = world.node()
        journal = journal_of_a_stopped_update(node, monkeypatch)
        other = msgspec.structs.replace(journal, sha256="0" * 64)
        node.store.write_journal(other)
        files = dict(world.payloads.files)
        world.payloads.files.clear()
        with pytest.raises(DownloadError):
            perform(world.node(), "update", {}, by="test")
        after = node.store.read_journal()
        assert after is not None
        assert (after.sha256, after.next_operation) == (other.sha256, other.next_operation)
        world.payloads.files.update(files)
        perform(world.node(), "update", {}, by="test")
        assert is_armed(world.node())
