"""Deltas that `release add` makes by itself, from the last releases of the channels."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.reader import Progress
from images.release import tuf_payload_path
from images.signing import private_pem, public_pem
from server import beside
from server import making as making_room
from server.added import Added, Outcome
from server.channels import create_channel, promote_channel, withdraw_release
from server.cli import run
from server.deltas import DELTAS_MAX, starts_of
from server.desk import Desk
from server.errors import (
    ChannelUnknownError,
    DeltaKeyError,
    DeltasTooManyError,
    KeysMissingError,
)
from server.history import histories
from server.intake import ReleaseOrder
from server.making import MakingOrder
from server.publish import add_release
from tests.sim import payloads
from tests.sim.desk import BOARD, PRODUCT, delta_bytes, full_bytes, order, promote, publish

VERSIONS = ("1.0.0", "2.0.0", "3.0.0")


def image(number: int) -> bytes:
    """Return images that differ in one block."""
    return payloads.image(40, seed=1) + payloads.image(1, seed=number)


def path_of(source: str, version: str = "9.0.0") -> str:
    return tuf_payload_path(PRODUCT, BOARD, version, f"delta-from-{source}")


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """A desk whose channel went through three releases."""
    for number, version in enumerate(VERSIONS):
        publish(desk, version, data=full_bytes(image(number)))
        promote(desk, version)
    return desk


def add(
    desk: Desk,
    last: int,
    *,
    channels: tuple[str, ...] = (),
    signed: bool = True,
    stages: list[str] | None = None,
    deltas: tuple[Path, ...] = (),
    version: str = "9.0.0",
) -> Added:
    """Add release 9.0.0 and let deltas be made."""

    @contextmanager
    def stage(what: str) -> Iterator[Progress | None]:
        if stages is not None:
            stages.append(what)
        yield None

    file = desk.folder.parent / "new.crau"
    file.write_bytes(full_bytes(image(9)))
    return add_release(
        desk,
        file,
        release_order(version),
        trusted=payloads.trusted(payloads.key()),
        keys=desk.offline(),
        deltas=deltas,
        making=MakingOrder(last=last, channels=channels, keys=(payloads.key(),) if signed else ()),
        stage=stage,
    )


def release_order(version: str) -> ReleaseOrder:
    return ReleaseOrder(product=PRODUCT, board=BOARD, version=version)


def sources(added: Added) -> list[str]:
    return [one.source for one in added.deltas]


def nothing_left(desk: Desk) -> bool:
    drafts = [file for file in desk.payloads.iterdir() if file.suffix != ".crau"]
    return not drafts and not list(desk.folder.glob("making-*"))


def test_they_start_from_the_last_releases_and_are_published_with_the_release(desk: Desk) -> None:
    before = desk.repository.read().timestamp.signed.version
    stages: list[str] = []
    added = add(desk, 2, stages=stages)

    assert sources(added) == ["3.0.0", "2.0.0"]
    assert {one.outcome for one in added.deltas} == {Outcome.SIGNED}
    assert added.warnings == ()
    assert desk.repository.read().timestamp.signed.version == before + 1
    assert promote(desk, "9.0.0").allowed["9.0.0"] == (
        tuf_payload_path(PRODUCT, BOARD, "9.0.0", "full"),
        path_of("2.0.0"),
        path_of("3.0.0"),
    )
    assert "delta from 3.0.0" in stages
    assert nothing_left(desk)


def test_more_than_there_are_is_all_there_are_and_none_is_none(desk: Desk) -> None:
    assert sources(add(desk, 0)) == []
    assert sources(add(desk, 9)) == ["3.0.0", "2.0.0", "1.0.0"]


def test_what_is_there_is_not_made_again(desk: Desk) -> None:
    add(desk, 1)
    stages: list[str] = []
    again = add(desk, 2, stages=stages)
    assert sources(again) == ["2.0.0"]
    assert "delta from 3.0.0" not in stages


def test_what_is_given_is_not_made(desk: Desk, tmp_path: Path) -> None:
    given = tmp_path / "given.crau"
    given.write_bytes(delta_bytes(image(2), image(9)))
    stages: list[str] = []
    added = add(desk, 2, deltas=(given,), stages=stages)
    assert sources(added) == ["3.0.0", "2.0.0"]
    assert "delta from 3.0.0" not in stages
    assert added.deltas[0].size == given.stat().st_size


def test_one_that_cannot_be_made_is_told_of_and_the_release_is_there(desk: Desk) -> None:
    """The full payload of 2.0.0 is damaged, that of 3.0.0 is away."""
    files = {
        version: desk.payload_file(
            desk.repository.read()
            .delegated["releases"]
            .signed.targets[tuf_payload_path(PRODUCT, BOARD, version, "full")]
            .hashes["sha256"]
        )
        for version in VERSIONS
    }
    data = bytearray(files["2.0.0"].read_bytes())
    data[-3000] ^= 1
    files["2.0.0"].unlink()
    files["2.0.0"].write_bytes(data)
    files["3.0.0"].unlink()

    added = add(desk, 3)

    assert added.outcome is Outcome.SIGNED
    assert sources(added) == ["1.0.0"]
    first, second = added.warnings
    assert first.startswith("no delta from 3.0.0 was made: ")
    assert first.endswith("[payload-absent]")
    assert second.startswith("no delta from 2.0.0 was made: ")
    assert nothing_left(desk)


def test_one_that_does_not_make_the_image_is_not_published(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong maker: it leaves a delta to another image."""

    def wrong(_parts: object, _old: object, output: Path, **_more: object) -> None:
        output.write_bytes(delta_bytes(image(2), image(2)[:-1] + b"\x5a"))

    monkeypatch.setattr(making_room, "build_delta", wrong)
    added = add(desk, 1)
    assert added.deltas == ()
    assert "another" in added.warnings[0] or "makes" in added.warnings[0]
    assert nothing_left(desk)


