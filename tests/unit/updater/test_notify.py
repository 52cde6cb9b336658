from __future__ import annotations

import itertools
import os
import uuid
from pathlib import Path

import pytest

from tests.sim.journal import Datagrams
from updater.notify import Notifier, Watchdog, take_address, take_watchdog_limit

LIMIT_SECS = 100.0


class TestMessages:
    def test_reach_a_socket_by_path(self, tmp_path: Path) -> None:
        with Datagrams(tmp_path / "notify") as systemd:
            notifier = Notifier(str(tmp_path / "notify"))
            notifier.ready()
            notifier.alive()
            notifier.stopping()
            assert systemd.all() == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]

    def test_reach_an_abstract_socket(self) -> None:
        name = f"bascule-test-{uuid.uuid4()}"
        with Datagrams(f"\0{name}") as systemd:
            Notifier(f"@{name}").ready()
            assert systemd.all() == [b"READY=1"]

    def test_show_a_line_once_and_without_line_ends(self, tmp_path: Path) -> None:
        with Datagrams(tmp_path / "notify") as systemd:
            notifier = Notifier(str(tmp_path / "notify"))
            notifier.status("armed\nREADY=1")
            notifier.status("armed\nREADY=1")
            notifier.status("idle")
            assert systemd.all() == [b"STATUS=armed?READY=1", b"STATUS=idle"]

    def test_are_short(self, tmp_path: Path) -> None:
        with Datagrams(tmp_path / "notify") as systemd:
            Notifier(str(tmp_path / "notify")).status("x" * 100_000)
            assert len(systemd.next()) == len("STATUS=") + 512

    def test_hurt_nobody_when_no_one_listens(self, tmp_path: Path) -> None:
        for address in ("", str(tmp_path / "gone"), "@bascule-nobody", "/" + "x" * 300):
            Notifier(address).ready()

    def test_of_a_service_that_systemd_did_not_start_are_not_heard(self) -> None:
        assert not Notifier("").is_heard
        assert Notifier("/run/systemd/notify").is_heard


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestTheWatchdog:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def pings(self) -> list[float]:
        return []

    @pytest.fixture
    def watchdog(self, clock: Clock, pings: list[float]) -> Watchdog:
        return Watchdog(lambda: pings.append(clock.now), limit_secs=LIMIT_SECS, monotonic=clock)

    def live(self, watchdog: Watchdog, clock: Clock, parts: list[str], secs: int) -> None:
        for _ in range(secs):
            clock.now += 1
            for part in parts:
                watchdog.beat(part)

    def test_is_held_off_while_all_parts_beat(
        self, watchdog: Watchdog, clock: Clock, pings: list[float]
    ) -> None:
        watchdog.expect("loop")
        watchdog.expect("bus")
        self.live(watchdog, clock, ["loop", "bus"], 1000)
        gaps = [after - before for before, after in itertools.pairwise(pings)]
        assert max(gaps) <= LIMIT_SECS / 2
        assert clock.now - pings[-1] <= LIMIT_SECS / 2

    @pytest.mark.parametrize("hung", ["loop", "bus"])
    def test_strikes_when_one_part_hangs_though_others_beat(
        self, watchdog: Watchdog, clock: Clock, pings: list[float], hung: str
    ) -> None:
        watchdog.expect("loop")
        watchdog.expect("bus")
        self.live(watchdog, clock, ["loop", "bus"], 100)
        self.live(watchdog, clock, [part for part in ("loop", "bus") if part != hung], 1000)
        assert pings[-1] <= 100 + LIMIT_SECS / 2

    def test_strikes_when_a_part_never_beats(
        self, watchdog: Watchdog, clock: Clock, pings: list[float]
    ) -> None:
        watchdog.expect("bus")
        self.live(watchdog, clock, ["loop"], 1000)
        assert pings[-1] <= LIMIT_SECS / 2

    def test_is_held_off_again_when_the_part_comes_back(
        self, watchdog: Watchdog, clock: Clock, pings: list[float]
    ) -> None:
        watchdog.expect("bus")
        self.live(watchdog, clock, ["loop"], 80)
        self.live(watchdog, clock, ["loop", "bus"], 20)
        assert pings[-1] > 80

    def test_does_not_wait_for_a_part_that_ended(
        self, watchdog: Watchdog, clock: Clock, pings: list[float]
    ) -> None:
        watchdog.expect("bus")
        watchdog.dismiss("bus")
        self.live(watchdog, clock, ["loop"], 1000)
        assert pings[-1] > 900

    def test_is_not_pinged_at_every_beat(
        self, watchdog: Watchdog, clock: Clock, pings: list[float]
    ) -> None:
        self.live(watchdog, clock, ["loop"], 100)
        assert len(pings) == 10

    def test_without_a_limit_is_never_pinged(self, clock: Clock, pings: list[float]) -> None:
        watchdog = Watchdog(lambda: pings.append(clock.now), limit_secs=0, monotonic=clock)
        self.live(watchdog, clock, ["loop"], 100)
        assert pings == []


class TestTheEnvironment:
    def test_names_the_socket_once(self) -> None:
        environment = {"NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}
        assert take_address(environment) == "/run/systemd/notify"
        assert environment == {"PATH": "/bin"}
        assert take_address(environment) == ""

    def test_names_the_limit_once(self) -> None:
        environment = {"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}
        assert take_watchdog_limit(environment) == 1.5
        assert environment == {}

    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"WATCHDOG_USEC": "-1"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"},
        ],
    )
    def test_of_another_process_or_odd_sets_no_limit(self, environment: dict[str, str]) -> None:
        assert take_watchdog_limit(environment) == 0
