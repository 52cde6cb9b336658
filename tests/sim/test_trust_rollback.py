"""Attacks that show the node an older repository than it has seen, or a mixture of two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sim.repository import TrustingNode, new_node
from updater.trust.errors import (
    SerialRollbackError,
    TrustError,
    TrustFormatError,
    TrustMismatchError,
    TrustRollbackError,
    TrustUnreachableError,
)


def truncate_all(folder: Path) -> None:
    """Cut each file that python-tuf keeps to nothing, as a crash without fsync would."""
    for file in (folder / "current").resolve().rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.write_bytes(b"")


def damage_nothing(folder: Path) -> None:
    assert (folder / "current").exists()


def remove_generations(folder: Path) -> None:
    for file in (folder / "current").resolve().rglob("*"):
        if not file.is_dir():
            file.unlink()


def remove_the_link(folder: Path) -> None:
    (folder / "current").unlink()


def remove_own_floors(folder: Path) -> None:
    (folder / "floors.json").unlink()


def truncate_own_floors(folder: Path) -> None:
    (folder / "floors.json").write_bytes(b"")


def garble_own_floors(folder: Path) -> None:
    (folder / "floors.json").write_bytes(b'{"roles": {"timestamp": -1}}')


DAMAGES = [
    damage_nothing,
    truncate_all,
    remove_generations,
    remove_the_link,
    remove_own_floors,
    truncate_own_floors,
    garble_own_floors,
]
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@every_damage
def test_replay_of_an_old_repository_is_refused_whatever_file_was_lost(
    tmp_path: Path, damage: object
) -> None:
    node = new_node(tmp_path)
    old = node.repository.record()
    node.repository.release("3.0.0")
    node.refresh()
    damage(node.folder)  # type: ignore[operator]  # one of the functions above
    node.repository.replay(old)
    with pytest.raises(TrustRollbackError):
        node.refresh()


@every_damage
def test_the_honest_repository_is_believed_whatever_file_was_lost(
    tmp_path: Path, damage: object
) -> None:
    node = new_node(tmp_path)
    node.refresh()
    damage(node.folder)  # type: ignore[operator]  # one of the functions above
    node.repository.release("3.0.0")
    assert node.refresh().channel.current == "3.0.0"


def test_rollback_names_both_versions(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.record()
    node.repository.release("3.0.0")
    node.refresh()
    truncate_all(node.folder)
    node.repository.replay(old)
    with pytest.raises(TrustRollbackError, match=r"version 2, this node has accepted 3"):
        node.refresh()


def test_an_older_timestamp_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.files["metadata/timestamp.json"]
    node.repository.sign_timestamp()
    node.refresh()
    node.repository.files["metadata/timestamp.json"] = old
    with pytest.raises(TrustRollbackError):
        node.refresh()


def test_a_newer_timestamp_that_names_an_older_snapshot_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.timestamp.snapshot_meta
    node.repository.release("3.0.0")
    node.refresh()
    node.repository.timestamp.snapshot_meta = old
    node.repository.sign_timestamp()
    with pytest.raises(TrustRollbackError):
        node.refresh()


@pytest.mark.parametrize("role", ["stable", "releases", "targets"])
def test_a_newer_snapshot_that_names_an_older_role_is_refused(tmp_path: Path, role: str) -> None:
    node = new_node(tmp_path)
    old = node.repository.snapshot.meta[f"{role}.json"]
    node.repository.publish("targets", "releases", "stable")
    node.refresh()
    node.repository.snapshot.meta[f"{role}.json"] = old
    node.repository.publish()
    with pytest.raises(TrustRollbackError):
        node.refresh()


@pytest.mark.parametrize("role", ["stable", "releases", "targets"])
def test_an_older_role_is_refused_also_after_our_copy_was_truncated(
    tmp_path: Path, role: str
) -> None:
    node = new_node(tmp_path)
    old = node.repository.snapshot.meta[f"{role}.json"]
    node.repository.publish("targets", "releases", "stable")
    node.refresh()
    truncate_all(node.folder)
    node.repository.snapshot.meta[f"{role}.json"] = old
    node.repository.publish()
    with pytest.raises(TrustRollbackError, match=role):
        node.refresh()


def test_a_newer_snapshot_that_drops_a_role_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    del node.repository.snapshot.meta["stable.json"]
    node.repository.publish()
    with pytest.raises(TrustFormatError, match=re.escape("stable.json")):
        node.refresh()


def test_mix_and_match_an_old_role_under_a_new_name_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.files["metadata/2.stable.json"]
    node.repository.release("3.0.0")
    node.repository.files["metadata/3.stable.json"] = old
    with pytest.raises(TrustMismatchError):
        node.refresh()


def test_mix_and_match_is_refused_also_when_the_snapshot_names_no_hashes(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.files["metadata/2.stable.json"]
    node.repository.release("3.0.0")
    node.repository.files["metadata/3.stable.json"] = old
    node.repository.snapshot.meta["stable.json"].hashes = None
    node.repository.snapshot.meta["stable.json"].length = None
    node.repository.publish()
    with pytest.raises(TrustRollbackError):
        node.refresh()


def test_a_channel_document_with_a_lower_serial_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.promote("2.0.0", serial=42)
    node.refresh()
    node.repository.promote("2.0.0", serial=41)
    with pytest.raises(SerialRollbackError, match=r"serial 41, this node has seen 42"):
        node.refresh()


def test_the_same_serial_again_is_no_rollback(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.promote("2.0.0", serial=42)
    node.refresh()
    node.repository.publish("stable")  # a re-sign at 30 days left
    assert node.refresh().channel.serial == 42


def test_serials_of_two_channels_are_kept_apart(tmp_path: Path) -> None:
    node = new_node(tmp_path, "stable", "beta")
    node.repository.promote("2.0.0", serial=42)
    node.repository.promote("2.0.0", channel="beta", serial=7)
    assert node.refresh("stable").channel.serial == 42
    assert node.refresh("beta").channel.serial == 7
    node.repository.promote("2.0.0", serial=41)
    with pytest.raises(SerialRollbackError):
        node.refresh("stable")


def test_a_hidden_new_root_cannot_revive_revoked_keys(tmp_path: Path) -> None:
    """404 for 2.root.json shows the world before the rotation: our floor knows better."""
    node = new_node(tmp_path)
    old = node.repository.record()
    node.repository.rotate("timestamp")
    node.repository.publish()
    node.refresh()
    truncate_all(node.folder)
    node.repository.replay(old)
    with pytest.raises(TrustRollbackError, match="newest root offered is version 1"):
        node.refresh()


def test_a_hidden_new_root_does_not_matter_to_a_node_that_keeps_its_own(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.rotate("timestamp")
    node.repository.publish()
    node.refresh()
    del node.repository.files["metadata/2.root.json"]
    assert node.refresh().root_version == 2


def test_a_root_that_was_seen_in_a_refused_refresh_still_counts(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    old = node.repository.record()
    node.repository.rotate("timestamp")
    node.repository.publish()
    node.fetcher.statuses["metadata/timestamp.json"] = 503
    with pytest.raises(TrustUnreachableError):
        node.refresh()
    node.fetcher.statuses.clear()
    node.repository.replay(old)  # signed by a key that the node knows to be revoked
    with pytest.raises(TrustError):
        node.refresh()


def test_after_each_refusal_a_good_update_still_works(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    old = node.repository.record()
    node.repository.release("3.0.0")
    node.refresh()
    new = node.repository.record()
    node.repository.replay(old)
    with pytest.raises(TrustRollbackError):
        node.refresh()
    node.repository.replay(new)
    node.repository.release("4.0.0")
    assert node.refresh().channel.current == "4.0.0"


def test_a_refused_refresh_leaves_no_trace(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    before = _snapshot_of(node)
    node.repository.promote("2.0.0", content=b"{}")
    with pytest.raises(TrustFormatError):
        node.refresh()
    assert _snapshot_of(node) == before


def _snapshot_of(node: TrustingNode) -> dict[str, bytes]:
    return {
        str(file.relative_to(node.folder)): file.read_bytes()
        for file in node.folder.rglob("*")
        if file.is_file()
    }
