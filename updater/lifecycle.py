"""The life of one update on one node, as a table. No I/O happens in this room.

Rule 1: every state and every move between states stands in `TRANSITIONS`; nothing else may
change a state. An illegal move is one error. D-Bus, the CLI, the state file, Omaha events and
the dashboard all show the values of `State`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from updater.errors import IllegalTransitionError


class State(enum.Enum):
    """Where the node stands; the value is what `status` prints and disk records."""

    IDLE = "idle"  # booted slot confirmed, nothing newer wanted
    CHECKING = "checking"  # asking Omaha and TUF
    INSTALLING = "installing"  # passive slot disarmed and being written; resumable
    VERIFYING = "verifying"  # read-back and signatures
    ARMED = "armed"  # passive slot is the target; waits for gates and permit
    REBOOTING = "rebooting"  # permit held, reboot ordered
    TRIAL = "trial"  # first boots of the new slot, health not yet shown


class Event(enum.Enum):
    """What can happen to a node, as far as the lifecycle cares."""

    CHECK_DUE = "check-due"
    OFFERED = "offered"  # a release was verified and planned
    NOTHING = "nothing"  # nothing newer is wanted
    REFUSED = "refused"  # trust or policy said no
    UNREACHABLE = "unreachable"  # a server could not be asked
    RESTARTED = "restarted"  # the process began anew within the same boot
    WRITTEN = "written"  # the passive slot holds all bytes, flushed
    VERIFIED = "verified"  # read back, equal to what was signed, and armed
    FAILED = "failed"  # the attempt ended; the passive slot stays disarmed
    PERMITTED = "permitted"  # gates open and permit held: reboot ordered
    NOT_REBOOTED = "not-rebooted"  # the ordered reboot did not happen
    SUPERSEDED = "superseded"  # a newer release replaces the armed one
    CANCELLED = "cancelled"  # a person took the armed update back
    ROLLBACK_ORDERED = "rollback-ordered"  # a person wants the other slot
    BOOTED_NEW = "booted-new"  # a boot came up in the target slot
    BOOTED_OLD = "booted-old"  # a boot came up in the old slot: fallen back
    BOOTED_UNVERIFIED = "booted-unverified"  # a boot came up in a slot that nobody verified
    BOOTED_UNTRIED = "booted-untried"  # a boot of the old slot, the target still to be tried
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    TOO_LATE = "too-late"  # health was not shown in time


# fmt: off
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType({
    State.IDLE: {
        Event.CHECK_DUE: State.CHECKING,
        Event.ROLLBACK_ORDERED: State.ARMED,
        Event.BOOTED_NEW: State.TRIAL,  # the state folder was lost during a trial
        Event.BOOTED_UNVERIFIED: State.TRIAL,  # the install had failed: it goes back
        Event.BOOTED_OLD: State.IDLE,
        Event.RESTARTED: State.IDLE,
    },
    State.CHECKING: {
        Event.CHECK_DUE: State.CHECKING,  # the end of the last look could not be kept: a full disk
        Event.OFFERED: State.INSTALLING,
        Event.NOTHING: State.IDLE,
        Event.REFUSED: State.IDLE,
        Event.UNREACHABLE: State.IDLE,
        Event.FAILED: State.IDLE,
        Event.RESTARTED: State.IDLE,
        Event.BOOTED_OLD: State.IDLE,
        Event.BOOTED_NEW: State.TRIAL,
        Event.BOOTED_UNVERIFIED: State.TRIAL,
    },
    State.INSTALLING: {
        Event.WRITTEN: State.VERIFYING,
        Event.FAILED: State.IDLE,
        Event.SUPERSEDED: State.INSTALLING,
        Event.CANCELLED: State.IDLE,
        Event.RESTARTED: State.INSTALLING,
        Event.BOOTED_OLD: State.INSTALLING,  # resumes after a reboot
        Event.BOOTED_NEW: State.TRIAL,  # it was armed, and power failed before that was noted
        Event.BOOTED_UNVERIFIED: State.TRIAL,  # by a boot menu, or the firmware's own order
    },
    State.VERIFYING: {
        Event.VERIFIED: State.ARMED,
        Event.FAILED: State.IDLE,
        Event.RESTARTED: State.INSTALLING,  # nothing is left to write: it verifies anew
        Event.BOOTED_OLD: State.INSTALLING,
        Event.BOOTED_NEW: State.TRIAL,  # power failed between arming and remembering it
        Event.BOOTED_UNVERIFIED: State.TRIAL,
    },
    State.ARMED: {
        Event.PERMITTED: State.REBOOTING,
        Event.SUPERSEDED: State.INSTALLING,
        Event.CANCELLED: State.IDLE,
        Event.RESTARTED: State.ARMED,
        Event.BOOTED_NEW: State.TRIAL,
        Event.BOOTED_OLD: State.IDLE,
        Event.BOOTED_UNTRIED: State.ARMED,
    },
    State.REBOOTING: {
        Event.NOT_REBOOTED: State.ARMED,
        Event.RESTARTED: State.REBOOTING,
        Event.BOOTED_NEW: State.TRIAL,
        Event.BOOTED_UNVERIFIED: State.TRIAL,  # it went back from there, and is there again
        Event.BOOTED_OLD: State.IDLE,
        Event.BOOTED_UNTRIED: State.ARMED,
    },
    State.TRIAL: {
        Event.HEALTHY: State.IDLE,
        Event.UNHEALTHY: State.REBOOTING,
        Event.TOO_LATE: State.REBOOTING,
        Event.RESTARTED: State.TRIAL,
        Event.BOOTED_NEW: State.TRIAL,  # another try of the same slot
        Event.BOOTED_UNVERIFIED: State.TRIAL,
        Event.BOOTED_OLD: State.IDLE,
    },
})
# fmt: on

# The names that update_engine's D-Bus clients know (reference: update_engine's GetStatus).
COMPATIBLE_NAMES: Final[Mapping[State, str]] = MappingProxyType(
    {
        State.IDLE: "UPDATE_STATUS_IDLE",
        State.CHECKING: "UPDATE_STATUS_CHECKING_FOR_UPDATE",
        State.INSTALLING: "UPDATE_STATUS_DOWNLOADING",
        State.VERIFYING: "UPDATE_STATUS_FINALIZING",  # the real engine never says VERIFYING
        State.ARMED: "UPDATE_STATUS_UPDATED_NEED_REBOOT",
        State.REBOOTING: "UPDATE_STATUS_UPDATED_NEED_REBOOT",
        State.TRIAL: "UPDATE_STATUS_IDLE",
    }
)


def step(state: State, event: Event) -> State:
    """Return the state after `event`.

    Raises:
        IllegalTransitionError: the table has no such move.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(
            f"nothing may happen by {event.value!r} in state {state.value!r}"
        ) from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for docs/lifecycle.md."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    for state, moves in TRANSITIONS.items():
        lines += [
            f"    {state.value} --> {after.value}: {event.value}" for event, after in moves.items()
        ]
    return "\n".join(lines) + "\n"
