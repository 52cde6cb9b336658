"""The guard of trials: the shipped script, run for real in a small root of its own.

What it must never do is reboot a system that is not on trial, or reboot for ever.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from partitions.boot import KEEPERS
from partitions.errors import BootControlError
from partitions.slots import Slot
from tests.sim.full_disk import read_only
from tests.sim.lives import due_now, let_time_pass, live, new_process
from tests.sim.loaders import quick
from tests.sim.world import World, run_until
from updater import rebooting
from updater.daemon import Daemon
from updater.engine import Engine
from updater.guard import CONFIRMED_FILE, NO_WAY_BACK_FILE, UNTIL_FILE, note_until, patience
from updater.lifecycle import State
from updater.machine_model import STOPPING_FILE
from updater.settings import CheckSettings, HealthSettings
from updater.trial_marker import TrialMarker, decode_marker

SCRIPT: Final = Path(__file__).parents[2] / "updater/system/usr/lib/bascule/guard"
OLD: Final = b'version = "1.0.0"\nboard = "x"\n'
NEW: Final = b'version = "2.0.0"\nboard = "x"\n'
ALL_STEPS: Final = ["reboot", "reboot --force", "reboot --force --force"]
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


class Root:
    """A system as the guard sees it; `systemctl` and `sleep` are programs that note their call.

    `sleep` lets the uptime pass, and does once what `meanwhile` says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "var/lib/bascule"
        self.run_folder = folder / "run/bascule"
        self.marker = self.state / "trial"
        image = folder / "usr/lib/bascule"
        for made in (self.state, self.run_folder, image, folder / "bin"):
            made.mkdir(parents=True)
        (folder / "proc/sys/kernel/random").mkdir(parents=True)
        (folder / "proc/sys/kernel/random/boot_id").write_text("0000-trial\n")
        self.image = image / "image.toml"
        self.image.write_bytes(NEW)
        self.uptime = folder / "proc/uptime"
        self.uptime.write_text("900.07 1234.5\n")
        self.program(
            "sleep", 'read -r up _ <proc/uptime; echo "$((${up%%.*} + $1)) 0" >proc/uptime'
        )
        self.program("systemctl", "")

    def program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        noting = f'cd {self.folder}; echo "{name} $*" >>calls\n'
        path.write_text(f"#!/bin/sh\n{noting}{script}\n")
        path.chmod(0o755)

    def meanwhile(self, script: str) -> None:
        """Let something happen once, while the guard sleeps for the first time."""
        sleeping = (self.folder / "bin/sleep").read_text().split("\n", 2)[2]
        self.program("sleep", f"{sleeping}[ -e once ] || {{ {script}; }}; touch once")

    def arm(self, *, reboots_left: int = 1, image: bytes = OLD) -> None:
        marker = TrialMarker(reboots_left=reboots_left, image=image)
        self.marker.write_bytes(marker.encode())

    def guard(self, shell: str = "sh") -> list[str]:
        """Run the script; returns what it asked systemctl for."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{self.folder}/bin:{PATH}",
            "BASCULE_GUARD_ROOT": str(self.folder),
        }
        outcome = subprocess.run(
            [shell, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        self.said = outcome.stderr
        lines = calls.read_text().splitlines()
        return [line.removeprefix("systemctl ") for line in lines if line.startswith("systemctl")]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed (package {request.param})")
    return str(request.param)


class TestItLeavesAlone:
    def test_a_boot_without_a_trial(self, root: Root, shell: str) -> None:
        assert root.guard(shell) == []
        assert "no trial is under way" in root.said

    def test_a_slot_that_is_confirmed(self, root: Root, shell: str) -> None:
        root.arm()
        (root.run_folder / CONFIRMED_FILE).touch()
        assert root.guard(shell) == []
        assert "the booted slot is confirmed" in root.said

    def test_the_system_that_armed_the_trial_however_broken_its_service_is(
        self, root: Root, shell: str
    ) -> None:
        """The loader went back, or never went: another reboot would gain nothing."""
        root.arm(reboots_left=15)
        root.image.write_bytes(OLD)
        assert root.guard(shell) == []
        assert "this is the system that armed the trial" in root.said

    def test_a_trial_that_had_all_its_reboots(self, root: Root, shell: str) -> None:
        root.arm(reboots_left=0)
        assert root.guard(shell) == []
        assert "had all the reboots that it may cost" in root.said

    def test_a_system_without_a_way_back(self, root: Root, shell: str) -> None:
        root.arm()
        (root.run_folder / NO_WAY_BACK_FILE).touch()
        assert root.guard(shell) == []
        assert "no other slot to boot" in root.said

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\n\n\n\n",
            "reboots-left 1\n",
            "reboots-left many\nguarded-in -\nimage\nx",
            "reboots-left -1\nguarded-in -\nimage\nx",
            "reboots-left \nguarded-in -\nimage\nx",
            "reboots-left 1000\nguarded-in -\nimage\nx",
            "reboots-left 1; reboot\nguarded-in -\nimage\nx",
            "reboots-left $(reboot)\nguarded-in -\nimage\nx",
            '{"reboots_left": 1}\n',
        ],
    )
    def test_a_marker_that_makes_no_sense(self, root: Root, shell: str, text: str) -> None:
        root.marker.write_text(text)
        assert root.guard(shell) == []
        assert "the marker of the trial is damaged" in root.said
        assert decode_marker(text.encode()) is None

    @pytest.mark.parametrize(
        "meanwhile", ["rm var/lib/bascule/trial", "touch run/bascule/confirmed"]
    )
    def test_a_trial_that_ends_while_it_waits(self, root: Root, shell: str, meanwhile: str) -> None:
        root.arm()
        (root.run_folder / UNTIL_FILE).write_text("1800\n")
        root.meanwhile(meanwhile)
        assert root.guard(shell) == []


class TestItReboots:
    def test_a_system_on_trial_and_counts_it(self, root: Root, shell: str) -> None:
        root.arm(reboots_left=3)
        root.program("systemctl", "kill -9 $PPID")  # it is rebooted at once
        assert root.guard(shell) == ["reboot"]
        marker = decode_marker(root.marker.read_bytes())
        assert marker is not None
        assert (marker.reboots_left, marker.guarded_in) == (2, "0000-trial")
        assert marker.image == OLD
        assert root.marker.stat().st_mode & 0o777 == 0o600

    def test_only_as_often_as_the_loader_tries(self, root: Root, shell: str) -> None:
        root.arm(reboots_left=2)
        assert [len(root.guard(shell)) for _ in range(4)] == [3, 3, 0, 0]

    def test_a_system_whose_image_does_not_say_what_it_is(self, root: Root, shell: str) -> None:
        root.arm()
        root.image.unlink()
        assert root.guard(shell) == ALL_STEPS

    def test_harder_when_nothing_comes_of_it(self, root: Root, shell: str) -> None:
        root.arm()
        assert root.guard(shell) == ALL_STEPS
        calls = (root.folder / "calls").read_text().splitlines()
        assert [call for call in calls if call.startswith("sleep")] == ["sleep 300", "sleep 60"]

    def test_harder_at_once_when_it_is_refused(self, root: Root, shell: str) -> None:
        root.arm()
        root.program("systemctl", "exit 1")
        assert root.guard(shell) == ALL_STEPS
        assert "sleep" not in (root.folder / "calls").read_text()

    def test_not_before_the_service_had_the_time_that_it_asked_for(
        self, root: Root, shell: str
    ) -> None:
        root.arm()
        (root.run_folder / UNTIL_FILE).write_text("1000\n")
        assert root.guard(shell) == ALL_STEPS
        before = (root.folder / "calls").read_text().partition("systemctl")[0].splitlines()
        assert before == ["sleep 10"] * 10

    @pytest.mark.parametrize("text", ["", "soon\n", "-5\n", "1e9\n", "$(reboot)\n"])
    def test_as_if_nothing_had_been_asked_for_when_that_makes_no_sense(
        self, root: Root, shell: str, text: str
    ) -> None:
        root.arm()
        (root.run_folder / UNTIL_FILE).write_text(text)
        assert root.guard(shell) == ALL_STEPS

    def test_though_it_cannot_be_noted(self, root: Root, shell: str) -> None:
        """A new kernel that cannot write the disk must not stay because of that."""
        root.arm()
        with read_only(root.state):
            assert root.guard(shell) == ALL_STEPS
        assert "though it cannot be noted" in root.said


# The guard and the service together: what the one leaves, the other reads.


@pytest.fixture(params=quick(KEEPERS, "gptprio", "systemd-boot"))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A node that runs 1.0.0 in slot A and rests."""
    folder = tmp_path / "world"
    with World(folder, image_size=512 * 1024, boot_control=request.param) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def on_trial(world: World) -> None:
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "rebooting")
    world.boot()
    assert world.node().boot().slot is Slot.B


