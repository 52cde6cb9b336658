"""Verbs from one process to another: replies, errors as they were over there, and who asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from partitions.errors import GptMissingError
from tests.sim.world import World, run_until
from updater.cli.doing import _until
from updater.client import DirectClient, Reply, VerbFailedError, person, reply_of
from updater.engine import Engine
from updater.errors import EXIT_DONE, EXIT_NOTHING, EXIT_USAGE, EngineBusyError
from updater.verbs import PinOptions

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world"), image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


def verb(world: World, *arguments: str) -> tuple[int, Reply]:
    """Run `bascule verb`, as the service does; returns its status and reply."""
    command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "verb"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.returncode, msgspec.json.decode(done.stdout, type=Reply)


class TestAVerbInAProcessOfItsOwn:
    def test_replies_with_the_facts(self, world: World) -> None:
        status, reply = verb(world, "hold", '{"reason": "migration"}', "--by", "uid 1000")
        assert (status, reply.status, reply.code) == (EXIT_DONE, EXIT_DONE, "")
        facts: dict[str, Any] = json.loads(bytes(reply.facts))
        assert (facts["by"], facts["reason"]) == ("uid 1000", "migration")
        assert json.loads(bytes(verb(world, "unhold")[1].facts)) == {"held": True}

    def test_replies_with_the_words_of_an_error(self, world: World) -> None:
        status, reply = verb(world, "confirm")
        assert (status, reply.status, reply.code) == (
            EXIT_DONE,
            EXIT_NOTHING,
            "already-confirmed",
        )
        assert reply.sentence == "no trial is under way: the node is idle"
        assert reply.hint

    @pytest.mark.parametrize(
        "arguments", [("fly",), ("status", '{"fast": 1}'), ("pin",), ("status", "[]"), ("pin", "{")]
    )
    def test_refuses_what_it_does_not_take(self, world: World, arguments: tuple[str, ...]) -> None:
        _, reply = verb(world, *arguments)
        assert (reply.status, reply.code) == (EXIT_USAGE, "usage")


class TestAnErrorOfAnotherProcess:
    REPLY = Reply(status=3, code="held", sentence="ada holds it", hint="ask ada")

    def test_is_told_in_its_own_words(self) -> None:
        error = VerbFailedError(self.REPLY)
        assert str(error) == "ada holds it"
        assert reply_of(error) == self.REPLY

    def test_of_any_room_keeps_code_hint_and_status(self) -> None:
        assert reply_of(EngineBusyError("busy")) == Reply(
            status=EngineBusyError.exit_status,
            code="engine-busy",
            sentence="busy",
            hint=EngineBusyError.hint,
        )
        assert reply_of(GptMissingError("none")).code == "gpt-missing"


def test_the_direct_client_makes_its_node_at_the_first_verb(world: World) -> None:
    made: list[bool] = []

    def node() -> Any:  # noqa: ANN401  # a Node
        made.append(True)
        return world.node()

    client = DirectClient(node, by="ada")
    assert not made
    assert client.call("status")["state"] == "idle"
    assert made


class TestPerson:
    def test_is_found_behind_sudo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUDO_USER", "ada")
        assert person() == "ada"

    def test_without_a_name_is_a_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("os.getuid", lambda: 3_999_999)
        assert person() == "uid 3999999"


class TestUntil:
    CONTEXT = click.Context(click.Command("hold"))
    PARAMETER = click.Option(["--until"])

    def read(self, text: str) -> str:
        end = _until(self.CONTEXT, self.PARAMETER, text)
        assert end is not None
        return end

    @pytest.mark.parametrize("text", ["30m", "4h", "2d"])
    def test_takes_a_span(self, text: str) -> None:
        assert self.read(text).endswith("+00:00")

    def test_takes_a_date_and_time(self) -> None:
        assert datetime.fromisoformat(self.read("2100-12-01T06:00+01:00")) == (
            datetime.fromisoformat("2100-12-01T05:00+00:00")
        )

    @pytest.mark.parametrize(
        "text", ["", "h", "4", "4y", "tomorrow", "-", "999999999999d", "-99999999999d", "1.5h"]
    )
    def test_refuses_the_rest(self, text: str) -> None:
        with pytest.raises(click.BadParameter, match="is no time"):
            _until(self.CONTEXT, self.PARAMETER, text)

    def test_none_is_no_end(self) -> None:
        assert _until(self.CONTEXT, self.PARAMETER, None) is None


def test_a_pin_has_a_version() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"version": ""}, PinOptions)
