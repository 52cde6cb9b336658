"""What a person ordered by name, and `bascule reboot --now` does not pass: hold and pin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from images.errors import VersionInvalidError
from images.version import parse_version
from updater.gates.contract import GateVerdict

if TYPE_CHECKING:
    from updater.state import Hold

HELD: Final = "held"
PINNED: Final = "pinned"
ORDERS: Final = frozenset({HELD, PINNED})


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
        if not self.pinned or not self.armed or _same(self.pinned, self.armed):
            return GateVerdict(code="pin", sentence="no pin is in the way", is_open=True)
        sentence = f"version {self.armed} is armed and the node is pinned to {self.pinned}"
        return GateVerdict(code=PINNED, sentence=sentence, is_open=False)


def _same(one: str, other: str) -> bool:
    """Tell whether two texts name one version; 2.0 is 2.0.0. What is none is only itself."""
    try:
        return parse_version(one) == parse_version(other)
    except VersionInvalidError:
        return one == other
