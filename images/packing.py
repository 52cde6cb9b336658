"""Turns a chunk of an image into the blob of one operation. Unpacking is `operations`' matter."""

from __future__ import annotations

import bz2
import enum
import hashlib
import lzma
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from images.payload import OperationKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_SIZE: Final = 1024 * 1024  # bytes an operation makes: what AOSP's and Flatcar's tools take
ZSTD_LEVEL: Final = 12  # unless the publisher takes more time: decision 0013 has the figures
ZSTD_WINDOW_LOG: Final = 23  # 8 MiB: what is made and its dictionary
BZ2_LEVEL: Final = 9
XZ_FILTERS: Final = [  # a larger dictionary than the chunk costs memory on both sides for nothing
    {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": CHUNK_SIZE}
]


class Compression(enum.StrEnum):
    """How blobs are stored; a chunk that does not shrink is stored raw in any case."""

    ZSTD = "zstd"
    XZ = "xz"
    BZ2 = "bz2"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Blob:
    """A chunk as it is stored; its hashes are SHA-256, `dst_sha256` that of the chunk itself."""

    kind: OperationKind
    data: bytes
    data_sha256: bytes
    dst_sha256: bytes


def pack(
    chunk: bytes,
    candidates: Sequence[Compression],
    dictionary: bytes = b"",
    *,
    level: int = ZSTD_LEVEL,
) -> Blob:
    """Return the smallest of the raw chunk and its packings; releases the interpreter lock.

    Args:
        chunk: what the operation makes.
        candidates: what is tried.
        dictionary: bytes that the node has by then; where there are any, zstd goes by them.
        level: of zstd.
    """
    kind, data = OperationKind.REPLACE, chunk
    for candidate in candidates:
        if candidate is Compression.ZSTD:
            packed_kind = OperationKind.TARGET_ZSTD if dictionary else OperationKind.REPLACE_ZSTD
            packed = _zstd(chunk, dictionary, level)
        else:
            packed_kind, compress = _COMPRESSORS[candidate]
            packed = compress(chunk)
        if len(packed) < len(data):
            kind, data = packed_kind, packed
    dst_sha256 = hashlib.sha256(chunk).digest()
    raw = kind is OperationKind.REPLACE
    return Blob(kind, data, dst_sha256 if raw else hashlib.sha256(data).digest(), dst_sha256)


def _zstd(chunk: bytes, dictionary: bytes, level: int) -> bytes:
    if not dictionary:
        return zstd.compress(chunk, level)
    return zstd.compress(
        chunk,
        options={
            zstd.CompressionParameter.compression_level: level,
            zstd.CompressionParameter.window_log: ZSTD_WINDOW_LOG,
        },
        zstd_dict=zstd.ZstdDict(dictionary, is_raw=True).as_prefix,
    )


def _xz(chunk: bytes) -> bytes:
    """Pack as the xz readers of boot loaders ask: no check stronger than CRC32 (payload.md 4)."""
    return lzma.compress(chunk, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=XZ_FILTERS)


def _bz2(chunk: bytes) -> bytes:
    return bz2.compress(chunk, BZ2_LEVEL)


def _none(chunk: bytes) -> bytes:
    return chunk


_COMPRESSORS: Final[Mapping[Compression, tuple[OperationKind, Callable[[bytes], bytes]]]] = {
    Compression.XZ: (OperationKind.REPLACE_XZ, _xz),
    Compression.BZ2: (OperationKind.REPLACE_BZ, _bz2),
    Compression.NONE: (OperationKind.REPLACE, _none),
}
