"""docs/errors.md: every code that a person can meet, from the classes and tables that own them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from images.errors import ImagesError
from partitions.errors import PartitionsError
from server.errors import ServerError
from updater import conditions
from updater.errors import UpdaterError

Family = type[ImagesError] | type[PartitionsError] | type[ServerError] | type[UpdaterError]

ROOMS: Final[Mapping[str, tuple[str, Family]]] = {
    "updater": ("The node: `bascule`", UpdaterError),
    "images": ("Payloads: `bascule-image`, and the node that reads them", ImagesError),
    "partitions": ("Disks: `bascule-image disk`, and the node that writes them", PartitionsError),
    "server": ("The release desk: `bascule-server`", ServerError),
}

TITLE: Final = """\
# Codes

Printed from the code by `make papers`; a test holds it up to date.

Every refusal, failure and wait has a code that is stable and never reused: grep for it, alert on
it. An error is three lines on stderr: `error:` a sentence with the values, `hint:` what to do,
`code:` the code.

| exit status | meaning |
|---|---|
| 0 | done; `check`: an update is available |
| 1 | failed |
| 2 | usage: the command line or the settings |
| 3 | refused by trust or policy |
| 4 | nothing to do |
| 5 | armed: a reboot is needed, or ordered and waiting |
| 6 | cannot tell: a server is unreachable, or somebody else is at work |
| 130 | stopped by Ctrl-C (`bascule-image`, `bascule-server`) |
"""

# What the release desk answers instead of a release (server/rollout.py); `status` shows it as the
# code of the last check.
ANSWERS: Final[Mapping[str, conditions.Condition]] = {
    "current": conditions.Condition("The node runs what its channel names."),
    "no-release": conditions.Condition(
        "The channel names nothing for this product and board.", "Promote a release."
    ),
    "withdrawn": conditions.Condition("The release was taken back.", "Publish another version."),
    "stop-unavailable": conditions.Condition(
        "A version that may not be jumped over has no release.", "Publish that version."
    ),
    "stop-between": conditions.Condition(
        "A following server that reads one manifest would jump over a version that may not be"
        " jumped over.",
        "Let it take that version first.",
    ),
    "not-before": conditions.Condition("The channel is in force later."),
    "payload-unsuitable": conditions.Condition(
        "The client cannot read the payloads that there are.",
        "Add a payload of format 1 for stock clients.",
    ),
    "rollout-stopped": conditions.Condition(
        "The group's rollout stopped because the release did not hold on a node.",
        "Look at that node, then withdraw the release or `bascule-server group resume`.",
    ),
    "rollout-paused": conditions.Condition(
        "A person paused the group.", "`bascule-server group resume`."
    ),
    "rollout-share": conditions.Condition(
        "The node is not in the share of the group that may have it yet.",
        "`bascule-server group set --share`.",
    ),
    "rollout-concurrency": conditions.Condition(
        "As many nodes as may be are under way.", "`bascule-server group set --concurrency`."
    ),
    "failed-here": conditions.Condition(
        "The release was tried on this node and did not hold, or people ended its trial.",
        "Publish a newer version, or `bascule update --force` on the node.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One error class.

    Attributes:
        code: as people see it.
        meaning: the first sentence of the class's docstring.
        to_do: its hint.
        exit_status: what a command ends with.
        kind: the class itself.
    """

    code: str
    meaning: str
    to_do: str
    exit_status: int
    kind: type[Exception]


def rows(room: str) -> list[Row]:
    """Return every error of a room that has a code of its own, by code."""
    _import_all(room)
    found = {kind: _row(kind) for kind in _descendants(ROOMS[room][1]) if _is_of(kind, room)}
    return sorted(found.values(), key=lambda row: (row.code, row.kind.__qualname__))


def page() -> str:
    """Return docs/errors.md."""
    parts = [TITLE]
    for room, (title, _) in ROOMS.items():
        lines = [f"## {title}", "", "| code | meaning | what to do | exit status |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| `{row.code}` | {_cell(row.meaning)} | {_cell(row.to_do)} | {row.exit_status} |"
            for row in rows(room)
        ]
        parts.append("\n".join(lines) + "\n")
    parts.append(_conditions("What a node does next, and how a version ended", conditions.STEPS))
    parts.append(_conditions("Gates before a reboot", conditions.GATES))
    parts.append(_conditions("The permit", conditions.PERMITS))
    parts.append(_conditions("What the release desk answers instead of a release", ANSWERS))
    parts.append(_conditions("What other Omaha servers answer instead of one", conditions.SERVERS))
    return "\n".join(parts)


def _conditions(title: str, table: Mapping[str, conditions.Condition]) -> str:
    lines = [f"## {title}", "", "| code | meaning | what to do |", "|---|---|---|"]
    lines += [f"| `{code}` | {what.meaning} | {what.to_do} |" for code, what in table.items()]
    return "\n".join(lines) + "\n"


def _import_all(room: str) -> None:
    """Load every module of a room, so that its classes are known."""
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)


def _descendants(base: Family) -> Iterator[Family]:
    for kind in base.__subclasses__():
        yield kind
        yield from _descendants(kind)


def _is_of(kind: Family, room: str) -> bool:
    return kind.__module__.startswith(f"{room}.") and "code" in vars(kind)


def _row(kind: Family) -> Row:
    meaning = (kind.__doc__ or "").strip().split("\n\n")[0]
    return Row(
        code=kind.code,
        meaning=" ".join(meaning.split()),
        to_do=kind.hint,
        exit_status=kind.exit_status,
        kind=kind,
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
