"""Units as a part of health: systemctl is a real program that says what a test wants."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import pytest

from updater import health_units, processes
from updater.health import FAILED_UNITS, HealthVerdict, examine
from updater.health_units import UnitState, UnitsUnknownError, first_unwell, read_units
from updater.settings import HealthSettings

ACTIVE: Final = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n"
STARTING: Final = (
    "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\n"
)
DEAD: Final = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
STOPPED: Final = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n"
UNKNOWN: Final = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n"
MASKED: Final = "LoadState=masked\nActiveState=inactive\nSubState=dead\nResult=success\n"
ONESHOT: Final = "LoadState=loaded\nActiveState=active\nSubState=exited\nResult=success\n"
RELOADING: Final = "LoadState=loaded\nActiveState=reloading\nSubState=reload\nResult=success\n"


class Systemctl:
    """A program of that name, first on the path of what health runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says("")

    def says(self, text: str, *, then: str = "exit 0") -> None:
        (self.folder / "answer").write_text(text)
        program = self.folder / "systemctl"
        noting = f'printf "%s\\n" "$@" >{self.folder}/asked\ncat {self.folder}/answer'
        program.write_text(f"#!/bin/sh\n{noting}\n{then}\n")
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    path = f"{tmp_path}:{processes.ENVIRONMENT['PATH']}"
    environment = dict(processes.ENVIRONMENT) | {"PATH": path}
    found_first = functools.partial(processes.run, environment=environment)
    monkeypatch.setattr(health_units, "run", found_first)
    return Systemctl(tmp_path)


def look(*units: str, no_failed: bool = False, timeout_secs: float = 60) -> HealthVerdict:
    wanted = HealthSettings(
        units=list(units), no_failed_units=no_failed, units_timeout_secs=timeout_secs
    )
    return examine(wanted, facts={})


def test_units_that_are_active_are_well(systemctl: Systemctl) -> None:
    systemctl.says(f"{ACTIVE}\n{ONESHOT}\n{RELOADING}")
    assert look("sshd.service", "keys.service", "web.service").healthy
    assert systemctl.asked[0] == "show"
    assert systemctl.asked[2:] == ["--", "sshd.service", "keys.service", "web.service"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (STARTING, "is activating (auto-restart)"),
        (DEAD, "is failed (exit-code)"),
        (STOPPED, "is inactive (dead)"),
        (UNKNOWN, "is not known to systemd"),
        (MASKED, "is masked"),
        ("Id=x\n", "is in no state that systemd tells"),
    ],
)
def test_all_others_are_not_and_the_words_say_how(
    systemctl: Systemctl, answer: str, words: str
) -> None:
    systemctl.says(f"{ACTIVE}\n{answer}\n{DEAD}")
    verdict = look("sshd.service", "web.service", "later.service")
    assert (verdict.failed, verdict.sentence) == ("web.service", f"unit web.service {words}")


def test_without_units_systemd_is_not_asked(systemctl: Systemctl) -> None:
    assert look().healthy
    assert not (systemctl.folder / "asked").exists()


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("echo 'Failed to connect to bus' >&2; exit 1", "status 1: Failed to connect to bus"),
        ("sleep 1000", "took longer than 0.3 s"),
        ("exit 0", "speaks of 0 units, 1 were asked for"),
    ],
)
def test_a_systemd_that_does_not_answer_is_no_health(
    systemctl: Systemctl, then: str, words: str
) -> None:
    systemctl.says("", then=then)
    verdict = look("sshd.service", timeout_secs=0.3 if "sleep" in then else 60)
    assert verdict.failed == "sshd.service"
    assert verdict.sentence.startswith("unit sshd.service cannot be looked at: systemctl ")
    assert words in verdict.sentence


def test_no_unit_of_the_system_may_have_failed_where_that_is_wanted(systemctl: Systemctl) -> None:
    assert look(no_failed=True).healthy
    assert "--state=failed" in systemctl.asked
    systemctl.says("a.service loaded failed failed A\nb.mount loaded failed failed B\n")
    verdict = look(no_failed=True)
    assert (verdict.failed, verdict.sentence) == (FAILED_UNITS, "units a.service, b.mount failed")
    assert look().healthy


def test_many_failed_units_make_a_short_sentence(systemctl: Systemctl) -> None:
    systemctl.says("".join(f"u{n}.service loaded failed failed x\n" for n in range(40)))
    sentence = look(no_failed=True).sentence
    assert sentence == "units u0.service, u1.service, u2.service and 37 more failed"


def test_a_failed_unit_that_cannot_be_asked_for_is_no_health(systemctl: Systemctl) -> None:
    systemctl.says("", then="exit 4")
    verdict = look(no_failed=True)
    assert verdict.sentence == "failed units cannot be looked for: systemctl ended with status 4"


def test_what_systemd_says_cannot_write_on_a_terminal() -> None:
    (unit,) = read_units(["x.service"], "ActiveState=\033[2Jx\nSubState=\a\n")
    unwell = first_unwell([unit])
    assert unwell is not None
    assert unwell[1] == "unit x.service is ?[2Jx (?)"


def test_an_answer_about_others_is_none() -> None:
    with pytest.raises(UnitsUnknownError, match="speaks of 2 units, 1 were"):
        read_units(["x.service"], f"{ACTIVE}\n{ACTIVE}")


def test_the_first_that_is_not_well_is_named() -> None:
    units = [UnitState(name=name, active=active) for name, active in [("a", "active"), ("b", "x")]]
    assert first_unwell(units) == ("b", "unit b is x")
    assert first_unwell(units[:1]) is None
