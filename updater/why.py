"""Why a node does what it does: every condition with code, sentence and end, and the next step.

The next step is what the agent decides on the same view as the service's. Nothing is changed and
no server is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from updater import agent
from updater.lifecycle import State
from updater.planning import failed_bytes, limits
from updater.rooms import ROOM_ERRORS

if TYPE_CHECKING:
    from updater.node import Node
    from updater.state import NodeState

CHECKED_WELL = frozenset({"", "offered", "given", "nothing-newer", "armed-already"})
_NEXT = {
    agent.Check: "ask whether there is something newer",
    agent.Install: "write the passive slot on, verify and arm it",
    agent.TakePermit: "ask the cluster for leave to reboot",
    agent.Reboot: "reboot",
    agent.Examine: "look at the health of the booted system",
    agent.Confirm: "confirm the booted slot",
    agent.FallBack: "go back to the old slot",
    agent.ReturnPermit: "return the permit",
}
# Steps that are taken again and again, by what their last try has left in the memory.
_NOTED_BY: dict[type[agent.Action], str] = {
    agent.TakePermit: "permit-",
    agent.Examine: "health-",
}


def explain(node: Node) -> dict[str, Any]:
    """Return the facts of `bascule why`.

    Raises:
        AnyRoomError: the state folder or the disk cannot be read.
    """
    memory = node.store.read_state()
    return {
        "state": memory.state.value,
        "version": memory.update.version if memory.update else None,
        "next": _next(node, memory),
        "conditions": [*_of_updates(node, memory), *_of_reboots(node, memory)],
        "denied": {version: why.sentence for version, why in node.store.read_denied().items()},
    }


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of `bascule why`."""
    version = f" {facts['version']}" if facts["version"] else ""
    yield f"state  {facts['state']}{version}"
    following = facts["next"]
    until = f", until {following['until']}" if following["until"] else ""
    yield f"next   {following['sentence']}{until} [{following['code']}]"
    for step in ("update", "reboot"):
        yield f"before the next {step}:"
        for row in facts["conditions"]:
            if row["step"] == step:
                mark = "open  " if row["open"] else "closed"
                until = f", until {row['until']}" if row["until"] else ""
                yield f"  {mark}  {row['sentence']}{until} [{row['code']}]"
    for version, sentence in facts["denied"].items():
        yield f"refuses {version}: {sentence}"


def _next(node: Node, memory: NodeState) -> dict[str, Any]:
    from updater.engine import Engine

    if memory.boot_id != node.boot().boot_id:
        return _step("not-looked", "nobody has looked at this node since it booted", None)
    if memory.state is State.REBOOTING:
        return _step("rebooting", "the reboot is ordered", None)
    action = agent.decide(Engine(node=node).view(memory), node.clock())
    if isinstance(action, agent.Wait):
        if action.code == "idle" and action.until is not None:
            return _step("check-later", "wait for the next check", action.until)
        gate = next((gate for gate in node.gates(memory) if gate.code == action.code), None)
        # The agent's own end is its next look at all of them, which may be before the gate's.
        return _step(action.code, action.sentence, gate.opens_at if gate else action.until)
    noted = memory.waiting_code
    if noted and noted.startswith(_NOTED_BY.get(type(action), "-")):  # how it went the last time
        return _step(noted, memory.waiting_sentence, None)
    return _step("now", _NEXT[type(action)], None)


def _step(code: str, sentence: str, until: datetime | None) -> dict[str, Any]:
    return {"code": code, "sentence": sentence, "until": _text(until)}


def _text(until: datetime | None) -> str | None:
    return until.isoformat(timespec="seconds") if until else None


def _row(
    step: str, code: str, sentence: str, *, is_open: bool, until: datetime | None = None
) -> dict[str, Any]:
    return {
        "step": step,
        "code": code,
        "open": is_open,
        "sentence": sentence,
        "until": _text(until),
    }


