"""An integrator's program, run with a fixed environment, a time limit and a limit to its words.

Like `updater.processes`, which this room does not know; unlike it both streams are kept apart: one
is the answer, the other says why there is none.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from partitions.errors import CustomCommandError

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
OUTPUT_MAX_BYTES: Final = 64 * 1024  # of each stream
LOOK_SECS: Final = 0.05  # how soon an end is seen while a child of the program keeps its pipes
KILLED_WAIT_SECS: Final = 5.0  # one that waits for a dead disk cannot be killed: go on without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a program ended by itself.

    Attributes:
        status: its exit status, below zero for a signal.
        output: what it printed.
        errors: what it said on its error stream.
    """

    status: int
    output: bytes
    errors: bytes


def run(command: Sequence[str], *, timeout_secs: float) -> Answer:
    """Run a program without a shell, in `/` and a process group of its own.

    However it ends, its whole group is killed: nothing of a call lives on to change the loader's
    memory behind the next one's back.

    Raises:
        CustomCommandError: it cannot be started, takes too long or says too much.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(ENVIRONMENT),
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = getattr(error, "strerror", None) or error
        raise CustomCommandError(f"{command[0]!r} cannot be started: {why}") from error
    try:
        output, errors = _listen(process, command, time.monotonic() + timeout_secs)
    finally:
        _end(process)
    return Answer(status=process.returncode, output=output, errors=errors)


def _listen(
    process: subprocess.Popen[bytes], command: Sequence[str], deadline: float
) -> tuple[bytes, bytes]:
    """Return what it says on both streams until it ends, or raise."""
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    said = dict.fromkeys(pipes, b"")
    words = " ".join(command)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise CustomCommandError(f"{words!r} took too long and was ended")
        ended = _has_ended(process)
        ready = select.select(pipes, [], [], 0 if ended else min(left, LOOK_SECS))[0]
        for pipe in ready:
            piece = os.read(pipe.fileno(), OUTPUT_MAX_BYTES)
            said[pipe] += piece
            if len(said[pipe]) > OUTPUT_MAX_BYTES:
                raise CustomCommandError(f"{words!r} says more than {OUTPUT_MAX_BYTES} bytes")
            if not piece:
                pipes.remove(pipe)
        if ended and not ready:
            output, errors = said.values()
            return output, errors


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether it ended. It is not reaped: its number stays its own until `_end`."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of its group behind, be it the program or a child that it did not wait for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_WAIT_SECS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
