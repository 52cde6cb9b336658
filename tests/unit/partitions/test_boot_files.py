"""Parts of a slot that are files: found, guarded, made with their size, written, read back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from partitions import boot_files
from partitions.attributes import BootBits
from partitions.boot_files import cut_file, has_length, remove_file
from partitions.boot_folder import sync_file_system
from partitions.booted import Booted, booted_slot
from partitions.errors import (
    BootFileSharedError,
    BootFolderUnmountedError,
    DeviceBusyError,
    DeviceOpenError,
    DeviceReadError,
    DeviceTooSmallError,
    ReadbackMismatchError,
    SlotBootedError,
)
from partitions.readback import digest_of, verify
from partitions.slots import PartRef, Region, Slot, SlotLayout, resolve
from partitions.writer import RegionWriter
from tests.sim.full_disk import SIZE_BYTES, fill, read_only, small_disk
from tests.sim.gpt_disk import two_slots

A, B = Slot.A, Slot.B
KIB = 1024
OLD = b"the old kernel" * 1000
NEW = os.urandom(40 * KIB)
NOTHING = Booted.nothing()


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    """A boot folder in which slot A has its kernel."""
    folder = tmp_path / "boot"
    (folder / "a").mkdir(parents=True)
    (folder / "a/linux").write_bytes(OLD)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(two_slots(sector_size=512, a=BootBits(), b=BootBits()).image)
    return path


def layout_of(boot: Path, *parts: str) -> SlotLayout:
    return {
        slot: {"usr": PartRef(label=f"USR-{slot.name}")}
        | {part: PartRef(file=boot / slot.value / part) for part in parts or ("linux",)}
        for slot in Slot
    }


@pytest.fixture
def regions(disk: Path, boot: Path) -> dict[Slot, dict[str, Region]]:
    return resolve(disk, layout_of(boot))


@pytest.fixture
def passive(regions: dict[Slot, dict[str, Region]]) -> Region:
    return regions[B]["linux"].sized(len(NEW))


@pytest.fixture
def booted(regions: dict[Slot, dict[str, Region]]) -> Booted:
    return Booted.of_regions(regions[A].values())


def write(region: Region, data: bytes, booted: Booted = NOTHING) -> None:
    with RegionWriter(region, booted=booted) as writer:
        writer.write_at(0, data)
        writer.sync()


class TestFinding:
    def test_a_slot_may_have_partitions_and_files(
        self, regions: dict[Slot, dict[str, Region]], boot: Path
    ) -> None:
        assert list(regions[A]) == ["usr", "linux"]
        assert (regions[A]["usr"].label, regions[A]["usr"].room) == ("USR-A", None)
        file = regions[A]["linux"]
        assert (file.path, file.offset, file.readable_bytes) == (boot / "a/linux", 0, len(OLD))

    def test_a_file_and_a_folder_that_are_not_there_are_found_all_the_same(
        self, regions: dict[Slot, dict[str, Region]]
    ) -> None:
        missing = regions[B]["linux"]
        assert missing.room is not None
        assert (missing.room.length, missing.room.held, missing.readable_bytes) == (None, 0, 0)
        assert missing.size == missing.room.free > len(NEW)

    def test_each_file_of_a_slot_may_have_what_is_free_and_what_the_slot_holds(
        self, disk: Path, tmp_path: Path
    ) -> None:
        with small_disk(tmp_path / "small") as small:
            layout = layout_of(small, "linux", "initrd")
            for slot, size in ((A, 4096), (B, 32 * KIB)):
                (small / slot.value).mkdir()
                (small / slot.value / "linux").write_bytes(bytes(size))
            (small / "b/initrd").write_bytes(bytes(16 * KIB))
            fill(small)
            found = resolve(disk, layout)
            assert [region.size for name, region in found[B].items() if name != "usr"] == [
                48 * KIB,
                48 * KIB,
            ]
            assert found[A]["initrd"].size == 4096

    @pytest.mark.parametrize("other", ["a/linux", "A/LINUX", "a/Linux"])
    def test_one_file_for_two_parts_is_refused_as_fat_sees_names(
        self, disk: Path, boot: Path, other: str
    ) -> None:
        layout = {**layout_of(boot), B: {"linux": PartRef(file=boot / other)}}
        with pytest.raises(BootFileSharedError, match="part linux of slot a and as part linux of"):
            resolve(disk, layout)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "boot/linux",
            "/",
            "/boot/",
            "/boot/../usr",
            "/boot//linux",
            "/boot/./linux",
            "/boot/linux.",
            "/boot/.linux",
            "/boot/LINUX~1",
            "/boot/li nux",
            "/boot/linüx",
            "/boot/linux\n",
            "/" + "x" * 240,
        ],
    )
    def test_a_path_that_fat_or_a_link_could_mean_otherwise_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="no absolute path"):
            PartRef.parse(f"FILE={text}")


class TestWriting:
    def test_a_file_is_made_with_its_folder_written_and_read_back(
        self, passive: Region, booted: Booted
    ) -> None:
        write(passive, NEW, booted)
        assert passive.path.read_bytes() == NEW
        verify(passive, size=len(NEW), sha256=digest_of(passive, len(NEW)))

    @pytest.mark.parametrize("old", [b"", OLD, NEW * 2])
    def test_it_has_the_size_of_its_image_whatever_was_there(
        self, passive: Region, old: bytes
    ) -> None:
        passive.path.parent.mkdir()
        passive.path.write_bytes(old)
        write(passive, NEW)
        assert passive.path.read_bytes() == NEW

    def test_it_has_its_size_and_its_room_before_the_first_byte(self, passive: Region) -> None:
        with RegionWriter(passive, booted=NOTHING):
            status = passive.path.stat()
            assert status.st_size == len(NEW)
            assert status.st_blocks * 512 >= len(NEW)

    def test_what_has_its_size_already_is_kept_to_go_on(self, passive: Region) -> None:
        write(passive, NEW)
        with RegionWriter(passive, booted=NOTHING) as writer:
            writer.write_at(0, b"begin")
        assert passive.path.read_bytes() == b"begin" + NEW[5:]

    def test_zeros_are_written_and_keep_their_room(self, passive: Region) -> None:
        write(passive, NEW)
        with RegionWriter(passive, booted=NOTHING) as writer:
            writer.zero_at(4096, 8192)
            writer.sync()
        assert passive.path.read_bytes() == NEW[:4096] + bytes(8192) + NEW[12288:]
        assert passive.path.stat().st_blocks * 512 >= len(NEW)

    def test_nothing_is_written_past_the_image(self, passive: Region) -> None:
        with (
            RegionWriter(passive, booted=NOTHING) as writer,
            pytest.raises(DeviceTooSmallError, match="do not fit file "),
        ):
            writer.write_at(len(NEW) - 1, b"xx")
        assert passive.path.stat().st_size == len(NEW)

    def test_a_full_file_system_refuses_before_the_first_byte(
        self, disk: Path, tmp_path: Path
    ) -> None:
        with small_disk(tmp_path / "small") as small:
            region = resolve(disk, layout_of(small))[B]["linux"].sized(2 * SIZE_BYTES)
            with pytest.raises(DeviceTooSmallError, match="finds no room for"):
                RegionWriter(region, booted=NOTHING)
            assert not region.path.exists()

    def test_what_a_write_protected_file_system_says_is_passed_on(
        self, passive: Region, boot: Path
    ) -> None:
        with read_only(boot), pytest.raises(DeviceOpenError, match=r"read-only|Permission"):
            write(passive, NEW)

    def test_a_second_writer_waits_outside(self, passive: Region) -> None:
        with (
            RegionWriter(passive, booted=NOTHING),
            pytest.raises(DeviceBusyError, match="another program"),
        ):
            RegionWriter(passive, booted=NOTHING)

    def test_a_changed_byte_and_a_short_file_are_noticed(self, passive: Region) -> None:
        write(passive, NEW)
        right = digest_of(passive, len(NEW))
        passive.path.write_bytes(bytes([NEW[0] ^ 1]) + NEW[1:])
        with pytest.raises(ReadbackMismatchError, match=r"file .*linux reads back"):
            verify(passive, size=len(NEW), sha256=right)
        os.truncate(passive.path, len(NEW) - 1)
        with pytest.raises(DeviceReadError, match="ends at"):
            verify(passive, size=len(NEW), sha256=right)


class TestLength:
    def test_tells_a_file_that_was_lost_or_cut_short(self, passive: Region) -> None:
        assert not has_length(passive, len(NEW))
        write(passive, NEW)
        assert has_length(passive, len(NEW))
        os.truncate(passive.path, 4096)
        assert not has_length(passive, len(NEW))

    def test_a_partition_is_as_it_is(self, regions: dict[Slot, dict[str, Region]]) -> None:
        before = regions[B]["usr"].path.read_bytes()
        assert has_length(regions[B]["usr"], 1)
        cut_file(regions[B]["usr"], 1)
        assert regions[B]["usr"].path.read_bytes() == before

    def test_a_file_that_is_too_long_is_cut(self, passive: Region) -> None:
        write(passive, NEW)
        cut_file(passive, 5000)
        assert passive.path.read_bytes() == NEW[:5000]


class TestOrder:
    """FAT keeps none, so what is flushed before what is ours to hold."""

    @pytest.fixture
    def seen(self, passive: Region, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
        """At each flush of the file system: whether the name is there, whether it is held open."""
        flushes: list[tuple[bool, bool]] = []
        flush = sync_file_system

        def watch(path: Path) -> None:
            held = False
            for link in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):  # the one that we look through
                    held = held or str(link.readlink()).startswith(str(passive.path))
            flushes.append((passive.path.exists(), held))
            flush(path)

        monkeypatch.setattr(boot_files, "sync_file_system", watch)
        return flushes

    def test_an_old_name_is_flushed_away_before_its_clusters_are_free(
        self, passive: Region, seen: list[tuple[bool, bool]]
    ) -> None:
        passive.path.parent.mkdir()
        passive.path.write_bytes(OLD)
        remove_file(passive, NOTHING)
        assert seen == [(False, True), (False, False)]

    def test_the_new_size_is_flushed_before_anything_is_written(
        self, passive: Region, seen: list[tuple[bool, bool]]
    ) -> None:
        with RegionWriter(passive, booted=NOTHING) as writer:
            assert seen == [(True, True)]
            writer.sync()
            assert len(seen) == 1, "nothing was written since"
            writer.write_at(0, NEW)
            writer.sync()
            assert len(seen) == 2


class TestTheBootedSlot:
    def test_is_not_written_by_its_own_name(
        self, regions: dict[Slot, dict[str, Region]], booted: Booted
    ) -> None:
        for change in (RegionWriter, remove_file):
            with pytest.raises(SlotBootedError, match="a/linux belongs to the running system"):
                change(regions[A]["linux"].sized(len(OLD)), booted=booted)
        assert regions[A]["linux"].path.read_bytes() == OLD

    @pytest.mark.parametrize("way", ["symlink", "folder", "hard link"])
    def test_is_not_written_through_links(
        self, passive: Region, booted: Booted, boot: Path, way: str
    ) -> None:
        if way == "folder":
            (boot / "b").symlink_to("a")
        else:
            (boot / "b").mkdir()
            link = os.symlink if way == "symlink" else os.link
            link(boot / "a/linux", boot / "b/linux")
        for change in (RegionWriter, remove_file):
            with pytest.raises(SlotBootedError):
                change(passive, booted=booted)
        assert (boot / "a/linux").read_bytes() == OLD
        assert os.path.lexists(boot / "b/linux")

    def test_is_not_written_even_when_its_file_is_lost(
        self, passive: Region, boot: Path, regions: dict[Slot, dict[str, Region]]
    ) -> None:
        (boot / "a/linux").unlink()
        (boot / "b").symlink_to("a")
        booted = Booted.of_regions(regions[A].values())
        with pytest.raises(SlotBootedError):
            RegionWriter(passive, booted=booted)
        assert not (boot / "a/linux").exists()

    def test_is_not_written_by_another_spelling_of_its_name(
        self, booted: Booted, boot: Path, disk: Path
    ) -> None:
        layout = {A: {}, B: {"linux": PartRef(file=boot / "A/LINUX")}}
        shouted = resolve(disk, layout)[B]["linux"].sized(len(NEW))
        with pytest.raises(SlotBootedError):
            RegionWriter(shouted, booted=booted)
        assert not (boot / "A").exists()

    def test_is_not_written_when_a_file_is_the_disk_that_it_is_on(
        self, booted: Booted, disk: Path
    ) -> None:
        before = disk.read_bytes()
        region = resolve(disk, {A: {}, B: {"x": PartRef(file=disk)}})[B]["x"].sized(len(NEW))
        with pytest.raises(SlotBootedError):
            RegionWriter(region, booted=booted)
        assert disk.read_bytes() == before

    def test_stands_on_no_file(self, regions: dict[Slot, dict[str, Region]]) -> None:
        files = {slot: {"linux": parts["linux"]} for slot, parts in regions.items()}
        booted = Booted.of_regions(files[A].values())
        assert booted_slot(files, booted) is None

    def test_does_not_make_every_other_file_its_own(self, passive: Region, booted: Booted) -> None:
        write(passive, NEW, booted)


class TestTheFolder:
    def test_of_the_running_systems_own_file_system_is_an_empty_mount_point(
        self, passive: Region, regions: dict[Slot, dict[str, Region]], tmp_path: Path
    ) -> None:
        apart = [(tmp_path / "boot", tmp_path), (Path("/"), tmp_path / "no")]
        booted = Booted.of_regions(regions[A].values(), apart=apart)
        for change in (RegionWriter, remove_file):
            with pytest.raises(BootFolderUnmountedError, match="running system's own file system"):
                change(passive, booted=booted)
        assert not passive.path.parent.exists()

    def test_on_a_file_system_of_its_own_is_written(
        self, regions: dict[Slot, dict[str, Region]], disk: Path, tmp_path: Path
    ) -> None:
        with small_disk(tmp_path / "small") as small:
            booted = Booted.of_regions(regions[A].values(), apart=[(Path("/"), tmp_path)])
            write(resolve(disk, layout_of(small))[B]["linux"].sized(len(NEW)), NEW, booted)

    def test_is_only_asked_about_below_what_is_named(
        self, passive: Region, regions: dict[Slot, dict[str, Region]], tmp_path: Path
    ) -> None:
        apart = [(tmp_path / "efi", tmp_path)]
        write(passive, NEW, Booted.of_regions(regions[A].values(), apart=apart))

    @pytest.mark.parametrize("kind", ["folder", "dangling link", "fifo"])
    def test_what_is_no_plain_file_is_left_alone(self, passive: Region, kind: str) -> None:
        passive.path.parent.mkdir()
        if kind == "folder":
            passive.path.mkdir()
        elif kind == "fifo":
            os.mkfifo(passive.path)
        else:
            passive.path.symlink_to("nowhere")
        for change in (RegionWriter, remove_file):
            with pytest.raises(DeviceOpenError):
                change(passive, booted=NOTHING)
        assert os.path.lexists(passive.path)
