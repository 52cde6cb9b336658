"""The other programs of the demo: etcd and the release server, each on a free loopback port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

READY_SECS: Final = 30.0
BIN: Final = Path(sys.executable).parent


class Program:
    """A process of ours, ended by its pid."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log: IO[bytes] = log.open("ab")
        self.process = subprocess.Popen(
            list(command), stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def end(self) -> None:
        """End it, politely first."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def free_port() -> int:
    """Return a loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_etcd(folder: Path) -> tuple[Program, str]:
    """Start a real etcd: the system's, or the one that came with the Python packages."""
    binary = shutil.which("etcd") or str(BIN / "etcd")
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [binary, "--name", "demo", "--data-dir", str(folder / "etcd")]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"demo={peer}", "--log-level", "error"]
    program = Program(command, folder / "etcd.log")
    _await(f"{client}/health", program, folder / "etcd.log")
    return program, client


def start_server(desk: Path, port: int, log: Path) -> tuple[Program, str]:
    """Start the release server on `port`."""
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "bascule-server"), "serve", str(desk), "--listen", f"127.0.0.1:{port}"]
    program = Program(command, log)
    _await(f"{url}/healthz", program, log)
    return program, url


def run(program: str, *arguments: str | Path, statuses: Sequence[int] = (0,)) -> str:
    """Run one of bascule's commands; returns what it said.

    Raises:
        SystemExit: it ended with another status; its words are shown.
    """
    command = [str(BIN / program), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in statuses:
        words = " ".join(command)
        raise SystemExit(f"{words}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _await(url: str, program: Program, log: Path) -> None:
    deadline = time.monotonic() + READY_SECS
    while time.monotonic() < deadline and program.process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310  # our own loopback URL
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} did not come up; its log {log} ends:\n{log.read_text()[-2000:]}")
