"""`disk create --loader` with the real programs: what is on the disk, as others read it."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from partitions import loaders
from partitions.boot import KEEPERS, Places, open_boot_control
from partitions.cli import disk as command
from partitions.disk_image import FirmwareFile, create_disk
from partitions.efi_store import variables
from partitions.errors import (
    ContentsInvalidError,
    DiskExistsError,
    EfiStoreInvalidError,
    LayoutInvalidError,
    LoaderTemplateError,
    PartitionsError,
    PartitionTooSmallError,
    ToolFailedError,
)
from partitions.gpt import Entry, Table
from partitions.layout import DiskLayout, parse_layout, read_layout
from partitions.loaders import LOADERS, efi, systemd_boot
from partitions.slots import PartRef, Slot
from tests.sim.gpt_tools import program, run, sgdisk_attributes, sgdisk_is_content
from tests.sim.loader_needs import need

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
TINY = Path(loaders.__file__).parents[1] / "layouts/tiny.toml"
WORDS = "console=ttyS0 panic=-1 gpt quiet"
SLOTS = {slot: {"root": PartRef(label=f"root-{slot.value}")} for slot in Slot}


def layout_of(text: str = "", *, seed: str = "x") -> DiskLayout:
    return replace(parse_layout(text.encode(), name="x") if text else read_layout(TINY), seed=seed)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    return images_in(tmp_path)


def images_in(folder: Path) -> dict[str, Path]:
    chance = random.Random(1)
    images = {}
    for part, size in {"root": 2 * MIB, "kernel": 300_001, "initrd": 70_000}.items():
        images[part] = folder / f"{part}.img"
        images[part].write_bytes(chance.randbytes(size))
    return images


class Made:
    """A disk that was made, and its ESP as a file of its own."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path, self.table = path, table
        self.esp = self.part("esp")

    def part(self, label: str) -> Path:
        entry = self.entry(label)
        size = self.table.sector_size
        file = self.path.with_name(f"{label}.part")
        span = (f"skip={entry.first_lba * size}", f"count={entry.sectors * size}")
        flags = ("bs=64K", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none")
        run("dd", f"if={self.path}", f"of={file}", *span, *flags)
        return file

    def entry(self, label: str) -> Entry:
        return next(entry for entry in self.table.entries if entry.name == label)

    def copied_out(self) -> Path:
        """Return a new folder with what is on the ESP, as mtools read it."""
        folder = Path(tempfile.mkdtemp(dir=self.path.parent, prefix="esp-"))
        run("mcopy", "-s", "-n", "-i", self.esp, "::*", folder)
        return folder


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Made]]:
    """Give what gives the disk of a loader; each is made once, and nobody changes it."""
    folder = tmp_path_factory.mktemp("disks")
    images = images_in(folder)
    known: dict[str, Made] = {}

    def disk_of(loader: str) -> Made:
        need(loader)
        if loader not in known:
            (folder / loader).mkdir()
            known[loader] = made(loader, images, folder / loader)
        return known[loader]

    yield disk_of
    shutil.rmtree(folder)


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


def made(
    loader: str, images: Mapping[str, Path], folder: Path, *, layout: DiskLayout | None = None
) -> Made:
    path = folder / "disk.img"
    return Made(path, create_disk(layout or layout_of(), path, images=images, loader=loader))


def test_the_disk_is_sound_to_those_who_know(loader: str, disks: Callable[[str], Made]) -> None:
    disk = disks(loader)
    sgdisk_is_content(disk.path)
    run("fsck.vfat", "-n", disk.esp)
    run("fsck.ext4", "-n", "-f", disk.part("state"))
    assert disk.path.stat().st_blocks * 512 < 12 * MIB


