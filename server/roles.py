"""The signing roles: how many keys, how many needed, how long a signature holds. Pure values.

The table is trust.md 3.1. `root`, `targets`, `snapshot` and `timestamp` are TUF's own;
`releases` says "we built this", a channel's role says "this may run now".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from server.errors import NameInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = "root"
TARGETS: Final = "targets"
RELEASES: Final = "releases"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
TOP_ROLES: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
ONLINE_ROLES: Final = (SNAPSHOT, TIMESTAMP)

CHANNELS_MAX: Final = 64  # each is a file and a delegation that every node loads

_ROLE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePolicy:
    """How a role signs.

    Attributes:
        keys: how many keys it has.
        threshold: how many of them must sign.
        lifetime: how long a signature holds.
        renew_before: with less than this left it should be signed again.
    """

    keys: int
    threshold: int
    lifetime: timedelta
    renew_before: timedelta

    @property
    def warn_before(self) -> timedelta:
        """With less than this left a person should know; an online role has missed its turn."""
        return min(self.renew_before, self.lifetime / 3)

    def with_keys(self, keys: int | None, threshold: int | None) -> RolePolicy:
        """Return the policy with other numbers where they are given.

        Raises:
            NameInvalidError: fewer keys than signatures needed, or none at all.
        """
        changed = replace(self, keys=keys or self.keys, threshold=threshold or self.threshold)
        if not 1 <= changed.threshold <= changed.keys <= 16:
            raise NameInvalidError(
                f"a role with {changed.keys} keys cannot need {changed.threshold} signatures"
            )
        return changed


def _policy(keys: int, threshold: int, *, days: int, renew_days: float) -> RolePolicy:
    return RolePolicy(
        keys=keys,
        threshold=threshold,
        lifetime=timedelta(days=days),
        renew_before=timedelta(days=renew_days),
    )


POLICIES: Final[Mapping[str, RolePolicy]] = MappingProxyType({
    ROOT: _policy(3, 2, days=365, renew_days=90),
    TARGETS: _policy(3, 2, days=365, renew_days=90),
    RELEASES: _policy(2, 1, days=180, renew_days=45),
    SNAPSHOT: _policy(1, 1, days=7, renew_days=6),  # so daily
    TIMESTAMP: _policy(1, 1, days=3, renew_days=2.75),  # so every 6 hours
    "stable": _policy(3, 2, days=90, renew_days=30),
    "beta": _policy(2, 1, days=60, renew_days=20),
    "alpha": _policy(1, 1, days=30, renew_days=10),
})  # fmt: skip

OTHER_CHANNEL: Final = _policy(1, 1, days=30, renew_days=10)


def policy_of(role: str) -> RolePolicy:
    """Return the policy of a role; a channel without one of its own is like `alpha`."""
    return POLICIES.get(role, OTHER_CHANNEL)


def check_channel_name(name: str) -> str:
    """Return `name` if a channel, and so a role, may be called so.

    Raises:
        NameInvalidError: it is not of the shape, or a role that TUF or the desk uses.
    """
    if not _ROLE_NAME.fullmatch(name) or name in {*TOP_ROLES, RELEASES}:
        raise NameInvalidError(f"a channel cannot be called {name!a}")
    return name


def paths_of(role: str) -> list[str]:
    """Return the TUF path patterns of a delegated role; `*` is exactly one path segment."""
    return ["os/*/*/*/*"] if role == RELEASES else [f"channels/{role}/*/*"]
