"""What people are shown, read from the database: one function a list.

Each reads within the caller's connection. How it looks is in `views`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from images.release import parse_channel_document
from images.version import parse_version
from server.catalogue import delta_source
from server.errors import NodeUnknownError, ReleaseUnknownError
from server.groups import all_groups
from server.schema import (
    ACTIVITY,
    CHANNEL_DOCUMENTS,
    CHANNELS,
    EVENTS,
    GRANTS,
    NODES,
    PAYLOADS,
    RELEASES,
    ROLLOUTS,
)
from server.views import (
    ActivityView,
    ChannelView,
    DocumentView,
    EventView,
    GrantView,
    GroupView,
    NodeView,
    PayloadView,
    ReleaseView,
    RoleView,
    StopView,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection, RowMapping

    from images.release import ChannelDocument
    from server.contents import Contents
    from server.groups import Group
    from server.settings import Settings

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000  # rows in one answer


def releases(connection: Connection) -> list[ReleaseView]:
    """Return every release, newest version first within product and board."""
    payloads: dict[int, list[PayloadView]] = {}
    for row in connection.execute(PAYLOADS.select().order_by(PAYLOADS.c.format.desc())).mappings():
        payloads.setdefault(row["release_id"], []).append(
            PayloadView(
                sha256=row["sha256"],
                size=row["size"],
                format=row["format"],
                tuf_path=row["tuf_path"],
                delta_from=delta_source(row["tuf_path"]),
            )
        )
    documents = _documents(connection)
    rows = connection.execute(RELEASES.select()).mappings().all()
    rows = sorted(rows, key=lambda row: parse_version(row["version"]), reverse=True)
    rows.sort(key=lambda row: (row["product"], row["board"]))
    return [_release(row, tuple(payloads.get(row["id"], ())), documents) for row in rows]


def release(
    connection: Connection,
    product: str,
    board: str,
    version: str,
    *,
    is_here: Callable[[str], bool],
) -> ReleaseView:
    """Return one release; `is_here` tells by its hash whether a payload's file is there.

    Raises:
        ReleaseUnknownError: it was not published.
    """
    wanted = (product, board, version)
    for view in releases(connection):
        if (view.product, view.board, view.version) == wanted:
            payloads = (replace(one, is_here=is_here(one.sha256)) for one in view.payloads)
            return replace(view, payloads=tuple(payloads))
    raise ReleaseUnknownError(f"release {version} is not published for {product}/{board}")


def channels(connection: Connection) -> list[ChannelView]:
    """Return every channel by name."""
    documents = _documents(connection)
    rows = connection.execute(CHANNELS.select().order_by(CHANNELS.c.name)).mappings()
    return [
        ChannelView(
            name=row["name"],
            base_urls=tuple(row["base_urls"].split()),
            documents=tuple(_document(doc) for doc in documents if doc.channel == row["name"]),
        )
        for row in rows
    ]


def groups(connection: Connection, settings: Settings, *, now_s: int) -> list[GroupView]:
    """Return every group by name; `now_s` tells which grants have run out of time."""
    current = {(doc.channel, doc.product, doc.board): doc.current for doc in _documents(connection)}
    return [_group(connection, group, settings, current, now_s) for group in all_groups(connection)]


def nodes(
    connection: Connection,
    *,
    group: str | None = None,
    version: str | None = None,
    state: str | None = None,
    limit: int = LIMIT_DEFAULT,
    offset: int = 0,
) -> list[NodeView]:
    """Return nodes by alias and machine id, optionally only some."""
    query = NODES.select().order_by(NODES.c.alias, NODES.c.machine_id, NODES.c.product)
    wanted = {NODES.c.group_name: group, NODES.c.version: version, NODES.c.state: state}
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    rows = connection.execute(query.limit(limit).offset(offset)).mappings()
    return [_node(row) for row in rows]


def node(connection: Connection, name: str) -> NodeView:
    """Return the node of this machine id, or the only one of this alias.

    Raises:
        NodeUnknownError: none or several are called so.
    """
    query = NODES.select().where(sa.or_(NODES.c.machine_id == name.lower(), NODES.c.alias == name))
    rows = connection.execute(query.limit(2)).mappings().all()
    if len(rows) != 1:
        found = "no node" if not rows else "more than one node"
        raise NodeUnknownError(f"{found} is called {name!a}")
    return _node(rows[0])


def grants_of(connection: Connection, view: NodeView) -> list[GrantView]:
    """Return what a node was given, newest first, at most `LIMIT_DEFAULT`."""
    query = (
        GRANTS.select()
        .where(GRANTS.c.product == view.product, GRANTS.c.machine_id == view.machine_id)
        .order_by(GRANTS.c.id.desc())
        .limit(LIMIT_DEFAULT)
    )
    return [
        GrantView(
            version=row["version"],
            from_version=row["from_version"],
            group=row["group_name"],
            phase=row["phase"],
            granted=_time(row["granted_at"]),
            ended=_time_or_none(row["ended_at"]),
            code=row["code"],
        )
        for row in connection.execute(query).mappings()
    ]


def events(
    connection: Connection,
    *,
    machine_id: str | None = None,
    before: int | None = None,
    limit: int = LIMIT_DEFAULT,
) -> list[EventView]:
    """Return events, newest first; `before` is the id of the last one seen."""
    same = sa.and_(NODES.c.product == EVENTS.c.product, NODES.c.machine_id == EVENTS.c.machine_id)
    query = sa.select(EVENTS, NODES.c.alias).outerjoin(NODES, same).order_by(EVENTS.c.id.desc())
    if machine_id is not None:
        query = query.where(EVENTS.c.machine_id == machine_id)
    if before is not None:
        query = query.where(EVENTS.c.id < before)
    return [_event(row) for row in connection.execute(query.limit(limit)).mappings()]


def activity(
    connection: Connection, *, before: int | None = None, limit: int = LIMIT_DEFAULT
) -> list[ActivityView]:
    """Return what was done, newest first; `before` is the id of the last one seen."""
    query = ACTIVITY.select().order_by(ACTIVITY.c.id.desc())
    if before is not None:
        query = query.where(ACTIVITY.c.id < before)
    return [
        ActivityView(
            id=row["id"],
            at=_time(row["at"]),
            actor=row["actor"],
            verb=row["verb"],
            subject=row["subject"],
            sentence=row["sentence"],
        )
        for row in connection.execute(query.limit(limit)).mappings()
    ]


def roles(contents: Contents) -> list[RoleView]:
    """Return every signing role as it is published."""
    found = []
    for name, signed in contents.signed_roles().items():
        keys, threshold = contents.keys_of(name)
        found.append(
            RoleView(
                name=name,
                version=signed.version,
                expires=signed.expires,
                keys=len(keys),
                threshold=threshold,
            )
        )
    return found


def _release(
    row: RowMapping, payloads: tuple[PayloadView, ...], documents: Sequence[ChannelDocument]
) -> ReleaseView:
    version = row["version"]
    mine = [doc for doc in documents if (doc.product, doc.board) == (row["product"], row["board"])]
    return ReleaseView(
        product=row["product"],
        board=row["board"],
        version=version,
        rollback_index=row["rollback_index"],
        created=_time(row["created_at"]),
        payloads=payloads,
        current_on=tuple(doc.channel for doc in mine if doc.current == version),
        withdrawn_from=tuple(doc.channel for doc in mine if version in doc.withdrawn),
    )


def _documents(connection: Connection) -> list[ChannelDocument]:
    query = sa.select(CHANNEL_DOCUMENTS.c.document).order_by(
        CHANNEL_DOCUMENTS.c.channel, CHANNEL_DOCUMENTS.c.product, CHANNEL_DOCUMENTS.c.board
    )
    return [parse_channel_document(text.encode()) for text in connection.execute(query).scalars()]


def _document(document: ChannelDocument) -> DocumentView:
    return DocumentView(
        product=document.product,
        board=document.board,
        serial=document.serial,
        current=document.current,
        allowed=tuple(document.allowed),
        withdrawn=document.withdrawn,
        stops=document.stops,
        rollback_floor=document.rollback_floor,
        not_before=document.not_before,
    )


def _group(
    connection: Connection,
    group: Group,
    settings: Settings,
    current: Mapping[tuple[str, str, str], str],
    now_s: int,
) -> GroupView:
    count = sa.func.count()
    in_group = NODES.c.group_name == group.name
    by_kind = sa.select(NODES.c.product, NODES.c.board, NODES.c.version, NODES.c.state, count)
    by_kind = by_kind.where(in_group).group_by(
        NODES.c.product, NODES.c.board, NODES.c.version, NODES.c.state
    )
    versions: dict[str, int] = {}
    states: dict[str, int] = {}
    on_current = 0
    for product, board, version, state, number in connection.execute(by_kind):
        versions[version] = versions.get(version, 0) + number
        states[state or "unknown"] = states.get(state or "unknown", 0) + number
        if current.get((group.channel, product, board)) == version:
            on_current += number
    under_way = sa.select(count).where(
        GRANTS.c.group_name == group.name,
        GRANTS.c.ended_at.is_(None),
        GRANTS.c.progress_at > now_s - group.timeout_s(settings),
    )
    return GroupView(
        name=group.name,
        channel=group.channel,
        paused=group.paused,
        pause_reason=group.pause_reason,
        share_percent=group.share_percent,
        max_concurrent=group.max_concurrent,
        grant_timeout_s=group.timeout_s(settings),
        poll_interval_s=group.poll_s(settings),
        nodes=sum(versions.values()),
        on_current=on_current,
        under_way=connection.execute(under_way).scalar_one(),
        versions=dict(sorted(versions.items(), key=lambda item: parse_version(item[0]))),
        states=dict(sorted(states.items())),
        stops=_stops(connection, group.name),
    )


def _stops(connection: Connection, group: str) -> tuple[StopView, ...]:
    query = (
        ROLLOUTS.select()
        .where(ROLLOUTS.c.group_name == group, ROLLOUTS.c.stopped_at.is_not(None))
        .order_by(ROLLOUTS.c.stopped_at.desc())
    )
    return tuple(
        StopView(
            version=row["version"],
            board=row["board"],
            code=row["stop_code"],
            sentence=row["stop_sentence"],
            at=_time(row["stopped_at"]),
        )
        for row in connection.execute(query).mappings()
    )


def _node(row: RowMapping) -> NodeView:
    return NodeView(
        machine_id=row["machine_id"],
        product=row["product"],
        alias=row["alias"],
        group=row["group_name"],
        board=row["board"],
        version=row["version"],
        slot=row["slot"],
        state=row["state"],
        oem=row["oem"],
        agent=row["agent"],
        first_seen=_time(row["first_seen"]),
        last_seen=_time(row["last_seen"]),
        error_code=row["error_code"],
        error_sentence=row["error_sentence"],
        error_at=_time_or_none(row["error_at"]),
        waits_for=row["waits_for"],
    )


def _event(row: RowMapping) -> EventView:
    return EventView(
        id=row["id"],
        at=_time(row["at"]),
        machine_id=row["machine_id"],
        alias=row["alias"] or "",
        group=row["group_name"],
        version=row["version"],
        type=row["type"],
        result=row["result"],
        error_code=row["error_code"],
        code=row["bascule_code"],
        sentence=row["sentence"],
        release=row["release"],
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _time_or_none(seconds: int | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
