"""Deltas beside a release: from what they start, whether they pay, who names them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from images.errors import ManifestContradictionError, PayloadSignatureError
from images.proto import payload_pb2 as pb
from images.release import parse_payload_facts, tuf_payload_path
from server import queries
from server.added import Added, Outcome
from server.channels import promote_channel, set_base_urls, withdraw_release
from server.deltas import PAYS_SHARE, pays
from server.desk import Desk
from server.errors import (
    DeltaSourceUnknownError,
    DeltaTargetError,
    PayloadAbsentError,
    ReleaseExistsError,
    ReleaseFormatError,
    ReleaseUnknownError,
)
from server.views import costs
from tests.sim import payloads
from tests.sim.deltas import REPLACE, Delta
from tests.sim.desk import (
    BOARD,
    PRODUCT,
    delta_bytes,
    full_bytes,
    order,
    promote,
    publish,
    signed,
)

ONE = payloads.image(10, seed=1)
TWO = ONE[: -payloads.BLOCK] + payloads.image(1, seed=2)  # differs in its last block
DELTA = tuf_payload_path(PRODUCT, BOARD, "2.0.0", "delta-from-1.0.0")
FULL = tuf_payload_path(PRODUCT, BOARD, "2.0.0", "full")


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A desk with release 1.0.0."""
    publish(desk, "1.0.0", data=full_bytes(ONE))
    return desk


def add(desk: Desk, *deltas: bytes) -> Added:
    """Add release 2.0.0 with these deltas."""
    named = {f"delta-{number}": content for number, content in enumerate(deltas)}
    return publish(desk, "2.0.0", data=full_bytes(TWO), deltas=named)


def test_a_delta_is_signed_with_what_it_starts_from(desk: Desk) -> None:
    data = delta_bytes(ONE, TWO)
    added = add(desk, data)

    (delta,) = added.deltas
    assert (delta.outcome, delta.source, delta.tuf_path) == (Outcome.SIGNED, "1.0.0", DELTA)
    assert delta.size == len(data)
    target = desk.repository.read().delegated["releases"].signed.targets[DELTA]
    facts = parse_payload_facts(target.custom or {})
    assert facts.kind == "delta"
    assert facts.source is not None
    (part,) = facts.source.partitions
    one = parse_payload_facts(
        desk.repository.read()
        .delegated["releases"]
        .signed.targets[tuf_payload_path(PRODUCT, BOARD, "1.0.0", "full")]
        .custom
        or {}
    )
    assert (part.name, part.size, part.sha256) == (
        one.partitions[0].name,
        one.partitions[0].size,
        one.partitions[0].sha256,
    )
    assert facts.partitions == added.facts.partitions
    named = desk.repository.target_path(DELTA, delta.sha256)
    assert named.read_bytes() == data
    assert named.samefile(desk.payload_file(delta.sha256))


def test_the_release_and_its_deltas_are_one_publish(desk: Desk) -> None:
    before = desk.repository.read().timestamp.signed.version
    add(desk, delta_bytes(ONE, TWO))
    assert desk.repository.read().timestamp.signed.version == before + 1


def test_a_delta_may_come_later_and_twice_is_the_same_as_once(desk: Desk) -> None:
    add(desk)
    data = delta_bytes(ONE, TWO)
    later = add(desk, data)
    assert (later.outcome, later.deltas[0].outcome) == (Outcome.UNCHANGED, Outcome.SIGNED)
    version = desk.repository.read().timestamp.signed.version
    assert add(desk, data).deltas[0].outcome is Outcome.UNCHANGED
    assert desk.repository.read().timestamp.signed.version == version


def test_adding_it_again_brings_back_a_lost_file(desk: Desk) -> None:
    data = delta_bytes(ONE, TWO)
    (delta,) = add(desk, data).deltas
    desk.payload_file(delta.sha256).unlink()
    add(desk, data)
    assert desk.payload_file(delta.sha256).read_bytes() == data


