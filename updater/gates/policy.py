"""The gate of the settings: does this node reboot by itself at all?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from typing_extensions import override

from updater.gates.contract import Gate, GateVerdict


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
