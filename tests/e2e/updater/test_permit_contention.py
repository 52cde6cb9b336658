"""Many processes, few permits: never more holders than max, at no revision; all finish."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.etcd import EtcdServer, etcd_programs, running_etcd
from tests.sim.permits import DOCUMENT, QUEUE, Nodes, check_history, holders

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not etcd_programs(), reason="no etcd on this machine"),
]
NODES = 20
MAX = 3
PATIENCE_S = 300.0  # for a machine that does much else


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd") as running:
        yield running


class Process:
    """One node in a process of its own, its output in a file."""

    def __init__(self, name: str, folder: Path, url: str, *arguments: str) -> None:
        self.name = name
        self._output = folder / f"{name}.out"
        command = [sys.executable, "-m", "tests.sim.permit_node", f"--endpoint={url}"]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, f"--id={name}", f"--folder={folder}", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def finish(self, *, until: float) -> None:
        """Wait for its good end."""
        try:
            status = self._process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} never finished: {self.output()[-2000:]}")
        assert status == 0, self.output()

    def end(self) -> None:
        """End it when a test fails."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def output(self) -> str:
        return self._output.read_text()

    def held(self) -> list[tuple[int, int]]:
        """When it was permitted, by the machine's monotonic clock in nanoseconds."""
        lines = [line.split() for line in self.output().splitlines()]
        starts = [int(line[1]) for line in lines if line[:1] == ["held"]]
        ends = [int(line[1]) for line in lines if line[:1] == ["returned"]]
        return list(zip(starts, ends, strict=True))


def most_at_once(spans: list[tuple[int, int]]) -> int:
    """Return how many of the spans overlap at the worst moment."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def writes(etcd: EtcdServer) -> int:
    return len(etcd.history(DOCUMENT))


def test_twenty_processes_share_three_permits_while_etcd_restarts(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    end = time.monotonic() + PATIENCE_S
    processes = [
        Process(f"node-{number:02d}", tmp_path, etcd.url, f"--max={MAX}", "--hold=0.3")
        for number in range(NODES)
    ]
    try:
        while writes(etcd) < NODES // 2:
            assert time.monotonic() < end, "they never began"
            time.sleep(0.1)
        etcd.stop()
        etcd.start()
        restarted_at = writes(etcd)
        for process in processes:
            process.finish(until=end)
    finally:
        for process in processes:
            process.end()

    assert restarted_at < 2 * NODES, "the restart came too late to prove anything"
    rows = check_history(etcd)
    assert max(len(row) for row in rows) == MAX
    assert {name for row in rows for name in row} == {process.name for process in processes}
    assert 1 < most_at_once([span for process in processes for span in process.held()]) <= MAX
    assert holders(etcd) == []
    assert etcd.names(QUEUE) == []


@pytest.mark.slow
def test_a_long_time_of_restarts_and_changing_max_lets_nobody_in_beyond_it(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    chance = random.Random(2026)
    end = time.monotonic() + 10 * 60
    processes = [
        Process(f"node-{number:02d}", tmp_path, etcd.url, "--rounds=15", "--hold=0.1")
        for number in range(NODES)
    ]
    fleet = Nodes(tmp_path, etcd.url)
    operator = fleet.node("operator")
    try:
        for _ in range(20):
            time.sleep(chance.uniform(0.5, 2.0))
            operator.set_max(chance.randint(0, 5))
            if chance.random() < 0.3:
                etcd.kill() if chance.random() < 0.5 else etcd.stop()
                etcd.start()
        operator.set_max(5)
        for process in processes:
            process.finish(until=end)
    finally:
        for process in processes:
            process.end()
        fleet.close()

    rows = check_history(etcd)
    assert holders(etcd) == []
    assert len(rows) >= 2 * 15 * NODES
