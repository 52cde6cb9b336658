"""What a node may fetch: spread over days, apart for metered links, given back where it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from images.signing import TrustedKeys
from partitions.slots import Slot
from server.channels import promote_channel
from server.desk import Desk
from server.foundation import found
from server.intake import ReleaseOrder
from server.promotion import Promotion
from server.publish import add_release
from server.queries import groups
from server.settings import Settings as DeskSettings
from tests.sim.desk import serving
from tests.sim.node_deltas import (
    Days,
    fresh,
    release_delta,
    settings_of,
    similar_releases,
    update,
)
from tests.sim.plain import give, is_armed, memory_of, serve, stop_after
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, payload_key, run_until
from updater import planning, why, writing
from updater.budget import DayBudgetError, FailedBytesError, MeteredLinkError
from updater.checking import present
from updater.download import DownloadError, DownloadStoppedError
from updater.engine import Engine
from updater.lifecycle import State
from updater.node import Node
from updater.payload_choice import Priced
from updater.shown import status, status_lines
from updater.state import Journal
from updater.steering import flush
from updater.trust.view import PayloadTarget

MIB = 1024 * 1024


@pytest.fixture
def days() -> Days:
    return Days()


@pytest.fixture
def world(tmp_path: Path, days: Days, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """2.0.0 is current; its 4.2 MB differ from all that the node has. Its operations are small."""
    monkeypatch.setattr(planning, "STEP_BYTES", MIB)
    with World(tmp_path, clock=days) as made:
        made.release("2.0.0", rollback_index=2)
        yield made


@pytest.fixture
def similar(tmp_path: Path, days: Days) -> Iterator[World]:
    """2.0.0 is current, differs little from the running 1.0.0, and has a delta from it."""
    with similar_releases(tmp_path, days) as made:
        yield made


def full_size(world: World) -> int:
    return (world.folder / "2.0.0.crau").stat().st_size


def require_installed(world: World) -> None:
    assert is_armed(world.node())
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")


def test_a_payload_larger_than_a_day_allows_is_fetched_over_days(world: World, days: Days) -> None:
    node = fresh(world, max_mib_per_day="3")
    today = days().date()
    with pytest.raises(DayBudgetError):
        update(node)
    first = node.store.read_traffic().day_bytes
    assert 2 * MIB < first <= 3 * MIB
    assert memory_of(node).state is State.INSTALLING
    shown = status(world.node())
    assert shown["update"]["whole_on"] == (today + timedelta(days=2)).isoformat()
    assert f"whole on {today + timedelta(days=2)} (UTC)" in "\n".join(status_lines(shown))

    with pytest.raises(DayBudgetError, match=r"it will be whole in 1 day \(UTC\)"):
        update(world.node())  # the same day: not a byte
    assert node.store.read_traffic().day_bytes == first

    days.ahead = timedelta(days=1)
    update(world.node())
    require_installed(world)
    traffic = node.store.read_traffic()
    assert first + traffic.day_bytes < full_size(world) * 1.01  # it went on where it was


def test_what_came_before_the_link_was_metered_does_not_count_for_it(
    world: World, days: Days
) -> None:
    with pytest.raises(DayBudgetError):
        update(fresh(world, max_mib_per_day="3"))
    days.ahead = timedelta(days=1)
    update(settings_of(world, metered="true", metered_max_mib="3"))
    require_installed(world)


def test_what_came_while_it_was_metered_counts_for_it(world: World) -> None:
    with pytest.raises(DayBudgetError):
        update(fresh(world, max_mib_per_day="3", metered="true", metered_max_mib="9"))
    with pytest.raises(MeteredLinkError):
        update(settings_of(world, metered="true", metered_max_mib="4"))
    assert world.node().store.read_traffic().metered_bytes > 2 * MIB


def test_what_is_flushed_is_kept_until_the_cheaper_payload_is_known_to_be_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta is published meanwhile, and no mirror has it, nor anything else at the moment."""
    node = fresh(world)
    stop_after(node, 2, monkeypatch)
    with pytest.raises(DownloadStoppedError):
        update(node)
    monkeypatch.undo()
    before = node.store.read_journal()
    assert before is not None
    assert before.next_operation > 0
    release_delta(world, "1.0.0", "2.0.0")
    monkeypatch.setattr(planning, "_priced", cheap_deltas(planning._priced))
    files = dict(world.payloads.files)
    world.payloads.files.clear()

    with pytest.raises(DownloadError):
        update(world.node())

    after = node.store.read_journal()
    assert after is not None
    assert (after.sha256, after.next_operation) == (before.sha256, before.next_operation)
    assert memory_of(world.node()).spoiled != ()  # the delta was tried
    world.payloads.files.update(files)
    update(world.node())
    require_installed(world)


Pricing = Callable[[Node, PayloadTarget], Priced]


def cheap_deltas(real: Pricing) -> Pricing:
    """Return what prices a delta at next to nothing, so that it is chosen."""

    def priced(node: Node, payload: PayloadTarget) -> Priced:
        found = real(node, payload)
        return replace(found, cost=1) if payload.facts.kind == "delta" else found

    return priced


