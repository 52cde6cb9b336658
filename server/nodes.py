"""What nodes last said: the inventory, one row a machine and product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from server.claims import ClaimRefusedError
from server.schema import EVENTS, GRANTS, NODES

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import ColumnElement

    from server.claims import Claim


def register(connection: Connection, claim: Claim, *, now_s: int, nodes_max: int) -> None:
    """Note what a node says; an alias or a state that it leaves out stays as it was.

    Raises:
        ClaimRefusedError: the node is new and the inventory is full.
    """
    said: dict[str, object] = {
        "group_name": claim.group_name,
        "board": claim.board,
        "version": claim.running.text,
        "slot": claim.slot,
        "oem": claim.oem,
        "agent": claim.agent,
        "boot_id": claim.boot_id,
        "last_seen": now_s,
    }
    if claim.alias:
        said["alias"] = claim.alias
    if claim.state:
        said["state"] = claim.state
    known = connection.execute(NODES.update().where(_is(claim)).values(**said))
    if known.rowcount:
        return
    count = connection.execute(sa.select(sa.func.count()).select_from(NODES)).scalar_one()
    if count >= nodes_max:
        raise ClaimRefusedError(
            "error-internal", "too-many-nodes", f"the inventory is full with {count} nodes"
        )
    row: dict[str, object] = {
        "product": claim.product,
        "machine_id": claim.machine_id,
        "alias": "",
        "state": "",
        "first_seen": now_s,
    }
    connection.execute(NODES.insert().values(row | said))


def note_state(connection: Connection, claim: Claim, state: str) -> None:
    """Note the state that a stock engine's event means; ours say it themselves."""
    if not claim.state:
        connection.execute(NODES.update().where(_is(claim)).values(state=state))


def note_error(
    connection: Connection, claim: Claim, *, code: str, sentence: str, now_s: int | None
) -> None:
    """Note a node's last failure; empty texts and no time clear it."""
    connection.execute(
        NODES.update()
        .where(_is(claim))
        .values(error_code=code, error_sentence=sentence, error_at=now_s)
    )


def note_wait(connection: Connection, claim: Claim, reason: str) -> None:
    """Note why a node got nothing at its last check; empty when it got something."""
    connection.execute(NODES.update().where(_is(claim)).values(waits_for=reason))


def forget_silent(connection: Connection, *, before_s: int) -> int:
    """Forget nodes not seen since `before_s`, with their grants; return how many."""
    silent = sa.select(NODES.c.machine_id).where(NODES.c.last_seen < before_s)
    connection.execute(GRANTS.delete().where(GRANTS.c.machine_id.in_(silent)))
    return connection.execute(NODES.delete().where(NODES.c.last_seen < before_s)).rowcount


def forget_old_events(connection: Connection, *, keep: int) -> int:
    """Drop all but the newest `keep` events; return how many went."""
    newest = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
    return connection.execute(EVENTS.delete().where(EVENTS.c.id <= newest - keep)).rowcount


def _is(claim: Claim) -> ColumnElement[bool]:
    return sa.and_(NODES.c.product == claim.product, NODES.c.machine_id == claim.machine_id)
