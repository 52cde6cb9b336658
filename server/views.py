"""What people are shown, as values: the same for the commands, the API and the dashboard.

Times have a zone. Where they are read from the database is in `queries`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Rows of a list, and what to ask for the next ones with; None when these were the last."""

    items: list[T]
    next: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadView:
    """A payload file: its hash, bytes, container format and TUF path (empty: stock only).

    `delta_from` is the version that a delta starts from, empty for a full payload; `is_here` tells
    whether its file is on this server, None where nobody looked.
    """

    sha256: str
    size: int
    format: int
    tuf_path: str
    delta_from: str = ""
    is_here: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseView:
    """A release, with the channels on which it is current and those it was withdrawn from."""

    product: str
    board: str
    version: str
    rollback_index: int
    created: datetime
    payloads: tuple[PayloadView, ...]
    current_on: tuple[str, ...]
    withdrawn_from: tuple[str, ...]

    @property
    def full_size(self) -> int:
        """Bytes of the full payload that was signed; 0 when there is none."""
        signed = (one for one in self.payloads if one.tuf_path and not one.delta_from)
        return next((one.size for one in signed), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentView:
    """What a channel says for one product and board."""

    product: str
    board: str
    serial: int
    current: str
    allowed: tuple[str, ...]
    withdrawn: tuple[str, ...]
    stops: tuple[str, ...]
    rollback_floor: int
    not_before: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelView:
    """A channel: where its payloads lie besides here, and its documents."""

    name: str
    base_urls: tuple[str, ...]
    documents: tuple[DocumentView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopView:
    """A rollout that was stopped in a group, and why."""

    version: str
    board: str
    code: str
    sentence: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A group: its policy, its nodes by version and state, who is under way, what is stopped."""

    name: str
    channel: str
    paused: bool
    pause_reason: str
    share_percent: float
    max_concurrent: int | None
    grant_timeout_s: int
    poll_interval_s: int | None
    nodes: int
    on_current: int
    under_way: int
    versions: Mapping[str, int]
    states: Mapping[str, int]
    stops: tuple[StopView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as it last spoke, and what it has been given last."""

    machine_id: str
    product: str
    alias: str
    group: str
    board: str
    version: str
    slot: str
    state: str
    oem: str
    agent: str
    first_seen: datetime
    last_seen: datetime
    error_code: str
    error_sentence: str
    error_at: datetime | None
    waits_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantView:
    """Leave that a node was given to take a release."""

    version: str
    from_version: str
    group: str
    phase: str
    granted: datetime
    ended: datetime | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something a node reported; `id` grows with time."""

    id: int
    at: datetime
    machine_id: str
    alias: str
    group: str
    version: str
    type: int
    result: int
    error_code: int | None
    code: str
    sentence: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityView:
    """Something a person did here, or the server by itself."""

    id: int
    at: datetime
    actor: str
    verb: str
    subject: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """A signing role: its version and until when its signature holds."""

    name: str
    version: int
    expires: datetime
    keys: int
    threshold: int


def costs(
    releases: Sequence[ReleaseView],
) -> list[tuple[str, list[str], list[tuple[str, list[int]]]]]:
    """Return what it costs to come to each release, for each product and board that has deltas.

    Each is a title, the versions that deltas start from (newest first, as the releases are), and a
    row for each release: its version, then the bytes of the full payload and of the delta from each
    of these versions, 0 where there is none.
    """
    boards: dict[str, list[ReleaseView]] = {}
    for view in releases:
        boards.setdefault(f"{view.product}/{view.board}", []).append(view)
    found = []
    for title, views in boards.items():
        deltas = {
            (view.version, payload.delta_from): payload.size
            for view in views
            for payload in view.payloads
            if payload.delta_from
        }
        starts = {source for _, source in deltas}
        sources = [view.version for view in views if view.version in starts]
        rows = [
            (
                view.version,
                [view.full_size, *(deltas.get((view.version, source), 0) for source in sources)],
            )
            for view in views
        ]
        if sources:
            found.append((title, sources, rows))
    return found
