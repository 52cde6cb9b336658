"""`bascule-image disk`, alone: a disk file appears whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import partitions
from partitions import tool
from partitions.boot import Places, open_boot_control
from partitions.cli import disk
from partitions.errors import (
    DiskExistsError,
    GptMissingError,
    InputUnreadableError,
    LayoutInvalidError,
    OutputUnwritableError,
    PartitionsError,
    PartitionTooSmallError,
    ToolFailedError,
    ToolMissingError,
)
from partitions.slots import PartRef, Slot, SlotLayout, resolve

MIB = 1024 * 1024
SEARCHED = f"{os.environ.get('PATH', '')}:{tool.SYSTEM_FOLDERS}"
SLOTS: SlotLayout = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}
LAYOUT = """\
seed = "test"
[[partition]]
label = "ESP"
role = "esp"
size = "2MiB"
[[partition]]
label = "USR-A"
role = "slot-a"
part = "usr"
size = "4MiB"
[[partition]]
label = "USR-B"
role = "slot-b"
part = "usr"
size = "4MiB"
"""


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "disk.toml"
    path.write_text(LAYOUT)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a hole, zeros, and an end within a page."""
    path = tmp_path / "v1.img"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.seek(2 * MIB)
        file.write(bytes(MIB) + b"the end")
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(disk, [str(one) for one in arguments])


