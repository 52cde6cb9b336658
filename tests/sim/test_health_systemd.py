"""Units as a part of health, by the real systemctl; its manager is a stand-in on a real bus."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.sim.systemd import NOT_FOUND, States, SystemdBus
from updater import health_units, processes
from updater.health import HealthVerdict, examine
from updater.settings import HealthSettings

RUNS: Final[States] = ("loaded", "active", "running", "success")
STARTS: Final[States] = ("loaded", "activating", "auto-restart", "exit-code")
FAILED: Final[States] = ("loaded", "failed", "failed", "exit-code")
ODD: Final = r"mnt-with\x2ddash.mount"
ALL_WELL: Final = {"sshd.service": RUNS, "getty@tty1.service": RUNS, ODD: RUNS}


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemdBus]:
    with SystemdBus(tmp_path) as made:
        path = f"{made.systemctl()}:{processes.ENVIRONMENT['PATH']}"
        environment = dict(processes.ENVIRONMENT) | {"PATH": path}
        own = functools.partial(processes.run, environment=environment)
        monkeypatch.setattr(health_units, "run", own)
        yield made


def look(*units: str, no_failed: bool = False) -> HealthVerdict:
    wanted = HealthSettings(units=list(units), no_failed_units=no_failed, units_timeout_secs=60)
    return examine(wanted, facts={})


def test_units_that_run_are_well_whatever_is_in_their_names(systemd: SystemdBus) -> None:
    systemd.start_systemd(ALL_WELL)
    assert look(*ALL_WELL) == HealthVerdict()
    assert look("sshd.service", no_failed=True) == HealthVerdict()


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (STARTS, "is activating (auto-restart)"),
        (FAILED, "is failed (exit-code)"),
        (NOT_FOUND, "is not known to systemd"),
    ],
)
def test_the_first_that_does_not_is_named(systemd: SystemdBus, states: States, words: str) -> None:
    systemd.start_systemd({**ALL_WELL, "web.service": states, "db.service": FAILED})
    verdict = look("sshd.service", "web.service", "db.service")
    assert (verdict.failed, verdict.sentence) == ("web.service", f"unit web.service {words}")


def test_units_that_failed_are_found_among_all(systemd: SystemdBus) -> None:
    systemd.start_systemd({**ALL_WELL, "db.service": FAILED, ODD: FAILED, "web.service": STARTS})
    assert look(no_failed=True).sentence == f"units {ODD}, db.service failed"


@pytest.mark.usefixtures("systemd")
def test_a_manager_that_is_not_there_is_no_health() -> None:
    verdict = look("sshd.service")
    assert verdict.sentence.startswith("unit sshd.service cannot be looked at: systemctl ended")
