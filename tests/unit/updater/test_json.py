"""docs/json.md holds what each verb gives: every key, its type, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from images.release import tuf_payload_path
from tests.sim.etcd import etcd_programs, running_etcd
from tests.sim.lives import due_now, let_time_pass, live, memory_of
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import World, run_until
from updater.cli import main
from updater.engine import Engine
from updater.rooms import ROOM_ERRORS
from updater.verbs import VERBS, perform

PAGE: Final = (Path(__file__).parents[3] / "docs/json.md").read_text()
KINDS: Final = {"string": str, "integer": int, "boolean": bool, "object": dict, "list": list}


def chapters() -> dict[str, dict[str, str]]:
    """Return the tables of the page: by verb, then by key, the type."""
    found: dict[str, dict[str, str]] = {}
    for title, body in re.findall(r"^###? (`.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE):
        table = dict(re.findall(r"^\| `(\S+)` \| ([a-z ]+) \|", body, re.MULTILINE))
        for name in re.findall(r"`(?:bascule )?([a-z -]+?)(?: --json)?`", title):
            found[name.replace(" ", "-")] = table
    return found


CHAPTERS: Final = chapters()


def below(path: str, key: str, table: Mapping[str, str]) -> str:
    """Return how the page writes the place of `key`: a star where any name may stand."""
    star = f"{path}.*" if path else "*"
    return star if star in table else f"{path}.{key}" if path else key


def leaves(value: object, path: str, table: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """Yield every documented or nameless place of `value`, as the page writes it."""
    if isinstance(value, dict):
        yield from members(value, path, table)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, f"{path}[]", table)
    elif path.endswith("[]"):
        yield path, value


def members(
    value: Mapping[str, object], path: str, table: Mapping[str, str]
) -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        step = below(path, key, table)
        if step in table:
            yield step, inner
        if isinstance(inner, dict | list) and table.get(step) != "any":
            yield from leaves(inner, step, table)
        elif step not in table:
            yield step, inner


def is_of(value: object, kind: str) -> bool:
    """Tell whether a value is of a type as the page names it."""
    names = kind.split(" or ")
    if "any" in names or (value is None and "null" in names):
        return True
    if "time" in names:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    return any(type(value) is KINDS.get(name) for name in names)


class Seen:
    """What verbs gave, held against the page as it comes."""

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = {}

    def hold(self, verb: str, facts: object) -> None:
        table = CHAPTERS[verb]
        keys = self.keys.setdefault(verb, set())
        for path, value in leaves(facts, "", table):
            assert path in table, f"{verb}: {path} is not on the page"
            assert is_of(value, table[path]), f"{verb}: {path} is {value!r}, not {table[path]}"
            keys.add(path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, image_size=512 * 1024, files={"kernel": 4096}) as made:
        made.write_settings(
            reboot='"manual"', poll_interval_secs="600", retries="2\ndeltas = false"
        )
        run_until(Engine(node=made.boot()), "idle")
        yield made


def add_delta(world: World) -> None:
    """Let 2.0.0 have a delta as well, which the settings forbid."""
    full = tuf_payload_path(PRODUCT, BOARD, "2.0.0", "full")
    custom = world.repository.roles["releases"].targets[full].custom
    assert custom is not None
    part = {"name": "usr", "size": 4096, "sha256": "c" * 64}
    facts = custom | {"kind": "delta", "source": {"version": "1.0.0", "partitions": [part]}}
    path = world.repository.add_release("2.0.0", kind="delta-from-1.0.0", custom=facts)
    world.repository.promote("2.0.0", allowed={"2.0.0": [full, path]})


def shown(world: World, capfd: pytest.CaptureFixture[str], *verb: str) -> Any:  # noqa: ANN401  # JSON
    capfd.readouterr()
    assert main(["--config", str(world.config), *verb, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


SHOWING: Final = (["status"], ["why"], ["slots"], ["history", "-n", "1000"], ["config", "show"])


def a_life(world: World, seen: Seen, capfd: pytest.CaptureFixture[str]) -> None:
    """Let a node live through everything that leaves its mark on what verbs show."""

    def look() -> None:
        for verb in SHOWING:
            name = "-".join(verb[:2]) if verb[0] == "config" else verb[0]
            seen.hold(name, shown(world, capfd, *verb))

    def say(verb: str, **options: object) -> None:
        facts = perform(world.node(), verb, options, by="ada")
        seen.hold(verb, facts)

    look()
    say("hold", reason="migration", until="2100-01-01T00:00:00Z")
    say("pin", version="1.0.0")
    look()
    say("unpin")
    world.release("2.0.0", rollback_index=1)
    add_delta(world)
    seen.hold("check", shown(world, capfd, "check"))
    world.payloads.files.clear()  # the first attempt fails
    with pytest.raises(ROOM_ERRORS):
        say("update")
    look()
    world.release("3.0.0", rollback_index=1)
    due_now(world)
    say("update")
    look()
    say("reboot", now=True)
    say("unhold")
    say("reboot", now=True)
    look()
    world.boot()
    world.health = ["false"]
    world.write_settings(reboot='"manual"', poll_interval_secs="600")
    engine = Engine(node=world.node())
    engine.step()
    look()
    let_time_pass(world)
    run_until(Engine(node=world.node()), "rebooting")
    world.boot()
    world.health = ["true"]
    world.write_settings(reboot='"automatic"', poll_interval_secs="600")
    live(world)
    look()
    world.release("4.0.0", rollback_index=1)
    due_now(world)
    live(world)
    assert memory_of(world).slots["b"].version == "4.0.0"
    look()
    world.write_settings(reboot='"manual"', poll_interval_secs="600")
    say("rollback")
    say("reset")


def test_the_verbs_of_a_node_give_what_the_page_says(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = Seen()
    a_life(world, seen, capfd)
    for verb, keys in seen.keys.items():
        assert keys == CHAPTERS[verb].keys(), f"{verb}: the page has keys that never came"


def test_a_confirmation_gives_nothing(world: World) -> None:
    world.release("2.0.0", rollback_index=1)
    perform(world.node(), "update", {}, by="ada")
    perform(world.node(), "reboot", {}, by="ada")
    world.boot()
    assert perform(world.node(), "confirm", {}, by="ada") == {}
    assert "confirm" in CHAPTERS


def test_the_verbs_of_permits_give_what_the_page_says(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    if not etcd_programs():
        pytest.skip("no etcd on this machine (package etcd-server)")
    seen = Seen()
    with running_etcd(world.folder / "etcd") as etcd:
        permit = f'[permit]\nkind = "etcd"\nendpoints = ["{etcd.url}"]\n'
        world.write_settings(permit, poll_interval_secs="600")
        first, second = world.node(), world.node()

        def say(verb: str, **options: object) -> None:
            seen.hold(verb, perform(first, verb, options, by="ada"))

        seen.hold("permit-status", shown(world, capfd, "permit", "status"))
        say("permit-set-max", places=2)
        say("permit-set-max", places=1)
        first.permits().acquire("update", version="2.0.0")
        (world.folder / "machine-id").write_text("f" * 32 + "\n")
        second = world.node()
        second.permits().acquire("update", version="2.0.0")
        seen.hold("permit-status", shown(world, capfd, "permit", "status"))
        say("permit-return", holder="0123456789abcdef0123456789abcdef")
        say("permit-return")
        first.permits().close()
        second.permits().close()
    for verb, keys in seen.keys.items():
        assert keys == CHAPTERS[verb].keys(), f"{verb}: the page has keys that never came"


def test_every_verb_is_on_the_page() -> None:
    assert VERBS.keys() | {"config-show"} == CHAPTERS.keys()


def test_a_key_that_the_page_lacks_is_found() -> None:
    with pytest.raises(AssertionError, match="unhold: what is not on the page"):
        Seen().hold("unhold", {"held": True, "what": 1})
    with pytest.raises(AssertionError, match="held is 1, not boolean"):
        Seen().hold("unhold", {"held": 1})