def test_slot_a_is_installed_and_slot_b_has_a_folder(
    loader: str, disks: Callable[[str], Made], images: dict[str, Path]
) -> None:
    disk = disks(loader)
    assert disk.part("root-a").read_bytes().startswith(images["root"].read_bytes())
    files = disk.copied_out()
    assert (files / "bascule/a/linux").read_bytes() == images["kernel"].read_bytes()
    assert (files / "bascule/a/initrd").read_bytes() == images["initrd"].read_bytes()
    assert list((files / "bascule/b").iterdir()) == []


def test_the_keeper_finds_slot_a_confirmed_and_slot_b_not_bootable(
    loader: str, disks: Callable[[str], Made]
) -> None:
    name = LOADERS[loader].boot_control
    if name not in KEEPERS or name == "efi":
        pytest.skip(f"the memory of {name} is not on the disk")
    disk = disks(loader)
    state = open_boot_control(name, _places(disk)).read()
    assert state.target is Slot.A
    assert state.slots[Slot.A].confirmed
    assert not state.slots[Slot.B].armed


def test_confirming_slot_a_on_the_first_boot_changes_nothing(
    loader: str, images: dict[str, Path], tmp_path: Path
) -> None:
    name = LOADERS[loader].boot_control
    if name not in KEEPERS or name == "efi":
        pytest.skip(f"the memory of {name} is not on the disk")
    disk = made(loader, images, tmp_path)
    places = _places(disk)
    before = _bytes(places)
    open_boot_control(name, places, booted=Slot.A).confirm(Slot.A)
    assert _bytes(places) == before


def _places(disk: Made) -> Places:
    files = disk.copied_out()
    config = files / "fw_env.config"
    config.write_text(f"{files}/uboot.env 0x0 0x200\n")
    return Places(
        disk=disk.path,
        layout=SLOTS,
        grubenv=files / "grub/grubenv",
        boot_folder=files,
        uboot_config=config,
    )


def _bytes(places: Places) -> dict[str, bytes]:
    files = [path for path in places.boot_folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in [*files, places.disk]}


