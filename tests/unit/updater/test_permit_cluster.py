"""Which etcd is trusted: the one that was seen before, never one that went back."""

from __future__ import annotations

from pathlib import Path

import pytest

from updater.errors import StateError
from updater.permit.cluster import ClusterGuard, ClusterMark, FileClusterMemory
from updater.permit.errors import PermitClusterChangedError


def guard_at(tmp_path: Path, *, revision: int = 100) -> ClusterGuard:
    """A guard that remembers cluster 7 at this revision."""
    guard = ClusterGuard(FileClusterMemory(tmp_path / "mark.json"))
    guard.check(7, revision=revision)
    guard.remember()
    return guard


def test_the_first_cluster_is_remembered_across_processes(tmp_path: Path) -> None:
    guard_at(tmp_path)

    mark = FileClusterMemory(tmp_path / "mark.json").get()

    assert mark == ClusterMark(cluster_id="0000000000000007", revision=100)


def test_reading_alone_leaves_no_memory(tmp_path: Path) -> None:
    ClusterGuard(FileClusterMemory(tmp_path / "mark.json")).check(7, revision=100)

    assert not (tmp_path / "mark.json").exists()


def test_another_cluster_is_refused_naming_both_and_the_file(tmp_path: Path) -> None:
    guard_at(tmp_path)
    later = ClusterGuard(FileClusterMemory(tmp_path / "mark.json"))

    with pytest.raises(
        PermitClusterChangedError, match=r"0000000000000008, expected 0000000000000007.*mark\.json"
    ):
        later.check(8, revision=200)


def test_a_cluster_that_went_back_in_time_is_refused(tmp_path: Path) -> None:
    guard_at(tmp_path, revision=100)
    later = ClusterGuard(FileClusterMemory(tmp_path / "mark.json"))

    with pytest.raises(PermitClusterChangedError, match="at revision 99 but was at 100"):
        later.check(7, revision=99)
    later.check(7, revision=100)


def test_an_answer_that_may_be_stale_is_not_held_against_the_cluster(tmp_path: Path) -> None:
    guard_at(tmp_path).check(7, revision=None)


def test_a_refusal_stays_until_a_person_removes_the_memory(tmp_path: Path) -> None:
    guard = guard_at(tmp_path)
    for _ in range(2):
        with pytest.raises(PermitClusterChangedError):
            guard.check(8, revision=3)

    (tmp_path / "mark.json").unlink()
    guard.check(8, revision=3)
    guard.remember()

    mark = FileClusterMemory(tmp_path / "mark.json").get()
    assert mark == ClusterMark(cluster_id="0000000000000008", revision=3)


def test_what_was_never_remembered_binds_one_answer_only(tmp_path: Path) -> None:
    guard = ClusterGuard(FileClusterMemory(tmp_path / "mark.json"))
    guard.check(7, revision=100)

    with pytest.raises(PermitClusterChangedError):
        guard.check(8, revision=100)
    guard.check(8, revision=100)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b'{"schema":"bascule.permit-cluster/1","cluster_id":"7","revision":1}',
        b'{"schema":"bascule.permit-cluster/1","cluster_id":"0000000000000007","revision":-1}',
        b"\x00" * 10_000,
    ],
)
def test_a_damaged_memory_is_a_refusal_not_a_new_beginning(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mark.json").write_bytes(content)

    with pytest.raises(PermitClusterChangedError, match=r"mark\.json is damaged"):
        ClusterGuard(FileClusterMemory(tmp_path / "mark.json"))


def test_a_memory_that_cannot_be_read_or_written_is_the_state_folders_fault(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        FileClusterMemory(tmp_path / "folder").get()
    with pytest.raises(StateError, match="cannot be written"):
        FileClusterMemory(tmp_path / "none" / "mark.json").set(
            ClusterMark(cluster_id="0000000000000007", revision=1)
        )
