"""A web server for payloads in a process of its own, which counts what it sends: nginx, or ours."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.programs import free_port

START_SECS: Final = 10.0
STEP_SECS: Final = 0.05
SETTLE_SECS: Final = 0.1  # a line is logged after the last byte went out
TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
NGINX: Final = """\
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors; user root;
events {{ worker_connections 64; }}
http {{
  log_format sent '$bytes_sent'; access_log {folder}/sent sent;
  sendfile on; tcp_nopush on; max_ranges 10000; keepalive_requests 100000;
  large_client_header_buffers 4 256k; default_type application/octet-stream;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@dataclass
class Web:
    """A server that runs.

    Attributes:
        url: of the folder that it serves.
        log: bytes of each answer, a line each.
        name: what serves.
    """

    url: str
    log: Path
    name: str
    _seen: int = 0

    def mark(self) -> None:
        """Count from here."""
        self._seen = self.log.stat().st_size

    def sent(self) -> int:
        """Return the bytes sent since `mark`, heads included."""
        time.sleep(SETTLE_SECS)
        with self.log.open() as file:
            file.seek(self._seen)
            return sum(map(int, file.read().split()))


@contextlib.contextmanager
def serve(root: Path, folder: Path) -> Iterator[Web]:
    """Serve `root` from a process of its own; `folder` is for its files."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "sent"
    log.write_text("")
    url = f"http://127.0.0.1:{port}"
    nginx = shutil.which("nginx", path=TOOLS)
    if nginx is not None:
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port, root=root.resolve()))
        command = [nginx, "-e", str(folder / "errors"), "-p", str(folder), "-c", str(config)]
    else:
        command = [sys.executable, "-m", "tests.bench.file_server", str(root), str(port), str(log)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait(url, process)
        yield Web(url, log, "nginx" if nginx else "Python's http.server")
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return  # it answers: a folder without a listing is forbidden
        except OSError:
            time.sleep(STEP_SECS)
        else:
            return
    raise RuntimeError("the web server did not start")
