"""How payload bytes flow into a slot: stages that overlap, in bounded memory.

    download (a thread) -> decompress, compare with what is there (workers) -> write, begun in order
    but for slow ones, which others pass (the caller's thread) -> flush, read back and compare, note
    in the journal (a thread)

No temporary file; what operations make lies in one ring of memory (`outputs`); blobs, what
unpacking takes and outputs too large for the ring are limited (`in_flight`). The journal names an
operation only after its data is flushed and, where a signed hash of it says how, read back from the
device: `proof`. What may be written is decided before: `install`. What it works on: `shell`.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from images.block_index import check_index_group
from images.operations import Bytes, check_blob, decode, room_bytes, writes, zeros
from images.payload import CLEARS, READS_TARGET, Operation, Part, Step
from images.reader import Metadata, PayloadDigests
from updater.allocator import reuse_large_buffers
from updater.budget import BudgetError
from updater.download import DownloadError, DownloadStoppedError
from updater.errors import RefusedError
from updater.flushing import Flusher
from updater.held import LocalOutput, Origin
from updater.in_flight import LIMIT_BYTES, InFlight, apart_bytes, cost_of
from updater.outputs import LATE, Layout, Outputs, first_numbers
from updater.plan import OwnFacts
from updater.reuse import DictionaryLostError, LocalMismatchError
from updater.sources import images_of
from updater.sparing import Work
from updater.written import Written

if TYPE_CHECKING:
    from partitions.slots import Region
    from partitions.writer import RegionWriter
    from updater.plan import Plan
    from updater.reuse import Reuse
    from updater.shell import OpenSlots, PayloadBytes, Shell
    from updater.state import Journal

# So many bytes of a slot count like one of the payload: what is copied or cleared is read back
# behind the writer too, not all of it in the end.
MADE_FOR_FETCHED: Final = 8
CHECKPOINTS_AHEAD: Final = 2  # so much of those that pass a late operation is written before it
WRITES_AT_ONCE: Final = 6  # of operations or shares of them: with one a device waits for us
POLL_SECS: Final = 0.25  # how soon a stop is noticed while nothing arrives


class PayloadDigestError(RefusedError):
    """The payload as a whole is not the one that was signed, though each part looked right."""

    code = "payload-digest"
    hint = "A mirror holds another file than was published; the slot was not armed."


@dataclass(frozen=True, slots=True)
class _Write:
    """One operation under way: its number over all parts, and what gives its work.

    A worker has made its output meanwhile. Where operations read what earlier ones wrote, it is
    made only when it is asked for: once all before it are written.
    """

    number: int
    part: str
    operation: Operation
    cost: int
    work: Callable[[], Work]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Fed:
    """The download ended: all is read, or this is why not."""

    error: BaseException | None


_Item: TypeAlias = _Write | _Fed | BaseException  # the latter of a late operation


class Pipeline:
    """One pass over the operations that the journal does not name as flushed."""

    def __init__(
        self,
        plan: Plan,
        metadata: Metadata,
        download: PayloadBytes,
        journal: Journal,
        shell: Shell,
        slots: OpenSlots,
        reuse: Reuse | None = None,
    ) -> None:
        self._plan = plan
        self._metadata = metadata
        self._manifest = metadata.manifest
        self._download = download
        self._journal = journal
        self._shell = shell
        self._writers = slots.writers
        self._sources = slots.sources
        self._reuse = reuse
        self._proof = slots.proof
        self._sparing = slots.sparing
        self._written_bytes = self._kept_bytes = 0
        self._steps = list(self._manifest.steps())
        self._flushed = self._handed_on = journal.next_operation
        self._written = Written(journal.next_operation)
        self._ahead: dict[int, int] = {}  # what those cost that are written, not all before them
        self._done = metadata.header.data_offset
        self._firsts = first_numbers(self._steps)
        self._layout = Layout.of(
            self._steps,
            begin=journal.next_operation,
            block_size=self._manifest.block_size,
            made=lambda number: reuse is None or not reuse.holds(number),
        )
        self._outputs = Outputs(self._layout, journal.next_operation)
        self._made: dict[int, Future[Bytes | None]] = {}  # those that dictionaries may need
        lengths = (step.operation.data_length for step in self._steps)
        self._blob_bytes = array("Q", accumulate(lengths, initial=0))
        costs = (_cost(step.operation, self._made_bytes(step.operation)) for step in self._steps)
        self._costs = array("Q", accumulate(costs, initial=0))
        self._in_flight = InFlight()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._writing: deque[tuple[_Write, Work, list[Future[None]]]] = deque()
        self._flusher = Flusher(plan.checkpoint_bytes, self._flush)

    def run(self) -> None:
        """Write all that the journal does not name, flush it, and note it."""
        reuse_large_buffers()
        workers = self._plan.workers or os.cpu_count() or 1
        feeder = threading.Thread(target=self._feed, name="download")
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="decode") as self._pool,
            ThreadPoolExecutor(WRITES_AT_ONCE, thread_name_prefix="write") as self._pens,
        ):
            feeder.start()
            self._flusher.start()
            try:
                self._drain()
                self._flusher.finish()
                self._require_all()
            except (DownloadStoppedError, DownloadError, BudgetError, LocalMismatchError):
                self._retire_all()
                self._flusher.finish()  # no polite stop, lost network or spent budget costs a byte
                raise
            finally:
                self._in_flight.close()
                self._outputs.close()
                self._written.close()
                self._flusher.close()
                self._download.interrupt()
                feeder.join()

    def _require_all(self) -> None:
        """Raise when an operation was forgotten: what is not read back again is armed."""
        last = max((n for n, step in enumerate(self._steps) if step.part is not None), default=-1)
        if self._flushed <= last:  # a broken invariant: see `Written`
            raise AssertionError(f"operations from {self._flushed} on are not written")

    def _feed(self) -> None:
        """Read blobs in file order and hand them to the workers; runs in the download thread."""
        item: BaseException | None = None
        try:
            digests = PayloadDigests() if self._is_read_whole() else None
            if digests:
                digests.metadata(self._metadata)
            for number in range(self._outputs.needed, self._journal.next_operation):
                self._feed_stored(number, self._steps[number])
            for number in range(self._journal.next_operation, len(self._steps)):
                self._feed_one(number, self._steps[number], digests)
            if digests:
                self._read_indexes(digests)
            self._check_tail(digests)
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread, raised there
            item = error
        self._queue.put(_Fed(item))

    def _is_read_whole(self) -> bool:
        """Tell whether the file is hashed as a whole, for its signature.

        Where no release vouches for its parts, and in format 1, which signs nothing but the whole.
        """
        unbroken = self._journal.next_operation == 0 and self._reuse is None
        return unbroken and (isinstance(self._plan.facts, OwnFacts) or self._manifest.major == 1)

    def _feed_one(self, number: int, step: Step, digests: PayloadDigests | None) -> None:
        self._shell.look()
        operation, part = step.operation, step.part
        if part is not None and self._reuse is not None and self._reuse.holds(number):
            self._feed_held(number, part, operation, self._reuse)
            return
        self._written.wait(lambda first: self._is_near(first, number))
        self._in_flight.take(operation, operation.data_length)
        blob = self._read_blob(operation)
        cost = cost_of(operation, blob, block_size=self._manifest.block_size)
        more = cost - operation.data_length
        self._in_flight.take(operation, more, has=operation.data_length)
        if cost > LIMIT_BYTES:  # it is alone, then
            self._outputs.give_back(self._handed_on)
        if digests:
            digests.blob(blob)
        if part is None:  # a procedure that we do not know: its bytes are only read past
            check_blob(operation, blob)
            self._in_flight.give(operation, cost)
            return
        make = self._decoding(number, part, operation, blob)
        if self._manifest.is_in_place(part):
            alone = partial(self._work, number, part, operation, make)
            self._hand_on(_Write(number, part.name, operation, cost, alone, alone=True))
            return
        kept = apart_bytes(operation, block_size=self._manifest.block_size)
        make = self._giving(make, operation, cost - kept)
        if operation.kind in LATE:
            self._written.expect_late(number)
            self._handed_on = number + 1
            self._pool.submit(self._make_late, number, part, operation, kept, make)
            return
        work = self._promise(number, part, operation, make).result
        self._hand_on(_Write(number, part.name, operation, kept, work))

    def _hand_on(self, step: _Write) -> None:
        self._queue.put(step)
        self._handed_on = step.number + 1

    def _is_near(self, first: int, number: int) -> bool:
        """Tell whether a kill costs little while a late operation is missing before another one."""
        ahead = self._costs[number] - self._costs[first]
        return ahead <= CHECKPOINTS_AHEAD * self._plan.checkpoint_bytes

    def _made_bytes(self, operation: Operation) -> int:
        blocks = sum(extent.num_blocks for extent in operation.dst_extents)
        return blocks * self._manifest.block_size

    def _giving(
        self, make: Callable[[], Bytes | None], operation: Operation, cost: int
    ) -> Callable[[], Bytes | None]:
        """Return what makes an output and gives its cost back at once, but for the output's own."""

        def made() -> Bytes | None:
            try:
                return make()
            finally:
                self._in_flight.give(operation, cost)

        return made

    def _decoding(
        self, number: int, part: Part, operation: Operation, blob: bytes
    ) -> Callable[[], Bytes | None]:
        """Return what makes the output of an operation; waits until there is room for it."""
        first = self._firsts[part.name]
        dictionary: Bytes = b""
        waits: list[Future[Bytes | None]] = []
        if operation.kind in READS_TARGET:
            waits = [self._made[first + used] for used in operation.dictionary]
            dictionary = self._outputs.dictionary(
                first + operation.dictionary_first, operation.dictionary_count
            )
        room = self._room(number, operation)

        def make() -> Bytes | None:
            for wait in waits:
                wait.result()
            return decode(
                operation,
                blob,
                block_size=self._manifest.block_size,
                verify_output=False if self._proves(part.name) else None,
                source=self._sources.get(part.name),
                dictionary=dictionary,
                room=room,
            )

        return make

    def _feed_held(self, number: int, part: Part, operation: Operation, reuse: Reuse) -> None:
        """Hand on an operation whose output is on this node."""

        def make() -> Bytes:
            data = reuse.make(number, part.name, operation)
            room[:] = data
            return room

        in_place = reuse.in_place(number)
        if in_place and number not in self._layout.referred:
            # It is flushed and proven with the rest all the same: whoever wrote it may not have.
            size = room_bytes(operation, block_size=self._manifest.block_size)
            self._hand_on(_Write(number, part.name, operation, 0, lambda: Work([], [], size)))
            return
        cost = operation.output_limit
        self._in_flight.take(operation, cost)
        room = self._room(number, operation)
        work = self._promise(number, part, operation, make).result
        self._hand_on(_Write(number, part.name, operation, cost, work))

    def _feed_stored(self, number: int, step: Step) -> None:
        """Read what an operation wrote before a restart, for the dictionaries of those after it."""
        if step.part is None or step.operation.kind in CLEARS:
            return
        part, room = step.part, self._room(number, step.operation)

        def read() -> Bytes:
            room[:] = self._stored(part, number - self._firsts[part.name])
            return room

        self._keep(number, self._pool.submit(read))

    def _room(self, number: int, operation: Operation) -> memoryview:
        return self._outputs.room(number, operation, block_size=self._manifest.block_size)

    def _promise(
        self, number: int, part: Part, operation: Operation, make: Callable[[], Bytes | None]
    ) -> Future[Work]:
        """Let a worker make an output, and see what of it is to be written.

        Who needs the output for a dictionary need not wait for the latter.
        """
        made: Future[Bytes | None] = Future()
        self._keep(number, made)

        def make_known() -> Bytes | None:
            try:
                output = make()
            except BaseException as error:
                made.set_exception(error)
                raise
            made.set_result(output)
            return output

        return self._pool.submit(self._work, number, part, operation, make_known)

    def _make_late(
        self,
        number: int,
        part: Part,
        operation: Operation,
        kept: int,
        make: Callable[[], Bytes | None],
    ) -> None:
        """Make an operation that others pass, and hand it on when it is made; in a worker."""
        try:
            work = self._work(number, part, operation, make)
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread
            self._queue.put(error)
        else:
            self._queue.put(_Write(number, part.name, operation, kept, lambda: work))

    def _work(
        self, number: int, part: Part, operation: Operation, make: Callable[[], Bytes | None]
    ) -> Work:
        """Make an operation's output; return what of it the slot does not hold yet."""
        output, block_size = make(), self._manifest.block_size
        if output is None:
            work = Work([], list(zeros(operation, block_size=block_size)))
        else:
            region = self._writers[part.name].region
            pieces = writes(operation, output, block_size=block_size)
            work = Work([(at, _within(region, at, data)) for at, data in pieces], [])
        if self._sparing is None:
            return work
        return self._sparing.left_of(number, part.name, work)

    def _keep(self, number: int, made: Future[Bytes | None]) -> None:
        """Keep the promise of an output while a dictionary may need it."""
        self._made[number] = made
        kept = self._layout.kept[max(number, self._journal.next_operation)]
        for old in [n for n in self._made if n < kept]:
            del self._made[old]

    def _stored(self, part: Part, number: int) -> bytes:
        """Return what an operation wrote before a restart.

        Raises:
            DictionaryLostError: the slot holds something else.
        """
        return stored_output(
            part, number, self._writers[part.name].region, block_size=self._manifest.block_size
        )

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
        """Check the last message: by its signed hash, or by the signature of the whole file."""
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
        """Write outputs in order, but for late ones."""
        fed: _Fed | None = None
        while fed is None or self._written.awaits_late:
            if not self._written.awaits_late:  # else what passed it would be lost
                self._shell.look()
            self._flusher.check()
            try:
                item = self._queue.get(block=not self._writing, timeout=POLL_SECS)
            except queue.Empty:
                if self._writing:  # whoever feeds us may wait for the room that these take
                    self._retire()
                continue
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _Fed):
                fed = item
            else:
                self._write(item)
        self._retire_all()
        if fed.error is not None:
            raise fed.error

    def _write(self, step: _Write) -> None:
        """Begin to write an operation that is made, or will be next.

        One that reads what earlier ones wrote (format 1) is made once these are written.
        """
        while len(self._writing) >= (1 if step.alone else WRITES_AT_ONCE):
            self._retire()
        work = step.work()
        writer = self._writers[step.part]
        shares = [self._pens.submit(_put, writer, share) for share in work.shares()]
        self._writing.append((step, work, shares))
        if step.alone:
            self._retire()

    def _retire(self) -> None:
        """Wait until the oldest operation under way is written, and count it."""
        step, work, shares = self._writing.popleft()
        for written in shares:
            written.result()
        self._written_bytes += work.bytes_written
        self._kept_bytes += work.kept
        self._outputs.written(step.number)
        self._in_flight.give(step.operation, step.cost)
        self._ahead[step.number] = _cost(step.operation, work.bytes_written + work.kept)
        left = self._written.note(step.number)
        behind = [number for number in self._ahead if number < left]
        if behind:
            self._flusher.mark(left, sum(self._ahead.pop(number) for number in behind))
        if step.operation.data_length:
            end = (step.operation.data_offset or 0) + step.operation.data_length
            self._done = max(self._done, self._metadata.header.data_offset + end)
        self._shell.progress(self._done)

    def _retire_all(self) -> None:
        while self._writing:
            self._retire()

    def _proves(self, name: str) -> bool:
        """Tell whether what the operations of a part make is compared as the disk holds it."""
        return self._proof is not None and self._proof.covers(name)

    def _flush(self, next_operation: int) -> None:
        """Make durable what is written, prove it, and only then let the journal name it."""
        for writer in self._writers.values():
            writer.sync()
        if self._proof is not None:
            self._proof.check(
                [
                    (number, step.part.name, step.operation)
                    for number, step in enumerate(
                        self._steps[self._flushed : next_operation], self._flushed
                    )
                    if step.part is not None
                ]
            )
        self._flushed = next_operation
        downloaded = self._journal.downloaded + self._download.received
        self._shell.keep_journal(
            msgspec.structs.replace(
                self._journal,
                next_operation=next_operation,
                spared=self._blob_bytes[next_operation],
                downloaded=downloaded,
                written=self._journal.written + self._written_bytes,
                kept=self._journal.kept + self._kept_bytes,
            )
        )


def _cost(operation: Operation, made: int) -> int:
    """Return what an operation that makes so many bytes counts for a checkpoint."""
    return max(operation.data_length, made // MADE_FOR_FETCHED)


def _put(writer: RegionWriter, work: Work) -> None:
    for offset, length in work.clears:
        writer.zero_at(offset, length)
    for offset, data in work.pieces:
        writer.write_at(offset, data)


def stored_output(part: Part, number: int, region: Region, *, block_size: int) -> bytes:
    """Return what an operation of a part wrote to a region, compared with its hash.

    Raises:
        DictionaryLostError: the region holds something else.
        DeviceError: it cannot be read.
    """
    with images_of({part.name: region}) as images:
        output = LocalOutput(None, Origin.PASSIVE).read(
            part.operations[number], {Origin.PASSIVE: images[part.name]}, block_size=block_size
        )
    if output is None:
        raise DictionaryLostError(f"part {part.name} does not hold what operation {number} made")
    return output


def _within(region: Region, offset: int, data: memoryview) -> memoryview:
    """Return what of the last block belongs to the image: a file ends where its image ends."""
    return data if region.room is None else data[: max(0, region.size - offset)]
