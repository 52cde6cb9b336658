"""Deltas that we build: what they make, what they hold, and what is refused."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import delta
from images.apply import apply_file
from images.assemble import Built
from images.delta import build_delta
from images.errors import (
    FileWriteError,
    ImagesError,
    ImageSizeError,
    LibraryMissingError,
    PartUnknownError,
    SourceMismatchError,
    SourceMissingError,
)
from images.reader import verify_file
from images.signing import keygen, load_private_key, load_public_keys
from tests.sim import deltas
from tests.sim import protobuf_reader as wire
from tests.sim.payloads import BLOCK, image

NOISE = image(24, seed=1)
PROSE = b"".join(b"line %d of the old image\n" % number for number in range(4000))[: 20 * BLOCK]
OLD = NOISE + bytes(40 * BLOCK) + PROSE
NEW = b"".join(
    (
        NOISE[12 * BLOCK :],  # moved
        bytes(40 * BLOCK),
        b"shifted" + NOISE[: 8 * BLOCK - 7],  # found by content
        PROSE.replace(b"line 7 of the old", b"line 7 of the new"),
    )
)


def build(folder: Path, old: bytes = OLD, new: bytes = NEW, **options: object) -> Built:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    return build_delta(
        [("usr", folder / "new")], {"usr": folder / "old"}, folder / "delta",
        **options,  # type: ignore[arg-type]  # of the options of build_delta
    )  # fmt: skip


def applied(folder: Path) -> bytes:
    apply_file(folder / "delta", {"usr": folder / "out"}, sources={"usr": folder / "old"})
    return (folder / "out").read_bytes()


def operations(payload: bytes) -> tuple[bytes, list[bytes]]:
    """Return manifest and operations, read without our reader."""
    size = int.from_bytes(payload[12:20], "big")
    manifest = payload[24 : 24 + size]
    (part,) = wire.messages(manifest, 13)
    return manifest, wire.messages(part, 8)


def extents(operation: bytes, field: int) -> list[tuple[int, int]]:
    return [
        (sum(wire.every(extent, 1)), wire.one_number(extent, 2))  # type: ignore[arg-type]  # numbers
        for extent in wire.messages(operation, field)
    ]


def test_a_delta_makes_the_very_image_and_is_small(tmp_path: Path) -> None:
    built = build(tmp_path)

    assert applied(tmp_path) == NEW
    kinds = {operation.kind.name for operation in built.manifest.parts[0].operations}
    assert {"SOURCE_COPY", "SOURCE_ZSTD", "ZERO"} <= kinds
    assert built.size_bytes < 2000
    assert built.sha256 == hashlib.sha256((tmp_path / "delta").read_bytes()).digest()


@pytest.mark.parametrize("compat", [False, True])
def test_copies_are_from_where_they_say(compat: bool, tmp_path: Path) -> None:
    build(tmp_path, compat=compat)
    _, found = operations((tmp_path / "delta").read_bytes())

    copied = 0
    for operation in found:
        if wire.one_number(operation, 1) == deltas.SOURCE_COPY:
            source, target = extents(operation, 4), extents(operation, 6)
            assert deltas.gather(OLD, source) == deltas.gather(NEW, target)
            copied += sum(count for _, count in target)
    assert copied >= 12


def test_every_operation_of_ours_names_the_hashes_it_must(tmp_path: Path) -> None:
    build(tmp_path)
    manifest, found = operations((tmp_path / "delta").read_bytes())

    assert wire.one(manifest, 12) == 10
    for operation in found:
        made = deltas.gather(NEW, extents(operation, 6))
        assert wire.one(operation, deltas.DST_SHA256) == hashlib.sha256(made).digest()
        if wire.one(operation, 1) == deltas.SOURCE_ZSTD:
            read = deltas.gather(OLD, extents(operation, 4))
            assert wire.one(operation, deltas.SRC_SHA256) == hashlib.sha256(read).digest()


def test_a_compat_delta_is_what_stock_readers_know(tmp_path: Path) -> None:
    build(tmp_path, compat=True)
    manifest, found = operations((tmp_path / "delta").read_bytes())

    assert wire.one(manifest, 12) == 4
    assert set(wire.numbers(manifest)) == {3, 12, 13}
    for operation in found:
        assert wire.one(operation, 1) in {0, 1, 4, 5, 6, 8}
        assert set(wire.numbers(operation)) <= set(range(1, 10))
        if wire.one(operation, 1) in {4, 5}:
            read = deltas.gather(OLD, extents(operation, 4))
            assert wire.one(operation, deltas.SRC_SHA256) == hashlib.sha256(read).digest()
    assert {wire.one(operation, 1) for operation in found} >= {4, 6}
    assert applied(tmp_path) == NEW


@pytest.mark.parametrize("compat", [False, True])
def test_the_number_of_threads_changes_no_byte(
    compat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "GROUP_SIZE", BLOCK)  # so that threads have several to make
    monkeypatch.setattr(delta, "_SCAN_SIZE", 8 * 8 * BLOCK)

    shas = {build(tmp_path, compat=compat, workers=count).sha256 for count in (1, 4, 1)}

    assert len(shas) == 1
    assert len(operations((tmp_path / "delta").read_bytes())[1]) > 8
    assert applied(tmp_path) == NEW


def test_an_unchanged_part_costs_a_copy(tmp_path: Path) -> None:
    built = build(tmp_path, NOISE, NOISE)

    (operation,) = built.manifest.parts[0].operations
    assert operation.kind.name == "SOURCE_COPY"
    assert built.size_bytes < 300
    assert applied(tmp_path) == NOISE


def test_a_wrong_source_is_refused_when_it_is_applied(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "old").write_bytes(OLD[:-1] + b"!")

    with pytest.raises(SourceMismatchError):
        applied(tmp_path)


def test_a_delta_is_signed_and_progress_is_told(tmp_path: Path) -> None:
    keygen(tmp_path / "k")
    told: list[tuple[int, int]] = []
    build(
        tmp_path,
        keys=[load_private_key(tmp_path / "k.key.pem")],
        progress=lambda done, total: told.append((done, total)),
    )

    verify_file(tmp_path / "delta", load_public_keys(tmp_path / "k.pub.pem"))
    scanned, made = 2 * len(OLD) + len(NEW), len(NEW)
    assert (scanned, scanned) in told
    assert told[-1] == (made, made)


@pytest.mark.parametrize(
    ("names", "sources", "error", "what"),
    [
        (["usr", "boot"], ["usr"], SourceMissingError, "part boot has no old image"),
        (["usr"], ["usr", "boot"], PartUnknownError, "a source of part 'boot'"),
        (["usr"], ["root"], SourceMissingError, "part usr has no old image"),
        (["usr", "usr"], ["usr"], PartUnknownError, "named twice"),
        ([], [], PartUnknownError, "1 to 64 parts"),
    ],
)
def test_each_part_has_one_source(
    names: list[str], sources: list[str], error: type[ImagesError], what: str, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(NOISE)
    parts = [(name, tmp_path / "image") for name in names]
    old = dict.fromkeys(sources, tmp_path / "image")

    with pytest.raises(error, match=what):
        build_delta(parts, old, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_images_are_whole_blocks_and_not_the_output(tmp_path: Path) -> None:
    with pytest.raises(ImageSizeError, match="old has 98303 bytes"):
        build(tmp_path, NOISE[:-1])
    with pytest.raises(ImageSizeError, match="new has 98303 bytes"):
        build(tmp_path, NOISE, NOISE[:-1])
    (tmp_path / "delta").symlink_to("old")
    with pytest.raises(FileWriteError, match="it is the image of part usr"):
        build(tmp_path, NOISE, NOISE)


def test_without_numpy_there_is_a_sentence_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(LibraryMissingError, match="needs numpy") as caught:
        build(tmp_path)
    assert "server" in caught.value.hint


def test_no_program_of_a_node_loads_numpy() -> None:
    rooms = "updater.cli, updater.assembly, updater.pipeline, images.apply, images.cli"
    check = f"import sys, {rooms}, images.delta; sys.exit('numpy' in sys.modules)"

    subprocess.run([sys.executable, "-c", check], check=True)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**32), st.booleans())
def test_any_edit_of_an_image_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, compat: bool
) -> None:
    folder = tmp_path_factory.mktemp("edit")
    chance = random.Random(seed)
    old = bytearray(NOISE + bytes(3 * BLOCK) + PROSE[: 8 * BLOCK])
    new = bytearray(old)
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(new))
        size = chance.choice([1, 100, BLOCK, 5 * BLOCK])
        edit = chance.choice([chance.randbytes(size), bytes(size), bytes(old[at : at + size]), b""])
        new[at : at + chance.choice([0, size])] = edit
    new += bytes(-len(new) % BLOCK) or (b"" if new else bytes(BLOCK))

    build(folder, bytes(old), bytes(new), compat=compat)

    assert applied(folder) == new