def test_one_that_cannot_be_carried_out_is_not_published(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_parts: object, _old: object, output: Path, **_more: object) -> None:
        output.write_bytes(delta_bytes(image(1), image(9)))  # from another image than is at hand

    monkeypatch.setattr(making_room, "build_delta", wrong)
    added = add(desk, 1)
    assert added.deltas == ()
    assert added.warnings[0].endswith("[source-mismatch]")


def test_one_that_does_not_pay_is_told_of(desk: Desk) -> None:
    publish(desk, "4.0.0", data=full_bytes(payloads.image(41, seed=77)))
    promote(desk, "4.0.0")
    (delta,) = add(desk, 1).deltas
    assert (delta.source, delta.outcome) == ("4.0.0", Outcome.TOO_LARGE)
    assert nothing_left(desk)


class TestWhichReleases:
    def test_those_that_were_current_on_the_channel_named(self, desk: Desk) -> None:
        create_channel(desk, "beta", keys=desk.offline())
        publish(desk, "4.0.0", data=full_bytes(image(4)))
        promote(desk, "4.0.0", channel="beta")
        assert sources(add(desk, 1, channels=("beta",))) == ["4.0.0"]
        assert sources(add(desk, 1, channels=("stable",), version="9.0.1")) == ["3.0.0"]
        assert sources(add(desk, 1, version="9.0.2")) == ["4.0.0", "3.0.0"]

    def test_not_what_was_withdrawn_or_is_newer(self, desk: Desk) -> None:
        withdraw_release(
            desk, "3.0.0", product=PRODUCT, board=BOARD, channels=(), keys=desk.offline()
        )
        contents = desk.repository.read()
        assert histories(desk, contents, PRODUCT, BOARD) == [["2.0.0", "1.0.0"]]
        assert starts_of([["3.0.0", "2.0.0", "1.0.0"]], "2.0.0", last=9, published=VERSIONS) == [
            "1.0.0"
        ]

    def test_where_there_is_none_it_is_said(self, desk: Desk) -> None:
        create_channel(desk, "beta", keys=desk.offline())
        added = add(desk, 1, channels=("beta",), signed=False)
        assert added.deltas == ()
        (why,) = added.warnings
        assert why.startswith("no delta is made: nothing older than 9.0.0 ")
        assert why.endswith(" was current on channel beta")

    def test_a_channel_that_is_none_is_refused(self, desk: Desk) -> None:
        with pytest.raises(ChannelUnknownError):
            add(desk, 1, channels=("nightly",))

    def test_a_file_that_is_no_document_is_passed_over(self, desk: Desk) -> None:
        folder = desk.repository.targets_folder / "channels/stable" / PRODUCT
        (folder / f"{'0' * 64}.{BOARD}.json").write_text("{}")
        (folder / f".draft-x.{BOARD}.json").write_text("{}")
        contents = desk.repository.read()
        assert histories(desk, contents, PRODUCT, BOARD) == [["3.0.0", "2.0.0", "1.0.0"]]


