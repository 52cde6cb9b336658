"""Deltas of format 2, written byte by byte: a second opinion on what we read.

It shares nothing with the protobuf library, our schema or our writers. Unsigned.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import bsdiff4
from backports import zstd

BLOCK = 4096  # bytes
Extents = Sequence[tuple[int, int]]

REPLACE, REPLACE_BZ, SOURCE_COPY, SOURCE_BSDIFF = 0, 1, 4, 5
ZERO, DISCARD, REPLACE_XZ, REPLACE_ZSTD = 6, 7, 8, 14
PUFFDIFF, BROTLI_BSDIFF, ZUCCHINI, LZ4DIFF_BSDIFF, LZ4DIFF_PUFFDIFF = 9, 10, 11, 12, 13
SOURCE_ZSTD = 1000
SRC_SHA256, DST_SHA256 = 9, 1000  # fields


def number(at: int, value: int) -> bytes:
    """Return a field that is a number."""
    return _varint(at << 3) + _varint(value)


def nested(at: int, value: bytes) -> bytes:
    """Return a field that is bytes or a message."""
    return _varint(at << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


_PACKS: Mapping[int, Callable[[bytes], bytes]] = {
    REPLACE: bytes,
    REPLACE_BZ: bz2.compress,
    REPLACE_XZ: xz,
    REPLACE_ZSTD: zstd.compress,
}


@dataclass
class Delta:
    """A delta of one part from `old` to `new`, to which a test adds operations.

    What an operation makes is cut out of `new`, so a test names blocks alone.
    """

    old: bytes
    new: bytes
    minor: int = 10
    name: str = "usr"
    operations: list[bytes] = field(default_factory=list)
    blobs: bytes = b""

    def copy(self, source: Extents, target: Extents) -> None:
        self.add(SOURCE_COPY, target, source=source)

    def patch(self, source: Extents, target: Extents) -> None:
        old, new = gather(self.old, source), gather(self.new, target)
        self.add(SOURCE_BSDIFF, target, source=source, blob=bsdiff4.diff(old, new))

    def resemble(self, source: Extents, target: Extents, *, lacks: Sequence[int] = ()) -> None:
        """Add a SOURCE_ZSTD; `lacks` are fields to leave out."""
        new = gather(self.new, target)
        dictionary = zstd.ZstdDict(gather(self.old, source), is_raw=True).as_prefix
        self.add(SOURCE_ZSTD, target, source=source, blob=zstd.compress(new, zstd_dict=dictionary))
        message = self.operations.pop()
        if SRC_SHA256 in lacks:  # the last field so far: two bytes of head and the hash
            message = message[:-34]
        if DST_SHA256 not in lacks:
            message += nested(DST_SHA256, hashlib.sha256(new).digest())
        self.operations.append(message)

    def clear(self, kind: int, target: Extents) -> None:
        self.add(kind, target)

    def replace(self, kind: int, target: Extents) -> None:
        pack: Callable[[bytes], bytes] = _PACKS[kind]
        self.add(kind, target, blob=pack(gather(self.new, target)))

    def add(
        self,
        kind: int,
        target: Extents,
        *,
        source: Extents = (),
        blob: bytes = b"",
        source_sha256: bytes | None = None,
    ) -> None:
        """Add an operation as it is given."""
        message = number(1, kind)
        if blob:
            message += number(2, len(self.blobs)) + number(3, len(blob))
        message += b"".join(nested(4, number(1, s) + number(2, n)) for s, n in source)
        message += b"".join(nested(6, number(1, s) + number(2, n)) for s, n in target)
        if blob:
            message += nested(8, hashlib.sha256(blob).digest())
        if source:
            named = source_sha256 or hashlib.sha256(gather(self.old, source)).digest()
            message += nested(9, named)
        self.operations.append(message)
        self.blobs += blob

    def payload(self) -> bytes:
        """Return the payload."""
        part = nested(1, self.name.encode()) + nested(6, _info(self.old))
        part += nested(7, _info(self.new)) + b"".join(nested(8, o) for o in self.operations)
        manifest = number(3, BLOCK) + number(12, self.minor) + nested(13, part)
        return struct.pack(">4sQQI", b"CrAU", 2, len(manifest), 0) + manifest + self.blobs


def gather(image: bytes, extents: Extents) -> bytes:
    """Return the bytes of extents of an image, one after the other."""
    return b"".join(image[s * BLOCK : (s + n) * BLOCK] for s, n in extents)


def _info(image: bytes) -> bytes:
    return number(1, len(image)) + nested(2, hashlib.sha256(image).digest())
