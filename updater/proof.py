"""Reading back behind the writer: each operation from the device, against its signed hash.

An operation is read past the page cache once it is flushed, hashed there and nowhere else, and only
then named by the journal: decision 0015. What it needs is a signed SHA-256 of each operation of a
part, and operations that cover the part exactly; a part without is read whole in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from images.payload import CLEARS, Manifest, Operation, Part
from partitions.readback import RegionReader
from updater.errors import UpdaterError

if TYPE_CHECKING:
    from partitions.slots import Region

LANES: Final = 4  # some wait for the device, which has more than one thing to do, some hash


class ReadBackError(UpdaterError):
    """The slot holds other bytes than were written to it.

    Attributes:
        number: of the operation, over all parts; None where a part was read whole.
    """

    code = "readback-mismatch"
    hint = "The disk loses or changes data: check its health before the next try."

    def __init__(self, sentence: str, number: int | None = None) -> None:
        super().__init__(sentence)
        self.number = number


def is_provable(manifest: Manifest, part: Part, region: Region) -> bool:
    """Tell whether each operation of a part can be proven alone, and all of them prove the part.

    Not a file: that it has its name and its length is seen when all is done, so it is read then.
    """
    covered = sum(e.num_blocks for operation in part.operations for e in operation.dst_extents)
    return (
        region.room is None
        and manifest.major == 2  # each block is written exactly once: checked in its manifest
        and covered * manifest.block_size == part.size
        and all(op.dst_sha256 is not None or op.kind in CLEARS for op in part.operations)
    )


class Proof:
    """The parts that are read back operation by operation; its methods are for one thread."""

    def __init__(self, readers: Mapping[str, RegionReader], block_size: int) -> None:
        self._readers = readers
        self._block_size = block_size
        self._pool = ThreadPoolExecutor(LANES, thread_name_prefix="read-back")

    def covers(self, name: str) -> bool:
        """Tell whether the operations of a part are proven here."""
        return name in self._readers

    def check(self, steps: Sequence[tuple[int, str, Operation]]) -> None:
        """Return when the device holds what these operations make; they are flushed.

        Args:
            steps: number over all parts, part and operation; those of other parts are passed over.

        Raises:
            ReadBackError: it holds something else; of several operations the first.
            DeviceError: it cannot be read.
        """
        for _ in self._pool.map(self._check, (step for step in steps if self.covers(step[1]))):
            pass

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _check(self, step: tuple[int, str, Operation]) -> None:
        number, name, operation = step
        reader = self._readers[name]
        size = self._block_size
        runs = [(e.start_block * size, e.num_blocks * size) for e in operation.dst_extents]
        if operation.kind in CLEARS:
            if reader.is_zero(runs):
                return
            raise ReadBackError(f"part {name} is not zero where operation {number} clears", number)
        actual = reader.digest_of(runs)
        if actual != operation.dst_sha256:
            raise ReadBackError(
                f"what operation {number} of part {name} wrote reads back as {actual.hex()}",
                number,
            )


@contextmanager
def proof_of(manifest: Manifest, regions: Mapping[str, Region]) -> Iterator[Proof]:
    """Open what can be read back operation by operation.

    Raises:
        DeviceOpenError: a region cannot be opened.
    """
    with ExitStack() as stack:
        readers = {
            part.name: stack.enter_context(RegionReader(regions[part.name], buffers=LANES))
            for part in manifest.parts
            if is_provable(manifest, part, regions[part.name])
        }
        proof = Proof(readers, manifest.block_size)
        stack.callback(proof.close)
        yield proof
