"""A payload becomes a release."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from images.errors import (
    BlobMismatchError,
    DeltaUnsupportedError,
    DocumentInvalidError,
    FileUnreadableError,
    ManifestContradictionError,
    PayloadError,
    PayloadMagicError,
    PayloadSignatureError,
    TrailingBytesError,
    TruncatedPayloadError,
    VersionInvalidError,
)
from images.release import encode_payload_facts, parse_payload_facts
from images.signing import load_public_keys
from server.added import Outcome
from server.catalogue import payloads_of
from server.desk import Desk
from server.errors import (
    DeskBusyError,
    KeysMissingError,
    ReleaseExistsError,
    ReleaseFormatError,
)
from server.intake import ReleaseOrder
from server.publish import add_release
from server.queries import releases
from tests.sim import payloads
from tests.sim.desk import BOARD, PRODUCT, payload_bytes, publish
from tests.sim.samples import DELTA, KEY, unpack

ORDER = ReleaseOrder(product=PRODUCT, board=BOARD, version="1.0.0")
TRUSTED = payloads.trusted(payloads.key())


def files(desk: Desk) -> list[str]:
    return sorted(file.name for file in desk.payloads.iterdir())


def test_a_release_is_kept_under_its_hash_and_signed_with_its_facts(desk: Desk) -> None:
    added = publish(desk, "1.0.0", rollback_index=7)
    data = payload_bytes("1.0.0")
    assert added.outcome is Outcome.SIGNED
    assert added.sha256 == hashlib.sha256(data).hexdigest()
    assert files(desk) == [f"{added.sha256}.crau"]
    assert desk.payload_file(added.sha256).read_bytes() == data
    signed = desk.repository.read().delegated["releases"].signed
    target = signed.targets[f"os/{PRODUCT}/{BOARD}/1.0.0/full.crau"]
    assert (target.length, target.hashes) == (len(data), {"sha256": added.sha256})
    facts = parse_payload_facts(target.custom or {})
    assert facts == added.facts
    assert (facts.rollback_index, facts.created) == (7, desk.clock())
    assert facts.signatures_sha256 != hashlib.sha256(b"").hexdigest()


def test_a_payload_that_contradicts_itself_is_not_published(desk: Desk, tmp_path: Path) -> None:
    """Blobs, outputs and signatures are right: a node would install what nobody signed."""
    one, two = payloads.image(2, seed=1), payloads.image(3, seed=2)
    forged = payloads.forge(one, two)
    first, second = forged.manifest.partitions[0].operations
    first.dst_sha256, second.dst_sha256 = (hashlib.sha256(data).digest() for data in (one, two))
    second.dst_extents[0].start_block = 0
    first.dst_extents[0].start_block = 3
    (tmp_path / "p.crau").write_bytes(forged.bytes())
    with pytest.raises(ManifestContradictionError, match="sha256"):
        add_release(desk, tmp_path / "p.crau", ORDER, trusted=TRUSTED, keys=desk.offline())
    assert files(desk) == []
    assert not desk.repository.read().delegated["releases"].signed.targets


def test_the_tuf_path_is_a_name_of_the_same_file(desk: Desk) -> None:
    added = publish(desk, "1.0.0")
    named = desk.repository.targets_folder / (
        f"os/{PRODUCT}/{BOARD}/1.0.0/{added.sha256}.full.crau"
    )
    assert named.samefile(desk.payload_file(added.sha256))


def test_adding_the_same_payload_again_changes_nothing(desk: Desk) -> None:
    publish(desk, "1.0.0")
    before = desk.repository.read().timestamp.signed.version
    again = publish(desk, "1.0.0")
    assert again.outcome is Outcome.UNCHANGED
    assert desk.repository.read().timestamp.signed.version == before


def test_adding_it_again_brings_back_a_lost_file(desk: Desk) -> None:
    added = publish(desk, "1.0.0")
    desk.payload_file(added.sha256).unlink()
    publish(desk, "1.0.0")
    assert desk.payload_file(added.sha256).read_bytes() == payload_bytes("1.0.0")


def test_a_version_never_gets_other_bytes(desk: Desk) -> None:
    publish(desk, "1.0.0")
    with pytest.raises(ReleaseExistsError, match=r"release 1\.0\.0 is published with payload"):
        publish(desk, "1.0.0", data=payload_bytes("1.0.0-other"))


def test_a_version_never_gets_other_facts(desk: Desk) -> None:
    publish(desk, "1.0.0")
    with pytest.raises(ReleaseExistsError, match="other facts"):
        publish(desk, "1.0.0", rollback_index=1)


def test_a_payload_of_format_1_stands_beside_a_signed_one_for_stock_clients(desk: Desk) -> None:
    signed = publish(desk, "1.0.0")
    stock = publish(desk, "1.0.0", container=1)
    assert stock.outcome is Outcome.STOCK
    with desk.store.reading() as connection:
        found = payloads_of(connection, PRODUCT, BOARD, "1.0.0")
    assert [(p.format, p.sha256, bool(p.tuf_path)) for p in found] == [
        (2, signed.sha256, True),
        (1, stock.sha256, False),
    ]
    assert publish(desk, "1.0.0", container=1).outcome is Outcome.UNCHANGED


def test_a_version_has_one_payload_for_stock_clients_and_keeps_it(desk: Desk) -> None:
    publish(desk, "1.0.0")
    stock = publish(desk, "1.0.0", container=1)
    with pytest.raises(ReleaseExistsError, match=f"has payload {stock.sha256[:16]} for stock"):
        publish(desk, "1.0.0", data=payload_bytes("9.0.0", container=1))
    with desk.store.reading() as connection:
        assert len(payloads_of(connection, PRODUCT, BOARD, "1.0.0")) == 2


def test_another_image_for_stock_clients_under_one_version_is_warned_of(desk: Desk) -> None:
    publish(desk, "1.0.0")
    assert publish(desk, "1.0.0", container=1).warnings == (
        "part usr is another image than in the signed payload of version 1.0.0",
    )


def test_the_same_image_in_both_formats_is_no_reason_to_warn(desk: Desk, tmp_path: Path) -> None:
    samples = unpack(tmp_path)
    trusted = load_public_keys(samples / KEY)
    added = [
        add_release(desk, samples / name, ORDER, trusted=trusted, keys=desk.offline())
        for name in ("v2-full-signed.crau", "full-signed.crau")
    ]
    assert [one.outcome for one in added] == [Outcome.SIGNED, Outcome.STOCK]
    assert [one.warnings for one in added] == [(), ()]


def test_the_facts_of_a_format_1_payload_name_its_kernel_as_a_part(
    desk: Desk, tmp_path: Path
) -> None:
    samples = unpack(tmp_path)
    trusted = load_public_keys(samples / KEY)
    file = samples / "full-signed-kernel.crau"
    added = add_release(desk, file, ORDER, trusted=trusted, keys=desk.offline())
    assert [(part.name, part.size) for part in added.facts.partitions] == [
        ("usr", 16_777_216),
        ("kernel", 1_234_589),
    ]
    contents = desk.repository.read()
    (target,) = contents.delegated["releases"].signed.targets.values()
    assert target.custom == encode_payload_facts(added.facts)


def test_a_delta_is_not_published(desk: Desk, tmp_path: Path) -> None:
    samples = unpack(tmp_path)
    trusted = load_public_keys(samples / KEY)
    with pytest.raises(DeltaUnsupportedError):
        add_release(desk, samples / DELTA, ORDER, trusted=trusted, keys=desk.offline())
    assert files(desk) == []


def test_a_release_of_format_1_alone_is_signed_like_any(desk: Desk) -> None:
    assert publish(desk, "1.0.0", container=1).outcome is Outcome.SIGNED
    with pytest.raises(ReleaseFormatError):
        publish(desk, "1.0.0", container=2)


def test_the_sha_1_that_old_clients_compare_is_known(desk: Desk) -> None:
    import base64

    added = publish(desk, "1.0.0")
    with desk.store.reading() as connection:
        (found,) = payloads_of(connection, PRODUCT, BOARD, "1.0.0")
    digest = hashlib.sha1(payload_bytes("1.0.0"), usedforsecurity=False).digest()
    assert (found.sha256, found.sha1) == (added.sha256, base64.b64encode(digest).decode())


def flipped(position: int) -> bytes:
    data = bytearray(payload_bytes("1.0.0"))
    data[position] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", PayloadError),
        (b"no payload at all" * 9, PayloadMagicError),
        (payload_bytes("1.0.0")[:-1], TruncatedPayloadError),
        (payload_bytes("1.0.0") + b"x", TrailingBytesError),
        (flipped(len(payload_bytes("1.0.0")) // 2), BlobMismatchError),
        (flipped(len(payload_bytes("1.0.0")) - 9), PayloadSignatureError),
    ],
)
def test_what_does_not_verify_is_not_published(
    desk: Desk, data: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        publish(desk, "1.0.0", data=data)
    assert files(desk) == []
    assert desk.repository.read().timestamp.signed.version == 1


def test_a_payload_signed_by_a_stranger_is_not_published(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "p.crau"
    made = payloads.forge(payloads.image(1))
    made.keys = (payloads.key(1),)
    file.write_bytes(made.bytes())
    with pytest.raises(Exception, match="trusted keys") as caught:
        add_release(desk, file, ORDER, trusted=TRUSTED, keys=desk.offline())
    assert caught.value.code == "metadata-signature"  # type: ignore[attr-defined]


def test_without_a_public_key_a_warning_says_what_was_not_checked(
    desk: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "p.crau"
    file.write_bytes(payload_bytes("1.0.0"))
    added = add_release(desk, file, ORDER, trusted=None, keys=desk.offline())
    assert added.warnings == ("no public key was given: the payload's signatures were not checked",)


def test_a_lower_rollback_index_than_an_older_release_has_is_warned_of(desk: Desk) -> None:
    publish(desk, "1.0.0", rollback_index=5)
    assert publish(desk, "2.0.0", rollback_index=5).warnings == ()
    (warning,) = publish(desk, "3.0.0", rollback_index=4).warnings
    assert "rollback index 4 is lower than the 5 of the older" in warning


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (replace(ORDER, version="1.x"), VersionInvalidError),
        (replace(ORDER, version="../../etc"), VersionInvalidError),
        (replace(ORDER, product="a/b"), DocumentInvalidError),
        (replace(ORDER, product=".."), DocumentInvalidError),
        (replace(ORDER, board=""), DocumentInvalidError),
        (replace(ORDER, min_engine="new"), DocumentInvalidError),
        (replace(ORDER, rollback_index=-1), DocumentInvalidError),
    ],
)
def test_names_and_versions_have_a_shape(
    desk: Desk, tmp_path: Path, order: ReleaseOrder, error: type[Exception]
) -> None:
    file = tmp_path / "p.crau"
    file.write_bytes(payload_bytes("1.0.0"))
    with pytest.raises(error):
        add_release(desk, file, order, trusted=TRUSTED, keys=desk.offline())
    assert files(desk) == []


def test_a_file_that_is_missing_or_a_folder_is_named(desk: Desk, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileUnreadableError, match="cannot be read"):
            add_release(desk, path, ORDER, trusted=TRUSTED, keys=desk.offline())


def test_without_the_keys_of_releases_nothing_is_published(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "p.crau"
    file.write_bytes(payload_bytes("1.0.0"))
    with pytest.raises(KeysMissingError, match="role releases"):
        add_release(desk, file, ORDER, trusted=TRUSTED, keys=desk.offline(tmp_path))
    with desk.store.reading() as connection:
        assert releases(connection) == []


def test_two_changes_at_once_are_refused_by_the_lock(desk: Desk) -> None:
    with (
        desk.locked(),
        pytest.raises(DeskBusyError, match=r"has been locked for 0\.2 s"),
        desk.locked(patience_s=0.2, sleep=lambda _: None),
    ):
        pass


def test_the_lock_is_free_again_after_a_failure(desk: Desk) -> None:
    with pytest.raises(RuntimeError), desk.locked():
        raise RuntimeError
    with desk.locked(patience_s=0):
        pass


def test_a_lost_database_is_made_again_from_the_signed_files(desk: Desk) -> None:
    from server.desk import open_desk
    from server.reflection import reflect

    publish(desk, "1.0.0", rollback_index=3)
    desk.store.close()
    for file in desk.folder.glob("bascule.db*"):
        file.unlink()
    again = open_desk(desk.folder, clock=desk.clock)
    reflect(again)
    with again.store.reading() as connection:
        (found,) = releases(connection)
    assert (found.version, found.rollback_index, found.payloads[0].format) == ("1.0.0", 3, 2)
    again.store.close()
