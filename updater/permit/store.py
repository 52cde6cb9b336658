"""One group's keys in etcd, as one node reads and writes them. Decides nothing.

Remembers what is unsure: after a write whose answer was lost the same write may still be done
later, as long as the document has the revision that it expected.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.permit.contract import GroupStatus, Pace
from updater.permit.document import (
    Holder,
    PermitDocument,
    encode_document,
    parse_document,
)
from updater.permit.errors import PermitError, PermitUnavailableError
from updater.permit.etcd import Delete, Etcd, Expect, Found, KeyValue, Order, Put, Range, Watched
from updater.permit.queue import (
    AHEAD_MAX,
    WAITERS_SHOWN_MAX,
    Ahead,
    GroupKeys,
    LeaseTimes,
    Ticket,
    encode_waiter,
    parse_waiter,
)

if TYPE_CHECKING:
    from updater.permit.cluster import ClusterGuard

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The group at one revision.

    Attributes:
        document: None when the group does not exist.
        mod_revision: of the document, 0 when there is none.
        revision: of the whole store.
        in_queue: whether our own key is in the queue.
        ahead: who waits before us.
    """

    document: PermitDocument | None
    mod_revision: int
    revision: int
    in_queue: bool
    ahead: Ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to wait for: a change of the document, or the end of the waiter right before us."""

    key: bytes
    from_revision: int
    only_deletes: bool


class GroupStore:
    """The document and the queue of one group; raises what etcd.py raises."""

    def __init__(
        self,
        *,
        etcd: Etcd,
        guard: ClusterGuard,
        group: str,
        node_id: str,
        pace: Pace,
        lease_times: LeaseTimes,
    ) -> None:
        self._etcd = etcd
        self._guard = guard
        self._group = group
        self._keys = GroupKeys(group)
        self._own_key = self._keys.waiter(node_id)
        self._pace = pace
        self._lease_times = lease_times
        self._unsure_at: int | None = None  # revision that a write with a lost answer expected
        self.ticket: Ticket | None = None
        self._own_kv: KeyValue | None = None  # our key in the queue at the last look
        self.lost_answer = ""  # why the last swap has none; empty when it has

    def look(self) -> Seen:
        """Read the document, our own key and who is before us, at one revision.

        Raises:
            PermitDocumentError: the document is none of ours.
        """
        done = self._etcd.look(
            Range(key=self._keys.document),
            Range(key=self._own_key, keys_only=True),
            Range(
                key=self._keys.queue,
                is_prefix=True,
                order=Order.NEWEST_FIRST,
                limit=AHEAD_MAX,
                created_before=self.ticket.created if self.ticket else 0,
                keys_only=True,
            ),
        )
        document, mod_revision = self._parsed(done.found[0])
        if self._unsure_at != mod_revision:
            self._unsure_at = None  # that write is done or void
        self._own_kv = next(iter(done.found[1].kvs), None)
        if self.ticket is not None and self._own_kv is None:
            log.warning("the place in the queue was lost group=%s", self._group)
            self.ticket = None
        before = [one.key for one in done.found[2].kvs if one.key != self._own_key]
        return Seen(
            document=document,
            mod_revision=mod_revision,
            revision=done.revision,
            in_queue=self._own_kv is not None,
            ahead=Ahead(count=len(before), predecessor=before[0] if before else None),
        )

    def is_doubtful(self, seen: Seen) -> bool:
        """Tell whether an earlier write of ours may still change the document after `seen`."""
        return self._unsure_at == seen.mod_revision

    def swap(self, seen: Seen, wanted: PermitDocument, *, leave_queue: bool) -> int | None:
        """Write the document if nobody wrote it since `seen`.

        Args:
            seen: what `wanted` was made from.
            wanted: the new document.
            leave_queue: remove our own key in the same transaction.

        Returns:
            The revision of the write; None when it was lost to others or is unknown: look again.

        Raises:
            PermitDocumentError: `wanted` is too long.
        """
        put = Put(key=self._keys.document, value=encode_document(wanted))
        drop = (Delete(key=self._own_key),) if leave_queue else ()
        expect = Expect(key=self._keys.document, mod_revision=seen.mod_revision)
        try:
            done = self._etcd.write(put, *drop, expect=expect)
        except PermitUnavailableError as error:
            self._unsure_at = seen.mod_revision
            self.lost_answer = str(error)
            log.warning("the answer to a write was lost group=%s error=%s", self._group, error)
            return None
        self._unsure_at = None
        self.lost_answer = ""
        if not done.succeeded:
            return None
        self._guard.remember()
        return done.revision

    def join(self, holder: Holder) -> None:
        """Join the queue, or take up the place that another process of this node holds in it."""
        self.ticket = self._shared_ticket() or self._new_ticket(holder)
        log.debug("in the queue group=%s place=%d", self._group, self.ticket.created)

    def keep_place(self) -> bool:
        """Renew our lease when it is due; False when our place is lost."""
        now = self._pace.monotonic()
        due = self._lease_times.keep_alive_s
        if self.ticket is None or now - self.ticket.kept_at < due:
            return True
        if self._etcd.keep_alive(self.ticket.lease):
            self.ticket.kept_at = now
            return True
        log.warning("the lease of the place in the queue ended group=%s", self._group)
        self.ticket = None
        return False

    def leave_queue(self) -> None:
        """Remove our own key, whoever put it there."""
        self._etcd.write(Delete(key=self._own_key))

    def drop_ticket(self) -> None:
        """End a lease of our own as a courtesy: it ends by itself. Raises nothing."""
        ticket, self.ticket = self.ticket, None
        if ticket is None or ticket.is_shared:
            return
        try:
            self._etcd.revoke(ticket.lease)
        except PermitError as error:
            log.debug("the lease was not revoked group=%s error=%s", self._group, error)

    def target(self, seen: Seen) -> Target:
        """Return what must change before it can be our turn: so that a change wakes one."""
        predecessor = seen.ahead.predecessor
        return Target(
            key=predecessor or self._keys.document,
            from_revision=seen.revision + 1,
            only_deletes=predecessor is not None,
        )

    def watch(self, target: Target, *, timeout_s: float) -> bool:
        """Tell whether the target changed; waits `timeout_s` or until a sign of life is due."""
        watched = self._etcd.watch(
            target.key,
            from_revision=target.from_revision,
            silence_s=min(timeout_s, self._lease_times.keep_alive_s),
            only_deletes=target.only_deletes,
        )
        return watched is Watched.CHANGED

    def status(self) -> GroupStatus:
        """Read the document and the queue at one revision.

        Raises:
            PermitDocumentError: the document is none of ours.
        """
        done = self._etcd.look(
            Range(key=self._keys.document),
            Range(key=self._keys.queue, is_prefix=True, limit=WAITERS_SHOWN_MAX),
        )
        document, _ = self._parsed(done.found[0])
        queue = done.found[1]
        waiters = (parse_waiter(self._keys.waiter_id(one.key), one.value) for one in queue.kvs)
        return GroupStatus(
            group=self._group,
            max=None if document is None else document.max,
            holders=() if document is None else document.holders,
            waiters=tuple(waiters),
            waiting=queue.count,
        )

    def _shared_ticket(self) -> Ticket | None:
        """Return the place of a daemon beside us, or of our own past, if its lease still lives."""
        own, now = self._own_kv, self._pace.monotonic()
        if own is None or not own.lease or not self._etcd.keep_alive(own.lease):
            return None
        return Ticket(lease=own.lease, created=own.create_revision, kept_at=now, is_shared=True)

    def _new_ticket(self, holder: Holder) -> Ticket:
        """Put our key; one that is there already keeps its place and gets the new lease."""
        now = self._pace.monotonic()
        lease = self._etcd.grant(self._lease_times.ttl_s)
        put = Put(key=self._own_key, value=encode_waiter(holder), lease=lease)
        done = self._etcd.write(put, Range(key=self._own_key, keys_only=True))
        self._guard.remember()
        created = done.found[0].kvs[0].create_revision
        return Ticket(lease=lease, created=created, kept_at=now, is_shared=False)

    def _parsed(self, found: Found) -> tuple[PermitDocument | None, int]:
        if not found.kvs:
            return None, 0
        where = self._keys.document.decode()
        return parse_document(found.kvs[0].value, where=where), found.kvs[0].mod_revision
