"""Deltas on a node: the booted slot is only read, the result is the image, cuts cost time only."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.errors import SourceMismatchError
from images.proto import payload_pb2 as pb
from images.reader import Accept, PayloadFile
from images.signing import load_public_keys
from partitions.booted import Booted
from partitions.slots import Region, Slot
from partitions.writer import RegionWriter
from tests.sim import samples
from tests.sim.node_deltas import apart, in_place
from tests.sim.payloads import BLOCK, format_1
from tests.sim.plain import give, is_armed, memory_of, serve, stop_after
from tests.sim.world import World, payload_key, run_until
from updater.download import DownloadStoppedError
from updater.engine import Engine
from updater.given import own_facts
from updater.install import verify_slot, write_slot
from updater.lifecycle import State
from updater.local_payload import LocalPayload
from updater.node import Node
from updater.plan import Plan
from updater.proof import ReadBackError
from updater.shell import Shell
from updater.sources import CopyMismatchError
from updater.state import Journal

MIB = 1024 * 1024
SIZE = 12 * MIB  # a partition of the world, filled by its image as format 1 wants it


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, image_size=SIZE) as made:
        yield made


@pytest.fixture
def node(world: World) -> Node:
    made = world.boot()
    run_until(Engine(node=made), "idle")
    return made


@pytest.fixture(params=[1, 2])
def delta(request: pytest.FixtureRequest, world: World) -> Path:
    """A delta from 1.0.0 to 2.0.0 whose operations copy, patch and replace."""
    world.image("2.0.0", rollback_index=2)
    old, new = world.image_bytes("1.0.0"), world.image_bytes("2.0.0")
    make = in_place if request.param == 1 else apart
    path = world.folder / "delta.crau"
    path.write_bytes(make(old, new))
    return path


@pytest.fixture(params=["file", "url"])
def placed(request: pytest.FixtureRequest, world: World) -> Callable[[Path], str]:
    return str if request.param == "file" else lambda path: serve(world, path)


def test_a_delta_makes_the_image_and_never_touches_what_it_starts_from(
    world: World, node: Node, delta: Path, placed: Callable[[Path], str]
) -> None:
    give(node, placed(delta))

    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert world.slot_bytes(Slot.A) == world.image_bytes("1.0.0")
    node = world.boot()
    assert node.boot().slot is Slot.B
    run_until(Engine(node=node), "idle")
    assert node.running().version == "2.0.0"


@pytest.mark.parametrize("operations", [1, 2, 3, 7, 11])
def test_a_delta_that_was_interrupted_ends_as_the_same_image(
    world: World,
    node: Node,
    delta: Path,
    operations: int,
    placed: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_after(node, operations, monkeypatch)
    with pytest.raises(DownloadStoppedError):
        give(node, placed(delta))
    monkeypatch.undo()
    assert not is_armed(node)
    assert memory_of(node).state is State.INSTALLING

    run_until(Engine(node=world.node()), "rebooting")

    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert world.slot_bytes(Slot.A) == world.image_bytes("1.0.0")


def test_a_delta_from_another_image_is_refused_before_anything_is_written(
    world: World, node: Node, placed: Callable[[Path], str]
) -> None:
    world.image("2.0.0", rollback_index=2)
    other = bytearray(world.image_bytes("1.0.0"))
    other[-1] ^= 1
    before = world.disk.read_bytes()

    for make in (in_place, apart):
        path = world.folder / "delta.crau"
        path.write_bytes(make(bytes(other), world.image_bytes("2.0.0")))
        with pytest.raises(SourceMismatchError):
            give(node, placed(path))

    assert world.disk.read_bytes() == before
    assert memory_of(node).state is State.IDLE


def test_a_delta_in_place_needs_an_old_image_as_large_as_the_partition(
    world: World, node: Node
) -> None:
    world.image("2.0.0", rollback_index=2)
    data = in_place(world.image_bytes("1.0.0"), world.image_bytes("2.0.0"))
    size = struct.unpack_from(">Q", data, 12)[0]
    manifest = pb.DeltaArchiveManifest.FromString(data[20 : 20 + size])
    manifest.old_partition_info.size -= BLOCK
    blobs = data[20 + size : 20 + size + manifest.signatures_offset]
    path = world.folder / "delta.crau"
    path.write_bytes(format_1(manifest, blobs, keys=[payload_key()]))

    with pytest.raises(SourceMismatchError):
        give(node, path)


class TestAFlatcarDelta:
    """The sample: MOVE and BSDIFF in place, made and signed by Flatcar's own generator."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> tuple[Plan, bytes, bytes, Path]:
        """Return a plan on a disk with two partitions, the old and new image, and the payload."""
        from images.apply import apply_file

        folder = samples.unpack(tmp_path)
        full, delta = folder / "full-signed.crau", folder / samples.DELTA
        apply_file(full, {"usr": tmp_path / "new.img"})
        new = (tmp_path / "new.img").read_bytes()
        old = samples.old_image(new)
        disk = tmp_path / "disk.img"
        disk.write_bytes(old + b"\xee" * len(old))
        keys = load_public_keys(folder / samples.KEY)
        with PayloadFile.open(delta) as file:
            facts = own_facts(file.metadata(keys, accept=Accept.APPLICABLE), proven=True)
        booted = Region(path=disk, offset=0, size=len(old), partuuid="a", label="a")
        passive = Region(path=disk, offset=len(old), size=len(old), partuuid="b", label="b")
        plan = Plan(
            facts=facts,
            sha256="",
            size=delta.stat().st_size,
            slot=Slot.B,
            regions={"usr": passive},
            keys=keys,
            checkpoint_bytes=MIB,
            booted=Booted.nothing(),
            workers=2,
            sources={"usr": booted},
        )
        return plan, old, new, delta

    def write(self, plan: Plan, delta: Path) -> None:
        stop = threading.Event()
        shell = Shell(keep_journal=lambda _: None, progress=lambda _: None, stop=stop)
        journal = Journal(sha256=plan.identity, slot="b")
        with LocalPayload(delta, stop=stop) as source:
            written = write_slot(plan, source, journal, shell)
        with pytest.raises(AssertionError, match="unjudged"):
            verify_slot(written)

    def test_makes_the_image_byte_for_byte(self, bench: tuple[Plan, bytes, bytes, Path]) -> None:
        plan, old, new, delta = bench
        self.write(plan, delta)
        assert plan.regions["usr"].path.read_bytes() == old + new

    def test_is_not_applied_to_a_copy_that_the_disk_changed(
        self, bench: tuple[Plan, bytes, bytes, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, old, _, delta = bench
        original = RegionWriter.write_at

        def write_at(self: RegionWriter, offset: int, data: bytes | memoryview) -> None:
            spoiled = bytearray(data)
            spoiled[0] ^= offset == 5 * MIB
            original(self, offset, bytes(spoiled))

        monkeypatch.setattr(RegionWriter, "write_at", write_at)
        with pytest.raises((CopyMismatchError, ReadBackError)) as caught:
            self.write(plan, delta)
        assert caught.value.code == "copy-mismatch"
        assert plan.regions["usr"].path.read_bytes()[: len(old)] == old
