"""How payload bytes flow into a slot: stages that overlap, in bounded memory.

    download (a thread) -> decompress and check (workers) -> write in order (the caller's
    thread) -> flush and note in the journal (a thread)

No temporary file, at most `BUDGET_BYTES` of operations in flight. The journal names an
operation only after its data is flushed. What may be written is decided before: `install`.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import msgspec

from images.block_index import check_index_group
from images.operations import Bytes, check_blob, decode, memory_bytes, writes, zeros
from images.payload import Operation, Part, Step
from images.reader import Metadata, PayloadDigests
from images.recent import Output, RecentOutputs, dictionary_bytes
from updater.allocator import reuse_large_buffers
from updater.budget import BudgetError
from updater.download import DownloadError, DownloadStoppedError
from updater.errors import RefusedError
from updater.held import LocalOutput, Origin
from updater.plan import OwnFacts
from updater.reuse import DictionaryLostError, LocalMismatchError
from updater.sources import images_of

if TYPE_CHECKING:
    from images.source import OldImage
    from partitions.slots import Region
    from partitions.writer import RegionWriter
    from updater.plan import Plan
    from updater.reuse import Reuse
    from updater.state import Journal

# Compressed and decompressed bytes in flight. One operation of any legal size always passes.
BUDGET_BYTES: Final = 12 * 1024 * 1024
POLL_SECS: Final = 0.25  # how soon a stop is noticed while nothing arrives


class PayloadDigestError(RefusedError):
    """The payload as a whole is not the one that was signed, though each part looked right."""

    code = "payload-digest"
    hint = "A mirror holds another file than was published; the slot was not armed."


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
    """

    keep_journal: Callable[[Journal], None]
    progress: Callable[[int], None]
    stop: threading.Event
    begin: Callable[[], None] = lambda: None
    priced: Callable[[int], None] = lambda _: None

    def look(self) -> None:
        """Raise `DownloadStoppedError` when the install shall end."""
        if self.stop.is_set():
            raise DownloadStoppedError("the engine was told to stop")


@dataclass(frozen=True, slots=True)
class _Write:
    """One operation under way: its number over all parts, and what gives its output.

    A worker has made it meanwhile. Where operations read what earlier ones wrote, it is made
    only when it is asked for: once all before it are written. One that is in place is not written.
    """

    number: int
    part: str
    operation: Operation
    cost: int
    output: Callable[[], bytes | memoryview | None]
    in_place: bool = False


_Item: TypeAlias = _Write | BaseException | None


