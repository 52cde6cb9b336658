"""Flushes behind the writer of a slot, in a thread: what is durable is known a checkpoint later."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Flusher:
    """Flushes behind the writer, so that the journal names only what is durable.

    The writer is held back while two checkpoints' worth that it noted before is not flushed, so
    that a kill costs a bounded re-read.

    Args:
        checkpoint_bytes: of the payload, or what counts like them: so many are flushed at once.
        flush: makes all operations before this number durable, proves and notes them; called
            from the thread, and once more from the caller's in `finish`.
    """

    def __init__(self, checkpoint_bytes: int, flush: Callable[[int], None]) -> None:
        self._checkpoint_bytes = checkpoint_bytes
        self._flush = flush
        self._changed = threading.Condition()
        self._written = 0  # operations written, as the next one's number
        self._pending = 0  # what they cost that are not flushed
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="flush")

    def start(self) -> None:
        """Begin to flush; `close` ends it."""
        self._thread.start()

    def mark(self, next_operation: int, cost: int) -> None:
        """Note what is written; waits while too much of what was noted before is not flushed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or self._pending < 2 * self._checkpoint_bytes
            )
            self._written = next_operation
            self._pending += cost
            if self._pending >= self._checkpoint_bytes:
                self._changed.notify_all()
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
