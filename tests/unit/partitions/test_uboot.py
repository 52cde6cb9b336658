"""U-Boot's environment: its configuration, its bytes, and what the keeper writes of them.

What every keeper promises is in `test_boot_contract.py`; libubootenv and a real U-Boot are the
judges in `tests/e2e/partitions/test_uboot.py`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from partitions.boot.uboot import UbootEnvironment
from partitions.errors import (
    BootControlError,
    DeviceOpenError,
    DeviceReadError,
    UbootConfigError,
    UbootCrowdedError,
    UbootInvalidError,
)
from partitions.slots import Slot
from partitions.uboot_env import CopyPlace, active, packed, read_config, variables, with_values
from partitions.uboot_firmware import UbootMemory, boot
from partitions.uboot_store import UbootEnv, Writer, load
from tests.sim.gpt_disk import Flush, MemoryDisk, Write

A, B = Slot.A, Slot.B
OURS = (b"BOOT_ORDER=a b", b"BOOT_a_LEFT=0", b"BOOT_a_OK=1", b"BOOT_b_LEFT=0", b"BOOT_b_OK=0")


class TestConfiguration:
    @pytest.mark.parametrize(
        ("line", "offset", "size"),
        [
            ("/dev/mmcblk0 0x100000 0x4000", 0x100000, 0x4000),
            ("/dev/mmcblk0\t1048576\t4000\t200\t1", 0x100000, 0x4000),
            ("  /boot/uboot.env 0 200 # more", 0, 0x200),
            ("/dev/mmcblk0boot0 -0x4000 0x2000", -0x4000, 0x2000),
            ("/dev/sda -16384 2000", -0x4000, 0x2000),
            ("/dev/sda 0777 0X2000", 0o777, 0x2000),
        ],
    )
    def test_numbers_are_read_as_fw_setenv_reads_them(
        self, line: str, offset: int, size: int
    ) -> None:
        (place,) = read_config(f"# comment\n\nshort line\n{line}\n")
        assert (place.offset, place.size) == (offset, size)

    def test_two_lines_are_two_copies_and_a_third_is_not_read(self) -> None:
        places = read_config("/dev/a 0 0x400\n/dev/b 0 400\n/dev/c 0 800\n")
        assert [str(place.path) for place in places] == ["/dev/a", "/dev/b"]

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "names no environment"),
            ("# /dev/a 0 0x400", "names no environment"),
            ("/dev/a 0", "names no environment"),
            ("/dev/a x 0x400", "no number"),
            ("/dev/a 0 0x", "no number"),
            ("/dev/a 089 0x400", "no octal number"),
            ("/dev/a 0 0", "cannot have 0 bytes"),
            ("/dev/a 0 0x40000000", "cannot have"),
            ("uboot.env 0 0x200", "no absolute path"),
            ("/dev/a 0 0x400\n/dev/b 0 0x800", "differ in size: 0x400 and 0x800"),
            ("/dev/a 0 0x400\n/dev/a 0x200 0x400", "overlap"),
            ("/dev/a -0x400 0x400\n/dev/a -0x600 0x400", "overlap"),
        ],
    )
    def test_what_cannot_be_is_refused(self, text: str, why: str) -> None:
        with pytest.raises(UbootConfigError, match=why):
            read_config(text)

    def test_a_missing_file_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(UbootConfigError, match=r"fw_env\.config cannot be read"):
            UbootEnvironment(tmp_path / "fw_env.config").read()

    def test_raw_flash_is_refused_by_name(self, tmp_path: Path) -> None:
        config = tmp_path / "fw_env.config"
        config.write_text("/dev/null 0 0x200\n")
        with pytest.raises(DeviceOpenError, match="MTD or UBI"):
            UbootEnvironment(config).read()

    def test_a_files_offset_does_not_count_from_its_end(self, tmp_path: Path) -> None:
        file = tmp_path / "env"
        file.write_bytes(packed(OURS, 512, flag=None))
        with pytest.raises(UbootConfigError, match="is a file"):
            load([CopyPlace(path=file, offset=-512, size=512)])

    def test_a_copy_behind_the_end_of_its_device_is_an_error(self, tmp_path: Path) -> None:
        file = tmp_path / "env"
        file.write_bytes(packed(OURS, 512, flag=None))
        with pytest.raises(DeviceReadError):
            load([CopyPlace(path=file, offset=512, size=512)])


class TestBytes:
    def test_a_single_copy_is_crc_and_data(self) -> None:
        copy = packed((b"x=1", b"y=2"), 32, flag=None)
        data = b"x=1\0y=2\0\0".ljust(28, b"\0")
        assert copy == zlib.crc32(data).to_bytes(4, "little") + data

    def test_one_copy_of_two_has_a_flag_that_the_crc_leaves_out(self) -> None:
        copy = packed((b"x=1",), 32, flag=7)
        data = b"x=1\0\0".ljust(27, b"\0")
        assert copy == zlib.crc32(data).to_bytes(4, "little") + b"\7" + data

    @pytest.mark.parametrize(
        ("first", "second", "counts"),
        [
            (0, 0, 0),
            (1, 2, 1),
            (2, 1, 0),
            (255, 0, 1),
            (0, 255, 0),
            (254, 255, 1),
            (255, 1, 0),
            (None, 1, 1),
            (1, None, 0),
            (None, None, None),
        ],
    )
    def test_the_higher_flag_of_two_whole_copies_counts_and_0_follows_255(
        self, first: int | None, second: int | None, counts: int | None
    ) -> None:
        copies = [
            bytes(b"?" * 64) if flag is None else packed((b"x=1",), 64, flag=flag)
            for flag in (first, second)
        ]
        assert active(copies) == counts

    def test_others_stay_to_the_byte_and_in_their_order(self) -> None:
        entries = (b"z=\\1", b"BOOT_ORDER=a b", b"#note", b"novalue", b" BOOT_ORDER=b", b"a=")
        assert with_values(entries, {b"BOOT_ORDER": b"b a", b"new": b"1"}) == (
            *(b"z=\\1", b"BOOT_ORDER=b a", b"#note", b"novalue", b"a=", b"new=1"),
        )

    def test_of_one_name_twice_a_script_takes_the_first_and_u_boot_the_last(self) -> None:
        entries = (b"x=1", b"x=2")
        assert variables(entries, double=False) == {b"x": b"1"}
        assert variables(entries, double=True) == {b"x": b"2"}

    def test_an_entry_without_a_name_spoils_the_import(self) -> None:
        assert variables((b"x=1", b"=2"), double=True) == {}


class TestWhatIsWritten:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        env, config = tmp_path / "env", tmp_path / "fw_env.config"
        config.write_text(f"{env} 0 0x200\n{env} 0x200 0x200\n")
        whole = packed((*OURS, b"board=ours"), 512, flag=255)
        env.write_bytes(bytes(512) + whole + b"of others")
        return config

    def test_each_verb_sets_the_variables_that_the_script_reads(self, tmp_path: Path) -> None:
        env, config = tmp_path / "env", tmp_path / "fw_env.config"
        config.write_text(f"{env} 0 0x200\n")
        env.write_bytes(packed((), 512, flag=None))
        control = UbootEnvironment(config)
        control.confirm(A)
        control.arm(B, tries=3)
        armed = {
            b"BOOT_ORDER": b"b a",
            b"BOOT_a_LEFT": b"0",
            b"BOOT_a_OK": b"1",
            b"BOOT_b_LEFT": b"3",
            b"BOOT_b_OK": b"0",
        }
        assert UbootEnv.of([env.read_bytes()]).values == armed
        control.confirm(B)
        confirmed = {**armed, b"BOOT_b_LEFT": b"0", b"BOOT_b_OK": b"1"}
        assert UbootEnv.of([env.read_bytes()]).values == confirmed
        control.reject(B)
        rejected = {**armed, b"BOOT_ORDER": b"a b", b"BOOT_b_LEFT": b"0"}
        assert UbootEnv.of([env.read_bytes()]).values == rejected

    def test_the_copy_that_does_not_count_is_written_and_the_file_stays_in_place(
        self, config: Path
    ) -> None:
        env = config.with_name("env")
        before, inode = env.read_bytes(), env.stat().st_ino
        UbootEnvironment(config).arm(B, tries=2)
        after = env.read_bytes()
        assert after[512:] == before[512:]
        assert after[4] == 0  # behind 255
        assert b"board=ours" in after[:512]
        assert env.stat().st_ino == inode

    def test_the_first_sector_comes_behind_a_flush(self) -> None:
        disk = MemoryDisk(bytearray(4096))
        old = packed(OURS, 2048, flag=1)
        env = UbootEnv((old, old), active=0).holding((*OURS, b"x=1"))
        Writer(disk, 2048).store(env)
        copy = env.copies[1]
        assert disk.log == [
            *(Write(2560, copy[512:]), Flush(), Write(2048, copy[:512]), Flush()),
        ]

    def test_a_single_copy_is_one_write_and_one_flush(self) -> None:
        disk = MemoryDisk(bytearray(512))
        env = UbootEnv.of([packed(OURS, 512, flag=None)])
        Writer(disk, 0).store(env)
        assert disk.log == [Write(0, env.copies[0]), Flush()]

    def test_without_room_nothing_is_written(self, tmp_path: Path) -> None:
        env, config = tmp_path / "env", tmp_path / "fw_env.config"
        config.write_text(f"{env} 0 0x200\n")
        env.write_bytes(packed((b"x=" + b"x" * 480,), 512, flag=None))
        before = env.read_bytes()
        with pytest.raises(UbootCrowdedError, match=r"need \d+ bytes of 508"):
            UbootEnvironment(config).confirm(A)
        assert env.read_bytes() == before

    def test_an_environment_that_is_not_whole_is_neither_read_nor_written(
        self, config: Path
    ) -> None:
        env = config.with_name("env")
        env.write_bytes(bytes(1024))
        for verb in (UbootEnvironment(config).read, lambda: boot(config)):
            with pytest.raises(UbootInvalidError, match="CRC"):
                verb()
        with pytest.raises(UbootInvalidError):
            UbootEnvironment(config).confirm(A)
        assert env.read_bytes() == bytes(1024)

    def test_a_disk_that_keeps_something_else_is_an_error(
        self, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Writer, "store", lambda *_: None)
        with pytest.raises(BootControlError, match="does not keep"):
            UbootEnvironment(config).arm(B, tries=1)


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ({b"BOOT_ORDER": b"b a", b"BOOT_b_LEFT": b"1"}, B),
        ({b"BOOT_ORDER": b"b a", b"BOOT_b_LEFT": b"10", b"BOOT_a_OK": b"1"}, A),
        ({b"BOOT_ORDER": b"a", b"BOOT_b_OK": b"1"}, None),
        ({b"BOOT_ORDER": b"a b", b"BOOT_a_OK": b"01", b"BOOT_b_OK": b"1"}, B),
        ({b"BOOT_a_OK": b"1"}, None),
    ],
)
def test_what_the_script_would_not_understand_is_not_bootable(
    values: dict[bytes, bytes], target: Slot | None
) -> None:
    assert UbootMemory.of(values).target is target
