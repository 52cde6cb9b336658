"""The recipe as a whole, by its smallest variant: fetched, built twice, booted by QEMU.

The packages stay in the checkout's build/reference, as a person's do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from images.reference import cli
from images.reference.verity import BLOCK

ROOT: Final = Path(__file__).parents[3]
NEEDED: Final = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "veritysetup": "cryptsetup-bin",
    "depmod": "kmod",
    "zstd": "zstd",
}
BOOT_SECS: Final = 120  # a limit, not a measure: three seconds of work, much more on a busy machine

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def build(output: Path, version: str, *arguments: str) -> dict[str, Any]:
    cli.reference.main(
        [
            "build", "--version", version, "--variant", "tiny", "--output", str(output),
            "--built", "2026-11-28T10:00:00Z", "--cache", str(ROOT / "build/reference"),
            "--source", str(ROOT), *arguments,
        ],
        standalone_mode=False,
    )  # fmt: skip
    facts: dict[str, Any] = json.loads((output / "facts.json").read_bytes())
    return facts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version 1.0.0."""
    for program, package in NEEDED.items():
        if shutil.which(program, path="/usr/bin:/usr/sbin:/sbin") is None:
            pytest.skip(f"{program} is not installed (package {package})")
    output = tmp_path_factory.mktemp("reference")
    build(output, "1.0.0")
    return output


def test_the_same_inputs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    build(tmp_path, "1.0.0", "--packages", str(made / "facts.json"))
    for name in ("root.img", "linux", "initrd", "facts.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes(), name


def test_another_version_is_another_root_and_the_same_initrd_but_for_its_end(
    made: Path, tmp_path: Path
) -> None:
    build(tmp_path, "1.0.1")
    assert (tmp_path / "root.img").read_bytes() != (made / "root.img").read_bytes()
    old, new = (tmp_path / "initrd").read_bytes(), (made / "initrd").read_bytes()
    assert old != new
    assert old[:-BLOCK] == new[:-BLOCK]


def test_every_part_is_whole_blocks_as_a_payload_wants_them(made: Path) -> None:
    sizes = [(made / name).stat().st_size for name in ("root.img", "linux", "initrd")]
    assert [size % BLOCK for size in sizes] == [0, 0, 0]
    assert 2 * 1024 * 1024 < sizes[0] < 8 * 1024 * 1024


def console(made: Path, disk: Path, command_line: str, *more: Path) -> str:
    """Return what the machine said until it ended."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (package qemu-system-x86)")
    drives = [
        word
        for number, path in enumerate([disk, *more])
        for word in (
            "-drive", f"if=none,id=d{number},file={path},format=raw,cache=unsafe",
            "-device", f"virtio-blk-pci,drive=d{number}",
        )
    ]  # fmt: skip
    done = subprocess.run(
        [
            "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "192", "-nodefaults",
            "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", made / "linux",
            "-initrd", made / "initrd", "-append", f"console=ttyS0 quiet panic=-1 {command_line}",
            *drives,
        ],
        check=True, capture_output=True, text=True, errors="replace", timeout=BOOT_SECS,
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> Path:
    """A disk with the root in slot B, and nothing in A."""
    if shutil.which("sgdisk") is None:
        pytest.skip("sgdisk is not installed (package gdisk)")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(24 * 1024 * 1024)
        file.seek(12 * 1024 * 1024)
        file.write((made / "root.img").read_bytes())
    subprocess.run(
        ["sgdisk", "-n1:2048:+8M", "-c1:root-a", "-n2:24576:+8M", "-c2:root-b", path],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def test_the_slot_that_the_loader_names_is_opened_verified(made: Path, disk: Path) -> None:
    said = console(made, disk, "bascule.slot=b")
    assert "bascule-initrd: slot=b version=1.0.0 root=verified" in said
    assert "bascule-tiny: slot=b version=1.0.0 up=" in said


def test_a_disk_with_the_same_labels_that_was_plugged_in_is_passed_over(
    made: Path, disk: Path, tmp_path: Path
) -> None:
    own, other = disk, tmp_path / "other.img"
    shutil.copyfile(own, other)
    with other.open("r+b") as file:  # another version's root
        file.seek(12 * 1024 * 1024)
        file.write(bytes(1024 * 1024))
    for first, second in ((own, other), (other, own)):
        said = console(made, first, "bascule.slot=b", second)
        assert "bascule-initrd: slot=b version=1.0.0 root=verified" in said


def test_an_empty_slot_ends_in_a_reset(made: Path, disk: Path) -> None:
    said = console(made, disk, "bascule.slot=a")
    assert "bascule-initrd: refused: the root of slot a is not the one of this initrd" in said
    assert "Kernel panic" in said


def test_one_flipped_bit_of_the_root_ends_in_a_reset(made: Path, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(12 * 1024 * 1024 + 1024)  # the superblock of erofs
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    said = console(made, disk, "bascule.slot=b")
    assert "is corrupted" in said
    assert "root=verified" not in said


def test_a_loader_that_names_no_slot_ends_in_a_reset(made: Path, disk: Path) -> None:
    assert "bascule-initrd: refused: the command line names no slot" in console(made, disk, "")