def _of_updates(node: Node, memory: NodeState) -> Iterator[dict[str, Any]]:
    if node.settings.updates.automatic:
        yield _row("update", "checks-automatic", "checks are automatic", is_open=True)
    else:
        sentence = "checks are manual here: `bascule update` makes one"
        yield _row("update", "checks-manual", sentence, is_open=False)
    yield _confirmed(node)
    trouble = node.loader_obstacle()
    if trouble is not None:
        yield _row("update", trouble.code, str(trouble), is_open=False)
    pin = node.store.read_pin()
    if pin is not None:
        sentence = f"{pin.by} pinned this node to version {pin.version}; `bascule unpin` ends it"
        yield _row("update", "pinned", sentence, is_open=pin.version != _running(node))
    if memory.last_check is not None:
        yield _row(
            "update",
            memory.last_check_code or "checked",
            f"the check at {_text(memory.last_check)}: {memory.last_check_sentence or 'done'}",
            is_open=memory.last_check_code in CHECKED_WELL,
        )
    due = memory.next_check
    if node.settings.updates.automatic and due is not None and due > node.clock():
        yield _row("update", "check-later", "the next check is not due", is_open=False, until=due)
    yield from _budgets(node, memory)
    if node.settings.download.recode_max_mib:
        most = node.settings.download.recode_max_mib
        sentence = f"deltas that pack more than {most} MiB again are not taken"
        yield _row("update", "recode-limit", sentence, is_open=True)
    if memory.last_failure is not None:
        failure = memory.last_failure
        sentence = f"the last failure: {failure.sentence}"
        yield _row("update", failure.code, sentence, is_open=memory.state is not State.IDLE)


def _budgets(node: Node, memory: NodeState) -> Iterator[dict[str, Any]]:
    """Give every limit of bytes, closed where what is wanted is known to cost more than is left."""
    update = memory.update
    wanted = update.cost if update is not None and memory.state is State.INSTALLING else 1
    version = update.version if update is not None else ""
    in_force = limits(
        node,
        version,
        full_size=update.size if update is not None and update.kind == "full" else 0,
        failed=failed_bytes(node, memory, version),
    )
    for limit in in_force:
        refused = memory.state is not State.ARMED and memory.last_check_code == limit.error.code
        is_open = limit.left >= wanted and not refused
        yield _row("update", limit.error.code, limit.sentence, is_open=is_open)


def _confirmed(node: Node) -> dict[str, Any]:
    slot = node.boot().slot
    if node.loader.read().slots[slot].confirmed:
        sentence = f"the booted slot {slot.value} is confirmed"
        return _row("update", "booted-confirmed", sentence, is_open=True)
    sentence = f"the booted slot {slot.value} is on trial: the passive one is the way back"
    return _row("update", "booted-not-confirmed", sentence, is_open=False)


def _running(node: Node) -> str:
    try:
        return node.running().version
    except ROOM_ERRORS:
        return ""


def _of_reboots(node: Node, memory: NodeState) -> Iterator[dict[str, Any]]:
    if memory.state not in {State.ARMED, State.REBOOTING}:
        yield _row("reboot", "nothing-armed", "no slot is armed", is_open=False)
    for verdict in node.gates(memory, thorough=True):
        yield _row(
            "reboot",
            verdict.code,
            verdict.sentence,
            is_open=verdict.is_open,
            until=verdict.opens_at,
        )
    yield _permit(node, memory)


def _permit(node: Node, memory: NodeState) -> dict[str, Any]:
    if node.settings.permit.kind == "none":
        return _row("reboot", "permit-none", "no permit is needed here", is_open=True)
    if memory.permit == "held":
        return _row("reboot", "permit-held", "this node holds the permit", is_open=True)
    if memory.waiting_code.startswith("permit-"):
        return _row("reboot", memory.waiting_code, memory.waiting_sentence, is_open=False)
    sentence = "the permit is asked for when all else is open; see `bascule permit status`"
    return _row("reboot", "permit-later", sentence, is_open=False)
