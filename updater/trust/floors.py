"""What the node never accepts less of: one small document, besides the store of TUF's own files.

python-tuf remembers versions in the metadata files it keeps. When these are lost or cut short, it
starts anew from the image's root and would accept an old repository; the floors still refuse it.
Pure but for `load_floors` and `save_floors`. Neither tuf nor requests is loaded, so that `status`
can show when the metadata ends.

A floor is bound to the keys of its role: a root (or `targets`) that names other keys lifts it, so
that a thief who published version 2^31-1 does not block us for ever (trust.md 3.6). Roots cannot
be forged without the root keys, so their own floor is lifted only by an image that brings another
root of trust.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from updater.durable import replace_durably
from updater.trust.errors import ClockBehindError, SerialRollbackError, TrustRollbackError
from updater.trust.limits import (
    CLOCK_FLOOR_STEP,
    CLOCK_TOLERANCE,
    FLOORS_MAX_BYTES,
    ROLES_KEPT,
    ROOTS_KEPT,
)

log = logging.getLogger(__name__)

FLOORS_NAME: Final = "floors.json"
FLOORS_SCHEMA: Final = "bascule.trust-floors/1"
CHANNEL_PREFIX: Final = "channels/"  # of TUF paths of channel documents, whose version is a serial

_Version = Annotated[int, Meta(ge=1)]
_Instant = Annotated[datetime, Meta(tz=True)]


class RoleFloor(Struct, frozen=True, kw_only=True):
    """The lowest version of one role, or serial of one channel document, that is still accepted.

    Attributes:
        version: the highest that was accepted.
        keyids: the keys of the role at that time, sorted; other keys lift the floor.
    """

    version: _Version
    keyids: tuple[str, ...]


class Floors(Struct, frozen=True, kw_only=True):
    """All floors of a node; unknown fields are left out, as an older bascule may read it.

    Attributes:
        roots: SHA-256 of the signed part of each known root, by version.
        roles: by role name, or by TUF path for the serial of a channel document.
        time_seen: when a refresh was last accepted: the clock can never be before it.
        timestamp_expires: when the metadata of that refresh ends.
        root_expires: when the root ends.
    """

    schema: str = FLOORS_SCHEMA
    roots: dict[_Version, str] = {}
    roles: dict[str, RoleFloor] = {}
    time_seen: _Instant | None = None
    timestamp_expires: _Instant | None = None
    root_expires: _Instant | None = None

    @property
    def root_version(self) -> int:
        """The version of the newest root ever trusted; 0 when none is remembered."""
        return max(self.roots, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one refresh verified, to be compared with the floors and then to raise them."""

    roots: Mapping[int, str]
    roles: Mapping[str, RoleFloor]
    timestamp_expires: datetime
    root_expires: datetime


def check_clock(floors: Floors, *, now: datetime, image_built: datetime) -> datetime:
    """Return the time to judge by: `now`, but never before what has certainly passed.

    Raises:
        ClockBehindError: `now` is behind the floor by more than NTP may take back.
    """
    floor = max(image_built, floors.time_seen or image_built)
    if now < floor - CLOCK_TOLERANCE:
        raise ClockBehindError(
            f"the clock says {now.isoformat()}, but {floor.isoformat()} has already passed"
        )
    return max(now, floor)


def check_versions(floors: Floors, seen: Seen) -> None:
    """Compare what was verified with the floors.

    Raises:
        TrustRollbackError: root or a role is older than one that was accepted before.
        SerialRollbackError: the channel document is.
    """
    newest = max(seen.roots)
    if newest < floors.root_version:
        raise TrustRollbackError(
            f"the newest root offered is version {newest}, this node trusts {floors.root_version}"
        )
    for name, role in seen.roles.items():
        known = floors.roles.get(name)
        if known is None or known.keyids != role.keyids or role.version >= known.version:
            continue
        if name.startswith(CHANNEL_PREFIX):
            raise SerialRollbackError(
                f"{name} has serial {role.version}, this node has seen {known.version}"
            )
        raise TrustRollbackError(
            f"{name} has version {role.version}, this node has accepted {known.version}"
        )


def of_lineage(floors: Floors, *, version: int, sha256: str) -> Floors:
    """Return `floors` if the image's root belongs to them, else floors that only keep the time.

    An image with another root of trust under a known version is the way back after two stolen
    root keys (trust.md 3.6): what the old repository said counts no more.
    """
    if floors.roots.get(version, sha256) == sha256:
        return floors
    log.warning("the image brings another root of trust, version floors start anew")
    return Floors(time_seen=floors.time_seen)


def raised_roots(floors: Floors, roots: Mapping[int, str]) -> Floors:
    """Return `floors` that know `roots` too."""
    known = sorted({**floors.roots, **roots}.items())[-ROOTS_KEPT:]
    return msgspec.structs.replace(floors, roots=dict(known))


def raised(floors: Floors, seen: Seen, *, now: datetime) -> Floors:
    """Return the floors after `seen` was accepted at `now`."""
    others = [item for item in floors.roles.items() if item[0] not in seen.roles]
    last = floors.time_seen
    return msgspec.structs.replace(
        raised_roots(floors, seen.roots),
        roles=dict([*others, *seen.roles.items()][-ROLES_KEPT:]),
        time_seen=now if last is None or now - last >= CLOCK_FLOOR_STEP else last,
        timestamp_expires=seen.timestamp_expires,
        root_expires=seen.root_expires,
    )


def load_floors(*paths: Path) -> Floors:
    """Return the floors of the first of `paths` that can be read, else none at all.

    A missing or damaged file costs nothing as long as a twin is whole. With none left the node
    starts from its image: its own rollback index and build time still hold.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(FLOORS_MAX_BYTES), type=Floors)
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("trust floors are unreadable file=%s error=%s", path, error)
    return Floors()


def save_floors(path: Path, floors: Floors) -> None:
    """Write `floors` durably.

    Raises:
        OSError: no space, or a read-only folder.
    """
    replace_durably(path, msgspec.json.format(msgspec.json.encode(floors), indent=1) + b"\n")
