"""The textfile for node_exporter, kept by the service of a whole node."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater import daemon
from updater.daemon import Daemon
from updater.engine import Engine
from updater.metrics_file import LONGEST_SECS, MetricsFile

Samples = dict[str, float]


class Clock:
    """Seconds that pass when a test says so."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "textfile"
    folder.mkdir()
    return folder / "bascule.prom"


@pytest.fixture
def world(tmp_path: Path, file: Path) -> Iterator[World]:
    with World(tmp_path / "node", image_size=512 * 1024) as made:
        configure(made, file)
        run_until(Engine(node=made.boot()), "idle")
        yield made


def configure(world: World, file: Path) -> None:
    extra = f'[metrics]\ntextfile = "{file}"\n'
    world.write_settings(extra, poll_interval_secs="3600", reboot='"manual"')


def read(file: Path) -> Samples:
    """Return the samples that are 1, and all numbers, by name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(file.read_text()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_the_service_keeps_it_from_idle_to_armed(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "PAUSE_MAX_SECS", 0.01)
    node = world.node()
    thread = threading.Thread(target=Daemon(node).run)
    thread.start()
    try:
        assert _comes(file, "bascule_state{state=idle}")
        assert read(file)["bascule_booted_info{slot=a,version=1.0.0}"] == 1
        assert read(file)["bascule_booted_confirmed"] == 1
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        assert _comes(file, "bascule_state{state=armed}")
        assert _comes(file, "bascule_waiting_info{code=reboot-manual}")
    finally:
        node.stop.set()
        thread.join()
    found = read(file)
    assert found["bascule_update_info{slot=b,version=2.0.0}"] == 1
    assert found["bascule_update_downloaded_bytes"] > 0
    assert found["bascule_gate_closed_info{code=reboot-manual}"] == 1
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def _comes(file: Path, sample: str) -> bool:
    for _ in range(30_000):
        if file.exists() and read(file).get(sample) == 1:
            return True
        time.sleep(0.002)
    return False


def test_it_is_written_when_something_changed_and_once_a_minute(world: World, file: Path) -> None:
    clock, node = Clock(), world.node()
    metrics = MetricsFile(file, node, clock)
    metrics.look()
    first = file.stat().st_ino
    clock.seconds += LONGEST_SECS - 1
    metrics.look()
    assert file.stat().st_ino == first
    clock.seconds += 1
    metrics.look()
    second = file.stat().st_ino
    assert second != first
    node.keep(node.store.read_state(), waiting_code="health-failing")
    metrics.look(pause_secs=5)
    assert file.stat().st_ino == second
    metrics.look()
    assert read(file)["bascule_waiting_info{code=health-failing}"] == 1


def test_that_it_cannot_be_written_is_said_once_and_again_after_it_could(
    world: World, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    metrics = MetricsFile(file, world.node(), clock)
    for there in (False, False, True, False, False):
        if there:
            file.parent.mkdir()
        elif file.parent.exists():
            file.unlink(missing_ok=True)
            file.parent.rmdir()
        clock.seconds += LONGEST_SECS
        with caplog.at_level(logging.WARNING):
            metrics.look()
        assert file.exists() is there
    said = [record for record in caplog.records if "metrics cannot be written" in record.message]
    assert len(said) == 2


def test_a_link_that_waits_where_the_draft_goes_is_not_followed(world: World, file: Path) -> None:
    """The folder may belong to somebody else, and the service is root."""
    victim = file.parent / "victim"
    victim.write_text("precious")
    file.with_name(f"{file.name}.draft").symlink_to(victim)
    MetricsFile(file, world.node()).look()
    assert victim.read_text() == "precious"
    assert read(file)["bascule_state{state=idle}"] == 1
    assert not file.is_symlink()
