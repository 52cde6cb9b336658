"""Payloads that no release names: what vouches for them, what is refused, what is never armed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.errors import ImagesError
from partitions.slots import Slot
from tests.sim.payloads import key
from tests.sim.plain import (
    CHUNK,
    give,
    is_armed,
    memory_of,
    plain_payload,
    serve,
    stop_after,
)
from tests.sim.world import World, run_until
from updater import updating
from updater.download import DownloadStoppedError
from updater.engine import Engine
from updater.errors import (
    EXIT_ARMED,
    EXIT_REFUSED,
    EXIT_USAGE,
    RefusedError,
    UpdaterError,
)
from updater.lifecycle import State
from updater.node import Node
from updater.pipeline import Pipeline
from updater.verbs import perform


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def node(world: World) -> Node:
    """A node that runs 1.0.0, confirmed, and found nothing newer on its channel."""
    made = world.boot()
    run_until(Engine(node=made), "idle")
    return made


@pytest.fixture(params=["file", "url"])
def placed(request: pytest.FixtureRequest, world: World) -> Callable[[Path], str]:
    """Where a payload is given from."""
    return str if request.param == "file" else lambda path: serve(world, path)


def refused(code: str, action: Callable[[], object]) -> UpdaterError | ImagesError:
    """Carry out what must be refused with `code`."""
    with pytest.raises((UpdaterError, ImagesError)) as caught:
        action()
    error = caught.value
    assert isinstance(error, UpdaterError | ImagesError)
    assert error.code == code, error
    assert error.hint
    return error


class TestWhatIsInstalled:
    @pytest.mark.parametrize("major", [1, 2])
    def test_a_signed_payload_is_installed_booted_and_confirmed(
        self, world: World, node: Node, placed: Callable[[Path], str], major: int
    ) -> None:
        give(node, placed(plain_payload(world, "2.0.0", rollback_index=2, major=major)))

        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")
        assert memory_of(node).state is State.ARMED
        node = world.boot()
        assert node.boot().slot is Slot.B
        run_until(Engine(node=node), "idle")
        assert node.loader.read().slots[Slot.B].confirmed
        assert (memory_of(node).state, node.store.read_floor()) == (State.IDLE, 2)

    def test_the_memory_knows_the_version_that_the_image_says(
        self, world: World, node: Node
    ) -> None:
        give(node, plain_payload(world, "2.0.0", rollback_index=2))

        update = memory_of(node).update
        assert update is not None
        assert (update.version, update.rollback_index, update.origin) == ("2.0.0", 2, "given")

    def test_an_older_one_is_installed_when_a_person_insists(
        self, world: World, node: Node
    ) -> None:
        give(node, plain_payload(world, "0.9.0", rollback_index=1), force=True)

        assert is_armed(node)

    def test_it_is_installed_while_the_node_is_held(self, world: World, node: Node) -> None:
        perform(node, "hold", {"reason": "test"}, by="test")
        give(node, plain_payload(world, "2.0.0"))

        assert is_armed(node)


class TestTheCommand:
    def bascule(self, world: World, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "--direct"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(
            [*command, *words],
            cwd=world.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.mark.usefixtures("node")
    def test_takes_a_path_from_where_it_is_typed(self, world: World) -> None:
        payload = plain_payload(world, "2.0.0")
        done = self.bascule(world, "update", "--payload", payload.name)
        assert done.returncode == EXIT_ARMED, done.stderr
        assert "version 2.0.0 is armed" in done.stdout

    @pytest.mark.usefixtures("node")
    def test_refuses_with_sentence_hint_and_code(self, world: World) -> None:
        payload = plain_payload(world, "0.9.0")
        done = self.bascule(world, "update", "--payload", str(payload))
        assert done.returncode == EXIT_REFUSED
        assert done.stderr.splitlines()[-3:] == [
            "error: the image is version 0.9.0, this node runs 1.0.0",
            "hint: A person may insist, down to the floor: `bascule update --payload … --force`.",
            "code: given-not-newer",
        ]

    @pytest.mark.usefixtures("node")
    def test_takes_a_payload_or_a_version_and_not_both(self, world: World) -> None:
        done = self.bascule(world, "update", "--payload", "/x", "--version", "2.0.0")
        assert done.returncode == EXIT_USAGE


class TestWhatIsRefusedBeforeTheFirstByte:
    def refuse(self, world: World, node: Node, code: str, place: Path | str) -> None:
        before = world.slot_bytes(Slot.B)
        refused(code, lambda: give(node, place, force=True))
        assert world.slot_bytes(Slot.B) == before
        assert memory_of(node).state is State.IDLE
        assert not is_armed(node)

    @pytest.mark.usefixtures("node")
    def test_any_payload_without_keys(self, world: World, placed: Callable[[Path], str]) -> None:
        world.write_settings(payload_keys="[]")
        payload = plain_payload(world, "2.0.0")
        self.refuse(world, world.node(), "payload-keys-missing", placed(payload))

    @pytest.mark.parametrize(
        ("major", "code"), [(1, "payload-signature"), (2, "metadata-signature")]
    )
    def test_a_file_that_another_key_signed(
        self, world: World, node: Node, major: int, code: str
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=major, keys=[key()])
        self.refuse(world, node, code, payload)

    def test_a_format_2_stream_that_another_key_signed(self, world: World, node: Node) -> None:
        payload = plain_payload(world, "2.0.0", keys=[key()])
        self.refuse(world, node, "metadata-signature", serve(world, payload))

    @pytest.mark.parametrize("major", [1, 2])
    def test_an_unsigned_one(
        self, world: World, node: Node, placed: Callable[[Path], str], major: int
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=major, keys=[])
        self.refuse(world, node, "payload-unsigned", placed(payload))

    def test_a_file_with_one_wrong_byte(self, world: World, node: Node) -> None:
        payload = plain_payload(world, "2.0.0", major=1)
        data = bytearray(payload.read_bytes())
        data[len(data) // 2] ^= 1
        payload.write_bytes(data)
        self.refuse(world, node, "blob-mismatch", payload)

    def test_an_image_larger_than_its_partition(
        self, world: World, node: Node, placed: Callable[[Path], str]
    ) -> None:
        big = world.folder / "big.img"
        big.write_bytes(bytes(13 * 1024 * 1024))
        payload = plain_payload(world, "2.0.0", image=big)
        self.refuse(world, node, "does-not-fit", placed(payload))

    def test_a_url_with_more_bytes_than_any_payload_of_this_slot(
        self, world: World, node: Node
    ) -> None:
        world.payloads.files["huge"] = bytes(40 * 1024 * 1024)
        self.refuse(world, node, "does-not-fit", f"{world.payloads.base}/huge")

    def test_a_missing_file(self, world: World, node: Node) -> None:
        self.refuse(world, node, "file-unreadable", world.folder / "nothing")

    @pytest.mark.parametrize("place", ["relative", "ftp://x/y", "http://user@host/p", "file:///x"])
    def test_what_is_neither_a_path_nor_a_url(self, world: World, node: Node, place: str) -> None:
        self.refuse(world, node, "payload-place", place)


def test_nothing_is_written_while_the_booted_slot_is_not_confirmed(
    world: World, node: Node
) -> None:
    node.loader.arm(Slot.A, tries=1)
    before = world.slot_bytes(Slot.B)

    refused("booted-not-confirmed", lambda: give(node, plain_payload(world, "2.0.0")))

    assert world.slot_bytes(Slot.B) == before


class TestWhatIsWrittenAndNeverArmed:
    def refuse(self, node: Node, code: str, place: Path | str, *, force: bool = False) -> None:
        refused(code, lambda: give(node, place, force=force))
        assert not is_armed(node)
        assert memory_of(node).state is State.IDLE
        failure = memory_of(node).last_failure
        assert failure is not None
        assert failure.code == code

    def test_a_format_1_stream_that_another_key_signed(self, world: World, node: Node) -> None:
        payload = plain_payload(world, "2.0.0", major=1, keys=[key()])
        self.refuse(node, "payload-signature", serve(world, payload))

    def test_a_format_1_stream_that_another_key_signed_and_that_was_interrupted(
        self, world: World, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=1, keys=[key()])
        last = -(-world.image_size // CHUNK)
        stop_after(node, last, monkeypatch)
        with pytest.raises(DownloadStoppedError):
            give(node, serve(world, payload))
        monkeypatch.undo()
        assert memory_of(node).state is State.INSTALLING

        node = world.node()
        with node.locked() as memory:
            refused(
                "payload-signature",
                lambda: updating.install(node, memory, None, by_person=False),
            )

        assert not is_armed(node)

    @pytest.mark.parametrize("version", ["0.9.0", "1.0"])
    def test_an_image_that_is_not_newer(self, world: World, node: Node, version: str) -> None:
        self.refuse(node, "given-not-newer", plain_payload(world, version))

    def test_an_image_below_the_floor_whoever_insists(self, world: World, node: Node) -> None:
        node.store.raise_floor(5)
        payload = plain_payload(world, "2.0.0", rollback_index=4)
        self.refuse(node, "below-floor", payload, force=True)

    def test_an_image_below_the_running_index_when_the_floor_was_lost(
        self, world: World, node: Node
    ) -> None:
        (node.store.folder / "floor.json").unlink(missing_ok=True)
        payload = plain_payload(world, "2.0.0", rollback_index=0)
        self.refuse(node, "below-floor", payload, force=True)

    def test_an_image_for_another_board(self, world: World, node: Node) -> None:
        image = world.image("2.0.0", rollback_index=1, board="arm64-usr")
        self.refuse(node, "wrong-board", plain_payload(world, "2.0.0", image=image), force=True)

    def test_an_image_that_does_not_say_what_it_is(self, world: World, node: Node) -> None:
        foreign = world.folder / "foreign.img"
        foreign.write_bytes(b"squashfs, say" * 100_000 + bytes(4096 - 1_300_000 % 4096))
        payload = plain_payload(world, "2.0.0", image=foreign)
        self.refuse(node, "image-unknown", payload, force=True)

    def test_a_version_that_failed_here(self, world: World, node: Node) -> None:
        node.store.deny("2.0.0", node.failure(RefusedError("it failed")))
        self.refuse(node, "version-denied", plain_payload(world, "2.0.0"))

    def test_a_version_that_the_node_is_not_pinned_to(self, world: World, node: Node) -> None:
        perform(node, "pin", {"version": "3.0.0"}, by="test")
        self.refuse(node, "pinned", plain_payload(world, "2.0.0"))


class TestResuming:
    def interrupted(
        self, world: World, node: Node, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> Node:
        stop_after(node, 3, monkeypatch)
        with pytest.raises(DownloadStoppedError):
            give(node, place)
        monkeypatch.undo()
        return world.node()

    @pytest.mark.parametrize("major", [1, 2])
    def test_the_service_goes_on_by_itself(
        self,
        world: World,
        node: Node,
        placed: Callable[[Path], str],
        major: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        place = placed(plain_payload(world, "2.0.0", major=major))
        node = self.interrupted(world, node, place, monkeypatch)

        run_until(Engine(node=node), "rebooting")

        assert world.slot_bytes(Slot.B) == world.image_bytes("2.0.0")

    @pytest.mark.parametrize(
        ("major", "place", "begins"), [(1, "file", 3), (2, "url", 3), (1, "url", 0)]
    )
    def test_only_what_is_proven_is_not_written_again(
        self,
        world: World,
        node: Node,
        major: int,
        place: str,
        begins: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        payload = plain_payload(world, "2.0.0", major=major)
        where = str(payload) if place == "file" else serve(world, payload)
        node = self.interrupted(world, node, where, monkeypatch)
        begun: list[int] = []
        original = Pipeline.run

        def run(self: Pipeline) -> None:
            begun.append(self._journal.next_operation)
            original(self)

        monkeypatch.setattr(Pipeline, "run", run)
        run_until(Engine(node=node), "rebooting")

        assert begun == [begins]

    def test_a_file_that_changed_meanwhile_is_begun_anew(
        self, world: World, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        payload = plain_payload(world, "2.0.0")
        node = self.interrupted(world, node, str(payload), monkeypatch)
        payload.write_bytes(plain_payload(world, "2.1.0").read_bytes())

        run_until(Engine(node=node), "rebooting")

        assert world.slot_bytes(Slot.B) == world.image_bytes("2.1.0")

    def test_a_file_that_is_gone_ends_the_install(
        self, world: World, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        payload = plain_payload(world, "2.0.0")
        node = self.interrupted(world, node, str(payload), monkeypatch)
        payload.unlink()

        with node.locked() as memory:
            refused(
                "file-unreadable",
                lambda: updating.install(node, memory, None, by_person=False),
            )

        assert memory_of(node).state is State.IDLE
        assert not is_armed(node)


class TestBesideTheChannel:
    def test_what_is_armed_stays_when_a_given_file_is_bad(self, world: World, node: Node) -> None:
        give(node, plain_payload(world, "2.0.0"))

        refused(
            "metadata-signature", lambda: give(node, plain_payload(world, "3.0.0", keys=[key()]))
        )

        assert is_armed(node)
        assert memory_of(node).state is State.ARMED

    def test_a_given_payload_is_not_taken_back_because_the_channel_does_not_name_it(
        self, world: World, node: Node
    ) -> None:
        give(node, plain_payload(world, "2.0.0"))
        world.release("1.5.0", rollback_index=1)

        engine = Engine(node=node)
        with node.locked() as memory:
            engine._check(memory)

        update = memory_of(node).update
        assert update is not None
        assert (update.version, is_armed(node)) == ("2.0.0", True)

    def test_a_given_payload_is_taken_back_when_the_channel_withdraws_its_version(
        self, world: World, node: Node
    ) -> None:
        give(node, plain_payload(world, "2.0.0"))
        world.release("1.5.0", rollback_index=1, withdrawn=("2.0.0",))

        with node.locked() as memory:
            refused("armed-withdrawn", lambda: Engine(node=node)._check(memory))

        assert not is_armed(node)

    def test_a_newer_release_of_the_channel_replaces_it(self, world: World, node: Node) -> None:
        give(node, plain_payload(world, "2.0.0"))
        world.release("3.0.0", rollback_index=1)

        with node.locked() as memory:
            Engine(node=node)._check(memory)

        assert world.slot_bytes(Slot.B) == world.image_bytes("3.0.0")
