"""Whether systemd's units are well: what `systemctl` says, and what follows from it.

Judging is pure; asking is one bounded call. systemd is asked by its own program, which speaks
the manager's protocol in every version; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from updater.processes import CommandError, run

WELL: Final = frozenset({"active", "reloading", "refreshing"})  # it runs, or ran and left its mark
NAMED_MAX: Final = 3  # of the failed units that a sentence names
_PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitState:
    """What systemd says of one unit, in its own words.

    Attributes:
        name: as the settings have it; systemd may know the unit by another one.
        load, active, sub, result: LoadState, ActiveState, SubState and Result.
    """

    name: str
    load: str = ""
    active: str = ""
    sub: str = ""
    result: str = ""


class UnitsUnknownError(Exception):
    """systemd could not be asked; the words are those of a verdict."""


def ask_units(
    names: Sequence[str], *, timeout_secs: float, beat: Callable[[], None]
) -> tuple[UnitState, ...]:
    """Ask systemd for the state of these units, in their order.

    Raises:
        UnitsUnknownError: no answer, or one that does not speak of each of them.
    """
    properties = f"--property={','.join(_PROPERTIES)}"
    text = _systemctl(["show", properties, "--", *names], timeout_secs=timeout_secs, beat=beat)
    return read_units(names, text)


def read_units(names: Sequence[str], text: str) -> tuple[UnitState, ...]:
    """Read what `systemctl show` printed: a paragraph of `Property=value` lines for each unit.

    Raises:
        UnitsUnknownError: there is not one paragraph for each of `names`.
    """
    paragraphs = [each for each in text.strip().split("\n\n") if each.strip()]
    if len(paragraphs) != len(names):
        raise UnitsUnknownError(
            f"systemctl speaks of {len(paragraphs)} units, {len(names)} were asked for"
        )
    return tuple(_unit(name, each) for name, each in zip(names, paragraphs, strict=True))


def first_unwell(units: Sequence[UnitState]) -> tuple[str, str] | None:
    """Return the name of the first unit that is not well and why, None when all are."""
    for unit in units:
        if unit.active not in WELL:
            return unit.name, f"unit {unit.name} {_words(unit)}"
    return None


def ask_failed(*, timeout_secs: float, beat: Callable[[], None]) -> tuple[str, ...]:
    """Ask systemd which units have failed, of all that it knows.

    Raises:
        UnitsUnknownError: no answer.
    """
    options = ["--state=failed", "--plain", "--no-legend", "--no-pager", "--full"]
    text = _systemctl(["list-units", *options], timeout_secs=timeout_secs, beat=beat)
    return tuple(line.split()[0] for line in text.splitlines() if line.strip())


def words_of_failed(units: Sequence[str]) -> str:
    """Return a sentence that names the first few of the units that failed."""
    named = ", ".join(units[:NAMED_MAX])
    more = f" and {len(units) - NAMED_MAX} more" if len(units) > NAMED_MAX else ""
    return f"{'units' if len(units) > 1 else 'unit'} {named}{more} failed"


def _unit(name: str, paragraph: str) -> UnitState:
    facts = dict(line.partition("=")[::2] for line in paragraph.splitlines())
    load, active, sub, result = (printable(facts.get(key, "")) for key in _PROPERTIES)
    return UnitState(name=name, load=load, active=active, sub=sub, result=result)


def _words(unit: UnitState) -> str:
    if unit.load == "not-found":
        return "is not known to systemd"
    if unit.load == "masked":
        return "is masked"
    detail = unit.sub if unit.sub != unit.active else ""
    if unit.active == "failed" and unit.result not in {"", "success"}:
        detail = unit.result
    state = unit.active or "in no state that systemd tells"
    return f"is {state}{f' ({detail})' if detail else ''}"


def _systemctl(arguments: Sequence[str], *, timeout_secs: float, beat: Callable[[], None]) -> str:
    """Return what systemctl printed.

    Raises:
        UnitsUnknownError: it cannot be started, takes too long or fails.
    """
    try:
        outcome = run(["systemctl", *arguments], timeout_secs=timeout_secs, beat=beat)
    except CommandError as error:
        raise UnitsUnknownError(str(error)) from error
    if outcome.status is None:
        raise UnitsUnknownError(f"systemctl took longer than {timeout_secs:g} s")
    text = outcome.output.decode(errors="replace")
    if outcome.status != 0:
        last = printable((text.strip().splitlines() or [""])[-1])
        raise UnitsUnknownError(
            f"systemctl ended with status {outcome.status}{f': {last}' if last else ''}"
        )
    return text


def printable(text: str, limit: int = 200) -> str:
    """Return a line of somebody else's, made safe for logs and terminals."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
