"""Other people's programs, run with a fixed environment and a time limit."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from updater.errors import UpdaterError

# A service's own environment: nothing of the caller's PATH, preloads or language gets in.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
OUTPUT_MAX_BYTES: Final = 64 * 1024  # what is kept of a program's words
LOOK_SECS: Final = 0.1  # how soon an end is seen that no silence tells
KILLED_WAIT_SECS: Final = 5.0  # one that waits for a dead disk cannot be killed: go on without it


class CommandError(UpdaterError):
    """A program could not be started, failed or took too long."""

    code = "command-failed"
    hint = "Run the command by hand to see what it says."


class CommandStoppedError(CommandError):
    """A program was ended because whoever started it ends."""

    code = "command-stopped"
    hint = "The service was told to stop; the command runs again when it is started."


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: its exit status; None when it was ended for taking too long.
        output: the end of what it said, of bounded length.
    """

    status: int | None
    output: bytes


def run(
    command: Sequence[str],
    *,
    timeout_secs: float,
    extra: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    with_errors: bool = True,
    output_max_bytes: int = OUTPUT_MAX_BYTES,
    beat: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run `command` in a process group of its own; after `timeout_secs` the group is killed.

    Args:
        command: the program and its arguments.
        timeout_secs: when the whole group is killed.
        extra: added to the environment.
        environment: all else that it finds; by default the fixed one.
        with_errors: keep the error stream too.
        output_max_bytes: how much of the end of its output is kept.
        beat: called every `LOOK_SECS` at least until it ends, so that our caller counts as alive.
        stopped: asked as often; tells that the group shall be killed now.

    Raises:
        CommandError: the program cannot be started.
        CommandStoppedError: it was killed because of `stopped`.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
            env=dict(environment) | dict(extra or {}),
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = getattr(error, "strerror", None) or error
        raise CommandError(f"{command[0]!r} cannot be started: {why}") from error
    deadline = time.monotonic() + timeout_secs

    def left() -> float:
        beat()
        return 0.0 if stopped() else deadline - time.monotonic()

    output = _listen(process, left, output_max_bytes)
    status = _ended_by(process, left)
    if status is None and stopped():
        raise CommandStoppedError(f"{command[0]!r} was stopped before it ended")
    return Outcome(status=status, output=output)


def _listen(
    process: subprocess.Popen[bytes], left: Callable[[], float], output_max_bytes: int
) -> bytes:
    """Collect what the program says until it ends, falls silent for good, or time is up.

    What it leaves running may keep the pipe open: that is not waited for.
    """
    if process.stdout is None:  # never, we asked for a pipe; said for the type checker
        return b""
    kept = b""
    with process.stdout as pipe:
        while (secs := left()) > 0:
            ended = process.poll() is not None
            if not select.select([pipe], [], [], 0 if ended else min(secs, LOOK_SECS))[0]:
                if ended:
                    break
                continue
            piece = os.read(pipe.fileno(), 64 * 1024)
            if not piece:
                break
            kept = (kept + piece)[-output_max_bytes:]
    return kept


def _ended_by(process: subprocess.Popen[bytes], left: Callable[[], float]) -> int | None:
    """Return the exit status; None when the whole group had to be killed."""
    secs = LOOK_SECS
    while secs > 0:
        secs = left()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(max(secs, 0.0), LOOK_SECS))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_WAIT_SECS)
    return None
