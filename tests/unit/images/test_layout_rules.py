from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from images.container import Header
from images.errors import (
    ImagesError,
    ManifestInvalidError,
    OperationUnsupportedError,
    PayloadLimitsError,
)
from images.manifest import parse_manifest
from images.payload import Manifest
from images.proto import payload_pb2 as pb
from images.reader import verify_file
from images.rules import OUTPUT_MAX
from tests.sim import deltas
from tests.sim.deltas import Delta
from tests.sim.payloads import BLOCK, Forge, forge, format_1, image, replace

MIB = 1024 * 1024
Update = pb.PartitionUpdate


def parsed(payload: Forge) -> Manifest:
    payload.keys = ()
    data = payload.bytes()
    raw = payload.manifest.SerializePartialToString()
    header = Header(major=2, manifest_size=len(raw), metadata_signature_size=0)
    return parse_manifest(header, raw, payload_size=len(data))


def verified(data: bytes, folder: Path) -> Manifest:
    (folder / "payload").write_bytes(data)
    return verify_file(folder / "payload", None).manifest


def with_dictionary(count: int = 3) -> Forge:
    """Return a payload whose last operation takes all others for its dictionary."""
    datas = [image(1, seed) for seed in range(count)]
    payload = forge(*datas)
    operations = payload.manifest.partitions[0].operations
    for operation, data in zip(operations, datas, strict=True):
        operation.dst_sha256 = hashlib.sha256(data).digest()
    last = operations[-1]
    packed = zstd.compress(datas[-1])
    payload.blobs = b"".join(datas[:-1]) + packed
    last.CopyFrom(replace(packed, start=count - 1, offset=(count - 1) * BLOCK, blocks=1))
    last.type = pb.InstallOperation.TARGET_ZSTD
    last.dst_sha256 = hashlib.sha256(datas[-1]).digest()
    last.dictionary_first, last.dictionary_count = 0, count - 1
    return payload


def indexed() -> Forge:
    datas = [image(2, 1), image(1, 2)]
    payload = forge(*datas)
    update = payload.manifest.partitions[0]
    for operation, data in zip(update.operations, datas, strict=True):
        operation.dst_sha256 = hashlib.sha256(data).digest()
    update.index_hash_size = 6
    for count, size in ((1, 12), (1, 6)):
        update.index_groups.add(operations=count, sha256=hashlib.sha256(bytes(size)).digest())
    update.age_operations.extend([1, 1])
    payload.blobs += bytes(18)
    return payload


def test_a_dictionary_is_operations_before() -> None:
    operation = parsed(with_dictionary()).parts[0].operations[-1]
    assert operation.dictionary == range(2)


Bend = Callable[[Update], object]


def set_last(**values: int) -> Bend:
    def bend(update: Update) -> None:
        for name, value in values.items():
            setattr(update.operations[-1], name, value)

    return bend


DICTIONARIES: list[tuple[str, Bend, type[ImagesError]]] = [
    ("itself", set_last(dictionary_count=3), ManifestInvalidError),
    ("later ones", set_last(dictionary_first=2, dictionary_count=4), ManifestInvalidError),
    ("none", set_last(dictionary_count=0), ManifestInvalidError),
    ("too many", set_last(dictionary_count=2**31), ManifestInvalidError),
    ("no hash", lambda u: u.operations[-1].ClearField("dst_sha256"), ManifestInvalidError),
    ("no hash before", lambda u: u.operations[0].ClearField("dst_sha256"), ManifestInvalidError),
    (
        "another kind",
        set_last(type=pb.InstallOperation.REPLACE_ZSTD),
        ManifestInvalidError,
    ),
]


@pytest.mark.parametrize(("bend", "error"), [row[1:] for row in DICTIONARIES],
                         ids=[row[0] for row in DICTIONARIES])  # fmt: skip
def test_another_dictionary_is_refused(bend: Bend, error: type[ImagesError]) -> None:
    payload = with_dictionary()
    bend(payload.manifest.partitions[0])
    with pytest.raises(error):
        parsed(payload)


def test_a_delta_has_no_dictionary_of_its_new_image(tmp_path: Path) -> None:
    """Neither the type, nor the fields alone, whose count somebody would walk."""
    delta = Delta(image(1, 1), image(1, 2))
    delta.replace(deltas.REPLACE, [(0, 1)])
    delta.operations[0] += deltas.number(1002, 2**31)
    with pytest.raises(ManifestInvalidError, match="an operation REPLACE of part usr has a dict"):
        verified(delta.payload(), tmp_path)
    delta = Delta(image(1, 1), image(1, 2))
    delta.add(pb.InstallOperation.TARGET_ZSTD, [(0, 1)], blob=zstd.compress(image(1, 2)))
    with pytest.raises(OperationUnsupportedError, match="version 10, has an operation"):
        verified(delta.payload(), tmp_path)


