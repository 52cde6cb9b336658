"""The real `bascule-server` program: its commands, and `serve` as a process of its own."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("bascule-server")
READY_S = 60


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def done(*arguments: object) -> str:
    """Run a command that must succeed; return what it prints."""
    finished = command(*arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def facts(*arguments: object) -> Any:  # noqa: ANN401  # JSON
    """Run a command that must succeed with `--json`; return what it prints."""
    return json.loads(done(*arguments, "--json"))


@contextmanager
def process(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `serve` on a free port; give the address that it prints, and the process."""
    running = subprocess.Popen(
        [PROGRAM, "serve", folder, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    output = running.stdout
    assert output is not None
    try:
        ready, _, _ = select.select([output], [], [], READY_S)
        assert ready, "serve printed nothing"
        yield output.readline().split()[-1], running
    finally:
        running.terminate()
        running.wait(30)
        output.close()
