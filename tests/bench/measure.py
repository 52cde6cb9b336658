"""What a command costs: wall, CPU of all its processes, the largest one's memory.

GNU time starts the command: the peak of a child that this process starts itself would never be
below this process's own. A program that works on behalf of the command (a service) is added by its
process id.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GNU_TIME: Final = "/usr/bin/time"
KIB_PER_MIB: Final = 1024
SHELL: Final = ("bash", "-o", "pipefail", "-c")


class CommandFailedError(Exception):
    """A competitor ended with another status than 0; the sentence has its last words."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command cost, and what it printed."""

    wall_secs: float
    cpu_secs: float
    peak_mib: float
    output: str


def run(
    command: str | Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None
) -> Cost:
    """Run a command, or a line of shell, to its end.

    Raises:
        CommandFailedError: its status is not 0.
    """
    words = [*SHELL, command] if isinstance(command, str) else list(command)
    cost_file, log = folder / "cost", folder / "log"
    began = time.monotonic()
    with log.open("wb") as errors:
        done = subprocess.run(
            [GNU_TIME, "-q", "-o", str(cost_file), "-f", "%U %S %M", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            text=True,
            check=False,
        )
    wall = time.monotonic() - began
    if done.returncode:
        said = f"{done.stdout}\n{log.read_text(errors='replace')}".strip().splitlines()
        raise CommandFailedError(f"status {done.returncode}: {' | '.join(said[-3:])[-400:]}")
    user, system, peak_kib = map(float, cost_file.read_text().split()[-3:])
    return Cost(
        wall_secs=wall,
        cpu_secs=user + system,
        peak_mib=peak_kib / KIB_PER_MIB,
        output=done.stdout,
    )


def process_cpu_secs(pid: int) -> float:
    """Return what a running process and its children that ended used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def process_peak_mib(pid: int) -> float:
    """Return the most that a running process had in memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / KIB_PER_MIB if found else 0.0
