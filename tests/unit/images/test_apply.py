"""Applying a payload to files: whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from images.apply import apply_file, try_images
from images.build import build
from images.errors import (
    BlobMismatchError,
    FileWriteError,
    ImagesError,
    ManifestContradictionError,
    OperationOutputError,
    PartitionMismatchError,
    PartUnknownError,
)
from images.reader import Accept, PayloadFile, verify_file
from tests.sim.payloads import Forge, forge, image, key, trusted, zstd_forge

A, B = image(2, 1), image(3, 2)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A payload of the parts `boot` and `usr`, alone in its folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "boot").write_bytes(A)
    (folder / "usr").write_bytes(B + bytes(2_097_152) + A)
    build([(name, folder / name) for name in ("boot", "usr")], folder / "payload", keys=[key()])
    return folder / "payload"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_every_part_becomes_its_image(payload: Path, out: Path) -> None:
    metadata = apply_file(payload, {"boot": out / "b", "usr": out / "u"}, keys=trusted(key()))

    assert (out / "b").read_bytes() == A
    assert (out / "u").read_bytes() == (payload.parent / "usr").read_bytes()
    assert [part.name for part in metadata.manifest.parts] == ["boot", "usr"]


def test_a_longer_file_that_was_there_is_replaced_whole(payload: Path, out: Path) -> None:
    (out / "b").write_bytes(b"x" * 1_000_000)

    apply_file(payload, {"boot": out / "b"})

    assert (out / "b").read_bytes() == A


def test_what_a_link_points_to_is_replaced_not_the_link(payload: Path, out: Path) -> None:
    (out / "real").write_bytes(b"old")
    (out / "link").symlink_to("real")

    apply_file(payload, {"boot": out / "link"})

    assert (out / "link").is_symlink()
    assert (out / "real").read_bytes() == A


@pytest.mark.parametrize("workers", [1, 5])
def test_the_number_of_threads_changes_nothing(payload: Path, out: Path, workers: int) -> None:
    told: list[tuple[int, int]] = []
    apply_file(
        payload,
        {"usr": out / "u"},
        workers=workers,
        progress=lambda done, total: told.append((done, total)),
    )

    size = (payload.parent / "usr").stat().st_size
    assert (out / "u").stat().st_size == size
    assert told[-1] == (size, size)


@pytest.mark.parametrize("names", [["root"], ["usr", "USR"], [""]])
def test_a_part_that_the_payload_has_not_is_refused(
    payload: Path, out: Path, names: list[str]
) -> None:
    with pytest.raises(PartUnknownError, match="it has boot, usr"):
        apply_file(payload, {name: out / f"x{name}" for name in names})

    assert list(out.iterdir()) == []


def test_no_output_at_all_is_refused(payload: Path) -> None:
    with pytest.raises(PartUnknownError, match="no output is named"):
        apply_file(payload, {})


def test_two_parts_in_one_file_are_refused(payload: Path, out: Path) -> None:
    with pytest.raises(FileWriteError, match="two parts"):
        apply_file(payload, {"boot": out / "x", "usr": out / "x"})


def test_the_payload_itself_is_no_output(payload: Path) -> None:
    before = payload.read_bytes()

    with pytest.raises(FileWriteError, match="it is the payload itself"):
        apply_file(payload, {"boot": payload})

    assert payload.read_bytes() == before


@pytest.mark.parametrize("place", ["missing/x", "folder", "pipe"])
def test_an_output_that_cannot_be_written_is_refused(payload: Path, out: Path, place: str) -> None:
    (out / "folder").mkdir()
    os.mkfifo(out / "pipe")
    before = sorted(out.iterdir())

    with pytest.raises(FileWriteError, match=f"{place} cannot be written"):
        apply_file(payload, {"boot": out / "fine", "usr": out / place})

    assert sorted(out.iterdir()) == before


def test_a_device_is_never_replaced(payload: Path) -> None:
    with pytest.raises(FileWriteError, match="not a regular file"):
        apply_file(payload, {"boot": Path("/dev/null")})

    assert Path("/dev/null").is_char_device()


def refused(error: type[ImagesError], data: bytes, out: Path) -> None:
    (out / "payload").write_bytes(data)
    with pytest.raises(error):
        apply_file(out / "payload", {"usr": out / "usr"}, keys=trusted(key()))
    assert [path.name for path in out.iterdir()] == ["payload"]


def test_an_image_other_than_the_manifest_says_is_refused(out: Path) -> None:
    payload = forge(A, B)
    payload.manifest.partitions[0].new_partition_info.hash = bytes(32)

    refused(PartitionMismatchError, payload.bytes(), out)


def test_an_output_other_than_its_blocks_is_refused(out: Path) -> None:
    payload = zstd_forge(A)
    payload.manifest.partitions[0].operations[0].dst_extents[0].num_blocks = 3
    payload.manifest.partitions[0].new_partition_info.size = 3 * 4096

    refused(OperationOutputError, payload.bytes(), out)


def test_a_sound_packed_payload_is_taken(out: Path) -> None:
    (out / "payload").write_bytes(zstd_forge(A).bytes())

    apply_file(out / "payload", {"usr": out / "usr"}, keys=trusted(key()))

    assert (out / "usr").read_bytes() == A


def test_a_payload_swapped_after_it_was_verified_is_noticed(payload: Path, out: Path) -> None:
    """The blobs are hashed again as they are unpacked: what is written is what was signed."""

    swapped = False
    index_bytes = verify_file(payload, None).manifest.index_bytes

    def swap(done: int, _: int) -> None:
        nonlocal swapped
        if not swapped and done == payload.stat().st_size - 267:  # all of it was verified
            swapped = True
            data = bytearray(payload.read_bytes())
            data[-268 - index_bytes] ^= 1
            with payload.open("r+b") as file:
                file.write(data)

    with pytest.raises(BlobMismatchError):
        apply_file(payload, {"usr": out / "u"}, keys=trusted(key()), progress=swap)

    assert swapped
    assert list(out.iterdir()) == []


def test_the_metadata_that_is_returned_is_that_of_the_file(payload: Path, out: Path) -> None:
    metadata = apply_file(payload, {"boot": out / "b"})

    assert metadata.sha256 == hashlib.sha256(metadata.raw).digest()


def proven(*datas: bytes) -> Forge:
    """Return a payload whose operations name the hashes of their outputs, as ours do."""
    payload = forge(*datas)
    for operation, data in zip(payload.manifest.partitions[0].operations, datas, strict=True):
        operation.dst_sha256 = hashlib.sha256(data).digest()
    return payload


def tried(data: bytes, folder: Path) -> None:
    """See what a payload makes; whatever comes of it leaves nothing behind."""
    (folder / "payload").write_bytes(data)
    try:
        with PayloadFile.open(folder / "payload") as file:
            metadata = file.metadata(trusted(key()), accept=Accept.ANY)
            file.verify(metadata, trusted(key()))
            try_images(file, metadata)
    finally:
        assert [path.name for path in folder.iterdir()] == ["payload"]


def test_images_are_made_to_be_compared_and_not_kept(out: Path) -> None:
    tried(proven(A, B).bytes(), out)


def test_operations_that_make_another_image_than_the_manifest_names_are_found(out: Path) -> None:
    """Every hash of blobs and of outputs is right, and so is every signature."""
    payload = proven(A, B)
    first, second = payload.manifest.partitions[0].operations
    second.dst_extents[0].start_block = 0
    first.dst_extents[0].start_block = len(B) // 4096

    with pytest.raises(ManifestContradictionError) as caught:
        tried(payload.bytes(), out)

    assert hashlib.sha256(B + A).hexdigest() in str(caught.value)
    assert hashlib.sha256(A + B).hexdigest() in str(caught.value)


def test_an_output_of_another_hash_than_its_own_is_found_though_the_image_is_right(
    out: Path,
) -> None:
    """A node proves by it, so it would refuse what is right."""
    payload = proven(A, B)
    payload.manifest.partitions[0].operations[1].dst_sha256 = bytes(32)

    with pytest.raises(OperationOutputError):
        tried(payload.bytes(), out)


def test_without_room_beside_the_payload_the_images_cannot_be_made(out: Path) -> None:
    (out / "payload").write_bytes(proven(A).bytes())
    with PayloadFile.open(out / "payload") as file:
        metadata = file.metadata(None, accept=Accept.ANY)
        (out / "payload").unlink()
        out.rmdir()

        with pytest.raises(FileWriteError):
            try_images(file, metadata)
