"""Whether a booted system is good: units, ports and commands, each with a time limit.

One look goes through all of them in order and stops at the first that fails. What follows from
a verdict, and how long a system must stay healthy, is not here: the agent decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from updater.health_ports import read_address, why_closed
from updater.health_units import (
    UnitsUnknownError,
    ask_failed,
    ask_units,
    first_unwell,
    printable,
    words_of_failed,
)
from updater.processes import CommandError, CommandStoppedError, run

FAILED_UNITS = "failed-units"  # what the look at all units is called in verdicts


class Check(Protocol):
    """One command that must end with status 0."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def command(self) -> Sequence[str]:
        """The program and its arguments."""

    @property
    def timeout_secs(self) -> float:
        """When it counts as failed."""


class Wanted(Protocol):
    """What makes a system healthy, as `[health]` says."""

    @property
    def units(self) -> Sequence[str]:
        """Units that must be active."""

    @property
    def no_failed_units(self) -> bool:
        """Whether no unit of the system may have failed."""

    @property
    def units_timeout_secs(self) -> float:
        """How long systemd may take to answer."""

    @property
    def ports(self) -> Sequence[str]:
        """Addresses that must accept a connection."""

    @property
    def ports_timeout_secs(self) -> float:
        """How long each of them may take."""

    @property
    def checks(self) -> Sequence[Check]:
        """Commands that must succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVerdict:
    """What the checks said.

    Attributes:
        failed: name of the first check that failed, empty when all passed.
        sentence: why, for a person.
    """

    failed: str = ""
    sentence: str = "all health checks passed"

    @property
    def healthy(self) -> bool:
        """Tell whether every check passed."""
        return not self.failed


def examine(
    wanted: Wanted,
    *,
    facts: Mapping[str, str],
    beat: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> HealthVerdict:
    """Look once at everything that is wanted, cheapest first; stop at the first that fails.

    Args:
        wanted: what to look at; nothing means that reaching this point is health enough.
        facts: put into each command's environment (BASCULE_SLOT, BASCULE_VERSION ...).
        beat: called often while a check runs.
        stopped: asked as often; a look that is not to be finished gives no verdict.

    Raises:
        CommandStoppedError: the look was stopped while a command ran.
    """
    looks: tuple[Iterator[HealthVerdict], ...] = (
        _units(wanted, beat),
        _failed_units(wanted, beat),
        _ports(wanted, beat),
        _commands(wanted.checks, facts, beat, stopped),
    )
    return next((verdict for look in looks for verdict in look), HealthVerdict())


def _units(wanted: Wanted, beat: Callable[[], None]) -> Iterator[HealthVerdict]:
    if not wanted.units:
        return
    try:
        states = ask_units(wanted.units, timeout_secs=wanted.units_timeout_secs, beat=beat)
    except UnitsUnknownError as error:
        sentence = f"unit {wanted.units[0]} cannot be looked at: {error}"
        yield HealthVerdict(failed=wanted.units[0], sentence=sentence)
        return
    unwell = first_unwell(states)
    if unwell is not None:
        yield HealthVerdict(failed=unwell[0], sentence=unwell[1])


def _failed_units(wanted: Wanted, beat: Callable[[], None]) -> Iterator[HealthVerdict]:
    if not wanted.no_failed_units:
        return
    try:
        failed = ask_failed(timeout_secs=wanted.units_timeout_secs, beat=beat)
    except UnitsUnknownError as error:
        sentence = f"failed units cannot be looked for: {error}"
        yield HealthVerdict(failed=FAILED_UNITS, sentence=sentence)
        return
    if failed:
        yield HealthVerdict(failed=FAILED_UNITS, sentence=printable(words_of_failed(failed), 600))


def _ports(wanted: Wanted, beat: Callable[[], None]) -> Iterator[HealthVerdict]:
    for port in wanted.ports:
        beat()
        why = why_closed(read_address(port), timeout_secs=wanted.ports_timeout_secs)
        if why:
            yield HealthVerdict(failed=port, sentence=f"port {port} {why}")


def _commands(
    checks: Sequence[Check],
    facts: Mapping[str, str],
    beat: Callable[[], None],
    stopped: Callable[[], bool],
) -> Iterator[HealthVerdict]:
    for check in checks:
        why = _why_failed(check, facts, beat, stopped)
        if why:
            yield HealthVerdict(failed=check.name, sentence=f"check {check.name}{why}")


def _why_failed(
    check: Check,
    facts: Mapping[str, str],
    beat: Callable[[], None],
    stopped: Callable[[], bool],
) -> str:
    """Run one command; returns what to say after its name, empty when it passed."""
    try:
        outcome = run(
            check.command,
            timeout_secs=check.timeout_secs,
            extra=facts,
            beat=beat,
            stopped=stopped,
        )
    except CommandStoppedError:
        raise
    except CommandError as error:
        return f": {error}"
    if outcome.status is None:
        return f" took longer than {check.timeout_secs:g} s"
    if outcome.status == 0:
        return ""
    lines = outcome.output.decode(errors="replace").strip().splitlines()
    last = f": {printable(lines[-1])}" if lines else ""
    return f" ended with status {outcome.status}{last}"
