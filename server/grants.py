"""Grants: which node is under way with which release. Rows; who gets one is in `rollout`.

A grant holds a place in its group until it ends: complete, failed, deferred, superseded, or
expired after a time without a sign of progress. All functions work inside the caller's writing
transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from server.schema import GRANTS

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from server.claims import Claim

GRANTED: Final = "granted"
DOWNLOADING: Final = "downloading"
DOWNLOADED: Final = "downloaded"
INSTALLED: Final = "installed"
COMPLETE: Final = "complete"
FAILED: Final = "failed"
FAILED_TRIAL: Final = "failed-trial"
SUPERSEDED: Final = "superseded"
EXPIRED: Final = "expired"
DEFERRED: Final = "deferred"  # the node itself put it off


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    """One grant.

    Attributes:
        id: its row.
        group_name: where it holds a place.
        board: for which board.
        version: which release.
        from_version: what the node ran when it got the grant.
        phase: a constant of this module.
        active: whether it still holds its place.
    """

    id: int
    group_name: str
    board: str
    version: str
    from_version: str
    phase: str
    active: bool


_NEWEST: Final = (  # made once: it runs with every check
    sa.select(GRANTS)
    .where(
        GRANTS.c.product == sa.bindparam("this_product"),
        GRANTS.c.machine_id == sa.bindparam("this_machine"),
    )
    .order_by(GRANTS.c.id.desc())
    .limit(1)
)


def newest(connection: Connection, claim: Claim) -> GrantRow | None:
    """Return the last grant of a node, active or ended, or None."""
    key = {"this_product": claim.product, "this_machine": claim.machine_id}
    row = connection.execute(_NEWEST, key).mappings().first()
    if row is None:
        return None
    return GrantRow(
        id=row["id"],
        group_name=row["group_name"],
        board=row["board"],
        version=row["version"],
        from_version=row["from_version"],
        phase=row["phase"],
        active=row["ended_at"] is None,
    )


def failed_trial_of(connection: Connection, claim: Claim, version: str) -> bool:
    """Tell whether this release was tried on this node and did not hold."""
    query = sa.select(GRANTS.c.id).where(
        GRANTS.c.product == claim.product,
        GRANTS.c.machine_id == claim.machine_id,
        GRANTS.c.version == version,
        GRANTS.c.phase == FAILED_TRIAL,
    )
    return connection.execute(query.limit(1)).first() is not None


def expire(connection: Connection, group_name: str, *, timeout_s: int, now_s: int) -> int:
    """End the group's grants that showed no progress for `timeout_s`; return how many."""
    result = connection.execute(
        GRANTS.update()
        .where(
            GRANTS.c.group_name == group_name,
            GRANTS.c.ended_at.is_(None),
            GRANTS.c.progress_at <= now_s - timeout_s,
        )
        .values(phase=EXPIRED, ended_at=now_s)
    )
    return result.rowcount


def count_active(connection: Connection, group_name: str) -> int:
    """Return how many places of the group are taken."""
    query = sa.select(sa.func.count()).where(
        GRANTS.c.group_name == group_name, GRANTS.c.ended_at.is_(None)
    )
    return connection.execute(query).scalar_one()


def give(  # one row
    connection: Connection,
    claim: Claim,
    version: str,
    *,
    now_s: int,
) -> None:
    """Give a node a place; the caller has counted in this same transaction."""
    connection.execute(
        GRANTS.insert().values(
            product=claim.product,
            machine_id=claim.machine_id,
            group_name=claim.group_name,
            board=claim.board,
            version=version,
            from_version=claim.running.text,
            phase=GRANTED,
            granted_at=now_s,
            progress_at=now_s,
        )
    )


def advance(connection: Connection, grant: GrantRow, *, phase: str | None, now_s: int) -> None:
    """Note a sign of progress, and the phase it brought if it is another one."""
    values: dict[str, object] = {"progress_at": now_s}
    if phase is not None:
        values["phase"] = phase
    connection.execute(GRANTS.update().where(GRANTS.c.id == grant.id).values(**values))


def forget_ended(connection: Connection, *, before_s: int) -> int:
    """Drop grants that ended before; a failed trial stays as long as its node is known."""
    result = connection.execute(
        GRANTS.delete().where(GRANTS.c.ended_at < before_s, GRANTS.c.phase != FAILED_TRIAL)
    )
    return result.rowcount


def end(connection: Connection, grant: GrantRow, *, phase: str, code: str, now_s: int) -> None:
    """End a grant, or correct how one ended: an expired one may yet succeed or fail."""
    connection.execute(
        GRANTS.update()
        .where(GRANTS.c.id == grant.id)
        .values(phase=phase, code=code, ended_at=now_s)
    )
