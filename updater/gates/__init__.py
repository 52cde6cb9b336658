"""Conditions that must be open before a reboot, one a file, all under one contract.

The permit is not a gate of this kind: taking it changes the cluster, so it comes last. A new gate
is a file here, and a line in `Node.gates`. `window` is imported where windows are set: it loads
the calendar.
"""

from updater.gates.contract import Gate, GateVerdict, examine, first_closed
from updater.gates.orders import HELD, ORDERS, PINNED, HoldGate, PinGate
from updater.gates.policy import RebootPolicyGate
from updater.gates.rollout import ROLLOUT_STOPPED, RolloutGate

__all__ = [
    "HELD",
    "ORDERS",
    "PINNED",
    "ROLLOUT_STOPPED",
    "Gate",
    "GateVerdict",
    "HoldGate",
    "PinGate",
    "RebootPolicyGate",
    "RolloutGate",
    "examine",
    "first_closed",
]
