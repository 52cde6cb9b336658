"""Who asks logind that this machine not be shut down now, and the gate that respects it.

Root's `systemctl reboot` overrides such a block, so the engine looks before it orders one. A
machine without logind has none. Inhibitors of mode `delay` are logind's to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from typing_extensions import override

from updater.gates import Gate, GateVerdict
from updater.machine import Inhibitor, MachineError
from updater.processes import CommandError, Outcome, run

SYSTEM_BUS: Final = Path("/run/dbus/system_bus_socket")
BOOTED_WITH_SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)
ASK_TIMEOUT_SECS: Final = 5.0
TEXT_MAX_CHARS: Final = 120  # of what others gave as their name and reason
LOGIND: Final = "org.freedesktop.login1"
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_MANAGER: Final = (LOGIND, "/org/freedesktop/login1", f"{LOGIND}.Manager")

_Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]


class _Inhibitors(msgspec.Struct):
    """`a(ssssuu)` as busctl prints it: what, who, why, mode, uid, pid."""

    data: tuple[list[tuple[_Text, _Text, _Text, _Text, int, int]]]


class _Names(msgspec.Struct):
    """`as` as busctl prints it."""

    data: tuple[list[_Text]]


@dataclass(frozen=True, slots=True)
class InhibitorGate(Gate):
    """Nobody asked that the machine stay up.

    Attributes:
        ask: lists the inhibitors; raises `MachineError` when it cannot tell.
    """

    ask: Callable[[], Sequence[Inhibitor]]

    @override
    def verdict(self, now: datetime) -> GateVerdict:
        try:
            found = [one for one in self.ask() if one.blocks_shutdown]
        except MachineError as error:
            return GateVerdict(code="inhibitors-unknown", sentence=str(error), is_open=False)
        if not found:
            return GateVerdict(
                code="not-inhibited", sentence="nobody inhibits a shutdown", is_open=True
            )
        first = found[0]
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        who = f"{first.who} (process {first.pid} of user {first.uid})"
        sentence = f"{who} inhibits a shutdown: {first.why or 'no reason given'}{others}"
        return GateVerdict(code="inhibited", sentence=sentence, is_open=False)


def run_busctl(command: Sequence[str]) -> Outcome:
    """Run `busctl` with a time limit, for what it prints."""
    return run(command, timeout_secs=ASK_TIMEOUT_SECS, with_errors=False)


def list_inhibitors(
    *,
    bus: Path = SYSTEM_BUS,
    booted: Path = BOOTED_WITH_SYSTEMD,
    runner: Callable[[Sequence[str]], Outcome] = run_busctl,
) -> tuple[Inhibitor, ...]:
    """Ask logind who inhibits what; none on a machine without logind.

    Args:
        bus: the system bus's socket.
        booted: there on a machine that systemd runs.
        runner: runs a program.

    Raises:
        MachineError: there is a logind, and it does not answer.
    """
    if not bus.exists():
        return ()
    try:
        outcome = _call(runner, bus, *_MANAGER, "ListInhibitors")
    except CommandError as error:
        if not booted.exists():
            return ()
        raise MachineError(f"inhibitors cannot be listed: {error}") from error
    if outcome.status == 0:
        return _parsed(outcome.output)
    if not _has_logind(runner, bus):
        return ()
    how = "took too long" if outcome.status is None else f"ended with status {outcome.status}"
    raise MachineError(f"inhibitors cannot be listed: busctl {how}")


def _call(runner: Callable[[Sequence[str]], Outcome], bus: Path, *words: str) -> Outcome:
    return runner(["busctl", f"--address=unix:path={bus}", "--json=short", "call", *words])


def _has_logind(runner: Callable[[Sequence[str]], Outcome], bus: Path) -> bool:
    """Tell whether the bus knows a logind, running or to be started; True when it cannot tell."""
    for question in ("ListNames", "ListActivatableNames"):
        outcome = _call(runner, bus, *_BUS, question)
        try:
            names = msgspec.json.decode(outcome.output, type=_Names).data[0]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return True
        if outcome.status != 0 or LOGIND in names:
            return True
    return False


def _parsed(output: bytes) -> tuple[Inhibitor, ...]:
    try:
        rows = msgspec.json.decode(output, type=_Inhibitors).data[0]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MachineError(f"inhibitors cannot be listed: busctl's answer is odd: {error}") from (
            error
        )
    return tuple(
        Inhibitor(
            what=frozenset(what.split(":")),
            who=_safe(who),
            why=_safe(why),
            mode=mode,
            uid=uid,
            pid=pid,
        )
        for what, who, why, mode, uid, pid in rows
    )


def _safe(text: str) -> str:
    """Return what anybody may have written, for logs and terminals."""
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_MAX_CHARS])
