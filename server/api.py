"""The read-only REST API, mounted at /api. Changes are made by the commands alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse

from server import queries
from server.desk import Desk
from server.errors import DatabaseError, NodeUnknownError, ServerError
from server.freshness import Freshness
from server.queries import LIMIT_DEFAULT, LIMIT_MAX
from server.views import (
    ActivityView,
    ChannelView,
    EventView,
    GrantView,
    GroupView,
    NodeView,
    Page,
    ReleaseView,
    RoleView,
)

_ID_MAX: Final = 2**63 - 1  # what the database counts with

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="rows in the answer")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="rows left out before")]
Before = Annotated[int | None, Query(ge=1, le=_ID_MAX, description="only rows with a lower id")]
Text = Annotated[str | None, Query(max_length=64)]
NodeName = Annotated[str, Path(max_length=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetails:
    """A node with what it was given and what it reported lately, newest first."""

    node: NodeView
    grants: list[GrantView]
    events: list[EventView]


class _Endpoints:
    """One method a path; each reads the database in a thread."""

    def __init__(self, desk: Desk, freshness: Freshness) -> None:
        self._desk = desk
        self._freshness = freshness

    def groups(self) -> Page[GroupView]:
        """Groups with their policy, their nodes by version, and what is stopped."""
        with self._desk.store.reading() as connection:
            settings, now_s = self._desk.settings, self._desk.now_s()
            return Page(items=queries.groups(connection, settings, now_s=now_s))

    def channels(self) -> Page[ChannelView]:
        """Channels and their documents."""
        with self._desk.store.reading() as connection:
            return Page(items=queries.channels(connection))

    def releases(self) -> Page[ReleaseView]:
        """Releases, newest version first."""
        with self._desk.store.reading() as connection:
            return Page(items=queries.releases(connection))

    def roles(self) -> Page[RoleView]:
        """Signing roles and until when their signatures hold."""
        return Page(items=self._freshness.roles())

    def nodes(
        self,
        *,
        group: Text = None,
        version: Text = None,
        state: Text = None,
        limit: Limit = LIMIT_DEFAULT,
        offset: Offset = 0,
    ) -> Page[NodeView]:
        """Nodes as they last spoke; `next` is the offset to go on with."""
        with self._desk.store.reading() as connection:
            found = queries.nodes(
                connection, group=group, version=version, state=state, limit=limit, offset=offset
            )
        return Page(items=found, next=offset + limit if len(found) == limit else None)

    def node(self, name: NodeName) -> NodeDetails:
        """One node, by machine id or alias."""
        with self._desk.store.reading() as connection:
            found = queries.node(connection, name)
            return NodeDetails(
                node=found,
                grants=queries.grants_of(connection, found),
                events=queries.events(connection, machine_id=found.machine_id),
            )

    def events(
        self, machine_id: Text = None, before: Before = None, limit: Limit = LIMIT_DEFAULT
    ) -> Page[EventView]:
        """What nodes reported, newest first; `next` is the `before` to go on with."""
        with self._desk.store.reading() as connection:
            found = queries.events(connection, machine_id=machine_id, before=before, limit=limit)
        return Page(items=found, next=found[-1].id if len(found) == limit else None)

    def activity(self, before: Before = None, limit: Limit = LIMIT_DEFAULT) -> Page[ActivityView]:
        """What people did here and the server by itself; `next` is the `before` to go on with."""
        with self._desk.store.reading() as connection:
            found = queries.activity(connection, before=before, limit=limit)
        return Page(items=found, next=found[-1].id if len(found) == limit else None)


def build_api(desk: Desk, freshness: Freshness) -> FastAPI:
    """Return the API of a desk, without its own documentation pages (they load from a CDN)."""
    api = FastAPI(title="bascule", version="1", docs_url=None, redoc_url=None)
    api.add_exception_handler(ServerError, _error_answer)
    endpoints = _Endpoints(desk, freshness)
    for path, endpoint in (
        ("/groups", endpoints.groups),
        ("/channels", endpoints.channels),
        ("/releases", endpoints.releases),
        ("/roles", endpoints.roles),
        ("/nodes", endpoints.nodes),
        ("/nodes/{name}", endpoints.node),
        ("/events", endpoints.events),
        ("/activity", endpoints.activity),
    ):
        api.add_api_route(path, endpoint, methods=["GET"])
    return api


def _error_answer(_: Request, error: Exception) -> JSONResponse:
    status = 404 if isinstance(error, NodeUnknownError) else 500
    if isinstance(error, DatabaseError):
        status = 503
    code = error.code if isinstance(error, ServerError) else "internal"
    hint = error.hint if isinstance(error, ServerError) else ""
    return JSONResponse({"code": code, "message": str(error), "hint": hint}, status_code=status)
