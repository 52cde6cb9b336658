from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from typing_extensions import override

import images.build as build_room
from images.build import build
from images.errors import (
    BlobMismatchError,
    ImagesError,
    OperationOutputError,
    PayloadSignatureError,
)
from images.operations import work_bytes
from images.packing import Blob
from images.payload import CLEARS, Manifest, Operation, Step
from images.reader import Accept, Metadata, PayloadFile, verify_file
from images.release import PartFacts, PayloadFacts, facts_of
from images.signing import keygen, load_private_key, load_public_keys
from partitions.attributes import BootBits
from partitions.booted import Booted
from partitions.errors import DeviceWriteError, PartitionsError
from partitions.readback import RegionReader
from partitions.slots import PartRef, Region, Room, Slot, resolve
from partitions.writer import RegionWriter
from tests.sim.gpt_disk import two_slots
from tests.sim.payload_server import Manners, PayloadServer
from tests.sim.payloads import pack_bent
from updater import in_flight, install, outputs, pipeline
from updater.download import Download, DownloadError, DownloadStoppedError, Patience
from updater.errors import StateError
from updater.given import own_facts
from updater.install import FactsMismatchError, WrittenSlot, make_again, verify_slot, write_slot
from updater.outputs import Outputs
from updater.pipeline import PayloadDigestError, Pipeline
from updater.plan import DoesNotFitError, OwnFacts, Plan, check_fit
from updater.proof import ReadBackError, is_provable, proof_of
from updater.shell import OpenSlots, Shell
from updater.sparing import Work
from updater.state import Journal
from updater.trust.fetcher import open_session

MIB: Final = 1024 * 1024
LIMIT_SECS: Final = 60.0  # for what takes a moment
BACKGROUND: Final = b"\xee"
ROOT_AT: Final = 1 * MIB
BOOT_AT: Final = 10 * MIB
DISK_BYTES: Final = 14 * MIB


