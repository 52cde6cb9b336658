"""Power cuts, crashes and damage in the folder that keeps the trusted metadata."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from tests.sim.repository import MemoryFetcher, TrustingNode, new_node
from updater.errors import StateError
from updater.trust.errors import TrustRollbackError
from updater.trust.store import TrustStore


class PowerCutError(BaseException):
    """No handler under test outlives it."""


class FetcherUntilPowerCut(MemoryFetcher):
    """Brings `files_left` files, then the power fails."""

    files_left = 0

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        if self.files_left == 0:
            raise PowerCutError
        self.files_left -= 1
        return super()._fetch(url)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_whole(node: TrustingNode, *, old: bytes) -> None:
    """After a cut the node refuses what is old and goes on with what is good."""
    new = node.repository.record()
    node.repository.files["metadata/timestamp.json"] = old
    with pytest.raises(TrustRollbackError):
        node.refresh()
    node.repository.replay(new)
    node.repository.sign_timestamp()
    assert node.refresh().channel.current == "3.0.0"
    assert names(node.folder) == {"current", "floors.json", "generations", "lock"}
    assert len(names(node.folder / "generations")) == 1


@pytest.mark.parametrize("files_left", range(6))
def test_a_power_cut_after_any_file_of_a_refresh_leaves_the_old_generation(
    tmp_path: Path, files_left: int
) -> None:
    node = new_node(tmp_path)
    old = node.repository.files["metadata/timestamp.json"]
    node.repository.sign_timestamp()
    node.refresh()
    generation = (node.folder / "current").readlink()
    node.repository.release("3.0.0")
    honest = node.fetcher
    node.fetcher = FetcherUntilPowerCut(node.repository)
    node.fetcher.files_left = files_left
    with pytest.raises(PowerCutError):
        node.refresh()
    node.fetcher = honest
    assert (node.folder / "current").readlink() == generation
    check_whole(node, old=old)


def test_a_power_cut_at_any_flush_of_a_refresh_leaves_one_whole_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush in turn is the last thing that happens; what was not flushed is lost."""
    for flushes in itertools.count():
        node = new_node(tmp_path / str(flushes))
        old = node.repository.files["metadata/timestamp.json"]
        node.repository.sign_timestamp()
        node.refresh()
        node.repository.release("3.0.0")
        if not refresh_until_flush(node, flushes, monkeypatch):
            break
        lose_what_was_not_current(node)
        check_whole(node, old=old)
    assert flushes > 10


def refresh_until_flush(node: TrustingNode, flushes: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Cut the power at the flush of this number; tell whether there was one."""
    left = iter(range(flushes))

    def fsync(_descriptor: int) -> None:
        if next(left, None) is None:
            raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        try:
            node.refresh()
        except PowerCutError:
            return True
    return False


def lose_what_was_not_current(node: TrustingNode) -> None:
    """Files that nobody relies on yet may be empty after a power cut."""
    current = (node.folder / "current").resolve()
    for generation in (node.folder / "generations").iterdir():
        if generation != current:
            shutil.rmtree(generation)
            (generation / "root_history").mkdir(parents=True)
            (generation / "timestamp.json").write_bytes(b"")


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.repository.release("3.0.0")

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StateError, match="No space left"):
            node.refresh()
    assert node.refresh().channel.current == "3.0.0"


def test_garbage_of_a_crash_is_removed_at_the_next_start(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    generations = node.folder / "generations"
    (generations / "00000009").mkdir()
    (generations / "00000009" / "tmpabc").write_bytes(b"")
    (generations / "tmpxyz").write_bytes(b"")
    (generations / "00000003").symlink_to("/nowhere")
    (node.folder / "current.draft").symlink_to("generations/00000009")
    node.refresh()
    assert names(generations) == {(node.folder / "current").readlink().name}
    assert names(node.folder) == {"current", "floors.json", "generations", "lock"}


@pytest.mark.parametrize("target", ["/etc", "generations/../../elsewhere", "generations/gone", "."])
def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path: Path, target: str) -> None:
    node = new_node(tmp_path)
    node.refresh()
    (node.folder / "current").unlink()
    (node.folder / "current").symlink_to(target)
    assert TrustStore(node.folder).current is None
    assert node.refresh().channel.current == "2.0.0"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_in_the_place_of_the_link_is_replaced(tmp_path: Path, kind: str) -> None:
    node = new_node(tmp_path)
    node.refresh()
    link = node.folder / "current"
    link.unlink()
    if kind == "file":
        link.write_bytes(b"garbage")
    else:
        link.mkdir()
        (link / "timestamp.json").write_bytes(b"garbage")
    assert node.refresh().channel.current == "2.0.0"
    assert link.is_symlink()


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff" * 5000])
def test_each_file_of_the_store_may_be_damaged(tmp_path: Path, garbage: bytes) -> None:
    node = new_node(tmp_path)
    node.refresh()
    generation = (node.folder / "current").resolve()
    stored = [path.relative_to(generation) for path in generation.rglob("*") if path.is_file()]
    for name in stored:
        (node.folder / "current" / name).write_bytes(garbage)
        node.repository.sign_timestamp()
        assert node.refresh().channel.current == "2.0.0", name


def test_all_of_the_state_may_be_lost_at_once(tmp_path: Path) -> None:
    """Loss costs a download: the node starts from its image."""
    node = new_node(tmp_path)
    node.refresh()
    shutil.rmtree(node.folder)
    assert node.refresh().channel.current == "2.0.0"


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    for path in [node.folder, *node.folder.rglob("*")]:
        if path.is_symlink():
            continue
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_unchanged_files_are_shared_with_the_last_generation(tmp_path: Path) -> None:
    """A poll every hour must not write the `releases` role every hour."""
    node = new_node(tmp_path)
    node.refresh()
    releases = (node.folder / "current" / "releases.json").stat().st_ino
    node.repository.sign_timestamp()
    node.refresh()
    assert (node.folder / "current" / "releases.json").stat().st_ino == releases


def test_a_new_channel_document_is_not_written_into_the_old_generation(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    store = TrustStore(node.folder)
    assert store.current is not None
    (document,) = (store.current / "targets").iterdir()
    with document.open("rb") as kept:  # survives the removal of its generation
        old = document.read_bytes()
        node.repository.release("3.0.0")
        node.refresh()
        assert kept.read() == old


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    node.folder = tmp_path / "file" / "trust"
    with pytest.raises(StateError, match=str(node.folder)):
        node.refresh()