class _Budget:
    """Bytes in flight: `take` waits until there is room, one taker always passes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, amount: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._taken or self._taken + amount <= self._limit
            )
            if self._closed:
                raise DownloadStoppedError("the install ended")
            self._taken += amount

    def give(self, amount: int) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Pipeline:
    """One pass over the operations that the journal does not name as flushed."""

    def __init__(
        self,
        plan: Plan,
        metadata: Metadata,
        download: PayloadBytes,
        journal: Journal,
        shell: Shell,
        writers: Mapping[str, RegionWriter],
        sources: Mapping[str, OldImage] = MappingProxyType({}),
        reuse: Reuse | None = None,
    ) -> None:
        self._plan = plan
        self._metadata = metadata
        self._manifest = metadata.manifest
        self._download = download
        self._journal = journal
        self._shell = shell
        self._writers = writers
        self._sources = sources
        self._reuse = reuse
        self._done = metadata.header.data_offset
        self._recent = {
            part.name: RecentOutputs(part, partial(self._stored, part))
            for part in self._manifest.parts
        }
        self._firsts: dict[str, int] = {}  # the number of each part's first operation
        for number, step in enumerate(self._manifest.steps()):
            if step.part is not None:
                self._firsts.setdefault(step.part.name, number)
        lengths = (step.operation.data_length for step in self._manifest.steps())
        self._blob_bytes = array("Q", accumulate(lengths, initial=0))
        self._budget = _Budget(BUDGET_BYTES)
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._flusher = _Flusher(plan.checkpoint_bytes, self._flush)

    def run(self) -> None:
        """Write all that the journal does not name, flush it, and note it."""
        reuse_large_buffers()
        workers = self._plan.workers or os.cpu_count() or 1
        feeder = threading.Thread(target=self._feed, name="download")
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as self._pool:
            feeder.start()
            self._flusher.start()
            try:
                self._drain()
                self._flusher.finish()
            except (DownloadStoppedError, DownloadError, BudgetError, LocalMismatchError):
                self._flusher.finish()  # no polite stop, lost network or spent budget costs a byte
                raise
            finally:
                self._budget.close()
                self._flusher.close()
                self._download.interrupt()
                feeder.join()

    def _feed(self) -> None:
        """Read blobs in file order and hand them to the workers; runs in the download thread."""
        item: _Item = None
        try:
            whole = self._journal.next_operation == 0 and self._reuse is None
            digests = PayloadDigests() if whole else None
            if digests:
                digests.metadata(self._metadata)
            for number, step in enumerate(self._manifest.steps()):
                if number >= self._journal.next_operation:
                    self._feed_one(number, step, digests)
            if digests:
                self._read_indexes(digests)
            self._check_tail(digests)
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread, raised there
            item = error
        self._queue.put(item)

    def _feed_one(self, number: int, step: Step, digests: PayloadDigests | None) -> None:
        operation, part = step.operation, step.part
        if part is not None and self._reuse is not None and self._reuse.holds(number):
            self._feed_held(number, part, operation)
            return
        dictionary = 0 if part is None else dictionary_bytes(part, operation)
        cost = memory_bytes(operation, dictionary=dictionary)
        self._budget.take(cost)
        blob = self._read_blob(operation)
        if digests:
            digests.blob(blob)
        if part is None:  # a procedure that we do not know: its bytes are only read past
            check_blob(operation, blob)
            self._budget.give(cost)
            return
        make = partial(
            self._decode,
            operation,
            blob,
            part.name,
            self._recent[part.name].dictionary(operation),
        )
        output: Callable[[], Bytes | None] = make
        if not self._manifest.is_in_place(part):
            made = self._pool.submit(make)
            self._recent[part.name].add(number - self._firsts[part.name], made)
            output = made.result
        self._queue.put(_Write(number, part.name, operation, cost, output))

    def _feed_held(self, number: int, part: Part, operation: Operation) -> None:
        """Hand on an operation whose output is on this node."""
        if self._reuse is None:  # a broken invariant: the caller looked
            raise AssertionError("an operation is held where nothing is reused")
        if self._reuse.in_place(number):
            self._queue.put(_Write(number, part.name, operation, 0, lambda: None, in_place=True))
            return
        cost = operation.output_limit
        self._budget.take(cost)
        made: Output = self._pool.submit(self._reuse.make, number, part.name, operation)
        self._recent[part.name].add(number - self._firsts[part.name], made)
        self._queue.put(_Write(number, part.name, operation, cost, made.result))

    def _decode(
        self, operation: Operation, blob: bytes, name: str, dictionary: Callable[[], bytes]
    ) -> Bytes | None:
        return decode(
            operation,
            blob,
            block_size=self._manifest.block_size,
            source=self._sources.get(name),
            dictionary=dictionary(),
        )

    def _stored(self, part: Part, number: int) -> bytes:
        """Return what an operation wrote before a restart, or what was there all along.

        Raises:
            DictionaryLostError: the slot holds something else.
        """
        operation = part.operations[number]
        region = self._writers[part.name].region
        with images_of({part.name: region}) as images:
            output = LocalOutput(None, Origin.PASSIVE).read(
                operation,
                {Origin.PASSIVE: images[part.name]},
                block_size=self._manifest.block_size,
            )
        if output is None:
            raise DictionaryLostError(
                f"part {part.name} does not hold what operation {number} made"
            )
        return output

    def _read_indexes(self, digests: PayloadDigests) -> None:
        """Read past the block indexes, which are part of what the whole file's hash covers."""
        for group in self._manifest.index_groups():
            self._download.seek(self._metadata.header.data_offset + group.offset)
            data = self._download.read_exactly(group.length)
            check_index_group(group, data)
            digests.blob(data)

    def _read_blob(self, operation: Operation) -> bytes:
        if not operation.data_length:
            return b""
        self._download.seek(self._metadata.header.data_offset + (operation.data_offset or 0))
        return self._download.read_exactly(operation.data_length)

    def _check_tail(self, digests: PayloadDigests | None) -> None:
        """Check the last message: by its signed hash, and by the signature when unbroken."""
        if not digests and not self._plan.resumable:  # a broken invariant: see `_journal`
            raise AssertionError("a payload that proves itself at its end was begun in the middle")
        tail = b""
        if self._reuse is not None and self._reuse.tail is not None:
            tail = self._reuse.tail
        elif self._manifest.signatures_offset is not None:
            start = self._metadata.header.data_offset + self._manifest.signatures_offset
            self._download.seek(start)
            tail = self._download.read_exactly(self._manifest.signatures_size)
        if digests:
            actual = digests.finish(tail, self._plan.keys).hex()
            if self._plan.sha256 and actual != self._plan.sha256:
                raise PayloadDigestError(
                    f"the payload has sha256 {actual}, expected is {self._plan.sha256}"
                )
        facts = self._plan.facts
        if isinstance(facts, OwnFacts):
            return  # its signature was just verified, or covers all that a resumed install reads
        if hashlib.sha256(tail).hexdigest() != facts.signatures_sha256:
            raise PayloadDigestError("the payload's signatures message is not the signed one")

    def _drain(self) -> None:
        """Write outputs in order, in the caller's thread."""
        while True:
            self._shell.look()
            self._flusher.check()
            try:
                item = self._queue.get(timeout=POLL_SECS)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            self._write(item)

    def _write(self, step: _Write) -> None:
        writer = self._writers[step.part]
        block_size = self._manifest.block_size
        output = step.output()
        if step.in_place:
            pass  # flushed with the rest all the same: whoever wrote it may not have
        elif output is None:
            for offset, length in zeros(step.operation, block_size=block_size):
                writer.zero_at(offset, length)
        else:
            for offset, data in writes(step.operation, output, block_size=block_size):
                writer.write_at(offset, _within(writer.region, offset, data))
        self._budget.give(step.cost)
        self._flusher.mark(step.number + 1, step.operation.data_length)
        if step.operation.data_length:
            end = (step.operation.data_offset or 0) + step.operation.data_length
            self._done = self._metadata.header.data_offset + end
        self._shell.progress(self._done)

    def _flush(self, next_operation: int) -> None:
        for writer in self._writers.values():
            writer.sync()
        downloaded = self._journal.downloaded + self._download.received
        self._shell.keep_journal(
            msgspec.structs.replace(
                self._journal,
                next_operation=next_operation,
                spared=self._blob_bytes[next_operation],
                downloaded=downloaded,
            )
        )


