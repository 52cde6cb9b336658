"""Turns new bytes into the smallest blob that makes them out of bytes of the old image.

What the bytes are, and where the similar ones stand, is the callers' matter. Every blob is unpacked
again before it is returned: what a coder made wrongly never leaves the builder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import bsdiff4

from images.dictionary import unpack_with_dictionary
from images.packing import Compression, pack
from images.payload import OperationKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 19  # zstd; what the time is spent on
DENSE_LEVEL: Final = 12  # for bytes that are packed already: only long repeats are found in them
DENSE: Final = 0.96  # of the size is left by zstd's quickest packing of such bytes
DICTIONARY_MIN: Final = 8  # bytes that zstd asks for
# A patch is tried where the dictionary leaves this share of the bytes: below there is little to
# win, above they are noise. It pays for programs whose addresses moved.
PATCH_WORTH: Final = (0.01, 0.75)
PATCH_GAIN: Final = (
    0.97  # of the frame's size; a patch takes longer to apply, so it must win clearly
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A blob that makes some bytes; whether it needs the old image its kind tells."""

    kind: OperationKind
    data: bytes


def code(target: bytes, similar: bytes) -> Coded:
    """Return the smallest blob that we know for `target`.

    Args:
        target: at most `rules.DICTIONARY_OUTPUT_MAX` bytes.
        similar: bytes of the old image, at most `DICTIONARY_MAX`; may be empty.
    """
    if len(similar) < DICTIONARY_MIN:
        return _plain(target)
    dense = len(zstd.compress(target, 1)) >= DENSE * len(target)
    frame = _frame(target, similar, DENSE_LEVEL if dense else LEVEL)
    if unpack_with_dictionary(frame, similar, len(target)) != target:
        raise AssertionError("zstd does not unpack what it packed")  # a broken library
    best = Coded(kind=OperationKind.SOURCE_ZSTD, data=frame)
    low, high = (round(share * len(target)) for share in PATCH_WORTH)
    if not dense and low <= len(frame) <= high:
        patch = _patch(target, similar)
        if len(patch) < PATCH_GAIN * len(frame):
            best = Coded(kind=OperationKind.SOURCE_BSDIFF, data=patch)
    return best if len(best.data) < len(target) else _plain(target)


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
