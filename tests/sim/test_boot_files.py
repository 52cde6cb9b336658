"""A slot of a partition and two boot files, through whole updates by the shipped engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import bsdiff4
import pytest
from typing_extensions import override

from images.proto import payload_pb2 as pb
from images.reader import Accept, PayloadFile
from partitions.boot import KEEPERS
from partitions.boot_files import BootFile
from partitions.slots import Slot
from tests.sim.cuts import NEVER, Fuse, LifeEndsError, Snapshot, fused
from tests.sim.full_disk import small_disk
from tests.sim.lives import due_now, live, memory_of, new_process
from tests.sim.payloads import BLOCK, format_1, replace
from tests.sim.plain import give, stop_after
from tests.sim.world import World, payload_key, run_until
from updater import shown
from updater.download import DownloadStoppedError
from updater.engine import Engine
from updater.lifecycle import State
from updater.machine_model import ModelMachine

A, B = Slot.A, Slot.B
KIB = 1024
MIB = 1024 * KIB
FILES = {"kernel": 600 * KIB, "initrd": 900 * KIB}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    with World(tmp_path, image_size=1024 * KIB, files=dict(FILES)) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def offer(world: World, version: str = "2.0.0") -> None:
    """Release a version and make a check due."""
    world.release(version, rollback_index=int(version[0]))
    due_now(world)


def asked_for(world: World, requests: list[str], name: str) -> bool:
    """Tell whether requests ask for what the first operation of a part is made of.

    Nothing of a boot file is taken from the slot that holds it half: see `updater.reuse`.
    """
    with PayloadFile.open(world.folder / "2.0.0.crau") as payload:
        metadata = payload.metadata(None, accept=Accept.FULL)
    part = next(part for part in metadata.manifest.parts if part.name == name)
    blob = next(op.data_offset for op in part.operations if op.data_offset is not None)
    at = metadata.header.data_offset + blob
    spans = (request.removeprefix("bytes=").partition("-") for request in requests)
    return any(int(start or 0) <= at <= int(end or at) for start, _, end in spans)


def assert_holds(world: World, slot: Slot, version: str, where: str = "") -> None:
    assert world.slot_bytes(slot) == world.image_bytes(version), where
    for part in world.files:
        held = world.boot_file(slot, part).read_bytes()
        assert held == world.file_image(version, part), f"{part} {where}"


@pytest.mark.parametrize("loader", KEEPERS)
def test_an_update_brings_partition_and_files_and_the_next_one_replaces_them(
    tmp_path: Path, loader: str
) -> None:
    with World(tmp_path, image_size=512 * KIB, boot_control=loader, files=dict(FILES)) as world:
        run_until(Engine(node=world.boot()), "idle")
        offer(world)
        live(world)
        assert_holds(world, A, "1.0.0")
        assert_holds(world, B, "2.0.0")
        assert world.node().running().version == "2.0.0"

        world.files = {"kernel": 1000 * KIB, "initrd": 4 * KIB}
        offer(world, "3.0.0")
        live(world)
        assert_holds(world, A, "3.0.0")
        assert world.node().boot().slot is A


def test_the_slots_show_files_as_files(world: World) -> None:
    kernel, missing = (row["partitions"]["kernel"] for row in shown.slots(world.node()))
    assert kernel == {"file": str(world.boot_file(A, "kernel")), "size": FILES["kernel"]}
    assert missing == {"file": str(world.boot_file(B, "kernel")), "size": 0}


class TestInterrupted:
    """Ended at each lasting change of an install, with the boot files as a cut may leave them."""

    def lived(self, world: World, monkeypatch: pytest.MonkeyPatch, at: int) -> Fuse:
        """Live until the end of the life at step `at`; returns what happened."""
        fuse = Fuse(at=at)
        run_until(Engine(node=fused(new_process(world, monkeypatch), fuse)), "rebooting")
        return fuse

    def ends(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """Yield once after the end of a life before each of its steps that an install takes."""
        kept = Snapshot.take(world)
        steps = self.lived(world, monkeypatch, NEVER).steps
        assert steps.count("write journal.json") >= 3
        for number in range(steps.index("disarm b"), steps.index("arm b") + 1):
            step = steps[number]
            kept.restore()
            with pytest.raises(LifeEndsError):
                self.lived(world, monkeypatch, number)
            world.boot()
            new_process(world, monkeypatch)
            yield f"cut before step {number}, {step}"

    def test_it_goes_on_where_the_journal_says_and_ends_well(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offer(world)
        kept = 0
        for where in self.ends(world, monkeypatch):
            before = len(world.payloads.requests)
            live(world)
            asked = world.payloads.requests[before:]
            kept += bool(asked) and not asked_for(world, asked, "kernel")
            assert_holds(world, A, "1.0.0", where)
            assert_holds(world, B, "2.0.0", where)
        assert kept

    @pytest.mark.parametrize("damage", ["lost", "cut short"])
    def test_a_file_that_the_cut_lost_or_shortened_is_written_again_and_not_believed(
        self, world: World, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        offer(world)
        damaged = 0
        for where in self.ends(world, monkeypatch):
            kernel = world.boot_file(B, "kernel")
            if memory_of(world).state is not State.INSTALLING or not kernel.exists():
                continue
            damaged += 1
            if damage == "lost":
                kernel.unlink()
            else:
                os.truncate(kernel, FILES["kernel"] - 4 * KIB)
            before = len(world.payloads.requests)
            codes = live(world)
            assert "readback-mismatch" not in codes, where
            assert asked_for(world, world.payloads.requests[before:], "kernel"), where
            assert_holds(world, B, "2.0.0", where)
        assert damaged >= 3

    def test_a_second_cut_does_not_make_the_first_ones_damage_believed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file has its full size again, while what the journal named is gone."""
        offer(world)
        for _ in self.ends(world, monkeypatch):
            journal = world.node().store.read_journal()
            if journal and journal.next_operation > 1:
                break
        assert memory_of(world).state is State.INSTALLING
        os.truncate(world.boot_file(B, "kernel"), 0)
        kept = Snapshot.take(world)
        steps = self.lived(world, monkeypatch, NEVER).steps
        for number, step in enumerate(steps):
            if step != "write journal.json":
                continue
            kept.restore()
            with pytest.raises(LifeEndsError):
                self.lived(world, monkeypatch, number)
            world.boot()
            new_process(world, monkeypatch)
            codes = live(world)
            assert "readback-mismatch" not in codes, step
            assert_holds(world, B, "2.0.0", step)


