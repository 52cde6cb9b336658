"""Takes the one action that the agent decides, under the lock. The daemon's only door in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from updater import agent, checking, rebooting, updating
from updater.lifecycle import State
from updater.permit.contract import Waiting
from updater.state import NodeState
from updater.trust.errors import NothingNewerError

if TYPE_CHECKING:
    from updater.health import HealthVerdict
    from updater.node import Node

log = logging.getLogger(__name__)

PERMIT_PAUSE: Final = timedelta(seconds=10)  # at most this long without looking at the gates


@dataclass(kw_only=True)
class Engine:
    """One node and what this process knows beyond its memory.

    Attributes:
        node: the collaborators.
        last_verdict: the last look at the health in this boot.
        last_examined: the uptime at that look.
        return_retry_at: the uptime at which returning the permit is tried again after it failed.
    """

    node: Node
    last_verdict: HealthVerdict | None = None
    last_examined: timedelta | None = None
    return_retry_at: timedelta | None = None

    def step(self, *, heavy: bool = True) -> agent.Wait | agent.Check | agent.Install | None:
        """Take the next action; returns the wait when there is none to take now.

        Args:
            heavy: take also what loads big libraries; else that action is returned, for a
                process of its own to take.

        Raises:
            AnyRoomError: the action failed; the memory says what follows.
        """
        with self.node.locked() as memory:
            view = self._view(memory)
            action = agent.decide(view, self.node.clock())
            if isinstance(action, agent.Wait):
                self._note_wait(memory, action)
                return action
            if isinstance(action, agent.Check | agent.Install) and not heavy:
                return action
            log.debug("action begins name=%s", type(action).__name__)
            return _DOERS[type(action)](self, memory)

    def _view(self, memory: NodeState) -> agent.View:
        node = self.node
        boot = node.boot()
        health = node.settings.health
        return agent.View(
            node=memory,
            boot_id=boot.boot_id,
            uptime=node.machine.uptime(),
            checks_automatic=node.settings.updates.automatic,
            first_check=checking.first_check(node.settings.server, boot.boot_id),
            longest_pause=checking.longest_pause(node.settings.server),
            gates=node.gates(memory),
            trial_deadline=timedelta(seconds=health.deadline_secs),
            can_fall_back=memory.state is State.TRIAL and rebooting.can_fall_back(node),
            health_interval=timedelta(seconds=health.interval_secs),
            last_examined=self.last_examined,
            return_retry_at=self.return_retry_at,
        )

    def _note_wait(self, memory: NodeState, wait: agent.Wait) -> None:
        quiet = wait.code in {"idle", "health-pending", "permit-owed"}
        if not quiet and memory.waiting_code != wait.code:
            log.info("waiting code=%s why=%s", wait.code, wait.sentence)
            self.node.keep(memory, waiting_code=wait.code, waiting_sentence=wait.sentence)

    def _check(self, memory: NodeState) -> None:
        with contextlib.suppress(NothingNewerError):  # noted; the next check is due later
            memory, found = checking.check(self.node, memory, by_person=False)
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
        """Make the permit certain, right before the reboot; then order it.

        Going back from a failed trial asks nobody: the node is down by our doing already.
        """
        if not rebooting.is_falling_back(self.node, memory):
            wait = self._take_permit(memory)
            if wait is not None:
                return wait
        rebooting.reboot(self.node, self.node.store.read_state())
        until = self.node.clock() + PERMIT_PAUSE
        return agent.Wait(until=until, code="rebooting", sentence="the reboot is ordered")

    def _examine(self, memory: NodeState) -> None:
        _, self.last_verdict = rebooting.look_at_health(self.node, memory)
        self.last_examined = self.node.machine.uptime()

    def _fall_back(self, memory: NodeState) -> agent.Wait:
        rebooting.fall_back(self.node, memory, self.last_verdict)
        until = self.node.clock() + PERMIT_PAUSE
        return agent.Wait(until=until, code="rebooting", sentence="going back to the old slot")

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
        agent.FallBack: Engine._fall_back,  # noqa: SLF001
        agent.ReturnPermit: Engine._return_permit,  # noqa: SLF001
    }
)
