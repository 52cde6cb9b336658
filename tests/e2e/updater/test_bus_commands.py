"""`bascule` by way of the service: the same words and exit statuses as `--direct`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.sim.bus_node import BusNode, bus_node
from tests.sim.message_bus import NOBODY
from updater.errors import EXIT_STOPPED

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def resting() -> Iterator[BusNode]:
    """A node that runs 1.0.0 and knows of nothing newer, its service on the bus."""
    with bus_node() as node:
        node.start()
        node.wait_on_bus()
        yield node


@pytest.fixture
def node() -> Iterator[BusNode]:
    with bus_node(image_size=4 * 1024 * 1024) as made:
        yield made


HOLD, PIN = "hold --reason night", "pin 1.0.0"
# What is said before, and the verb.
VERBS = [
    ("", "check"), ("", "check --json"), ("", "update --yes"), ("", "reboot"), ("", "rollback"),
    ("", "confirm"), ("", HOLD), (HOLD, "unhold"), ("", "unhold"), ("", PIN), (PIN, "unpin"),
    ("", "unpin"), ("", "pin version!"), (PIN, "update --yes --version 3.0.0"),
    ("", "permit status"), ("", "permit status --json"), ("", "permit set-max 2"),
    ("", "permit return"), ("", "permit return 0123"), ("", "history -n 0"), ("", "slots"),
    ("", "why"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "verb"), VERBS)
def test_words_and_status_are_those_of_the_engine(resting: BusNode, before: str, verb: str) -> None:
    def outcome(*how: str) -> tuple[int, str, str]:
        for word in ("unhold", "unpin"):
            resting.cli("--direct", word)
        resting.cli("--direct", *before.split()) if before else None
        done = resting.cli(*how, *verb.split())
        return done.returncode, done.stdout, done.stderr

    jobs = resting.log.count("job begins")
    by_bus = outcome()
    heavy = verb.startswith(("check", "update", "reboot", "permit"))
    assert resting.log.count("job begins") == jobs + heavy
    assert by_bus == outcome("--direct")


def test_a_service_that_is_not_there_is_not_needed(node: BusNode) -> None:
    assert node.cli("hold", "--reason", "x").stdout.startswith("reboots are held")
    assert node.world.node().store.read_hold()


def test_others_than_root_see_the_status_and_are_refused_the_rest(resting: BusNode) -> None:
    shown = resting.cli("status", "--json", user=NOBODY)
    assert json.loads(shown.stdout)["booted"]["version"] == "1.0.0", shown.stderr
    refused = resting.cli("hold", user=NOBODY)
    assert refused.returncode == 3
    assert "code: not-authorized" in refused.stderr
    assert "hint: Become root" in refused.stderr


def test_an_update_by_the_service_ends_like_one_here(node: BusNode) -> None:
    node.settings(reboot='"manual"')
    node.world.release("2.0.0", rollback_index=2)
    node.start()
    node.wait_on_bus()
    done = node.cli("update", "--yes")
    assert (done.returncode, done.stdout) == (
        5,
        "version 2.0.0 is armed; `bascule reboot` starts it\n",
    ), done.stderr
    assert "job begins number=1 verb=update by=root" in node.log
    done = node.cli("rollback")
    assert (done.returncode, done.stdout) == (
        0,
        "the update was taken back; the running version stays\n",
    )


def slow_update(node: BusNode) -> subprocess.Popen[str]:
    """Start `bascule update` against a mirror that trickles, and wait until bytes arrive."""
    node.settings(reboot='"manual"')
    node.world.release("2.0.0", rollback_index=2)
    node.world.payloads.manners.pause_s = 0.2
    node.start()
    node.wait_on_bus()
    command = subprocess.Popen(
        [*node.command, "update", "--yes"], env=node.environment(), cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    node.wait_for(lambda: node.property("State") == "installing", "the install")
    return command


def test_a_service_that_dies_meanwhile_is_a_clear_error(node: BusNode) -> None:
    with slow_update(node) as command:
        assert node.process is not None
        node.process.kill()
        node.process.wait()
        node.process = None
        said = command.communicate(timeout=60)[1]
    assert command.returncode == 6, said
    assert "code: service-gone" in said


def test_ctrl_c_leaves_the_job_to_the_service(node: BusNode) -> None:
    with slow_update(node) as command:
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=60)[1]
    assert command.returncode == EXIT_STOPPED, said
    assert "note: the service goes on with it" in said
    node.world.payloads.manners.pause_s = 0
    node.wait_for(lambda: node.property("State") == "armed", "the end of the update")
