"""The manifest of a payload: protobuf in, checked and frozen values out.

A `Manifest` that exists keeps the rules in `rules`: whoever holds one needs no second check. No
file is read here, no signature is verified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from images.coders import LEVEL_MAX, Coder, Function
from images.container import MANIFEST_MAX_BYTES, SIGNATURES_MAX_BYTES, Header
from images.errors import (
    CoderMissingError,
    ManifestInvalidError,
    OperationUnsupportedError,
    PayloadLimitsError,
)
from images.layout_rules import block_index, check_ages
from images.payload import (
    COPIES,
    READS_SOURCE,
    SPARSE_HOLE,
    Extent,
    Manifest,
    Operation,
    OperationKind,
    Part,
    Segment,
    Step,
    is_part_name,
)
from images.proto import payload_pb2 as pb
from images.rules import (
    BLOB_MAX,
    OUTPUT_MAX,
    SHA256_SIZE,
    blob_bytes,
    check_delta,
    check_end,
    check_full,
    output_limit,
)
from images.wire import EXTENTS_MAX, OPERATIONS_MAX, PARTS_MAX, check_counts

__all__ = [
    "BLOB_MAX",
    "EXTENTS_MAX",
    "MANIFEST_MAX_BYTES",
    "OPERATIONS_MAX",
    "OUTPUT_MAX",
    "PARTS_MAX",
    "SPARSE_HOLE",
    "Extent",
    "Manifest",
    "Operation",
    "OperationKind",
    "Part",
    "Step",
    "parse_manifest",
]

BLOCK_SIZE_MIN: Final = 512  # bytes; every block size is a power of two
BLOCK_SIZE_MAX: Final = 64 * 1024
IMAGE_MAX: Final = 2**63 - 1  # bytes; what a file offset holds

_USR: Final = "usr"  # the main partition of format 1, which gives it no name
_PROCEDURE_NAMES: Final = {
    pb.InstallProcedure.KERNEL: "kernel",
    pb.InstallProcedure.PCR_POLICY: "pcr-policy",
}
_FORMAT_1_FIELDS: Final = (
    "partition_operations",
    "noop_operations",
    "procedures",
    "old_partition_info",
    "new_partition_info",
)
_FORMAT_2_FIELDS: Final = ("partitions", "minor_version", "max_timestamp", "partial_update")

_Group = tuple[Part | None, tuple[Operation, ...]]  # without a part: an unknown procedure


def parse_manifest(header: Header, data: bytes, *, payload_size: int) -> Manifest:
    """Return the manifest in `data`, of a payload of `payload_size` bytes.

    Checks in this order: counts, syntax, block size, parts, blobs (back to back, in order), end
    of the file; then each operation, and that every block of a format 2 image is written exactly
    once. What only other readers carry out is checked by `rules.check_applicable`, so that every
    sound delta can be inspected.

    Raises:
        PayloadLimitsError: more parts, operations, extents or bytes than we hold in memory.
        OperationUnsupportedError: a full payload with an operation that we do not carry out.
        TruncatedPayloadError: the file is shorter than what the manifest names.
        TrailingBytesError: the file is longer than that.
        ManifestInvalidError: anything else that is wrong with it.
    """
    check_counts(data)
    message = _parse_message(data, header.major)
    groups = _groups_1(message) if header.major == 1 else _groups_2(message)
    signatures = _signatures(message)
    blobs = blob_bytes(operation for _, operations in groups for operation in operations)
    parts = [part for part, _ in groups if part is not None]
    if header.major == 2:
        parts = _with_layout(message, parts, start=blobs)
    manifest = Manifest(
        major=header.major,
        minor=message.minor_version,
        block_size=message.block_size,
        parts=tuple(parts),
        skipped=tuple(op for part, ops in groups if part is None for op in ops if op.data_length),
        is_delta=message.partial_update
        or any(part is not None and part.old_size is not None for part, _ in groups),
        blob_bytes=blobs,
        index_bytes=sum(_index_bytes(part) for part in parts),
        signatures_offset=None if signatures is None else signatures[0],
        signatures_size=0 if signatures is None else signatures[1],
        coders=_coders(message),
    )
    _check_names(manifest.parts)
    check_end(
        data_offset=header.data_offset,
        data_bytes=manifest.data_bytes,
        signatures=signatures,
        payload_size=payload_size,
    )
    if manifest.is_delta:
        check_delta(manifest)
    else:
        check_full(manifest)
    return manifest


def _parse_message(data: bytes, major: int) -> pb.DeltaArchiveManifest:
    try:
        message = pb.DeltaArchiveManifest.FromString(data)
    except (DecodeError, ValueError) as error:
        raise ManifestInvalidError(f"the manifest cannot be parsed: {error}") from error
    other = _FORMAT_2_FIELDS if major == 1 else _FORMAT_1_FIELDS
    for field, _ in message.ListFields():
        if field.name in other:
            raise ManifestInvalidError(
                f"the manifest has the field {field.name}, which format {major} has not"
            )
    block_size = message.block_size
    power_of_two = block_size & (block_size - 1) == 0
    if not (power_of_two and BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX):
        raise ManifestInvalidError(f"the manifest has blocks of {block_size} bytes")
    return message


def _groups_1(message: pb.DeltaArchiveManifest) -> list[_Group]:
    """Read the main partition, then the procedures; the no-ops repeat them and are ignored."""
    old = message.old_partition_info if message.HasField("old_partition_info") else None
    reader = _OperationReader(major=1, block_size=message.block_size)
    operations: Sequence[pb.InstallOperation] = message.partition_operations
    main = reader.part(_USR, message.new_partition_info, old, operations)
    groups: list[_Group] = [(main, main.operations)]
    for procedure in message.procedures:
        old = procedure.old_info if procedure.HasField("old_info") else None
        if procedure.HasField("type"):
            name = _PROCEDURE_NAMES[procedure.type]
            part = reader.part(name, procedure.new_info, old, procedure.operations)
            groups.append((part, part.operations))
        else:  # unknown to us: its blobs are in the file all the same
            groups.append((None, reader.operations(procedure.operations, blocks=0, most=0)))
    return groups


def _groups_2(message: pb.DeltaArchiveManifest) -> list[_Group]:
    reader = _OperationReader(major=2, block_size=message.block_size, coders=_coders(message))
    groups: list[_Group] = []
    for update in message.partitions:
        if update.hash_tree_extent.num_blocks or update.fec_extent.num_blocks:
            raise OperationUnsupportedError(
                f"part {update.partition_name!r} wants a hash tree computed on the node"
            )
        old = update.old_partition_info if update.HasField("old_partition_info") else None
        part = reader.part(update.partition_name, update.new_partition_info, old, update.operations)
        groups.append((part, part.operations))
    return groups


def _with_layout(
    message: pb.DeltaArchiveManifest, parts: Sequence[Part], *, start: int
) -> list[Part]:
    """Return the parts with what our own fields say of them; the indexes begin at `start`."""
    result: list[Part] = []
    for part, update in zip(parts, message.partitions, strict=True):
        index = block_index(part, update, start=start, block_size=message.block_size)
        ages = check_ages(part, update.age_operations)
        result.append(dataclasses.replace(part, index=index, ages=ages))
        start += _index_bytes(result[-1])
    return result


def _index_bytes(part: Part) -> int:
    return 0 if part.index is None else sum(group.length for group in part.index.groups)


class _OperationReader:
    """Turns messages into values; holds what all operations of a manifest share."""

    def __init__(self, *, major: int, block_size: int, coders: tuple[Coder, ...] = ()) -> None:
        self._major = major
        self._coders = (None, *coders)
        self._block_size = block_size

    def part(
        self,
        name: str | bytes,
        new: pb.ImageInfo,
        old: pb.ImageInfo | None,
        operations: Sequence[pb.InstallOperation],
    ) -> Part:
        """Return one image; the protobuf library gives names that are not UTF-8 as bytes."""
        if not isinstance(name, str) or not is_part_name(name):
            raise ManifestInvalidError(f"{name!r} is not the name of a part")
        if not 0 < new.size <= IMAGE_MAX or len(new.hash) != SHA256_SIZE:
            raise ManifestInvalidError(
                f"part {name} is {new.size} bytes with a hash of {len(new.hash)} bytes"
            )
        if old is not None and not (0 < old.size <= IMAGE_MAX and len(old.hash) == SHA256_SIZE):
            raise ManifestInvalidError(
                f"part {name} starts from {old.size} bytes with a hash of {len(old.hash)} bytes"
            )
        room = new.size if old is None else max(new.size, old.size)
        written = new.size if self._major == 2 else room  # in place, the old end may serve as well
        return Part(
            name=name,
            size=new.size,
            sha256=new.hash,
            operations=self.operations(
                operations,
                blocks=-(-written // self._block_size),
                most=OUTPUT_MAX if old is None else IMAGE_MAX,
            ),
            old_size=None if old is None else old.size,
            old_sha256=None if old is None else old.hash,
        )

    def operations(
        self, messages: Sequence[pb.InstallOperation], *, blocks: int, most: int
    ) -> tuple[Operation, ...]:
        """Return the operations on an image of `blocks` blocks.

        `most` bounds what the many blocks that format 1 claims may hold; a delta is exact.
        """
        return tuple(self._operation(message, blocks, most) for message in messages)

    def _operation(self, message: pb.InstallOperation, blocks: int, most: int) -> Operation:
        if not message.HasField("type"):
            raise ManifestInvalidError("the manifest has an operation of an unknown type")
        kind = OperationKind(message.type)
        extents = [(extent.start_block, extent.num_blocks) for extent in message.dst_extents]
        sources = [(extent.start_block, extent.num_blocks) for extent in message.src_extents]
        dst_length: int | None = message.dst_length if message.HasField("dst_length") else None
        src_length = self._bytes(sources)
        if self._major == 1:
            limit = output_limit(extents, blocks=blocks, block_size=self._block_size, most=most)
            if kind in COPIES:  # whatever lengths it names, only its blocks count
                dst_length = self._bytes(extents)
            elif kind in READS_SOURCE:
                src_length = message.src_length
        else:  # what it makes fills its blocks exactly
            limit = self._bytes(extents)
            dst_length = limit if dst_length is None else dst_length
            if message.HasField("src_length"):
                src_length = message.src_length
        return Operation(
            kind=kind,
            data_offset=message.data_offset if message.data_length else None,
            data_length=message.data_length,
            dst_extents=tuple(Extent(start, count) for start, count in extents),
            dst_length=dst_length,
            output_limit=limit,
            data_sha256=message.data_sha256_hash if message.HasField("data_sha256_hash") else None,
            dst_sha256=message.dst_sha256 if message.HasField("dst_sha256") else None,
            src_extents=tuple(Extent(start, count) for start, count in sources),
            src_length=src_length,
            src_sha256=message.src_sha256_hash if message.HasField("src_sha256_hash") else None,
            dictionary_first=message.dictionary_first,
            dictionary_count=message.dictionary_count,
            source_segments=tuple(map(self._segment, message.source_segments)),
            output_segments=tuple(map(self._segment, message.output_segments)),
        )

    def _segment(self, message: pb.Segment) -> Segment:
        if message.coder >= len(self._coders):
            raise ManifestInvalidError(
                f"a segment is packed by coder {message.coder} of {len(self._coders) - 1}"
            )
        return Segment(
            coder=self._coders[message.coder],
            offset=message.offset,
            packed=message.packed,
            unpacked=message.unpacked,
            start=message.start,
            used=message.used,
            ahead=message.ahead,
            behind=message.behind,
        )

    def _bytes(self, extents: Iterable[tuple[int, int]]) -> int:
        return sum(count for _, count in extents) * self._block_size


def _signatures(message: pb.DeltaArchiveManifest) -> tuple[int, int] | None:
    """Return offset and size of the signatures, None when there are none."""
    if message.HasField("signatures_offset") != message.HasField("signatures_size"):
        raise ManifestInvalidError("the manifest names the place or the size of signatures alone")
    if not message.HasField("signatures_size") or message.signatures_size == 0:
        return None
    if message.signatures_size > SIGNATURES_MAX_BYTES:
        raise PayloadLimitsError(
            f"the signatures claim {message.signatures_size} bytes,"
            f" at most {SIGNATURES_MAX_BYTES} are allowed"
        )
    return message.signatures_offset, message.signatures_size


def _coders(message: pb.DeltaArchiveManifest) -> tuple[Coder, ...]:
    """Return who packs; a function that we do not know is one that no node of ours has."""
    coders: list[Coder] = []
    for coder in message.coders:
        if coder.function not in {function.value for function in Function}:
            raise CoderMissingError(f"the payload wants a coder {coder.function!r}")
        if not 0 < coder.level <= LEVEL_MAX or len(coder.sample_sha256) != SHA256_SIZE:
            raise ManifestInvalidError(
                f"a coder has level {coder.level} and a hash of {len(coder.sample_sha256)} bytes"
            )
        coders.append(
            Coder(
                function=Function(coder.function),
                version=coder.version,
                level=coder.level,
                sample_sha256=coder.sample_sha256,
            )
        )
    return tuple(coders)


def _check_names(parts: Sequence[Part]) -> None:
    if not parts:
        raise ManifestInvalidError("the manifest has no part")
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ManifestInvalidError(f"the manifest has part {name} twice")