def guarded(world: World, root: Root) -> list[str]:
    """Let the guard look at the present boot of the node."""
    node = world.node()
    for folder, own in ((root.state, "state"), (root.run_folder, "run")):
        if not folder.is_symlink():
            folder.rmdir()
            folder.symlink_to(world.folder / own)
    root.image.write_bytes(node.machine.image_file(node.boot().slot))
    (root.folder / "proc/sys/kernel/random/boot_id").write_text(f"{node.boot().boot_id}\n")
    root.uptime.write_text(f"{node.machine.uptime().total_seconds():.2f} 0\n")
    return root.guard()


@pytest.fixture
def beside(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


class TestTogether:
    def test_a_service_that_never_starts_costs_one_reboot_and_is_told(
        self, world: World, beside: Root
    ) -> None:
        on_trial(world)
        assert guarded(world, beside) == ALL_STEPS
        assert world.boot().boot().slot is Slot.A
        live(world)
        (why,) = world.node().store.read_denied().values()
        assert (why.code, why.version) == ("trial-guarded", "2.0.0")
        assert "never brought its service up" in why.sentence
        last = [each for each in world.node().store.history() if each["what"] == "fell back"]
        assert (last[-1]["code"], last[-1]["sentence"]) == (why.code, why.sentence)
        assert not (world.folder / "state/trial").exists()

    def test_the_old_system_is_left_alone_before_its_service_looked_and_after(
        self, world: World, beside: Root
    ) -> None:
        on_trial(world)
        guarded(world, beside)
        world.boot()
        assert guarded(world, beside) == []
        assert "this is the system that armed the trial" in beside.said
        live(world)
        assert guarded(world, beside) == []

    def test_a_service_that_crashes_again_and_again_is_guarded_too(
        self, world: World, beside: Root, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_trial(world)
        until = world.folder / "run" / UNTIL_FILE
        with world.node().locked():
            first = until.read_text()
        for _ in range(3):
            let_time_pass(world, 200)
            with new_process(world, monkeypatch).locked():
                assert until.read_text() == first
        assert guarded(world, beside) == ALL_STEPS
        world.boot()
        live(world)
        (why,) = world.node().store.read_denied().values()
        assert why.code == "trial-guarded"
        assert "did not end its trial in time" in why.sentence

    def test_its_reboot_is_no_persons_and_gives_no_try_back(
        self, world: World, beside: Root
    ) -> None:
        on_trial(world)
        node = world.node()
        with node.locked():
            pass
        beside.program("systemctl", "kill -9 $PPID")
        let_time_pass(world)
        assert guarded(world, beside) == ["reboot"]
        (world.folder / "run" / STOPPING_FILE).touch()
        node.stop.set()
        Daemon(node).run()
        assert world.boot().boot().slot is Slot.A

    def test_a_trial_that_is_confirmed_is_left_alone_in_this_boot_and_the_next(
        self, world: World, beside: Root
    ) -> None:
        on_trial(world)
        run_until(Engine(node=world.node()), "idle")
        assert world.node().loader.read().slots[Slot.B].confirmed
        assert (world.folder / "run" / CONFIRMED_FILE).exists()
        assert guarded(world, beside) == []
        world.boot()
        assert guarded(world, beside) == []  # and nobody started the service

    def test_every_boot_of_a_confirmed_slot_says_so(self, world: World) -> None:
        world.boot()
        assert not (world.folder / "run" / CONFIRMED_FILE).exists()
        with world.node().locked():
            assert (world.folder / "run" / CONFIRMED_FILE).exists()

    def test_a_trial_says_no_such_thing(self, world: World) -> None:
        on_trial(world)
        with world.node().locked():
            assert not (world.folder / "run" / CONFIRMED_FILE).exists()

    def test_a_rollback_is_guarded_like_an_update(self, world: World, beside: Root) -> None:
        world.release("2.0.0", rollback_index=1)
        due_now(world)
        live(world)
        node = world.node()
        with node.locked() as memory:
            rebooting.roll_back(node, memory)
        assert guarded(world, beside) == []
        world.boot()
        assert world.node().boot().slot is Slot.A
        assert guarded(world, beside) == ALL_STEPS

    def test_an_update_that_was_taken_back_leaves_nothing_to_guard(self, world: World) -> None:
        world.write_settings(reboot='"manual"')
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
        assert (world.folder / "state/trial").exists()
        node = world.node()
        with node.locked() as memory:
            rebooting.roll_back(node, memory)
        assert not (world.folder / "state/trial").exists()

    def test_a_trial_that_nobody_remembers_is_not_guarded(self, world: World, beside: Root) -> None:
        on_trial(world)
        (world.folder / "state/state.json").unlink()
        with world.node().locked() as memory:
            assert (memory.state, memory.update) == (State.TRIAL, None)
        assert guarded(world, beside) == []

    def test_a_trial_without_a_way_back_is_not_guarded(self, world: World, beside: Root) -> None:
        """The loader would find nothing to boot."""
        on_trial(world)
        node = world.node()
        node.loader.arm(Slot.B, tries=1)
        node.loader.disarm(Slot.A)
        with node.locked():
            pass
        assert guarded(world, beside) == []

    def test_what_one_look_at_the_loader_tells_does_not_end_the_guard_for_good(
        self, world: World, beside: Root, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_trial(world)
        node = world.node()
        node.loader.arm(Slot.B, tries=1)
        node.loader.disarm(Slot.A)
        with node.locked():
            assert (world.folder / "state/trial").exists()
        node.loader.confirm(Slot.A)
        with new_process(world, monkeypatch).locked():
            pass
        let_time_pass(world)
        assert guarded(world, beside) == ALL_STEPS


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize(("name", "place"), [("systemd-boot", "boot"), ("efi", "efivars")])
def test_a_new_system_that_does_not_mount_the_loaders_memory_goes_back(
    tmp_path: Path, beside: Root, name: str, place: str, *, healthy: bool
) -> None:
    with World(tmp_path / "world", image_size=512 * 1024, boot_control=name) as world:
        if not healthy:
            world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
            world.write_settings()
        run_until(Engine(node=world.boot()), "idle")
        on_trial(world)
        mount_point, partition = world.folder / place, world.folder / "unmounted"
        mount_point.rename(partition)
        mount_point.mkdir()
        engine = Engine(node=world.node())
        for _ in range(3):
            with pytest.raises(BootControlError, match="not mounted"):
                engine.step()
            let_time_pass(world)
        assert guarded(world, beside) == ALL_STEPS
        mount_point.rmdir()
        partition.rename(mount_point)
        assert world.boot().boot().slot is Slot.A
        live(world)
        (why,) = world.node().store.read_denied().values()
        assert (why.code, why.version) == ("trial-guarded", "2.0.0")


def test_the_time_of_a_service_covers_deadline_look_steady_time_and_the_way_back() -> None:
    checks = [CheckSettings(name="x", command=["true"], timeout_secs=40)]
    health = HealthSettings(
        checks=checks, ports=["127.0.0.1:1"] * 4, deadline_secs=300, steady_secs=60
    )
    secs = 300 + 60 + 2 * (2 * 10 + 4 * 5 + 40 + 5) + 7 * 60
    assert patience(health, timedelta(seconds=20)) == timedelta(seconds=secs)
    assert patience(health, timedelta(seconds=500)) == timedelta(seconds=secs + 200)


@pytest.mark.parametrize(("deadline", "look", "steady"), [(700, 600, 610), (300, 30, 299)])
def test_the_time_of_a_service_outlasts_every_trial_that_ends_well(
    deadline: float, look: float, steady: float
) -> None:
    """The latest one: a look begins right before the deadline, and each takes its full time."""
    checks = [CheckSettings(name="x", command=["true"], timeout_secs=look)]
    health = HealthSettings(checks=checks, deadline_secs=deadline, steady_secs=steady)
    ends = since = deadline + look
    while ends - since < steady:
        ends += health.interval_secs + look
    assert patience(health, timedelta(seconds=30)).total_seconds() >= ends


def test_a_note_that_cannot_be_made_hurts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note_until(tmp_path / "file", timedelta(seconds=1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
