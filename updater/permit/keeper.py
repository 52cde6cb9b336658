"""Permits of a group in etcd: one document, compare-and-swap, a queue, a watch.

README.md is the specification. The rules that keep the promise "never more than `max` by our
doing":

1. The document is changed only by compare-and-swap on its modification revision.
2. A permit is granted only by a write of our own that succeeded, also to a node that holds one
   already: so a release of ours that was still on its way can no longer take the place away.
3. After a write whose answer was lost the document is read again; our id in it decides. A
   release that finds nothing to release still writes when an acquire may be on its way.
4. Answers of another cluster, or of one that went back in time, are never believed.

No keys here (store.py), no HTTP (wire.py), no decision to reboot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from typing_extensions import override

from updater.permit.contract import (
    GroupStatus,
    MaxChange,
    Node,
    Pace,
    Permit,
    PermitKeeper,
    Waiting,
    WaitReason,
)
from updater.permit.document import (
    Holder,
    PermitDocument,
    checked_id,
    checked_max,
    make_holder,
)
from updater.permit.errors import (
    PermitContendedError,
    PermitNotHeldError,
    PermitUnavailableError,
)
from updater.permit.queue import AHEAD_MAX, Ahead, may_try
from updater.permit.store import GroupStore, Seen, Target

log = logging.getLogger(__name__)

TRIES_MAX: Final = 12  # looks and swaps in one call; each swap lost was somebody's success
TRY_TIME_S: Final = 60.0  # no new try after this: a call ends, whatever etcd does
SWAP_PAUSE_S: Final = 0.02  # after the first lost swap; doubles, with full jitter
SWAP_PAUSE_MAX_S: Final = 1.0
WAIT_MAX_S: Final = 60.0  # the poll that finds what a silent watch did not tell
BACK_OFF_S: Final = 1.0  # after the first failure; doubles
BACK_OFF_MAX_S: Final = 30.0
_NAMES_SHOWN: Final = 5  # holders in a sentence


class _BackOff:
    """Growing pauses with jitter while something fails."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._failures = 0

    def failed(self) -> None:
        """Make the next pause longer."""
        self._failures = min(self._failures + 1, 16)

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0

    def pause(self, *, until: float) -> None:
        """Sleep, not beyond `until`."""
        longest = min(BACK_OFF_S * 2.0 ** max(0, self._failures - 1), BACK_OFF_MAX_S)
        pause_s = longest * self._pace.chance.uniform(0.5, 1.0)
        self._pace.sleep(max(0.0, min(pause_s, until - self._pace.monotonic())))


class _Tries:
    """Bounds one call: so many looks and swaps, so much time."""

    def __init__(self, pace: Pace, store: GroupStore) -> None:
        self._pace = pace
        self._store = store
        self._until = pace.monotonic() + TRY_TIME_S
        self._count = 0

    def begin(self) -> None:
        """Begin a try, after a pause when it is not the first.

        Raises:
            PermitUnavailableError: there were enough, and the last write's answer was lost.
            PermitContendedError: there were enough, and others won each time.
        """
        if self._count:
            longest = min(SWAP_PAUSE_S * 2.0**self._count, SWAP_PAUSE_MAX_S)
            self._pace.sleep(self._pace.chance.uniform(0, longest))
        if self._count == TRIES_MAX or self._pace.monotonic() > self._until:
            if self._store.lost_answer:
                raise PermitUnavailableError(self._store.lost_answer)
            raise PermitContendedError(f"others changed the document before us {self._count} times")
        self._count += 1


