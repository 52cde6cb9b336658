"""GRUB itself as the judge: `grub-editenv` of our block, a real GRUB of our script and its model.

`grub-emu` is GRUB as a program: its own script interpreter, file systems and `save_env`, on a disk
file.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitions.boot import grubenv
from partitions.boot.grubenv import GrubEnvironment
from partitions.grub_block import (
    BLOCK_BYTES,
    EMPTY_BLOCK,
    SIGNATURE,
    filled,
    variables,
    with_value,
)
from partitions.grub_firmware import choose
from partitions.slots import Slot
from tests.sim.gpt_tools import bare_loop_device, mounted, program, run

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B
SCRIPT = Path(grubenv.__file__).with_name("grub-ab.cfg")
DOCS = (Path(grubenv.__file__).parents[2] / "docs/grub.md").read_text()
PATIENCE_SECS = 60
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=12
) | st.text(st.sampled_from('\\#=" a'), max_size=12)
VARIABLES = st.dictionaries(NAMES, VALUES, max_size=10)
QUICK = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    program("grub-editenv")
    return tmp_path / "grubenv"


def listed(file: Path) -> bytes:
    done = subprocess.run(
        [program("grub-editenv"), str(file), "list"], check=True, capture_output=True
    )
    return done.stdout


def as_listed(block: bytes) -> bytes:
    return b"".join(name + b"=" + value + b"\n" for name, value in variables(block).items())


class TestGrubEditenv:
    @QUICK
    @given(VARIABLES)
    def test_lists_what_we_set(self, file: Path, wanted: dict[str, str]) -> None:
        block = EMPTY_BLOCK
        for name, value in wanted.items():
            block = with_value(block, name.encode(), value.encode())
        file.write_bytes(block)
        assert listed(file).decode() == "".join(f"{n}={v}\n" for n, v in wanted.items())

    @QUICK
    @given(VARIABLES, VARIABLES)
    def test_sets_what_we_read_and_byte_for_byte_as_we_do(
        self, file: Path, first: dict[str, str], second: dict[str, str]
    ) -> None:
        block = EMPTY_BLOCK
        file.write_bytes(block)
        for wanted in (first, second):
            for name, value in wanted.items():
                run("grub-editenv", file, "set", f"{name}={value}")
                block = with_value(block, name.encode(), value.encode())
        assert variables(file.read_bytes()) == variables(block)
        assert file.read_bytes() == block

    @QUICK
    @given(st.lists(st.sampled_from([b"\\", b"\n", b"#", b"=", b"a", b"B_TRY", b"1"]), max_size=60))
    def test_reads_any_rubbish_as_we_do(self, file: Path, body: list[bytes]) -> None:
        block = filled(SIGNATURE + b"".join(body))
        file.write_bytes(block)
        said = listed(file)
        found = list(variables(block).items())
        assert said.endswith(as_listed(block)[-1:])
        assert all(name + b"=" + value + b"\n" in said for name, value in found)
        assert bool(said) == bool(found)

    def test_makes_a_file_that_the_keeper_can_use(self, file: Path) -> None:
        run("grub-editenv", file, "create")
        control = GrubEnvironment(file, booted=A)
        assert control.read().target is None
        control.confirm(A)
        control.arm(B, tries=3)
        assert listed(file) == b"ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=3\n"
        assert (control.read().target, control.read().slots[B].tries_left) == (B, 3)

    def test_makes_the_state_that_the_docs_tell_integrators_to_make(self, file: Path) -> None:
        run("grub-editenv", file, "create")
        run("grub-editenv", file, "set", "ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0")
        state = GrubEnvironment(file).read()
        assert state.target is A
        assert state.slots[A].confirmed
        assert not state.slots[B].armed

    @QUICK
    @given(VARIABLES)
    def test_finds_its_variables_again_after_every_verb(
        self, file: Path, others: dict[str, str]
    ) -> None:
        file.unlink(missing_ok=True)
        run("grub-editenv", file, "create")
        for name, value in others.items():
            run("grub-editenv", file, "set", f"{name}={value}")
        before = listed(file)
        control = GrubEnvironment(file, booted=A)
        control.confirm(A)
        control.arm(B, tries=2)
        control.confirm(B)
        control.reject(B)
        control.disarm(B)
        assert listed(file) == b"ORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n" + before
        assert file.stat().st_size == BLOCK_BYTES


def ext4(disk: Path, tree: Path) -> Path:
    """Make a small ext4 with these files; returns the disk file."""
    run("mkfs.ext4", "-q", "-d", tree, disk, "1M")
    return disk


def switch_on(disk: Path, *, folder: Path, root: str) -> bytes:
    """Let a real GRUB run `grub.cfg` of a folder until it halts or reboots; returns what it said.

    Args:
        disk: what GRUB sees as (hd0).
        folder: where GRUB's files are on its root.
        root: "hd0", or "host" for our own file system.
    """
    devices = disk.with_name("device.map")
    devices.write_text(f"(hd0) {disk}\n")
    command = [program("grub-emu"), "-d", str(folder), "-m", str(devices), "-r", root]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE_SECS,
        env={"TERM": "dumb"},
    )
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Grub:
    """A real GRUB with our script, and a disk file with an ext4 that holds its environment."""

    folder: Path
    disk: Path
    block_at: int

    @classmethod
    def make(cls, folder: Path) -> Grub:
        program("grub-emu")
        (folder / "root").mkdir()
        (folder / "root/grubenv").write_bytes(EMPTY_BLOCK)
        disk = ext4(folder / "disk.img", folder / "root")
        (folder / "grub-ab.cfg").write_bytes(SCRIPT.read_bytes())
        return cls(folder, disk, disk.read_bytes().index(SIGNATURE))

    @property
    def block(self) -> bytes:
        with self.disk.open("rb") as file:
            file.seek(self.block_at)
            return file.read(BLOCK_BYTES)

    def put(self, block: bytes) -> None:
        with self.disk.open("r+b") as file:
            file.seek(self.block_at)
            file.write(block)

    def boot(self, environment: str = "(hd0)/grubenv") -> Slot | None:
        """Switch on: the script runs, says its choice, and the machine halts."""
        (self.folder / "grub.cfg").write_text(
            f'set bascule_env="{environment}"\nsource $prefix/grub-ab.cfg\n'
            'echo "SLOT=<$bascule_slot>"\nhalt\n'
        )
        said = switch_on(self.disk, folder=self.folder, root="host")
        chosen = re.search(rb"SLOT=<(.?)>", said)
        assert chosen, said
        return Slot(chosen[1].decode().lower()) if chosen[1] else None


@pytest.fixture
def grub(tmp_path: Path) -> Grub:
    return Grub.make(tmp_path)


def state(order: str, a: tuple[str, str], b: tuple[str, str]) -> bytes:
    text = f"ORDER={order}\nA_OK={a[0]}\nA_TRY={a[1]}\nB_OK={b[0]}\nB_TRY={b[1]}\n"
    return filled(SIGNATURE + text.encode())


ODD = [
    *(state(order, ("1", "0"), ("0", "2")) for order in ("B", "", "A", "X B A", "B  A", "b a")),
    *(state("B A", ("1", "0"), (ok, "0")) for ok in ("", "2", "01", "true", "1 ", "-1")),
    *(state("B A", ("1", "0"), ("0", tries)) for tries in ("", "10", "02", "x", "-1", "1 1")),
    *(state("B A", ("0", "0"), ("0", tries)) for tries in ("9", "5", "12")),
    filled(SIGNATURE + b"A_OK=1\n"),
    filled(SIGNATURE + b"x=1\nORDER=B A\nB_TRY=3\nB_TRY=2\nA_OK=1\n"),
    filled(SIGNATURE + b"ORDER=B A\nA_OK=1\nB_TRY=2\ntorn"),
    filled(SIGNATURE + b"rubbish\nORDER=B A\nA_OK=1\nB_TRY=2\n"),
    EMPTY_BLOCK,
]


class TestTheScriptInARealGrub:
    def test_has_no_syntax_error(self) -> None:
        run("grub-script-check", SCRIPT)

    def test_chooses_and_saves_as_the_model_does(self, grub: Grub) -> None:
        marks = [("1", "0"), ("0", "0"), ("0", "1"), ("0", "2"), ("0", "9"), ("1", "3")]
        orders = ("A B", "B A")
        blocks = [state(*one) for one in itertools.product(orders, marks, marks)] + ODD
        for block in blocks:
            grub.put(block)
            chosen = grub.boot()
            assert (chosen, grub.block) == choose(block), block.rstrip(b"#")

    def test_ends_a_trial_that_nobody_confirms(self, grub: Grub, tmp_path: Path) -> None:
        file = tmp_path / "grubenv"
        file.write_bytes(grub.block)
        control = GrubEnvironment(file)
        control.confirm(A)
        control.arm(B, tries=3)
        grub.put(file.read_bytes())
        assert [grub.boot() for _ in range(5)] == [B, B, B, A, A]

    def test_passes_a_trial_over_when_its_try_cannot_be_saved(
        self, grub: Grub, tmp_path: Path
    ) -> None:
        file = tmp_path / "grubenv"  # on GRUB's view of our file system, which it cannot write
        file.write_bytes(state("B A", ("1", "0"), ("0", "3")))
        assert grub.boot(f"(host){file}") is A

    @pytest.mark.parametrize("content", [b"", b"\0" * 1024])
    def test_chooses_nothing_without_an_environment(
        self, grub: Grub, tmp_path: Path, content: bytes
    ) -> None:
        file = tmp_path / "grubenv"
        file.write_bytes(content)
        assert grub.boot(f"(host){file}") is None


class TestTheConfigurationInTheDocs:
    @pytest.fixture
    def config(self) -> str:
        found = re.search(r"```grub\n(.*?)```", DOCS, re.DOTALL)
        assert found
        return found[1]

    def test_has_no_syntax_error(self, config: str, tmp_path: Path) -> None:
        (tmp_path / "grub.cfg").write_text(config)
        run("grub-script-check", tmp_path / "grub.cfg")

    def test_leaves_a_trial_whose_kernel_cannot_be_loaded(
        self, config: str, tmp_path: Path
    ) -> None:
        program("grub-emu")  # it has no kernels to load, so each boot comes to its last lines
        files = tmp_path / "root/grub"
        files.mkdir(parents=True)
        (files / "grub-ab.cfg").write_bytes(SCRIPT.read_bytes())
        (files / "grub.cfg").write_text(config.replace("sleep 5", "echo SLOT=$2"))
        environment = state("B A", ("1", "0"), ("0", "2"))
        (files / "grubenv").write_bytes(environment)
        disk = ext4(tmp_path / "disk.img", tmp_path / "root")
        said = [switch_on(disk, folder=Path("/grub"), root="hd0") for _ in range(4)]
        assert [re.findall(rb"SLOT=(\w)", one) for one in said] == [[b"B"], [b"B"], [b"A"], [b"A"]]


def seen_by_grub(disk: Path, folder: Path) -> bytes:
    """Return the environment as GRUB would read it if the power failed now."""
    cut = folder / "cut.img"
    cut.write_bytes(disk.read_bytes())
    done = subprocess.run(
        [program("grub-fstest"), str(cut), "cat", "/grubenv"], check=True, capture_output=True
    )
    return done.stdout


class TestAPowerCutOnAMountedFileSystem:
    """GRUB does not replay a journal: decision 0006."""

    def test_a_verb_is_there_for_grub_when_it_returns(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk.img"
        disk.write_bytes(bytes(32 * 1024 * 1024))
        with bare_loop_device(disk) as device, mounted(device, tmp_path / "boot") as boot:
            file = boot / "grubenv"
            file.write_bytes(EMPTY_BLOCK)
            run("sync", "-f", boot)
            control = GrubEnvironment(file, booted=A)
            control.confirm(A)
            for tries in (1, 2, 3):
                control.arm(B, tries=tries)
                assert seen_by_grub(disk, tmp_path) == file.read_bytes()
            control.disarm(B)
            assert seen_by_grub(disk, tmp_path) == file.read_bytes()

    def test_a_file_that_was_renamed_durably_is_not(self, tmp_path: Path) -> None:
        from updater.durable import replace_durably

        disk = tmp_path / "disk.img"
        disk.write_bytes(bytes(32 * 1024 * 1024))
        with bare_loop_device(disk) as device, mounted(device, tmp_path / "boot") as boot:
            file = boot / "grubenv"
            file.write_bytes(EMPTY_BLOCK)
            run("sync", "-f", boot)
            replace_durably(file, with_value(EMPTY_BLOCK, b"A_OK", b"1"))
            assert seen_by_grub(disk, tmp_path) == EMPTY_BLOCK
