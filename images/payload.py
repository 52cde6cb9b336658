"""A payload's manifest as frozen values, the words of this room. Made and checked by `manifest`."""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from images.coders import Coder

SPARSE_HOLE: Final = 2**64 - 1  # start block of bytes that count but are not written (format 1)
_PART_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class OperationKind(enum.IntEnum):
    """What an operation does; the numbers are those on the wire (payload.md 4)."""

    REPLACE = 0
    REPLACE_BZ = 1
    MOVE = 2
    BSDIFF = 3
    SOURCE_COPY = 4
    SOURCE_BSDIFF = 5
    ZERO = 6
    DISCARD = 7
    REPLACE_XZ = 8
    PUFFDIFF = 9
    BROTLI_BSDIFF = 10
    ZUCCHINI = 11
    LZ4DIFF_BSDIFF = 12
    LZ4DIFF_PUFFDIFF = 13
    REPLACE_ZSTD = 14
    SOURCE_ZSTD = 1000  # ours: docs/payload.md
    TARGET_ZSTD = 1001  # ours: docs/payload-any-to-any.md
    SOURCE_RECODE = 1002  # ours: docs/payload.md


CLEARS: Final = frozenset({OperationKind.ZERO, OperationKind.DISCARD})
COPIES: Final = frozenset({OperationKind.MOVE, OperationKind.SOURCE_COPY})
PATCHES: Final = frozenset({OperationKind.BSDIFF, OperationKind.SOURCE_BSDIFF})
UNPACKS: Final = frozenset(
    {
        OperationKind.REPLACE,
        OperationKind.REPLACE_BZ,
        OperationKind.REPLACE_XZ,
        OperationKind.REPLACE_ZSTD,
    }
)
READS_TARGET: Final = frozenset({OperationKind.TARGET_ZSTD})
SOURCE_DICTIONARIES: Final = frozenset({OperationKind.SOURCE_ZSTD, OperationKind.SOURCE_RECODE})
CARRIED_OUT: Final = (  # the others are refused by name
    CLEARS | COPIES | PATCHES | UNPACKS | READS_TARGET | SOURCE_DICTIONARIES
)
READS_SOURCE: Final = frozenset(OperationKind) - CLEARS - UNPACKS - READS_TARGET


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of blocks in an image; `start_block` may be `SPARSE_HOLE` in format 1."""

    start_block: int
    num_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Bytes of an image and what they unpack to, as SOURCE_RECODE takes or makes them.

    Attributes:
        coder: what packed them, or None for bytes as they are.
        offset: where they begin in the source; 0 in outputs.
        packed: their bytes in the image.
        unpacked: the bytes they unpack to; 0 for more of what the output before it was cut from.
        start: the first byte used, of a source's unpacked or an output's packed ones.
        used: how many of them.
        ahead: bytes of the stream after the unpacked ones that the coder sees as well.
        behind: likewise bytes before them.
    """

    coder: Coder | None
    packed: int
    unpacked: int
    used: int
    offset: int = 0
    start: int = 0
    ahead: int = 0
    behind: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step that writes a part of an image.

    Attributes:
        kind: what it does.
        data_offset: where its blob begins in the data area, in bytes; None without a blob.
        data_length: bytes of its blob, 0 without one.
        dst_extents: the blocks it writes, in the order of its output.
        dst_length: bytes its output must have, or None where format 1 leaves it open.
        output_limit: bytes its output may have at most, so that nothing lands past the image.
        data_sha256: SHA-256 of the blob as stored; there whenever there is a blob.
        dst_sha256: SHA-256 of the output (our field 1000), or None in others' payloads.
        src_extents: the blocks of the old image it reads, in the order in which it takes them.
        src_length: bytes it takes of them, 0 where it reads nothing.
        src_sha256: SHA-256 of these bytes (format 2), or None where the manifest names none.
        dictionary_first: the number in its part of the first operation whose output the
            dictionary begins with; of TARGET_ZSTD alone.
        dictionary_count: how many operations in a row give their output, 0 for no dictionary.
        source_segments: what the dictionary of SOURCE_RECODE is made of, in order.
        output_segments: what it makes, in order.
    """

    kind: OperationKind
    data_offset: int | None
    data_length: int
    dst_extents: tuple[Extent, ...]
    dst_length: int | None
    output_limit: int
    data_sha256: bytes | None
    dst_sha256: bytes | None
    src_extents: tuple[Extent, ...] = ()
    src_length: int = 0
    src_sha256: bytes | None = None
    dictionary_first: int = 0
    dictionary_count: int = 0
    source_segments: tuple[Segment, ...] = ()
    output_segments: tuple[Segment, ...] = ()

    @property
    def dictionary(self) -> range:
        """Return the numbers of the operations whose outputs are the dictionary, in order."""
        return range(self.dictionary_first, self.dictionary_first + self.dictionary_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexGroup:
    """Short hashes of the blocks of some operations in a row, as they lie in the payload.

    A hash is the first `BlockIndex.hash_size` bytes of the SHA-256 of a block. They follow each
    other in the order of each operation's output; operations that clear have none.

    Attributes:
        first: the number in its part of its first operation.
        count: operations in a row.
        offset: where it begins in the data area, in bytes.
        length: its bytes.
        sha256: of these.
    """

    first: int
    count: int
    offset: int
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndex:
    """The block index of a part; its groups hold each operation once, in order."""

    hash_size: int
    groups: tuple[IndexGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One image that the payload makes.

    Attributes:
        name: of the partition; format 1 has `usr`, `kernel` and `pcr-policy`.
        size: bytes of the new image; not always whole blocks in format 1.
        sha256: SHA-256 of exactly these bytes.
        operations: in the order in which they are applied.
        old_size: bytes of the image that a delta starts from, else None.
        old_sha256: its SHA-256, else None.
        index: its block index, or None where the payload has none.
        ages: operations of each age, oldest first; empty where it is not laid out by age.
    """

    name: str
    size: int
    sha256: bytes
    operations: tuple[Operation, ...]
    old_size: int | None = None
    old_sha256: bytes | None = None
    index: BlockIndex | None = None
    ages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The next operation in the order of the file; one without a part is read past."""

    part: Part | None
    operation: Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a payload holds.

    Attributes:
        major: the format, 1 or 2.
        minor: 0 in full payloads; which operations a delta may use.
        block_size: bytes of a block.
        parts: the images, each name once.
        skipped: operations of unknown procedures (format 1), whose blobs are read past.
        is_delta: whether it needs the old images.
        blob_bytes: bytes of all blobs, which lie back to back from the start of the data area.
        index_bytes: bytes of all block indexes, which follow them.
        signatures_offset: where the signatures begin in the data area, after both, or None.
        signatures_size: bytes of the signatures, 0 when unsigned.
        coders: what the node must have to carry it out.
    """

    major: int
    minor: int
    block_size: int
    parts: tuple[Part, ...]
    skipped: tuple[Operation, ...]
    is_delta: bool
    blob_bytes: int
    index_bytes: int = 0
    signatures_offset: int | None
    signatures_size: int
    coders: tuple[Coder, ...] = ()

    @property
    def data_bytes(self) -> int:
        """Return the bytes of the data area before the signatures."""
        return self.blob_bytes + self.index_bytes

    def index_groups(self) -> Iterator[IndexGroup]:
        """Yield the groups of all block indexes in the order in which they stand in the file."""
        for part in self.parts:
            if part.index is not None:
                yield from part.index.groups

    def is_in_place(self, part: Part) -> bool:
        """Tell whether the operations of `part` read what they write: a delta of format 1.

        Its target must hold a full copy of the old image before the first operation. Each
        operation reads all its source bytes before it writes, after everything before it was
        written; none may be repeated. Interrupted, it starts again from the copy.
        """
        return self.major == 1 and part.old_size is not None

    def steps(self) -> Iterator[Step]:
        """Yield every operation in the order in which its blob stands in the file."""
        skipped = deque(self.skipped)
        for part in self.parts:
            for operation in part.operations:
                offset = operation.data_offset
                while skipped and offset is not None and (skipped[0].data_offset or 0) < offset:
                    yield Step(None, skipped.popleft())
                yield Step(part, operation)
        for operation in skipped:
            yield Step(None, operation)


def is_part_name(name: str) -> bool:
    """Tell whether `name` may name a part: a letter or digit, then up to 63 of `A-Za-z0-9._-`."""
    return _PART_NAME.fullmatch(name) is not None
