"""Conditions that must be open before a reboot, each under one contract.

A gate looks at values and a time and gives a verdict with a code and a sentence; it does
nothing. A gate that cannot tell is closed: better to wait than to reboot under someone. The
permit is not a gate of this kind: taking it changes the cluster, so it comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    from updater.state import Hold

HELD: Final = "held"
PINNED: Final = "pinned"
ORDERS: Final = frozenset({HELD, PINNED})  # what a person ordered by name; `--now` does not pass it
ROLLOUT_STOPPED: Final = "rollout-stopped"  # as the release desk says it


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


@dataclass(frozen=True, slots=True)
class RebootPolicyGate(Gate):
    """Reboots are off until the settings or a person switch them on.

    Attributes:
        automatic: `updates.reboot` is "automatic".
        ordered: a person said `bascule reboot`.
    """

    automatic: bool
    ordered: bool

    @override
    def verdict(self, now: datetime) -> GateVerdict:
        if self.automatic:
            return GateVerdict(
                code="reboot-automatic", sentence="reboots are automatic", is_open=True
            )
        if self.ordered:
            return GateVerdict(code="reboot-ordered", sentence="a person ordered it", is_open=True)
        return GateVerdict(
            code="reboot-manual",
            sentence="reboots are manual here: order one with `bascule reboot`",
            is_open=False,
        )


@dataclass(frozen=True, slots=True)
class RolloutGate:
    """The server stopped the rollout of what is armed: do not boot it meanwhile.

    It can only delay: the next check opens it, and so does a person with `--now`.

    Attributes:
        check_code, check_sentence: how the last check ended.
    """

    check_code: str
    check_sentence: str

    def verdict(self, now: datetime) -> GateVerdict:  # noqa: ARG002  # one contract for all gates
        """Say whether the server still wants the release out."""
        if self.check_code != ROLLOUT_STOPPED:
            return GateVerdict(code="rollout", sentence="no rollout is stopped", is_open=True)
        return GateVerdict(code=ROLLOUT_STOPPED, sentence=self.check_sentence, is_open=False)


@dataclass(frozen=True, slots=True)
class HoldGate:
    """A person said that this node must not reboot for now; `--now` does not pass it.

    Attributes:
        hold: the order, None when there is none.
    """

    hold: Hold | None

    def verdict(self, now: datetime) -> GateVerdict:
        """Say whether nobody holds the node."""
        hold = self.hold
        if hold is None or not hold.holds(now):
            return GateVerdict(code="not-held", sentence="nobody holds this node", is_open=True)
        reason = f": {hold.reason}" if hold.reason else ""
        sentence = f"{hold.by} holds this node{reason}; `bascule unhold` ends it"
        return GateVerdict(code=HELD, sentence=sentence, is_open=False, opens_at=hold.until)


@dataclass(frozen=True, slots=True)
class PinGate:
    """A person said which version this node runs: another one that is armed must not boot.

    Attributes:
        pinned: the version, empty for any.
        armed: what the next boot would start; empty when it is a person's own rollback.
    """

    pinned: str
    armed: str

    def verdict(self, now: datetime) -> GateVerdict:  # noqa: ARG002  # one contract for all gates
        """Say whether what is armed is what a person wants."""
        if not self.pinned or self.armed in {"", self.pinned}:
            return GateVerdict(code="pin", sentence="no pin is in the way", is_open=True)
        sentence = f"version {self.armed} is armed and the node is pinned to {self.pinned}"
        return GateVerdict(code=PINNED, sentence=sentence, is_open=False)


def examine(gates: Iterable[Gate], now: datetime) -> tuple[GateVerdict, ...]:
    """Ask every gate, so that `why` can show all of them and not only the first."""
    return tuple(gate.verdict(now) for gate in gates)


def first_closed(verdicts: Sequence[GateVerdict]) -> GateVerdict | None:
    """Return the first closed verdict, None when all are open."""
    return next((verdict for verdict in verdicts if not verdict.is_open), None)
