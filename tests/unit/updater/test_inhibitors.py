from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from updater.inhibitors import InhibitorGate, list_inhibitors
from updater.machine import Inhibitor, MachineError
from updater.processes import CommandError, Outcome

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BACKUP = Inhibitor(
    what=frozenset({"shutdown", "sleep"}),
    who="Backup",
    why="the nightly run",
    mode="block",
    uid=0,
    pid=812,
)


def inhibitor(**changes: object) -> Inhibitor:
    fields = {name: getattr(BACKUP, name) for name in BACKUP.__slots__} | changes
    return Inhibitor(**fields)


class TestTheGate:
    def test_is_open_when_nobody_inhibits(self) -> None:
        verdict = InhibitorGate(list).verdict(NOW)
        assert (verdict.is_open, verdict.code) == (True, "not-inhibited")

    def test_is_closed_by_a_block_and_says_who_and_why(self) -> None:
        verdict = InhibitorGate(lambda: [BACKUP]).verdict(NOW)
        assert (verdict.is_open, verdict.code) == (False, "inhibited")
        assert verdict.sentence == (
            "Backup (process 812 of user 0) inhibits a shutdown: the nightly run"
        )

    def test_counts_the_others(self) -> None:
        verdict = InhibitorGate(lambda: [BACKUP, inhibitor(who="Burner", why="")]).verdict(NOW)
        assert verdict.sentence.endswith("the nightly run, and 1 more")

    def test_says_when_no_reason_is_given(self) -> None:
        verdict = InhibitorGate(lambda: [inhibitor(why="")]).verdict(NOW)
        assert verdict.sentence.endswith("inhibits a shutdown: no reason given")

    @pytest.mark.parametrize(
        "changes",
        [{"mode": "delay"}, {"mode": "block-weak"}, {"what": frozenset({"sleep", "idle"})}],
    )
    def test_is_open_for_what_does_not_block_a_shutdown(self, changes: dict[str, object]) -> None:
        assert InhibitorGate(lambda: [inhibitor(**changes)]).verdict(NOW).is_open

    def test_that_cannot_tell_is_closed(self) -> None:
        def ask() -> Sequence[Inhibitor]:
            raise MachineError("inhibitors cannot be listed: busctl took too long")

        verdict = InhibitorGate(ask).verdict(NOW)
        assert (verdict.is_open, verdict.code) == (False, "inhibitors-unknown")
        assert verdict.sentence == "inhibitors cannot be listed: busctl took too long"


def answers(status: int | None, output: bytes) -> Callable[[Sequence[str]], Outcome]:
    return lambda _command: Outcome(status=status, output=output)


class TestOnAMachine:
    """Without a busctl; with a real one in tests/e2e."""

    def missing(self, command: Sequence[str]) -> Outcome:
        raise CommandError(f"{command[0]!r} cannot be started: no such file")

    def test_without_a_system_bus_there_are_none(self, tmp_path: Path) -> None:
        assert list_inhibitors(bus=tmp_path / "bus", runner=self.missing) == ()

    def test_that_systemd_does_not_run_there_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "bus").touch()
        found = list_inhibitors(bus=tmp_path / "bus", booted=tmp_path / "no", runner=self.missing)
        assert found == ()

    def test_that_systemd_runs_a_missing_busctl_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "bus").touch()
        with pytest.raises(MachineError, match="'busctl' cannot be started"):
            list_inhibitors(bus=tmp_path / "bus", booted=tmp_path, runner=self.missing)

    def test_whose_bus_does_not_answer_cannot_tell(self, tmp_path: Path) -> None:
        (tmp_path / "bus").touch()

        with pytest.raises(MachineError, match="busctl took too long"):
            list_inhibitors(bus=tmp_path / "bus", runner=answers(None, b""))

    @pytest.mark.parametrize("answer", [b"", b"{}", b"\xff", b'{"data":[[["a"]]]}', b"[" * 9999])
    def test_whose_answer_is_odd_cannot_tell(self, tmp_path: Path, answer: bytes) -> None:
        (tmp_path / "bus").touch()

        with pytest.raises(MachineError, match="busctl's answer is odd"):
            list_inhibitors(bus=tmp_path / "bus", runner=answers(0, answer))
