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
ZSTD_LEVEL: Final = 19  # unless the publisher has less time: decision 0013 has the figures
QUICK_LEVEL: Final = 12  # what chunks that hardly shrink are packed at: more finds nothing more
HARDLY: Final = 0.97  # what is left of such a chunk after a first look
BZ2_LEVEL: Final = 9
_TRAINED: Final = (0xEC30A437).to_bytes(4, "little")  # RFC 8878, 5: how a trained dictionary begins
XZ_FILTERS: Final = [  # a larger dictionary than the chunk costs memory on both sides for nothing
    {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": CHUNK_SIZE}
]


class Compression(enum.StrEnum):
    """How blobs are stored; a chunk that does not shrink is stored raw in any case."""

    ZSTD = "zstd"
    XZ = "xz"
    BZ2 = "bz2"
    NONE = "none"


class Dictionary:
    """Bytes that the node has by then, for all the chunks that go by them; safe in threads.

    Finding one's way in them costs more than packing a chunk, so zstd's tables of them are made
    once a level, by the first chunk that needs them. They take some 80 MB at level 19, and live as
    long as this.

    Args:
        content: at least 8 bytes, which zstd asks for.
    """

    def __init__(self, content: bytes) -> None:
        self._dictionary = zstd.ZstdDict(content, is_raw=True)
        self._looks_trained = content.startswith(_TRAINED)

    def pack(self, chunk: bytes, level: int) -> bytes:
        """Return a chunk as one frame that refers to the content; releases the interpreter lock."""
        if self._looks_trained:  # zstd would take the tables for those of a trained dictionary
            return zstd.compress(chunk, level, zstd_dict=self._dictionary.as_prefix)
        return zstd.compress(chunk, level, zstd_dict=self._dictionary.as_digested_dict)


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
    dictionary: Dictionary | None = None,
    *,
    level: int = ZSTD_LEVEL,
) -> Blob:
    """Return the smallest of the raw chunk and its packings; releases the interpreter lock.

    Args:
        chunk: what the operation makes.
        candidates: what is tried.
        dictionary: what the node has by then; where there is one, zstd goes by it.
        level: of zstd; less where a first look shows that it is in vain.
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


def _zstd(chunk: bytes, dictionary: Dictionary | None, level: int) -> bytes:
    if level > QUICK_LEVEL and len(zstd.compress(chunk, 1)) > HARDLY * len(chunk):
        level = QUICK_LEVEL
    return zstd.compress(chunk, level) if dictionary is None else dictionary.pack(chunk, level)


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