def flip(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let a disk keep one bit of a boot file wrongly."""

    class Worn(BootFile):
        @override
        def pwrite(self, offset: int, data: bytes | memoryview) -> None:
            if self.path.name == part and offset == 0:
                data = bytes([data[0] ^ 0x40]) + bytes(data[1:])
            super().pwrite(offset, data)

    monkeypatch.setattr("partitions.boot_files.BootFile", Worn)


@pytest.mark.parametrize("part", FILES)
def test_a_changed_bit_is_caught_before_arming_and_the_next_try_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    offer(world)
    flip(monkeypatch, part)
    with pytest.raises(Exception, match=f"part {part} reads back as"):
        run_until(Engine(node=world.node()), "rebooting")
    state = world.node().loader.read()
    assert (state.target, state.slots[B].armed) == (A, False)
    assert world.node().store.read_journal() is None
    assert_holds(world, A, "1.0.0")

    monkeypatch.undo()
    due_now(world)
    live(world)
    assert_holds(world, B, "2.0.0")


class TestRoom:
    """On a file system of 256 KiB: slot A has 60, loaders keep 20, and 64 stay free for them."""

    @pytest.fixture(params=["gptprio", "systemd-boot"])
    def small(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
        with small_disk(tmp_path / "boot"):
            files = {"kernel": 40 * KIB, "initrd": 20 * KIB}
            loader = request.param
            with World(tmp_path, image_size=512 * KIB, files=files, boot_control=loader) as made:
                run_until(Engine(node=made.boot()), "idle")
                yield made

    def test_what_the_passive_slot_holds_makes_room_for_what_comes(self, small: World) -> None:
        offer(small)
        live(small)
        small.files = {
            "kernel": 88 * KIB,
            "initrd": 20 * KIB,
        }  # nearly all that is free or held by both
        offer(small, "3.0.0")
        live(small)
        assert_holds(small, A, "3.0.0")
        assert small.node().running().version == "3.0.0"

    @pytest.mark.parametrize(
        ("kernel", "initrd", "sentence"),
        [
            (200, 4, "part kernel has 204800 bytes, file "),
            (92, 92, "take 188416 bytes"),
            (92, 24, "take 118784 bytes, the loader's own need 65536, 1(76128|80224) are"),
        ],
    )
    def test_too_little_is_seen_before_anything_changes(
        self, small: World, kernel: int, initrd: int, sentence: str
    ) -> None:
        offer(small)
        live(small)
        before = snapshot(small)
        small.files = {"kernel": kernel * KIB, "initrd": initrd * KIB}
        offer(small, "3.0.0")
        with pytest.raises(Exception, match=sentence) as caught:
            run_until(Engine(node=small.node()), "rebooting")
        assert getattr(caught.value, "code", "") == "does-not-fit"
        assert snapshot(small) == before


def snapshot(world: World) -> dict[str, object]:
    """Return what may not change: boot files, the passive partition, the loader's memory."""
    files = {
        str(path): path.read_bytes()
        for path in (world.folder / "boot").rglob("*")
        if path.is_file()
    }
    return {
        **files,
        "a": world.slot_bytes(A),
        "b": world.slot_bytes(B),
        "loader": world.node().loader.read(),
    }


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("symlink", "slot-booted"),
        ("hard link", "slot-booted"),
        ("not mounted", "boot-folder-unmounted"),
    ],
)
def test_a_file_that_must_not_be_written_is_refused_before_anything_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str, code: str
) -> None:
    offer(world)
    live(world)
    if how == "not mounted":
        apart = [(world.folder / "boot", world.folder)]
        monkeypatch.setattr(ModelMachine, "apart", lambda _: apart)
    else:
        kernel = world.boot_file(A, "kernel")
        kernel.unlink()
        (os.symlink if how == "symlink" else os.link)(world.boot_file(B, "kernel"), kernel)
    before = snapshot(world)
    offer(world, "3.0.0")
    with pytest.raises(Exception, match="running system") as caught:
        run_until(Engine(node=world.node()), "rebooting")
    assert getattr(caught.value, "code", "") == code
    assert snapshot(world) == before
    assert world.node().loader.read().slots[A].armed, "it can still be gone back to"


