"""What operators do with groups: each verb is one transaction that leaves a line of activity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from server.activity import record
from server.errors import ChannelUnknownError
from server.groups import change_group, get_group, insert_group
from server.schema import CHANNELS
from server.stops import lift_stops

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from server.desk import Desk
    from server.groups import Group


def create_group(desk: Desk, name: str, *, channel: str, changes: dict[str, object]) -> Group:
    """Make a group that follows a channel.

    Raises:
        GroupExistsError: there is one of this name.
        ChannelUnknownError: there is no such channel.
        NameInvalidError: it cannot be called so.
    """
    with desk.store.writing() as connection:
        _check_channel(connection, channel)
        insert_group(connection, name, channel=channel, now_s=desk.now_s())
        group = change_group(connection, name, changes)
        record(connection, desk.now_s(), "group create", name, f"it follows {channel}")
        return group


def set_group(desk: Desk, name: str, *, channel: str | None, changes: dict[str, object]) -> Group:
    """Change the channel or the policy of a group.

    Raises:
        GroupUnknownError: there is none of this name.
        ChannelUnknownError: there is no such channel.
    """
    with desk.store.writing() as connection:
        if channel is not None:
            _check_channel(connection, channel)
            changes = {**changes, "channel": channel}
        group = change_group(connection, name, changes)
        said = ", ".join(f"{key} = {value}" for key, value in changes.items()) or "nothing"
        record(connection, desk.now_s(), "group set", name, said)
        return group


def pause_group(desk: Desk, name: str, *, reason: str) -> Group:
    """Hold back new grants.

    Raises:
        GroupUnknownError: there is none of this name.
    """
    with desk.store.writing() as connection:
        group = change_group(connection, name, {"paused": True, "pause_reason": reason[:200]})
        record(connection, desk.now_s(), "group pause", name, reason or "no reason was given")
        return group


def resume_group(desk: Desk, name: str) -> list[str]:
    """End a pause and lift automatic stops; return the versions that were stopped.

    Raises:
        GroupUnknownError: there is none of this name.
    """
    with desk.store.writing() as connection:
        get_group(connection, name)
        change_group(connection, name, {"paused": False, "pause_reason": ""})
        lifted = lift_stops(connection, name)
        said = f"stops of {', '.join(lifted)} lifted" if lifted else "it goes on"
        record(connection, desk.now_s(), "group resume", name, said)
        return lifted


def _check_channel(connection: Connection, name: str) -> None:
    query = sa.select(CHANNELS.c.name).where(CHANNELS.c.name == name)
    if connection.execute(query).first() is None:
        raise ChannelUnknownError(f"there is no channel {name!a}")
