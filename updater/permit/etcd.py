"""The few words of etcd v3 that permits need, as typed values. No policy, no retries.

Each answer's cluster is checked before the answer is believed. Facts: section 7 of the
reboot-lock reference; zero and empty fields are left out by etcd, hence the defaults.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from updater.permit.errors import PermitUnavailableError

if TYPE_CHECKING:
    from updater.permit.cluster import ClusterGuard
    from updater.permit.wire import Wire

_SILENCE_MIN_S: Final = 0.05  # a socket needs a time-out above 0


class _Header(msgspec.Struct, frozen=True):
    cluster_id: int = 0
    revision: int = 0


class KeyValue(msgspec.Struct, frozen=True):
    """One key as etcd holds it; `lease` is 0 for a key without one."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class Found(msgspec.Struct, frozen=True):
    """What a range found; `count` is of all keys in it, whatever the limit."""

    kvs: tuple[KeyValue, ...] = ()
    count: int = 0


class _Response(msgspec.Struct, frozen=True):
    response_range: Found | None = None


class _TxnAnswer(msgspec.Struct, frozen=True):
    header: _Header
    succeeded: bool = False
    responses: tuple[_Response, ...] = ()


class _LeaseAnswer(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    lease: int = msgspec.field(name="ID", default=0)
    ttl_s: int = msgspec.field(name="TTL", default=0)


class _StreamFailure(msgspec.Struct, frozen=True):
    message: str = ""


class _LeaseLine(msgspec.Struct, frozen=True):
    result: _LeaseAnswer = _LeaseAnswer()
    error: _StreamFailure | None = None


class _WatchAnswer(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: tuple[msgspec.Raw, ...] = ()


class _WatchLine(msgspec.Struct, frozen=True):
    result: _WatchAnswer = _WatchAnswer()
    error: _StreamFailure | None = None


class Order(enum.Enum):
    """By creation: who came first, or who came last, comes first."""

    OLDEST_FIRST = "ASCEND"
    NEWEST_FIRST = "DESCEND"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Read one key, or all that begin with `key`.

    Attributes:
        key: the key, or what the keys begin with.
        is_prefix: which of the two.
        order: of several keys.
        limit: at most so many keys; 0 means all.
        created_before: only keys with a lower creation revision; 0 means all.
        keys_only: leave the values out.
    """

    key: bytes
    is_prefix: bool = False
    order: Order = Order.OLDEST_FIRST
    limit: int = 0
    created_before: int = 0
    keys_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Write a key; `lease` 0 means for ever."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a key; one that is not there is no error."""

    key: bytes


Operation: TypeAlias = Range | Put | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Do it only if nobody wrote `key` since `mod_revision`; 0 means that it does not exist."""

    key: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a transaction did.

    Attributes:
        succeeded: whether the expectation held and the operations were done.
        revision: of the store, after it.
        found: one for each `Range`, in their order.
    """

    succeeded: bool
    revision: int
    found: tuple[Found, ...]


class Watched(enum.Enum):
    """What a watch saw."""

    CHANGED = "changed"  # an event, or the events were compacted away: look again
    SILENT = "silent"  # nothing in the given time


class Etcd:
    """One etcd, as far as permits need it.

    All raise `PermitUnavailableError`, `PermitUnauthorizedError` (wire.py says when) and
    `PermitClusterChangedError`.
    """

    def __init__(self, wire: Wire, guard: ClusterGuard) -> None:
        self._wire = wire
        self._guard = guard

    def look(self, *ranges: Range) -> Done:
        """Read several ranges at one revision; linearizable."""
        answer = self._wire.read("/kv/txn", _txn((), ranges), _TxnAnswer)
        return self._checked(answer)

    def write(self, *operations: Operation, expect: Expect | None = None) -> Done:
        """Do all the operations or none.

        When the answer is lost it is unknown whether they were done: read again.
        """
        expected = () if expect is None else (expect,)
        answer = self._wire.write("/kv/txn", _txn(expected, operations), _TxnAnswer)
        return self._checked(answer)

    def grant(self, ttl_s: int) -> int:
        """Make a lease and return its id; an unused one ends by itself."""
        answer = self._wire.write("/lease/grant", {"TTL": str(ttl_s)}, _LeaseAnswer)
        self._guard.check(answer.header.cluster_id, revision=None)
        return answer.lease

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; tell whether it still lived."""
        line = self._wire.read("/lease/keepalive", {"ID": str(lease)}, _LeaseLine)
        if line.error is not None:
            raise PermitUnavailableError(f"etcd did not renew the lease: {line.error.message}")
        self._guard.check(line.result.header.cluster_id, revision=None)
        return line.result.ttl_s > 0

    def revoke(self, lease: int) -> None:
        """End a lease; its keys go with it. One that is gone answers with an error."""
        self._wire.write("/lease/revoke", {"ID": str(lease)}, _LeaseAnswer)

    def watch(
        self, key: bytes, *, from_revision: int, silence_s: float, only_deletes: bool
    ) -> Watched:
        """Wait for a change of `key` at or after `from_revision`, at most `silence_s` seconds.

        A change that happened before the call is seen too, so nothing is lost between a look
        and a watch.
        """
        create: dict[str, object] = {"key": key, "start_revision": str(from_revision)}
        if only_deletes:
            create["filters"] = ["NOPUT"]
        lines = self._wire.lines(
            "/watch", {"create_request": create}, silence_s=max(silence_s, _SILENCE_MIN_S)
        )
        with contextlib.closing(lines):
            for line in lines:
                if self._is_change(line):
                    return Watched.CHANGED
        return Watched.SILENT

    def _is_change(self, line: bytes) -> bool:
        try:
            answer = msgspec.json.decode(line, type=_WatchLine, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PermitUnavailableError(f"a watch does not answer like etcd: {error}") from error
        if answer.error is not None:
            raise PermitUnavailableError(f"the watch failed: {answer.error.message}")
        if answer.result.canceled and not answer.result.compact_revision:
            raise PermitUnavailableError(f"the watch was cancelled: {answer.result.cancel_reason}")
        self._guard.check(answer.result.header.cluster_id, revision=None)
        return answer.result.canceled or bool(answer.result.events)

    def _checked(self, answer: _TxnAnswer) -> Done:
        self._guard.check(answer.header.cluster_id, revision=answer.header.revision)
        found = tuple(one.response_range for one in answer.responses if one.response_range)
        return Done(succeeded=answer.succeeded, revision=answer.header.revision, found=found)


def _txn(expected: Sequence[Expect], operations: Sequence[Operation]) -> dict[str, object]:
    compare = [
        {
            "target": "MOD",
            "result": "EQUAL",
            "key": one.key,
            "mod_revision": str(one.mod_revision),
        }
        for one in expected
    ]
    return {"compare": compare, "success": [_operation(one) for one in operations]}


def _operation(operation: Operation) -> dict[str, object]:
    match operation:
        case Range():
            return {"request_range": _range(operation)}
        case Put():
            put = {"key": operation.key, "value": operation.value, "lease": str(operation.lease)}
            return {"request_put": put}
        case Delete():
            return {"request_delete_range": {"key": operation.key}}


def _range(wanted: Range) -> dict[str, object]:
    request: dict[str, object] = {"key": wanted.key, "keys_only": wanted.keys_only}
    if wanted.is_prefix:
        end = wanted.key[:-1] + bytes([wanted.key[-1] + 1])  # keys end in "/", never in 0xff
        request |= {
            "range_end": end,
            "limit": str(wanted.limit),
            "sort_target": "CREATE",
            "sort_order": wanted.order.value,
        }
    if wanted.created_before:
        request["max_create_revision"] = str(wanted.created_before - 1)
    return request
