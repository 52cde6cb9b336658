"""The concurrency limit under simultaneous checks, each through a database handle of its own."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import Connection, event

from server.desk import Desk, open_desk
from server.queries import groups
from server.steering import set_group
from tests.sim.desk import SimNode, nodes, omaha_of, promote, publish

CHECKS = 40


def ask_at_once(desk: Desk, fleet: list[SimNode]) -> list[str]:
    """Let every node ask at the same instant; return what each was told."""
    gate = threading.Barrier(len(fleet))
    told: list[str] = [""] * len(fleet)
    desks = [open_desk(desk.folder, clock=desk.clock) for _ in fleet]

    def ask(index: int) -> None:
        omaha = omaha_of(desks[index])
        gate.wait()
        check = fleet[index].ask(omaha)
        told[index] = check.reason or check.status

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(fleet))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in desks:
        opened.store.close()
    return told


@pytest.mark.parametrize("limit", [1, 5])
def test_forty_simultaneous_checks_get_exactly_as_many_grants_as_allowed(
    desk: Desk, limit: int
) -> None:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    set_group(desk, "default", channel=None, changes={"max_concurrent": limit})
    told = ask_at_once(desk, nodes(CHECKS))
    assert told.count("ok") == limit
    assert told.count("rollout-concurrency") == CHECKS - limit
    with desk.store.reading() as connection:
        (group,) = groups(connection, desk.settings, now_s=desk.now_s())
    assert (group.under_way, group.nodes) == (limit, CHECKS)


def test_one_node_that_asks_forty_times_at_once_takes_one_place(desk: Desk) -> None:
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    set_group(desk, "default", channel=None, changes={"max_concurrent": 1})
    (node,) = nodes(1)
    told = ask_at_once(desk, [replace(node, said=[]) for _ in range(CHECKS)])
    assert told == ["ok"] * CHECKS
    with desk.store.reading() as connection:
        assert groups(connection, desk.settings, now_s=desk.now_s())[0].under_way == 1


def test_counting_and_granting_are_one_immediate_transaction(desk: Desk) -> None:
    """Threads show it by chance only; the statements show it each time."""
    publish(desk, "2.0.0")
    promote(desk, "2.0.0")
    said: list[str] = []
    engine = desk.store._engine

    def hear(_: Connection, __: object, statement: str, *rest: object) -> None:
        del rest
        said.append(" ".join(statement.split()))

    event.listen(engine, "before_cursor_execute", hear)
    event.listen(engine, "commit", lambda _: said.append("COMMIT"))
    assert SimNode("a").ask(omaha_of(desk)).status == "ok"

    begin = said.index("BEGIN IMMEDIATE")
    count = said.index(next(s for s in said if "count(*)" in s and "FROM grants" in s))
    grant = said.index(next(s for s in said if s.startswith("INSERT INTO grants")))
    commit = said.index("COMMIT", begin)
    assert begin < count < grant < commit