def _refused(kind: type[PartitionsError], *arguments: object) -> str:
    result = _run(*arguments)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def test_the_first_image_is_in_slot_a_which_is_the_confirmed_target(
    layout: Path, image: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disk.img"
    result = _run("create", layout, "--output", output, "--install", f"usr={image}")
    assert result.exit_code == 0, result.output
    region = resolve(output, SLOTS)[Slot.A]["usr"]
    content = image.read_bytes()
    data = output.read_bytes()[region.offset : region.offset + region.size]
    assert data == content.ljust(region.size, b"\0")
    state = open_boot_control("gptprio", Places(disk=output, layout=SLOTS)).read()
    assert state.target is Slot.A
    assert state.slots[Slot.A].confirmed
    assert not state.slots[Slot.B].armed


def test_a_disk_file_takes_no_more_space_than_what_is_in_it(
    layout: Path, image: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disk.img"
    _run("create", layout, "--output", output, "--install", f"usr={image}")
    status = output.stat()
    assert status.st_size == 12 * MIB
    assert status.st_blocks * 512 < 2 * MIB


def test_without_an_image_no_slot_is_bootable(layout: Path, tmp_path: Path) -> None:
    output = tmp_path / "disk.img"
    assert _run("create", layout, "--output", output).exit_code == 0
    assert open_boot_control("gptprio", Places(disk=output, layout=SLOTS)).read().target is None


def test_the_same_seed_makes_the_same_bytes(layout: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("one.img", "two.img", "other.img")]
    for output in outputs[:2]:
        _run("create", layout, "--output", output)
    _run("create", layout, "--output", outputs[2], "--seed", "node-2")
    one, two, other = (output.read_bytes() for output in outputs)
    assert one == two
    assert one != other


def test_a_file_that_is_there_is_kept_unless_it_is_forced(layout: Path, tmp_path: Path) -> None:
    output = tmp_path / "disk.img"
    output.write_bytes(b"precious")
    said = _refused(DiskExistsError, "create", layout, "--output", output)
    assert said == f"{output} exists already"
    assert output.read_bytes() == b"precious"
    assert _run("create", layout, "--output", output, "--force").exit_code == 0
    assert output.stat().st_size == 12 * MIB


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_plain_file_is_never_replaced(layout: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "disk.img"
    if kind == "link":
        output.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(output)
    said = _refused(DiskExistsError, "create", layout, "--output", output, "--force")
    assert "no plain file" in said
    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_fails_half_way_leaves_nothing(layout: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.img"
    large.touch()
    os.truncate(large, 4 * MIB + 1)
    output = tmp_path / "disk.img"
    arguments = ("create", layout, "--output", output, "--install", f"usr={large}")
    said = _refused(PartitionTooSmallError, *arguments)
    assert said == f"{large} has 4194305 bytes, partition USR-A has 4194304"
    assert {path.name for path in tmp_path.iterdir()} == {"large.img", "disk.toml"}


def test_a_draft_of_a_killed_run_is_no_obstacle(layout: Path, tmp_path: Path) -> None:
    (tmp_path / ".disk.img.draft").write_bytes(b"half")
    assert _run("create", layout, "--output", tmp_path / "disk.img").exit_code == 0
    assert not (tmp_path / ".disk.img.draft").exists()


def test_a_partition_that_boot_files_do_not_fit_into_is_named(
    layout: Path, image: Path, tmp_path: Path
) -> None:
    file = '[[file]]\npart = "kernel"\na = "/a/linux"\nb = "/b/linux"\n'
    layout.write_text(LAYOUT.replace('"esp"', '"esp"\nfilesystem = "vfat"') + file)
    installs = ("--install", f"usr={image}", "--install", f"kernel={image}")
    said = _refused(PartitionTooSmallError, "create", layout, "--output", tmp_path / "d", *installs)
    assert said.startswith("partition ESP has 2097152 bytes; the boot files of both slots and")


def test_a_loader_that_finds_no_system_is_noted(layout: Path, image: Path, tmp_path: Path) -> None:
    arguments = ("create", layout, "--loader", "gptprio", "--json", "--output")
    result = _run(*arguments, tmp_path / "empty.img")
    assert "note: nothing is installed in slot A: the disk boots nothing yet\n" in result.stderr
    json.loads(result.stdout)
    assert "note" not in _run(*arguments, tmp_path / "d", "--install", f"usr={image}").stderr
    assert "note" not in _run("create", layout, "--output", tmp_path / "data.img").stderr


def test_entries_of_the_firmware_that_are_nowhere_are_noted(tmp_path: Path) -> None:
    if not all(shutil.which(name, path=SEARCHED) for name in ("mkfs.vfat", "mkfs.ext4")):
        pytest.skip("mkfs is not installed (dosfstools, e2fsprogs)")
    layout = Path(partitions.__file__).parent / "layouts/reference.toml"
    result = _run("create", layout, "--loader", "efi", "--output", tmp_path / "disk.img")
    assert result.exit_code == 0, result.output
    assert "note: the firmware's entries are not on the disk: --efi-vars" in result.stderr


def test_an_image_that_is_missing_is_named(layout: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.img"
    arguments = ("create", layout, "--output", tmp_path / "d", "--install", f"usr={missing}")
    said = _refused(InputUnreadableError, *arguments)
    assert said == f"{missing} cannot be read: No such file or directory"


@pytest.mark.parametrize("part", ["kernel", "USR"])
def test_an_image_for_another_part_is_refused(
    layout: Path, image: Path, tmp_path: Path, part: str
) -> None:
    arguments = ("create", layout, "--output", tmp_path / "d", "--install", f"{part}={image}")
    said = _refused(LayoutInvalidError, *arguments)
    assert said.startswith(f"images are given for {part}; slot a consists of usr")


@pytest.mark.parametrize("text", ["usr", "usr=", "=x"])
def test_an_install_without_both_halves_is_a_usage_error(
    layout: Path, tmp_path: Path, text: str
) -> None:
    result = _run("create", layout, "--output", tmp_path / "d", "--install", text)
    assert result.exit_code == 2
    twice = ("--install", f"usr={layout}", "--install", f"usr={layout}")
    assert _run("create", layout, "--output", tmp_path / "d", *twice).exit_code == 2


def test_a_folder_that_does_not_exist_is_told(layout: Path, tmp_path: Path) -> None:
    output = tmp_path / "none" / "disk.img"
    said = _refused(OutputUnwritableError, "create", layout, "--output", output)
    assert said == f"{output} cannot be made: No such file or directory"


def test_settings_that_cannot_be_written_are_told_before_the_disk_is_replaced(
    layout: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disk.img"
    output.write_bytes(b"precious")
    arguments = ("create", layout, "--output", output, "--loader", "gptprio", "--force")
    nowhere = tmp_path / "none" / "slots.toml"
    said = _refused(OutputUnwritableError, *arguments, "--settings", nowhere)
    assert said == f"{nowhere} cannot be made: No such file or directory"
    assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("loader", [None, "gptprio", "grub-bios", "uboot"])
def test_efi_variables_of_a_loader_that_no_efi_starts_are_a_usage_error(
    layout: Path, tmp_path: Path, loader: str | None
) -> None:
    chosen = ("--loader", loader) if loader else ()
    arguments = ("--output", tmp_path / "d", "--efi-vars", tmp_path / "v", *chosen)
    words = [str(one) for one in ("create", layout, *arguments)]
    result = CliRunner().invoke(disk, words, standalone_mode=False)
    assert isinstance(result.exception, click.UsageError)
    assert "starts: efi, grub-efi, systemd-boot" in result.exception.format_message()
    assert [path.name for path in tmp_path.iterdir()] == ["disk.toml"]


def test_a_missing_mkfs_is_named_and_nothing_is_left(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.write_text(LAYOUT.replace('"esp"', '"esp"\nfilesystem = "vfat"'))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tool, "SYSTEM_FOLDERS", str(tmp_path))
    said = _refused(ToolMissingError, "create", layout, "--output", tmp_path / "disk.img")
    assert said == "mkfs.vfat is not installed; partition ESP shall have vfat"
    assert [path.name for path in tmp_path.iterdir()] == ["disk.toml"]


def test_the_words_of_a_failing_mkfs_are_passed_on(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.write_text(LAYOUT.replace('"esp"', '"esp"\nfilesystem = "vfat"'))
    mkfs = tmp_path / "mkfs.vfat"
    mkfs.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    mkfs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    said = _refused(ToolFailedError, "create", layout, "--output", tmp_path / "disk.img")
    assert said == f"partition ESP: {mkfs} ended with status 3: no such luck"


def test_show_prints_the_facts_in_words_and_as_json(
    layout: Path, image: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disk.img"
    made = _run("create", layout, "--output", output, "--install", f"usr={image}", "--json")
    shown = _run("show", output, "--json")
    assert json.loads(made.stdout) == json.loads(shown.stdout)
    facts = json.loads(shown.stdout)
    assert (facts["sector_size"], facts["size"], facts["faults"]) == (512, 12 * MIB, [])
    assert facts["partitions"][1] == {
        "number": 2,
        "label": "USR-A",
        "partuuid": facts["partitions"][1]["partuuid"],
        "type": "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6",
        "offset": 3 * MIB,
        "size": 4 * MIB,
        "attributes": "0101000000000000",
        "priority": 1,
        "tries": 0,
        "successful": True,
    }
    words = _run("show", output).stdout
    assert "USR-A" in words
    assert "priority=1 tries=0 successful=true" in words


def test_show_says_when_a_copy_is_damaged(layout: Path, tmp_path: Path) -> None:
    output = tmp_path / "disk.img"
    _run("create", layout, "--output", output)
    with output.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))
    result = _run("show", output)
    assert result.exit_code == 0
    assert "attention: the primary table at sector 1 has no GPT signature" in result.stderr


def test_show_of_a_file_without_gpt_is_a_coded_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    path.write_bytes(bytes(MIB))
    assert str(path) in _refused(GptMissingError, "show", path)
