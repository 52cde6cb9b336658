from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.sim.full_disk import fill, read_only, small_disk
from updater.durable import append_durably, replace_durably, sync_folder


class Recorder:
    """Writes down, in order, what reaches the disk through `os`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        real_fsync = os.fsync
        real_rename = Path.replace

        def fsync(descriptor: int) -> None:
            kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
            self.calls.append(f"flush {kind}")
            real_fsync(descriptor)

        def rename(source: Path, target: Path) -> Path:
            self.calls.append("rename")
            return real_rename(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", rename)


def test_a_replaced_file_holds_the_new_bytes_and_no_draft_is_left(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    replace_durably(file, b"old")
    replace_durably(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_private(tmp_path: Path) -> None:
    replace_durably(tmp_path / "state.json", b"x")
    append_durably(tmp_path / "history", b"x\n")
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_draft_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any other order a power cut could leave an empty file under the real name."""
    recorder = Recorder(monkeypatch)
    replace_durably(tmp_path / "state.json", b"x")
    assert recorder.calls == ["flush file", "rename", "flush folder"]


def test_an_appended_line_is_flushed_and_the_folder_once_the_file_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    append_durably(tmp_path / "history", b"one\n")
    append_durably(tmp_path / "history", b"two\n")
    assert recorder.calls == ["flush file", "flush folder", "flush file"]
    assert (tmp_path / "history").read_bytes() == b"one\ntwo\n"


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(b'{"whole": 1}\n{"torn')
    append_durably(file, b'{"next": 1}\n')
    assert file.read_bytes().splitlines() == [b'{"whole": 1}', b'{"torn', b'{"next": 1}']


def test_a_draft_that_a_dead_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state.json.draft").write_bytes(b"half of something much longer")
    replace_durably(tmp_path / "state.json", b"new")
    assert (tmp_path / "state.json").read_bytes() == b"new"
    assert not (tmp_path / "state.json.draft").exists()


def test_a_link_in_place_of_the_draft_is_not_followed(tmp_path: Path) -> None:
    """Whoever can write the folder must not make root overwrite another file."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "state.json.draft").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        replace_durably(tmp_path / "state.json", b"new")
    assert victim.read_bytes() == b"precious"


def test_on_a_full_disk_the_old_bytes_stay_and_no_draft_is_left(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder:
        file = folder / "state.json"
        replace_durably(file, b"old")
        fill(folder)
        with pytest.raises(OSError, match="No space"):
            replace_durably(file, b"x" * 8192)
        assert file.read_bytes() == b"old"
        assert sorted(path.name for path in folder.iterdir()) == ["ballast", "state.json"]


def test_in_a_read_only_folder_the_old_bytes_stay(tmp_path: Path) -> None:
    replace_durably(tmp_path / "state.json", b"old")
    with read_only(tmp_path):
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            replace_durably(tmp_path / "state.json", b"new")
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            append_durably(tmp_path / "history", b"new\n")
    assert (tmp_path / "state.json").read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        replace_durably(tmp_path / "missing" / "state.json", b"x")
