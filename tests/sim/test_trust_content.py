"""Attacks on what is signed and what arrives: flipped bits, other files, wrong shapes, no end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from images.release import tuf_channel_path
from tests.sim.repository import (
    BOARD,
    PRODUCT,
    TrustingNode,
    TufRepository,
    make_channel,
    new_node,
)
from updater.trust import limits
from updater.trust.errors import (
    BelowFloorError,
    ChannelUnknownError,
    FactsInvalidError,
    NotInChannelError,
    NotNewerError,
    NotPublishedError,
    TrustFormatError,
    TrustMismatchError,
    TrustOversizeError,
    TrustRefusedError,
    TrustUnreachableError,
    WithdrawnError,
    WrongBoardError,
    WrongChannelError,
    WrongProductError,
    WrongVersionError,
)
from updater.trust.policy import choose
from updater.trust.view import Offer, OfferedFile, VerifiedRelease

DOCUMENT = "targets/channels/stable/acme-os/"


def decide(node: TrustingNode, offer: Offer | None = None, *, floor: int = 0) -> VerifiedRelease:
    """Refresh and decide, as the agent does."""
    view = node.refresh()
    return choose(view, node.identity, floor=floor, denied=(), offer=offer, now=node.clock())


def test_the_honest_release_is_chosen_with_its_signed_hash_and_size(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    path = node.repository.release("3.0.0")
    target = node.repository.roles["releases"].targets[path]
    (payload,) = decide(node).payloads
    assert (payload.path, payload.sha256, payload.size) == (
        path,
        target.hashes["sha256"],
        target.length,
    )


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "releases", "stable"])
def test_one_flipped_bit_anywhere_in_metadata_is_refused(tmp_path: Path, role: str) -> None:
    node = new_node(tmp_path)
    paths = [path for path in node.repository.files if path.endswith(f"{role}.json")]
    path = max(path for path in paths if path.startswith("metadata/"))
    data = node.repository.files[path]
    for position in range(0, len(data), max(1, len(data) // 24)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        node.repository.files[path] = bytes(flipped)
        with pytest.raises(TrustRefusedError):
            node.refresh()
    node.repository.files[path] = data
    assert node.refresh().channel.current == "2.0.0"


@pytest.mark.parametrize("change", ["flip", "shorten", "extend", "other"])
def test_arbitrary_software_in_the_channel_document_is_refused(tmp_path: Path, change: str) -> None:
    node = new_node(tmp_path)
    path = next(path for path in node.repository.files if path.startswith(DOCUMENT))
    data = node.repository.files[path]
    node.repository.files[path] = {
        "flip": data.replace(b"2.0.0", b"2.0.1"),
        "shorten": data[:-1],
        "extend": data + b" ",
        "other": make_channel(current="9.9.9"),
    }[change]
    with pytest.raises((TrustMismatchError, TrustOversizeError)):
        node.refresh()


def test_the_right_payload_under_another_path_is_refused(tmp_path: Path) -> None:
    """What is signed as 1.5.0 cannot be shown as 9.0.0."""
    node = new_node(tmp_path)
    repository = node.repository
    repository.add_release("1.5.0", path=f"os/{PRODUCT}/{BOARD}/9.0.0/full.crau")
    repository.promote("9.0.0")
    with pytest.raises(WrongVersionError, match=r"is of version 1\.5\.0, wanted is 9\.0\.0"):
        decide(node)


def test_a_payload_that_no_release_key_signed_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.promote("9.0.0")
    with pytest.raises(NotPublishedError):
        decide(node)


def test_a_payload_without_facts_is_refused_and_spoils_no_other_version(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    bad = repository.add_release("4.0.0", custom={"schema": "bascule.payload/99"})
    good = repository.add_release("3.0.0")
    repository.promote("4.0.0", allowed={"4.0.0": [bad], "3.0.0": [good]})
    with pytest.raises(FactsInvalidError):
        decide(node)
    assert decide(node, Offer(version="3.0.0")).version == "3.0.0"


def test_a_payload_of_another_product_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.add_release("3.0.0", path=f"os/{PRODUCT}/{BOARD}/3.0.0/full.crau", product="no")
    node.repository.promote("3.0.0")
    with pytest.raises(WrongProductError):
        decide(node)


def test_a_cross_board_payload_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.add_release("3.0.0", path=f"os/{PRODUCT}/{BOARD}/3.0.0/full.crau", board="arm")
    node.repository.promote("3.0.0")
    with pytest.raises(WrongBoardError, match="is for board arm"):
        decide(node)


@pytest.mark.parametrize(
    ("field", "error"),
    [("channel", WrongChannelError), ("product", WrongProductError), ("board", WrongBoardError)],
)
def test_a_document_under_the_path_of_another_is_refused(
    tmp_path: Path, field: str, error: type[Exception]
) -> None:
    node = new_node(tmp_path)
    node.repository.promote("2.0.0", content=make_channel(**{field: "other", "serial": 9}))
    with pytest.raises(error):
        decide(node)


def test_a_replayed_offer_of_last_month_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    recorded = Offer(version="2.0.0", files=(OfferedFile(name="full.crau"),))
    assert decide(node, recorded).version == "2.0.0"
    node.clock.forward(days=30)
    node.repository.release("3.0.0")
    node.repository.publish("targets", "releases", "stable")
    with pytest.raises(NotInChannelError):
        decide(node, recorded)


def test_a_withdrawn_release_needs_one_new_document_and_no_new_payload(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    path = node.repository.release("3.0.0")
    assert decide(node).version == "3.0.0"
    node.repository.promote("3.0.0", allowed={"3.0.0": [path]}, withdrawn=["3.0.0"])
    with pytest.raises(WithdrawnError):
        decide(node)


def test_rollback_of_software_below_the_floor_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.release("3.0.0", rollback_index=6)
    with pytest.raises(BelowFloorError, match="rollback index 6, this node accepts 7"):
        decide(node, floor=7)


def test_rollback_of_software_by_an_offer_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    older = node.repository.add_release("0.9.0")
    path = node.repository.add_release("2.0.0")
    node.repository.promote("2.0.0", allowed={"2.0.0": [path], "0.9.0": [older]})
    with pytest.raises(NotNewerError):
        decide(node, Offer(version="0.9.0"))


def test_an_unknown_channel_is_named(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    with pytest.raises(ChannelUnknownError, match="channels/nightly"):
        node.refresh("nightly")


def test_an_unknown_field_in_a_channel_document_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    document = json.loads(make_channel(serial=9)) | {"surprise": True}
    node.repository.promote("2.0.0", content=json.dumps(document).encode())
    with pytest.raises(TrustFormatError, match="surprise"):
        node.refresh()


def test_a_channel_document_that_is_too_large_is_not_even_fetched(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.promote("2.0.0", content=b" " * (64 * 1024 + 1))
    with pytest.raises(TrustOversizeError, match="65537 bytes, at most 65536"):
        node.refresh()
    assert not any(path.startswith("targets/") for path in node.fetcher.asked)


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("metadata/2.root.json", limits.ROOT_MAX_BYTES),
        ("metadata/timestamp.json", limits.TIMESTAMP_MAX_BYTES),
    ],
)
def test_metadata_over_its_limit_is_refused(tmp_path: Path, path: str, limit: int) -> None:
    node = new_node(tmp_path)
    node.repository.files[path] = b" " * (limit + 1)
    with pytest.raises(TrustOversizeError, match=f"more than {limit} bytes"):
        node.refresh()


@pytest.mark.parametrize(
    ("role", "limit"),
    [("snapshot", limits.SNAPSHOT_MAX_BYTES), ("targets", limits.TARGETS_MAX_BYTES)],
)
def test_metadata_without_a_signed_size_is_bound_by_our_limit(
    tmp_path: Path, role: str, limit: int
) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    meta = repository.snapshot.meta["targets.json"]
    meta.length = meta.hashes = None
    repository.write("snapshot", repository.snapshot)
    described = repository.timestamp.snapshot_meta
    described.length = described.hashes = None
    repository.sign_timestamp()
    version = described.version if role == "snapshot" else meta.version
    repository.files[f"metadata/{version}.{role}.json"] = b" " * (limit + 1)
    with pytest.raises(TrustOversizeError, match=f"more than {limit} bytes"):
        node.refresh()


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.repository.files["metadata/timestamp.json"] = b"[" * 4000 + b"]" * 4000
    with pytest.raises(TrustFormatError):
        node.refresh()


@pytest.mark.parametrize("garbage", [b"", b"{}", b"<html></html>", b"\xff\xfe\x00", b"null"])
def test_garbage_instead_of_metadata_is_refused(tmp_path: Path, garbage: bytes) -> None:
    node = new_node(tmp_path)
    node.repository.files["metadata/timestamp.json"] = garbage
    with pytest.raises(TrustFormatError):
        node.refresh()


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_next_root_is_the_end_of_the_chain(tmp_path: Path, status: int) -> None:
    node = new_node(tmp_path)
    node.fetcher.statuses["metadata/2.root.json"] = status
    assert node.refresh().root_version == 1


def test_a_server_in_trouble_is_not_taken_for_the_end_of_the_chain(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.fetcher.statuses["metadata/2.root.json"] = 503
    with pytest.raises(TrustUnreachableError, match="HTTP 503"):
        node.refresh()


def test_a_poll_with_nothing_new_is_two_requests_and_writes_nothing(tmp_path: Path) -> None:
    node = new_node(tmp_path)
    node.refresh()
    node.fetcher.asked.clear()
    before = (node.folder / "current").readlink()
    node.refresh()
    assert node.fetcher.asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert (node.folder / "current").readlink() == before


@pytest.mark.parametrize("depth", [6, 9])
def test_endless_delegations_are_followed_for_eight_roles_only(tmp_path: Path, depth: int) -> None:
    node = new_node(tmp_path)
    repository = node.repository
    path = tuf_channel_path("deep", PRODUCT, BOARD)
    data = make_channel(channel="deep")
    upper = repository.targets
    for level in range(depth):
        upper = delegate(repository, upper, f"deep{level}", path)
    upper.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    repository.files[f"targets/{upper.targets[path].get_prefixed_paths()[0]}"] = data
    for level in range(depth):
        repository.store(f"deep{level}", repository.roles[f"deep{level}"])
    repository.publish("targets")
    if depth < 8:
        assert node.refresh("deep").channel.channel == "deep"
    else:
        with pytest.raises(ChannelUnknownError):
            node.refresh("deep")


def delegate(repository: TufRepository, upper: Targets, name: str, path: str) -> Targets:
    """Let `upper` delegate `path` to a new role."""
    signer = CryptoSigner.generate_ed25519()
    upper.delegations = upper.delegations or Delegations({}, {})
    assert upper.delegations.roles is not None
    upper.delegations.roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[path])
    upper.add_key(signer.public_key, name)
    repository.signers[name] = [signer]
    repository.roles[name] = Targets(expires=repository.targets.expires)
    return repository.roles[name]