def test_a_release_never_gets_another_delta_from_the_same_version(desk: Desk) -> None:
    add(desk, delta_bytes(ONE, TWO))
    with pytest.raises(ReleaseExistsError, match=r"has delta [0-9a-f]{16} from 1\.0\.0"):
        add(desk, delta_bytes(ONE, TWO, keep=2))


def test_one_that_does_not_pay_is_not_kept_and_said_aloud(desk: Desk) -> None:
    added = add(desk, delta_bytes(ONE, TWO, keep=9))
    (delta,) = added.deltas
    assert (delta.outcome, delta.tuf_path) == (Outcome.TOO_LARGE, "")
    assert any("more than 70 % does not pay" in warning for warning in added.warnings)
    assert not desk.payload_file(delta.sha256).exists()
    assert DELTA not in desk.repository.read().delegated["releases"].signed.targets


@pytest.mark.parametrize(("size", "kept"), [(700, True), (701, False), (0, True)])
def test_the_rule_is_a_share_of_the_full_payload(size: int, kept: bool) -> None:
    assert PAYS_SHARE == 0.7
    assert pays(size, 1000) is kept


def test_a_delta_that_makes_another_image_is_refused(desk: Desk) -> None:
    other = ONE[: -payloads.BLOCK] + payloads.image(1, seed=9)
    with pytest.raises(DeltaTargetError, match=r"release 2\.0\.0 is usr of 40960 bytes"):
        add(desk, delta_bytes(ONE, other))
    assert FULL not in desk.repository.read().delegated["releases"].signed.targets


def test_a_delta_that_makes_another_image_than_it_says_is_refused(desk: Desk) -> None:
    """Each of its operations is sound, and a node would believe it."""
    wrong = Delta(ONE, TWO)
    wrong.copy([(0, 8)], [(0, 8)])
    wrong.copy([(7, 1)], [(8, 1)])
    wrong.replace(REPLACE, [(9, 1)])
    with pytest.raises(ManifestContradictionError, match="part usr make an image of sha256"):
        add(desk, signed(wrong))
    assert FULL not in desk.repository.read().delegated["releases"].signed.targets
    assert not list(desk.folder.glob("making-*"))


def test_a_delta_that_cannot_be_tried_here_is_published_and_said_aloud(desk: Desk) -> None:
    one = desk.repository.read().delegated["releases"].signed.targets
    path = tuf_payload_path(PRODUCT, BOARD, "1.0.0", "full")
    desk.payload_file(one[path].hashes["sha256"]).unlink()
    added = add(desk, delta_bytes(ONE, TWO))
    assert added.deltas[0].outcome is Outcome.SIGNED
    (warning,) = added.warnings
    assert "the delta from 1.0.0 was not tried" in warning
    assert warning.endswith("[payload-absent]")


def test_a_delta_from_what_was_never_published_is_refused(desk: Desk) -> None:
    unknown = payloads.image(1, seed=7) + ONE[payloads.BLOCK :]
    with pytest.raises(DeltaSourceUnknownError, match="starts from usr of 40960 bytes"):
        add(desk, delta_bytes(unknown, TWO))


def test_a_full_payload_is_no_delta(desk: Desk) -> None:
    with pytest.raises(DeltaSourceUnknownError):
        add(desk, full_bytes(TWO))


def test_a_delta_of_another_key_is_refused(desk: Desk) -> None:
    data = bytearray(delta_bytes(ONE, TWO))
    data[-1] ^= 1  # within the payload signature
    with pytest.raises(PayloadSignatureError):
        add(desk, bytes(data))


def test_no_delta_goes_with_a_payload_for_stock_clients(desk: Desk) -> None:
    added = add(desk)
    manifest = pb.DeltaArchiveManifest(block_size=payloads.BLOCK)
    update = payloads.forge(TWO).manifest.partitions[0]
    manifest.partition_operations.extend(update.operations)
    manifest.new_partition_info.CopyFrom(update.new_partition_info)
    stock = payloads.format_1(manifest, TWO, keys=(payloads.key(),))
    with pytest.raises(ReleaseFormatError, match="is for stock clients"):
        publish(desk, "2.0.0", data=stock, container=1, deltas={"d": delta_bytes(ONE, TWO)})
    assert [file.stem for file in desk.payloads.iterdir() if file.stem == added.sha256]


