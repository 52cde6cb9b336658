"""The post-install program on real mounts: what it is told, how it may end, what is left behind."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import build as build_payload
from images.format_1 import build_format_1
from partitions.slots import Region, Slot
from tests.sim.plain import give, is_armed, memory_of
from tests.sim.world import TOOLS, World, payload_key, run_until
from updater.engine import Engine
from updater.errors import SettingsError, UpdaterError
from updater.lifecycle import State
from updater.postinstall import clean_up, run_postinstall

pytestmark = pytest.mark.e2e
OFFSET = 1024 * 1024
SIZE = 8 * 1024 * 1024


@pytest.fixture(autouse=True)
def mounts() -> None:
    """Skip where nothing can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    for tool in ("mkfs.ext2", "mount", "losetup", "findmnt"):
        if shutil.which(tool, path=TOOLS) is None:
            pytest.skip(f"{tool} is not installed")
    probe = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("there are no loop devices")


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    yield folder
    assert not list(folder.glob("postinst-*")), "a mount was left behind"
    assert str(folder) not in Path("/proc/self/mounts").read_text()


def ext2_region(folder: Path, program: str | None, *, kind: str = "ext2") -> Region:
    """Make a disk file with an image at an offset, whose program is this shell script."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_text("the image\n")
    if program is not None:
        (tree / "postinst").write_text(f"#!/bin/sh\n{program}\n")
        (tree / "postinst").chmod(0o755)
    image = folder / "image"
    make_image(tree, image, kind)
    disk = folder / "disk.img"
    data = image.read_bytes()
    disk.write_bytes(bytes(OFFSET) + data + bytes(OFFSET))
    return Region(path=disk, offset=OFFSET, size=len(data), partuuid="u", label="USR-B")


def make_image(tree: Path, image: Path, kind: str) -> None:
    if kind == "squashfs":
        if shutil.which("mksquashfs") is None:
            pytest.skip("mksquashfs is not installed (package squashfs-tools)")
        command = ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress"]
    else:
        command = [f"mkfs.{kind}", "-q", "-F", "-d", str(tree), str(image), f"{SIZE // 1024}k"]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": TOOLS})


def carry_out(
    region: Region,
    run_folder: Path,
    *,
    timeout_secs: float = 30,
    brought: dict[str, Path] | None = None,
) -> None:
    environment = {"HTTPS_PROXY": "http://proxy:1", "LC_ALL": "de_DE", "SECRET": "x"}
    run_postinstall(
        region,
        brought=brought or {},
        run_folder=run_folder,
        timeout_secs=timeout_secs,
        environment=environment,
    )


def test_it_is_told_what_the_contract_names_and_nothing_else(
    tmp_path: Path, run_folder: Path
) -> None:
    seen = tmp_path / "seen"
    script = f'(echo "$0"; echo "$#"; echo "$1"; pwd; id -u; /usr/bin/env) > {seen}'
    region = ext2_region(tmp_path, script)

    carry_out(region, run_folder)

    program, count, device, folder, user, *names = seen.read_text().splitlines()
    assert program.startswith(str(run_folder / "postinst-"))
    assert program.endswith("/postinst")
    assert (count, folder, user) == ("1", "/", "0")
    assert device.startswith("/dev/loop")
    own = {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's
    assert {name.partition("=")[0] for name in names} - own == {"PATH", "HTTPS_PROXY"}


def test_it_is_told_of_parts_that_are_in_their_place(tmp_path: Path, run_folder: Path) -> None:
    seen = tmp_path / "seen"
    region = ext2_region(tmp_path, f'echo "$#" "$2" "$3" > {seen}')
    brought = {"pcr-policy": Path("/var/pcrs-b.zip"), "kernel": Path("/boot/flatcar/vmlinuz-b")}

    carry_out(region, run_folder, brought=brought)

    words = "3 KERNEL=/boot/flatcar/vmlinuz-b PCR_POLICY=/var/pcrs-b.zip\n"
    assert seen.read_text() == words


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "squashfs"])
def test_these_file_systems_are_mounted(tmp_path: Path, run_folder: Path, kind: str) -> None:
    carry_out(ext2_region(tmp_path, "exit 0", kind=kind), run_folder)


def test_the_verified_bytes_are_not_changed_by_it(tmp_path: Path, run_folder: Path) -> None:
    script = 'echo x > "$(dirname "$0")/file"; echo x > "$1"; exit 0'
    region = ext2_region(tmp_path, script, kind="ext3")
    before = region.path.read_bytes()

    carry_out(region, run_folder)

    assert region.path.read_bytes() == before


def test_its_words_are_in_the_log(
    tmp_path: Path, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        carry_out(ext2_region(tmp_path, "echo out; echo err >&2"), run_folder)
    assert "post-install says out" in caplog.text
    assert "post-install says err" in caplog.text


@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("exit 3", "postinstall-firmware", "second firmware"),
        ("exit 1", "postinstall-failed", "status 1"),
        ("kill -SEGV $$", "postinstall-failed", "signal 11"),
        (None, "postinstall-failed", "no program postinst"),
    ],
)
def test_an_end_that_is_no_success(
    tmp_path: Path, run_folder: Path, script: str | None, code: str, sentence: str
) -> None:
    with pytest.raises(UpdaterError, match=sentence) as caught:
        carry_out(ext2_region(tmp_path, script), run_folder)
    assert caught.value.code == code


def test_one_that_hangs_is_ended_and_unmounted(tmp_path: Path, run_folder: Path) -> None:
    region = ext2_region(tmp_path, 'cd "$(dirname "$0")"; exec sleep 1000')
    with pytest.raises(UpdaterError, match="did not end within"):
        carry_out(region, run_folder, timeout_secs=0.5)


def test_what_no_file_system_is_does_not_mount(tmp_path: Path, run_folder: Path) -> None:
    region = ext2_region(tmp_path, "exit 0")
    region.path.write_bytes(bytes(region.path.stat().st_size))
    with pytest.raises(UpdaterError) as caught:
        carry_out(region, run_folder)
    assert caught.value.code == "postinstall-mount"


def test_what_a_killed_process_left_mounted_is_let_go(tmp_path: Path, run_folder: Path) -> None:
    region = ext2_region(tmp_path, "exit 0")
    left = run_folder / "postinst-left"
    left.mkdir(parents=True)
    options = f"loop,ro,offset={region.offset},sizelimit={region.size}"
    subprocess.run(["mount", "-o", options, str(region.path), str(left)], check=True)

    clean_up(run_folder)

    assert not left.exists()


class TestOnANode:
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        with World(tmp_path / "world") as made:
            made.write_settings(max_attempts="5", reboot='"manual"\npostinstall = "flatcar"')
            yield made

    def payload(self, world: World, script: str) -> Path:
        """Return a payload whose image brings this program."""
        output = world.folder / "2.0.0.crau"
        build_payload([("usr", self.image(world, script))], output, keys=[payload_key()], level=1)
        return output

    def image(self, world: World, script: str) -> Path:
        image = world.image("2.0.0", rollback_index=1)
        program = world.folder / "postinst"
        program.write_text(f"#!/bin/sh\n{script}\n")
        commands = f"write {program} postinst\nset_inode_field postinst mode 0100755\n"
        subprocess.run(
            ["debugfs", "-w", "-f", "/dev/stdin", str(image)],
            input=commands.encode(),
            check=True,
            capture_output=True,
            env={"PATH": TOOLS},
        )
        return image

    def test_the_slot_is_armed_after_it_succeeded(self, world: World, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        node = world.boot()
        run_until(Engine(node=node), "idle")

        give(node, self.payload(world, f"touch {ran}"))

        assert ran.exists()
        assert is_armed(node)
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    def test_kernel_and_policy_are_in_their_places_and_it_is_told_so(
        self, world: World, tmp_path: Path
    ) -> None:
        """As Flatcar's engine does it; what the payload does not bring is the program's work."""
        world.files = {"kernel": 1_234_589, "pcr-policy": 777}
        world.write_settings(reboot='"manual"\npostinstall = "flatcar"')
        for part in world.files:
            world.boot_file(Slot.A, part).parent.mkdir(parents=True, exist_ok=True)
            world.boot_file(Slot.A, part).write_bytes(b"old")
        node = world.boot()
        run_until(Engine(node=node), "idle")
        seen = tmp_path / "seen"
        image = self.image(world, f'shift; echo "$@" > {seen}')
        kernel = tmp_path / "kernel"
        kernel.write_bytes(os.urandom(1_234_589))
        output = world.folder / "2.0.0.crau"
        build_format_1([("usr", image), ("kernel", kernel)], output, keys=[payload_key()])

        give(node, output)

        place = world.boot_file(Slot.B, "kernel")
        assert seen.read_text() == f"KERNEL={place}\n"
        assert place.read_bytes() == kernel.read_bytes()
        assert not world.boot_file(Slot.B, "pcr-policy").exists()
        assert world.boot_file(Slot.A, "kernel").read_bytes() == b"old"
        assert is_armed(node)

    def test_the_slot_is_not_armed_when_it_failed_though_it_chose_the_slot_already(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = world.boot()
        run_until(Engine(node=node), "idle")

        def chooses(*_: object, **__: object) -> None:
            node.loader.arm(Slot.B, tries=1)
            monkeypatch.undo()

        payload = self.payload(world, "exit 1")
        before = run_postinstall

        def choose_and_fail(region: Region, **more: object) -> None:
            chooses()
            before(region, **more)  # type: ignore[arg-type]  # passed through

        monkeypatch.setattr("updater.postinstall.run_postinstall", choose_and_fail)
        with pytest.raises(UpdaterError) as caught:
            give(node, payload)

        assert caught.value.code == "postinstall-failed"
        assert not is_armed(node)
        assert memory_of(node).state is State.IDLE

    def test_it_does_not_run_when_the_image_may_not_run_here(
        self, world: World, tmp_path: Path
    ) -> None:
        ran = tmp_path / "ran"
        node = world.boot()
        run_until(Engine(node=node), "idle")
        node.store.raise_floor(9)

        with pytest.raises(UpdaterError):
            give(node, self.payload(world, f"touch {ran}"))

        assert not ran.exists()

    def test_the_slots_must_have_the_part_that_brings_it(self, world: World) -> None:
        text = world.config.read_text().replace("usr = ", "root = ")
        world.config.write_text(text)
        with pytest.raises(SettingsError, match="no part usr"):
            world.settings()
