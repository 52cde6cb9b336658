"""Which blocks of a new image stand in the old one, wherever they moved. Needs numpy.

A block is looked up by a hash that is quick rather than strong: what it finds counts only after
its bytes were compared. No file is opened here.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from images.lanes import in_order

BLOCK_SIZE: Final = 4096  # bytes; what all tools of this format write
CANDIDATES_MAX: Final = 8  # places of one block in the old image that are tried
ZEROS_MIN: Final = 32  # blocks; a shorter run of zeros within a copy is copied along with it
_WORDS: Final = BLOCK_SIZE // 8
_COMPARED: Final = 16 * 1024  # blocks whose hashes are compared at once

_Hashes = npt.NDArray[np.uint64]
IsSame = Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTable:
    """What is known of an image without looking at it again.

    Attributes:
        hashes: of each block.
        zero: for each block whether it holds zeros alone; exact.
        sha256: of the image.
    """

    hashes: _Hashes
    zero: npt.NDArray[np.bool_]
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """A run of blocks of the new image; a copy stands in the old one from `source` on."""

    start: int
    count: int
    source: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Each block of the new image once, every list in the order of the image."""

    copies: list[Run]
    zeros: list[Run]
    rest: list[Run]


def tabulate(chunks: Iterable[bytes], *, workers: int) -> BlockTable:
    """Return the table of an image that comes in chunks of whole blocks."""
    digest = hashlib.sha256()
    hashes: list[_Hashes] = []
    zero: list[npt.NDArray[np.bool_]] = []
    for chunk, (of_blocks, are_zero) in in_order(_hash_blocks, chunks, workers=workers):
        digest.update(chunk)
        hashes.append(of_blocks)
        zero.append(are_zero)
    return BlockTable(
        hashes=np.concatenate(hashes), zero=np.concatenate(zero), sha256=digest.digest()
    )


def match(
    old: BlockTable, new: BlockTable, is_same: IsSame, *, copies_max: int, zeros_max: int
) -> Matched:
    """Return where each block of the new image comes from.

    Runs of zeros are zeros, but short ones within a copy. A copy goes on as long as it can; of
    several places the one with the longest run is taken, else the one that carries the copy
    before on, or the block's own place.

    Args:
        old: the image that is there.
        new: the image to be made.
        is_same: given a block of the old image, one of the new and how many: how many of them, from
            the first on, hold the same bytes.
        copies_max: so many copies at most; of more the shortest are left to the rest.
        zeros_max: likewise for runs of zeros.
    """
    copies: list[Run] = []
    places = _Places(old, new)
    at, end, shift = 0, len(new.hashes), 0
    while at < end:
        if not places.is_known[at]:
            at = places.next_known(at)
            continue
        source, count = places.longest_run(at, shift)
        count = is_same(source, at, count)
        if count:
            copies.append(Run(at, count, source))
            shift = source - at
        at += max(count, 1)  # of a hash that lied the block is left to the rest
    copies = _longest(copies, copies_max)
    made = np.zeros(end, np.bool_)
    for copy in copies:
        made[copy.start : copy.start + copy.count] = True
    zeros = _longest(list(_runs(new.zero & ~made)), zeros_max)
    for run in zeros:
        made[run.start : run.start + run.count] = True
    return Matched(copies=copies, zeros=zeros, rest=list(_runs(~made)))


class _Places:
    """Where blocks of the new image stand in the old one, as far as hashes tell."""

    def __init__(self, old: BlockTable, new: BlockTable) -> None:
        self._old, self._new = old.hashes, new.hashes
        self._zero = new.zero
        self._order = np.argsort(old.hashes, kind="stable")
        ordered = old.hashes[self._order]
        self._low = np.searchsorted(ordered, new.hashes, "left")
        self._high = np.searchsorted(ordered, new.hashes, "right")
        known = (self._high > self._low) & ~new.zero
        self.is_known: list[bool] = known.tolist()
        self._known_at = np.flatnonzero(known)
        self._long_zeros = [run.start for run in _runs(new.zero) if run.count >= ZEROS_MIN]

    def next_known(self, at: int) -> int:
        """Return the next block after `at` that a place is known of, or the end."""
        place = int(np.searchsorted(self._known_at, at, "right"))
        return int(self._known_at[place]) if place < len(self._known_at) else len(self._new)

    def longest_run(self, at: int, shift: int) -> tuple[int, int]:
        """Return the block of the old image whose run is the longest, and its blocks.

        Of equal ones the one `shift` blocks on goes first, then the own place, then the others.
        """
        best, longest = -1, 0
        for source in self._candidates(at, shift):
            count = self._run_length(source, at)
            if count > longest:
                best, longest = source, count
        return best, longest

    def _candidates(self, at: int, shift: int) -> Iterator[int]:
        for source in (at + shift, at):
            if 0 <= source < len(self._old) and self._old[source] == self._new[at]:
                yield source
        low = int(self._low[at])
        yield from self._order[low : min(int(self._high[at]), low + CANDIDATES_MAX)].tolist()

    def _run_length(self, source: int, at: int) -> int:
        """Return how many blocks are equal: up to a long run of zeros, the last one not zeros."""
        place = bisect_right(self._long_zeros, at)
        end = self._long_zeros[place] if place < len(self._long_zeros) else len(self._new)
        most = min(end - at, len(self._old) - source)
        count, step = 0, 64
        while count < most:
            step = min(step, most - count)
            old = self._old[source + count : source + count + step]
            differ = np.flatnonzero(old != self._new[at + count : at + count + step])
            if len(differ):
                count += int(differ[0])
                break
            count, step = count + step, _COMPARED
        while self._zero[at + count - 1]:
            count -= 1
        return count


def _hash_blocks(chunk: bytes) -> tuple[_Hashes, npt.NDArray[np.bool_]]:
    words = np.frombuffer(chunk, "<u8").reshape(-1, _WORDS)
    mixed = words ^ (words >> np.uint64(29))  # so that the highest bits tell apart as well
    return mixed @ _FACTORS, words.max(axis=1) == 0


def _factors() -> _Hashes:
    """Return an odd factor for each word of a block: the same in every run."""
    digest = hashlib.shake_256(b"bascule block hash").digest(8 * _WORDS)
    return np.frombuffer(digest, "<u8") | np.uint64(1)


_FACTORS: Final = _factors()


def _longest(runs: list[Run], most: int) -> list[Run]:
    """Return the `most` longest runs, in the order of the image."""
    by_length = sorted(runs, key=lambda run: (-run.count, run.start))
    return sorted(by_length[:most], key=lambda run: run.start)


def _runs(mask: npt.NDArray[np.bool_]) -> Iterator[Run]:
    """Yield the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield Run(start, end - start)
