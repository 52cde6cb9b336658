"""A reader of FAT12, FAT16 and FAT32 as firmware reads them: the first FAT, and no repair.

Shares no code with what is under test. Besides files it tells which bytes are its metadata, so
that two states with the same names and chains need to be checked but once.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

ENTRY: Final = 32
DEPTH_MAX: Final = 8
_LONG, _LABEL, _FOLDER, _GONE = 0x0F, 0x08, 0x10, 0xE5

Read = Callable[[int, int], bytes]
"""Returns bytes of the file system: offset and size."""

Span = tuple[int, int]
"""Offset and size, in bytes of the file system."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder: where its content lies, in pieces of one cluster and more."""

    spans: tuple[Span, ...]
    size: int
    is_folder: bool


class Fat:
    """A file system, given what reads its bytes. The FAT is read once, folders at each question."""

    def __init__(self, read: Read) -> None:
        self._read = read
        boot = read(0, 512)
        sector, self._per_cluster, reserved, fats, roots, small = struct.unpack_from(
            "<HBHBHH", boot, 11
        )
        (fat16,) = struct.unpack_from("<H", boot, 22)
        (large,) = struct.unpack_from("<I", boot, 32)
        (fat32,) = struct.unpack_from("<I", boot, 36)
        self._sector = sector
        self._reserved = reserved * sector
        fat_bytes = (fat16 or fat32) * sector
        self._root = self._reserved + fats * fat_bytes  # of FAT12 and FAT16
        self._root_bytes = roots * ENTRY
        self._data = self._root + -(-self._root_bytes // sector) * sector
        self._cluster = sector * self._per_cluster
        self._clusters = ((small or large) * sector - self._data) // self._cluster
        self._is_32 = not fat16
        bits = 32 if self._is_32 else 12 if self._clusters < 4085 else 16
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0]
        self._links = _links_of(read(self._reserved, fat_bytes), bits)
        self._chains: dict[int, tuple[Span, ...]] = {}  # by first cluster
        self.size = (small or large) * sector

    @staticmethod
    def data_offset(boot: bytes) -> int:
        """Return where the first cluster begins, given the boot sector."""
        return int(Fat(lambda at, size: boot[at : at + size].ljust(size, b"\0"))._data)

    def files(self) -> dict[str, Found]:
        """Return every file and folder by its path in lower case, without a slash before it."""
        return dict(self._walk("", self._root_spans(), 0))

    def content(self, found: Found) -> bytes:
        """Return what a file holds; shorter than its size when its chain ends early."""
        return b"".join(self._read(at, size) for at, size in found.spans)[: found.size]

    def metadata(self) -> list[Span]:
        """Return what is not the content of files: boot sectors, FATs, folders."""
        folders = [
            span for found in self.files().values() if found.is_folder for span in found.spans
        ]
        return [(0, self._data), *self._root_spans(), *folders]

    def _root_spans(self) -> tuple[Span, ...]:
        if self._is_32:
            return self._spans(self._root_cluster)
        return ((self._root, self._root_bytes),)

    def _walk(self, above: str, spans: tuple[Span, ...], depth: int) -> Iterator[tuple[str, Found]]:
        raw = b"".join(self._read(at, size) for at, size in spans)
        long: list[str] = []
        for at in range(0, len(raw) - ENTRY + 1, ENTRY):
            entry = raw[at : at + ENTRY]
            if not entry[0]:
                return
            if entry[0] == _GONE:
                long = []
            elif entry[11] == _LONG:
                long.insert(0, _letters(entry))
            else:
                name = "".join(long).partition("\0")[0] or _short(entry)
                long = []
                if entry[11] & _LABEL or entry[:1] == b".":
                    continue
                path = f"{above}{name.lower()}"
                found = self._found(entry)
                yield path, found
                if found.is_folder and depth < DEPTH_MAX:
                    yield from self._walk(f"{path}/", found.spans, depth + 1)

    def _found(self, entry: bytes) -> Found:
        high, low, size = struct.unpack("<H4xHI", entry[20:32])
        first = low | (high << 16 if self._is_32 else 0)
        return Found(
            spans=self._spans(first) if first else (),
            size=size,
            is_folder=bool(entry[11] & _FOLDER),
        )

    def _spans(self, first: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        known = self._chains.get(first)
        if known is not None:
            return known
        head = first
        begun: set[int] = set()
        while 2 <= first < 2 + self._clusters and first not in begun:
            begun.add(first)
            last = first
            while (following := self._next(last)) == last + 1 and last - 1 <= self._clusters:
                last = following
            at = self._data + (first - 2) * self._cluster
            spans.append((at, (last + 1 - first) * self._cluster))
            first = following
        self._chains[head] = tuple(spans)
        return self._chains[head]

    def _next(self, cluster: int) -> int:
        return self._links[cluster] if cluster < len(self._links) else 0


def _links_of(table: bytes, bits: int) -> array[int]:
    """Return what follows each cluster."""
    if bits == 32:
        return array("I", (link & 0x0FFFFFFF for link in array("I", table)))
    if bits == 16:
        return array("H", table)
    pairs = zip(table[::3], table[1::3], table[2::3], strict=False)
    return array(
        "H",
        (link for a, b, c in pairs for link in (a | (b & 15) << 8, b >> 4 | c << 4)),
    )


def _letters(entry: bytes) -> str:
    return (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "replace")


def _short(entry: bytes) -> str:
    stem, suffix = entry[:8].rstrip(), entry[8:11].rstrip()
    return (stem + (b"." + suffix if suffix else b"")).decode("latin-1")
