"""What kinds of clients ask, and what they mean by the forms they use. Pure.

Our nodes say their board and group plainly. Others do not: older machines name a group by its id,
programs that are no engine name an architecture instead of a board, and a server that follows
this one asks as an old engine would.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from updater.omaha.messages import SCHEDULED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from updater.omaha import AppRequest, OsInfo, Request

GROUP_DEFAULT: Final = "default"

# A Nebraska that follows another server says exactly this, with a random machine id in braces.
_SYNCER_AGENT: Final = "CoreOSUpdateEngine-0.1.0.0"
_SYNCER_ID: Final = re.compile(
    r"\{[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\}", re.ASCII
)

# Group ids that were built into images before groups had names; for two architectures each.
_OLD_GROUPS: Final[Mapping[str, str]] = MappingProxyType({
    "5b810680-e36a-4879-b98a-4f989e80b899": "alpha",
    "e641708d-fb48-4260-8bdf-ba2074a1147a": "alpha",
    "3fe10490-dd73-4b49-b72a-28ac19acfcdc": "beta",
    "d112ec01-ba34-4a9e-9d4b-9814a685f266": "beta",
    "9a2deb70-37be-4026-853f-bfdd6b347bbe": "stable",
    "11a585f6-9418-4df0-8863-78b2fd3240f8": "stable",
    "72834a2b-ad86-4d6d-b498-e08a19ebe54e": "edge",
    "b4b2fa22-c1ea-498c-a8ac-c1dc0b1d7c17": "edge",
})  # fmt: skip

# Every name of an architecture to the one that Flatcar's boards begin with.
_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType({
    "x64": "amd64", "x86_64": "amd64", "amd64": "amd64",
    "arm": "arm64", "aarch64": "arm64", "arm64": "arm64",
    "x86": "x86", "i386": "x86", "i686": "x86", "386": "x86", "x32": "x86",
})  # fmt: skip
_BOARD_MARKS: Final = (
    ("amd64", "amd64"), ("x86-64", "amd64"), ("arm64", "arm64"), ("aarch64", "arm64"),
)  # fmt: skip


def is_syncer(request: Request, app: AppRequest) -> bool:
    """Tell whether the client is a server that follows this one: no machine, so it takes no place.

    A machine with an engine of that age has a machine id without braces.
    """
    return (
        request.version == _SYNCER_AGENT
        and request.install_source == SCHEDULED
        and _SYNCER_ID.fullmatch(app.machine_id.lower()) is not None
    )


def group_named(track: str) -> str:
    """Return the group that a client means; not checked.

    Without braces, an old group id by its name, and nothing is `GROUP_DEFAULT`.
    """
    name = _without_braces(track)
    return _OLD_GROUPS.get(name.lower(), name) or GROUP_DEFAULT


def fitting_board(os: OsInfo, *, default: str, boards: Collection[str]) -> str:
    """Return the board of a client that names none: what fits its architecture.

    It is the default board, else the only board made for that architecture, and never one that
    is plainly made for another.

    Args:
        os: says the architecture, as `arch` or at the end of `sp`.
        default: the desk's board for clients that say nothing.
        boards: those that there are releases for.
    """
    architecture = _ARCHITECTURES.get(os.arch.lower()) or _of_machine(os.service_pack)
    if architecture is None or architecture_of(default) == architecture:
        return default
    made_for_it = [board for board in boards if architecture_of(board) == architecture]
    if len(made_for_it) == 1:
        return made_for_it[0]
    return default if architecture_of(default) is None else f"{architecture}-usr"


def architecture_of(board: str) -> str | None:
    """Return `amd64` or `arm64` when a board's name says it, or None."""
    name = board.lower().replace("_", "-")
    return next((found for mark, found in _BOARD_MARKS if mark in name), None)


def _without_braces(text: str) -> str:
    return text.strip().removeprefix("{").removesuffix("}")


def _of_machine(service_pack: str) -> str | None:
    """Return the architecture at the end of `<version>_<uname machine>`, or None."""
    found = [name for name in _ARCHITECTURES if service_pack.endswith(f"_{name}")]
    return _ARCHITECTURES[max(found, key=len)] if found else None
