"""`bascule` as a person types it: every verb's exit status, and its three lines when it fails."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from partitions.slots import Slot
from tests.sim.full_disk import fill, read_only, small_disk
from tests.sim.lives import due_now, live
from tests.sim.world import World, run_until
from updater.cli import bascule, main
from updater.engine import Engine
from updater.errors import (
    EXIT_ARMED,
    EXIT_CANNOT_TELL,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    EXIT_REFUSED,
    EXIT_USAGE,
)
from updater.machine_model import REBOOT_FILE
from updater.node import LOCK_FILE

NOBODY: Final = "http://127.0.0.1:9"  # the discard port: nobody listens on a loopback
LINES: Final = re.compile(
    r"error: (?P<sentence>.+)\nhint: (?P<hint>.+)\ncode: (?P<code>[a-z0-9-]+)\n"
)
# Every verb that needs a node, as it is typed.
VERBS: Final = (
    ["status"],
    ["slots"],
    ["check"],
    ["update", "--yes"],
    ["reboot"],
    ["rollback"],
    ["confirm"],
    ["history"],
    ["permit", "status"],
    ["permit", "set-max", "3"],
    ["permit", "return"],
)


@dataclass(frozen=True)
class Said:
    """What a command said and ended with."""

    status: int
    out: str
    err: str

    @property
    def code(self) -> str:
        """The code of the error; the three lines must be all that was said."""
        found = LINES.fullmatch(self.err)
        assert found, f"not three lines: {self.err!r}"
        assert self.out == ""
        return found["code"]

    @property
    def sentence(self) -> str:
        found = LINES.fullmatch(self.err)
        assert found, f"not three lines: {self.err!r}"
        return found["sentence"]


Run = Callable[..., Said]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command line in this process, on a settings file."""

    def typed(config: Path, *arguments: str) -> Said:
        capfd.readouterr()
        try:
            status = main(["--config", str(config), *arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capfd.readouterr()
        return Said(status=status, out=said.out, err=said.err)

    return typed


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A node that rests, for commands that change nothing."""
    with World(tmp_path_factory.mktemp("world"), image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A node of one's own that rests and reboots by hand."""
    with World(tmp_path, image_size=512 * 1024) as made:
        made.write_settings(reboot='"manual"')
        run_until(Engine(node=made.boot()), "idle")
        yield made


def bent(world: World, folder: Path, **changes: str) -> Path:
    """Write settings of that world with whole lines replaced by their key; returns the file."""
    text = world.config.read_text()
    for key, value in changes.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(line, f"{key} = {value}")
    file = folder / "bent.toml"
    file.write_text(text)
    return file


def facts(said: Said) -> Any:  # noqa: ANN401  # JSON
    assert said.err == ""
    return json.loads(said.out)


class TestVerbsThatShow:
    def test_status(self, shared: World, run: Run) -> None:
        said = run(shared.config, "status")
        assert said.status == EXIT_DONE
        assert "state     idle\nbooted    1.0.0 in slot a (confirmed)\n" in said.out
        found = facts(run(shared.config, "status", "--json"))
        assert found["state"] == "idle"
        assert found["booted"]["version"] == "1.0.0"
        assert found["compatible_state"] == "UPDATE_STATUS_IDLE"

    def test_slots(self, shared: World, run: Run) -> None:
        said = run(shared.config, "slots")
        assert said.status == EXIT_DONE
        assert [line.split()[:2] for line in said.out.splitlines()[1:]] == [
            ["a", "1.0.0"],
            ["b", "-"],
            ["loader", "gptprio:"],
        ]
        rows = facts(run(shared.config, "slots", "--json"))
        assert [(row["slot"], row["booted"], row["confirmed"]) for row in rows] == [
            ("a", True, True),
            ("b", False, False),
        ]

    def test_history(self, world: World, run: Run) -> None:
        assert run(world.config, "history").status == EXIT_DONE
        run(world.config, "update", "--yes")
        world.release("2.0.0", rollback_index=2)
        run(world.config, "update", "--yes")
        entries = facts(run(world.config, "history", "--json"))
        assert [entry["what"] for entry in entries][-2:] == ["update began", "armed"]
        said = run(world.config, "history", "-n", "1")
        assert len(said.out.splitlines()) == 1
        assert "armed  version=2.0.0" in said.out
        assert run(world.config, "history", "-n", "0").out == ""

    def test_permit_status(self, shared: World, run: Run) -> None:
        said = run(shared.config, "permit", "status")
        assert (said.status, said.out) == (
            EXIT_DONE,
            "group none: no such group yet, 0 waiting\n",
        )
        assert facts(run(shared.config, "permit", "status", "--json"))["holders"] == []

    def test_config(self, shared: World, run: Run) -> None:
        said = run(shared.config, "config", "check")
        assert said.status == EXIT_DONE
        assert said.out.splitlines() == [
            f"settings hold: {shared.config}",
            "boot loader: gptprio, since slots.boot_control names it",
        ]
        rows = facts(run(shared.config, "config", "show", "--json"))
        origins = {row["key"]: row["origin"] for row in rows}
        assert origins["slots.disk"] == str(shared.config)
        assert origins["server.omaha_url"] == "default"
        assert f'slots.disk = "{shared.disk}"  # ' in run(shared.config, "config", "show").out

    def test_which_loader_was_found_and_why(self, shared: World, tmp_path: Path, run: Run) -> None:
        config = bent(
            shared,
            tmp_path,
            boot_control='"auto"',
            grubenv='""',
            custom_command="[]",
            uboot_config='"/nowhere"',
        )
        because = "the partitions of both slots have boot bits in the GPT: a priority=1"
        assert f"boot loader: gptprio, since {because}" in run(config, "config", "check").out
        assert f"loader gptprio: {because}" in run(config, "slots").out
        (found,) = [
            row["found"] for row in facts(run(config, "config", "show", "--json")) if "found" in row
        ]
        assert (found["name"], found["code"]) == ("gptprio", None)

    def test_that_no_loader_is_found(self, shared: World, tmp_path: Path, run: Run) -> None:
        disk = tmp_path / "blank.img"
        disk.write_bytes(bytes(1024 * 1024))
        config = bent(
            shared,
            tmp_path,
            boot_control='"auto"',
            grubenv='""',
            custom_command="[]",
            uboot_config='"/nowhere"',
            disk=f'"{disk}"',
        )
        said = run(config, "config", "check")
        assert said.status == EXIT_FAILED
        assert "code: machine-unfit" in said.err
        assert "boot loader: no boot loader is found: custom: slots.custom_command is not" in (
            said.out
        )
        assert "[boot-control-unknown]" in said.out
        assert run(config, "status").code == "boot-control-unknown"

    def test_they_write_nothing(self, shared: World, run: Run) -> None:
        def contents() -> dict[str, tuple[bytes, int]]:
            folder = shared.folder / "state"
            return {
                file.name: (file.read_bytes(), file.stat().st_mtime_ns)
                for file in folder.iterdir()
                if file.is_file()
            }

        before = contents()
        for verb in (["status"], ["slots"], ["history"], ["permit", "status"], ["config", "show"]):
            run(shared.config, *verb)
        assert contents() == before

    def test_they_work_on_a_read_only_state_folder(self, shared: World, run: Run) -> None:
        with read_only(shared.folder / "state"):
            for verb in (["status"], ["slots"], ["history"]):
                assert run(shared.config, *verb).status == EXIT_DONE

    def test_they_work_while_the_engine_is_busy(self, shared: World, run: Run) -> None:
        with (shared.folder / "state" / LOCK_FILE).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            for verb in (["status"], ["slots"], ["history"], ["permit", "status"]):
                assert run(shared.config, *verb).status == EXIT_DONE


class TestVerbsThatAct:
    def test_check_says_whether_there_is_something(self, world: World, run: Run) -> None:
        said = run(world.config, "check")
        assert (said.status, said.code) == (EXIT_NOTHING, "nothing-newer")
        data = world.release("2.0.0", rollback_index=2)
        before = world.node().store.read_state().state
        said = run(world.config, "check")
        assert said.status == EXIT_DONE
        assert said.out.startswith("version 2.0.0 is available, ")
        found = facts(run(world.config, "check", "--json"))
        assert (found["version"], found["running"], found["size"]) == ("2.0.0", "1.0.0", len(data))
        assert world.node().store.read_state().state is before
        assert world.payloads.sent == 0

    def test_an_update_from_its_start_to_its_confirmation(self, world: World, run: Run) -> None:
        said = run(world.config, "update", "--yes")
        assert (said.status, said.code) == (EXIT_NOTHING, "nothing-newer")
        world.release("2.0.0", rollback_index=1)
        said = run(world.config, "update", "--yes")
        assert (said.status, said.out) == (
            EXIT_ARMED,
            "version 2.0.0 is armed; `bascule reboot` starts it\n",
        )
        said = run(world.config, "update", "--yes")
        assert (said.status, said.code) == (EXIT_ARMED, "armed-already")
        assert "target    slot b at the next boot" in run(world.config, "status").out
        said = run(world.config, "reboot")
        assert (said.status, said.out) == (EXIT_DONE, "the reboot is ordered\n")
        assert (world.folder / "run" / REBOOT_FILE).exists()

        world.boot()
        said = run(world.config, "confirm")
        assert (said.status, said.out) == (EXIT_DONE, "the running system is confirmed\n")
        said = run(world.config, "confirm")
        assert (said.status, said.code) == (EXIT_NOTHING, "already-confirmed")
        assert "booted    2.0.0 in slot b (confirmed)" in run(world.config, "status").out

        said = run(world.config, "rollback")
        assert (said.status, said.out) == (
            EXIT_ARMED,
            "version 1.0.0 is armed; `bascule reboot` starts it\n",
        )
        said = run(world.config, "rollback")
        assert (said.status, said.out) == (
            EXIT_DONE,
            "the update was taken back; the running version stays\n",
        )

    def test_nothing_to_reboot_into_and_nothing_to_roll_back_to(
        self, shared: World, run: Run
    ) -> None:
        said = run(shared.config, "reboot")
        assert (said.status, said.code) == (EXIT_NOTHING, "nothing-armed")
        said = run(shared.config, "rollback")
        assert (said.status, said.code) == (EXIT_REFUSED, "rollback-refused")

    def test_a_trial_does_not_take_an_update(self, world: World, run: Run) -> None:
        world.release("2.0.0", rollback_index=2)
        run(world.config, "update", "--yes")
        run(world.config, "reboot")
        world.boot()
        for verb in (["update", "--yes"], ["rollback"], ["permit", "return"]):
            said = run(world.config, *verb)
            assert (said.status, said.code) == (EXIT_REFUSED, "illegal-transition"), verb

    def test_a_version_that_failed_is_taken_by_force_only(self, world: World, run: Run) -> None:
        world.health = ["sh", "-c", "test $BASCULE_VERSION != 2.0.0"]
        world.write_settings()
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        live(world)
        said = run(world.config, "update")
        assert (said.status, said.code) == (EXIT_REFUSED, "version-denied")
        assert "refuses   2.0.0: " in run(world.config, "status").out
        assert run(world.config, "update", "--force", "--yes").status == EXIT_ARMED

    def test_a_version_may_be_named(self, world: World, run: Run) -> None:
        world.release("2.0.0", rollback_index=2)
        said = run(world.config, "update", "--version", "9.9.9")
        assert (said.status, said.code) == (EXIT_REFUSED, "not-in-channel")
        assert run(world.config, "update", "--version", "2.0.0").status == EXIT_ARMED

    def test_an_armed_update_is_taken_back(self, world: World, run: Run) -> None:
        world.release("2.0.0", rollback_index=2)
        run(world.config, "update", "--yes")
        assert run(world.config, "rollback").status == EXIT_DONE
        assert world.node().loader.read().target is Slot.A

    def test_an_update_that_cannot_be_fetched_goes_on_by_itself(
        self, world: World, run: Run
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        files = dict(world.payloads.files)
        world.payloads.files.clear()
        said = run(world.config, "update", "--yes")
        assert (said.status, said.code) == (EXIT_CANNOT_TELL, "download-failed")
        world.payloads.files.update(files)
        assert run(world.config, "update", "--yes").status == EXIT_ARMED

    def test_a_node_alone_holds_no_permit(self, shared: World, run: Run) -> None:
        said = run(shared.config, "permit", "return")
        assert (said.status, said.out) == (EXIT_DONE, "this node held none\n")
        for verb in (["set-max", "3"], ["return", "0" * 32]):
            said = run(shared.config, "permit", *verb)
            assert (said.status, said.code) == (EXIT_USAGE, "permit-keeper")


class TestEachVerbSaysInThreeLines:
    @pytest.mark.parametrize("verb", VERBS, ids=" ".join)
    def test_that_the_settings_are_broken(self, tmp_path: Path, run: Run, verb: list[str]) -> None:
        config = tmp_path / "node.toml"
        config.write_text("[slots\n")
        said = run(config, *verb)
        assert (said.status, said.code) == (EXIT_USAGE, "settings-invalid")
        assert said.sentence.startswith(f"{config} is not TOML: ")

    @pytest.mark.parametrize("verb", VERBS, ids=" ".join)
    def test_that_a_key_is_unknown(self, tmp_path: Path, run: Run, verb: list[str]) -> None:
        config = tmp_path / "node.toml"
        config.write_text('[slots]\ndisc = "/dev/vda"\n')
        said = run(config, *verb)
        assert (said.status, said.code) == (EXIT_USAGE, "settings-invalid")
        assert said.sentence == f"{config}, line 2: unknown key 'slots.disc'"

    @pytest.mark.parametrize("verb", VERBS, ids=" ".join)
    def test_that_there_are_no_settings(self, tmp_path: Path, run: Run, verb: list[str]) -> None:
        said = run(tmp_path / "missing.toml", *verb)
        assert (said.status, said.code) == (EXIT_USAGE, "settings-missing")

    @pytest.mark.parametrize("verb", [*VERBS, ["config", "check"]], ids=" ".join)
    def test_that_a_partition_is_named_by_nothing(
        self, shared: World, tmp_path: Path, run: Run, verb: list[str]
    ) -> None:
        said = run(bent(shared, tmp_path, a='{ usr = "PARTUUID=none" }'), *verb)
        assert (said.status, said.code) == (EXIT_USAGE, "settings-invalid")

    @pytest.mark.parametrize("verb", [["slots"], ["status"], ["check"]], ids=" ".join)
    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"a": '{ usr = "PARTLABEL=USR-X" }'}, "partition-unknown"),
            ({"disk": '"/dev/null/disk"'}, "device-open"),
            ({"run_folder": '"/nowhere"'}, "booted-slot-unknown"),
        ],
        ids=["label", "no disk", "not booted"],
    )
    def test_that_the_machine_is_not_as_the_settings_say(
        self,
        shared: World,
        tmp_path: Path,
        run: Run,
        change: dict[str, str],
        code: str,
        verb: list[str],
    ) -> None:
        said = run(bent(shared, tmp_path, **change), *verb)
        assert (said.status, said.code) == (EXIT_FAILED, code)

    @pytest.mark.parametrize("verb", [["slots"], ["status"], ["check"]], ids=" ".join)
    def test_that_the_disk_has_no_gpt(
        self, shared: World, tmp_path: Path, run: Run, verb: list[str]
    ) -> None:
        (tmp_path / "empty.img").write_bytes(bytes(1024 * 1024))
        said = run(bent(shared, tmp_path, disk=f'"{tmp_path}/empty.img"'), *verb)
        assert (said.status, said.code) == (EXIT_FAILED, "gpt-missing")
        assert f"{tmp_path}/empty.img" in said.sentence

    @pytest.mark.parametrize("verb", [["check"], ["update", "--yes"]], ids=" ".join)
    def test_that_the_metadata_cannot_be_had(
        self, shared: World, tmp_path: Path, run: Run, verb: list[str]
    ) -> None:
        said = run(bent(shared, tmp_path, metadata_url=f'"{NOBODY}/metadata/"'), *verb)
        assert (said.status, said.code) == (EXIT_CANNOT_TELL, "trust-unreachable")

    @pytest.mark.parametrize("verb", [["check"], ["update", "--yes"]], ids=" ".join)
    def test_that_the_server_cannot_be_asked(
        self, shared: World, tmp_path: Path, run: Run, verb: list[str]
    ) -> None:
        change = f'1\nomaha_url = "{NOBODY}/v1/update/"'
        said = run(bent(shared, tmp_path, poll_interval_secs=change), *verb)
        assert (said.status, said.code) == (EXIT_CANNOT_TELL, "server-unreachable")

    @pytest.mark.parametrize(
        "verb", [["permit", "status"], ["permit", "set-max", "2"]], ids=" ".join
    )
    def test_that_etcd_cannot_be_asked(
        self, shared: World, tmp_path: Path, run: Run, verb: list[str]
    ) -> None:
        config = bent(shared, tmp_path)
        permit = f'[permit]\nkind = "etcd"\nendpoints = ["{NOBODY}"]\n'
        config.write_text(config.read_text() + permit)
        said = run(config, *verb)
        assert (said.status, said.code) == (EXIT_CANNOT_TELL, "permit-unavailable")

    @pytest.mark.parametrize(
        "verb",
        [["check"], ["update", "--yes"], ["rollback"], ["confirm"]],
        ids=" ".join,
    )
    def test_that_the_engine_is_busy(self, shared: World, run: Run, verb: list[str]) -> None:
        with (shared.folder / "state" / LOCK_FILE).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            said = run(shared.config, *verb)
        assert (said.status, said.code) == (EXIT_CANNOT_TELL, "engine-busy")

    def test_that_the_state_folder_cannot_be_written(self, shared: World, run: Run) -> None:
        with read_only(shared.folder / "state"):
            said = run(shared.config, "update", "--yes")
        assert (said.status, said.code) == (EXIT_FAILED, "state-folder")

    def test_that_the_disk_is_full_and_goes_on_when_it_is_not(
        self, world: World, tmp_path: Path, run: Run
    ) -> None:
        world.release("2.0.0", rollback_index=2)
        with small_disk(tmp_path / "small") as folder:
            config = bent(world, tmp_path, state_folder=f'"{folder}"')
            assert run(config, "check").status == EXIT_DONE
            fill(folder)
            said = run(config, "update", "--yes")
            assert (said.status, said.code) == (EXIT_FAILED, "state-folder")
            assert "No space left on device" in said.sentence
            assert world.node().loader.read().target is Slot.A
            (folder / "ballast").unlink()
            assert run(config, "update", "--yes").status == EXIT_ARMED
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_that_the_state_folder_cannot_be_made(
        self, shared: World, tmp_path: Path, run: Run
    ) -> None:
        (tmp_path / "file").touch()
        config = bent(shared, tmp_path, state_folder=f'"{tmp_path}/file/state"')
        assert run(config, "check").code == "state-folder"

    def test_that_a_key_file_is_missing(self, world: World, tmp_path: Path, run: Run) -> None:
        config = bent(world, tmp_path, payload_keys='["/nowhere/key.pub.pem"]')
        said = run(config, "config", "check")
        assert (said.status, said.code) == (EXIT_FAILED, "key-unreadable")
        world.release("2.0.0", rollback_index=2)
        assert run(config, "update", "--yes").code == "key-unreadable"
        assert world.node().loader.read().target is Slot.A
        assert run(world.config, "update", "--yes").status == EXIT_ARMED

    def test_that_a_file_of_the_machine_is_missing(
        self, shared: World, tmp_path: Path, run: Run
    ) -> None:
        said = run(bent(shared, tmp_path, machine_id_file='"/nowhere/id"'), "status")
        assert (said.status, said.code) == (EXIT_FAILED, "system")
        assert "/nowhere/id" in said.sentence

    def test_that_the_loader_is_none_that_we_know(
        self, shared: World, tmp_path: Path, run: Run
    ) -> None:
        config = bent(shared, tmp_path, boot_control='"lilo"')
        assert run(config, "status").code == "settings-invalid"

    def test_that_the_service_cannot_begin(self, shared: World, tmp_path: Path) -> None:
        config = bent(shared, tmp_path, run_folder='"/nowhere"')
        program = [sys.executable, "-m", "updater.cli", "--config", str(config), "daemon"]
        said = subprocess.run(
            program,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=Path(__file__).parents[3],
        )
        assert said.returncode == EXIT_FAILED
        assert Said(status=1, out=said.stdout, err=said.stderr).code == "booted-slot-unknown"


