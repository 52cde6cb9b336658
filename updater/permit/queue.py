"""The queue of a group: names of keys, who is a waiter, who may try. No I/O.

A waiter is a key under a lease. Its place is the key's creation revision, which etcd gives and
nobody can choose; with the lease the key goes, so a dead waiter falls out by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from updater.permit.contract import Waiter
from updater.permit.document import Holder, printable

ROOT: Final = "/bascule/permit"
LEASE_TTL_S: Final = 60  # a waiter that is silent for so long has lost its place
KEEP_ALIVE_S: Final = 20.0  # a third: two signs of life may be lost
AHEAD_MAX: Final = 128  # places counted exactly; behind it a waiter only knows its predecessor
WAITERS_SHOWN_MAX: Final = 1000  # in one status; they are counted beyond it
_WAITER_MAX_BYTES: Final = 2000  # a holder's limits with room for later fields
_TEXT_MAX_BYTES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a waiter may be silent.

    Attributes:
        ttl_s: after so long etcd removes it; etcd raises what is below its own minimum of 2 s.
        keep_alive_s: a sign of life is due after so long.
    """

    ttl_s: int = LEASE_TTL_S
    keep_alive_s: float = KEEP_ALIVE_S


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """The keys of one group in etcd."""

    group: str

    @property
    def document(self) -> bytes:
        """The document of the group."""
        return f"{ROOT}/{self.group}/document".encode()

    @property
    def queue(self) -> bytes:
        """What all waiters' keys begin with."""
        return f"{ROOT}/{self.group}/queue/".encode()

    def waiter(self, node_id: str) -> bytes:
        """The key of one waiter."""
        return self.queue + node_id.encode()

    def waiter_id(self, key: bytes) -> str:
        """The id of the node that waits under `key`."""
        name = key.removeprefix(self.queue).decode(errors="replace")
        return printable(name, max_bytes=_TEXT_MAX_BYTES)


@dataclass(slots=True, kw_only=True)
class Ticket:
    """This node's place in the queue.

    Attributes:
        lease: id of the lease that the key hangs on.
        created: creation revision of the key: the place.
        kept_at: monotonic seconds of the last sign of life.
        is_shared: whether another process of this node made the lease and may still use it.
    """

    lease: int
    created: int
    kept_at: float
    is_shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The waiters before this node.

    Attributes:
        count: how many; `AHEAD_MAX` stands for that many or more.
        predecessor: key of the one right before, None when nobody is.
    """

    count: int
    predecessor: bytes | None


def may_try(ahead: Ahead, *, free: int) -> bool:
    """Tell whether it is this node's turn: the first waiters, as many as places are free."""
    return ahead.count < min(free, AHEAD_MAX)


class _WaiterFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """A waiter's key holds this as JSON; unknown fields are for later versions."""

    host: str = ""
    since: datetime | None = None
    reason: str = ""
    version: str | None = None


def encode_waiter(holder: Holder) -> bytes:
    """Write what a waiter tells of itself: what it would tell as a holder."""
    return msgspec.json.encode(
        _WaiterFields(
            host=holder.host, since=holder.since, reason=holder.reason, version=holder.version
        )
    )


def parse_waiter(node_id: str, data: bytes) -> Waiter:
    """Read a waiter; one that describes itself badly is shown by its id alone."""
    if len(data) > _WAITER_MAX_BYTES:
        return Waiter(id=node_id)
    try:
        fields = msgspec.json.decode(data, type=_WaiterFields)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Waiter(id=node_id)
    version = fields.version
    return Waiter(
        id=node_id,
        host=printable(fields.host, max_bytes=_TEXT_MAX_BYTES),
        since=fields.since,
        reason=printable(fields.reason, max_bytes=_TEXT_MAX_BYTES),
        version=None if version is None else printable(version, max_bytes=_TEXT_MAX_BYTES),
    )
