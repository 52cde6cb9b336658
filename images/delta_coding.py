"""Turns new bytes into the smallest blob that makes them out of bytes of the old image.

What the bytes are, and where the similar ones stand, is the callers' matter. Every blob is unpacked
again before it is returned: what a coder made wrongly never leaves the builder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import bsdiff4

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
# A patch is tried where the dictionary leaves this share of the bytes: below there is little to
# win, above they are packed or noise. It pays for programs whose addresses moved: 0012.
PATCH_WORTH: Final = (0.02, 0.16)
PATCHED_MAX: Final = 4 * 1024 * 1024  # bytes; the time for a patch grows faster than they do
# Of a frame's size; a patch takes longer to apply, so it must win clearly.
PATCH_GAIN: Final = 0.97
# zstd of streams above `PATCHED_MAX`: so that all of the dictionary is in reach, which no level
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
    dense = is_dense(target)
    frame = _frame(target, similar, DENSE_LEVEL if dense else LEVEL)
    if unpack_with_dictionary(frame, similar, len(target)) != target:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    best = Coded(kind=OperationKind.SOURCE_ZSTD, data=frame)
    patch = None if dense else _better_patch(target, similar, frame)
    if patch is not None:
        best = Coded(kind=OperationKind.SOURCE_BSDIFF, data=patch)
    return best if len(best.data) < len(target) else _plain(target)


def code_stream(stream: bytes, similar: bytes) -> bytes | None:
    """Return a frame or a patch that makes `stream`, or None without enough that is similar."""
    if len(similar) < DICTIONARY_MIN:
        return None
    if len(stream) > PATCHED_MAX:
        return _far_frame(stream, similar)
    dense = is_dense(stream)
    frame = _frame(stream, similar, DENSE_LEVEL if dense else LEVEL)
    if unpack_with_dictionary(frame, similar, len(stream)) != stream:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    patch = None if dense else _better_patch(stream, similar, frame)
    return frame if patch is None else patch


def _far_frame(stream: bytes, similar: bytes) -> bytes:
    """Return a frame whose dictionary is in reach from its first to its last byte."""
    prefix = zstd.ZstdDict(similar, is_raw=True).as_prefix
    options = FAR if len(stream) <= STREAM_MAX else FARTHEST
    frame = zstd.compress(stream, options=options, zstd_dict=prefix)
    if unpack_once(frame, bytearray(similar), len(stream))[:] != stream:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    return frame


def _better_patch(target: bytes, similar: bytes, frame: bytes) -> bytes | None:
    """Return a patch that is clearly smaller than a frame, where one may be."""
    low, high = (round(share * len(target)) for share in PATCH_WORTH)
    if len(target) > PATCHED_MAX or not low <= len(frame) <= high:
        return None
    patch = _patch(target, similar)
    return patch if len(patch) < PATCH_GAIN * len(frame) else None


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


def _patch(target: bytes, source: bytes) -> bytes:
    """Return a BSDIFF40 patch."""
    patch: bytes = bsdiff4.diff(source, target)
    if bsdiff4.patch(source, patch) != target:
        raise AssertionError("bsdiff does not apply the patch it made")  # a broken library
    return patch
