"""Wrongful trust: thieves with some keys, thresholds, and the ways back (trust.md 3.6)."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from tests.sim.repository import TrustingNode, TufRepository, new_node
from updater.trust.errors import (
    SerialRollbackError,
    TrustExpiredError,
    TrustFormatError,
    TrustRollbackError,
    TrustRootError,
    TrustSignatureError,
)
from updater.trust.floors import load_floors

FAR_FORWARD = 2**31 - 1


def test_one_signature_where_two_are_needed_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    repository.write("stable", repository.roles["stable"], signers=repository.signers["stable"][:1])
    repository.publish()
    with pytest.raises(TrustSignatureError, match="stable was signed by 1/2 keys"):
        node.refresh()


def test_the_same_signature_twice_does_not_make_two(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    one = repository.signers["stable"][0]
    document = json.loads(repository.write("stable", repository.roles["stable"], signers=[one]))
    document["signatures"] *= 2
    path = repository.path_of("stable", repository.roles["stable"].version)
    repository.files[path] = json.dumps(document).encode()
    repository.snapshot.meta["stable.json"].hashes = None
    repository.snapshot.meta["stable.json"].length = None
    repository.publish()
    with pytest.raises(TrustFormatError):
        node.refresh()


def test_no_signature_at_all_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.write("timestamp", node.repository.timestamp, signers=[])
    with pytest.raises(TrustSignatureError):
        node.refresh()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "releases", "stable", "targets"])
def test_a_role_signed_by_the_keys_of_another_is_refused(tmp_path: Path, role: str) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    other = {"timestamp": "snapshot", "snapshot": "timestamp"}.get(role, "root")
    signers = repository.signers[other]
    if role in {"snapshot", "timestamp"}:
        signed = repository.snapshot if role == "snapshot" else repository.timestamp
        repository.write(role, signed, signers=signers)
    else:
        targets = repository.targets if role == "targets" else repository.roles[role]
        repository.write(role, targets, signers=signers)
    if role != "timestamp":
        if role != "snapshot":
            repository.write("snapshot", repository.snapshot)
        repository.sign_timestamp()
    with pytest.raises(TrustSignatureError, match=f"{role} was signed by 0/"):
        node.refresh()


def test_a_channel_key_cannot_list_payloads(tmp_path: Path) -> None:
    """A role is not asked for paths outside of its own."""
    node = new_node(tmp_path)
    repository = node.repository
    path = repository.add_release("6.6.6")
    evil = repository.roles["releases"].targets.pop(path)
    repository.promote("6.6.6")
    repository.roles["stable"].targets[path] = evil
    repository.publish("stable")
    assert path not in node.refresh().payloads


def test_a_release_key_cannot_promote(tmp_path: Path) -> None:
    node = new_node(tmp_path, "stable", "beta")
    repository = node.repository
    repository.add_release("6.6.6")
    repository.promote("6.6.6", channel="beta")
    document = repository.roles["beta"].targets.popitem()[1]
    document.path = "channels/stable/acme-os/amd64-usr.json"
    repository.roles["releases"].targets[document.path] = document
    repository.publish("releases", "beta")
    assert node.refresh().channel.current == "2.0.0"


@pytest.mark.parametrize("old_signatures", [0, 1])
def test_a_new_root_without_enough_of_the_old_keys_is_refused(
    tmp_path: Path, old_signatures: int
) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    old = repository.signers["root"]
    repository.replace_keys("root", [CryptoSigner.generate_ed25519() for _ in range(3)])
    repository.sign_root([*old[:old_signatures], *repository.signers["root"]])
    with pytest.raises(TrustSignatureError):
        node.refresh()


def test_a_new_root_without_enough_of_its_own_keys_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    old = repository.signers["root"]
    repository.replace_keys("root", [CryptoSigner.generate_ed25519() for _ in range(3)])
    repository.sign_root([*old, *repository.signers["root"][:1]])
    with pytest.raises(TrustSignatureError):
        node.refresh()


@pytest.mark.parametrize("version", [1, 3])
def test_a_root_that_repeats_or_skips_a_version_is_refused(tmp_path: Path, version: int) -> None:
    node = new_node(tmp_path)
    node.repository.root.version = version
    data = node.repository.store("root", node.repository.root)
    node.repository.files["metadata/2.root.json"] = data
    with pytest.raises(TrustRollbackError):
        node.refresh()


def test_an_old_node_walks_all_roots_one_by_one(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    for _ in range(20):
        node.repository.rotate("root")
    assert node.refresh().root_version == 21
    assert load_floors(node.folder / "floors.json").root_version == 21
    node.fetcher.asked.clear()
    node.refresh()
    assert node.fetcher.asked == ["metadata/22.root.json", "metadata/timestamp.json"]


def test_a_newer_image_brings_a_newer_root(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.repository.rotate("root")
    node.bootstrap = node.repository.files.pop("metadata/2.root.json")
    assert node.refresh().root_version == 2


def test_an_older_image_after_a_rollback_keeps_the_newer_root(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    older = node.bootstrap
    node.repository.rotate("root", "timestamp")
    node.repository.publish()
    node.bootstrap = node.repository.files["metadata/2.root.json"]
    node.refresh()
    node.bootstrap = older
    assert node.refresh().root_version == 3


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_stolen_online_key_is_replaced_and_nodes_recover_from_fast_forward(
    tmp_path: Path, role: str
) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    node.refresh()
    honest = repository.timestamp.version, repository.snapshot.version
    signed = repository.timestamp if role == "timestamp" else repository.snapshot
    signed.version = FAR_FORWARD
    repository.store(role, signed)
    if role == "snapshot":  # a thief of this one also needs the timestamp to be taken along
        repository.sign_timestamp()
    node.refresh()
    repository.timestamp.version, repository.snapshot.version = honest
    repository.rotate("timestamp", *([role] if role == "snapshot" else []))
    repository.publish()
    assert node.refresh().channel.current == "2.0.0"
    assert repository.timestamp.version < 10


def test_without_new_keys_fast_forward_blocks_the_way_back(tmp_path: Path) -> None:
    """The floor is bound to the keys: only the root can lift it."""
    node = new_node(tmp_path)
    repository = node.repository
    honest = repository.timestamp.version
    repository.timestamp.version = FAR_FORWARD
    repository.store("timestamp", repository.timestamp)
    node.refresh()
    repository.timestamp.version = honest
    repository.root.version = 1
    repository.sign_root()
    repository.publish()
    (node.folder / "current").unlink()
    with pytest.raises(TrustRollbackError):
        node.refresh()


def test_a_revoked_online_key_signs_in_vain(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    stolen = repository.signers["timestamp"]
    repository.rotate("timestamp")
    repository.publish()
    node.refresh()
    repository.write("timestamp", repository.timestamp, signers=stolen)
    with pytest.raises(TrustSignatureError):
        node.refresh()


@pytest.mark.parametrize("role", ["root", "targets"])
def test_one_stolen_root_or_targets_key_is_replaced(tmp_path: Path, role: str) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    node.refresh()
    stolen = repository.signers[role][0]
    repository.rotate(role)
    repository.publish("targets")
    assert node.refresh().root_version == 2
    if role == "targets":
        repository.write(role, repository.targets, signers=[stolen, repository.signers[role][0]])
        repository.publish()
        with pytest.raises(TrustSignatureError):
            node.refresh()


def test_a_stolen_release_key_is_replaced_and_lists_in_vain(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    node.refresh()
    stolen = repository.signers["releases"]
    repository.rotate("releases")
    assert node.refresh().channel.current == "2.0.0"
    repository.add_release("6.6.6")
    repository.write("releases", repository.roles["releases"], signers=stolen)
    repository.publish()
    with pytest.raises(TrustSignatureError):
        node.refresh()


def test_a_stolen_channel_key_is_replaced_and_the_document_signed_with_a_higher_serial(
    tmp_path: Path,
) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    repository.promote("2.0.0", serial=5)
    node.refresh()
    stolen = repository.signers["stable"]
    repository.rotate("stable")
    repository.promote("2.0.0", serial=6)
    assert node.refresh().channel.serial == 6
    repository.write("stable", repository.roles["stable"], signers=stolen)
    repository.publish()
    with pytest.raises(TrustSignatureError):
        node.refresh()


def test_a_thief_who_used_up_the_serials_is_outlived_by_new_channel_keys(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    repository.promote("2.0.0", serial=2**53 - 1)
    node.refresh()
    repository.promote("2.0.0", serial=7)
    with pytest.raises(SerialRollbackError):
        node.refresh()
    repository.rotate("stable")
    repository.promote("2.0.0", serial=8)
    assert node.refresh().channel.serial == 8


def test_after_two_stolen_root_keys_a_new_image_founds_a_new_trust(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    for _ in range(3):
        node.repository.rotate("root")
        node.repository.release("3.0.0")
    node.refresh()
    fresh = TufRepository(node.clock)
    fresh.release("4.0.0")
    successor = TrustingNode(folder=node.folder, repository=fresh, clock=node.clock)
    view = successor.refresh()
    assert (view.channel.current, view.root_version) == ("4.0.0", 1)


def test_another_repository_under_the_same_address_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    fresh = TufRepository(node.clock)
    fresh.release("4.0.0")
    node.repository.replay(fresh.record())
    with pytest.raises(TrustSignatureError):
        node.refresh()


def test_a_lost_server_is_rebuilt_with_new_online_keys(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    node.refresh()
    repository.timestamp.version = repository.snapshot.version = 1
    repository.rotate("timestamp", "snapshot")
    for path in ("metadata/timestamp.json", "metadata/1.snapshot.json"):
        repository.files.pop(path, None)
    repository.publish()
    assert node.refresh().channel.current == "2.0.0"


def test_a_damaged_root_in_the_image_is_an_error_of_its_own(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    for damaged in (b"", b"{}", node.bootstrap[:-10], node.bootstrap.replace(b'"keys"', b'"kyes"')):
        node.bootstrap = damaged
        if damaged:
            with pytest.raises(TrustRootError):
                node.client()


def test_an_expired_root_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.write("root", node.repository.root, lifetime=timedelta(days=-1))
    with pytest.raises(TrustExpiredError, match=r"root\.json is expired"):
        node.refresh()