def _within(region: Region, offset: int, data: memoryview) -> memoryview:
    """Return what of the last block belongs to the image: a file ends where its image ends."""
    return data if region.room is None else data[: max(0, region.size - offset)]


class _Flusher:
    """Flushes behind the writer, so that the journal names only what is durable.

    The writer is held back when more than two checkpoints' worth is not flushed, so that a
    kill costs a bounded re-read.
    """

    def __init__(self, checkpoint_bytes: int, flush: Callable[[int], None]) -> None:
        self._checkpoint_bytes = checkpoint_bytes
        self._flush = flush
        self._changed = threading.Condition()
        self._written = 0  # operations written, as the next one's number
        self._pending = 0  # blob bytes of them not flushed
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="flush")

    def start(self) -> None:
        """Begin to flush; `close` ends it."""
        self._thread.start()

    def mark(self, next_operation: int, blob_bytes: int) -> None:
        """Note what is written; waits while too much of it is not flushed."""
        with self._changed:
            self._written = next_operation
            self._pending += blob_bytes
            if self._pending >= self._checkpoint_bytes:
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error or self._pending < 2 * self._checkpoint_bytes
            )
        self.check()

    def check(self) -> None:
        """Raise what flushing raised."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Flush all that is marked."""
        self.close()
        self.check()
        self._flush(self._written) if self._written else None

    def close(self) -> None:
        """End the thread after the flush under way."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ending or self._pending >= self._checkpoint_bytes
                )
                if self._ending:
                    return
                written, pending = self._written, self._pending
            try:
                self._flush(written)
            except BaseException as error:  # noqa: BLE001  # carried to the writer's thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._pending -= pending
                self._changed.notify_all()
