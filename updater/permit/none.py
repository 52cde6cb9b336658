"""The keeper of a node that stands alone: every permit is granted, nobody is asked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from typing_extensions import override

from updater.permit.contract import (
    GroupStatus,
    MaxChange,
    Node,
    Permit,
    PermitKeeper,
    Waiting,
)
from updater.permit.document import Holder, make_holder
from updater.permit.errors import PermitKeeperError

GROUP = "none"


class NoPermits(PermitKeeper):
    """Grants at once. Holds nothing, so there is nothing to show, to set or to return."""

    def __init__(self, *, node: Node, now: Callable[[], datetime]) -> None:
        self._node = node
        self._now = now

    @override
    def acquire(self, reason: str, *, version: str | None = None) -> Permit | Waiting:
        """Grant."""
        holder = make_holder(
            node_id=self._node.id,
            host=self._node.host,
            since=self._now(),
            reason=reason,
            version=version,
        )
        return Permit(group=GROUP, holder=holder, revision=0)

    @override
    def wait(self, timeout_s: float) -> bool:
        """Return at once: there is nothing to wait for."""
        return True

    @override
    def release(self) -> bool:
        """Return that none was held."""
        return False

    @override
    def status(self) -> GroupStatus:
        """Return an empty group."""
        return GroupStatus(group=GROUP, max=None, holders=(), waiters=(), waiting=0)

    @override
    def set_max(self, places: int) -> MaxChange:
        """Raise `PermitKeeperError`: there is no group."""
        self._refuse()

    @override
    def return_for(self, holder_id: str) -> Holder:
        """Raise `PermitKeeperError`: there are no holders."""
        self._refuse()

    @override
    def close(self) -> None:
        """Do nothing."""

    def _refuse(self) -> NoReturn:
        raise PermitKeeperError(f"{self._node.host} reboots without a permit: permit.kind is none")
