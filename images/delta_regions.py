"""Which pieces of the old image look like some new bytes: by content alone. Needs numpy.

*Anchors* are the places of an image whose next four bytes hash to one value in 2^`rarity`: the same
content has the same anchors wherever it stands. The key of an anchor is a hash of sixteen bytes.
Each anchor of the new bytes votes for the pieces of the old image that hold its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from images.delta_blocks import BLOCK_SIZE
from images.lanes import in_order
from images.payload import Extent

PIECE_SIZE: Final = 32 * 1024  # bytes of the old image that are taken or left
RARITY_MIN: Final = 6  # one place in 64 is an anchor
ANCHORS_MAX: Final = 24 * 1024 * 1024  # of a larger image fewer places are anchors: 192 MiB
COMMON: Final = 8  # places; a key that stands at more says nothing

_VOTE: Final = 840  # of one anchor, shared by its places: 1 to 8 all divide it
_NEAR_VOTE: Final = 630  # of a block for its own place, where metadata stands that no anchor finds
_ENOUGH: Final = 588  # votes; a piece with fewer is not taken
_ANCHOR_SIZE: Final = 16  # bytes
_PIECE_BITS: Final = 24  # of an entry; the key has the 40 others
_PIECES_MAX: Final = 1 << _PIECE_BITS  # 512 GiB
_KEYS_END: Final = (1 << 64 - _PIECE_BITS) - 1  # the highest key, left out: its end has no number

_Entries = npt.NDArray[np.uint64]
_SAMPLE: Final = np.uint32(2654435761)
_MIX: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of the old image and the byte they start at, the start of a piece."""

    offset: int
    data: bytes


class Ranked:
    """Pieces of the old image, those that look most like some new bytes first.

    Attributes:
        pieces: their numbers; above those of the image itself stand those of what it unpacks to.
    """

    def __init__(self, pieces: npt.NDArray[np.int64]) -> None:
        self.pieces = pieces

    def best(self, size: int, *, pieces_max: int, image_size: int) -> tuple[Extent, ...]:
        """Return the best pieces of an image of `image_size` bytes, as blocks in order.

        They have at most `size` bytes and are at most `pieces_max`.
        """
        extents: list[Extent] = []
        inside = self.pieces[self.pieces * PIECE_SIZE < image_size]
        for piece in np.sort(inside[: min(size // PIECE_SIZE, pieces_max)]).tolist():
            start = piece * PIECE_SIZE // BLOCK_SIZE
            end = min(piece * PIECE_SIZE + PIECE_SIZE, image_size) // BLOCK_SIZE
            if extents and extents[-1].start_block + extents[-1].num_blocks == start:
                start = extents.pop().start_block
            extents.append(Extent(start, end - start))
        return tuple(extents)


class SourceIndex:
    """The anchors of an old image, in 8 bytes each."""

    def __init__(self, entries: _Entries, *, size: int, rarity: int) -> None:
        self._entries = entries
        self._size = size
        self._rarity = rarity

    @classmethod
    def of(
        cls,
        chunks: Iterable[Chunk],
        *,
        size: int,
        workers: int,
    ) -> SourceIndex:
        """Return the index of an image of `size` bytes that comes in chunks.

        An anchor whose bytes reach into the next chunk is left out.
        """
        rarity = RARITY_MIN
        while size >> rarity > ANCHORS_MAX:
            rarity += 1

        def entries_of(chunk: Chunk) -> _Entries:
            positions, keys = _anchors(chunk.data, rarity)
            pieces = (positions + chunk.offset) // PIECE_SIZE
            return np.unique(keys << np.uint64(_PIECE_BITS) | pieces.astype(np.uint64))

        found: list[_Entries] = [np.empty(0, np.uint64)]
        found += [entries for _, entries in in_order(entries_of, chunks, workers=workers)]
        joined = np.concatenate(found)
        joined.sort()
        return cls(joined, size=size, rarity=rarity)

    def ranked(self, target: bytes, places: Sequence[Extent]) -> Ranked:
        """Return the pieces of the old image that look like `target`, the closest first.

        Args:
            target: new bytes.
            places: the blocks of the new image that they are.
        """
        own = [
            block * BLOCK_SIZE // PIECE_SIZE
            for extent in places
            for block in range(extent.start_block, extent.start_block + extent.num_blocks)
        ]
        scores = self._scores(target, np.unique(np.asarray(own, np.int64)))
        order = np.argsort(-scores, kind="stable")
        return Ranked(order[scores[order] >= _ENOUGH])

    def _scores(self, target: bytes, own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the votes for each piece; its neighbours lend it a quarter of theirs."""
        count = -(-self._size // PIECE_SIZE)
        votes = np.zeros(count, np.int64)
        keys = np.unique(_anchors(target, self._rarity)[1])
        keys = keys[keys != _KEYS_END]
        low = np.searchsorted(self._entries, keys << np.uint64(_PIECE_BITS))
        high = np.searchsorted(self._entries, (keys + np.uint64(1)) << np.uint64(_PIECE_BITS))
        telling = (high > low) & (high - low <= COMMON)
        low, high = low[telling], high[telling]
        for step in range(COMMON):
            there = low + step < high
            pieces = self._entries[(low + step)[there]] & np.uint64(_PIECES_MAX - 1)
            np.add.at(votes, pieces.astype(np.int64), _VOTE // (high - low)[there])
        votes[own[own < count]] += _NEAR_VOTE
        scores = votes.copy()
        scores[1:] += votes[:-1] // 4
        scores[:-1] += votes[1:] // 4
        return scores


def _anchors(data: bytes, rarity: int) -> tuple[npt.NDArray[np.int64], _Entries]:
    """Return where in `data` anchors are, and a key of 40 bits for each."""
    found = []
    for shift in range(4):
        words = np.frombuffer(data, "<u4", max(0, len(data) - shift) // 4, shift)
        sampled = (words * _SAMPLE) >> np.uint32(32 - rarity)
        found.append(np.flatnonzero(sampled == 1) * 4 + shift)
    positions = np.concatenate(found)
    positions = positions[positions <= len(data) - _ANCHOR_SIZE]
    if not len(positions):
        return positions, np.empty(0, np.uint64)
    # A word of eight bytes at each byte of the data: overlapping, and nothing is copied.
    words8 = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))
    keys = words8[positions] * _MIX[0] ^ words8[positions + 8] * _MIX[1]
    keys = (keys ^ keys >> np.uint64(31)) * _MIX[0]
    return positions, keys >> np.uint64(_PIECE_BITS)
