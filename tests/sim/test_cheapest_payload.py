"""A node fetches the cheapest payload of a release, never more than is allowed, and says why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from images import operations
from images.errors import OperationOutputError
from images.payload import READS_SOURCE, Operation
from images.proto import payload_pb2 as pb
from images.release import tuf_payload_path
from images.signing import TrustedKeys
from images.source import Gathered
from partitions.errors import DeviceReadError
from partitions.slots import Region, Slot
from server.channels import promote_channel
from server.desk import Desk
from server.foundation import found
from server.intake import ReleaseOrder
from server.promotion import Promotion
from server.publish import add_release
from server.settings import Settings as DeskSettings
from tests.sim.desk import serving
from tests.sim.node_deltas import (
    Days,
    apart,
    fresh,
    release_delta,
    settings_of,
    similar_releases,
    update,
)
from tests.sim.payloads import Forge
from tests.sim.plain import is_armed, memory_of, stop_after
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, payload_key, run_until
from updater import booted_parts, pipeline, planning, why
from updater.budget import DayBudgetError, MeteredLinkError, UpdateBudgetError
from updater.download import Download, DownloadStoppedError
from updater.engine import Engine
from updater.lifecycle import State
from updater.node import Node
from updater.payload_choice import Held
from updater.shown import status, status_lines
from updater.verbs import perform

MIB = 1024 * 1024


@pytest.fixture
def days() -> Days:
    return Days()


@pytest.fixture
def world(tmp_path: Path, days: Days) -> Iterator[World]:
    """2.0.0 is current, differs little from the running 1.0.0, and has a delta from it."""
    with similar_releases(tmp_path, days) as made:
        release_delta(made, "1.0.0", "2.0.0")
        yield made


@pytest.fixture
def node(world: World) -> Node:
    return fresh(world)


def full_size(world: World) -> int:
    """Return the bytes of the full payload of 2.0.0, as they were signed."""
    targets = world.repository.roles["releases"].targets
    return targets[tuf_payload_path(PRODUCT, BOARD, "2.0.0", "full")].length


def delta_name(world: World) -> str:
    return min(world.payloads.files, key=lambda name: len(world.payloads.files[name]))


def delta_size(world: World) -> int:
    return len(world.payloads.files[delta_name(world)])


def spoil_booted(world: World, node: Node) -> None:
    """Change one byte of the booted slot, as somebody who mounted it writable does."""
    region = node.regions(Slot.A)["usr"]
    with world.disk.open("r+b") as disk:
        disk.seek(region.offset + world.image_size - 1)
        disk.write(b"\x5a")


def history(node: Node, what: str) -> list[dict[str, str | int]]:
    return [entry for entry in node.store.history() if entry["what"] == what]


def require_installed(world: World, *, kind: str) -> None:
    node = world.node()
    assert is_armed(node)
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert [entry["kind"] for entry in history(node, "armed")] == [kind]
    assert node.store.read_traffic().day_bytes <= full_size(world) * 1001 // 1000


def test_the_delta_costs_least_and_makes_the_image(world: World, node: Node) -> None:
    before = world.slot_bytes(Slot.A)

    update(node)

    require_installed(world, kind="delta")
    assert world.slot_bytes(Slot.A) == before
    assert world.payloads.sent == delta_size(world)
    assert world.payloads.requests == [""]  # whole: it names itself what the node has
    assert delta_size(world) < MIB
    facts = status(world.node())["update"]
    assert (facts["kind"], facts["cost"], facts["left_out"]) == ("delta", delta_size(world), [])
    assert history(node, "update began")[0]["cost"] == delta_size(world)


def test_it_boots_what_the_delta_made(world: World, node: Node) -> None:
    update(node)
    node = world.boot()
    run_until(Engine(node=node), "idle")
    assert node.running().version == "2.0.0"


def test_a_changed_booted_slot_leads_to_the_full_payload_aloud(world: World, node: Node) -> None:
    spoil_booted(world, node)

    update(node)

    require_installed(world, kind="full")
    assert world.payloads.sent < full_size(world)  # what is here is not fetched
    (why_not,) = status(world.node())["update"]["left_out"]
    assert "part usr of the booted slot was changed" in why_not


def test_a_booted_slot_that_changes_after_the_plan_ends_the_install_of_the_delta(
    world: World, node: Node
) -> None:
    assert perform(node, "check", {}, by="test")["kind"] == "delta"
    spoil_booted(world, node)

    update(world.node())

    require_installed(world, kind="full")
    assert world.payloads.sent < full_size(world)  # what is here is not fetched
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "source-mismatch"


def test_what_comes_of_a_changed_booted_slot_is_blamed_on_neither_payload_nor_disk(
    world: World, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perform(node, "check", {}, by="test")["kind"] == "delta"
    spoil_booted(world, node)
    monkeypatch.setattr(Gathered, "check", lambda _self: None)
    monkeypatch.setattr(Gathered, "compare", lambda _self, _data: None)

    update(world.node())

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "source-mismatch"


@pytest.mark.parametrize("changed", [True, False])
def test_an_operation_that_fails_is_the_payloads_fault_only_where_the_slot_is_as_planned(
    world: World, node: Node, monkeypatch: pytest.MonkeyPatch, *, changed: bool
) -> None:
    assert perform(node, "check", {}, by="test")["kind"] == "delta"
    if changed:
        spoil_booted(world, node)
    original = operations.decode

    def decode(operation: Operation, blob: bytes, **more: Any) -> object:  # noqa: ANN401
        if operation.kind in READS_SOURCE:
            raise OperationOutputError("it makes something else")
        return original(operation, blob, **more)

    monkeypatch.setattr(pipeline, "decode", decode)

    update(world.node())

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == ("source-mismatch" if changed else "operation-output")


@pytest.mark.usefixtures("node")
def test_the_booted_slot_is_read_once_in_a_boot_to_plan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    original = booted_parts._hashed

    def hashed(node: Node, region: Region, size: int) -> Held:
        reads.append(region.label)
        return original(node, region, size)

    monkeypatch.setattr(booted_parts, "_hashed", hashed)
    for _ in range(3):
        perform(world.node(), "check", {}, by="test")
    assert reads == ["USR-A"]

    perform(world.boot(), "check", {}, by="test")
    assert reads == ["USR-A", "USR-A"]


def test_a_booted_slot_that_cannot_be_read_leads_to_the_full_payload_aloud(
    world: World, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_region: Region, _size: int) -> Iterator[memoryview]:
        raise DeviceReadError("reading sector 7 failed")

    monkeypatch.setattr(booted_parts, "read_back", fails)
    facts = perform(node, "check", {}, by="test")
    assert facts["kind"] == "full"
    assert "cannot be read: reading sector 7 failed" in facts["left_out"][0]
    monkeypatch.undo()
    assert perform(world.node(), "check", {}, by="test")["kind"] == "delta"


def test_without_deltas_by_the_settings_the_full_payload_is_fetched(world: World) -> None:
    update(fresh(world, deltas="false"))
    require_installed(world, kind="full")
    (why_not,) = status(world.node())["update"]["left_out"]
    assert "download.deltas is false" in why_not


def test_a_delta_that_no_mirror_has_is_followed_by_the_full_payload(
    world: World, node: Node
) -> None:
    del world.payloads.files[delta_name(world)]

    update(node)

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "download-failed"
    assert node.store.read_denied() == {}
    assert memory_of(world.node()).spoiled == ()


def test_a_delta_with_wrong_bytes_is_followed_by_the_full_payload(world: World, node: Node) -> None:
    name = delta_name(world)
    data = bytearray(world.payloads.files[name])
    data[len(data) * 2 // 3] ^= 1
    world.payloads.files[name] = bytes(data)

    update(node)

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "blob-mismatch"


def test_a_delta_whose_manifest_starts_from_another_image_than_was_signed_is_left_out(
    world: World, node: Node
) -> None:
    """The facts name what is booted, the manifest something else: nothing of it is written."""
    old, new = world.image_bytes("1.0.0"), world.image_bytes("2.0.0")
    path = tuf_payload_path(PRODUCT, BOARD, "2.0.0", "delta-from-1.0.0")
    true = world.repository.roles["releases"].targets[path].custom
    assert true is not None
    release_delta(world, "1.0.0", "2.0.0", data=apart(old[:-1] + b"\x5a", new))
    custom = world.repository.roles["releases"].targets[path].custom
    assert custom is not None
    custom["source"] = true["source"]
    world.repository.publish("releases")

    update(node)

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "facts-mismatch"


def test_a_delta_that_makes_another_image_than_was_signed_is_followed_by_the_full_payload(
    world: World, node: Node
) -> None:
    old, new = world.image_bytes("1.0.0"), world.image_bytes("2.0.0")
    wrong = bytearray(new)
    wrong[5 * MIB] ^= 1
    lying = apart(old, bytes(wrong))
    size, signature_size = int.from_bytes(lying[12:20]), int.from_bytes(lying[20:24])
    manifest = pb.DeltaArchiveManifest.FromString(lying[24 : 24 + size])
    start = 24 + size + signature_size
    blobs = lying[start : start + manifest.signatures_offset]
    manifest.ClearField("signatures_offset")
    manifest.ClearField("signatures_size")
    manifest.partitions[0].new_partition_info.hash = hashlib.sha256(new).digest()
    release_delta(
        world, "1.0.0", "2.0.0", data=Forge(manifest, blobs, keys=[payload_key()]).bytes()
    )

    update(node)

    require_installed(world, kind="full")
    (entry,) = history(node, "delta left out")
    assert entry["code"] == "readback-mismatch"


@pytest.mark.parametrize("operations", [1, 3, 6])
def test_a_delta_that_was_interrupted_goes_on_where_it_was(
    world: World, node: Node, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(node, operations, monkeypatch)
    with pytest.raises(DownloadStoppedError):
        update(node)
    monkeypatch.undo()
    assert not is_armed(node)
    assert memory_of(node).state is State.INSTALLING

    run_until(Engine(node=world.node()), "rebooting")

    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert [entry["kind"] for entry in history(node, "armed")] == ["delta"]


class TestBudget:
    def test_what_a_full_payload_costs_here_is_found_and_refused_before_it_is_fetched(
        self, world: World
    ) -> None:
        """Metadata and block index tell; from then on it is refused before a byte."""
        node = fresh(world, deltas="false", max_mib_per_update="1")
        with pytest.raises(UpdateBudgetError, match=r"lacks 1\.1 MB, costs 1\.1 MB; .* allows"):
            update(node)
        assert 0 < world.payloads.sent < 64 * 1024
        assert memory_of(node).state is State.INSTALLING
        rows = why.explain(world.node())["conditions"]
        assert any(row["code"] == "budget-update" and not row["open"] for row in rows)

        world.payloads.requests.clear()
        with pytest.raises(UpdateBudgetError, match=r"full payload .* costs 1\.1 MB"):
            update(world.node())
        assert world.payloads.requests == []

        update(settings_of(world, max_mib_per_update="1"))
        require_installed(world, kind="delta")

    def test_a_full_payload_of_which_this_node_lacks_little_is_within_a_small_limit(
        self, world: World
    ) -> None:
        update(fresh(world, deltas="false", max_mib_per_update="2"))
        require_installed(world, kind="full")
        assert world.payloads.sent < 2 * MIB < full_size(world)

    def test_an_update_beyond_it_is_refused_before_a_byte_is_fetched(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "SIGNATURES_BYTES", 2 * MIB)  # so much to know its cost
        node = fresh(world, deltas="false", max_mib_per_update="1")
        with pytest.raises(UpdateBudgetError, match=r"allows 1\.0 MB, 1\.0 MB are left"):
            update(node)
        assert world.payloads.requests == []
        assert memory_of(node).state is State.IDLE
        rows = {row["code"]: row for row in why.explain(world.node())["conditions"]}
        assert not rows["budget-update"]["open"]

    def test_falling_back_never_spends_more_than_is_allowed(self, world: World, days: Days) -> None:
        name = delta_name(world)
        data = bytearray(world.payloads.files[name])
        data[len(data) * 2 // 3] ^= 1
        world.payloads.files[name] = bytes(data)
        world.payloads.manners.ranges = False  # so that all of the full payload would be fetched
        node = fresh(world, max_mib_per_update="1")

        with pytest.raises(UpdateBudgetError, match="full payload"):
            update(node)

        assert "failed here after 0.6 MB" in str(status(world.node())["update"]["left_out"])
        assert node.store.read_traffic().version_bytes < MIB
        assert memory_of(node).state is State.INSTALLING
        run_until(Engine(node=world.node()), "budget-update")
        assert why.explain(world.node())["next"]["code"] == "budget-update"

        days.ahead = timedelta(days=1)  # what failed is not held against it for ever
        update(settings_of(world, max_mib_per_update="9"))
        require_installed(world, kind="full")

    def test_a_delta_that_was_away_for_a_while_is_taken_when_it_is_there(
        self, world: World
    ) -> None:
        name = delta_name(world)
        data = world.payloads.files.pop(name)
        world.payloads.manners.ranges = False
        node = fresh(world, max_mib_per_update="1")
        with pytest.raises(UpdateBudgetError, match="full payload"):
            update(node)
        assert "404" in str(status(world.node())["update"]["left_out"])

        world.payloads.files[name] = data
        update(world.node())
        require_installed(world, kind="delta")

    def test_force_tries_again_what_failed_here(self, world: World) -> None:
        name = delta_name(world)
        data = world.payloads.files[name]
        world.payloads.files[name] = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        world.payloads.manners.ranges = False
        node = fresh(world, max_mib_per_update="1")
        with pytest.raises(UpdateBudgetError, match="full payload"):
            update(node)
        world.payloads.files[name] = data

        with pytest.raises(UpdateBudgetError, match="failed here"):
            update(settings_of(world, max_mib_per_update="2"))
        perform(world.node(), "update", {"force": True}, by="test")
        require_installed(world, kind="delta")

    def test_bytes_that_come_again_count(self, world: World) -> None:
        """A mirror without ranges that breaks off costs the same bytes again and again."""
        world.payloads.manners.ranges = False
        world.payloads.manners.cut_after = 3 * MIB
        node = fresh(world, deltas="false", max_mib_per_update="5")

        with pytest.raises(UpdateBudgetError):
            update(node)

        traffic = node.store.read_traffic()
        assert traffic.version_bytes == 5 * MIB
        assert not is_armed(node)

    def test_a_day_s_bytes_come_back_on_another_day(self, world: World, days: Days) -> None:
        node = fresh(world, deltas="false", max_mib_per_day="5")
        world.payloads.manners.ranges = False
        world.payloads.manners.cut_after = 3 * MIB
        with pytest.raises(DayBudgetError):
            update(node)
        assert node.store.read_traffic().day_bytes == 5 * MIB
        world.payloads.manners.ranges = True
        world.payloads.manners.cut_after = None
        with pytest.raises(DayBudgetError):
            update(world.node())

        days.ahead = timedelta(days=1)
        update(world.node())
        require_installed(world, kind="full")

    def test_what_was_armed_does_not_count_for_the_next_time(
        self, world: World, node: Node
    ) -> None:
        update(node)
        assert node.store.read_traffic().version_bytes == 0
        assert node.store.read_traffic().day_bytes == delta_size(world)


class TestMeteredLink:
    def test_an_update_waits_and_goes_on_when_the_link_is_not_metered(self, world: World) -> None:
        mark = world.folder / "metered"
        mark.touch()
        node = fresh(world, metered_file=f'"{mark}"')
        with pytest.raises(MeteredLinkError):
            update(node)
        assert world.payloads.requests == []
        rows = {row["code"]: row for row in why.explain(world.node())["conditions"]}
        assert not rows["link-metered"]["open"]

        mark.unlink()
        update(world.node())
        require_installed(world, kind="delta")

    def test_a_link_that_becomes_metered_meanwhile_ends_the_fetching(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = world.folder / "metered"
        real = Download._note_failure

        asked: list[int] = []

        def broke(download: Download, *why: Any) -> None:  # noqa: ANN401  # as it has them
            mark.touch()
            asked.append(len(world.payloads.requests))
            real(download, *why)

        monkeypatch.setattr(Download, "_note_failure", broke)
        world.payloads.manners.cut_after = MIB // 4
        node = fresh(world, deltas="false", metered_file=f'"{mark}"')
        with pytest.raises(MeteredLinkError):
            update(node)
        assert [len(world.payloads.requests)] == asked

        mark.unlink()
        world.payloads.manners.cut_after = None
        update(world.node())
        require_installed(world, kind="full")

    def test_what_is_allowed_over_a_metered_link_is_fetched(self, world: World) -> None:
        update(fresh(world, metered="true", metered_max_mib="1"))
        require_installed(world, kind="delta")
        assert world.payloads.sent == delta_size(world)


class TestADeltaThatPacksBytesAgain:
    @pytest.mark.parametrize(("most", "kind"), [("1", "full"), ("2", "delta"), ("0", "delta")])
    def test_is_left_out_where_it_packs_more_than_it_may_and_that_is_said(
        self, world: World, most: str, kind: str
    ) -> None:
        release_delta(world, "1.0.0", "2.0.0", recoded_bytes=2 * MIB)
        update(fresh(world, recode_max_mib=most))
        require_installed(world, kind=kind)
        lines = "\n".join(status_lines(status(world.node())))
        assert ("not taken: the delta from 1.0.0" in lines) is (kind == "full")
        assert ("it packs 2.1 MB again, download.recode_max_mib" in lines) is (kind == "full")


class TestWithARealDesk:
    """The release desk's own server: signed metadata, Omaha, payloads by their hash."""

    @pytest.fixture
    def desk(self, world: World) -> Iterator[tuple[Desk, str]]:
        founded = found(
            world.folder / "desk",
            DeskSettings(product=PRODUCT, board=BOARD),
            channels=("stable",),
            passphrase=None,
            clock=lambda: datetime.now(UTC),
        )
        delta = world.folder / "1.0.0-2.0.0.crau"
        for version, index, deltas in (("1.0.0", 1, ()), ("2.0.0", 2, (delta,))):
            order = ReleaseOrder(
                product=PRODUCT, board=BOARD, version=version, rollback_index=index
            )
            file = world.folder / f"{version}.crau"
            trusted = TrustedKeys((payload_key().public_key(),))
            keys = founded.desk.offline()
            add_release(founded.desk, file, order, trusted=trusted, keys=keys, deltas=deltas)
        promotion = Promotion(channel="stable", product=PRODUCT, board=BOARD, version="2.0.0")
        promote_channel(founded.desk, promotion, keys=founded.desk.offline())
        with serving(founded.desk) as url:
            world.write_settings(
                mirrors="[]",
                metadata_url=f'"{url}/repository/metadata/"\nroot_file = "{founded.root}"',
                poll_interval_secs=f'3600\nomaha_url = "{url}/v1/update/"',
            )
            yield founded.desk, url
        founded.desk.store.close()

    def test_the_delta_that_it_names_is_installed(
        self, world: World, desk: tuple[Desk, str]
    ) -> None:
        assert len(list(desk[0].payloads.glob("*.crau"))) == 3
        update(world.boot())
        require_installed(world, kind="delta")
        assert world.payloads.requests == []  # all of it came from the desk

    def test_a_delta_whose_file_it_lost_is_followed_by_the_full_payload(
        self, world: World, desk: tuple[Desk, str]
    ) -> None:
        delta = (world.folder / "1.0.0-2.0.0.crau").read_bytes()
        desk[0].payload_file(hashlib.sha256(delta).hexdigest()).unlink()
        node = world.boot()
        update(node)
        require_installed(world, kind="full")
        assert [entry["code"] for entry in history(node, "delta left out")] == ["download-failed"]
