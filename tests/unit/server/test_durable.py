"""Files of the desk: whole or not at all, and a sentence when the disk refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.durable import link_durably, make_folder, replace_durably
from server.errors import DeskUnwritableError


def test_a_file_is_replaced_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for data in (b"old", b"new"):
        replace_durably(file, data, mode=0o600)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_flush_keeps_the_old_bytes_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timestamp.json"
    replace_durably(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeskUnwritableError, match=r"timestamp\.json .*: No space left"):
        replace_durably(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeskUnwritableError, match="cannot be written"):
        make_folder(tmp_path / "file" / "folder")


def test_a_second_name_that_is_there_stays(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"1")
    for _ in range(2):
        link_durably(first, tmp_path / "deep" / "er" / "second")
    assert (tmp_path / "deep/er/second").samefile(first)
    with pytest.raises(DeskUnwritableError, match="cannot be written"):
        link_durably(tmp_path / "nowhere", tmp_path / "third")
