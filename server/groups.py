"""Groups: nodes that share a channel and a rollout policy, as rows and as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from images.release import NAME_PATTERN
from server.errors import GroupExistsError, GroupUnknownError, NameInvalidError
from server.rollout import Policy
from server.schema import GROUPS

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, RowMapping

    from server.settings import Settings

_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
_ONE: Final = GROUPS.select().where(GROUPS.c.name == sa.bindparam("this_name"))  # made once


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group as operators set it.

    Attributes:
        name: what nodes send as their track.
        channel: where its releases come from.
        paused: whether new grants are held back.
        pause_reason: what the operator said.
        share_percent: how much of the group may have a release, 0 to 100.
        max_concurrent: how many may be under way at once; None for any number.
        grant_timeout_s: when a silent grant frees its place; None for the desk's setting.
        poll_interval_s: how often its nodes should ask; None for the desk's setting.
    """

    name: str
    channel: str
    paused: bool
    pause_reason: str
    share_percent: float
    max_concurrent: int | None
    grant_timeout_s: int | None
    poll_interval_s: int | None

    def poll_s(self, settings: Settings) -> int | None:
        """Return how often its nodes should ask, in seconds; None leaves it to them."""
        return self.poll_interval_s or settings.poll_interval_secs or None

    def timeout_s(self, settings: Settings) -> int:
        """Return when a grant without progress frees its place, in seconds."""
        return self.grant_timeout_s or settings.grant_timeout_secs

    def policy(self) -> Policy:
        """Return what decisions need of it."""
        return Policy(
            paused=self.paused,
            pause_reason=self.pause_reason,
            share=self.share_percent / 100,
            max_concurrent=self.max_concurrent,
        )


def find_group(connection: Connection, name: str) -> Group | None:
    """Return the group of this name, or None."""
    row = connection.execute(_ONE, {"this_name": name}).mappings().first()
    return None if row is None else _group(row)


def get_group(connection: Connection, name: str) -> Group:
    """Return the group of this name.

    Raises:
        GroupUnknownError: there is none.
    """
    group = find_group(connection, name)
    if group is None:
        raise GroupUnknownError(f"there is no group {name!a}")
    return group


def all_groups(connection: Connection) -> list[Group]:
    """Return every group by name."""
    rows = connection.execute(GROUPS.select().order_by(GROUPS.c.name)).mappings()
    return [_group(row) for row in rows]


def insert_group(
    connection: Connection,
    name: str,
    *,
    channel: str,
    now_s: int,
    share_percent: float = 100.0,
    max_concurrent: int | None = None,
) -> None:
    """Make a group.

    Raises:
        NameInvalidError: it cannot be called so.
        GroupExistsError: there is one of this name.
    """
    if not _NAME.fullmatch(name):
        raise NameInvalidError(f"a group cannot be called {name!a}")
    if find_group(connection, name) is not None:
        raise GroupExistsError(f"there is a group {name} already")
    connection.execute(
        GROUPS.insert().values(
            name=name,
            channel=channel,
            share_percent=share_percent,
            max_concurrent=max_concurrent,
            created_at=now_s,
        )
    )


def change_group(connection: Connection, name: str, changes: dict[str, object]) -> Group:
    """Set columns of a group and return it as it is then.

    Args:
        connection: a writing one.
        name: which group.
        changes: attribute names of `Group` to values, both checked by the caller.

    Raises:
        GroupUnknownError: there is none of this name.
    """
    get_group(connection, name)
    if changes:
        connection.execute(GROUPS.update().where(GROUPS.c.name == name).values(**changes))
    return get_group(connection, name)


def _group(row: RowMapping) -> Group:
    return Group(
        name=row["name"],
        channel=row["channel"],
        paused=row["paused"],
        pause_reason=row["pause_reason"],
        share_percent=row["share_percent"],
        max_concurrent=row["max_concurrent"],
        grant_timeout_s=row["grant_timeout_s"],
        poll_interval_s=row["poll_interval_s"],
    )
