"""Turns new bytes into the smallest blob that makes them out of bytes of the old image.

What the bytes are, and where the similar ones stand, is the callers' matter. Every blob is unpacked
again before it is returned: what a coder made wrongly never leaves the builder.
"""

from __future__ import annotations

import lzma
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import bsdiff4
from bsdiff4 import core

from images.bsdiff import XZ_DICTIONARIES, XZ_MAGIC, HeldSource, apply_patch
from images.dictionary import unpack_with_dictionary
from images.packing import Compression, pack
from images.payload import OperationKind
from images.segment_rules import STREAM_MAX
from images.zstd_jobs import unpack_once

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 19  # zstd; what the time is spent on
DENSE_LEVEL: Final = 12  # for bytes that are packed already: only long repeats are found in them
DENSE: Final = 0.96  # of the size is left by zstd's quickest packing of such bytes
DICTIONARY_MIN: Final = 8  # bytes that zstd asks for
# A patch is tried where the quickest frame leaves this share of the bytes: below there is little to
# win, above they are packed or noise. It pays for programs whose addresses moved: 0012.
PATCH_WORTH: Final = (0.04, 0.60)
QUICK_LEVEL: Final = 3
SURE: Final = 0.45  # of the quickest frame's size: a patch that no slower frame comes near
PATCHED_MAX: Final = STREAM_MAX  # bytes; of more a patch takes too long
ALONE_MAX: Final = 4 * 1024 * 1024  # bytes; of more level 19 does not see all of a dictionary
XZ_PRESET: Final = 6  # its extreme takes twice the time for a fiftieth less
# Of a frame's size; a patch takes longer to apply, so it must win clearly.
PATCH_GAIN: Final = 0.97
# zstd of streams above `ALONE_MAX`: so that all of the dictionary is in reach, which no level
# does by itself. For the largest ones, higher levels take ten times as long for a twentieth less.
FAR: Final[Mapping[int, int]] = {
    zstd.CompressionParameter.compression_level: 17,
    zstd.CompressionParameter.window_log: 25,
    zstd.CompressionParameter.hash_log: 23,
    zstd.CompressionParameter.chain_log: 24,
}
FARTHEST: Final[Mapping[int, int]] = {
    zstd.CompressionParameter.compression_level: 12,
    zstd.CompressionParameter.window_log: 25,
    zstd.CompressionParameter.hash_log: 24,
    zstd.CompressionParameter.chain_log: 25,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A blob that makes some bytes; whether it needs the old image its kind tells."""

    kind: OperationKind
    data: bytes


def is_dense(target: bytes) -> bool:
    """Tell whether bytes are packed already, so that quick levels do as well as slow ones."""
    return len(zstd.compress(target, 1)) >= DENSE * len(target)


def code(target: bytes, similar: bytes) -> Coded:
    """Return the smallest blob that we know for `target`.

    Args:
        target: at most `rules.DICTIONARY_OUTPUT_MAX` bytes.
        similar: bytes of the old image, at most `DICTIONARY_MAX`; may be empty.
    """
    if len(similar) < DICTIONARY_MIN:
        return _plain(target)
    blob = _smallest(target, similar)
    if len(blob) >= len(target):
        return _plain(target)
    patched = blob.startswith(XZ_MAGIC)
    kind = OperationKind.SOURCE_BSDIFF if patched else OperationKind.SOURCE_ZSTD
    return Coded(kind=kind, data=blob)


def code_stream(stream: bytes, similar: bytes, *, patches: bool = True) -> bytes | None:
    """Return a frame or a patch that makes `stream`, or None without enough that is similar.

    Args:
        stream: at most `segment_rules.JOB_STREAM_MAX` bytes.
        similar: what it is coded against.
        patches: whether a patch may do it; a part of a large frame is made from a frame alone.
    """
    return _smallest(stream, similar, patches=patches) if len(similar) >= DICTIONARY_MIN else None


def _smallest(target: bytes, similar: bytes, *, patches: bool = True) -> bytes:
    """Return a frame, or a patch where that is clearly smaller."""
    large = len(target) > ALONE_MAX
    if not large and is_dense(target):
        return _checked(_frame(target, similar, DENSE_LEVEL), target, similar)
    patch: bytes | None = None
    if patches and len(target) <= PATCHED_MAX:
        quick = len(_frame(target, similar, QUICK_LEVEL))
        low, high = (share * len(target) for share in PATCH_WORTH)
        patch = _xz_patch(target, similar) if low <= quick <= high else None
        if patch is not None and len(patch) < SURE * quick:
            return patch
    if large:
        frame = _far_frame(target, similar)
    else:
        frame = _checked(_frame(target, similar, LEVEL), target, similar)
    return patch if patch is not None and len(patch) < PATCH_GAIN * len(frame) else frame


def _checked(frame: bytes, target: bytes, dictionary: bytes) -> bytes:
    if unpack_with_dictionary(frame, dictionary, len(target)) != target:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    return frame


def _far_frame(stream: bytes, similar: bytes) -> bytes:
    """Return a frame whose dictionary is in reach from its first to its last byte."""
    prefix = zstd.ZstdDict(similar, is_raw=True).as_prefix
    options = FAR if len(stream) <= STREAM_MAX else FARTHEST
    frame = zstd.compress(stream, options=options, zstd_dict=prefix)
    if unpack_once(frame, bytearray(similar), len(stream))[:] != stream:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    return frame


def code_compat(target: bytes, similar: bytes) -> Coded:
    """Return the smallest blob that stock readers of deltas take: xz, bzip2 or a patch."""
    plain = pack(target, (Compression.XZ, Compression.BZ2))
    best = Coded(kind=plain.kind, data=plain.data)
    if similar:
        patch = _patch(target, similar)
        if len(patch) < len(best.data):
            best = Coded(kind=OperationKind.SOURCE_BSDIFF, data=patch)
    return best


def _plain(target: bytes) -> Coded:
    packed = zstd.compress(target, LEVEL)
    if len(packed) < len(target):
        return Coded(kind=OperationKind.REPLACE_ZSTD, data=packed)
    return Coded(kind=OperationKind.REPLACE, data=target)


def _frame(target: bytes, dictionary: bytes, level: int) -> bytes:
    """Return one frame that names its size, so that the node's window is no larger than that."""
    prefix = zstd.ZstdDict(dictionary, is_raw=True).as_prefix
    return zstd.compress(target, level, zstd_dict=prefix)


def _xz_patch(target: bytes, source: bytes) -> bytes:
    """Return a patch of our container: `images.bsdiff`."""
    streams = [
        _xz(stream, size)
        for stream, size in zip(core.diff(source, target), XZ_DICTIONARIES, strict=True)
    ]
    sizes = struct.pack("<QQQ", len(streams[0]), len(streams[1]), len(target))
    patch = b"".join((XZ_MAGIC, sizes, *streams))
    output = bytearray(len(target))
    apply_patch(patch, HeldSource(source), memoryview(output))
    if output != target:
        raise AssertionError("bsdiff does not apply the patch it made")  # a broken library
    return patch


def _xz(stream: bytes, dictionary: int) -> bytes:
    options = {"id": lzma.FILTER_LZMA2, "preset": XZ_PRESET, "dict_size": dictionary}
    return lzma.compress(stream, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[options])


def _patch(target: bytes, source: bytes) -> bytes:
    """Return a BSDIFF40 patch, which stock readers take."""
    patch: bytes = bsdiff4.diff(source, target)
    if bsdiff4.patch(source, patch) != target:
        raise AssertionError("bsdiff does not apply the patch it made")  # a broken library
    return patch
