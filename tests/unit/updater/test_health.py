from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from updater.health import HealthVerdict, examine
from updater.settings import CheckSettings, HealthSettings

AMPLE_SECS = 60.0


def check(name: str, *command: str, timeout_secs: float = AMPLE_SECS) -> CheckSettings:
    return CheckSettings(name=name, command=list(command), timeout_secs=timeout_secs)


def shell(name: str, script: str, timeout_secs: float = AMPLE_SECS) -> CheckSettings:
    return check(name, "/bin/sh", "-c", script, timeout_secs=timeout_secs)


def look(*checks: CheckSettings) -> HealthVerdict:
    return examine(
        HealthSettings(checks=list(checks)), facts={"BASCULE_SLOT": "b", "BASCULE_VERSION": "2.0.0"}
    )


def test_without_checks_reaching_this_point_is_health_enough() -> None:
    assert look().healthy


def test_all_checks_must_end_with_status_0() -> None:
    assert look(check("one", "true"), check("two", "true")).healthy
    verdict = look(check("one", "true"), check("two", "false"))
    assert not verdict.healthy
    assert (verdict.failed, verdict.sentence) == ("two", "check two ended with status 1")


def test_the_first_that_fails_is_the_last_that_runs(tmp_path: Path) -> None:
    verdict = look(check("one", "false"), shell("two", f"touch {tmp_path}/ran"))
    assert verdict.failed == "one"
    assert not (tmp_path / "ran").exists()


def test_a_check_that_takes_too_long_has_failed() -> None:
    verdict = look(shell("slow", "sleep 1000", timeout_secs=0.2))
    assert verdict.sentence == "check slow took longer than 0.2 s"


def test_a_check_that_is_not_there_has_failed() -> None:
    verdict = look(check("gone", "/missing/program"))
    assert verdict.failed == "gone"
    assert "cannot be started: No such file" in verdict.sentence


def test_a_check_knows_slot_and_version() -> None:
    assert look(shell("facts", 'test "$BASCULE_SLOT $BASCULE_VERSION" = "b 2.0.0"')).healthy


@pytest.mark.parametrize("status", [0, 1])
def test_what_a_check_starts_in_the_background_does_not_outlive_it(
    tmp_path: Path, status: int
) -> None:
    """A child that lives on holds this pipe open: it is readable to its end once nobody does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as held:
        script = f"exec 3>{pipe}; sleep 1000 & echo started; exit {status}"
        verdict = look(shell("web", script))
        assert verdict.healthy == (status == 0)
        assert select.select([held], [], [], AMPLE_SECS)[0], "the child lives on"
        assert held.read() == b""


def test_the_last_line_says_why() -> None:
    verdict = look(shell("web", "echo starting; echo 'port 80 is closed' >&2; exit 7"))
    assert verdict.sentence == "check web ended with status 7: port 80 is closed"


def test_what_a_check_says_cannot_write_on_a_terminal_or_flood_a_log() -> None:
    verdict = look(shell("web", r"printf '\033[2J\a%01000d\377' 0; exit 1"))
    assert verdict.sentence.startswith("check web ended with status 1: ?[2J?000")
    assert verdict.sentence.isprintable()
    assert len(verdict.sentence) < 300
