"""Counts what a serialized manifest holds, before a parser allocates memory for it.

Eight MiB of manifest can spell millions of empty messages, each of which costs a parser a
hundred bytes. This walk costs none. What the fields mean is `manifest`'s matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from images.errors import ManifestInvalidError, PayloadLimitsError

PARTS_MAX: Final = 64  # trust.md 5.3
OPERATIONS_MAX: Final = 50_000  # 48 GiB in chunks of 1 MiB; 40 MiB of memory while it is parsed
EXTENTS_MAX: Final = 100_000  # a full payload has one an operation; 12 MiB when they are all used
INDEX_GROUPS_MAX: Final = 10_000  # our own field 1000 of a part: one for each 10 MiB or so
SEGMENTS_MAX: Final = 50_000  # of SOURCE_RECODE: 15 MiB when they are all used
CODERS_MAX: Final = 16
OTHERS_MAX: Final = 10_000  # messages that we parse past: partition signatures, merge operations

_LIMITS: Final[Mapping[str, int]] = {
    "parts": PARTS_MAX,
    "operations": OPERATIONS_MAX,
    "extents": EXTENTS_MAX,
    "index groups": INDEX_GROUPS_MAX,
    "segments": SEGMENTS_MAX,
    "coders": CODERS_MAX,
    "other messages": OTHERS_MAX,
}

_Tree = Mapping[int, tuple[str, "_Tree"]]
_NOTHING: Final[_Tree] = {}
_OPERATION: Final[_Tree] = {
    4: ("extents", _NOTHING),
    6: ("extents", _NOTHING),
    1003: ("segments", _NOTHING),
    1004: ("segments", _NOTHING),
}
_PROCEDURE: Final[_Tree] = {2: ("operations", _OPERATION)}
_PARTITION: Final[_Tree] = {
    5: ("other messages", _NOTHING),
    8: ("operations", _OPERATION),
    18: ("other messages", _NOTHING),
    1000: ("index groups", _NOTHING),
}
_MANIFEST: Final[_Tree] = {
    1: ("operations", _OPERATION),
    2: ("operations", _OPERATION),
    10: ("parts", _PROCEDURE),
    13: ("parts", _PARTITION),
    1000: ("coders", _NOTHING),
}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types that are in use


def check_counts(data: bytes) -> None:
    """Refuse a manifest that holds more parts, operations or extents than we keep in memory.

    Raises:
        PayloadLimitsError: one of the counts is above its limit.
        ManifestInvalidError: the bytes are no protobuf message.
    """
    _walk(data, 0, len(data), _MANIFEST, Counter())


def _walk(data: bytes, at: int, end: int, tree: _Tree, counts: Counter[str]) -> None:
    """Count the messages of `tree` in `data[at:end]`."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            _check_inside(at + length, end)
            known = tree.get(tag >> 3)
            if known is not None:
                _count(known[0], counts)
                if known[1]:
                    _walk(data, at, at + length, known[1], counts)
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
            _check_inside(at, end)
        else:
            raise ManifestInvalidError(f"the manifest has a field of wire type {kind}")


def _count(name: str, counts: Counter[str]) -> None:
    counts[name] += 1
    if counts[name] > _LIMITS[name]:
        raise PayloadLimitsError(f"the manifest has more than {_LIMITS[name]} {name}")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at` and where the next byte stands."""
    value = 0
    for place in range(min(10, end - at)):
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ManifestInvalidError("the manifest ends inside a number")


def _check_inside(at: int, end: int) -> None:
    if at > end:
        raise ManifestInvalidError("the manifest ends inside a field")
