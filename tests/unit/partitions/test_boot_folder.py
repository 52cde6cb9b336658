"""Small files on the loader's partition: made, changed within a sector, removed; never renamed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from partitions import boot_folder
from partitions.boot_folder import FILE_MAX_BYTES, SECTOR_BYTES, BootFolder
from partitions.errors import BootFolderError


@pytest.fixture
def folder(tmp_path: Path) -> BootFolder:
    return BootFolder(tmp_path)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def opened() -> list[str]:
    """Return the paths of all that this process has open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which the folder itself was read
            links.append(str(link.readlink()))
    return links


class TestReading:
    def test_the_files_of_a_folder_are_listed_in_order_and_without_folders(
        self, folder: BootFolder, tmp_path: Path
    ) -> None:
        for name in ("b", "a", "c/d"):
            folder.create(name, b"x")
        assert folder.names("") == ["a", "b"]
        assert folder.names("c") == ["d"]
        assert (tmp_path / "c/d").read_bytes() == b"x"

    def test_a_folder_that_is_not_there_has_no_files(self, folder: BootFolder) -> None:
        assert folder.names("loader/entries") == []

    def test_a_folder_that_is_a_file_is_an_error(self, folder: BootFolder) -> None:
        folder.create("loader", b"x")
        with pytest.raises(BootFolderError, match="loader: Not a directory"):
            folder.names("loader")

    def test_a_file_that_is_not_there_is_nothing(self, folder: BootFolder) -> None:
        assert folder.read("loader/loader.conf") is None

    def test_a_file_larger_than_any_of_a_loader_is_refused(
        self, folder: BootFolder, tmp_path: Path
    ) -> None:
        (tmp_path / "large").write_bytes(bytes(FILE_MAX_BYTES + 1))
        with pytest.raises(BootFolderError, match="large has more than 65536 bytes"):
            folder.read("large")

    def test_what_cannot_be_read_is_an_error_with_its_path(
        self, folder: BootFolder, tmp_path: Path
    ) -> None:
        (tmp_path / "entry.conf").mkdir()
        with pytest.raises(BootFolderError, match=r"entry\.conf: Is a directory"):
            folder.read("entry.conf")


class TestMaking:
    def test_a_new_file_gets_its_folder_too(self, folder: BootFolder) -> None:
        folder.create("loader/entries/a.conf", b"linux /a\n")
        assert folder.read("loader/entries/a.conf") == b"linux /a\n"

    def test_a_file_that_is_there_is_not_touched(self, folder: BootFolder) -> None:
        folder.create("a.conf", b"old")
        with pytest.raises(BootFolderError, match=r"a\.conf: File exists"):
            folder.create("a.conf", b"new")
        assert folder.read("a.conf") == b"old"

    def test_a_file_for_which_there_is_no_room_is_not_left_half_made(
        self, folder: BootFolder
    ) -> None:
        with room_for(100), pytest.raises(BootFolderError, match=r"a\.conf: File too large"):
            folder.create("a.conf", b"x" * 200)
        assert folder.names("") == []

    def test_a_file_that_does_not_keep_its_content_is_not_left_behind(
        self, folder: BootFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(BootFolder, "read", lambda _self, _name: b"other")
        with pytest.raises(BootFolderError, match="does not keep what was written"):
            folder.create("a.conf", b"x")
        assert folder.names("") == []


class TestChangingInPlace:
    def test_the_file_keeps_its_place_on_the_disk(self, folder: BootFolder, tmp_path: Path) -> None:
        folder.create("a.conf", b"x" * SECTOR_BYTES)
        before = (tmp_path / "a.conf").stat().st_ino
        folder.overwrite("a.conf", b"y" * SECTOR_BYTES)
        assert folder.read("a.conf") == b"y" * SECTOR_BYTES
        assert (tmp_path / "a.conf").stat().st_ino == before

    @pytest.mark.parametrize(("old", "new"), [(b"xx", b"yyy"), (b"xx", b"y"), (b"x" * 513, b"y")])
    def test_another_length_is_refused(self, folder: BootFolder, old: bytes, new: bytes) -> None:
        folder.create("a.conf", old)
        with pytest.raises(BootFolderError, match="cannot be changed in place"):
            folder.overwrite("a.conf", new)
        assert folder.read("a.conf") == old

    def test_more_than_a_sector_is_refused(self, folder: BootFolder) -> None:
        folder.create("a.conf", b"x" * 513)
        with pytest.raises(BootFolderError, match="within one sector"):
            folder.overwrite("a.conf", b"y" * 513)

    def test_a_file_that_is_not_there_is_not_made(self, folder: BootFolder) -> None:
        with pytest.raises(BootFolderError, match=r"a\.conf: No such file"):
            folder.overwrite("a.conf", b"")
        assert folder.names("") == []


class TestRemoving:
    def test_a_removed_file_is_gone(self, folder: BootFolder) -> None:
        folder.create("a.conf", b"x")
        folder.remove("a.conf")
        assert folder.names("") == []

    def test_a_file_that_is_not_there_is_gone_already(self, folder: BootFolder) -> None:
        folder.remove("loader/entries/a.conf")

    def test_its_content_does_not_stay_in_the_cluster(
        self, folder: BootFolder, tmp_path: Path
    ) -> None:
        folder.create("a.conf", b"linux /old\n")
        os.link(tmp_path / "a.conf", tmp_path / "cluster")
        folder.remove("a.conf")
        assert folder.read("cluster") == b"\n" * len(b"linux /old\n")

    def test_its_name_is_durably_gone_before_its_cluster_is_given_back(
        self, folder: BootFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held: list[bool] = []

        def look(_folder: Path) -> None:
            held.append(f"{tmp_path}/a.conf (deleted)" in opened())

        folder.create("a.conf", b"x")
        monkeypatch.setattr(boot_folder, "sync_folder", look)
        folder.remove("a.conf")
        assert held == [True]

    def test_what_no_single_write_would_make_blank_stays_as_it_was(
        self, folder: BootFolder, tmp_path: Path
    ) -> None:
        folder.create("kernel", b"k" * 513)
        os.link(tmp_path / "kernel", tmp_path / "cluster")
        folder.remove("kernel")
        assert folder.read("cluster") == b"k" * 513

    def test_what_cannot_be_removed_is_an_error(self, folder: BootFolder, tmp_path: Path) -> None:
        (tmp_path / "a.conf").mkdir()
        with pytest.raises(BootFolderError, match=r"a\.conf: Is a directory"):
            folder.remove("a.conf")
