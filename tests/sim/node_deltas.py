"""Deltas between images of a `World`, signed by its key, whose operations copy, patch and replace.

Images are whole MiB.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bsdiff4
import msgspec

from images.proto import payload_pb2 as pb
from images.release import encode_payload_facts, facts_of, tuf_payload_path
from tests.sim.deltas import REPLACE_ZSTD, Delta
from tests.sim.payloads import BLOCK, Forge, format_1
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, payload_key
from updater.node import Node
from updater.verbs import perform

MIB = 1024 * 1024
PER_CHUNK = MIB // BLOCK


def chunk(image: bytes, number: int) -> bytes:
    return image[number * MIB : (number + 1) * MIB]


def apart(old: bytes, new: bytes) -> bytes:
    """Return a format 2 delta, signed."""
    delta = Delta(old, new)
    delta.patch([(0, PER_CHUNK)], [(0, PER_CHUNK)])
    for number in range(1, len(new) // MIB):
        extent = (number * PER_CHUNK, PER_CHUNK)
        if chunk(old, number) == chunk(new, number):
            delta.copy([extent], [extent])
        elif number == len(new) // MIB - 1:
            delta.patch([(0, PER_CHUNK)], [extent])
        else:
            delta.replace(REPLACE_ZSTD, [extent])
    unsigned = delta.payload()
    size = struct.unpack_from(">Q", unsigned, 12)[0]
    manifest = pb.DeltaArchiveManifest.FromString(unsigned[24 : 24 + size])
    return Forge(manifest, delta.blobs, keys=[payload_key()]).bytes()


def release_delta(
    world: World,
    source: str,
    version: str,
    *,
    data: bytes | None = None,
    rollback_index: int = 2,
    recoded_bytes: int | None = None,
) -> str:
    """Sign a delta beside the full payload of a release, promote it, serve it; return its name.

    `recoded_bytes` is what its facts say; it packs nothing again.
    """
    data = data or apart(world.image_bytes(source), world.image_bytes(version))
    file = world.folder / f"{source}-{version}.crau"
    file.write_bytes(data)
    facts = facts_of(
        file,
        product=PRODUCT,
        board=BOARD,
        version=version,
        rollback_index=rollback_index,
        min_engine="0.1.0",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        source_version=source,
    )
    facts = msgspec.structs.replace(facts, recoded_bytes=recoded_bytes)
    path = world.repository.add_release(
        version, kind=f"delta-from-{source}", content=data, custom=encode_payload_facts(facts)
    )
    full = tuf_payload_path(PRODUCT, BOARD, version, "full")
    world.repository.promote(version, allowed={version: [full, path]})
    name = f"{hashlib.sha256(data).hexdigest()}.crau"
    world.payloads.files[name] = data
    return name


def in_place(old: bytes, new: bytes) -> bytes:
    """Return a format 1 delta whose operations depend on all that came before them."""
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    blobs = b""

    def add(kind: int, number: int, source: int | None = None, data: bytes = b"") -> None:
        nonlocal blobs
        operation = manifest.partition_operations.add(
            type=kind, dst_extents=[extent(number)], dst_length=MIB
        )
        if source is not None:
            operation.src_extents.append(extent(source))
            operation.src_length = MIB
        if data:
            operation.data_offset, operation.data_length = len(blobs), len(data)
            operation.data_sha256_hash = hashlib.sha256(data).digest()
            blobs += data

    kinds = pb.InstallOperation
    add(kinds.BSDIFF, 0, 0, bsdiff4.diff(chunk(old, 0), chunk(new, 0)))
    last = len(new) // MIB - 1
    add(kinds.REPLACE, 5, None, chunk(new, last))
    add(kinds.MOVE, last, 5)  # reads what was just written, and is written over below
    for number in range(1, last):
        add(kinds.REPLACE, number, None, chunk(new, number))
    manifest.old_partition_info.size, manifest.old_partition_info.hash = len(old), _sha256(old)
    manifest.new_partition_info.size, manifest.new_partition_info.hash = len(new), _sha256(new)
    return format_1(manifest, blobs, keys=[payload_key()])


def extent(number: int) -> pb.Extent:
    return pb.Extent(start_block=number * PER_CHUNK, num_blocks=PER_CHUNK)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Days:
    """The machine's clock, which a test sets ahead."""

    ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@contextmanager
def similar_releases(folder: Path, clock: Days) -> Iterator[World]:
    """Make a world where 2.0.0 is current, and differs little from the running 1.0.0."""
    noise = random.Random(5).randbytes(4 * MIB)
    with World(folder, noise=lambda size: noise[:size], clock=clock) as made:
        made.release("2.0.0", rollback_index=2)
        yield made


def fresh(world: World, **settings: str) -> Node:
    """Boot with these lines in `[download]` of the settings and return the node."""
    _write_settings(world, settings)
    return world.boot()


def settings_of(world: World, **settings: str) -> Node:
    """Change the settings and return the node as a new process of this boot."""
    _write_settings(world, settings)
    return world.node()


def update(node: Node) -> object:
    """Do what `bascule update` does."""
    return perform(node, "update", {}, by="test")


def _write_settings(world: World, settings: Mapping[str, str]) -> None:
    extra = "".join(f"{key} = {value}\n" for key, value in settings.items())
    world.write_settings(retries=f"2\n{extra}", poll_interval_secs="3600")
