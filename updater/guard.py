"""What the guard of trials has to know: a marker that outlives the boot, and three notes of a boot.

The guard (`system/usr/lib/bascule/guard`) is a shell script that a timer starts: it ends a trial
whose service does not. It cannot ask this program, which may be what is broken, so what it needs
is left for it in plain lines. Decision 0011 has the reasons.

    <state folder>/trial       from before a slot is armed until it is confirmed or given up:
                               reboots that the guard may still order, the boot in which it
                               ordered the last one, and the image.toml of the system that armed
                               the slot, so that the guard knows that system from the one on trial
    <run folder>/confirmed     the booted slot is confirmed in the loader's memory
    <run folder>/trial-until   the uptime in seconds until which a service that came up ends the
                               trial by itself
    <run folder>/no-way-back   the loader has no other slot to boot: a reboot would lose the machine
"""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from updater.settings import HealthSettings

log = logging.getLogger(__name__)

CONFIRMED_FILE: Final = "confirmed"
UNTIL_FILE: Final = "trial-until"
NO_WAY_BACK_FILE: Final = "no-way-back"
GOING_BACK: Final = timedelta(minutes=7)  # for a permit to go back with, and an orderly shutdown


def patience(health: HealthSettings, uptime: timedelta) -> timedelta:
    """Return the uptime until which a service that begins at `uptime` ends its trial by itself.

    Counted from the later of deadline and beginning, as a trial is never judged unseen. A look of
    full length may begin right before it; its end begins the steady time, which ends with the
    first look that ends after it: one pause and one more look later than due. Then the way back.
    """
    look = 2 * health.units_timeout_secs + len(health.ports) * health.ports_timeout_secs
    look += sum(check.timeout_secs for check in health.checks)
    judged = max(uptime, timedelta(seconds=health.deadline_secs))
    looks = 2 * (look + health.interval_secs)
    return judged + timedelta(seconds=looks + health.steady_secs) + GOING_BACK


def note_confirmed(run_folder: Path) -> None:
    """Say that the booted slot is confirmed; a note that cannot be made hurts nothing else."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        (run_folder / CONFIRMED_FILE).touch(mode=0o644)
    except OSError as error:
        log.warning("the guard is not told why=%s", error)


def note_until(run_folder: Path, until: timedelta) -> None:
    """Say how long the service may take, once a boot: one that crashes again gets no more."""
    path = run_folder / UNTIL_FILE
    draft = path.with_name(f"{path.name}.draft")
    if path.exists():
        return
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(f"{int(until.total_seconds())}\n")
        draft.replace(path)
    except OSError as error:
        log.warning("the guard is not told why=%s", error)


def note_way_back(run_folder: Path, *, there_is_one: bool) -> None:
    """Say whether the loader has another slot to boot, as far as this look at its memory tells."""
    path = run_folder / NO_WAY_BACK_FILE
    try:
        if there_is_one:
            path.unlink(missing_ok=True)
        else:
            path.touch(mode=0o644)
    except OSError as error:
        log.warning("the guard is not told why=%s", error)
