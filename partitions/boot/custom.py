"""A boot loader that an integrator's program speaks to: `slots.custom_command` and a verb.

    read                 print what the loader remembers, as JSON (`_Remembered`)
    disarm SLOT · arm SLOT TRIES · confirm SLOT · reject SLOT

Exit status 0: done, and durable. 3: refused, with a sentence on the error stream. Else: failed.
The program keeps the promises of `control.py`; what can be checked from outside is checked here:
what would leave nothing to boot is not asked for, and after each change the memory is read back.
docs/loaders.md is the integrator's page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import msgspec

from partitions.boot.control import BootState, SlotState
from partitions.errors import (
    BootControlError,
    CustomCommandError,
    CustomRefusedError,
    NothingBootableError,
    SlotBootedError,
)
from partitions.program import run
from partitions.slots import Slot

log = logging.getLogger(__name__)

REFUSED: Final = 3
TIMEOUT_SECS: Final = 30.0
SENTENCE_MAX_CHARS: Final = 300  # of what it says why it refuses or fails
TRIES_MAX: Final = 1000  # a loader that counts further says so in vain

Tries = Annotated[int, msgspec.Meta(ge=0, le=TRIES_MAX)]


class _SlotRemembered(msgspec.Struct, frozen=True):
    armed: bool
    tries_left: Tries
    confirmed: bool


class _Remembered(msgspec.Struct, frozen=True):
    """What `read` prints: the target or null, the most tries, and each slot.

    {"target": "a", "max_tries": 3, "slots": {"a": {"armed": true, "tries_left": 0,
    "confirmed": true}, "b": {"armed": false, "tries_left": 0, "confirmed": false}}}
    """

    target: Slot | None
    max_tries: Annotated[int, msgspec.Meta(ge=1, le=TRIES_MAX)]
    slots: dict[Slot, _SlotRemembered]


Judge = Callable[[BootState], bool]
"""Tells whether a memory that was read back is the one that was asked for."""


class CustomCommand:
    """Keeps `BootControl` by running the integrator's program."""

    def __init__(self, command: Sequence[str], *, booted: Slot | None = None) -> None:
        """Name the program and its first arguments.

        Args:
            command: not empty; run without a shell, in `/`, with a fixed environment.
            booted: the slot that runs; `disarm` refuses it.

        Raises:
            BootControlError: the command is empty.
        """
        if not command:
            raise BootControlError("the boot control custom needs slots.custom_command")
        self._command = tuple(command)
        self._booted = booted

    @property
    def max_tries(self) -> int:
        """The most tries that the program says the loader can count."""
        return self._remembered().max_tries

    def read(self) -> BootState:
        """Return what the program says."""
        return _state(self._remembered())

    def disarm(self, slot: Slot) -> None:
        """Run `disarm SLOT`."""
        if slot is self._booted:
            raise SlotBootedError(f"slot {slot.value} is booted, it is not disarmed")
        before = self.read()
        if before.target and not before.slots[slot.other].armed:
            raise BootControlError(
                f"slot {slot.value} is not disarmed: nothing bootable would be left"
            )
        self._change(before, slot, "disarm", lambda after: _is_off(after, slot))

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Run `arm SLOT TRIES`."""
        found = self._remembered()
        if not 1 <= tries <= found.max_tries:
            raise BootControlError(
                f"{tries} tries for slot {slot.value} are not in 1 to {found.max_tries}"
            )
        trial = SlotState(armed=True, tries_left=tries, confirmed=False)

        def armed(after: BootState) -> bool:
            return after.target is slot and after.slots[slot] == trial

        self._change(_state(found), slot, "arm", armed, str(tries))

    def confirm(self, slot: Slot) -> None:
        """Run `confirm SLOT`."""

        def confirmed(after: BootState) -> bool:
            state = after.slots[slot]
            return after.target is slot and state.armed and state.confirmed

        self._change(self.read(), slot, "confirm", confirmed)

    def reject(self, slot: Slot) -> None:
        """Run `reject SLOT`."""
        before = self.read()
        if not before.slots[slot.other].armed:
            raise BootControlError(
                f"slot {slot.value} cannot be rejected: slot {slot.other.value} would not boot"
            )

        def rejected(after: BootState) -> bool:
            return after.target is slot.other and _is_off(after, slot)

        self._change(before, slot, "reject", rejected)

    def _change(
        self, before: BootState, slot: Slot, verb: str, is_wanted: Judge, *arguments: str
    ) -> None:
        """Ask for it, even when it is so already: what was asked before may not be durable."""
        ask(self._command, verb, slot.value, *arguments)
        after = self.read()
        if not is_wanted(after) or after.slots[slot.other] != before.slots[slot.other]:
            raise CustomCommandError(
                f"after {verb} {slot.value} {self._command[0]!r} reads back {_words(after)}"
            )
        log.info("loader's memory changed verb=%s slot=%s", verb, slot.value)

    def _remembered(self) -> _Remembered:
        output = ask(self._command, "read")
        try:
            found = msgspec.json.decode(output, type=_Remembered)
        except msgspec.MsgspecError as error:  # DecodeError is one of them
            raise CustomCommandError(f"{self._command[0]!r} read: {error}") from error
        if set(found.slots) != set(Slot):
            raise CustomCommandError(f"{self._command[0]!r} read: it must tell of a and of b")
        if found.target and not found.slots[found.target].armed:
            raise CustomCommandError(
                f"{self._command[0]!r} read: target is {found.target.value}, which is not armed"
            )
        return found


def ask(command: Sequence[str], *arguments: str) -> bytes:
    """Run the program with a verb and its arguments; return what it prints.

    Raises:
        CustomRefusedError: it refuses; the sentence is its own.
        CustomCommandError: it cannot be started, fails, takes too long or says too much.
    """
    answer = run([*command, *arguments], timeout_secs=TIMEOUT_SECS)
    if answer.status == 0:
        return answer.output
    lines = answer.errors.decode(errors="replace").split("\n")
    said = "".join(
        char if char.isprintable() else " "
        for char in next((line for line in reversed(lines) if line.strip()), "no word why")
    )
    sentence = f"{command[0]!r} {' '.join(arguments)}: {said.strip()[:SENTENCE_MAX_CHARS]}"
    if answer.status == REFUSED:
        raise CustomRefusedError(sentence)
    raise CustomCommandError(f"{sentence} (exit status {answer.status})")


def boot(command: Sequence[str]) -> Slot:
    """Let the program stand for its loader: its verb `boot`, which only a model has.

    It chooses, counts the try, and prints the slot's letter.

    Raises:
        NothingBootableError: it refuses.
        CustomCommandError: it fails, or prints something else.
    """
    try:
        output = ask(command, "boot")
    except CustomRefusedError as error:
        raise NothingBootableError(str(error)) from error
    try:
        return Slot(output.decode(errors="replace").strip())
    except ValueError as error:
        raise CustomCommandError(f"{command[0]!r} boot: {error}") from error


def _state(found: _Remembered) -> BootState:
    return BootState(
        target=found.target,
        slots={
            slot: SlotState(
                armed=found.slots[slot].armed,
                tries_left=found.slots[slot].tries_left,
                confirmed=found.slots[slot].confirmed,
            )
            for slot in Slot
        },
    )


def _is_off(after: BootState, slot: Slot) -> bool:
    state = after.slots[slot]
    return after.target is not slot and not state.armed and not state.confirmed


def _words(state: BootState) -> str:
    target = state.target.value if state.target else "none"
    slots = ", ".join(
        f"{slot.value} armed={one.armed} tries_left={one.tries_left} confirmed={one.confirmed}"
        for slot, one in state.slots.items()
    )
    return f"target={target}, {slots}"
