"""One node as the verbs see it: its collaborators, its memory, and the lock that guards both.

The state on disk is the truth: every verb takes the lock, reads it, and leaves it legal. The
lock is held per action, never for a daemon's life; readers do without it. What the verbs do is
in `checking`, `updating` and `rebooting`; which are due is decided by `agent`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from partitions.booted import Booted
from partitions.slots import Region, Slot, SlotLayout, resolve
from updater.causes import RESET_ONCE, Evidence
from updater.errors import EngineBusyError, StateError, WindowInvalidError
from updater.gates import (
    Gate,
    GateVerdict,
    HoldGate,
    PinGate,
    RebootPolicyGate,
    RolloutGate,
    examine,
    first_closed,
)
from updater.guard import note_confirmed, note_until, note_way_back, patience
from updater.lifecycle import Event, State, step
from updater.progress import ProgressFile
from updater.recovery import recover
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.state import Failure, NodeState, Report, Store
from updater.trial_marker import TrialMarker

if TYPE_CHECKING:
    import requests

    from images.release import ImageFacts
    from partitions.boot import Choice
    from partitions.boot.control import BootControl, BootState
    from partitions.errors import BootControlError
    from updater.machine import Boot, Machine
    from updater.permit.contract import PermitKeeper
    from updater.settings import Settings
    from updater.steering import Steering
    from updater.trust.refresh import TrustClient

log = logging.getLogger(__name__)

LOCK_FILE: Final = "engine.lock"
LOCK_LOOK_SECS: Final = 0.05


@dataclass(kw_only=True)
class Node:
    """The collaborators of one node; built in one place, `assembly`.

    Attributes:
        settings: checked settings.
        layout: which partitions and files make slot A and slot B.
        machine: the computer.
        loader: the boot loader's memory.
        loader_choice: which loader that is, and why.
        store: the state folder.
        clock: the time, with zone.
        chance: a number in [0, 1), for jitter.
        trust, permits, http: made when first needed, so that a status loads neither.
        director: makes what asks Omaha, when first needed too; None for a node that follows its
            channel alone.
        stop: set to end whatever is under way.
        beat: called now and then by what takes long in this process, so that it counts as alive.
    """

    settings: Settings
    layout: SlotLayout
    machine: Machine
    loader: BootControl
    loader_choice: Choice
    store: Store
    clock: Callable[[], datetime]
    chance: Callable[[], float]
    trust: Callable[[], TrustClient]
    permits: Callable[[], PermitKeeper]
    http: Callable[[], requests.Session]
    director: Callable[[], Steering] | None
    progress: ProgressFile
    stop: threading.Event = field(default_factory=threading.Event)
    beat: Callable[[], None] = field(default=lambda: None)

    @property
    def trial_tries(self) -> int:
        """How many boots a new slot gets: as set, or as many as the loader can count.

        Raises:
            PartitionsError: the loader cannot be asked.
        """
        return min(self.settings.slots.tries, self.loader.max_tries)

    @property
    def steering(self) -> Steering | None:
        """How Omaha is asked; None for a node that follows its channel alone."""
        return self.director() if self.director is not None else None

    @contextlib.contextmanager
    def locked(self, *, patience_secs: float = 0) -> Iterator[NodeState]:
        """Hold the engine's lock and give the memory, recovered if a process or boot ended.

        Args:
            patience_secs: how long to wait for another process to let go. The service's own
                looks take moments; an install takes minutes and is not waited for.

        Raises:
            EngineBusyError: another process works on this node.
            StateError: the state folder cannot be used.
            MachineError: the booted slot cannot be told.
        """
        self.store.prepare()
        descriptor = self._open_lock()
        try:
            self._lock(descriptor, time.monotonic() + patience_secs)
            yield self._recovered()
        finally:
            os.close(descriptor)

    def advance(self, node: NodeState, event: Event, **changes: object) -> NodeState:
        """Make one legal move and keep it; returns the new memory.

        Raises:
            IllegalTransitionError: the lifecycle has no such move.
            StateError: it cannot be kept.
        """
        state = step(node.state, event)
        after = self.keep(node, state=state, waiting_code="", waiting_sentence="", **changes)
        if state is not node.state:
            log.info(
                "state changed from=%s to=%s by=%s", node.state.value, state.value, event.value
            )
        return after

    def keep(self, node: NodeState, **changes: object) -> NodeState:
        """Change the memory without a move; nothing is written when nothing changes."""
        after = msgspec.structs.replace(node, **changes)
        if after != node:
            self.store.write_state(after)
        return after

    def arm(self, slot: Slot) -> None:
        """Make `slot` the target, on trial; its guard is told first.

        Raises:
            AnyRoomError: the marker, or the loader's memory, cannot be written.
        """
        tries = self.trial_tries
        image = self.machine.image_file(self.boot().slot)
        self.store.write_marker(TrialMarker(reboots_left=tries, image=image))
        self.loader.arm(slot, tries=tries)

    def report(self, report: Report) -> None:
        """Queue an event for the server; telling it is somebody else's work."""
        if self.steering is not None:
            self.store.queue_report(report)

    def failure(self, error: AnyRoomError, *, version: str = "") -> Failure:
        """Return what an error of any room says, as it is remembered."""
        return Failure(
            code=error.code,
            sentence=str(error),
            hint=error.hint,
            at=self.clock(),
            version=version,
        )

    def loader_obstacle(self) -> BootControlError | None:
        """Return why the loader does not go by its memory of the slots, None if it does.

        Raises:
            PartitionsError: that memory cannot be read.
        """
        from partitions.boot import obstacle
        from updater.assembly import places

        return obstacle(self.loader_choice.name, places(self.settings, self.layout))

    def boot(self) -> Boot:
        """Tell which slot runs."""
        return self.machine.boot()

    def running(self) -> ImageFacts:
        """Tell what the booted image says of itself."""
        return self.machine.image_facts(self.boot().slot)

    def regions(self, slot: Slot) -> Mapping[str, Region]:
        """Return where the parts of `slot` are."""
        return resolve(Path(self.settings.slots.disk), self.layout)[slot]

    def booted(self) -> Booted:
        """Name the partitions and files of the running system: never to be written."""
        regions = self.regions(self.boot().slot)
        return Booted.of_regions(regions.values(), apart=self.machine.apart())

    def gates(self, node: NodeState, *, thorough: bool = False) -> tuple[GateVerdict, ...]:
        """Ask every gate before a reboot.

        Args:
            node: the memory.
            thorough: also those that cost a process when a cheaper one is closed already.
        """
        policy = RebootPolicyGate(
            automatic=self.settings.updates.reboot == "automatic", ordered=node.reboot_ordered
        )
        by_person = node.update is not None and node.update.rollback
        rollout = RolloutGate("" if by_person else node.last_check_code, node.last_check_sentence)
        hold = HoldGate(self.store.read_hold())
        armed = node.update.version if node.update is not None and not by_person else ""
        pinned = PinGate(pinned=self._pinned(), armed=armed)
        gates: tuple[Gate, ...] = (hold, pinned, rollout, policy, *self._window_gates())
        verdicts = examine(gates, self.clock())
        if thorough or (node.state is State.ARMED and first_closed(verdicts) is None):
            from updater.inhibitors import InhibitorGate

            verdicts += examine((InhibitorGate(self.machine.inhibitors),), self.clock())
        return verdicts

    def _pinned(self) -> str:
        """Return the pinned version; a pin that cannot be read is one to something unknown.

        It must not raise: a trial asks the gates too, and has to end.
        """
        try:
            pin = self.store.read_pin()
        except StateError as error:
            log.warning("pin cannot be read why=%s", error)
            return "unknown (pin.json cannot be read)"
        return pin.version if pin else ""

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline or self.stop.wait(LOCK_LOOK_SECS):
                    raise EngineBusyError("another process works on this node") from None

    def _window_gates(self) -> tuple[Gate, ...]:
        """Read the windows each time: the machine's zone may be changed while the service runs."""
        rows = self.settings.reboot.windows
        if not rows:
            return ()
        from updater.gates.window import WindowGate
        from updater.windows import read_windows
        from updater.zones import local_zone

        try:
            return (WindowGate(read_windows(rows, local=local_zone())),)
        except WindowInvalidError as error:  # the zones of the system changed under us
            return (WindowGate(error),)

    def _open_lock(self) -> int:
        path = self.store.folder / LOCK_FILE
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            with contextlib.suppress(OSError):  # a read-only folder can still be locked
                return os.open(path, flags | os.O_RDONLY)
            raise StateError(f"{path} cannot be opened: {error.strerror}") from error

    def _recovered(self) -> NodeState:
        """Read the memory; when another process or boot wrote it, find out what happened."""
        node = self.store.read_state()
        if node.boot_id == self.boot().boot_id and node.writer == _writer():
            return node
        loader = self.loader.read()
        found = recover(node, self.boot(), loader, self.clock(), self._evidence(node))
        after = msgspec.structs.replace(found.node, writer=_writer())
        if found.fallen_back is not None:
            update, failure = found.fallen_back
            if failure.code != RESET_ONCE:
                self.store.deny(update.version, failure)
            log.error(
                "update did not hold version=%s code=%s why=%s",
                update.version,
                failure.code,
                failure.sentence,
            )
            self.store.remember(
                self.clock(),
                "fell back",
                version=update.version,
                code=failure.code,
                sentence=failure.sentence,
            )
            self.report(
                Report(
                    event_type=3,
                    event_result=0,
                    at=self.clock(),
                    version=update.previous_version,
                    code=failure.code,
                    sentence=failure.sentence,
                    next_version=update.version,
                    downloaded=update.downloaded,
                )
            )
        self._keep_recovered(after)
        self._tell_guard(after, loader)
        if found.event is Event.BOOTED_UNTRIED:
            self._arm_again(after, loader)
        if after.state is not node.state:
            log.info(
                "state recovered from=%s to=%s by=%s",
                node.state.value,
                after.state.value,
                found.event.value,
            )
        return after

    def _evidence(self, node: NodeState) -> Evidence:
        """Gather what a trial may have left behind; what cannot be read tells nothing."""
        update = node.update
        if update is None or node.boot_id == self.boot().boot_id:
            return Evidence()
        marker, denied = None, None
        try:
            marker = self.store.read_marker()
            denied = self.store.read_denied().get(update.version)
        except StateError as error:
            log.warning("evidence of a trial cannot be read why=%s", error)
        return Evidence(
            guarded_in=marker.guarded_in if marker is not None else "",
            denied=denied,
            kernel_logs=self.machine.kernel_logs(update.began),
            counts_once=self.loader.max_tries == 1,
        )

    def _arm_again(self, after: NodeState, loader: BootState) -> None:
        """Arm what a loader forgot without a trial; what fails now is done before the reboot."""
        slot = Slot(after.update.slot) if after.update is not None else None
        if slot is None or loader.target is slot:
            return
        log.warning("slot was not tried and is armed again slot=%s", slot.value)
        try:
            self.arm(slot)
        except ROOM_ERRORS as error:
            log.warning("slot is not armed again yet code=%s why=%s", error.code, error)

    def _tell_guard(self, after: NodeState, loader: BootState) -> None:
        """Let the guard of trials know where this boot stands.

        It must not end a trial that has nothing to go back to, or that nobody ordered. The first
        is said for this boot alone: the marker of an ordered trial outlives what one look at the
        loader's memory told.
        """
        booted = self.boot().slot
        run_folder = Path(self.settings.node.run_folder)
        if loader.slots[booted].confirmed:
            note_confirmed(run_folder)
        if after.state is State.TRIAL and after.update is not None:
            note_until(run_folder, patience(self.settings.health, self.machine.uptime()))
            note_way_back(run_folder, there_is_one=loader.slots[booted.other].armed)
        elif after.state in {State.IDLE, State.CHECKING, State.TRIAL}:
            try:
                self.store.drop_marker()
            except StateError as error:
                log.warning("marker of the trial stays why=%s", error)

    def _keep_recovered(self, after: NodeState) -> None:
        """Write what was found; a trial goes on without, as it must end whatever fails."""
        try:
            self.store.write_state(after)
        except StateError as error:
            if after.state is not State.TRIAL:
                raise
            log.error("trial cannot be noted and goes on why=%s", error)  # noqa: TRY400  # a sentence


def _writer() -> str:
    """Name this process, so that a restart is told from going on."""
    return f"{os.getpid()}:{_START}"


_START: Final = os.urandom(8).hex()
