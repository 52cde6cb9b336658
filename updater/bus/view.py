"""What is shown on the bus, as values of the facts of `status`. No I/O happens here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from updater.lifecycle import State
from updater.why import CHECKED_WELL

PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "State": "s",
        "CompatibleState": "s",
        "EngineVersion": "s",
        "BootedSlot": "s",
        "BootedVersion": "s",
        "Confirmed": "b",
        "TargetSlot": "s",
        "UpdateVersion": "s",
        "UpdateKind": "s",
        "UpdateCost": "x",
        "UpdateLeftOut": "s",
        "UpdateWholeOn": "s",
        "Progress": "d",
        "WaitingCode": "s",
        "WaitingSentence": "s",
        "LastCheck": "x",
        "NextCheck": "x",
        "Held": "b",
        "HoldReason": "s",
        "Pinned": "s",
        "LastFailureCode": "s",
        "LastFailureSentence": "s",
    }
)
EMPTY: Final[Mapping[str, object]] = MappingProxyType(
    {name: {"s": "", "b": False, "d": 0.0, "x": 0}[kind] for name, kind in PROPERTIES.items()}
)
NO_VERSION: Final = "0.0.0"  # as update_engine says it
PROGRESS_STEP: Final = 0.01  # update_engine tells each percent
ROUNDING_SECS: Final = 2  # a time that is computed anew at each look moves by so much


def properties(facts: Mapping[str, Any], *, engine_version: str) -> dict[str, object]:
    """Return the values of `org.bascule.Updater1`'s properties."""
    update, waiting, hold = facts["update"] or {}, facts["waiting"] or {}, facts["hold"] or {}
    failure = facts["last_failure"] or {}
    return {
        "State": facts["state"],
        "CompatibleState": facts["compatible_state"],
        "EngineVersion": engine_version,
        "BootedSlot": facts["booted"]["slot"],
        "BootedVersion": facts["booted"]["version"] or "",
        "Confirmed": bool(facts["confirmed"]),
        "TargetSlot": facts["target"] or "",
        "UpdateVersion": update.get("version", ""),
        "UpdateKind": update.get("kind", ""),
        "UpdateCost": update.get("cost", 0),
        "UpdateLeftOut": "; ".join(update.get("left_out", ())),
        "UpdateWholeOn": update.get("whole_on", ""),
        "Progress": 1.0 if facts["state"] == State.VERIFYING.value else _share(update),
        "WaitingCode": waiting.get("code", ""),
        "WaitingSentence": waiting.get("sentence", ""),
        "LastCheck": _unix(facts["last_check"]["at"]),
        "NextCheck": _unix(facts["next_check"]),
        "Held": bool(hold),
        "HoldReason": hold.get("reason", ""),
        "Pinned": facts["pinned"] or "",
        "LastFailureCode": failure.get("code", ""),
        "LastFailureSentence": failure.get("sentence", ""),
    }


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, object]:
    """Return what is worth telling of the difference between two looks."""
    return {name: value for name, value in after.items() if _differs(name, before[name], value)}


def _differs(name: str, before: object, after: object) -> bool:
    if name == "NextCheck" and isinstance(before, int) and isinstance(after, int):
        return abs(after - before) > ROUNDING_SECS
    return before != after


@dataclass(frozen=True, slots=True)
class CompatibleStatus:
    """What update_engine's GetStatus gives, in its order.

    Attributes:
        last_checked_time: of the last check that succeeded, Unix seconds, 0 for never.
        progress: 0 to 1 while bytes arrive, 0 otherwise.
        current_operation: `UPDATE_STATUS_...`.
        new_version, new_size: of the update under way; "0.0.0" and 0 without one.
    """

    last_checked_time: int = 0
    progress: float = 0.0
    current_operation: str = "UPDATE_STATUS_IDLE"
    new_version: str = NO_VERSION
    new_size: int = 0

    def values(self) -> tuple[object, ...]:
        """Return them as they are sent."""
        return (
            self.last_checked_time,
            self.progress,
            self.current_operation,
            self.new_version,
            self.new_size,
        )

    def is_news_after(self, last: CompatibleStatus) -> bool:
        """Tell whether it differs from the last one told by more than progress under 1 %."""
        if self.progress == last.progress:
            return self != last
        moved = round(abs(self.progress - last.progress), 6) >= PROGRESS_STEP
        return moved or self.values()[2:] != last.values()[2:]


def compatible_status(
    facts: Mapping[str, Any], last: CompatibleStatus, *, begins: bool = False
) -> CompatibleStatus:
    """Return what update_engine would say.

    Args:
        facts: of `status`.
        last: what was said before: its time of the last good check stays when a check failed.
        begins: an attempt was asked for, and its process has not come far enough to be seen.
    """
    operation = facts["compatible_state"]
    if begins and facts["state"] == State.IDLE.value:
        operation = "UPDATE_STATUS_CHECKING_FOR_UPDATE"
    checked = last.last_checked_time
    if facts["last_check"]["code"] in CHECKED_WELL:
        checked = max(checked, _unix(facts["last_check"]["at"]))
    update = facts["update"]
    named = facts["state"] not in {State.IDLE.value, State.CHECKING.value, State.TRIAL.value}
    return CompatibleStatus(
        last_checked_time=checked,
        progress=_share(update or {}) if facts["state"] == State.INSTALLING.value else 0.0,
        current_operation=operation,
        new_version=update["version"] if named and update else NO_VERSION,
        new_size=int(update["size"]) if named and update else 0,
    )


def _share(update: Mapping[str, Any]) -> float:
    if not update.get("size"):
        return 0.0
    return min(1.0, float(update["done"] / update["size"]))


def _unix(text: str | None) -> int:
    return int(datetime.fromisoformat(text).timestamp()) if text else 0