def full_with_kernel(usr: bytes, kernel: bytes) -> pb.DeltaArchiveManifest:
    """Return the manifest of a format 1 payload whose data is both images, in whole blocks."""
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    manifest.ClearField("minor_version")
    procedure = manifest.procedures.add(type=pb.InstallProcedure.KERNEL)
    images = (
        (manifest.partition_operations, manifest.new_partition_info, usr, 0),
        (procedure.operations, procedure.new_info, kernel, len(usr)),
    )
    for operations, info, image, at in images:
        data = image + bytes(-len(image) % BLOCK)
        for start in range(0, len(data), MIB):
            piece = data[start : start + MIB]
            operations.append(replace(piece, start=start // BLOCK, offset=at + start))
        info.size, info.hash = len(image), hashlib.sha256(image).digest()
    return manifest


def test_a_kernel_whose_last_block_goes_on_after_it_ends_where_it_ends(tmp_path: Path) -> None:
    with World(tmp_path, image_size=MIB, files={"kernel": MIB}) as world:
        node = world.boot()
        run_until(Engine(node=node), "idle")
        usr = world.image("2.0.0", rollback_index=1).read_bytes()
        kernel = os.urandom(MIB + 1000)
        data = usr + kernel + bytes(-len(kernel) % BLOCK)
        payload = world.folder / "full.crau"
        payload.write_bytes(format_1(full_with_kernel(usr, kernel), data, keys=[payload_key()]))
        give(node, payload)
        assert world.boot_file(B, "kernel").read_bytes() == kernel


def kernel_delta(usr: bytes, old: bytes, new: bytes) -> bytes:
    """Return a format 1 payload: all of `usr`, and a kernel patched, moved and replaced in place.

    The last block of a shorter kernel is the old one's last.
    """
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    manifest.ClearField("minor_version")
    blobs = b""
    for start in range(0, len(usr), MIB):
        piece = usr[start : start + MIB]
        manifest.partition_operations.append(
            replace(piece, start=start // BLOCK, offset=len(blobs))
        )
        blobs += piece
    manifest.new_partition_info.size = len(usr)
    manifest.new_partition_info.hash = hashlib.sha256(usr).digest()
    procedure = manifest.procedures.add(type=pb.InstallProcedure.KERNEL)
    patch = bsdiff4.diff(old[:MIB], new[:MIB])
    first = replace(patch, start=0, offset=len(blobs), kind=pb.InstallOperation.BSDIFF, blocks=256)
    first.src_extents.add(start_block=0, num_blocks=256)
    first.src_length = first.dst_length = MIB
    procedure.operations.append(first)
    blobs += patch
    if len(new) < len(old):
        move = procedure.operations.add(type=pb.InstallOperation.MOVE)
        move.src_extents.add(start_block=len(old) // BLOCK, num_blocks=1)
        move.dst_extents.add(start_block=len(new) // BLOCK, num_blocks=1)
    for start in range(MIB, len(new) if len(new) > len(old) else 0, MIB):
        piece = new[start : start + MIB]
        blocks = -(-len(piece) // BLOCK)
        procedure.operations.append(
            replace(piece, start=start // BLOCK, offset=len(blobs), blocks=blocks)
        )
        blobs += piece
    for info, image in ((procedure.old_info, old), (procedure.new_info, new)):
        info.size, info.hash = len(image), hashlib.sha256(image).digest()
    return format_1(manifest, blobs, keys=[payload_key()])


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("stopped", [None, 3, 4])
def test_a_kernel_is_patched_from_a_copy_and_cut_to_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool, stopped: int | None
) -> None:
    with World(tmp_path, image_size=2 * MIB, files={"kernel": 2 * MIB}) as world:
        node = world.boot()
        run_until(Engine(node=node), "idle")
        old = os.urandom(2 * MIB + 1000)
        patched = old[:1000] + b"!" + old[1001:MIB]
        new = patched + (os.urandom(2 * MIB + 5) if grows else old[2 * MIB :][:333])
        world.boot_file(A, "kernel").write_bytes(old)
        usr = world.image("2.0.0", rollback_index=1).read_bytes()
        payload = world.folder / "delta.crau"
        payload.write_bytes(kernel_delta(usr, old, new))
        if stopped:
            stop_after(node, stopped, monkeypatch)
            with pytest.raises(DownloadStoppedError):
                give(node, payload)
            monkeypatch.undo()
            run_until(Engine(node=world.node()), "rebooting")
        else:
            give(node, payload)
        assert world.boot_file(B, "kernel").read_bytes() == new
        assert world.boot_file(A, "kernel").read_bytes() == old
        assert world.slot_bytes(B) == usr
