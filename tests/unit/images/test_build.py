"""What we build, read by a parser of the tests' own: reference/payload.md byte by byte."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from images.apply import apply_file
from images.build import build
from images.errors import (
    FileUnreadableError,
    FileWriteError,
    ImagesError,
    ImageSizeError,
    IndexMissingError,
    OperationUnsupportedError,
    PartUnknownError,
)
from images.layout import lay_out
from images.reader import verify_file
from tests.sim import protobuf_reader as wire
from tests.sim.payloads import image, key, trusted

MIB = 1024 * 1024
TEXT = b"the quick brown fox jumps over the lazy dog. " * 70_000
MIXED = image(256) + TEXT[: 2 * MIB] + bytes(2 * MIB) + image(3)  # raw, packed, zeros, short
TYPES = {
    0: "REPLACE",
    1: "REPLACE_BZ",
    6: "ZERO",
    8: "REPLACE_XZ",
    14: "REPLACE_ZSTD",
    1001: "TARGET_ZSTD",
}


@dataclass
class Seen:
    """A payload as the tests' own reader sees it."""

    data: bytes
    manifest: bytes
    metadata_size: int
    metadata_signature: bytes
    area: bytes
    signature: bytes

    @property
    def operations(self) -> list[bytes]:
        return wire.messages(wire.messages(self.manifest, 13)[0], 8)

    def kinds(self) -> list[str]:
        return [TYPES[wire.one_number(operation, 1)] for operation in self.operations]


def seen(path: Path) -> Seen:
    data = path.read_bytes()
    magic, major, manifest_size, signature_size = struct.unpack(">4sQQI", data[:24])
    assert (magic, major) == (b"CrAU", 2)
    manifest = data[24 : 24 + manifest_size]
    start = 24 + manifest_size + signature_size
    signed = wire.every(manifest, 4) != []
    length = wire.one_number(manifest, 5) if signed else 0
    return Seen(
        data=data,
        manifest=manifest,
        metadata_size=24 + manifest_size,
        metadata_signature=data[24 + manifest_size : start],
        area=data[start : len(data) - length],
        signature=data[len(data) - length :],
    )


def built(folder: Path, content: bytes = MIXED, **options: Any) -> Seen:  # noqa: ANN401
    source = folder / "image"
    source.write_bytes(content)
    options.setdefault("keys", [key()])
    build([("usr", source)], folder / "payload", **options)
    return seen(folder / "payload")


def unpacked(kind: str, blob: bytes, size: int, dictionary: bytes = b"") -> bytes:
    match kind:
        case "TARGET_ZSTD":
            raw = zstd.ZstdDict(dictionary, is_raw=True).as_prefix
            return zstd.decompress(blob, zstd_dict=raw)
        case "REPLACE":
            return blob
        case "REPLACE_BZ":
            return bz2.decompress(blob)
        case "REPLACE_XZ":
            return lzma.decompress(blob)
        case "REPLACE_ZSTD":
            return zstd.decompress(blob)
        case _:
            return bytes(size)


def extents_of(operation: bytes) -> list[tuple[int, int]]:
    """Return (first block, number of blocks)."""
    return [
        (wire.one_number(extent, 1), wire.one_number(extent, 2))
        for extent in wire.messages(operation, 6)
    ]


ALL: list[dict[str, Any]] = [
    {},
    {"compat": True},
    {"compression": "xz"},
    {"compression": "bz2"},
    {"compression": "none"},
    {"compat": True, "compression": "none"},
    {"compat": True, "compression": "bz2"},
]
each_way = pytest.mark.parametrize("options", ALL, ids=str)


