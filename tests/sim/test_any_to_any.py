"""A full payload over HTTP, of which a node fetches what it lacks: bytes counted by the server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from images.block_index import blocks as blocks_of
from images.errors import BlobMismatchError
from images.payload import Part
from partitions.writer import RegionWriter
from tests.sim.any_to_any import BLOCK, BLOCKS, Disk, Versions, blocks, bound, edited
from tests.sim.payload_server import Manners
from updater.reuse import DictionaryLostError, LocalMismatchError

OTHER = 60_000  # a seed of bytes that are in no version


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions.make(tmp_path_factory.mktemp("versions"))


def other() -> bytes:
    return random.Random(OTHER).randbytes(BLOCKS * BLOCK)


def metadata_bytes(versions: Versions, number: int) -> int:
    data = versions.payload(number).read_bytes()
    return 24 + int.from_bytes(data[12:20], "big") + int.from_bytes(data[20:24], "big")


def young_bytes(part: Part, ages: int) -> int:
    """Return the bytes of the youngest operations, of so many ages."""
    count = sum(part.ages[-ages:])
    return sum(operation.data_length for operation in part.operations[-count:])


class TestWhatIsFetched:
    @pytest.mark.parametrize("old", [1, 0])
    def test_is_the_younger_ages_the_index_and_the_metadata(
        self, versions: Versions, tmp_path: Path, old: int
    ) -> None:
        disk = Disk(tmp_path, versions.payload(2), versions.images[old], other())
        disk.install()
        assert disk.content() == versions.images[2]
        manifest = versions.manifest(2)
        part = manifest.parts[0]
        needed = young_bytes(part, 2 - old) + manifest.index_bytes + metadata_bytes(versions, 2)
        assert needed < disk.sent <= needed + 2048
        assert len(disk.requests) <= 4
        most = bound(versions.images[old], versions.images[2])
        assert disk.sent <= 0.85 * most

    def test_is_little_when_nothing_changed(self, versions: Versions, tmp_path: Path) -> None:
        """Level 1 settles everything: no byte of the index."""
        disk = Disk(tmp_path, versions.payload(2), versions.images[2], other())
        disk.install()
        assert disk.content() == versions.images[2]
        assert disk.sent <= metadata_bytes(versions, 2) + 2048

    def test_is_a_small_index_when_little_changed(self, versions: Versions, tmp_path: Path) -> None:
        """One group of the index tells of the one operation that level 1 did not settle."""
        image = bytearray(versions.images[2])
        part = versions.manifest(2).parts[0]
        last = part.operations[-1]
        image[last.dst_extents[0].start_block * BLOCK] ^= 1
        disk = Disk(tmp_path, versions.payload(2), bytes(image), other())
        disk.install()
        assert disk.content() == versions.images[2]
        assert part.index is not None
        group = part.index.groups[-1].length
        assert group < versions.manifest(2).index_bytes
        most = metadata_bytes(versions, 2) + group + last.data_length
        assert disk.sent <= most + 2048

    @pytest.mark.parametrize("passive", ["other", "old"])
    def test_is_never_more_than_the_payload(
        self, versions: Versions, tmp_path: Path, passive: str
    ) -> None:
        held = other() if passive == "other" else versions.images[0][: BLOCK * 300]
        disk = Disk(tmp_path, versions.payload(2), other(), held)
        disk.install()
        assert disk.content() == versions.images[2]
        assert disk.sent <= 1.001 * disk.plan().size

    def test_is_all_of_it_from_a_server_without_ranges(
        self, versions: Versions, tmp_path: Path
    ) -> None:
        disk = Disk(
            tmp_path,
            versions.payload(2),
            versions.images[1],
            other(),
            manners=Manners(ranges=False),
        )
        disk.install()
        assert disk.content() == versions.images[2]
        assert disk.sent == disk.plan().size
        assert len(disk.requests) == 1

    def test_is_what_a_version_that_the_publisher_did_not_name_lacks(
        self, versions: Versions, tmp_path: Path
    ) -> None:
        own = edited(versions.images[1], 99, changed=3)
        disk = Disk(tmp_path, versions.payload(2), own, other())
        disk.install()
        assert disk.content() == versions.images[2]
        assert disk.sent < disk.plan().size

    def test_progress_only_grows(self, versions: Versions, tmp_path: Path) -> None:
        disk = Disk(tmp_path, versions.payload(2), versions.images[1], other())
        disk.install()
        assert disk.done == sorted(disk.done)
        assert 0 < disk.done[0] <= disk.done[-1] <= disk.plan().size


@pytest.mark.parametrize("old", [2, 1])
def test_what_is_not_fetched_counts_as_spared_once_it_is_flushed(
    versions: Versions, tmp_path: Path, old: int
) -> None:
    disk = Disk(tmp_path, versions.payload(2), versions.images[old], other())
    disk.install()
    manifest = versions.manifest(2)
    operations = manifest.parts[0].operations
    for journal in disk.noted:
        flushed = operations[: journal.next_operation]
        assert journal.spared == sum(operation.data_length for operation in flushed)
    last = disk.noted[-1]
    assert last.spared == manifest.blob_bytes
    assert last.downloaded < manifest.blob_bytes


class TestThePassiveSlot:
    def test_is_not_written_where_it_holds_the_image(
        self, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[int] = []
        original = RegionWriter.write_at

        def write_at(self: RegionWriter, offset: int, data: bytes | memoryview) -> None:
            written.append(len(data))
            original(self, offset, data)

        monkeypatch.setattr(RegionWriter, "write_at", write_at)
        half = versions.images[2][: BLOCK * BLOCKS // 2] + other()[BLOCK * BLOCKS // 2 :]
        differing = sum(
            half[at : at + BLOCK] != versions.images[2][at : at + BLOCK]
            for at in range(0, BLOCKS * BLOCK, BLOCK)
        )
        assert BLOCKS // 4 < differing < BLOCKS
        disk = Disk(tmp_path, versions.payload(2), versions.images[1], half)
        disk.install()
        assert disk.content() == versions.images[2]
        assert sum(written) == differing * BLOCK
        assert disk.noted[-1].kept == (BLOCKS - differing) * BLOCK

    @pytest.mark.parametrize("seed", range(6))
    def test_may_hold_the_blocks_at_other_places(
        self, versions: Versions, tmp_path: Path, seed: int
    ) -> None:
        """Also where writing one operation destroys what a later one would copy."""
        chance = random.Random(seed)
        image = versions.images[2]
        pieces = [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]
        few = [chance.randrange(BLOCKS) for _ in range(200)]
        moved = pieces.copy()
        for one, two in zip(few[::2], few[1::2], strict=True):
            moved[one], moved[two] = moved[two], moved[one]
        disk = Disk(tmp_path, versions.payload(2), other(), b"".join(moved))
        disk.install()
        assert disk.content() == image
        assert disk.sent <= 1.001 * disk.plan().size


class Killed(BaseException):
    """No handler under test outlives it."""


class KilledWriter(RegionWriter):
    """Dies at a write, part of which may have landed."""

    left = 0

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        type(self).left -= 1
        if type(self).left == 0:
            super().write_at(offset, data[: len(data) // 2])
            raise Killed
        super().write_at(offset, data)


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[KilledWriter]]:
    monkeypatch.setattr("updater.install.RegionWriter", KilledWriter)
    KilledWriter.left = 0
    yield KilledWriter
    KilledWriter.left = 0


def lose_unflushed(disk: Disk, part: Part, seed: int) -> int:
    """Let what the journal does not name hold anything, as after a power cut; return its number."""
    number = max((journal.next_operation for journal in disk.noted), default=0)
    chance = random.Random(seed)
    lost = [block for op in part.operations[number:] for block in blocks_of(op)]
    disk.spoil([block for block in lost if chance.random() < 0.3], seed)
    return number


@pytest.mark.parametrize("seed", range(24))
def test_an_install_that_is_killed_three_times_ends_with_the_image(
    versions: Versions, tmp_path: Path, seed: int, killing: type[KilledWriter]
) -> None:
    chance = random.Random(seed)
    part = versions.manifest(2).parts[0]
    old = chance.choice([*versions.images, other()])
    passive = chance.choice([versions.images[0], versions.images[2][: BLOCK * 900], other()])
    disk = Disk(tmp_path, versions.payload(2), old, passive)
    number = 0
    for attempt in range(3):
        killing.left = chance.randrange(1, 120)
        try:
            disk.install(number)
        except Killed:
            number = lose_unflushed(disk, part, seed * 10 + attempt)
    killing.left = 0
    disk.install(number)
    assert disk.content() == versions.images[2]


class TestADictionary:
    def test_is_read_back_from_the_slot_after_a_restart(
        self, versions: Versions, tmp_path: Path
    ) -> None:
        disk = Disk(tmp_path, versions.payload(2), other(), other(), reuse=False)
        disk.install()
        part = versions.manifest(2).parts[0]
        for number in range(1, len(part.operations)):
            lost = [block for op in part.operations[number:] for block in blocks_of(op)]
            disk.spoil(lost, number)
            disk.install(number)
            assert disk.content() == versions.images[2]

    def test_that_the_disk_lost_is_said_and_nothing_is_made_of_it(
        self, versions: Versions, tmp_path: Path
    ) -> None:
        disk = Disk(tmp_path, versions.payload(2), other(), other(), reuse=False)
        disk.install()
        part = versions.manifest(2).parts[0]
        number = next(n for n, op in enumerate(part.operations) if op.dictionary_count)
        used = part.operations[part.operations[number].dictionary_first]
        disk.spoil([next(blocks_of(used))], 1)
        lost = list(blocks_of(part.operations[number]))
        disk.spoil(lost, 2)
        before = disk.content()
        with pytest.raises(DictionaryLostError):
            disk.install(number)
        after = disk.content()
        assert all(
            before[b * BLOCK : (b + 1) * BLOCK] == after[b * BLOCK : (b + 1) * BLOCK] for b in lost
        )


class TestAnIndexThatLies:
    def test_costs_an_operation_and_never_a_wrong_byte(
        self, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new blocks are said to be those that the node has: signed, but not true."""
        import images.build as under_test

        original = under_test._add_index
        image = versions.images[2]
        held = original_hashes(versions.images[1])

        def lying(update: object, planned: object, hashes: bytes) -> bytes:
            own = [hashes[at : at + 6] for at in range(0, len(hashes), 6)]
            told = b"".join(one if one in held else held[0] for one in own)
            return original(update, planned, told)  # type: ignore[arg-type]  # passed on

        monkeypatch.setattr(under_test, "_add_index", lying)
        forged = versions.build(2, image, "lying.crau")
        disk = Disk(tmp_path, forged, versions.images[1], other())
        avoided: set[int] = set()
        for _ in range(20):
            try:
                disk.install(
                    max((journal.next_operation for journal in disk.noted), default=0),
                    disk.plan(avoided=frozenset(avoided)),
                )
                break
            except LocalMismatchError as error:
                avoided.add(error.number)
        assert 0 < len(avoided) < 20
        assert disk.content() == image

    def test_that_a_mirror_changed_is_refused(self, versions: Versions, tmp_path: Path) -> None:
        manifest = versions.manifest(2)
        part = manifest.parts[0]
        assert part.index is not None
        at = metadata_bytes(versions, 2) + part.index.groups[0].offset + 1
        disk = Disk(
            tmp_path, versions.payload(2), versions.images[1], other(), manners=Manners(flip_at=at)
        )
        with pytest.raises(BlobMismatchError, match="block index"):
            disk.install()
        assert disk.content() == other()


def original_hashes(image: bytes) -> list[bytes]:
    import hashlib

    return [
        hashlib.sha256(image[at : at + BLOCK]).digest()[:6] for at in range(0, len(image), BLOCK)
    ]


def test_blocks_that_packers_like_are_different(versions: Versions) -> None:
    """What the other tests count on."""
    assert len({blocks(1, n) for n in range(50)}) == 50
    assert len(versions.images[2]) == BLOCKS * BLOCK