def test_a_channel_names_the_full_payload_first_and_its_deltas(desk: Desk) -> None:
    add(desk, delta_bytes(ONE, TWO))
    assert promote(desk, "2.0.0").allowed["2.0.0"] == (FULL, DELTA)


def test_withdrawing_a_release_takes_its_deltas_along_but_not_those_out_of_it(desk: Desk) -> None:
    three = TWO[: -payloads.BLOCK] + payloads.image(1, seed=3)
    add(desk, delta_bytes(ONE, TWO))
    promote(desk, "2.0.0")
    publish(desk, "3.0.0", data=full_bytes(three), deltas={"out": delta_bytes(TWO, three)})
    promote_channel(desk, replace(order("3.0.0"), keep_previous=True), keys=desk.offline())
    (document,) = withdraw_release(
        desk, "2.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline()
    )
    assert document.allowed["2.0.0"] == (FULL,)
    out = tuf_payload_path(PRODUCT, BOARD, "3.0.0", "delta-from-2.0.0")
    assert out in document.allowed["3.0.0"]
    assert document.withdrawn == ("2.0.0",)


def test_a_channel_is_not_sent_to_a_payload_that_is_away(desk: Desk) -> None:
    added = add(desk, delta_bytes(ONE, TWO))
    desk.payload_file(added.sha256).unlink()
    with pytest.raises(PayloadAbsentError, match=added.sha256[:16]):
        promote(desk, "2.0.0")
    set_base_urls(desk, "stable", ["https://cdn.example/"])
    assert promote(desk, "2.0.0").current == "2.0.0"


def test_a_channel_is_sent_to_a_release_whose_delta_alone_is_away(desk: Desk) -> None:
    (delta,) = add(desk, delta_bytes(ONE, TWO)).deltas
    desk.payload_file(delta.sha256).unlink()
    assert promote(desk, "2.0.0").current == "2.0.0"


class TestWhatIsShown:
    def test_what_it_costs_to_come_from_where(self, desk: Desk) -> None:
        data = delta_bytes(ONE, TWO)
        add(desk, data)
        with desk.store.reading() as connection:
            ((title, sources, rows),) = costs(queries.releases(connection))
        assert title == f"{PRODUCT}/{BOARD}"
        assert sources == ["1.0.0"]
        assert rows == [
            ("2.0.0", [len(full_bytes(TWO)), len(data)]),
            ("1.0.0", [len(full_bytes(ONE)), 0]),
        ]

    def test_without_deltas_there_is_nothing_to_compare(self, desk: Desk) -> None:
        with desk.store.reading() as connection:
            assert costs(queries.releases(connection)) == []

    def test_one_release_with_the_files_that_are_here(self, desk: Desk) -> None:
        (delta,) = add(desk, delta_bytes(ONE, TWO)).deltas
        desk.payload_file(delta.sha256).unlink()

        def is_here(sha256: str) -> bool:
            return desk.payload_file(sha256).is_file()

        with desk.store.reading() as connection:
            view = queries.release(connection, PRODUCT, BOARD, "2.0.0", is_here=is_here)
            with pytest.raises(ReleaseUnknownError):
                queries.release(connection, PRODUCT, BOARD, "9.0.0", is_here=is_here)
        here = {one.delta_from: one.is_here for one in view.payloads}
        assert here == {"": True, "1.0.0": False}


def test_the_folder_of_payloads_keeps_no_draft(desk: Desk) -> None:
    add(desk, delta_bytes(ONE, TWO), delta_bytes(ONE, TWO, keep=9))
    assert all(file.suffix == ".crau" for file in desk.payloads.iterdir())
    assert len(list(desk.payloads.iterdir())) == 3
