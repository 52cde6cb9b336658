"""Every code that a node waits, holds back or goes back by, with its meaning and what to do.

Errors own their codes; these are of verdicts and waits, which are values. `bascule why` and
`status` show them. docs/errors.md is printed from here, and a test finds a code that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_NOTHING: Final = "Nothing."


@dataclass(frozen=True, slots=True)
class Condition:
    """What one code says.

    Attributes:
        meaning: a sentence.
        to_do: what a person may do about it.
    """

    meaning: str
    to_do: str = _NOTHING


STEPS: Final[Mapping[str, Condition]] = MappingProxyType(
    {
        "now": Condition("The next step is due and is taken by the service."),
        "idle": Condition("Nothing newer is wanted and no check is planned.", "`bascule check`."),
        "recode-limit": Condition(
            "Deltas that take much CPU time here are left out: download.recode_max_mib.",
            "Nothing to do: another payload is taken, which may cost more bytes.",
        ),
        "check-later": Condition("The next check is not due yet.", "`bascule check` asks now."),
        "checks-automatic": Condition("The service checks by itself."),
        "checks-manual": Condition(
            "`updates.automatic` is false: nobody checks by itself.", "`bascule update` makes one."
        ),
        "offered": Condition("The last check found a version to install."),
        "given": Condition("A person gave a payload to install; no server was asked."),
        "install-lost": Condition(
            "A plain server waits for an install that this node remembers nothing of; it was told."
        ),
        "payload-key-mode": Condition(
            "Payloads are trusted by their own signature alone; no signed channel guards the node.",
            "`trust.mode` in the settings; see docs/signing-and-keys.md.",
        ),
        "checked": Condition("A check ended without a word of its own."),
        "install-retry": Condition(
            "The last attempt to install failed and is resumed by itself.",
            "`last_failure` in `bascule status` says why; `bascule update` tries now.",
        ),
        "not-looked": Condition(
            "Nobody has looked at the node since it booted.", "Start `bascule.service`."
        ),
        "held-back": Condition(
            "The server has said nothing for long about what the signed channel names.",
            "Ask whoever runs the release desk: see `trust.max_holdback_days`.",
        ),
        "booted-confirmed": Condition("The booted slot has proven healthy."),
        "trial-fell-back": Condition(
            "The new slot was not booted, though the loader could have: somebody chose otherwise.",
            "Look at the boot menu and the boot order; `bascule update --force` tries again.",
        ),
        "trial-boot-failed": Condition(
            "The new slot was booted and never came as far as its service: a panic, a hang, a "
            "damaged image, or a loss of power; or that service could not write anything.",
            "Look at the console of that boot; the hint names what the kernel left in pstore.",
        ),
        "trial-guarded": Condition(
            "The new slot's service never came up, or did not end the trial in time, and the guard "
            "(`bascule-guard.timer`) ordered the reboot.",
            "Look at `journalctl -u bascule` of that boot.",
        ),
        "trial-reset": Condition(
            "The new slot came up and ended before it was judged, without an orderly shutdown, for "
            "the second time, or once with last words of the kernel: a crash of the kernel, a "
            "watchdog, or a loss of power.",
            "Look at the console of that boot; `bascule update --force` tries again.",
        ),
        "reset-once": Condition(
            "The new slot came up and ended before it was judged, without an orderly shutdown, for "
            "the first time, and the kernel left no last words: most likely a loss of power.",
            "Nothing; the version is tried once more when it is offered again, and refused "
            "(`trial-reset`) if that trial ends like this, too.",
        ),
        "trial-shut-down": Condition(
            "People shut the machine down during the trial more often than is given back.",
            "`bascule update --force` tries again; leave it up until it is confirmed.",
        ),
        "trial-unhealthy": Condition(
            "A health check still failed when the time of the trial was over.",
            "Look at the named check; a newer version is tried by itself.",
        ),
        "trial-too-late": Condition(
            "The trial ended before any look at the health came to an end.",
            "Look at `health.deadline_secs` and at how long the checks take.",
        ),
        "slot-unverified": Condition(
            "Somebody, or the firmware's own order, booted a slot that an install began to write "
            "and never verified. The node goes back to the other slot, once; then it stays and "
            "waits. The slot is never confirmed by itself, and no version is refused for it.",
            "Boot the other slot, and look at the boot menu and the boot order; `bascule confirm` "
            "only if you know that the slot is whole.",
        ),
        "rolled-back": Condition(
            "A person took the version back.", "`bascule update --force` takes it all the same."
        ),
        "health-pending": Condition("The health is looked at again in a moment."),
        "health-steady": Condition(
            "The trial is healthy; it is confirmed once it was so for `health.steady_secs`.",
            "Nothing; `bascule confirm` does not wait.",
        ),
        "health-failing": Condition(
            "A health check fails; at the end of its time a trial goes back.",
            "Look at the named check; `bascule confirm` if the system is good.",
        ),
    }
)

GATES: Final[Mapping[str, Condition]] = MappingProxyType(
    {
        "held": Condition("A person holds the node.", "`bascule unhold` ends it."),
        "not-held": Condition("Nobody holds the node."),
        "pin": Condition("No pin is in the way of what is armed."),
        "pinned": Condition(
            "The node is pinned to another version than the one that is armed or wanted.",
            "`bascule unpin`, or pin the version that is wanted.",
        ),
        "rollout": Condition("No rollout is stopped."),
        "window-open": Condition("A reboot window is open."),
        "window-closed": Condition(
            "No reboot window is open.",
            "Wait for the next one; `bascule reboot --now` does not wait.",
        ),
        "not-inhibited": Condition("Nobody asked that the machine stay up."),
        "inhibited": Condition(
            "Somebody asked that the machine stay up.",
            "`systemd-inhibit --list`; `bascule reboot --now` does not wait.",
        ),
        "inhibitors-unknown": Condition(
            "logind does not say who asked that the machine stay up.",
            "`loginctl` must answer; `bascule reboot --now` does not wait.",
        ),
        "reboot-automatic": Condition("`updates.reboot` is automatic."),
        "reboot-manual": Condition("Reboots are manual here.", "Order one: `bascule reboot`."),
        "reboot-ordered": Condition("A person ordered the reboot."),
        "rebooting": Condition("The reboot is ordered and comes in a moment."),
    }
)

PERMITS: Final[Mapping[str, Condition]] = MappingProxyType(
    {
        "permit-none": Condition("No permit is needed: `permit.kind` is none."),
        "permit-held": Condition("This node holds the permit."),
        "permit-later": Condition("The permit is asked for when all gates are open."),
        "permit-full": Condition(
            "Every place of the group is taken.", "`bascule permit status` shows by whom."
        ),
        "permit-closed": Condition(
            "The group has no place at all: its maximum is 0.", "`bascule permit set-max 1`."
        ),
        "permit-queued": Condition("A place is free, but other nodes came first."),
        "permit-contended": Condition("Other nodes change the group; it is tried again."),
        "permit-unavailable": Condition(
            "etcd cannot be asked.", "Check etcd and the endpoints in [permit]."
        ),
        "permit-owed": Condition("The permit could not be returned yet; it is tried again."),
    }
)

SERVERS: Final[Mapping[str, Condition]] = MappingProxyType(
    {
        "server-noupdate": Condition(
            "The server has nothing newer for this node, and says no reason.",
            "Nothing, or give the group's channel a newer package.",
        ),
        "server-throttled": Condition(
            "As many nodes as the group's limits allow have begun or are under way.",
            "Nothing: the node asks again. The group's policy on the server has the limits.",
        ),
        "server-halted": Condition(
            "The server stopped the rollout itself: too many nodes of the group did not finish in "
            "time.",
            "Look at those nodes; then switch the group's updates on again at the server.",
        ),
        "server-paused": Condition(
            "The group's updates are switched off at the server, or it is outside their hours.",
            "Nothing outside the hours; else switch the group's updates on at the server.",
        ),
        "server-in-progress": Condition(
            "The server takes this node to be in the middle of an update.",
            "Nothing: a node that remembers no such update says so (`install-lost`), and the "
            "server lets it go.",
        ),
        "server-no-package": Condition(
            "The group has no channel, or its channel no package for this node.",
            "Give the group a channel, and the channel a package, at the server.",
        ),
        "server-trouble": Condition(
            "The server could not count which nodes are under way.",
            "Nothing: the node asks again. If it stays, look at the server's log.",
        ),
        "server-error": Condition(
            "The server knows the node and answers its check with an error; the sentence has it.",
            "Look the error up at the server; the node asks again.",
        ),
    }
)

CONDITIONS: Final[Mapping[str, Condition]] = MappingProxyType(
    {**STEPS, **GATES, **PERMITS, **SERVERS}
)