class TestWhoSigns:
    def test_without_a_key_it_is_refused_before_the_work(self, desk: Desk) -> None:
        stages: list[str] = []
        with pytest.raises(DeltaKeyError, match="no key is named"):
            add(desk, 1, signed=False, stages=stages)
        assert not any("delta" in stage for stage in stages)
        assert "9.0.0" not in str(desk.repository.read().delegated["releases"].signed.targets)

    def test_a_key_that_nobody_trusts_is_refused(self, desk: Desk) -> None:
        other = payloads.key(1)
        file = desk.folder.parent / "new.crau"
        file.write_bytes(full_bytes(image(9)))
        with pytest.raises(DeltaKeyError, match="belongs to"):
            add_release(
                desk,
                file,
                release_order("9.0.0"),
                trusted=payloads.trusted(payloads.key()),
                keys=desk.offline(),
                making=MakingOrder(last=1, keys=(other,)),
            )

    def test_the_keys_of_releases_are_looked_for_before_the_work(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in (desk.folder / "keys/offline").glob("releases-*"):
            key.unlink()
        monkeypatch.setattr(making_room, "build_delta", None)
        with pytest.raises(KeysMissingError):
            add(desk, 1)

    def test_without_anything_to_make_no_key_is_asked_for(self, desk: Desk) -> None:
        assert add(desk, 0, signed=False).outcome is Outcome.SIGNED


def test_what_a_killed_command_left_is_removed(desk: Desk) -> None:
    left = desk.folder / "making-left"
    left.mkdir()
    (left / "old-usr").write_bytes(bytes(4096))
    add(desk, 1)
    assert nothing_left(desk)


def test_what_another_command_works_on_stays(desk: Desk) -> None:
    busy = desk.folder / "making-busy"
    busy.mkdir()
    descriptor = os.open(busy, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        add(desk, 1)
        assert busy.is_dir()
    finally:
        os.close(descriptor)


def test_no_more_are_made_than_a_channel_can_name(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "DELTAS_MAX", 2)
    added = add(desk, 3)
    assert sources(added) == ["3.0.0", "2.0.0"]
    assert added.warnings == ("no delta from 1.0.0 is made: there are too many",)


class TestSeveral:
    def test_of_two_from_one_version_the_smaller_is_kept_and_it_is_said(self, desk: Desk) -> None:
        large, small = (delta_bytes(image(2), image(9), keep=keep) for keep in (3, 1))
        for named in ({"a": large, "b": small}, {"a": small, "b": large}):
            version = f"9.0.{len(desk.repository.read().delegated['releases'].signed.targets)}"
            added = publish(desk, version, data=full_bytes(image(9)), deltas=named)
            kept = [one for one in added.deltas if one.tuf_path]
            assert [one.size for one in kept] == [len(small)]
            assert [one.outcome for one in added.deltas if not one.tuf_path] == [Outcome.LARGER]
            assert any("second delta from 3.0.0 is not kept" in one for one in added.warnings)
            targets = desk.repository.read().delegated["releases"].signed.targets
            assert targets[path_of("3.0.0", version)].length == len(small)

    def test_a_release_has_no_more_than_a_channel_can_name(self, desk: Desk) -> None:
        for number in range(DELTAS_MAX - 3 + 1):
            publish(desk, f"4.0.{number}", data=full_bytes(image(100 + number)))
        named = {
            f"from-{number}": delta_bytes(image(100 + number), image(9))
            for number in range(DELTAS_MAX - 3 + 1)
        }
        publish(desk, "9.0.0", data=full_bytes(image(9)), deltas=named)
        more = {f"more-{number}": delta_bytes(image(number), image(9)) for number in range(3)}
        with pytest.raises(DeltasTooManyError, match="64 deltas, a channel names 63"):
            publish(desk, "9.0.0", data=full_bytes(image(9)), deltas=more)
        del more["more-0"]
        publish(desk, "9.0.0", data=full_bytes(image(9)), deltas=more)
        assert len(promote(desk, "9.0.0").allowed["9.0.0"]) == 64


def test_the_command_makes_them(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.crau").write_bytes(full_bytes(image(9)))
    (tmp_path / "key.pem").write_bytes(private_pem(payloads.key()))
    (tmp_path / "pub.pem").write_bytes(public_pem(payloads.key().public_key()))
    call = [
        "release", "add", str(desk.folder), str(tmp_path / "new.crau"), "--version", "9.0.0",
        "--public-key", str(tmp_path / "pub.pem"), "--payload-key", str(tmp_path / "key.pem"),
    ]  # fmt: skip
    settings = desk.folder / "server.toml"
    settings.write_text(settings.read_text().replace("deltas_from = 0", "deltas_from = 2"))
    assert run([*call, "--deltas-from", "1", "--channel", "stable"]) == 0
    assert "delta from 3.0.0 signed: " in capsys.readouterr().out
    assert run(call) == 0  # by server.toml
    said = capsys.readouterr().out
    assert "delta from 2.0.0 signed: " in said
    assert "delta from 3.0.0" not in said
    assert run(["release", "list", str(desk.folder)]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert ["TO", "FULL", "3.0.0", "2.0.0"] in rows
    promote_channel(desk, order("9.0.0"), keys=desk.offline())