def test_a_kill_counts_no_byte_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was counted while it came, and the journal was flushed before and not again."""

    def killed(node: Node, _journal: Journal, kept: Journal, *_more: object) -> None:
        last, counted = node.store.read_journal() or kept, node.store.read_traffic().counted
        node.store.write_journal(msgspec.structs.replace(last, downloaded=counted // 2))

    node = fresh(world)
    with monkeypatch.context() as patch:
        stop_after(node, 1, patch)
        patch.setattr(writing, "_note_downloaded", killed)
        with pytest.raises(DownloadStoppedError):
            update(node)
    before = node.store.read_traffic().day_bytes
    assert before > 0
    files = dict(world.payloads.files)
    world.payloads.files.clear()
    with pytest.raises(DownloadError):
        update(world.node())
    assert node.store.read_traffic().day_bytes == before

    world.payloads.files.update(files)
    update(world.node())
    require_installed(world)


def test_a_given_payload_that_is_armed_does_not_count_for_the_next_time(world: World) -> None:
    node = fresh(world)
    give(node, serve(world, world.folder / "2.0.0.crau"))
    assert is_armed(world.node())
    traffic = node.store.read_traffic()
    assert (traffic.version, traffic.version_bytes) == ("", 0)
    assert traffic.day_bytes >= full_size(world)


def test_what_failed_and_the_full_payload_together_cost_no_more_than_it_a_day(
    similar: World, days: Days
) -> None:
    """A delta is wrong near its end, and a mirror without ranges would send all of the other."""
    world = similar
    name = release_delta(world, "1.0.0", "2.0.0")
    data = bytearray(world.payloads.files[name])
    data[len(data) * 9 // 10] ^= 1
    world.payloads.files[name] = bytes(data)
    world.payloads.manners.ranges = False
    node = fresh(world)

    with pytest.raises(FailedBytesError, match="together allows"):
        update(node)

    traffic = node.store.read_traffic()
    assert traffic.version_bytes <= full_size(world) * 1001 // 1000
    (why_not,) = status(world.node())["update"]["left_out"]
    assert "failed here after" in why_not
    left_out = [entry for entry in node.store.history() if entry["what"] == "delta left out"]
    assert MIB // 2 < int(left_out[0]["downloaded"]) < MIB
    world.payloads.requests.clear()
    with pytest.raises(FailedBytesError):
        update(world.node())
    assert world.payloads.requests == []  # its price is known

    rows = [row for row in why.explain(world.node())["conditions"] if not row["open"]]
    assert any("failed here and the full payload together" in row["sentence"] for row in rows)
    memory = memory_of(world.node())
    assert planning.failed_bytes(node, memory, "2.0.0") > MIB // 2
    assert planning.failed_bytes(node, memory, "2.1.0") == 0  # of another version nothing failed
    days.ahead = timedelta(days=1)
    assert planning.failed_bytes(node, memory, "2.0.0") == 0
    update(world.node())
    require_installed(world)


class TestThePlaceInARollout:
    @pytest.fixture
    def desk(self, world: World) -> Iterator[Desk]:
        made = found(
            world.folder / "desk",
            DeskSettings(product=PRODUCT, board=BOARD),
            channels=("stable",),
            passphrase=None,
            clock=lambda: datetime.now(UTC),
        )
        desk = made.desk
        for version, index in (("1.0.0", 1), ("2.0.0", 2)):
            order = ReleaseOrder(
                product=PRODUCT, board=BOARD, version=version, rollback_index=index
            )
            add_release(
                desk,
                world.folder / f"{version}.crau",
                order,
                trusted=TrustedKeys((payload_key().public_key(),)),
                keys=desk.offline(),
            )
        promotion = Promotion(channel="stable", product=PRODUCT, board=BOARD, version="2.0.0")
        promote_channel(desk, promotion, keys=desk.offline())
        with serving(desk) as url:
            self.url, self.root = url, made.root
            yield desk
        desk.store.close()

    def node(self, world: World, **settings: str) -> Node:
        extra = "".join(f"{key} = {value}\n" for key, value in settings.items())
        world.write_settings(
            mirrors="[]",
            retries=f"2\n{extra}",
            metadata_url=f'"{self.url}/repository/metadata/"\nroot_file = "{self.root}"',
            poll_interval_secs=f'3600\nomaha_url = "{self.url}/v1/update/"',
        )
        return world.boot()

    def tell(self, node: Node) -> None:
        assert node.steering is not None
        assert flush(node.store, node.steering, present(node, node.store.read_state()))

    def under_way(self, desk: Desk) -> int:
        with desk.store.reading() as connection:
            found = groups(connection, desk.settings, now_s=desk.now_s())
        return sum(group.under_way for group in found)

    def test_a_check_that_its_budget_refuses_gives_it_back(self, world: World, desk: Desk) -> None:
        node = self.node(world, metered="true")
        with pytest.raises(MeteredLinkError):
            update(node)
        self.tell(node)
        assert self.under_way(desk) == 0

    def test_an_install_that_waits_for_its_budget_gives_it_back_and_goes_on(
        self, world: World, desk: Desk, days: Days
    ) -> None:
        node = self.node(world, max_mib_per_day="3")
        with pytest.raises(DayBudgetError):
            update(node)
        self.tell(node)
        assert self.under_way(desk) == 0
        days.ahead = timedelta(days=1)
        run_until(Engine(node=world.node()), "rebooting")
        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
