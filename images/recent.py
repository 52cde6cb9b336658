"""What operations made a moment ago, for those after them that take it as their dictionary.

Operations are made in threads, out of step: what is kept is the promise of each output.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

from images.dictionary import DICTIONARY_MAX
from images.operations import Bytes
from images.payload import READS_TARGET, Operation, Part

Output: TypeAlias = "Future[Bytes | None]"


class RecentOutputs:
    """The outputs of the last 8 MiB of a part, in the order of its operations.

    Its methods are called by one thread, for operation after operation. What `dictionary`
    returns is called by any other; it waits for operations before, never for one after.

    Args:
        part: whose operations they are; where none has a dictionary nothing is kept.
        stored: reads what an operation made that is not kept, by its number: before a restart.
    """

    def __init__(self, part: Part, stored: Callable[[int], Bytes]) -> None:
        self._part = part
        self._stored = stored
        self._used = any(operation.kind in READS_TARGET for operation in part.operations)
        self._outputs: dict[int, Output] = {}
        self._bytes = 0

    def dictionary(self, operation: Operation) -> Callable[[], bytes]:
        """Return what gives the dictionary of the next operation; empty where it has none."""
        kept = [(number, self._outputs.get(number)) for number in operation.dictionary]

        def joined() -> bytes:
            return b"".join(
                self._stored(number) if output is None else output.result() or b""
                for number, output in kept
            )

        return joined

    def add(self, number: int, output: Output) -> None:
        """Keep an output, and let go of what no later operation can ask for."""
        if not self._used:
            return
        self._outputs[number] = output
        self._bytes += self._size(number)
        while self._bytes > DICTIONARY_MAX:
            oldest = next(iter(self._outputs))
            del self._outputs[oldest]
            self._bytes -= self._size(oldest)

    def _size(self, number: int) -> int:
        operation = self._part.operations[number]
        return 0 if operation.data_length == 0 else operation.output_limit


def dictionary_bytes(part: Part, operation: Operation) -> int:
    """Return how many bytes the dictionary of an operation has."""
    return sum(part.operations[number].output_limit for number in operation.dictionary)