@dataclass(frozen=True)
class Release:
    """A real payload of two parts, and what it was made of."""

    folder: Path
    data: bytes
    root: bytes
    boot: bytes


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    chance = random.Random(7)
    hard = chance.randbytes(4 * MIB)  # does not compress
    root = hard[: 3 * MIB] + bytes(2 * MIB) + b"easily packed " * (MIB // 14 + 1)
    root = root[: 6 * MIB]
    boot = hard[3 * MIB :] + b"x" * 8192
    write_parts(folder, root, boot)
    build(
        [("root", folder / "root"), ("boot", folder / "boot")],
        folder / "payload.crau",
        keys=[load_private_key(folder / "key.key.pem")],
    )
    data = (folder / "payload.crau").read_bytes()
    return Release(folder=folder, data=data, root=root, boot=boot)


def write_parts(folder: Path, root: bytes, boot: bytes) -> None:
    """Write what a payload is made of, and a key to sign it with."""
    (folder / "root").write_bytes(root)
    (folder / "boot").write_bytes(boot)
    keygen(folder / "key")


@dataclass
class Bench:
    """A disk file with two regions, a mirror, and everything that one install needs.

    Attributes:
        noted: the journals that were kept, in order.
        events: what writers and journal did, in order, with the threads' own order kept.
    """

    release: Release
    folder: Path
    stack: ExitStack
    noted: list[Journal] = field(default_factory=list)
    events: list[tuple[str, object]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    mirror: PayloadServer = field(init=False)

    def __post_init__(self) -> None:
        self.disk = self.folder / "disk.img"
        self.disk.write_bytes(BACKGROUND * DISK_BYTES)
        self.mirror = PayloadServer(files={"p": self.release.data})
        self.stack.enter_context(self.mirror)
        self.guard = threading.Lock()

    def region(self, label: str, offset: int, size: int) -> Region:
        return Region(path=self.disk, offset=offset, size=size, partuuid=label, label=label)

    def plan(self, checkpoint_bytes: int = MIB) -> Plan:
        facts = facts_of(
            self.release.folder / "payload.crau",
            product="acme-os",
            board="amd64-usr",
            version="2.0.0",
            rollback_index=2,
            min_engine="0.1.0",
            created=datetime(2026, 1, 1, tzinfo=UTC),
        )
        return Plan(
            facts=facts,
            sha256=hashlib.sha256(self.release.data).hexdigest(),
            size=len(self.release.data),
            slot=Slot.B,
            regions={
                "root": self.region("root", ROOT_AT, 8 * MIB),
                "boot": self.region("boot", BOOT_AT, 2 * MIB),
            },
            keys=load_public_keys(self.release.folder / "key.pub.pem"),
            checkpoint_bytes=checkpoint_bytes,
            booted=Booted.nothing(),
            workers=2,
        )

    def download(self) -> Download:
        patience = Patience(idle_timeout_secs=10, retries=2, retry_delay_secs=0.001)
        return self.stack.enter_context(
            Download(
                [f"{self.mirror.base}/p"],
                size=len(self.release.data),
                session=open_session(),
                patience=patience,
                monotonic=lambda: 0.0,
                stop=self.stop,
            )
        )

    def shell(self, progress: Callable[[int], None] = lambda _: None) -> Shell:
        return Shell(keep_journal=self.keep, progress=progress, stop=self.stop)

    def keep(self, journal: Journal) -> None:
        self.note("journal", journal.next_operation)
        self.noted.append(journal)

    def note(self, what: str, value: object) -> None:
        with self.guard:
            self.events.append((what, value))

    def journal(self, next_operation: int = 0) -> Journal:
        sha256 = hashlib.sha256(self.release.data).hexdigest()
        return Journal(sha256=sha256, slot="b", next_operation=next_operation)

    def install(self, next_operation: int = 0, shell: Shell | None = None) -> WrittenSlot:
        journal = self.journal(next_operation)
        return write_slot(self.plan(), self.download(), journal, shell or self.shell())

    def content(self) -> tuple[bytes, bytes]:
        data = self.disk.read_bytes()
        root = data[ROOT_AT : ROOT_AT + len(self.release.root)]
        return root, data[BOOT_AT : BOOT_AT + len(self.release.boot)]


@pytest.fixture
def bench(release: Release, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(release=release, folder=tmp_path, stack=stack)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def metadata_of(release: Release) -> Metadata:
    return verify_file(release.folder / "payload.crau", None)


def count_of(release: Release) -> int:
    return sum(1 for _ in metadata_of(release).manifest.steps())


def run_with(bench: Bench, writer: type[RegionWriter], plan: Plan | None = None) -> None:
    """Run the pipeline over writers that a test bends."""
    plan = plan or bench.plan()
    with (
        PayloadFile.open(bench.release.folder / "payload.crau") as file,
        ExitStack() as stack,
    ):
        metadata = file.metadata(plan.keys, accept=Accept.FULL)
        writers = {
            name: stack.enter_context(writer(region, booted=plan.booted))
            for name, region in plan.regions.items()
        }
        proof = stack.enter_context(proof_of(metadata.manifest, plan.regions))
        slots = OpenSlots(writers=writers, proof=proof)
        Pipeline(plan, metadata, bench.download(), bench.journal(), bench.shell(), slots).run()


class TestAWholeInstall:
    def test_writes_the_images_and_nothing_else(self, bench: Bench) -> None:
        bench.install()
        assert bench.content() == (bench.release.root, bench.release.boot)
        data = bench.disk.read_bytes()
        assert data[:ROOT_AT].strip(BACKGROUND) == b""
        assert data[ROOT_AT + len(bench.release.root) : BOOT_AT].strip(BACKGROUND) == b""
        assert data[BOOT_AT + len(bench.release.boot) :].strip(BACKGROUND) == b""

    def test_fetches_each_byte_once(self, bench: Bench) -> None:
        bench.install()
        assert bench.mirror.requests == [""]
        assert bench.mirror.sent == len(bench.release.data)

    def test_ends_with_a_journal_that_names_everything(self, bench: Bench) -> None:
        bench.install()
        assert bench.noted[-1].next_operation == count_of(bench.release)
        assert bench.noted[-1].downloaded == len(bench.release.data)

    def test_notes_its_way_several_times(self, bench: Bench) -> None:
        """4 MiB that do not compress, and a checkpoint each MiB."""
        bench.install()
        numbers = [journal.next_operation for journal in bench.noted]
        assert numbers == sorted(numbers)
        assert len(numbers) >= 3

    def test_tells_how_far_it_is(self, bench: Bench) -> None:
        told: list[int] = []
        bench.install(shell=bench.shell(told.append))
        assert told == sorted(told)
        assert len(told) == count_of(bench.release)
        assert 0 < told[0] <= told[-1] <= len(bench.release.data)


class RecordingWriter(RegionWriter):
    """Notes when a write and a flush began and ended, in one order over all threads."""

    bench: Bench

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        super().write_at(offset, data)
        self.bench.note("written", (self.region.label, offset))

    @override
    def zero_at(self, offset: int, length: int) -> None:
        super().zero_at(offset, length)
        self.bench.note("written", (self.region.label, offset))

    @override
    def sync(self) -> None:
        self.bench.note("flush begins", self.region.label)
        super().sync()
        self.bench.note("flush ended", self.region.label)


def places_of(metadata: Metadata) -> list[set[tuple[str, int]]]:
    """Return what each operation writes, as (part, offset)."""
    return [
        {
            (step.part.name, extent.start_block * metadata.manifest.block_size)
            for extent in step.operation.dst_extents
        }
        for step in metadata.manifest.steps()
        if step.part is not None
    ]


def test_the_journal_names_an_operation_only_after_its_data_is_flushed(bench: Bench) -> None:
    """Promise 6: whatever the journal names survives a power cut at that very moment."""
    RecordingWriter.bench = bench
    run_with(bench, RecordingWriter, bench.plan(checkpoint_bytes=256 * 1024))
    assert_durable_before_named(bench, places_of(metadata_of(bench.release)))


class LateWriter(RecordingWriter):
    """What is more than one block takes its time."""

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        time.sleep(0.02 if len(data) > 4096 else 0)
        super().write_at(offset, data)


def test_an_operation_is_written_when_all_shares_of_it_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first share is one block, so that waiting for it alone is seen."""

    def halves(work: Work) -> Iterator[Work]:
        yield Work([], work.clears)
        for at, data in work.pieces:
            yield Work([(at, data[:4096])], [])
            yield Work([(at + 4096, data[4096:])], [])

    monkeypatch.setattr(Work, "shares", halves)
    LateWriter.bench = bench
    run_with(bench, LateWriter, bench.plan(checkpoint_bytes=256 * 1024))
    metadata = metadata_of(bench.release)
    starts = places_of(metadata)
    seconds = [
        {(name, at + 4096) for name, at in places if step.operation.kind not in CLEARS}
        for places, step in zip(starts, metadata.manifest.steps(), strict=True)
    ]
    assert_durable_before_named(
        bench, [one | other for one, other in zip(starts, seconds, strict=True)]
    )


def assert_durable_before_named(
    bench: Bench, places: Sequence[AbstractSet[tuple[str, int]]]
) -> None:
    """Check that each journal names operations alone all of whose places were flushed before."""
    written: set[object] = set()
    flushing: dict[object, set[object]] = {}
    durable: set[object] = set()
    journals = 0
    for what, value in bench.events:
        if what == "written":
            written.add(value)
        elif what == "flush begins":
            flushing[value] = {place for place in written if place[0] == value}  # type: ignore[index]
        elif what == "flush ended":
            durable |= flushing.pop(value)
        else:
            assert isinstance(value, int)
            named = set().union(*places[:value])
            assert named <= durable, f"the journal names {value} operations too early"
            journals += 1
    assert journals >= 3
    assert durable == set().union(*places)


class CountingWriter(RegionWriter):
    """Counts the bytes that come to the device."""

    written = 0

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        super().write_at(offset, data)
        type(self).written += len(data)

    @override
    def zero_at(self, offset: int, length: int) -> None:
        super().zero_at(offset, length)
        type(self).written += length


class TestWhatTheSlotHoldsAlready:
    def test_is_not_written_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.install()
        size = len(bench.release.root) + len(bench.release.boot)
        assert (bench.noted[-1].written, bench.noted[-1].kept) == (size, 0)
        differing = [ROOT_AT + 5000, ROOT_AT + 2 * MIB, ROOT_AT + 4 * MIB + 99, BOOT_AT + 77]
        for at in differing:
            flip(bench.disk, at)
        monkeypatch.setattr(install, "RegionWriter", CountingWriter)
        CountingWriter.written = 0
        verify_slot(bench.install())
        assert bench.content() == (bench.release.root, bench.release.boot)
        # Three blocks, and of what is cleared a MiB.
        assert CountingWriter.written == 3 * 4096 + MIB
        assert bench.noted[-1].written == 3 * 4096 + MIB
        assert bench.noted[-1].kept == size - 3 * 4096 - MIB

    def test_is_proven_all_the_same(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slot that is taken for equal and is not."""
        bench.install()
        flip(bench.disk, ROOT_AT + MIB + 4096)
        monkeypatch.setattr(RegionReader, "differing", lambda *_, **__: [])
        bench.noted.clear()
        with pytest.raises(ReadBackError) as caught:
            bench.install()
        assert caught.value.number == operation_at(bench.release, MIB + 4096)
        assert all(journal.next_operation <= caught.value.number for journal in bench.noted)


class TestResuming:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
    def test_goes_on_where_the_journal_says(self, bench: Bench, share: float) -> None:
        """What it names was flushed; what comes after may hold anything."""
        count = count_of(bench.release)
        bench.install()
        places = places_of(metadata_of(bench.release))
        done = int(share * count)
        with bench.disk.open("r+b") as file:
            for part, offset in set().union(*places[done:]):
                file.seek((ROOT_AT if part == "root" else BOOT_AT) + offset)
                file.write(b"torn" * 1024)
        bench.mirror.sent = 0
        bench.install(done)
        assert bench.content() == (bench.release.root, bench.release.boot)
        verify_slot(WrittenSlot(plan=bench.plan()))
        metadata = metadata_of(bench.release)
        steps = list(metadata.manifest.steps())
        skipped = sum(step.operation.data_length for step in steps[:done])
        assert bench.mirror.sent >= len(bench.release.data) - skipped

    def test_writes_nothing_of_what_the_journal_names(self, bench: Bench) -> None:
        count = count_of(bench.release)
        bench.install(count)
        assert bench.disk.read_bytes().strip(BACKGROUND) == b""
        assert bench.noted == []
        with pytest.raises(ReadBackError, match="part root reads back as"):
            verify_slot(WrittenSlot(plan=bench.plan()))

    def test_after_a_polite_stop_nothing_is_fetched_twice(self, bench: Bench) -> None:
        with pytest.raises(DownloadStoppedError):  # others are on the way
            bench.install(shell=bench.shell(lambda _done: bench.stop.set()))
        stopped_at = bench.noted[-1].next_operation
        assert stopped_at > 0
        written = [value for what, value in bench.events if what == "journal"]
        assert written[-1] == stopped_at
        bench.stop.clear()
        bench.install(stopped_at)
        assert bench.content() == (bench.release.root, bench.release.boot)

    def test_after_a_lost_network_all_that_came_is_noted(self, bench: Bench) -> None:
        """A checkpoint is far away here; the end of the attempt notes all the same."""
        bench.mirror.manners = Manners(ranges=False, cut_after=3 * MIB)
        with pytest.raises(DownloadError):
            write_slot(
                bench.plan(checkpoint_bytes=64 * MIB),
                bench.download(),
                bench.journal(),
                bench.shell(),
            )
        metadata = metadata_of(bench.release)
        came = 0
        position = metadata.header.data_offset
        for step in metadata.manifest.steps():
            position += step.operation.data_length
            came += position <= 3 * MIB
        assert bench.noted[-1].next_operation >= came - 1 > 0
        bench.mirror.manners = Manners()
        bench.install(bench.noted[-1].next_operation)
        assert bench.content() == (bench.release.root, bench.release.boot)


def test_who_gives_pages_back_waits_for_nothing_that_is_only_read_past(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob of a procedure that we do not know is never written; all operations count as large."""
    waited: list[int] = []
    steps = Manifest.steps

    class Recording(Outputs):
        @override
        def give_back(self, number: int) -> None:
            waited.append(number)
            super().give_back(number)

    def after_an_unknown_one(manifest: Manifest) -> Iterator[Step]:
        every = list(steps(manifest))
        yield Step(None, every[0].operation)
        yield from every

    monkeypatch.setattr(pipeline, "LIMIT_BYTES", -1)
    monkeypatch.setattr(pipeline, "Outputs", Recording)
    monkeypatch.setattr(Manifest, "steps", after_an_unknown_one)
    with suppress(PayloadDigestError):  # a blob was hashed twice
        bench.install()
    assert waited == [0, 0, *range(2, count_of(bench.release))]


class WatchedLimit(in_flight._Limit):
    """Remembers the most that was in flight."""

    peak = 0
    left = 0

    @override
    def take(self, amount: int, has: int) -> None:
        super().take(amount, has)
        type(self).peak = max(type(self).peak, self._taken)
        type(self).left = self._taken

    @override
    def give(self, amount: int) -> None:
        super().give(amount)
        type(self).left = self._taken


class SlowWriter(RegionWriter):
    """Lets the download run ahead as far as it may before anything is written."""

    ahead: threading.Event

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.ahead.wait(LIMIT_SECS)
        super().write_at(offset, data)


class TestMemory:
    def test_what_is_in_flight_is_bounded(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The writer waits until the download is held back; then it goes on."""
        held = threading.Event()

        class HeldOutputs(Outputs):
            size = 0

            @override
            def room(self, number: int, operation: Operation, *, block_size: int) -> memoryview:
                layout = self._layout
                used = layout.starts[number + 1] - layout.starts[layout.kept[self._unwritten]]
                if used > layout.size:
                    held.set()
                type(self).size = layout.size
                return super().room(number, operation, block_size=block_size)

        SlowWriter.ahead = held
        monkeypatch.setattr(outputs, "IN_FLIGHT_BYTES", 0)
        monkeypatch.setattr(pipeline, "Outputs", HeldOutputs)
        run_with(bench, SlowWriter)
        assert held.is_set()
        assert bench.content() == (bench.release.root, bench.release.boot)
        assert HeldOutputs.size == 4 * MIB  # an operation of 1 MiB, and the three before it

    def test_an_operation_larger_than_the_bound_passes_alone(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        largest = max(work_bytes(s.operation) for s in metadata_of(bench.release).manifest.steps())
        WatchedLimit.peak = 0
        monkeypatch.setattr(in_flight, "QUICK_BYTES", 1)
        monkeypatch.setattr(in_flight, "_Limit", WatchedLimit)
        bench.install()
        assert bench.content() == (bench.release.root, bench.release.boot)
        assert (WatchedLimit.peak, WatchedLimit.left) == (largest, 0)


class FailingWriter(RegionWriter):
    """Fails where a test says so."""

    verb = ""

    def _fail(self, verb: str) -> None:
        if verb == self.verb and self.region.label == "root":
            raise DeviceWriteError(f"{verb} failed")

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._fail("write" if offset else "")
        super().write_at(offset, data)

    @override
    def zero_at(self, offset: int, length: int) -> None:
        self._fail("zero")
        super().zero_at(offset, length)

    @override
    def sync(self) -> None:
        self._fail("sync")
        super().sync()


class TestAFailure:
    """Of any stage ends all of them (see the fixture) and is raised where the caller waits."""

    @pytest.mark.parametrize("verb", ["write", "zero", "sync"])
    def test_of_the_device(self, bench: Bench, verb: str) -> None:
        FailingWriter.verb = verb
        with pytest.raises(PartitionsError, match=f"{verb} failed"):
            run_with(bench, FailingWriter, bench.plan(checkpoint_bytes=256 * 1024))
        if verb == "sync":
            assert bench.noted == []

    def test_of_the_journal(self, bench: Bench) -> None:
        def full(_journal: Journal) -> None:
            raise StateError("no space")

        shell = Shell(keep_journal=full, progress=lambda _: None, stop=bench.stop)
        with pytest.raises(StateError, match="no space"):
            bench.install(shell=shell)

    def test_of_whoever_watches(self, bench: Bench) -> None:
        def watch(_done: int) -> None:
            raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            bench.install(shell=bench.shell(watch))

    def test_of_the_network(self, bench: Bench) -> None:
        bench.mirror.manners = Manners(ranges=False, cut_after=MIB)
        with pytest.raises(DownloadError):
            bench.install()

    def test_of_the_network_while_the_writer_waits(self, bench: Bench) -> None:
        """The download sleeps for a day between two tries when the device fails."""
        bench.mirror.manners = Manners(cut_after=2 * MIB)
        failing = threading.Event()

        class LateWriter(RegionWriter):
            @override
            def write_at(self, offset: int, data: bytes | memoryview) -> None:
                failing.wait(LIMIT_SECS)
                raise DeviceWriteError("gone")

        class Source(Download):
            @override
            def _note_failure(self, *arguments: Any) -> None:
                failing.set()
                super()._note_failure(*arguments)

        plan = bench.plan()
        patience = Patience(idle_timeout_secs=86_400, retries=9, retry_delay_secs=86_400)
        with (
            PayloadFile.open(bench.release.folder / "payload.crau") as file,
            Source(
                [f"{bench.mirror.base}/p"],
                size=plan.size,
                session=open_session(),
                patience=patience,
                monotonic=lambda: 0.0,
                stop=bench.stop,
            ) as source,
            LateWriter(plan.regions["root"], booted=plan.booted) as root,
            LateWriter(plan.regions["boot"], booted=plan.booted) as boot,
        ):
            metadata = file.metadata(plan.keys, accept=Accept.FULL)
            slots = OpenSlots(writers={"root": root, "boot": boot})
            run = Pipeline(plan, metadata, source, bench.journal(), bench.shell(), slots)
            with pytest.raises(DeviceWriteError, match="gone"):
                run.run()

    def test_of_a_blob(self, bench: Bench) -> None:
        header = metadata_of(bench.release).header
        bench.mirror.manners = Manners(flip_at=header.data_offset + MIB)
        with pytest.raises(BlobMismatchError):
            bench.install()

    def test_of_the_last_blob(self, bench: Bench) -> None:
        metadata = metadata_of(bench.release)
        last = metadata.header.data_offset + metadata.manifest.blob_bytes - 1
        bench.mirror.manners = Manners(flip_at=last)
        with pytest.raises(BlobMismatchError):
            bench.install()

    def test_of_the_signature_of_a_payload_without_a_release(self, bench: Bench) -> None:
        bench.mirror.manners = Manners(flip_at=len(bench.release.data) - 20)
        plan = replace(bench.plan(), facts=own_facts(metadata_of(bench.release), proven=False))
        with pytest.raises(PayloadSignatureError):
            write_slot(plan, bench.download(), bench.journal(), bench.shell())

    @pytest.mark.parametrize("next_operation", [0, 1, 3])
    def test_of_the_signature(self, bench: Bench, next_operation: int) -> None:
        """The signed hash of the last message shows it, also after a resume."""
        bench.install()  # what is made after the resume takes what was written before it
        bench.mirror.manners = Manners(flip_at=len(bench.release.data) - 20)
        with pytest.raises(PayloadDigestError, match="signatures message"):
            bench.install(next_operation)

    def test_of_the_whole_that_no_part_shows(self, bench: Bench) -> None:
        """Without a release, without keys and with another file's hash."""
        facts = own_facts(metadata_of(bench.release), proven=False)
        plan = replace(bench.plan(), facts=facts, keys=None, sha256="0" * 64)
        with pytest.raises(PayloadDigestError, match="expected is 0000"):
            write_slot(plan, bench.download(), bench.journal(), bench.shell())

    def test_of_nobody_when_told_to_stop_before_it_begins(self, bench: Bench) -> None:
        bench.stop.set()
        with pytest.raises(DownloadStoppedError):
            bench.install()
        assert bench.mirror.requests == []


class TestBeforeTheFirstByteIsWritten:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, bench: Bench) -> Iterator[None]:
        yield
        assert bench.disk.read_bytes().strip(BACKGROUND) == b""

    def test_other_metadata_than_was_signed_is_refused(self, bench: Bench) -> None:
        for offset in (0, 10, 100):
            bench.mirror.manners = Manners(flip_at=offset)
            with pytest.raises(ImagesError):
                bench.install()

    def test_facts_that_do_not_describe_the_manifest_are_refused(self, bench: Bench) -> None:
        import msgspec

        plan = bench.plan()
        assert isinstance(plan.facts, PayloadFacts)
        part = msgspec.structs.replace(plan.facts.partitions[0], size=4096)
        facts = msgspec.structs.replace(plan.facts, partitions=(part, *plan.facts.partitions[1:]))
        with pytest.raises(FactsMismatchError):
            write_slot(replace(plan, facts=facts), bench.download(), bench.journal(), bench.shell())

    def test_the_booted_slot_is_refused(self, bench: Bench) -> None:
        plan = bench.plan()
        plan = replace(plan, booted=Booted.of_regions([plan.regions["boot"]]))
        with pytest.raises(PartitionsError) as caught:
            write_slot(plan, bench.download(), bench.journal(), bench.shell())
        assert caught.value.code == "slot-booted"

    def test_images_that_do_not_fit_are_refused(self, bench: Bench) -> None:
        facts = bench.plan().facts
        regions = dict(bench.plan().regions)
        check_fit(facts, regions)
        exact = regions | {"root": bench.region("root", ROOT_AT, len(bench.release.root))}
        check_fit(facts, exact)
        small = regions | {"root": bench.region("root", ROOT_AT, len(bench.release.root) - 1)}
        with pytest.raises(DoesNotFitError, match="6291456 bytes, partition root holds 62"):
            check_fit(facts, small)
        for other in ({"root": regions["root"]}, regions | {"more": regions["root"]}):
            with pytest.raises(DoesNotFitError, match="has parts"):
                check_fit(facts, other)


@pytest.mark.parametrize(
    ("cluster", "left"), [(512, 64 * 1024), (4096, 64 * 1024), (32 * 1024, 8 * 32 * 1024)]
)
def test_boot_files_leave_room_for_the_files_of_the_loader(cluster: int, left: int) -> None:
    """Else a trial could begin, and no cluster be free for the entry that confirms it."""
    size = MIB - left
    facts = OwnFacts(
        metadata_sha256="0" * 64,
        block_size=4096,
        proven=True,
        partitions=(PartFacts(name="kernel", size=size, sha256="0" * 64),),
    )

    def having(free: int) -> dict[str, Region]:
        room = Room(file_system=7, free=free, block=cluster, held=0, length=None)
        path = Path("/boot/bascule/b/linux")
        region = Region(path=path, offset=0, size=free, partuuid="", label=str(path), room=room)
        return {"kernel": region}

    check_fit(facts, having(MIB))
    with pytest.raises(DoesNotFitError, match=f"the loader's own need {left}"):
        check_fit(facts, having(MIB - 1))


class TestReadingBack:
    def test_a_slot_that_holds_what_was_signed_is_verified(self, bench: Bench) -> None:
        verified = verify_slot(bench.install())
        assert (verified.slot, verified.version, verified.rollback_index) == (Slot.B, "2.0.0", 2)

    def test_a_boot_file_that_goes_on_after_its_image_is_found(self, bench: Bench) -> None:
        path = bench.folder / "linux"
        layout = {Slot.A: {}, Slot.B: {"boot": PartRef(file=path)}}
        disk = two_slots(sector_size=512, a=BootBits(), b=BootBits()).image
        (bench.folder / "gpt.img").write_bytes(disk)
        plan = bench.plan()
        file = resolve(bench.folder / "gpt.img", layout)[Slot.B]["boot"]
        plan = replace(plan, regions={**plan.regions, "boot": file})
        written = write_slot(plan, bench.download(), bench.journal(), bench.shell())
        assert path.read_bytes() == bench.release.boot
        verify_slot(written)
        os.truncate(path, len(bench.release.boot) + 1)
        with pytest.raises(ReadBackError, match="part boot has not the"):
            verify_slot(written)

    @pytest.mark.parametrize("at", [ROOT_AT, ROOT_AT + 5 * MIB, BOOT_AT + MIB])
    def test_one_flipped_bit_anywhere_is_found(self, bench: Bench, at: int) -> None:
        bench.install()
        flip(bench.disk, at)
        with pytest.raises(ReadBackError, match="reads back as"):
            verify_slot(WrittenSlot(plan=bench.plan()))

    @pytest.mark.parametrize("at", [ROOT_AT, ROOT_AT + 4 * MIB, ROOT_AT + 5 * MIB, BOOT_AT])
    def test_one_flipped_bit_of_an_earlier_attempt_is_found(self, bench: Bench, at: int) -> None:
        """Between two attempts the slot was nobody's."""
        bench.install()
        written = bench.install(count_of(bench.release) - 1)
        flip(bench.disk, at)
        with pytest.raises(ReadBackError, match=r"reads back as|is not zero"):
            verify_slot(written)

    def test_what_was_read_behind_the_writer_is_not_read_twice(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = bench.install()
        monkeypatch.setattr(install, "digest_of", lambda *_: pytest.fail("a second pass"))
        monkeypatch.setattr(RegionReader, "digest_of", lambda *_: pytest.fail("a second pass"))
        verify_slot(written)


def flip(disk: Path, at: int) -> None:
    with disk.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


class LyingWriter(RegionWriter):
    """Writes something else than it is given, at one place of the part `root`."""

    at = 0
    act: Callable[[bytes], bytes] = staticmethod(lambda data: data)

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if self.region.label == "root" and offset <= self.at < offset + len(data):
            data = type(self).act(bytes(data))
        super().write_at(offset, data)

    @override
    def zero_at(self, offset: int, length: int) -> None:
        if self.region.label == "root" and offset <= self.at < offset + length:
            super().write_at(self.at, type(self).act(bytes(512)))
        else:
            super().zero_at(offset, length)


def flipped(data: bytes) -> bytes:
    return data[:511] + bytes([data[511] ^ 1]) + data[512:]


class TestVerifyingBehindTheWriter:
    @pytest.mark.parametrize("at", [0, 2 * MIB + 4096, 4 * MIB, 6 * MIB - 1])
    @pytest.mark.parametrize("act", [flipped, lambda _data: b""], ids=["a bit", "lost"])
    def test_a_disk_that_lies_is_found_and_its_operation_never_named(
        self, bench: Bench, at: int, act: Callable[[bytes], bytes]
    ) -> None:
        LyingWriter.at, LyingWriter.act = at, staticmethod(act)
        with pytest.raises(ReadBackError) as caught:
            run_with(bench, LyingWriter, bench.plan(checkpoint_bytes=256 * 1024))
        lied = operation_at(bench.release, at)
        assert caught.value.number == lied
        assert all(journal.next_operation <= lied for journal in bench.noted)

    @pytest.mark.parametrize("number", [1, 2, 4])
    def test_an_operation_that_makes_something_else_is_told_from_a_disk_that_lies(
        self, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """It is signed, but not what it makes: no disk and no mirror is to blame."""
        forged = forge(release, tmp_path, monkeypatch, number)
        with ExitStack() as stack:
            bench = Bench(release=forged, folder=tmp_path, stack=stack)
            with pytest.raises(ReadBackError) as caught:
                bench.install()
            assert caught.value.number == number
            with pytest.raises(OperationOutputError, match="made bytes of sha256"):
                make_again(bench.plan(), bench.download(), number)
            make_again(bench.plan(), bench.download(), number - 1)

    def test_a_part_without_a_hash_of_each_operation_is_read_whole(self, bench: Bench) -> None:
        manifest = metadata_of(bench.release).manifest
        part = manifest.parts[0]
        region = bench.plan().regions["root"]
        assert is_provable(manifest, part, region)
        plain = tuple(replace(operation, dst_sha256=None) for operation in part.operations)
        assert not is_provable(manifest, replace(part, operations=plain), region)
        assert not is_provable(manifest, replace(part, operations=part.operations[1:]), region)
        assert not is_provable(replace(manifest, major=1), part, region)


def forge(release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> Release:
    """Return the same release with a wrong hash of what one operation makes."""
    signed = metadata_of(release).manifest.parts[0].operations[number].dst_sha256

    def one_wrong(blob: Blob) -> Blob:
        return replace(blob, dst_sha256=bytes(32)) if blob.dst_sha256 == signed else blob

    monkeypatch.setattr(build_room, "pack", pack_bent(one_wrong))
    key = load_private_key(release.folder / "key.key.pem")
    parts = [(name, release.folder / name) for name in ("root", "boot")]
    build(parts, folder / "payload.crau", keys=[key])
    (folder / "key.pub.pem").write_bytes((release.folder / "key.pub.pem").read_bytes())
    return replace(release, folder=folder, data=(folder / "payload.crau").read_bytes())


def operation_at(release: Release, at: int) -> int:
    """Return the number of the operation that writes a byte of the part `root`."""
    manifest = metadata_of(release).manifest
    return next(
        number
        for number, step in enumerate(manifest.steps())
        if step.part is manifest.parts[0]
        and any(0 <= at // 4096 - e.start_block < e.num_blocks for e in step.operation.dst_extents)
    )
