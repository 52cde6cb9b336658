"""Ports as a part of health: real sockets on loopback and in a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from updater.health import HealthVerdict, examine
from updater.health_ports import Address, AddressError, read_address, why_closed
from updater.settings import CheckSettings, HealthSettings


def look(*ports: str, timeout_secs: float = 30) -> HealthVerdict:
    return examine(HealthSettings(ports=list(ports), ports_timeout_secs=timeout_secs), facts={})


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def name(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_that_accepts_a_connection_is_well(listener: socket.socket) -> None:
    assert look(name(listener)).healthy


def test_a_port_that_nobody_listens_on_is_not(listener: socket.socket) -> None:
    port = name(listener)
    listener.close()
    verdict = look(port)
    assert verdict.failed == port
    assert verdict.sentence == f"port {port} accepts no connection: Connection refused"


def test_a_port_of_ipv6_too() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as made:
        try:
            made.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        made.listen()
        assert look(f"[::1]:{made.getsockname()[1]}").healthy


def test_a_socket_in_a_folder_too(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    assert look(f"unix:{path}").sentence.endswith(
        "accepts no connection: No such file or directory"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(path))
        made.listen()
        assert look(f"unix:{path}").healthy


CONNECT = """
import sys
from updater.health_ports import read_address, why_closed
print(why_closed(read_address(sys.argv[1]), timeout_secs=30))
"""


def test_a_socket_that_modes_close_to_the_service_says_so(tmp_path: Path) -> None:
    """The service is root without CAP_DAC_OVERRIDE: a socket of mode 0660 is another group's."""
    path = tmp_path / "x.sock"
    command = [sys.executable, "-c", CONNECT, f"unix:{path}"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed (package util-linux)")
        drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        command = [*drop, *command]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(path))
        made.listen()
        path.chmod(0o000)
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "the service may not connect to it" in said


def test_a_listener_that_does_not_accept_in_time_is_not_well(listener: socket.socket) -> None:
    listener.listen(0)
    address = read_address(name(listener))
    waiting: list[socket.socket] = []
    try:
        for _ in range(3):  # fill the queue of those who wait to be accepted
            end = socket.socket()
            end.settimeout(0)
            end.connect_ex((address.host, address.port))
            waiting.append(end)
        why = why_closed(address, timeout_secs=0.2)
    finally:
        for end in waiting:
            end.close()
    assert why == "does not accept a connection within 0.2 s"


def test_ports_come_before_commands_and_the_first_is_named(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = name(listener)
    listener.close()
    ran = tmp_path / "ran"
    wanted = HealthSettings(
        ports=[port], checks=[CheckSettings(name="late", command=["touch", str(ran)])]
    )
    assert examine(wanted, facts={}).failed == port
    assert not ran.exists()


def test_addresses_are_read() -> None:
    assert read_address("127.0.0.1:22") == Address(family=socket.AF_INET, host="127.0.0.1", port=22)
    assert read_address("[::1]:80") == Address(family=socket.AF_INET6, host="::1", port=80)
    assert read_address("unix:/run/x.sock") == Address(family=socket.AF_UNIX, host="/run/x.sock")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22",
        "localhost:22",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:22 ",
        "300.0.0.1:22",
        "[127.0.0.1]:22",
        "::1:80",
        "[::1]",
        "[fe80::1%eth0]:80",
        "unix:run/x.sock",
        f"unix:/{'x' * 200}",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        read_address(text)
