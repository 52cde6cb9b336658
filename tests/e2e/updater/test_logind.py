"""Inhibitors as a real busctl reads them from a bus, with a stand-in for logind on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.logind import Bus
from updater.inhibitors import list_inhibitors
from updater.machine import Inhibitor, MachineError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("busctl") is None, reason="busctl is not installed (systemd)"),
]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    with Bus(tmp_path) as made:
        yield made


def test_they_are_listed_with_who_and_why(bus: Bus) -> None:
    bus.start_logind(
        ["shutdown:sleep", "Backup", "the nightly run", "block", 0, 812],
        ["sleep", "UPower", "Pause device polling", "delay", 0, 99],
    )
    assert list_inhibitors(bus=bus.socket) == (
        Inhibitor(
            what=frozenset({"shutdown", "sleep"}),
            who="Backup",
            why="the nightly run",
            mode="block",
            uid=0,
            pid=812,
        ),
        Inhibitor(
            what=frozenset({"sleep"}),
            who="UPower",
            why="Pause device polling",
            mode="delay",
            uid=0,
            pid=99,
        ),
    )


def test_there_may_be_none(bus: Bus) -> None:
    bus.start_logind()
    assert list_inhibitors(bus=bus.socket) == ()


def test_what_anybody_may_write_is_bounded_and_printable(bus: Bus) -> None:
    bus.start_logind(["shutdown", "\x1b[2J" + "x" * 5000, 'a\nb"c', "block", 1000, 7])
    (found,) = list_inhibitors(bus=bus.socket)
    assert (found.who[:5], len(found.who), found.why) == ("?[2Jx", 120, 'a?b"c')


def test_a_bus_without_logind_has_none(bus: Bus) -> None:
    assert list_inhibitors(bus=bus.socket) == ()


@pytest.mark.parametrize(
    ("answer", "why"), [("refused", "ended with status 1"), ("odd", "answer is odd")]
)
def test_a_logind_that_does_not_answer_is_no_logind_without_inhibitors(
    bus: Bus, answer: str, why: str
) -> None:
    bus.start_logind(answer)
    with pytest.raises(MachineError, match=why):
        list_inhibitors(bus=bus.socket)


def test_a_bus_that_is_gone_cannot_tell(tmp_path: Path) -> None:
    with Bus(tmp_path) as bus:
        pass
    bus.socket.touch()
    with pytest.raises(MachineError, match="cannot be listed"):
        list_inhibitors(bus=bus.socket)
