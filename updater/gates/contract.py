"""What every gate promises.

A gate looks at values and a time and gives a verdict with a code and a sentence; it does
nothing. A gate that cannot tell is closed: better to wait than to reboot under someone. It never
raises: who asks may be in the middle of a trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """What one gate says at one time.

    Attributes:
        code: kebab-case, stable.
        sentence: why it is closed, or that it is open.
        is_open: whether the step may be taken as far as this gate goes.
        opens_at: when it opens by itself, if it knows.
    """

    code: str
    sentence: str
    is_open: bool
    opens_at: datetime | None = None


class Gate(Protocol):
    """One condition. The same inputs give the same verdict."""

    def verdict(self, now: datetime) -> GateVerdict:
        """Say whether the step may be taken at `now`."""


def examine(gates: Iterable[Gate], now: datetime) -> tuple[GateVerdict, ...]:
    """Ask every gate, so that `why` can show all of them and not only the first."""
    return tuple(gate.verdict(now) for gate in gates)


def first_closed(verdicts: Sequence[GateVerdict]) -> GateVerdict | None:
    """Return the first closed verdict, None when all are open."""
    return next((verdict for verdict in verdicts if not verdict.is_open), None)
