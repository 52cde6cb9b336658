"""Why a trial failed, as far as the system that came back can tell. No I/O happens here.

What the trial itself said comes first; then what others left behind; then what can be concluded
from how far the trial got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from partitions.slots import Slot
from updater.lifecycle import State
from updater.omaha.codes import TRIAL_FELL_BACK, TRIAL_PREFIX, TRIAL_SHUT_DOWN
from updater.state import Failure, NodeState, Update

if TYPE_CHECKING:
    from partitions.boot.control import BootState

GUARDED: Final = "trial-guarded"
RESET: Final = "trial-reset"
RESET_ONCE: Final = "reset-once"  # no `trial-`: to servers it is no failed trial
BOOT_FAILED: Final = "trial-boot-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is left of a boot beside the memory and the loader's.

    Attributes:
        guarded_in: the last boot in which the guard of trials ordered a reboot, empty for none.
        denied: why the update's version is refused here already; written before all else when a
            trial is judged.
        kernel_logs: where the kernel's last words before a crash are kept.
        counts_once: the loader counts one boot, and others may take it: the firmware's BootNext.
    """

    guarded_in: str = ""
    denied: Failure | None = None
    kernel_logs: Sequence[str] = ()
    counts_once: bool = False


def cause_of(
    node: NodeState, update: Update, loader: BootState, evidence: Evidence, *, now: datetime
) -> Failure:
    """Return why the update's slot was given up.

    Args:
        node: the memory as it was last written, in the trial or before it.
        update: what was on trial.
        loader: what the boot loader's memory says now.
        evidence: what else was left behind.
        now: the time.
    """
    judged = _verdict(node, update, evidence)
    if judged is not None:
        return judged
    code, sentence, hint = _concluded(node, update, loader, evidence)
    if evidence.kernel_logs and code in {RESET, BOOT_FAILED, GUARDED}:
        hint = f"The kernel's last words are in {', '.join(evidence.kernel_logs)}. {hint}"
    return Failure(
        code=code,
        sentence=f"version {update.version} in slot {update.slot} {sentence}",
        hint=hint,
        at=now,
        version=update.version,
    )


def _verdict(node: NodeState, update: Update, evidence: Evidence) -> Failure | None:
    """Return what the trial itself said, of this attempt and no earlier one."""
    known, denied = node.last_failure, evidence.denied
    if known is not None and known.version == update.version and _is_of_trial(known):
        return known
    if denied is not None and _is_of_trial(denied) and denied.at >= update.began:
        return denied
    return None


def _is_of_trial(failure: Failure) -> bool:
    return failure.code.startswith(TRIAL_PREFIX)


def _concluded(
    node: NodeState, update: Update, loader: BootState, evidence: Evidence
) -> tuple[str, str, str]:
    """Return code, the end of a sentence, and hint."""
    seen = update.tries_used > 0
    if evidence.guarded_in and evidence.guarded_in != update.guarded_in:
        how = (
            "came up and did not end its trial in time" if seen else "never brought its service up"
        )
        return (
            GUARDED,
            f"{how}; the guard ordered the reboot",
            "Look at `journalctl -u bascule` of that boot, and at health.deadline_secs.",
        )
    if node.state is State.TRIAL:
        return _concluded_of_seen(node, update, evidence)
    if loader.slots[Slot(update.slot)].tries_left > 0:
        return (
            TRIAL_FELL_BACK,
            "was not booted, though its tries were not spent",
            "Somebody chose another slot: look at the boot menu and the boot order.",
        )
    if evidence.counts_once and not seen:
        return (
            BOOT_FAILED,
            "was not booted, or never came as far as its service",
            "Somebody else may have used BootNext; else a panic, a hang or a damaged image.",
        )
    return (
        BOOT_FAILED,
        "never came as far as its service, or that could not write anything",
        "A panic, a hang, a damaged image or a loss of power: look at the console of that boot.",
    )


def _concluded_of_seen(node: NodeState, update: Update, evidence: Evidence) -> tuple[str, str, str]:
    """Return the same of a trial whose service came up and left no verdict."""
    if update.shut_down_in == node.boot_id:
        return (
            TRIAL_SHUT_DOWN,
            f"was shut down during its trial, {update.tries_given_back} times at no cost before",
            "`bascule update --force` tries it again: leave it up until it is confirmed.",
        )
    if _is_forgiven(node, update, evidence):
        return (
            RESET_ONCE,
            "came up and ended without an orderly shutdown before it was judged, once so far",
            "Most likely a loss of power: the version is refused if its next trial ends so, too.",
        )
    return (
        RESET,
        "came up and ended without an orderly shutdown before it was judged",
        "A crash of the kernel, a watchdog or a loss of power: look at that boot's console.",
    )


def _is_forgiven(node: NodeState, update: Update, evidence: Evidence) -> bool:
    """Tell whether a trial that ended by a reset says nothing against the version yet.

    The power of a site may fail during a rollout; that must not deny the version on every node. A
    kernel that left its last words, another boot of the trial that ended badly, and a trial before
    that ended likewise do say it.
    """
    ends = update.tries_used - update.tries_given_back
    known = update.version in node.reset_versions or evidence.denied is not None
    return ends <= 1 and not (known or evidence.kernel_logs or evidence.guarded_in)
