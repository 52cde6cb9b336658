"""Other people's programs that make file systems and boot loaders: found, run, believed or not.

A list of words goes in and the program's own words come out; there is no shell. Missing and failing
are errors with codes; what a program does is told where it is called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from partitions.errors import ToolFailedError, ToolMissingError

SYSTEM_FOLDERS: Final = "/usr/sbin:/sbin"  # where mkfs lives; not on a user's PATH
TIMEOUT_S: Final = 600.0  # 10 minutes: mkfs on a slow disk
EPOCH: Final = 1_577_836_800  # 2020-01-01 in seconds, as FAT knows no time before 1980
_WORDS_MAX: Final = 300  # characters of a program's complaint that a message repeats
# The programs' own ways to be told the time. mtools write local time into FAT.
_STEADY: Final = {
    "SOURCE_DATE_EPOCH": str(EPOCH),
    "E2FSPROGS_FAKE_TIME": str(EPOCH),
    "TZ": "UTC",
}


def run_tool(command: Sequence[str], *, purpose: str, seeded: bool = False) -> str:
    """Run a program and return what it said.

    Args:
        command: its name and arguments.
        purpose: what it is needed for, for the message when it is missing.
        seeded: whether it shall take a fixed time for now, so that it makes the same bytes again.

    Raises:
        ToolMissingError: it is not installed.
        ToolFailedError: it cannot be run, takes too long, or ends with an error.
    """
    tool = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")
    if tool is None:
        raise ToolMissingError(f"{command[0]} is not installed; {purpose}")
    try:
        done = subprocess.run(
            [tool, *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            env={
                **os.environ,
                "LC_ALL": "C",
                "MTOOLSRC": os.devnull,
                **(_STEADY if seeded else {}),
            },
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailedError(f"{tool} could not be run: {error}") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-_WORDS_MAX:]
        raise ToolFailedError(f"{tool} ended with status {done.returncode}: {words}")
    return done.stdout + done.stderr