class EtcdPermits(PermitKeeper):
    """Keeps the contract with one document and one queue in etcd."""

    def __init__(
        self,
        *,
        store: GroupStore,
        group: str,
        node: Node,
        initial_max: int,
        pace: Pace,
        on_close: Callable[[], None],
    ) -> None:
        """Send nothing yet; `open_permits` builds the parts.

        Args:
            store: the group's keys.
            group: its name.
            node: who asks.
            initial_max: places of a group that does not exist yet.
            pace: clocks and chance.
            on_close: lets go of what the store stands on.

        Raises:
            PermitSettingsError: the node's id cannot be a holder's.
            PermitMaxError: `initial_max` is no number of places.
        """
        self._store = store
        self._group = group
        self._node = Node(id=checked_id(node.id), host=node.host)
        self._initial_max = checked_max(initial_max)
        self._pace = pace
        self._on_close = on_close
        self._target: Target | None = None
        self._asking = _BackOff(pace)
        self._watching = _BackOff(pace)

    @override
    def acquire(self, reason: str, *, version: str | None = None) -> Permit | Waiting:
        """Take a permit, keep the one held, or join the queue.

        Raises:
            PermitUnauthorizedError: etcd refuses us.
            PermitClusterChangedError: this is not the etcd we know.
            PermitDocumentError: the document is none of ours.
            StateError: the cluster's mark cannot be made durable; the place is held all the same.
        """
        self._target = None
        holder = make_holder(
            node_id=self._node.id,
            host=self._node.host,
            since=self._pace.now(),
            reason=reason,
            version=version,
        )
        try:
            outcome = self._acquire(holder)
        except PermitUnavailableError as error:
            return self._cannot_ask(error)
        self._asking.succeeded()
        return outcome

    @override
    def wait(self, timeout_s: float) -> bool:
        """Watch what stands between us and a permit, at most `WAIT_MAX_S`; keep our place."""
        longest = WAIT_MAX_S * self._pace.chance.uniform(0.8, 1.0)
        until = self._pace.monotonic() + min(timeout_s, longest)
        target, self._target = self._target, None  # a second wait on the same news would spin
        if target is None:
            self._asking.pause(until=until)
            return False
        try:
            return self._wait(target, until)
        except PermitUnavailableError as error:
            log.warning("watching for a permit failed group=%s error=%s", self._group, error)
            self._watching.failed()
            self._watching.pause(until=until)
            return False

    @override
    def release(self) -> bool:
        """Return the permit and leave the queue; done when the document does not name us."""
        self._target = None
        held = self._release()
        self._store.drop_ticket()
        log.debug("no permit is held now group=%s was_held=%s", self._group, held)
        return held

    @override
    def status(self) -> GroupStatus:
        """Read document and queue at one revision."""
        return self._store.status()

    @override
    def set_max(self, places: int) -> MaxChange:
        """Write the number of places into the document; from now on it rules everywhere."""
        checked_max(places)
        tries = _Tries(self._pace, self._store)
        while True:
            tries.begin()
            seen = self._store.look()
            document = seen.document or PermitDocument(max=places)
            before = None if seen.document is None else document.max
            unchanged = before == places
            if unchanged or self._swapped(seen, document.with_max(places)):
                log.info("max is set group=%s before=%s after=%d", self._group, before, places)
                return MaxChange(before=before, after=places, held=len(document.holders))

    @override
    def return_for(self, holder_id: str) -> Holder:
        """Take a dead node out of the document."""
        tries = _Tries(self._pace, self._store)
        found: Holder | None = None
        while True:
            tries.begin()
            seen = self._store.look()
            document = seen.document or PermitDocument(max=0)
            holder = document.holder(holder_id)
            if holder is None and found is None:
                names = _names(document.holders)
                raise PermitNotHeldError(
                    f"{holder_id!r} holds no permit of group {self._group}; held by {names}"
                )
            found = holder or found
            if found is not None and (
                holder is None or self._swapped(seen, document.without_holder(holder_id))
            ):
                log.info("permit was returned for holder=%s group=%s", holder_id, self._group)
                return found

    @override
    def close(self) -> None:
        """Leave the queue as far as etcd can be reached; the lease ends by itself otherwise."""
        self._store.drop_ticket()
        self._on_close()

    def _acquire(self, holder: Holder) -> Permit | Waiting:
        tries = _Tries(self._pace, self._store)
        while True:
            tries.begin()
            self._store.keep_place()
            seen = self._store.look()
            document = self._document(seen)
            if document.holder(holder.id) is None and not may_try(seen.ahead, free=document.free):
                if self._store.ticket is not None:
                    return self._waiting(seen)
                self._store.join(holder)
                continue  # a place may have become free meanwhile: nobody would wake us for it
            wanted = document.with_holder(holder)
            revision = self._store.swap(seen, wanted, leave_queue=True)
            if revision is not None:
                return self._permit(wanted.holder(holder.id) or holder, revision)

    def _permit(self, holder: Holder, revision: int) -> Permit:
        self._store.drop_ticket()
        log.info("permit held group=%s revision=%d", self._group, revision)
        return Permit(group=self._group, holder=holder, revision=revision)

    def _waiting(self, seen: Seen) -> Waiting:
        self._target = self._store.target(seen)
        document = self._document(seen)
        reason = WaitReason.QUEUED if document.free else WaitReason.FULL
        return Waiting(
            reason=WaitReason.CLOSED if document.max == 0 else reason,
            sentence=_sentence(self._group, document, seen.ahead),
            holders=document.holders,
            max=document.max,
            ahead=seen.ahead.count,
        )

    def _cannot_ask(self, error: PermitUnavailableError) -> Waiting:
        self._asking.failed()
        log.warning("no permit can be had group=%s error=%s", self._group, error)
        contended = isinstance(error, PermitContendedError)
        return Waiting(
            reason=WaitReason.CONTENDED if contended else WaitReason.UNAVAILABLE,
            sentence=f"no permit of group {self._group} can be had: {error}",
        )

    def _wait(self, target: Target, until: float) -> bool:
        while (left := until - self._pace.monotonic()) > 0:
            if not self._store.keep_place():
                return True
            changed = self._store.watch(target, timeout_s=left)
            self._watching.succeeded()
            if changed:
                return True
        return False

    def _release(self) -> bool:
        tries = _Tries(self._pace, self._store)
        held = False
        while True:
            tries.begin()
            seen = self._store.look()
            document = self._document(seen)
            if document.holder(self._node.id) is None and not self._store.is_doubtful(seen):
                if seen.in_queue:
                    self._store.leave_queue()
                return held
            held = held or document.holder(self._node.id) is not None
            if self._swapped(seen, document.without_holder(self._node.id), leave_queue=True):
                return held

    def _swapped(self, seen: Seen, wanted: PermitDocument, *, leave_queue: bool = False) -> bool:
        return self._store.swap(seen, wanted, leave_queue=leave_queue) is not None

    def _document(self, seen: Seen) -> PermitDocument:
        """Return the document; for a new group the one that the first write creates."""
        return seen.document or PermitDocument(max=self._initial_max)


def _sentence(group: str, document: PermitDocument, ahead: Ahead) -> str:
    if document.max == 0:
        return f"group {group} has no permits: its max is 0"
    more = " or more" if ahead.count >= AHEAD_MAX else ""
    queue = f"{ahead.count}{more} wait before this node" if ahead.count else "this node is next"
    taken = f"{len(document.holders)} of {document.max} permits of group {group} are taken"
    return f"{taken} ({_names(document.holders)}); {queue}"


def _names(holders: tuple[Holder, ...]) -> str:
    shown = [f"{one.host} since {one.since:%Y-%m-%dT%H:%M:%SZ}" for one in holders]
    if len(shown) > _NAMES_SHOWN:
        shown = [*shown[:_NAMES_SHOWN], f"{len(shown) - _NAMES_SHOWN} more"]
    return ", ".join(shown) or "nobody"
