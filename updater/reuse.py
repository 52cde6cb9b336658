"""A full payload of which only what this node lacks is fetched: scan, index, ranges.

What is where is found in `held`; which bytes to ask for, in `ranges`. The pipeline then carries
all operations out in order: those held by `Reuse.make`, the others from the download, which was
told what it will be asked for. Where nothing can be left out, nothing here changes anything.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from images.block_index import check_index_group
from images.container import HEADER_SIZE
from images.errors import BlobMismatchError
from images.payload import CLEARS
from updater.errors import UpdaterError
from updater.held import (
    LocalOutput,
    Origin,
    Scan,
    anywhere,
    at_the_same_place,
    groups_for,
)
from updater.plan import OwnFacts
from updater.ranges import Span, coalesced
from updater.sources import images_of

if TYPE_CHECKING:
    from images.payload import IndexGroup, Operation, Part
    from images.reader import Metadata
    from images.source import OldImage
    from updater.plan import Plan
    from updater.shell import PayloadBytes, Shell
    from updater.state import Journal

log = logging.getLogger(__name__)

SIGNATURE_ROOM: Final = 1024  # bytes for the metadata signature: one has 267 or 523


class LocalMismatchError(UpdaterError):
    """What seemed to be the output of an operation is not, or changed since it was looked at.

    Attributes:
        number: of the operation, over all parts.
    """

    code = "local-mismatch"
    hint = "Nothing to do: the operation is fetched instead."

    def __init__(self, number: int) -> None:
        super().__init__(f"the blocks of operation {number} on this node are not what they seemed")
        self.number = number


class DictionaryLostError(UpdaterError):
    """The slot does not hold what was written to it, and more was to be made of it."""

    code = "dictionary-lost"
    hint = "The disk loses or changes data: check its health. The next try starts from scratch."


def may_reuse(plan: Plan) -> bool:
    """Tell whether a payload may be installed without reading all of it: see decision 0003.

    A delta names itself what it takes from the booted slot.
    """
    if isinstance(plan.facts, OwnFacts) or plan.facts.source is not None:
        return False
    return plan.reuse and plan.resumable


def ask_for_metadata(plan: Plan, download: PayloadBytes) -> None:
    """Tell the download that only the metadata is read at first, where that may be all."""
    if may_reuse(plan) and not isinstance(plan.facts, OwnFacts):
        end = min(plan.size, plan.facts.metadata_size + SIGNATURE_ROOM)
        download.expect([(0, end)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What of a payload is on this node.

    Attributes:
        outputs: by the number of the operation over all parts.
        images: the slots of each part.
        block_size: bytes of a block.
        tail: the payload's signatures message, where it was read already.
        cost: bytes of the payload that are fetched from here on.
    """

    outputs: Mapping[int, LocalOutput]
    images: Mapping[str, Mapping[Origin, OldImage]]
    block_size: int
    tail: bytes | None
    cost: int

    def holds(self, number: int) -> bool:
        """Tell whether an operation needs no bytes of the payload."""
        return number in self.outputs

    def in_place(self, number: int) -> bool:
        """Tell whether the passive slot has its output where it belongs."""
        return self.outputs[number].in_place

    def make(self, number: int, name: str, operation: Operation) -> bytes:
        """Return the output of an operation, compared with its SHA-256; safe in threads.

        Raises:
            LocalMismatchError: it is not there.
            DeviceReadError: a slot cannot be read.
        """
        output = self.outputs[number].read(operation, self.images[name], block_size=self.block_size)
        if output is None:
            raise LocalMismatchError(number)
        return output


def find_reuse(
    plan: Plan,
    metadata: Metadata,
    download: PayloadBytes,
    journal: Journal,
    shell: Shell,
    stack: ExitStack,
) -> Reuse | None:
    """Look for what is here already, and tell the download what will be asked of it.

    Args:
        plan: of a full payload; its passive regions are claimed.
        metadata: of the payload.
        download: stands after the metadata; at 0 when it was not asked for it.
        journal: operations that it names are written and not looked for.
        shell: says when to stop; its shelf has what was read before.
        stack: closes the slots that are read.

    Returns:
        None to read the payload from here to its end as any other.

    Raises:
        BlobMismatchError: the block index is not the signed one.
        DownloadError, DownloadStoppedError: as `Download.read_exactly`.
        DeviceReadError: a slot cannot be read.
    """
    indexed = any(part.index is not None for part in metadata.manifest.parts)
    if not (may_reuse(plan) and indexed):
        return None
    if not download.position:  # the metadata was on the shelf, and no mirror was asked yet
        download.expect([(0, HEADER_SIZE)])
        download.read_exactly(HEADER_SIZE)
    if not download.serves_ranges:
        return None
    search = _Search(plan, metadata, download, shell, stack)
    first = 0
    for part in metadata.manifest.parts:
        if part.index is not None:
            search.look_in(part, first, journal.next_operation)
        first += len(part.operations)
    return search.result(journal.next_operation)