@each_way
def test_the_operations_make_the_image_block_for_block(
    options: dict[str, Any], tmp_path: Path
) -> None:
    payload = built(tmp_path, **options)
    whole = bytearray(len(MIXED))
    position = 0
    made: list[bytes] = []
    for operation, kind in zip(payload.operations, payload.kinds(), strict=True):
        extents = extents_of(operation)
        blob = dictionary = b""
        if kind != "ZERO":
            assert wire.one_number(operation, 2) == position
            length = wire.one_number(operation, 3)
            blob = payload.area[position : position + length]
            assert wire.one_bytes(operation, 8) == hashlib.sha256(blob).digest()
            position += length
        if kind == "TARGET_ZSTD":
            first, count = wire.one_number(operation, 1001), wire.one_number(operation, 1002)
            dictionary = b"".join(made[first : first + count])
        size = sum(count for _, count in extents) * 4096
        made.append(unpacked(kind, blob, size, dictionary))
        left = made[-1]
        for start, count in extents:
            whole[start * 4096 : (start + count) * 4096] = left[: count * 4096]
            left = left[count * 4096 :]

    index = 0 if options.get("compat") else 6 * ((len(MIXED) - 2 * MIB) // 4096)
    assert position == len(payload.area) - index, "the blobs lie back to back"
    assert bytes(whole) == MIXED


@each_way
def test_the_manifest_names_the_image_and_a_full_payload(
    options: dict[str, Any], tmp_path: Path
) -> None:
    payload = built(tmp_path, **options)
    part = wire.messages(payload.manifest, 13)[0]
    info = wire.one_bytes(part, 7)

    assert wire.one_number(payload.manifest, 3) == 4096
    assert wire.one_number(payload.manifest, 12) == 0
    assert wire.one_bytes(part, 1) == b"usr"
    assert wire.one_number(info, 1) == len(MIXED)
    assert wire.one_bytes(info, 2) == hashlib.sha256(MIXED).digest()
    assert wire.numbers(payload.manifest) == [3, 4, 5, 12, 13]
    own = [] if options.get("compat") else [1000, 1001, 1002]
    assert sorted(set(wire.numbers(part))) == [1, 7, 8, *own]


@each_way
def test_both_signatures_stand_and_verify_as_the_reference_says(
    options: dict[str, Any], tmp_path: Path
) -> None:
    payload = built(tmp_path, **options)
    metadata = payload.data[: payload.metadata_size]

    assert wire.one_number(payload.manifest, 4) == len(payload.area)
    assert wire.one_number(payload.manifest, 5) == 267
    for blob, signed in (
        (payload.metadata_signature, metadata),
        (payload.signature, metadata + payload.area),
    ):
        assert len(blob) == 267
        assert blob[:6].hex() == "0a8802128002"
        assert blob[-5:].hex() == "1d00010000"
        key().public_key().verify(blob[6:-5], signed, padding.PKCS1v15(), hashes.SHA256())


def test_compat_has_only_what_stock_readers_of_full_payloads_take(tmp_path: Path) -> None:
    payload = built(tmp_path, compat=True)

    assert set(payload.kinds()) <= {"REPLACE", "REPLACE_BZ", "REPLACE_XZ"}
    for operation in payload.operations:
        assert wire.numbers(operation) == [1, 2, 3, 6, 8]
        assert wire.one_number(wire.one_bytes(operation, 6), 2) in (256, 3)
    starts = [wire.one_number(wire.one_bytes(op, 6), 1) for op in payload.operations]
    assert starts == [0, 256, 512, 768, 1024, 1280], "chunks of 1 MiB in order"


def test_compat_packs_xz_with_no_check_above_crc32(tmp_path: Path) -> None:
    payload = built(tmp_path, compat=True, compression="xz")
    position = payload.kinds().index("REPLACE_XZ")
    offset = wire.one_number(payload.operations[position], 2)
    stream = payload.area[offset:]

    assert stream[:6] == b"\xfd7zXZ\0"
    assert stream[6:8] == b"\x00\x01", "stream flags: CRC32"


def test_ours_differs_only_by_zstd_zero_and_own_fields(tmp_path: Path) -> None:
    payload = built(tmp_path)

    assert payload.kinds() == ["ZERO", "REPLACE", *["TARGET_ZSTD"] * 3]
    numbers = {"ZERO": [1, 6, 1000], "TARGET_ZSTD": [1, 2, 3, 6, 8, 1000, 1001, 1002]}
    for operation, kind in zip(payload.operations, payload.kinds(), strict=True):
        found = sorted(set(wire.numbers(operation)))
        assert found == numbers.get(kind, [1, 2, 3, 6, 8, 1000])


def test_field_1000_is_the_hash_of_what_the_operation_makes(tmp_path: Path) -> None:
    for operation in built(tmp_path).operations:
        chunk = b"".join(
            MIXED[start * 4096 : (start + count) * 4096] for start, count in extents_of(operation)
        )
        assert wire.one_bytes(operation, 1000) == hashlib.sha256(chunk).digest()


def test_the_index_is_six_bytes_of_the_hash_of_each_block_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.build.INDEX_GROUP_SIZE", 2048)  # several, of a small image
    payload = built(tmp_path)
    blocks = [
        MIXED[block * 4096 : (block + 1) * 4096]
        for operation, kind in zip(payload.operations, payload.kinds(), strict=True)
        if kind != "ZERO"
        for start, count in extents_of(operation)
        for block in range(start, start + count)
    ]
    index = b"".join(hashlib.sha256(block).digest()[:6] for block in blocks)
    assert payload.area.endswith(index)
    part = wire.messages(payload.manifest, 13)[0]
    groups = wire.messages(part, 1000)
    assert sum(wire.one_number(group, 1) for group in groups) == len(payload.operations)
    assert len(groups) > 1
    first = payload.area[-len(index) :]
    assert any(
        wire.one_bytes(groups[0], 2) == hashlib.sha256(first[:size]).digest()
        for size in range(0, len(index) + 1, 6)
    )


class TestAfterEarlierPayloads:
    def test_what_they_had_comes_first_by_age(self, tmp_path: Path) -> None:
        oldest, older, new = image(40, 1), image(24, 2), image(8, 3)
        for name, content in (
            ("v0", oldest),
            ("v1", older + oldest),
            ("v2", new[: 4 * 4096] + oldest[: 9 * 4096] + older + oldest[9 * 4096 :]),
        ):
            (tmp_path / name).write_bytes(content)
        build([("usr", tmp_path / "v0")], tmp_path / "v0.crau")
        build([("usr", tmp_path / "v1")], tmp_path / "v1.crau", after=[tmp_path / "v0.crau"])
        earlier = [tmp_path / "v1.crau", tmp_path / "v0.crau"]
        made = build([("usr", tmp_path / "v2")], tmp_path / "v2.crau", after=earlier)
        part = made.manifest.parts[0]
        assert part.ages == (1, 1, 1)
        runs = [
            [(extent.start_block, extent.num_blocks) for extent in operation.dst_extents]
            for operation in part.operations
        ]
        assert runs == [[(4, 9), (37, 31)], [(13, 24)], [(0, 4)]]
        apply_file(tmp_path / "v2.crau", {"usr": tmp_path / "out"})
        assert (tmp_path / "out").read_bytes() == (tmp_path / "v2").read_bytes()

    def test_one_without_an_index_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "image").write_bytes(MIXED)
        build([("usr", tmp_path / "image")], tmp_path / "old.crau", compat=True)
        refused(IndexMissingError, "no index of blocks of 4096", tmp_path,
                after=[tmp_path / "old.crau"])  # fmt: skip

    def test_a_part_that_they_had_not_is_new(self, tmp_path: Path) -> None:
        (tmp_path / "image").write_bytes(image(3))
        build([("usr", tmp_path / "image")], tmp_path / "old.crau")
        made = build(
            [("data", tmp_path / "image")], tmp_path / "new.crau", after=[tmp_path / "old.crau"]
        )
        assert made.manifest.parts[0].ages == (1,)


