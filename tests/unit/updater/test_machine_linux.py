"""The keeper for real machines, as far as a test may go without rebooting one."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from typing_extensions import override

from images.errors import DocumentInvalidError
from images.release import ImageFacts, encode_image_facts
from partitions.boot_files import refuse_file
from partitions.booted import Booted
from partitions.disk_image import create_disk
from partitions.errors import BootFolderUnmountedError
from partitions.layout import read_layout
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from tests.sim.full_disk import small_disk
from tests.sim.world import LAYOUT
from updater.machine import (
    IMAGE_FACTS_MAX_BYTES,
    Boot,
    BootedSlotError,
    ImageFactsError,
    MachineError,
    RebootError,
)
from updater.machine_linux import LinuxMachine

AMPLE_SECS: Final = 60.0
SLOTS: Final[SlotLayout] = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}
FACTS: Final = ImageFacts(
    product="acme-os",
    board="amd64-usr",
    version="1.0.0",
    rollback_index=1,
    built=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk.toml").write_text(LAYOUT)
    create_disk(read_layout(tmp_path / "disk.toml"), tmp_path / "disk.img", images={})
    return tmp_path / "disk.img"


def machine(
    disk: Path, *, alias: str = "", reboot_command: Sequence[str] = ("true",)
) -> LinuxMachine:
    """Return a machine whose running tree is a folder beside the disk."""
    root = disk.parent / "root"
    (root / "usr/lib/bascule").mkdir(parents=True, exist_ok=True)
    return LinuxMachine(
        disk=disk,
        layout=SLOTS,
        machine_id_file=disk.parent / "machine-id",
        alias=alias,
        reboot_command=reboot_command,
        boot_folder=root / "boot",
        root=root,
    )


class BootedMachine(LinuxMachine):
    """Says that slot A runs: no test can make it so."""

    @override
    def boot(self) -> Boot:
        return Boot(slot=Slot.A, boot_id="boot")


def test_a_system_that_runs_from_elsewhere_is_in_none_of_the_slots(disk: Path) -> None:
    with pytest.raises(BootedSlotError, match="on none of the slots of"):
        machine(disk).boot()


def test_it_has_been_up_for_a_while_and_longer_each_time(disk: Path) -> None:
    found = machine(disk)
    first = found.uptime()
    assert timedelta(0) < first <= found.uptime()


def test_it_is_who_its_machine_id_says(disk: Path) -> None:
    with pytest.raises(MachineError, match="machine-id: No such file"):
        machine(disk).identity()
    (disk.parent / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    identity = machine(disk, alias="node-1").identity()
    assert (identity.machine_id, identity.host) == ("0123456789abcdef0123456789abcdef", "node-1")
    assert (
        machine(disk).identity().host
        == subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    )


def test_a_reboot_is_ordered_by_the_command_of_the_settings(disk: Path, tmp_path: Path) -> None:
    machine(disk, reboot_command=["touch", str(tmp_path / "ordered")]).reboot()
    assert (tmp_path / "ordered").exists()


def test_a_reboot_command_may_leave_the_reboot_to_a_child(disk: Path, tmp_path: Path) -> None:
    go, answer = tmp_path / "go", tmp_path / "answer"
    os.mkfifo(go)
    os.mkfifo(answer)
    with os.fdopen(os.open(answer, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as held:
        script = f"exec 3>{answer} 4<>{go}; (read go <&4; echo ordered >&3) >/dev/null 2>&1 &"
        machine(disk, reboot_command=["sh", "-c", script]).reboot()
        with os.fdopen(os.open(go, os.O_WRONLY | os.O_NONBLOCK), "wb") as told:  # it listens
            told.write(b"go\n")
        assert select.select([held], [], [], AMPLE_SECS)[0]
        assert held.read() == b"ordered\n"


@pytest.mark.parametrize(
    ("command", "why"),
    [(["false"], "ended with status 1"), (["/nowhere/reboot"], "cannot be started")],
)
def test_a_reboot_command_that_fails_is_said(disk: Path, command: list[str], why: str) -> None:
    with pytest.raises(RebootError, match=why) as caught:
        machine(disk, reboot_command=command).reboot()
    assert caught.value.code == "reboot-command"


def test_the_empty_mount_point_of_the_boot_folder_is_not_written_but_a_mounted_one_is(
    disk: Path,
) -> None:
    found = machine(disk)
    boot = disk.parent / "root/boot"
    layout: SlotLayout = {Slot.A: {}, Slot.B: {"kernel": PartRef(file=boot / "b/linux")}}

    def check() -> None:
        region = resolve(disk, layout)[Slot.B]["kernel"]
        refuse_file(region, Booted.of_regions([], apart=found.apart()))

    with pytest.raises(BootFolderUnmountedError):
        check()
    with small_disk(boot):
        check()


def test_a_system_that_runs_tests_is_not_shutting_down(disk: Path) -> None:
    assert machine(disk).is_stopping() is False


class TestTheKernelsLastWords:
    SINCE: Final = datetime(2026, 11, 1, tzinfo=UTC)

    def left(self, disk: Path, name: str, *, at: datetime) -> None:
        path = disk.parent / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Kernel panic - not syncing")
        os.utime(path, (at.timestamp(), at.timestamp()))

    def test_are_found_where_pstore_and_systemd_keep_them_newest_first(self, disk: Path) -> None:
        self.left(disk, "sys/fs/pstore/dmesg-efi-1", at=self.SINCE + timedelta(hours=1))
        self.left(disk, "var/lib/systemd/pstore/1790000000", at=self.SINCE + timedelta(hours=2))
        assert machine(disk).kernel_logs(self.SINCE) == [
            "/var/lib/systemd/pstore/1790000000",
            "/sys/fs/pstore/dmesg-efi-1",
        ]

    def test_of_crashes_before_the_update_are_not(self, disk: Path) -> None:
        self.left(disk, "sys/fs/pstore/dmesg-efi-1", at=self.SINCE - timedelta(hours=1))
        assert machine(disk).kernel_logs(self.SINCE) == []

    def test_are_only_the_last_few(self, disk: Path) -> None:
        for number in range(10):
            self.left(disk, f"sys/fs/pstore/dmesg-{number}", at=self.SINCE + timedelta(number))
        found = machine(disk).kernel_logs(self.SINCE)
        assert found == ["/sys/fs/pstore/dmesg-9", "/sys/fs/pstore/dmesg-8"]

    def test_may_be_kept_nowhere(self, disk: Path) -> None:
        assert machine(disk).kernel_logs(self.SINCE) == []


class TestTheFactsOfTheRunningImage:
    def facts_file(self, disk: Path) -> Path:
        machine(disk)
        return disk.parent / "root/usr/lib/bascule/image.toml"

    def booted(self, disk: Path) -> LinuxMachine:
        plain = machine(disk)
        return BootedMachine(
            disk=disk,
            layout=SLOTS,
            machine_id_file=disk.parent / "machine-id",
            alias="",
            reboot_command=["true"],
            root=plain._root,
        )

    def test_are_read_from_its_tree(self, disk: Path) -> None:
        self.facts_file(disk).write_bytes(encode_image_facts(FACTS))
        assert self.booted(disk).image_facts(Slot.A) == FACTS

    def test_may_be_missing(self, disk: Path) -> None:
        with pytest.raises(ImageFactsError, match=r"image\.toml cannot be read: No such file"):
            self.booted(disk).image_facts(Slot.A)

    def test_are_bounded(self, disk: Path) -> None:
        self.facts_file(disk).write_bytes(b"#" * (IMAGE_FACTS_MAX_BYTES + 1))
        with pytest.raises(ImageFactsError, match="longer than"):
            self.booted(disk).image_facts(Slot.A)

    def test_may_be_nonsense(self, disk: Path) -> None:
        self.facts_file(disk).write_bytes(b"product = ")
        with pytest.raises(DocumentInvalidError):
            self.booted(disk).image_facts(Slot.A)

    def test_of_an_empty_slot_are_none(self, disk: Path) -> None:
        with pytest.raises(MachineError):
            self.booted(disk).image_facts(Slot.B)
