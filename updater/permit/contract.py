"""What every keeper of permits promises, and the values that it speaks in. No I/O.

A *permit* is leave to be down for a reboot. How permits are kept is a file each: keeper.py
(etcd), none.py (nobody is asked).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from updater.permit.document import Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who asks.

    Attributes:
        id: the machine id; asking twice with the same id is asking once.
        host: a name people know.
    """

    id: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Time and chance, as a keeper sees them.

    Attributes:
        now: the wall clock, aware; only shown to people.
        monotonic: seconds that never jump.
        sleep: wait for so many seconds.
        chance: for jitter; nothing secret depends on it.
    """

    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    chance: random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """This node may be down, until it returns the permit.

    Attributes:
        group: whose permit it is.
        holder: as the others see it.
        revision: of the write that granted it; any other write of ours that was still on its
            way is void since then.
    """

    group: str
    holder: Holder
    revision: int


class WaitReason(enum.Enum):
    """Why there is no permit now; the value is the code that people see."""

    FULL = "permit-full"  # every place is taken
    CLOSED = "permit-closed"  # the group has no place at all: max is 0
    QUEUED = "permit-queued"  # a place is free, but others came first
    CONTENDED = "permit-contended"  # others changed the document each time before us
    UNAVAILABLE = "permit-unavailable"  # etcd cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """No permit now, and why. Nothing is wrong: `wait`, then ask again.

    Attributes:
        reason: the kind of wait.
        sentence: the same for people, with values.
        holders: who holds a permit, as far as known.
        max: places of the group; None when not known.
        ahead: nodes that wait before this one, None when not known; `AHEAD_MAX` of queue.py
            stands for that many or more.
    """

    reason: WaitReason
    sentence: str
    holders: tuple[Holder, ...] = ()
    max: int | None = None
    ahead: int | None = None

    @property
    def code(self) -> str:
        """The stable code of the wait."""
        return self.reason.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A node in the queue, as it describes itself; empty texts when it does so badly.

    Attributes:
        id: the machine id.
        host: a name people know.
        since: when it joined, by its own clock; None when unknown.
        reason: why it wants to reboot.
        version: what it would reboot into, or None.
    """

    id: str
    host: str = ""
    since: datetime | None = None
    reason: str = ""
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A group at one revision.

    Attributes:
        group: its name.
        max: its places; None when the group does not exist yet.
        holders: who holds a permit, in the order they came.
        waiters: who waits, first in turn first; at most `WAITERS_SHOWN_MAX` of queue.py.
        waiting: how many wait in all.
    """

    group: str
    max: int | None
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxChange:
    """What `set_max` did.

    Attributes:
        before: places until now; None when the group did not exist.
        after: places from now on.
        held: permits held at that moment; may be more than `after`.
    """

    before: int | None
    after: int
    held: int


class PermitKeeper(Protocol):
    """Permits of one group, as one node sees them. Used by one thread at a time.

    Every call may be repeated any number of times, also after a crash, without changing the
    outcome. After an `acquire` that did not return a permit the node may hold one all the same
    (the answer to a write was lost): ask again, or `release` when it is no longer wanted.

    All but `acquire` and `wait` raise `PermitUnavailableError` when the keeper cannot be asked;
    those two make it a wait. All raise the other errors of errors.py as they apply.
    """

    def acquire(self, reason: str, *, version: str | None = None) -> Permit | Waiting:
        """Take a permit, or keep the one held; join the queue when there is none.

        To be called again right before every reboot: that is what makes the permit certain.

        Args:
            reason: why, for people.
            version: what the node would reboot into.
        """

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it may be worth to ask again, at most `timeout_s` seconds.

        Returns:
            Whether something changed; ask again in either case. The place in the queue is kept
            for a minute after the last `acquire` or `wait`.
        """

    def release(self) -> bool:
        """Return the permit and leave the queue.

        Returns:
            Whether a permit was held; that none was is no error.
        """

    def status(self) -> GroupStatus:
        """Tell who holds, who waits and how many may; changes nothing, creates nothing."""

    def set_max(self, places: int) -> MaxChange:
        """Set the places of the group at once for all; creates the group when it is new.

        Raises:
            PermitMaxError: no number of places.
        """

    def return_for(self, holder_id: str) -> Holder:
        """Return the permit of another node: for the operator who knows that it is dead.

        Raises:
            PermitNotHeldError: no holder has that id.
        """

    def close(self) -> None:
        """Leave the queue and let go of connections; a permit is kept. Raises nothing."""
