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


def run(  # noqa: PLR0913  # each has its usual value, and few callers want another
    command: Sequence[str],
    *,
    timeout_secs: float,
    extra: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    with_errors: bool = True,
    output_max_bytes: int = OUTPUT_MAX_BYTES,
    spare_children: bool = False,
    beat: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run `command` in a process group of its own; however it ends, nothing of the group lives on.

    A child that made a session of its own (a daemon, `setsid`) is in the group no more.

    Args:
        command: the program and its arguments.
        timeout_secs: when the whole group is killed.
        extra: added to the environment.
        environment: all else that it finds; by default the fixed one.
        with_errors: keep the error stream too.
        output_max_bytes: how much of the end of its output is kept.
        spare_children: what a program that ended by itself leaves running goes on.
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

    by_itself = False
    try:
        output = _listen(process, left, output_max_bytes)
        by_itself = _ends_in_time(process, left)
    finally:
        _end(process, spare_children=by_itself and spare_children)
    if not by_itself and stopped():
        raise CommandStoppedError(f"{command[0]!r} was stopped before it ended")
    return Outcome(status=process.returncode if by_itself else None, output=output)


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
            ended = _has_ended(process)
            if not select.select([pipe], [], [], 0 if ended else min(secs, LOOK_SECS))[0]:
                if ended:
                    break
                continue
            piece = os.read(pipe.fileno(), 64 * 1024)
            if not piece:
                break
            kept = (kept + piece)[-output_max_bytes:]
    return kept


def _ends_in_time(process: subprocess.Popen[bytes], left: Callable[[], float]) -> bool:
    """Wait until the program ends, without reaping it; tell whether it did before time was up."""
    pause = LOOK_SECS / 100  # most have ended when they fall silent
    while (secs := left()) > 0:
        if _has_ended(process):
            return True
        time.sleep(min(secs, pause))
        pause = min(2 * pause, LOOK_SECS)
    return _has_ended(process)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether it ended. It is not reaped: its number stays its group's until `_end`."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _end(process: subprocess.Popen[bytes], *, spare_children: bool) -> None:
    """Kill the group, be it the program or a child that it did not wait for; reap the program."""
    if not spare_children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_WAIT_SECS)
