"""Whether a booted system is good: the operator's commands, each with a time limit.

What follows from a verdict is not here: the agent decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from updater.processes import CommandError, run


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
    checks: Sequence[Check],
    *,
    facts: Mapping[str, str],
    beat: Callable[[], None] = lambda: None,
) -> HealthVerdict:
    """Run `checks` in order and stop at the first that fails.

    Args:
        checks: what to run; none means that reaching this point is health enough.
        facts: put into each command's environment (BASCULE_SLOT, BASCULE_VERSION ...).
        beat: called often while a check runs.
    """
    for check in checks:
        try:
            outcome = run(check.command, timeout_secs=check.timeout_secs, extra=facts, beat=beat)
        except CommandError as error:
            return HealthVerdict(failed=check.name, sentence=f"check {check.name}: {error}")
        if outcome.status is None:
            why = f"check {check.name} took longer than {check.timeout_secs:g} s"
            return HealthVerdict(failed=check.name, sentence=why)
        if outcome.status != 0:
            last = _last_line(outcome.output)
            why = f"check {check.name} ended with status {outcome.status}{last}"
            return HealthVerdict(failed=check.name, sentence=why)
    return HealthVerdict()


def _last_line(output: bytes) -> str:
    """Return the last line a program said, made safe for logs and terminals."""
    lines = output.decode(errors="replace").strip().splitlines()
    if not lines:
        return ""
    return ": " + "".join(char if char.isprintable() else "?" for char in lines[-1][:200])
