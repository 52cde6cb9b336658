"""Power may fail at any instant of a whole update: exactly one whole, verified system boots.

Design, promises 2, 3, 5 and 6, over everything that the shipped engine asks of the disk: slots,
GPT, boot files and loader's files on a FAT, state. What is assumed is in `docs/crash-proof.md`. The
second half turns the order of the shipped code round on purpose: the proof must see each of that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from partitions import boot_folder, table
from partitions.boot import grubenv
from partitions.boot.control import BootControl
from partitions.copies import Disk
from partitions.disk import OpenDisk
from partitions.gpt import Header
from partitions.slots import Slot
from partitions.writer import RegionWriter
from tests.sim.crash_world import LOADERS, CrashWorld
from tests.sim.cuts import Fuse, FusedLoader
from tests.sim.loaders import quick
from tests.sim.proof import CHAPTERS, TITLES, Chapter, Edit, Proof, as_it_is, prove, row
from tests.sim.recorder import DISK, Event
from updater.node import Node

STATES_LEAST = 10_000


@pytest.mark.parametrize("loader", LOADERS)
def test_a_cut_at_any_instant_leaves_one_whole_system(
    loader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    tally = prove(loader, tmp_path / "world")
    with capsys.disabled():
        head = " ".join(f"{word:>15}" for word in TITLES)
        sys.stdout.write(f"\n{head}\n{row(loader, tally, time.monotonic() - began)}\n")
    assert tally.failures == []
    assert tally.distinct >= STATES_LEAST
    assert tally.recovered
    assert tally.went_on


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CrashWorld]:
    with CrashWorld(tmp_path / "world", kind=request.param) as made:
        yield made


FIRST, SECOND, _ = CHAPTERS


def failures(world: CrashWorld, *chapters: Chapter, edit: Edit = as_it_is) -> list[str]:
    """Return what the proof finds first, without starting the engine anywhere."""
    return Proof(world, engines=0, edit=edit, to_the_end=False).run(chapters).failures


def without_data_flushes(log: list[Event]) -> list[Event]:
    """Drop each flush of the disk: what a disk does that lies about them."""
    return [event for event in log if (event.where, event.what) != (DISK, "sync-file")]


ON_EACH = pytest.mark.parametrize("world", quick(LOADERS, "gptprio", "systemd-boot"), indirect=True)


@ON_EACH
def test_it_sees_that_slots_are_not_flushed(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegionWriter, "sync", lambda _writer: None)
    assert any("no whole system" in words for words in failures(world, FIRST))


@ON_EACH
def test_it_sees_a_disk_that_lies_about_its_flushes(world: CrashWorld) -> None:
    assert any(
        "no whole system" in words for words in failures(world, FIRST, edit=without_data_flushes)
    )


class Eager(FusedLoader):
    """Arms before the data is there."""

    @override
    def disarm(self, slot: Slot) -> None:
        super().disarm(slot)
        self._real.arm(slot, tries=1)


class Late(FusedLoader):
    """Disarms nothing until the first byte is written."""

    @override
    def disarm(self, slot: Slot) -> None:
        late.append(lambda: self._real.disarm(slot))


late: list[Callable[[], None]] = []


def _with_loader(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[BootControl, Fuse], BootControl]
) -> None:
    made = CrashWorld.node

    def node(world: CrashWorld) -> Node:
        found = made(world)
        found.loader = kind(found.loader, Fuse())
        return found

    monkeypatch.setattr(CrashWorld, "node", node)


# The keeper of systemd-boot refuses by itself to arm a slot whose kernel is not there yet.
@pytest.mark.parametrize(
    "world",
    quick([one for one in LOADERS if one != "systemd-boot"], "gptprio"),
    indirect=True,
)
def test_it_sees_arming_before_the_data(world: CrashWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_loader(monkeypatch, Eager)
    assert any("no whole system" in words for words in failures(world, FIRST))


@ON_EACH
def test_it_sees_disarming_after_the_first_write(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at = RegionWriter.write_at

    def writing(writer: RegionWriter, offset: int, data: bytes | memoryview) -> None:
        write_at(writer, offset, data)
        while late:
            late.pop()()

    late.clear()
    _with_loader(monkeypatch, Late)
    monkeypatch.setattr(RegionWriter, "write_at", writing)
    assert any("no whole system" in words for words in failures(world, FIRST, SECOND))


@pytest.mark.parametrize("world", ["gptprio"], indirect=True)
def test_it_sees_both_copies_of_the_table_in_one_flush(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_copy = table._write_copy

    def writing(disk: Disk, header: Header, array: bytes, *, sector_size: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if header.own_lba != 1:
                patch.setattr(OpenDisk, "sync", lambda _disk: None)
            write_copy(disk, header, array, sector_size=sector_size)

    monkeypatch.setattr(table, "_write_copy", writing)
    assert any("nothing boots" in words for words in failures(world, FIRST))


@pytest.mark.parametrize("world", ["gptprio"], indirect=True)
def test_it_sees_the_primary_table_written_over_a_damaged_backup(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.disk.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    assert failures(world, FIRST) == [], "in the right order it is mended"
    write_copy = table._write_copy
    waiting: list[Callable[[], None]] = []

    def writing(disk: Disk, header: Header, array: bytes, *, sector_size: int) -> None:
        def write() -> None:
            write_copy(disk, header, array, sector_size=sector_size)

        if header.own_lba != 1:
            waiting.append(write)
            return
        write()
        while waiting:
            waiting.pop()()

    monkeypatch.setattr(table, "_write_copy", writing)
    with world.disk.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    assert any("nothing boots" in words for words in failures(world, SECOND))


@pytest.mark.parametrize("world", ["grubenv"], indirect=True)
def test_it_sees_a_rename_on_the_loaders_partition(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(file: OpenDisk, block: bytes) -> None:
        draft = file.path.with_name("grubenv.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, block)
        os.fsync(descriptor)
        os.close(descriptor)
        draft.replace(file.path)
        boot_folder.sync_folder(file.path.parent)
        boot_folder.sync_file_system(file.path.parent)

    monkeypatch.setattr(grubenv, "store", store)
    assert failures(world, FIRST) != []
