"""Every exit status that docs/operating-a-node.md names for a command is produced here once."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from docs.papers.manual import OPERATING, exit_statuses
from tests.sim.etcd import etcd_programs, running_etcd
from tests.sim.world import World, run_until
from updater.cli import main
from updater.engine import Engine
from updater.node import LOCK_FILE

NOBODY: Final = "http://127.0.0.1:9"
DOCUMENTED: Final = sorted(
    (command, int(status))
    for command, text in exit_statuses(OPERATING.read_text()).items()
    for status in re.findall(r"\b\d\b", text)
)
Ends = Callable[[World], int]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, image_size=512 * 1024) as made:
        made.write_settings(reboot='"manual"')
        run_until(Engine(node=made.boot()), "idle")
        yield made


def typed(line: str) -> Ends:
    """Return what types a command, words apart by spaces."""

    def ends(world: World) -> int:
        try:
            return main(["--config", str(world.config), *line.split()[1:]])
        except SystemExit as ended:
            return int(ended.code or 0)

    return ends


def after(*before: Callable[[World], object], then: str) -> Ends:
    """Return what does all that comes before, then types a command."""

    def ends(world: World) -> int:
        for step in before:
            step(world)
        return typed(then)(world)

    return ends


def newer(world: World) -> None:
    world.release("2.0.0", rollback_index=2)


def armed(world: World) -> None:
    newer(world)
    assert typed("bascule update --yes")(world) == 5


def reboot(world: World) -> None:
    typed("bascule reboot")(world)
    world.boot()


def confirmed(world: World) -> None:
    """Run 2.0.0 well, with 1.0.0 in the other slot and allowed."""
    world.release("2.0.0", rollback_index=1)
    typed("bascule update --yes")(world)
    reboot(world)
    typed("bascule confirm")(world)


def past_the_floor(world: World) -> None:
    armed(world)
    reboot(world)
    typed("bascule confirm")(world)


def withdrawn(world: World) -> None:
    world.release("2.0.0", rollback_index=2, withdrawn=["2.0.0"])


def unreachable(world: World) -> None:
    world.write_settings(metadata_url=f'"{NOBODY}/"')


def no_etcd(world: World) -> None:
    permit = f'[permit]\nkind = "etcd"\nendpoints = ["{NOBODY}"]\n'
    world.write_settings(permit)


def broken(world: World) -> None:
    world.config.write_text("[")


def without_disk(world: World) -> None:
    world.write_settings(disk='"/nowhere"')


def held(world: World) -> None:
    typed("bascule hold")(world)


def with_etcd(line: str) -> Ends:
    def ends(world: World) -> int:
        if not etcd_programs():
            pytest.skip("no etcd on this machine (package etcd-server)")
        with running_etcd(world.folder / "etcd") as etcd:
            world.write_settings(f'[permit]\nkind = "etcd"\nendpoints = ["{etcd.url}"]\n')
            return typed(line)(world)

    return ends


def service(world: World) -> int:
    """Let the service run until it has looked at the node, then tell it to stop."""
    command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "daemon"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"service begins" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    return process.returncode


def busy(line: str) -> Ends:
    def ends(world: World) -> int:
        descriptor = os.open(world.folder / "state" / LOCK_FILE, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return typed(line)(world)
        finally:
            os.close(descriptor)

    return ends


MADE: Final[dict[tuple[str, int], Ends]] = {
    ("bascule status", 0): typed("bascule status"),
    ("bascule why", 0): typed("bascule why"),
    ("bascule slots", 0): typed("bascule slots"),
    ("bascule history", 0): typed("bascule history"),
    ("bascule check", 0): after(newer, then="bascule check"),
    ("bascule check", 3): after(withdrawn, then="bascule check"),
    ("bascule check", 4): typed("bascule check"),
    ("bascule check", 5): after(armed, then="bascule check"),
    ("bascule check", 6): after(unreachable, then="bascule check"),
    ("bascule update", 3): after(withdrawn, then="bascule update --yes"),
    ("bascule update", 4): typed("bascule update --yes"),
    ("bascule update", 5): after(newer, then="bascule update --yes"),
    ("bascule update", 6): busy("bascule update --yes"),
    ("bascule reboot", 0): after(armed, then="bascule reboot"),
    ("bascule reboot", 4): typed("bascule reboot"),
    ("bascule reboot", 5): after(armed, held, then="bascule reboot --now"),
    ("bascule rollback", 0): after(armed, then="bascule rollback"),
    ("bascule rollback", 3): after(past_the_floor, then="bascule rollback"),
    ("bascule rollback", 5): after(confirmed, then="bascule rollback"),
    ("bascule confirm", 0): after(armed, reboot, then="bascule confirm"),
    ("bascule confirm", 4): typed("bascule confirm"),
    ("bascule hold", 0): typed("bascule hold --until 4h"),
    ("bascule hold", 2): typed("bascule hold --until 2020-01-01T00:00Z"),
    ("bascule unhold", 0): typed("bascule unhold"),
    ("bascule pin", 0): typed("bascule pin 1.0.0"),
    ("bascule unpin", 0): typed("bascule unpin"),
    ("bascule permit status", 0): typed("bascule permit status"),
    ("bascule permit status", 6): after(no_etcd, then="bascule permit status"),
    ("bascule permit set-max", 0): with_etcd("bascule permit set-max 2"),
    ("bascule permit set-max", 6): after(no_etcd, then="bascule permit set-max 2"),
    ("bascule permit return", 0): with_etcd("bascule permit return"),
    ("bascule permit return", 4): with_etcd("bascule permit return " + "f" * 32),
    ("bascule permit return", 6): after(no_etcd, then="bascule permit return"),
    ("bascule config check", 0): typed("bascule config check"),
    ("bascule config check", 1): after(without_disk, then="bascule config check"),
    ("bascule config check", 2): after(broken, then="bascule config check"),
    ("bascule config show", 0): typed("bascule config show"),
    ("bascule config show", 2): after(broken, then="bascule config show"),
    ("bascule daemon", 0): service,
}


@pytest.mark.parametrize(
    ("command", "status"), DOCUMENTED, ids=lambda part: str(part).replace("bascule ", "")
)
def test_each_documented_status_comes(world: World, command: str, status: int) -> None:
    assert (command, status) in MADE, "produce it here"
    assert MADE[command, status](world) == status


def test_nothing_is_produced_that_the_docs_do_not_name() -> None:
    assert MADE.keys() == set(DOCUMENTED)