class TestUsage:
    @pytest.mark.parametrize(
        "arguments", [["fly"], ["status", "--fast"], ["history", "-n", "x"], ["permit", "set-max"]]
    )
    def test_what_is_not_a_command_is_told_apart(
        self, shared: World, run: Run, arguments: list[str]
    ) -> None:
        said = run(shared.config, *arguments)
        assert (said.status, said.code) == (EXIT_USAGE, "usage")

    @pytest.mark.parametrize("group", [["permit"], ["config"]])
    def test_a_group_alone_shows_its_help(self, shared: World, run: Run, group: list[str]) -> None:
        said = run(shared.config, *group)
        assert said.status == EXIT_USAGE
        assert "Usage: bascule" in said.err

    def test_every_verb_has_help_with_an_example(self, capsys: pytest.CaptureFixture[str]) -> None:
        names = [
            [name]
            if not hasattr(command, "commands")
            else [[name, inner] for inner in command.commands]
            for name, command in bascule.commands.items()
            if not command.hidden
        ]
        flat = [item for name in names for item in (name if isinstance(name[0], list) else [name])]
        for verb in flat:
            assert main([*map(str, verb), "--help"]) == EXIT_DONE
            assert "Example: bascule " in capsys.readouterr().out, verb

    def test_the_exit_statuses_are_in_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--help"])
        assert "5 armed" in " ".join(capsys.readouterr().out.split())

    def test_the_program_is_installed(self) -> None:
        program = shutil.which("bascule", path=str(Path(sys.executable).parent))
        if program is None:
            pytest.skip("bascule is not installed beside this Python")
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert "version" in said.stdout


HEAVY: Final = ("tuf", "requests", "urllib3", "cryptography", "securesystemslib", "google.protobuf")


@pytest.mark.parametrize(
    "verb",
    [["status"], ["status", "--json"], ["slots"], ["history"], ["config", "show"]],
    ids=" ".join,
)
def test_what_only_shows_loads_nothing_heavy(shared: World, verb: list[str]) -> None:
    program = (
        "import sys\nfrom updater.cli import main\nstatus = main(sys.argv[1:])\n"
        "print(sorted(sys.modules), file=sys.stderr)\nsys.exit(status)"
    )
    command = [sys.executable, "-c", program, "--config", str(shared.config), *verb]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    loaded = {name for name in HEAVY if f"'{name}'" in said.stderr}
    assert loaded == set()


def test_a_reader_that_goes_away_is_no_error(shared: World) -> None:
    program = "import sys; from updater.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--config", str(shared.config), "config", "show"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nowhere:  # noqa: PTH123  # a descriptor
        said = subprocess.run(
            command,
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
    assert "Traceback" not in said.stderr
    assert said.stderr == ""