def test_format_1_has_no_dictionary(tmp_path: Path) -> None:
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    operation = manifest.partition_operations.add()
    operation.CopyFrom(replace(image(1, 1), start=0, offset=0, blocks=1))
    manifest.new_partition_info.size = BLOCK
    manifest.new_partition_info.hash = hashlib.sha256(image(1, 1)).digest()
    assert verified(format_1(manifest, image(1, 1)), tmp_path).major == 1
    operation.dictionary_count = 2**31
    with pytest.raises(ManifestInvalidError, match="an operation REPLACE of part usr has a dict"):
        verified(format_1(manifest, image(1, 1)), tmp_path)


@pytest.mark.parametrize("blocks", [2048, 2049])
def test_what_is_made_with_a_dictionary_has_at_most_8_mib(blocks: int) -> None:
    """It is held together with the dictionary."""
    payload = with_dictionary(2)
    update = payload.manifest.partitions[0]
    last = update.operations[-1]
    packed = zstd.compress(bytes(blocks * BLOCK))
    last.data_length, last.data_sha256_hash = len(packed), hashlib.sha256(packed).digest()
    last.dst_extents[0].num_blocks = blocks
    last.dst_length = blocks * BLOCK
    payload.blobs = payload.blobs[:BLOCK] + packed
    update.new_partition_info.size = (1 + blocks) * BLOCK
    if blocks == 2048:
        assert parsed(payload).parts[0].operations[-1].dictionary == range(1)
        return
    with pytest.raises(PayloadLimitsError, match="at most 8388608 of"):
        parsed(payload)


def test_a_dictionary_of_cleared_blocks_is_refused() -> None:
    payload = with_dictionary()
    first = payload.manifest.partitions[0].operations[1]
    first.CopyFrom(
        pb.InstallOperation(
            type=pb.InstallOperation.ZERO,
            dst_extents=first.dst_extents,
            dst_sha256=hashlib.sha256(bytes(BLOCK)).digest(),
        )
    )
    last = payload.manifest.partitions[0].operations[-1]
    last.data_offset = BLOCK
    payload.blobs = payload.blobs[:BLOCK] + payload.blobs[2 * BLOCK :]
    with pytest.raises(ManifestInvalidError, match="no hash of what is made"):
        parsed(payload)


@pytest.mark.parametrize("between", [2047, 2048])
def test_a_dictionary_reaches_back_8_mib(between: int) -> None:
    """Also what is made in between counts: it is what must be kept in memory."""
    payload = with_dictionary(3)
    update = payload.manifest.partitions[0]
    data = bytes(between * BLOCK)
    packed = zstd.compress(data)
    middle = update.operations[1]
    middle.CopyFrom(replace(packed, start=1, offset=BLOCK, blocks=between))
    middle.type = pb.InstallOperation.REPLACE_ZSTD
    middle.dst_sha256 = hashlib.sha256(data).digest()
    last = update.operations[-1]
    last.dictionary_count = 1
    last.data_offset = BLOCK + len(packed)
    last.dst_extents[0].start_block = 1 + between
    payload.blobs = payload.blobs[:BLOCK] + packed + payload.blobs[2 * BLOCK :]
    update.new_partition_info.size = (2 + between) * BLOCK
    assert between * BLOCK <= OUTPUT_MAX
    if between == 2047:
        parsed(payload)
    else:
        with pytest.raises(PayloadLimitsError, match="begins 8392704 bytes before"):
            parsed(payload)


def test_an_index_follows_the_blobs() -> None:
    manifest = parsed(indexed())
    part = manifest.parts[0]
    assert part.index is not None
    assert [(g.first, g.count, g.offset - 3 * BLOCK, g.length) for g in part.index.groups] == [
        (0, 1, 0, 12),
        (1, 1, 12, 6),
    ]
    assert (manifest.blob_bytes, manifest.index_bytes) == (3 * BLOCK, 18)
    assert part.ages == (1, 1)


def one_group(update: Update) -> None:
    del update.index_groups[1:]


def short_hash(update: Update) -> None:
    update.index_groups[0].sha256 = b"short"


def empty_group(update: Update) -> None:
    update.index_groups.add(operations=0, sha256=bytes(32))


def three_ages(update: Update) -> None:
    update.age_operations.append(1)


def many_ages(update: Update) -> None:
    update.age_operations.extend([0] * 80)


def five_bytes(update: Update) -> None:
    update.index_hash_size = 5


def nine_bytes(update: Update) -> None:
    update.index_hash_size = 9


def no_hash(update: Update) -> None:
    update.operations[0].ClearField("dst_sha256")


def more_operations(update: Update) -> None:
    update.index_groups[0].operations = 2


@pytest.mark.parametrize(
    "bend",
    [
        one_group,
        short_hash,
        empty_group,
        three_ages,
        many_ages,
        five_bytes,
        nine_bytes,
        no_hash,
        more_operations,
    ],
)
def test_another_index_is_refused(bend: Bend) -> None:
    payload = indexed()
    bend(payload.manifest.partitions[0])
    with pytest.raises(ImagesError):
        parsed(payload)


def test_bytes_between_index_and_end_are_refused() -> None:
    payload = indexed()
    payload.blobs += b"x"
    with pytest.raises(ImagesError, match="names only"):
        parsed(payload)
