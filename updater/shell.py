"""What an install works on: the payload's bytes, the open slots, who is told how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from updater.download import DownloadStoppedError
from updater.shelf import Shelf

if TYPE_CHECKING:
    from images.source import OldImage
    from partitions.writer import RegionWriter
    from updater.proof import Proof
    from updater.sparing import Sparing
    from updater.state import Journal


class PayloadBytes(Protocol):
    """Where the payload's bytes come from: mirrors (`Download`) or a file (`LocalPayload`)."""

    @property
    def received(self) -> int:
        """The bytes that came over the network so far."""

    @property
    def position(self) -> int:
        """The offset of the next byte."""

    @property
    def serves_ranges(self) -> bool:
        """Whether parts of the payload can be left out."""

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Only these ranges will be read from now on; all, when there are none."""

    def seek(self, position: int) -> None:
        """Go on at `position`."""

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes, or raise what says why not."""

    def interrupt(self) -> None:
        """End a read under way in another thread; every later one raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """What the pipeline may touch besides the regions.

    Attributes:
        keep_journal: makes a journal durable; called from a thread.
        progress: told the payload bytes done so far.
        stop: set to end the install; what is flushed is kept.
        begin: called when the metadata is what was signed, before the first byte is written.
        priced: told how many bytes are to be fetched, when that is known; may refuse.
        shelf: what an earlier attempt read of the payload beside its blobs.
    """

    keep_journal: Callable[[Journal], None]
    progress: Callable[[int], None]
    stop: threading.Event
    begin: Callable[[], None] = lambda: None
    priced: Callable[[int], None] = lambda _: None
    shelf: Shelf = field(default_factory=Shelf)

    def look(self) -> None:
        """Raise `DownloadStoppedError` when the install shall end."""
        if self.stop.is_set():
            raise DownloadStoppedError("the engine was told to stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSlots:
    """What is open of the slots, by part.

    Attributes:
        writers: of the passive slot.
        sources: the old images that deltas read.
        proof: reads back behind the writers; None to leave that to whoever comes after.
        sparing: looks for what need not be written; None to write all.
    """

    writers: Mapping[str, RegionWriter]
    sources: Mapping[str, OldImage] = field(default_factory=dict)
    proof: Proof | None = None
    sparing: Sparing | None = None