def test_an_image_that_changes_meanwhile_leaves_no_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "image"
    source.write_bytes(MIXED)
    os.utime(source, ns=(1, 1))

    def changing(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        source.write_bytes(MIXED)
        return lay_out(*arguments, **options)

    monkeypatch.setattr("images.build.lay_out", changing)
    refused(FileUnreadableError, "changed while it was read", tmp_path)


def test_neighbouring_zero_chunks_are_one_operation_of_at_most_16_mib(tmp_path: Path) -> None:
    payload = built(tmp_path, bytes(40 * MIB) + image(1))
    counts = [wire.one_number(wire.one_bytes(op, 6), 2) for op in payload.operations]

    assert payload.kinds() == ["ZERO", "ZERO", "ZERO", "REPLACE"]
    assert counts == [4096, 4096, 2048, 1]


@pytest.mark.parametrize("count", [2, 3])
def test_every_key_signs_both_messages_in_order(count: int, tmp_path: Path) -> None:
    keys = [key(number) for number in range(count)]
    payload = built(tmp_path, keys=keys)

    assert len(payload.metadata_signature) == len(payload.signature) == count * 267
    for blob, signed in (
        (payload.metadata_signature, payload.data[: payload.metadata_size]),
        (payload.signature, payload.data[: payload.metadata_size] + payload.area),
    ):
        entries = wire.messages(blob, 1)
        for private, entry in zip(keys, entries, strict=True):
            data = wire.one_bytes(entry, 2)
            private.public_key().verify(data, signed, padding.PKCS1v15(), hashes.SHA256())


def test_a_key_of_4096_bits_signs(tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    payload = built(tmp_path, keys=[private])

    assert len(payload.signature) == len(payload.metadata_signature) == 523
    assert verify_file(tmp_path / "payload", trusted(private)).manifest.signatures_size == 523


def test_an_unsigned_payload_has_no_signature_and_no_place_for_one(tmp_path: Path) -> None:
    payload = built(tmp_path, keys=[])

    assert payload.metadata_signature == payload.signature == b""
    assert wire.numbers(payload.manifest) == [3, 12, 13]


def test_the_same_images_and_keys_give_the_same_bytes(tmp_path: Path) -> None:
    first = built(tmp_path, workers=1).data

    assert built(tmp_path, workers=7).data == first


def test_several_parts_lie_one_after_the_other(tmp_path: Path) -> None:
    contents = {"boot": image(5), "usr": TEXT[:MIB], "data": bytes(MIB)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    made = build([(name, tmp_path / name) for name in contents], tmp_path / "payload")

    payload = seen(tmp_path / "payload")
    parts = wire.messages(payload.manifest, 13)
    assert [wire.one_bytes(part, 1).decode() for part in parts] == list(contents)
    assert [part.name for part in made.manifest.parts] == list(contents)
    assert wire.one_number(wire.messages(parts[1], 8)[0], 2) == 5 * 4096


def test_the_verdict_of_a_build_is_that_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(MIXED)
    told: list[tuple[int, int]] = []
    made = build(
        [("usr", tmp_path / "image")],
        tmp_path / "payload",
        keys=[key()],
        progress=lambda done, total: told.append((done, total)),
    )

    data = (tmp_path / "payload").read_bytes()
    assert made.size_bytes == len(data)
    assert made.sha256 == hashlib.sha256(data).digest()
    assert told[-1] == (len(MIXED), len(MIXED))


def refused(error: type[ImagesError], match: str, folder: Path, **options: Any) -> None:  # noqa: ANN401
    parts = options.pop("parts", [("usr", folder / "image")])
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(error, match=match):
        build(parts, folder / "payload", **options)
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing is left behind"


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_an_image_of_another_size_than_whole_blocks_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(size))

    refused(ImageSizeError, f"has {size} bytes: not whole blocks of 4096", tmp_path)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "1 to 64 parts, not 0"),
        ([("usr", Path("x"))] * 65, "not 65"),
        ([("", Path("x"))], "'' is not the name"),
        ([("../usr", Path("x"))], "not the name of a part"),
        ([("usr", Path("x")), ("usr", Path("x"))], "part usr is named twice"),
    ],
    ids=["none", "many", "empty", "path", "twice"],
)
def test_parts_are_named_properly(
    parts: list[tuple[str, Path]], match: str, tmp_path: Path
) -> None:
    refused(PartUnknownError, match, tmp_path, parts=parts)


