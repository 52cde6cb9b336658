"""What a node must refuse, end to end: the slot stays disarmed, the booted one untouched.

After every refusal the next good release installs. Row by row as issue 2 asks, on the shipped
engine with real HTTP, real TUF metadata and a real GPT disk file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from images.container import parse_header
from partitions.slots import Slot
from tests.sim.payload_server import Manners
from tests.sim.repository import PRODUCT
from tests.sim.world import World, run_until
from updater.agent import Wait
from updater.engine import Engine
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.state import NodeState

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        made.write_settings(extra="", retries="0", reboot='"manual"\nmax_attempts = 100')
        made.boot().store.prepare()
        yield made


def refusal(world: World) -> AnyRoomError:
    """Let a fresh process try once; returns the error, after checking that nothing is harmed."""
    node = world.node()
    due_now(world)
    engine = Engine(node=node)
    error: AnyRoomError | None = None
    for _ in range(4):
        try:
            wait = engine.step()
        except ROOM_ERRORS as raised:
            error = raised
            break
        if isinstance(wait, Wait):
            assert wait.code not in {"reboot-manual", "idle"}, "nothing was refused"
    assert error is not None
    state = node.loader.read()
    assert state.target is Slot.A
    assert not state.slots[Slot.B].armed
    assert world.slot_bytes(Slot.A) == world.image_bytes("1.0.0")
    return error


def due_now(world: World) -> None:
    node = world.node()
    memory = node.store.read_state()
    node.keep(memory, next_check=None, checks_failed=0)


def memory_of(world: World) -> NodeState:
    return world.node().store.read_state()


def assert_good_release_installs(world: World, version: str) -> None:
    world.payloads.manners = Manners()
    world.release(version, rollback_index=9)
    due_now(world)
    run_until(Engine(node=world.node()), "reboot-manual")
    assert world.slot_bytes(Slot.B) == world.image_bytes(version)
    assert world.node().loader.read().target is Slot.B


def places(data: bytes) -> dict[str, tuple[int, set[str]]]:
    """Name a byte in each part of a payload, and the codes that flipping it may earn."""
    header = parse_header(data[:24], payload_size=len(data))
    blobs = header.data_offset
    return {
        "magic": (0, {"payload-magic"}),
        "version": (11, {"payload-version"}),
        "manifest size": (19, {"payload-limits", "metadata-mismatch", "payload-truncated"}),
        "signature size": (
            23,
            {"payload-limits", "metadata-mismatch", "metadata-signature", "payload-truncated"},
        ),
        "manifest": (24 + header.manifest_size // 2, {"metadata-mismatch"}),
        "metadata signature": (24 + header.manifest_size + 100, {"metadata-signature"}),
        "first blob": (blobs + 10, {"blob-mismatch"}),
        "last blob": (len(data) - 400, {"blob-mismatch"}),
        # by its hash where a node fetches only what it lacks, else by the keys
        "payload signature": (len(data) - 100, {"payload-digest", "payload-signature"}),
    }


def test_a_flipped_byte_anywhere_in_the_payload_is_refused(world: World) -> None:
    data = world.release("2.0.0", rollback_index=2)
    for place, (offset, codes) in places(data).items():
        world.payloads.manners = Manners(flip_at=offset)
        error = refusal(world)
        assert error.code in codes, f"{place}: {error.code}: {error}"
    assert_good_release_installs(world, "2.0.1")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_length_is_refused(world: World, change: int) -> None:
    data = world.release("2.0.0", rollback_index=2)
    other = data[:change] if change < 0 else data + b"x"
    world.payloads.files = dict.fromkeys(world.payloads.files, other)
    assert refusal(world).code == "download-failed"
    assert_good_release_installs(world, "2.0.1")


def test_a_good_mirror_makes_up_for_a_bad_one(world: World) -> None:
    data = world.release("2.0.0", rollback_index=2)
    from tests.sim.payload_server import PayloadServer

    bad = PayloadServer(files=world.payloads.files, manners=Manners(flip_at=len(data) // 2))
    with bad:
        mirrors = f'["{bad.base}", "{world.payloads.base}"]'
        world.write_settings(mirrors=mirrors, reboot='"manual"')
        due_now(world)
        run_until(Engine(node=world.node()), "reboot-manual")
    assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
    assert bad.sent > 0


def flip_timestamp(world: World) -> None:
    data = bytearray(world.repository.files["metadata/timestamp.json"])
    data[len(data) // 2] ^= 0x01
    world.repository.files["metadata/timestamp.json"] = bytes(data)


def expire_timestamp(world: World) -> None:
    world.repository.sign_timestamp(lifetime=timedelta(seconds=-1))


def release_below_the_floor(world: World) -> None:
    world.node().store.raise_floor(5)
    world.release("2.0.0", rollback_index=2)


def wrong_product(world: World) -> None:
    world.release("2.0.0", rollback_index=2)
    rename(world, "product", "other-os")


def wrong_board(world: World) -> None:
    world.release("2.0.0", rollback_index=2)
    rename(world, "board", "arm64-usr")


def rename(world: World, field: str, value: str) -> None:
    """Sign other facts for the release, under the path that the channel allows."""
    targets = world.repository.roles["releases"].targets
    for path, target in targets.items():
        if "2.0.0" in path:
            target.unrecognized_fields["custom"][field] = value
    world.repository.promote("2.0.0")


def too_large(world: World) -> None:
    world.release("2.0.0", rollback_index=2)
    targets = world.repository.roles["releases"].targets
    for path, target in targets.items():
        if "2.0.0" in path:
            target.unrecognized_fields["custom"]["partitions"][0]["size"] = 1 << 40
    world.repository.promote("2.0.0")


def withdrawn(world: World) -> None:
    world.release("2.0.0", rollback_index=2, withdrawn=("2.0.0",))


def failed_before(world: World) -> None:
    from updater.state import Failure

    world.release("2.0.0", rollback_index=2)
    node = world.node()
    why = Failure(code="trial-unhealthy", sentence="no", at=node.clock(), version="2.0.0")
    node.store.deny("2.0.0", why)


@pytest.mark.parametrize(
    ("bend", "codes"),
    [
        (flip_timestamp, {"trust-signature", "trust-format", "trust-mismatch"}),
        (expire_timestamp, {"trust-expired"}),
        (release_below_the_floor, {"below-floor"}),
        (wrong_product, {"wrong-product"}),
        (wrong_board, {"wrong-board"}),
        (too_large, {"does-not-fit"}),
        (withdrawn, {"withdrawn"}),
        (failed_before, {"version-denied"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_signed_wrongly_or_not_for_this_node_is_refused(
    world: World, bend: Callable[[World], None], codes: set[str]
) -> None:
    bend(world)
    sent = world.payloads.sent
    error = refusal(world)
    assert error.code in codes, f"{error.code}: {error}"
    assert world.payloads.sent == sent, "it was downloaded before it was refused"
    assert_good_release_installs(world, "2.0.1")


def test_an_older_release_is_not_taken(world: World) -> None:
    world.release("0.9.0", rollback_index=1)
    due_now(world)
    run_until(Engine(node=world.node()), "idle")
    assert world.payloads.sent == 0
    assert PRODUCT in world.node().running().product
