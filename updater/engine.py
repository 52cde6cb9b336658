"""Takes the one action that the agent decides, under the lock. The daemon's only door in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from updater import agent, checking, rebooting, schedule, updating
from updater.lifecycle import State
from updater.permit.contract import Waiting
from updater.rooms import ROOM_ERRORS
from updater.state import NodeState
from updater.trust.errors import NothingNewerError

if TYPE_CHECKING:
    from updater.health import HealthVerdict
    from updater.node import Node

log = logging.getLogger(__name__)

PERMIT_PAUSE: Final = timedelta(seconds=10)  # at most this long without looking at the gates
REBOOT_PATIENCE: Final = timedelta(minutes=5)  # an orderly shutdown has ended the process by then
REBOOT_RETRY: Final = timedelta(minutes=15)
FALL_BACK_PATIENCE: Final = timedelta(minutes=2)  # for a permit to go back with; then without


@dataclass(kw_only=True)
class Engine:
    """One node and what this process knows beyond its memory.

    Attributes:
        node: the collaborators.
        last_verdict: the last look at the health in this boot.
        last_examined: the uptime at that look.
        healthy_since: the uptime at the first of the healthy looks in a row, up to the last one.
        return_retry_at: the uptime at which returning the permit is tried again after it failed.
        reboot_since: the uptime at which the reboot was first ordered by this process.
        reboot_retry_at: the uptime at which a reboot that did not happen is ordered again.
    """

    node: Node
    last_verdict: HealthVerdict | None = None
    last_examined: timedelta | None = None
    healthy_since: timedelta | None = None
    return_retry_at: timedelta | None = None
    reboot_since: timedelta | None = None
    reboot_retry_at: timedelta | None = None

    def step(self, *, heavy: bool = True) -> agent.Wait | agent.Check | agent.Install | None:
        """Take the next action; returns the wait when there is none to take now.

        Args:
            heavy: take also what loads big libraries; else that action is returned, for a
                process of its own to take.

        Raises:
            AnyRoomError: the action failed; the memory says what follows.
        """
        with self.node.locked() as memory:
            view = self.view(memory)
            action = agent.decide(view, self.node.clock())
            if isinstance(action, agent.Wait):
                self._note_wait(memory, action)
                return action
            if isinstance(action, agent.Check | agent.Install) and not heavy:
                return action
            log.debug("action begins name=%s", type(action).__name__)
            return _DOERS[type(action)](self, memory)

    def take(self, action: agent.Check | agent.Install) -> None:
        """Take a heavy action that another process decided, if it may still be taken.

        That process knows more of this boot; deciding anew here could come to another end.

        Raises:
            AnyRoomError: the action failed; the memory says what follows.
        """
        with self.node.locked() as memory:
            if memory.state in _TAKEN_IN[type(action)]:
                _DOERS[type(action)](self, memory)

    def view(self, memory: NodeState) -> agent.View:
        """Return all that the next decision depends on."""
        node = self.node
        boot = node.boot()
        health = node.settings.health
        trial = memory.state is State.TRIAL
        return agent.View(
            node=memory,
            boot_id=boot.boot_id,
            uptime=node.machine.uptime(),
            checks_automatic=node.settings.updates.automatic,
            first_check=schedule.first_check(node.settings.server, boot.boot_id),
            longest_pause=schedule.longest_pause(node.settings.server),
            gates=node.gates(memory),
            trial_deadline=timedelta(seconds=health.deadline_secs),
            can_fall_back=trial and rebooting.can_fall_back(node),
            booted_confirmed=trial and node.loader.read().slots[boot.slot].confirmed,
            health_interval=timedelta(seconds=health.interval_secs),
            last_examined=self.last_examined,
            healthy_since=self.healthy_since,
            steady=timedelta(seconds=health.steady_secs),
            return_retry_at=self.return_retry_at,
            reboot_retry_at=self.reboot_retry_at,
        )

    def _note_wait(self, memory: NodeState, wait: agent.Wait) -> None:
        if wait.code in {"idle", "health-pending"}:
            return  # health that fails has its own words
        if memory.waiting_code != wait.code:
            log.info("waiting code=%s why=%s", wait.code, wait.sentence)
        self.node.keep(memory, waiting_code=wait.code, waiting_sentence=wait.sentence)

    def _check(self, memory: NodeState) -> None:
        with contextlib.suppress(NothingNewerError):  # noted; the next check is due later
            pin = self.node.store.read_pin()
            version = pin.version if pin else ""
            memory, found = checking.check(self.node, memory, by_person=False, version=version)
            updating.install(self.node, memory, found, by_person=False)

    def _install(self, memory: NodeState) -> None:
        with contextlib.suppress(NothingNewerError):
            updating.install(self.node, memory, None, by_person=False)

    def _take_permit(self, memory: NodeState) -> agent.Wait | None:
        _, answer = rebooting.take_permit(self.node, memory)
        if not isinstance(answer, Waiting):
            return None
        until = self.node.clock() + PERMIT_PAUSE
        return agent.Wait(until=until, code=answer.code, sentence=answer.sentence)

    def _reboot(self, memory: NodeState) -> agent.Wait | None:
        """Make the permit certain, right before the reboot; then order it."""
        if rebooting.is_falling_back(self.node, memory):
            wait = self._permit_to_go_back(memory)
        else:
            if self._is_overdue(memory):
                self._give_up_rebooting(memory)
                return None
            wait = self._take_permit(memory)
        if wait is not None:
            return wait
        uptime = self.node.machine.uptime()
        self.reboot_since = self.reboot_since or uptime
        try:
            rebooting.reboot(self.node, self.node.store.read_state())
        except ROOM_ERRORS:
            self.reboot_since, self.reboot_retry_at = None, uptime + REBOOT_RETRY
            raise
        until = self.node.clock() + PERMIT_PAUSE
        return agent.Wait(until=until, code="rebooting", sentence="the reboot is ordered")

    def _permit_to_go_back(self, memory: NodeState) -> agent.Wait | None:
        """Go back with a permit if one can be had soon, without one rather than not at all."""
        if memory.permit == "held":
            return None
        try:
            wait = self._take_permit(memory)
        except ROOM_ERRORS as error:
            log.warning("going back without a permit code=%s why=%s", error.code, error)
            return None
        deadline = timedelta(seconds=self.node.settings.health.deadline_secs)
        if wait is not None and self.node.machine.uptime() >= deadline + FALL_BACK_PATIENCE:
            log.warning("going back without a permit code=%s why=%s", wait.code, wait.sentence)
            return None
        return wait

    def _is_overdue(self, memory: NodeState) -> bool:
        ordered = self.reboot_since
        if memory.state is not State.REBOOTING or ordered is None:
            return False
        return self.node.machine.uptime() - ordered >= REBOOT_PATIENCE

    def _give_up_rebooting(self, memory: NodeState) -> None:
        """Note that the ordered reboot did not come, so that others may have the permit."""
        self.reboot_since = None
        self.reboot_retry_at = self.node.machine.uptime() + REBOOT_RETRY
        rebooting.note_no_reboot(self.node, memory)

    def _confirm(self, memory: NodeState) -> None:
        rebooting.confirm(self.node, memory)

    def _examine(self, memory: NodeState) -> None:
        healthy = False
        try:
            _, self.last_verdict = rebooting.look_at_health(self.node, memory)
            healthy = self.last_verdict.healthy
        finally:  # a look that fails, on a full disk for example, is one too: a trial must end
            self.last_examined = self.node.machine.uptime()
            since = self.healthy_since if self.healthy_since is not None else self.last_examined
            self.healthy_since = since if healthy else None

    def _fall_back(self, memory: NodeState) -> agent.Wait | None:
        """Go back, unless a shutdown is under way: what fails now may fail because of that."""
        if self.node.machine.is_stopping():
            until = self.node.clock() + PERMIT_PAUSE
            return agent.Wait(until=until, code="rebooting", sentence="the machine shuts down")
        rebooting.fall_back(self.node, memory, self.last_verdict)
        return None

    def _return_permit(self, memory: NodeState) -> None:
        self.return_retry_at = self.node.machine.uptime() + PERMIT_PAUSE
        rebooting.return_permit(self.node, memory)
        self.return_retry_at = None


_Doer: TypeAlias = Callable[[Engine, NodeState], agent.Wait | None]
_DOERS: Final[Mapping[type[agent.Action], _Doer]] = MappingProxyType(
    {
        agent.Check: Engine._check,  # noqa: SLF001  # the class's own table
        agent.Install: Engine._install,  # noqa: SLF001
        agent.TakePermit: Engine._take_permit,  # noqa: SLF001
        agent.Reboot: Engine._reboot,  # noqa: SLF001
        agent.Examine: Engine._examine,  # noqa: SLF001
        agent.Confirm: Engine._confirm,  # noqa: SLF001
        agent.FallBack: Engine._fall_back,  # noqa: SLF001
        agent.ReturnPermit: Engine._return_permit,  # noqa: SLF001
    }
)
_TAKEN_IN: Final[Mapping[type[agent.Action], frozenset[State]]] = MappingProxyType(
    {
        agent.Check: frozenset({State.IDLE, State.ARMED}),
        agent.Install: frozenset({State.INSTALLING, State.VERIFYING}),
    }
)