def test_zstd_and_compat_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))

    refused(OperationUnsupportedError, "refuse zstd", tmp_path, compat=True, compression="zstd")


def test_a_missing_image_leaves_no_payload(tmp_path: Path) -> None:
    refused(FileUnreadableError, "No such file", tmp_path)


def test_a_missing_image_leaves_an_older_payload_alone(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"older")

    refused(FileUnreadableError, "No such file", tmp_path)
    assert (tmp_path / "payload").read_bytes() == b"older"


def test_an_image_that_shrinks_leaves_no_payload(tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(image(256 * 40))

    refused(
        FileUnreadableError,
        "shrank",
        tmp_path,
        workers=1,
        progress=lambda done, _: os.truncate(source, MIB) if done == MIB else None,
    )


def test_a_payload_does_not_replace_its_own_image(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(bytes(4096))

    refused(
        FileWriteError, "it is the image of part usr", tmp_path,
        parts=[("usr", tmp_path / "payload")],
    )  # fmt: skip


MEASURE = """
import resource, sys
from pathlib import Path
from images.build import build
from images.apply import apply_file

folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build([("usr", folder / "image")], folder / "payload", workers=2)
built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
apply_file(folder / "payload", {"usr": folder / "out"}, workers=2)
print(built, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_memory_of_a_build_does_not_grow_with_the_image(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        for _ in range(24):
            file.write(TEXT[:MIB] + image(256))
        file.truncate(512 * MIB)

    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, check=True
    )
    built_kib, applied_kib = map(int, result.stdout.split())

    assert built_kib < 96 * 1024
    assert applied_kib < 128 * 1024
    assert (tmp_path / "out").stat().st_size == 512 * MIB
