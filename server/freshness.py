"""How long the signatures hold, read again only when the signed files changed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from server.queries import roles

if TYPE_CHECKING:
    from datetime import datetime

    from server.desk import Desk
    from server.views import RoleView


class Freshness:
    """The signing roles of a desk; cheap to ask for often, from any thread."""

    def __init__(self, desk: Desk) -> None:
        """Keep the desk; nothing is read yet."""
        self._desk = desk
        self._lock = threading.Lock()
        self._seen_ns = -1
        self._roles: list[RoleView] = []

    def roles(self) -> list[RoleView]:
        """Return every role as it is published now.

        Raises:
            RepositoryDamagedError: what is published does not verify.
        """
        with self._lock:
            changed_ns = self._desk.repository.changed_ns()
            if changed_ns != self._seen_ns:
                self._roles = roles(self._desk.repository.read())
                self._seen_ns = changed_ns
            return self._roles

    def soonest(self) -> datetime:
        """Return when the first of the signatures ends.

        Raises:
            RepositoryDamagedError: what is published does not verify.
        """
        return min(role.expires for role in self.roles())
