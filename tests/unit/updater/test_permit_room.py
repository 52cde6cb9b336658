"""The room as a whole: lazy imports, codes, the keeper of nobody, the queue's small rules."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from updater.errors import UpdaterError
from updater.permit import errors
from updater.permit.contract import Node, Permit, WaitReason
from updater.permit.errors import PermitError, PermitKeeperError, PermitUnavailableError
from updater.permit.none import NoPermits
from updater.permit.queue import AHEAD_MAX, Ahead, GroupKeys, may_try, parse_waiter
from updater.permit.wire import prefix_of

NODE = Node(id="a", host="A")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROOM = Path(errors.__file__).parent


def test_opening_a_keeper_loads_requests_and_importing_the_room_does_not() -> None:
    program = """
import sys
import updater.permit, updater.permit.keeper, updater.permit.none
assert "requests" not in sys.modules, "import"
from pathlib import Path
from updater.permit import *
open_permits(EtcdSettings(endpoints=("http://127.0.0.1:1",)), node=Node(id="a", host="A"),
             memory=FileClusterMemory(Path("/nonexistent/mark")))
assert "requests" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def every_error() -> list[type[UpdaterError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, PermitError)
    ]


def test_every_error_has_its_own_code_hint_and_status() -> None:
    kinds = every_error()

    assert len({kind.code for kind in kinds}) == len({kind.hint for kind in kinds}) == len(kinds)
    assert all(kind.code.startswith("permit") for kind in kinds)
    assert all(kind.exit_status in {1, 2, 3, 4, 6} for kind in kinds)


def test_the_specification_names_every_code_and_every_key() -> None:
    text = (ROOM / "README.md").read_text()

    codes = {kind.code for kind in every_error()} | {reason.value for reason in WaitReason}
    assert {code for code in codes - {"permit"} if f"`{code}`" not in text} == set()
    keys = GroupKeys("<group>")
    assert keys.document.decode() in text
    assert keys.waiter("<id>").decode() in text


def test_a_node_without_a_keeper_is_always_permitted() -> None:
    keeper = NoPermits(node=NODE, now=lambda: NOON)

    permit = keeper.acquire("update", version="2.0.0")

    assert isinstance(permit, Permit)
    assert (permit.holder.id, permit.holder.since) == ("a", NOON)
    assert keeper.release() is False
    assert keeper.status().holders == ()


def test_a_node_without_a_keeper_has_nothing_to_steer() -> None:
    keeper = NoPermits(node=NODE, now=lambda: NOON)

    with pytest.raises(PermitKeeperError, match=r"permit\.kind is none"):
        keeper.set_max(2)
    with pytest.raises(PermitKeeperError):
        keeper.return_for("b")


@pytest.mark.parametrize(
    ("version", "prefix"),
    [("3.5.1", "/v3"), ("3.4.23", "/v3"), ("3.3.27", "/v3beta"), ("3.2.0", "/v3alpha")],
)
def test_the_prefix_follows_the_version(version: str, prefix: str) -> None:
    assert prefix_of(version) == prefix


def test_a_version_that_is_none_is_no_etcd() -> None:
    with pytest.raises(PermitUnavailableError, match="'nginx'"):
        prefix_of("nginx")


@pytest.mark.parametrize(
    ("before", "free", "expected"),
    [
        (0, 0, False),
        (0, 1, True),
        (1, 1, False),
        (1, 2, True),
        (AHEAD_MAX, 1000, False),
        (AHEAD_MAX - 1, 1000, True),
    ],
)
def test_as_many_first_waiters_may_try_as_places_are_free(
    before: int, free: int, *, expected: bool
) -> None:
    assert may_try(Ahead(count=before, predecessor=None), free=free) is expected


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"[" * 90000, b'{"host":1}', b'{"host":"' + b"x" * 9000 + b'"}']
)
def test_a_waiter_that_describes_itself_badly_is_shown_by_its_id(data: bytes) -> None:
    waiter = parse_waiter("a", data)

    assert (waiter.id, waiter.host, waiter.reason) == ("a", "", "")


def test_a_waiter_cannot_steer_the_terminal_it_is_shown_on() -> None:
    data = json.dumps({"host": "\x1b[2J", "reason": "a\nb", "later": 1}).encode()

    waiter = parse_waiter("a", data)

    assert (waiter.host, waiter.reason) == (" [2J", "a b")