class _Search:
    """One search over all parts; adds up what it costs and saves."""

    def __init__(
        self,
        plan: Plan,
        metadata: Metadata,
        download: PayloadBytes,
        shell: Shell,
        stack: ExitStack,
    ) -> None:
        self._plan = plan
        self._header = metadata.header
        self._manifest = metadata.manifest
        self._download = download
        self._shell = shell
        self._stack = stack
        self._outputs: dict[int, LocalOutput] = {}
        self._images: dict[str, Mapping[Origin, OldImage]] = {}
        self._index_bytes = 0
        self._tail: bytes | None = None

    def look_in(self, part: Part, first: int, next_operation: int) -> None:
        """Find what is here of a part whose first operation has the number `first`."""
        self._images[part.name] = images = dict(self._open(part.name))
        scan = Scan(
            part=part,
            first=max(0, next_operation - first),
            images=images,
            block_size=self._manifest.block_size,
            avoided=frozenset(number - first for number in self._plan.avoided),
            look=self._shell.look,
        )
        found = at_the_same_place(scan)
        left = [number for number in scan.open() if number not in found]
        groups = groups_for(part, left)
        cost = sum(group.length for group in groups if self._piece(group) is None)
        if images and cost < sum(part.operations[number].data_length for number in left):
            found |= anywhere(scan, left, self._fetch(groups))
        self._outputs |= {first + number: output for number, output in found.items()}

    def result(self, next_operation: int) -> Reuse | None:
        """Tell the download which ranges are left; return what need not be fetched."""
        steps = list(enumerate(self._manifest.steps()))[next_operation:]
        saved = sum(s.operation.data_length for n, s in steps if n in self._outputs)
        wanted = [
            self._span(step.operation.data_offset or 0, step.operation.data_length)
            for number, step in steps
            if number not in self._outputs and step.operation.kind not in CLEARS
        ]
        spans = coalesced(wanted if self._tail is not None else [*wanted, self._tail_span()])
        self._download.expect(spans)
        cost = sum(end - start for start, end in spans)
        log.info(
            "local blocks found operations=%d of=%d saved_bytes=%d fetched_bytes=%d"
            " index_bytes=%d requests=%d",
            len(self._outputs),
            len(steps),
            saved,
            cost,
            self._index_bytes,
            len(spans),
        )
        return Reuse(
            outputs=self._outputs,
            images=self._images,
            block_size=self._manifest.block_size,
            tail=self._tail,
            cost=cost,
        )

    def _open(self, name: str) -> Iterator[tuple[Origin, OldImage]]:
        """Open the slots of a part; a file of the passive slot is new and holds nothing."""
        regions = {Origin.PASSIVE: self._plan.regions[name]}
        if name in self._plan.sources:
            regions[Origin.BOOTED] = self._plan.sources[name]
        for origin, region in regions.items():
            if origin is Origin.PASSIVE and region.room is not None:
                continue
            opened = self._stack.enter_context(images_of({name: region}))
            yield origin, opened[name]

    def _fetch(self, groups: list[IndexGroup]) -> list[tuple[IndexGroup, bytes]]:
        """Return groups of the block index with their bytes, compared with their hashes.

        The signatures follow the index and are read with it: asked for together with blobs, a
        range would reach over the index again.
        """
        kept = {group.offset: data for group in groups if (data := self._kept(group)) is not None}
        missing = [group for group in groups if group.offset not in kept]
        self._tail = self._tail or self._kept_tail()
        tail = [] if self._tail is not None else [self._tail_span()]
        spans = [self._span(group.offset, group.length) for group in missing]
        self._download.expect(coalesced([*spans, *tail]))
        for group in missing:
            start, end = self._span(group.offset, group.length)
            self._download.seek(start)
            data = self._download.read_exactly(end - start)
            check_index_group(group, data)
            self._index_bytes += len(data)
            kept[group.offset] = data
            self._shell.shelf.add(start, data)
        if self._tail is None:
            start, end = self._tail_span()
            self._download.seek(start)
            self._tail = self._download.read_exactly(end - start)
            self._shell.shelf.add(start, self._tail)
        return [(group, kept[group.offset]) for group in groups]

    def _piece(self, group: IndexGroup) -> bytes | None:
        return self._shell.shelf.piece(self._header.data_offset + group.offset)

    def _kept(self, group: IndexGroup) -> bytes | None:
        """Return a group that an earlier attempt read, compared with its hash."""
        data = self._piece(group)
        if data is not None:
            try:
                check_index_group(group, data)
            except BlobMismatchError as error:
                self._shell.shelf.discard(self._header.data_offset + group.offset, error)
                return None
        return data

    def _kept_tail(self) -> bytes | None:
        """Return the signatures message that an earlier attempt read, compared with its hash."""
        start, _ = self._tail_span()
        data, facts = self._shell.shelf.piece(start), self._plan.facts
        if data is None or isinstance(facts, OwnFacts):
            return None
        if hashlib.sha256(data).hexdigest() != facts.signatures_sha256:
            self._shell.shelf.discard(start, "the signatures message is another one")
            return None
        return data

    def _tail_span(self) -> Span:
        return self._span(self._manifest.data_bytes, self._manifest.signatures_size)

    def _span(self, offset: int, length: int) -> Span:
        start = self._header.data_offset + offset
        return start, start + length
