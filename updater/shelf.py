"""What was read of a payload beside its blobs, kept so that a resumed install need not fetch it.

That is header and manifest with their signature, groups of the block index, and the signatures at
the end: from a tenth of a megabyte up to several, with each attempt. Nothing here is believed:
whoever takes a piece compares it with its signed hash as if a mirror had sent it, and puts away
what differs. A shelf that is lost, damaged or cannot be written costs bytes, never an update.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from updater.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.state import Store

log = logging.getLogger(__name__)

SHELF_MAX_BYTES: Final = 8 * 1024 * 1024  # an image of 1 GiB has 2 MiB of block index at most


class Shelf:
    """Pieces of one payload, by the offset of their first byte. One that keeps nothing is empty.

    Args:
        pieces: what was kept before.
        write: makes all pieces durable; None to keep nothing.
    """

    def __init__(
        self,
        pieces: dict[int, bytes] | None = None,
        write: Callable[[dict[int, bytes]], None] | None = None,
    ) -> None:
        self._pieces = pieces or {}
        self._write = write
        self._changed = False

    def piece(self, start: int) -> bytes | None:
        """Return what is kept from byte `start` of the payload on, None for nothing."""
        return self._pieces.get(start)

    def add(self, start: int, data: bytes) -> None:
        """Keep what was read; beyond `SHELF_MAX_BYTES` it is not. Who takes it compares it."""
        held = sum(len(piece) for piece in self._pieces.values())
        if self._write is not None and held + len(data) <= SHELF_MAX_BYTES:
            self._pieces[start] = data
            self._changed = True

    def discard(self, start: int, why: object) -> None:
        """Put away what is not what was signed."""
        log.warning("kept bytes of the payload are damaged start=%d why=%s", start, why)
        del self._pieces[start]
        self._changed = True

    def close(self) -> None:
        """Make durable what is new, and let go of the memory; what cannot be kept is only said."""
        try:
            if self._changed and self._write is not None:
                self._write(self._pieces)
        except StateError as error:
            log.warning("metadata of the payload is not kept code=%s why=%s", error.code, error)
        self._pieces, self._changed, self._write = {}, False, None


def shelf_of(store: Store, identity: str, *, begun: bool) -> Shelf:
    """Return what the state folder keeps of the payload that a journal knows by `identity`.

    Where the journal is not of this payload (`begun`) nothing is taken from there: what was written
    of another one is given up only once a mirror has shown that it has this one.
    """
    pieces: dict[int, bytes] = {}
    try:
        if begun:
            pieces = store.read_pieces(identity)
    except StateError as error:
        log.warning("kept bytes of the payload are not read code=%s why=%s", error.code, error)
    return Shelf(pieces, lambda kept: store.write_pieces(identity, kept))
