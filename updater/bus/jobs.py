"""Heavy verbs in processes of their own, a few at once; each ends with one reply.

A process ends when the service does: it is told to, and the kernel sees to it otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from updater.bus.errors import InternalError, JobRunsError
from updater.client import Reply, reply_of

log = logging.getLogger(__name__)

JOBS_MAX: Final = 4
REPLY_MAX_BYTES: Final = 1024 * 1024
FAREWELL_SECS: Final = 20.0  # an install flushes what it wrote before it ends


class Jobs:
    """What is under way.

    Args:
        command: what carries out a verb: takes its name, options in JSON and `--by`.
        done: told the number of a job that ended, and how.
    """

    def __init__(self, command: Sequence[str], done: Callable[[int, Reply], None]) -> None:
        self._command = list(command)
        self._done = done
        self._numbers = itertools.count(1)
        self._running: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._processes: dict[int, Process] = {}
        self._ending = False

    def runs(self, name: str) -> bool:
        """Tell whether the verb `name` is under way."""
        return any(running == name for running, _ in self._running.values())

    @property
    def active(self) -> bool:
        """Tell whether anything is under way."""
        return bool(self._running)

    def begin(self, name: str, options: Mapping[str, object], *, by: str) -> int:
        """Start a verb and return the number of its job.

        Raises:
            JobRunsError: it runs already, or too much else does.
        """
        if self.runs(name):
            raise JobRunsError(f"{name} is under way already")
        if len(self._running) >= JOBS_MAX:
            raise JobRunsError(f"{JOBS_MAX} jobs are under way already")
        number = next(self._numbers)
        task = asyncio.get_running_loop().create_task(self._run(number, name, options, by))
        self._running[number] = (name, task)
        log.info("job begins number=%d verb=%s by=%s", number, name, by)
        return number

    async def close(self) -> None:
        """Tell every process to end, and wait for what it flushes."""
        self._ending = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        tasks = [task for _, task in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_SECS)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _run(self, number: int, name: str, options: Mapping[str, object], by: str) -> None:
        try:
            reply = await self._reply(number, name, options, by)
        except OSError as error:
            reply = reply_of(InternalError(f"{name} cannot be started: {error}"))
        finally:
            self._running.pop(number, None)
            self._processes.pop(number, None)
        log.info("job ended number=%d verb=%s status=%d", number, name, reply.status)
        self._done(number, reply)

    async def _reply(self, number: int, name: str, options: Mapping[str, object], by: str) -> Reply:
        process = await asyncio.create_subprocess_exec(
            *self._command, name, json.dumps(options), "--by", by, stdin=DEVNULL, stdout=PIPE
        )
        self._processes[number] = process
        if self._ending:  # it was started while we said goodbye to the others
            process.terminate()
        said = b""
        if process.stdout is not None:  # never None, we asked for a pipe
            while len(said) <= REPLY_MAX_BYTES and (piece := await process.stdout.read(64 * 1024)):
                said += piece
        if len(said) > REPLY_MAX_BYTES:
            process.kill()
        status = await process.wait()
        try:
            return msgspec.json.decode(said, type=Reply)
        except msgspec.MsgspecError:
            return reply_of(InternalError(f"{name} ended with status {status} and no reply"))
