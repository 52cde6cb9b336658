"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.draft import draft_of, scratch_beside
from images.errors import FileWriteError


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    with draft_of(tmp_path / "file") as draft:
        draft.append(b"ab")
        draft.append(b"cd")
        assert not (tmp_path / "file").exists()

    assert (tmp_path / "file").read_bytes() == b"abcd"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with draft_of(tmp_path / "file"):
            pass
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_removes_the_draft_and_keeps_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def write() -> None:
        with draft_of(tmp_path / "file") as draft:
            draft.append(b"new")
            raise error

    with pytest.raises(error):
        write()

    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bytes_can_be_written_anywhere_and_read_back(tmp_path: Path) -> None:
    with draft_of(tmp_path / "file") as draft:
        draft.set_size(6)
        draft.write_at(2, memoryview(b"xy"))
        assert b"".join(draft.chunks()) == b"\0\0xy\0\0"


def test_a_scratch_file_has_no_name_and_is_gone(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "file") as scratch:
        scratch.append(b"abc")
        assert scratch.appended_bytes == 3
        assert b"".join(scratch.chunks()) == b"abc"
        assert list(tmp_path.iterdir()) == []

    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    for make in (draft_of, scratch_beside):
        with pytest.raises(FileWriteError, match="No such file"), make(tmp_path / "a" / "b"):
            pass


def test_links_that_go_round_are_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")

    with pytest.raises(FileWriteError), draft_of(tmp_path / "round"):
        pass


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may exceed 1 MiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="File too large"), draft_of(tmp_path / "f") as draft:
        draft.append(bytes(2 * 1024 * 1024))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_a_write_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileWriteError, match="Permission denied"), draft_of(tmp_path / "f"):
            pass
    finally:
        tmp_path.chmod(0o700)
