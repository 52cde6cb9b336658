from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from updater.bus.address import SYSTEM, bus_address, may_listen
from updater.settings import BusSettings, NodeSettings, Settings


def settings(address: str, machine: str) -> Settings:
    return Settings(
        node=msgspec.convert({"machine": machine}, NodeSettings),
        bus=BusSettings(address=address),
    )


@pytest.mark.parametrize(
    ("address", "machine", "expected"),
    [
        ("", "linux", SYSTEM),
        ("", "model", ""),
        ("none", "linux", ""),
        ("system", "model", SYSTEM),
        ("unix:path=/x", "model", "unix:path=/x"),
    ],
)
def test_a_real_machine_is_on_the_system_bus_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, address: str, machine: str, expected: str
) -> None:
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    assert bus_address(settings(address, machine)) == expected


def test_the_system_bus_may_be_somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/else")
    assert bus_address(settings("system", "linux")) == "unix:path=/else"


@pytest.mark.parametrize(
    "address", ["session", "tcp:host=a", "unix:path=", "unix:path=/a;unix:path=/b"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"address": address}, BusSettings)


def test_no_library_is_loaded_where_no_socket_is(tmp_path: Path) -> None:
    assert not may_listen(f"unix:path={tmp_path}/nowhere")
    (tmp_path / "socket").touch()
    assert may_listen(f"unix:path={tmp_path}/socket")
    assert may_listen("unix:abstract=x"), "that cannot be told by looking"
