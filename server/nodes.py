"""What nodes last said: the inventory, one row a machine and product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from server.claims import ClaimRefusedError
from server.schema import EVENTS, GRANTS, NODES

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from server.claims import Claim


# Statements of the hot path are made once: making one costs more than SQLite takes to run it.
_THIS: Final = sa.and_(
    NODES.c.product == sa.bindparam("this_product"),
    NODES.c.machine_id == sa.bindparam("this_machine"),
)
_SAID: Final = ("group_name", "board", "version", "slot", "oem", "agent", "boot_id", "last_seen")
_KEPT: Final = ("alias", "state")  # stay as they were when a node leaves them out
_SEEN: Final = (
    NODES.update()
    .where(_THIS)
    .values({name: sa.bindparam(f"said_{name}") for name in _SAID})
    .values({
        name: sa.case(
            (sa.bindparam(f"said_{name}", type_=sa.String) == "", NODES.c[name]),
            else_=sa.bindparam(f"said_{name}"),
        )
        for name in _KEPT
    })
)  # fmt: skip
_WAITS: Final = NODES.update().where(_THIS).values(waits_for=sa.bindparam("reason"))
_STATE: Final = NODES.update().where(_THIS).values(state=sa.bindparam("said_state"))
_ERROR: Final = (
    NODES.update()
    .where(_THIS)
    .values(
        error_code=sa.bindparam("said_code"),
        error_sentence=sa.bindparam("said_sentence"),
        error_at=sa.bindparam("said_at"),
    )
)
_COUNT: Final = sa.select(sa.func.count()).select_from(NODES)


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
        "alias": claim.alias,
        "state": claim.state,
    }
    values = {f"said_{name}": value for name, value in said.items()}
    if connection.execute(_SEEN, _this(claim) | values).rowcount:
        return
    count = connection.execute(_COUNT).scalar_one()
    if count >= nodes_max:
        raise ClaimRefusedError(
            "error-internal", "too-many-nodes", f"the inventory is full with {count} nodes"
        )
    row = {"product": claim.product, "machine_id": claim.machine_id, "first_seen": now_s}
    connection.execute(NODES.insert(), row | said)


def note_state(connection: Connection, claim: Claim, state: str) -> None:
    """Note the state that a stock engine's event means; ours say it themselves."""
    if not claim.state:
        connection.execute(_STATE, _this(claim) | {"said_state": state})


def note_error(
    connection: Connection, claim: Claim, *, code: str, sentence: str, now_s: int | None
) -> None:
    """Note a node's last failure; empty texts and no time clear it."""
    values = {"said_code": code, "said_sentence": sentence, "said_at": now_s}
    connection.execute(_ERROR, _this(claim) | values)


def note_wait(connection: Connection, claim: Claim, reason: str) -> None:
    """Note why a node got nothing at its last check; empty when it got something."""
    connection.execute(_WAITS, _this(claim) | {"reason": reason})


def forget_silent(connection: Connection, *, before_s: int) -> int:
    """Forget nodes not seen since `before_s`, with their grants; return how many."""
    silent = sa.select(NODES.c.machine_id).where(NODES.c.last_seen < before_s)
    connection.execute(GRANTS.delete().where(GRANTS.c.machine_id.in_(silent)))
    return connection.execute(NODES.delete().where(NODES.c.last_seen < before_s)).rowcount


def forget_old_events(connection: Connection, *, keep: int) -> int:
    """Drop all but the newest `keep` events; return how many went."""
    newest = connection.execute(sa.select(sa.func.max(EVENTS.c.id))).scalar() or 0
    return connection.execute(EVENTS.delete().where(EVENTS.c.id <= newest - keep)).rowcount


def _this(claim: Claim) -> dict[str, object]:
    return {"this_product": claim.product, "this_machine": claim.machine_id}