def test_the_same_seed_makes_the_same_disk_whenever_and_wherever(
    loader: str, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(loader, images, tmp_path).path.read_bytes()
    for image in images.values():
        os.utime(image, (1_000_000_000, 1_000_000_000))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    (tmp_path / "elsewhere").mkdir()
    assert made(loader, images, tmp_path / "elsewhere").path.read_bytes() == first


def test_without_images_nothing_is_confirmed(loader: str, tmp_path: Path) -> None:
    disk = made(loader, {}, tmp_path)
    files = disk.copied_out()
    assert not list((files / "bascule/a").iterdir())
    assert not (files / "loader/entries").exists()
    if loader.startswith("grub"):
        assert "A_OK=0" in run("grub-editenv", files / "grub/grubenv", "list")
    assert not any(sgdisk_attributes(disk.path, [3, 4]))


def test_only_the_loader_of_boot_bits_gets_boot_bits(
    loader: str, disks: Callable[[str], Made]
) -> None:
    disk = disks(loader)
    bits = [0x0101000000000000, 0] if loader == "gptprio" else [0, 0]
    assert sgdisk_attributes(disk.path, [3, 4]) == bits
    assert sgdisk_attributes(disk.path, [2]) == [4 if loader == "uboot" else 0]


@pytest.mark.parametrize("loader", ["grub-bios", "grub-efi"])
def test_grub_lists_its_environment_and_takes_its_configuration(
    loader: str, disks: Callable[[str], Made]
) -> None:
    files = disks(loader).copied_out()
    listed = run("grub-editenv", files / "grub/grubenv", "list").splitlines()
    assert listed == ["ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0"]
    run("grub-script-check", files / "grub/grub.cfg")
    text = (files / "grub/grub.cfg").read_text()
    verb = "linux16" if loader == "grub-bios" else "linux"
    assert f"{verb} ($root)/bascule/b/linux bascule.slot=b {WORDS}" in text
    if loader == "grub-efi":
        assert (files / "EFI/BOOT/BOOTX64.EFI").read_bytes().startswith(b"MZ")


def test_a_bios_finds_grub_and_the_partition_table_is_left_alone(
    disks: Callable[[str], Made],
) -> None:
    disk = disks("grub-bios")
    sector = disk.path.read_bytes()[:512]
    assert sector[510:] == b"\x55\xaa"
    assert "GRUB" in sector[:440].decode("latin-1")
    assert sector[450] == 0xEE
    said = run("sgdisk", "--info=1", disk.path)
    assert "21686148-6449-6E6F-744E-656564454649" in said


def test_systemd_boot_has_templates_and_one_entry_of_one_sector(
    disks: Callable[[str], Made],
) -> None:
    files = disks("systemd-boot").copied_out()
    assert (files / "EFI/BOOT/BOOTX64.EFI").read_bytes() == systemd_boot.PROGRAM.read_bytes()
    entries = {path.name: path.read_text() for path in (files / "loader/entries").iterdir()}
    assert list(entries) == ["bascule-a.conf"]
    assert len(entries["bascule-a.conf"]) == 512
    assert {"version 1", "sort-key bascule", "linux /bascule/a/linux"} <= set(
        entries["bascule-a.conf"].splitlines()
    )
    template = (files / "loader/bascule/b.conf").read_text().splitlines()
    assert f"options bascule.slot=b {WORDS}" in template
    assert not any(line.startswith(("version", "sort-key")) for line in template)
    settings = (files / "loader/loader.conf").read_text().splitlines()
    assert "timeout 0" in settings
    assert not any(line.startswith("default") for line in settings)


def test_an_entry_that_would_need_a_second_sector_is_refused_at_once(tmp_path: Path) -> None:
    need("systemd-boot")
    layout = layout_of(TINY.read_text().replace(WORDS, f"{WORDS} x={'y' * 500}"))
    with pytest.raises(LoaderTemplateError, match="a sector has 512"):
        create_disk(layout, tmp_path / "d.img", images={}, loader="systemd-boot")


def test_u_boots_own_programs_read_script_and_environment(
    disks: Callable[[str], Made], tmp_path: Path
) -> None:
    files = disks("uboot").copied_out()
    assert "Script" in run("dumpimage", "-l", files / "boot.scr")
    script = (files / "boot.scr").read_text(errors="replace")
    assert f'setenv bascule_args "{WORDS}"' in script
    config = tmp_path / "fw_env.config"
    config.write_text(f"{files}/uboot.env 0x0 0x200\n")
    listed = run("fw_printenv", "-c", config).splitlines()
    assert sorted(listed) == [
        "BOOT_ORDER=a b",
        "BOOT_a_LEFT=0",
        "BOOT_a_OK=1",
        "BOOT_b_LEFT=0",
        "BOOT_b_OK=0",
    ]


def test_the_firmwares_entries_are_read_by_virt_fw_vars(
    images: dict[str, Path], tmp_path: Path
) -> None:
    need("efi")
    found = shutil.which(
        "virt-fw-vars", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    if found is None:
        pytest.skip("virt-fw-vars is not installed (PyPI: virt-firmware)")
    firmware = _firmware(tmp_path)
    create_disk(layout_of(), tmp_path / "d.img", images=images, loader="efi", firmware=firmware)
    done = subprocess.run(
        [found, "-i", firmware.output, "-p", "-v"], capture_output=True, text=True, check=True
    )
    assert re.search(r'title="bascule-a" .*nr=2.*\\bascule\\a\\linux', done.stdout)
    assert re.search(r'title="bascule-b" .*nr=2.*\\bascule\\b\\linux', done.stdout)
    assert "boot order: 0000\n" in done.stdout


def test_firmware_variables_that_were_used_are_refused_and_nothing_is_left(
    images: dict[str, Path], tmp_path: Path
) -> None:
    need("efi")
    used = _firmware(tmp_path)
    create_disk(layout_of(), tmp_path / "d.img", images=images, loader="efi", firmware=used)
    again = FirmwareFile(output=tmp_path / "again.fd", template=used.output)
    path = tmp_path / "again.img"
    with pytest.raises(EfiStoreInvalidError, match="has the variable Boot0BA0 already"):
        create_disk(layout_of(), path, images=images, loader="efi", firmware=again)
    assert not path.exists()
    assert not again.output.exists()
    with pytest.raises(DiskExistsError, match=r"vars\.fd exists already"):
        create_disk(layout_of(), path, images=images, loader="efi", firmware=used)


def test_a_loader_with_no_variables_of_its_own_gets_the_template(
    images: dict[str, Path], tmp_path: Path
) -> None:
    need("gptprio")
    firmware = _firmware(tmp_path)
    create_disk(layout_of(), tmp_path / "d", images=images, loader="gptprio", firmware=firmware)
    assert firmware.output.read_bytes() == efi.TEMPLATE.read_bytes()
    assert variables(firmware.output.read_bytes()) == []


def _firmware(folder: Path) -> FirmwareFile:
    if not efi.TEMPLATE.exists():
        pytest.skip(f"{efi.TEMPLATE} is not installed (Debian: {efi.TEMPLATE_PACKAGE})")
    return FirmwareFile(output=folder / "vars.fd")


@pytest.fixture
def contents(tmp_path: Path) -> Path:
    """A folder as an integrator has it: nested, with blanks, modes and a link."""
    folder = tmp_path / "contents"
    (folder / "etc/deep er").mkdir(parents=True)
    (folder / "etc/deep er/a file").write_text("words\n")
    (folder / "etc/node.toml").write_text("[slots]\n")
    (folder / "etc/node.toml").chmod(0o600)
    (folder / "empty").mkdir(mode=0o700)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("etc/node.toml")
    return folder


def test_the_state_can_be_filled_with_files_that_belong_to_root(
    images: dict[str, Path], tmp_path: Path, contents: Path
) -> None:
    need("gptprio")
    program("debugfs")
    layout = layout_of(TINY.read_text().replace('"ext4"', f'"ext4"\ncontents = "{contents}"'))
    disk = made("gptprio", images, tmp_path, layout=layout)
    state = disk.part("state")
    run("fsck.ext4", "-n", "-f", state)
    out = tmp_path / "out"
    out.mkdir()
    run("debugfs", "-R", f"rdump / {out}", state)
    assert (out / "etc/deep er/a file").read_text() == "words\n"
    assert (out / "link").readlink() == Path("etc/node.toml")
    modes = {"/etc/node.toml": "0600", "/empty": "0700", "/run.sh": "0755", "/etc": "0755"}
    for name, mode in modes.items():
        said = run("debugfs", "-R", f"stat {name}", state)
        assert re.search(rf"Mode: +{mode}\b", said), said
        assert re.search(r"User: +0 +Group: +0\b", said), said


def test_filled_file_systems_are_the_same_again(
    images: dict[str, Path], tmp_path: Path, contents: Path
) -> None:
    need("gptprio")
    program("debugfs")
    text = TINY.read_text().replace('"ext4"', f'"ext4"\ncontents = "{contents}"')
    first = made("gptprio", images, tmp_path, layout=layout_of(text)).path.read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(contents, copy, symlinks=True)
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    (tmp_path / "again").mkdir()
    text = text.replace(str(contents), str(copy))
    again = made("gptprio", images, tmp_path / "again", layout=layout_of(text))
    assert again.path.read_bytes() == first


def test_the_esp_can_be_filled_beside_the_loaders_files(
    loader: str, images: dict[str, Path], tmp_path: Path
) -> None:
    more = tmp_path / "more"
    (more / "vendor dir").mkdir(parents=True)
    (more / "vendor dir/Config.txt").write_text("x=1\n")
    layout = layout_of(TINY.read_text().replace('"vfat"', f'"vfat"\ncontents = "{more}"'))
    files = made(loader, images, tmp_path, layout=layout).copied_out()
    assert (files / "vendor dir/Config.txt").read_text() == "x=1\n"
    assert (files / "bascule/a/linux").exists()


def _refused(
    kind: type[PartitionsError], text: str, images: Mapping[str, Path], folder: Path
) -> str:
    need("uboot")
    with pytest.raises(kind) as caught:
        create_disk(layout_of(text), folder / "new.disk", images=images, loader="uboot")
    assert not list(folder.glob("*new.disk*"))
    assert not list(folder.glob(".*"))
    return str(caught.value)


def test_contents_that_the_loader_has_too_are_refused(
    images: dict[str, Path], tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "BOOT.SCR").write_text("mine")
    text = TINY.read_text().replace('"vfat"', f'"vfat"\ncontents = "{more}"')
    said = _refused(LayoutInvalidError, text, images, tmp_path)
    assert said == f"{more} holds /boot.scr, which the boot loader or a slot has there"


def test_contents_that_a_file_system_cannot_hold_are_refused(
    images: dict[str, Path], tmp_path: Path, contents: Path
) -> None:
    text = TINY.read_text().replace('"vfat"', f'"vfat"\ncontents = "{contents}"')
    said = _refused(ContentsInvalidError, text, images, tmp_path)
    assert said == "/link is a symbolic link, and FAT has none"
    (contents / "link").unlink()
    (contents / "RUN.sh").write_text("")
    said = _refused(ContentsInvalidError, text, images, tmp_path)
    assert said == "/RUN.sh and /run.sh are one name on FAT"
    os.mkfifo(contents / "pipe")
    assert "pipe is no file, folder or symbolic link" in _refused(
        ContentsInvalidError, text, images, tmp_path
    )
    (contents / "pipe").unlink()
    (contents / 'quo"ted').write_text("")
    assert "has signs that cannot be used" in _refused(ContentsInvalidError, text, images, tmp_path)
    nowhere = text.replace(str(contents), str(tmp_path / "nowhere"))
    assert "nowhere is no folder" in _refused(ContentsInvalidError, nowhere, images, tmp_path)


def test_files_that_do_not_fit_are_refused(images: dict[str, Path], tmp_path: Path) -> None:
    os.truncate(images["kernel"], 24 * MIB)
    said = _refused(PartitionTooSmallError, TINY.read_text(), images, tmp_path)
    assert "the boot files of both slots and the loader need" in said
    os.truncate(images["kernel"], MIB)
    heavy = tmp_path / "heavy"
    heavy.mkdir()
    (heavy / "file").write_bytes(random.Random(1).randbytes(20 * MIB))
    text = TINY.read_text().replace('"ext4"', f'"ext4"\ncontents = "{heavy}"')
    assert "debugfs: " in _refused(ToolFailedError, text, images, tmp_path)
    text = TINY.read_text().replace('"48MiB"', '"20MiB"')
    text = text.replace('"vfat"', f'"vfat"\ncontents = "{heavy}"')
    assert "mcopy ended with status 1" in _refused(ToolFailedError, text, images, tmp_path)


def test_the_command_installs_fills_and_writes_the_settings(
    images: dict[str, Path], tmp_path: Path, contents: Path
) -> None:
    need("systemd-boot")
    program("debugfs")
    output, settings = tmp_path / "disk.img", tmp_path / "slots.toml"
    words = ["create", str(TINY), "--output", str(output), "--loader", "systemd-boot"]
    words += [f"--install={part}={image}" for part, image in images.items()]
    words += [f"--contents=state={contents}", f"--settings={settings}"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert settings.read_text().startswith('[slots]\ndisk = "/dev/disk/by-partlabel/root-a"\n')
    wrong = CliRunner().invoke(command, [*words, "--contents", f"root-a={contents}", "--force"])
    assert wrong.exit_code == 2
    assert "no partition 'root-a' with a file system" in " ".join(wrong.output.split())
    without = [word for word in words if word not in ("--loader", "systemd-boot")]
    assert "--settings needs --loader" in CliRunner().invoke(command, without).output
