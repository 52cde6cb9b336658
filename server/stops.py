"""Rollouts of a release into a group: begun, and stopped when the release proved bad. Rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from server.schema import ROLLOUTS

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import ColumnElement


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutKey:
    """Which release goes where."""

    group_name: str
    product: str
    board: str
    version: str

    def _matches(self) -> ColumnElement[bool]:
        return sa.and_(
            ROLLOUTS.c.group_name == self.group_name,
            ROLLOUTS.c.product == self.product,
            ROLLOUTS.c.board == self.board,
            ROLLOUTS.c.version == self.version,
        )

    def begin(self, connection: Connection, *, now_s: int) -> bool:
        """Note that the rollout has begun; tell whether it is new."""
        row = {
            "group_name": self.group_name,
            "product": self.product,
            "board": self.board,
            "version": self.version,
            "started_at": now_s,
        }
        result = connection.execute(insert(ROLLOUTS).values(row).on_conflict_do_nothing())
        return result.rowcount == 1

    def stopped_because(self, connection: Connection) -> str:
        """Return why it is stopped, for people; empty when it is not."""
        query = sa.select(ROLLOUTS.c.stop_sentence).where(
            self._matches(), ROLLOUTS.c.stopped_at.is_not(None)
        )
        return connection.execute(query).scalar() or ""

    def stop(self, connection: Connection, *, code: str, sentence: str, now_s: int) -> bool:
        """Stop it; the first reason stays. Tell whether it was going on."""
        self.begin(connection, now_s=now_s)
        result = connection.execute(
            ROLLOUTS.update()
            .where(self._matches(), ROLLOUTS.c.stopped_at.is_(None))
            .values(stop_code=code, stop_sentence=sentence, stopped_at=now_s)
        )
        return result.rowcount == 1


def lift_stops(connection: Connection, group_name: str) -> list[str]:
    """Let the group's stopped rollouts go on; return their versions."""
    stopped = sa.and_(ROLLOUTS.c.group_name == group_name, ROLLOUTS.c.stopped_at.is_not(None))
    versions = connection.execute(sa.select(ROLLOUTS.c.version).where(stopped)).scalars().all()
    connection.execute(
        ROLLOUTS.update().where(stopped).values(stop_code="", stop_sentence="", stopped_at=None)
    )
    return sorted(versions)
