"""The time zones of this system: named ones, and the one that the machine lives in."""

from __future__ import annotations

import re
import struct
import zoneinfo
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final

from updater.errors import WindowInvalidError

LOCALTIME: Final = Path("/etc/localtime")
# What zoneinfo raises for a torn file.
_NO_ZONE: Final = (
    ValueError,
    OSError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*\Z")


class ZonesMissingError(WindowInvalidError):
    """This system has no time zone database: no zone but UTC can be told."""

    hint = "Put tzdata into the image, or write windows in UTC; until then no window opens."


def open_zone(name: str) -> tzinfo:
    """Return a zone of the IANA database by its name; `UTC` in any case needs no database.

    Raises:
        ZonesMissingError: there are no zones at all on this system.
        WindowInvalidError: there is no such zone.
    """
    if name.upper() == "UTC":
        return UTC
    if (zone := _find(name)) is not None:
        return zone
    if _find("Etc/UTC") is None:
        raise ZonesMissingError(
            f"time zone {name!r} cannot be told: this system has no time zone database in "
            "/usr/share/zoneinfo (package tzdata)"
        )
    raise WindowInvalidError(
        f"time zone {name!r} is not known here: names are UTC and those of the IANA database, "
        "such as Europe/Berlin"
    )


def _find(name: str) -> tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name) if _NAME.match(name) else None
    except (zoneinfo.ZoneInfoNotFoundError, *_NO_ZONE):
        return None


def local_zone(file: Path = LOCALTIME) -> tzinfo:
    """Return the zone of the machine, UTC where none is set.

    `TZ` is not looked at: a person's shell and the service must mean the same.

    Raises:
        WindowInvalidError: the file is there and holds no time zone.
    """
    try:
        with file.open("rb") as stream:
            return zoneinfo.ZoneInfo.from_file(stream, key=str(file.resolve()))
    except FileNotFoundError:
        return UTC
    except _NO_ZONE as error:
        raise WindowInvalidError(f"{file} holds no time zone: {error}") from error
