"""Payloads for a `World` that no release names, in format 2 and, forged by hand, in format 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from images.build import build as build_payload
from images.proto import payload_pb2 as pb
from partitions.slots import Slot
from tests.sim.payloads import BLOCK, format_1, replace
from tests.sim.world import World, payload_key
from updater.node import Node
from updater.pipeline import Pipeline
from updater.state import NodeState
from updater.verbs import perform

CHUNK = 256 * BLOCK  # bytes of an operation, as Flatcar's generator makes them


def plain_payload(
    world: World,
    version: str,
    *,
    rollback_index: int = 1,
    major: int = 2,
    keys: Sequence[rsa.RSAPrivateKey] | None = None,
    image: Path | None = None,
) -> Path:
    """Make a payload of a version, signed by the world's key unless `keys` says otherwise."""
    if image is None:
        image = world.images.get(version) or world.image(version, rollback_index=rollback_index)
    signers = [payload_key()] if keys is None else keys
    output = world.folder / f"{version}.v{major}.crau"
    if major == 2:
        build_payload([("usr", image)], output, keys=signers, level=1)
        return output
    output.write_bytes(format_1_of(image.read_bytes(), keys=signers))
    return output


def format_1_of(image: bytes, *, keys: Sequence[rsa.RSAPrivateKey]) -> bytes:
    """Return a full format 1 payload of an image, uncompressed."""
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    manifest.ClearField("minor_version")
    for start in range(0, len(image), CHUNK):
        piece = image[start : start + CHUNK]
        manifest.partition_operations.append(replace(piece, start=start // BLOCK, offset=start))
    manifest.new_partition_info.size = len(image)
    manifest.new_partition_info.hash = hashlib.sha256(image).digest()
    return format_1(manifest, image, keys=keys)


def serve(world: World, payload: Path) -> str:
    """Let the world's payload server have a file; returns its URL."""
    world.payloads.files[payload.name] = payload.read_bytes()
    return f"{world.payloads.base}/{payload.name}"


def give(node: Node, place: Path | str, *, force: bool = False) -> object:
    """Carry out `bascule update --payload PLACE`."""
    return perform(node, "update", {"payload": str(place), "force": force}, by="test")


def memory_of(node: Node) -> NodeState:
    return node.store.read_state()


def is_armed(node: Node) -> bool:
    """Tell whether the loader would ever boot slot B."""
    state = node.loader.read()
    return state.target is Slot.B or state.slots[Slot.B].armed


def stop_after(node: Node, operations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the engine to stop once so many operations are written."""
    original = Pipeline._write
    count = 0

    def write(self: Pipeline, step: object) -> None:
        nonlocal count
        original(self, step)  # type: ignore[arg-type]  # its own item
        count += 1
        if count == operations:
            node.stop.set()

    monkeypatch.setattr(Pipeline, "_write", write)
