"""What `status`, `slots` and `permit` show: one value each, printed as text or as JSON.

Reads without the lock; what it finds is what the last action left. The shapes are documented
in docs/json.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from updater.budget import mb
from updater.gates import first_closed
from updater.lifecycle import COMPATIBLE_NAMES, State
from updater.rooms import ROOM_ERRORS
from updater.schedule import first_check

if TYPE_CHECKING:
    from partitions.slots import Region, Slot
    from updater.node import Node
    from updater.permit.contract import GroupStatus
    from updater.state import Failure, NodeState

_NO_GATES = ("permit-", "reboot-overdue", "health-")  # waits of an armed node that no gate gives

Facts: TypeAlias = dict[str, Any]  # JSON's values; the shapes are in the docs


def status(node: Node) -> Facts:
    """Return the facts of `bascule status`.

    Raises:
        AnyRoomError: the state folder or the disk cannot be read.
    """
    memory = node.store.read_state()
    boot = node.boot()
    loader = node.loader.read()
    facts: Facts = {
        "state": memory.state.value,
        "compatible_state": COMPATIBLE_NAMES[memory.state],
        "booted": {"slot": boot.slot.value, **_image(node, boot.slot)},
        "target": loader.target.value if loader.target else None,
        "confirmed": loader.slots[boot.slot].confirmed,
        "trust": node.settings.trust.mode,
        "update": _update(node, memory),
        "waiting": _waiting(node, memory),
        "last_check": {
            "at": memory.last_check.isoformat(timespec="seconds") if memory.last_check else None,
            "code": memory.last_check_code,
            "sentence": memory.last_check_sentence,
        },
        "next_check": _next_check(node, memory),
        "held_back_since": memory.newer_since.isoformat() if memory.newer_since else None,
        "permit": memory.permit,
        "hold": _hold(node),
        "pinned": _pinned(node),
        "last_failure": _failure(memory.last_failure),
        "denied": {
            version: failure.sentence for version, failure in node.store.read_denied().items()
        },
        "floor": node.store.read_floor(),
        "events_waiting": len(node.store.read_reports()),
    }
    return facts


def slots(node: Node) -> list[Facts]:
    """Return the facts of `bascule slots`, slot A first.

    Raises:
        AnyRoomError: the disk cannot be read.
    """
    boot = node.boot()
    loader = node.loader.read()
    trouble = node.loader_obstacle()
    rows: list[Facts] = []
    for slot, state in loader.slots.items():
        rows.append(
            {
                "slot": slot.value,
                "booted": slot is boot.slot,
                "target": slot is loader.target,
                "armed": state.armed,
                "tries_left": state.tries_left,
                "confirmed": state.confirmed,
                "loader": node.loader_choice.name,
                "loader_because": node.loader_choice.because,
                "obstacle_code": trouble.code if trouble else None,
                "obstacle_sentence": str(trouble) if trouble else None,
                **_image(node, slot),
                "partitions": {part: _part(region) for part, region in node.regions(slot).items()},
            }
        )
    return sorted(rows, key=lambda row: str(row["slot"]))


def _part(region: Region) -> Facts:
    if region.room is not None:
        return {"file": str(region.path), "size": region.readable_bytes}
    return {"label": region.label, "partuuid": region.partuuid, "size": region.size}


def permit(group: GroupStatus) -> Facts:
    """Return the facts of `bascule permit status`."""
    return {
        "group": group.group,
        "max": group.max,
        "holders": [
            {
                "id": holder.id,
                "host": holder.host,
                "since": holder.since.isoformat(),
                "reason": holder.reason,
            }
            for holder in group.holders
        ],
        "waiting": group.waiting,
        "waiters": [{"id": waiter.id, "host": waiter.host} for waiter in group.waiters],
    }


def status_lines(facts: Mapping[str, Any], *, bar: bool = False) -> Iterator[str]:
    """Yield the text of `bascule status`; with `bar` also a bar while something is written."""
    booted = facts["booted"]
    yield f"state     {facts['state']}"
    confirmed = "confirmed" if facts["confirmed"] else "not confirmed"
    yield f"booted    {booted['version'] or 'unknown'} in slot {booted['slot']} ({confirmed})"
    if facts["target"] != booted["slot"]:
        target = f"slot {facts['target']}" if facts["target"] else "nothing that we know"
        yield f"target    {target} at the next boot"
    if facts["trust"] != "tuf":
        yield "trust     weakened: payload signatures alone, no signed channel [payload-key-mode]"
    yield from _update_lines(facts, bar=bar)
    if facts["waiting"]:
        yield f"waiting   {facts['waiting']['sentence']} [{facts['waiting']['code']}]"
    yield from _order_lines(facts)
    check = facts["last_check"]
    if check["at"]:
        code = f" [{check['code']}]" if check["code"] else ""
        yield f"checked   {check['at']}: {check['sentence'] or 'done'}{code}"
    if facts["next_check"]:
        yield f"next      {facts['next_check']}"
    yield from _failure_lines(facts["last_failure"])
    for version, why in facts["denied"].items():
        yield f"refuses   {version}: {why}"


def _update_lines(facts: Mapping[str, Any], *, bar: bool) -> Iterator[str]:
    update = facts["update"]
    if not update:
        return
    what = update["version"] or "a given payload"
    yield f"update    {what} into slot {update['slot']}{_progress(update)}"
    if update["cost"]:
        kind = "delta from the booted slot" if update["kind"] == "delta" else "full payload"
        yield f"          {kind}, {mb(update['cost'])} to fetch when it began"
    if update["whole_on"]:
        yield f"          spread over days: whole on {update['whole_on']} (UTC)"
    for why in update["left_out"]:
        yield f"          not taken: {why}"
    if bar and facts["state"] == State.INSTALLING.value and update["size"]:
        from updater.terminal import bar as drawn

        yield f"          {drawn(update['done'] / update['size'])}"


def _order_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts["hold"]:
        hold = facts["hold"]
        end = f" until {hold['until']}" if hold["until"] else ""
        yield f"held      by {hold['by']}{end}{': ' if hold['reason'] else ''}{hold['reason']}"
    if facts["pinned"]:
        yield f"pinned    to {facts['pinned']}"


def _failure_lines(failure: Mapping[str, Any] | None) -> Iterator[str]:
    if failure is None:
        return
    yield f"failure   {failure['sentence']} [{failure['code']}]"
    if failure["hint"]:
        yield f"          {failure['hint']}"


def slot_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the text of `bascule slots`."""
    yield "slot  version        booted  target  armed  tries  confirmed"
    for row in rows:
        marks = [_mark(row[name]) for name in ("booted", "target", "armed")]
        yield (
            f"{row['slot']:<5} {row['version'] or '-':<14} {marks[0]:<7} {marks[1]:<7} "
            f"{marks[2]:<6} {row['tries_left']:<6} {_mark(row['confirmed'])}"
        )
    if rows:
        yield f"loader {rows[0]['loader']}: {rows[0]['loader_because']}"
        if rows[0]["obstacle_code"]:
            yield f"attention: {rows[0]['obstacle_sentence']} [{rows[0]['obstacle_code']}]"


def _mark(value: object) -> str:
    return "yes" if value else "-"


def _image(node: Node, slot: Slot) -> Facts:
    try:
        facts = node.machine.image_facts(slot)
    except ROOM_ERRORS:
        record = node.store.read_state().slots.get(slot.value)
        return {"version": record.version if record else None, "product": None, "board": None}
    return {"version": facts.version, "product": facts.product, "board": facts.board}


def _update(node: Node, memory: NodeState) -> Facts | None:
    update = memory.update
    if update is None:
        return None
    facts: Facts = {
        "version": update.version,
        "slot": update.slot,
        "began": update.began.isoformat(),
        "rollback": update.rollback,
        "attempts": update.attempts,
        "kind": update.kind,
        "cost": update.cost,
        "left_out": list(update.left_out),
        "whole_on": update.whole_on,
        "size": update.size,
        "downloaded": update.downloaded,
        "written": update.written,
        "kept": update.kept,
        "done": update.size if memory.state not in {State.INSTALLING, State.VERIFYING} else 0,
    }
    shown = node.progress.read()
    if memory.state is State.INSTALLING and shown and shown.version == update.version:
        facts |= {"done": shown.done, "downloaded": shown.downloaded}
    return facts


def _waiting(node: Node, memory: NodeState) -> Facts | None:
    """Say what keeps the node from the next step, whether or not a daemon noted it."""
    noted = memory.waiting_code
    if memory.state is State.ARMED:  # gates are asked anew: what was noted of one may be past
        closed = first_closed(node.gates(memory))
        if closed is not None:
            return {"code": closed.code, "sentence": closed.sentence}
        noted = noted if noted.startswith(_NO_GATES) else ""
    return {"code": noted, "sentence": memory.waiting_sentence} if noted else None


def _hold(node: Node) -> Facts | None:
    hold = node.store.read_hold()
    if hold is None or not hold.holds(node.clock()):
        return None
    return {
        "since": hold.since.isoformat(timespec="seconds"),
        "by": hold.by,
        "reason": hold.reason,
        "until": hold.until.isoformat(timespec="seconds") if hold.until else None,
    }


def _pinned(node: Node) -> str | None:
    pin = node.store.read_pin()
    return pin.version if pin else None


def due_check(node: Node, memory: NodeState) -> datetime | None:
    """Return when the next check is due, None when none is made by itself.

    Raises:
        MachineError: the present boot cannot be told.
    """
    if not node.settings.updates.automatic:
        return None
    if memory.next_check is not None:
        return memory.next_check
    first = first_check(node.settings.server, node.boot().boot_id)
    return node.clock() + max(first - node.machine.uptime(), timedelta())


def _next_check(node: Node, memory: NodeState) -> str | None:
    due = due_check(node, memory)
    return due.isoformat(timespec="seconds") if due is not None else None


def _failure(failure: Failure | None) -> Facts | None:
    if failure is None:
        return None
    return {
        "code": failure.code,
        "sentence": failure.sentence,
        "hint": failure.hint,
        "version": failure.version,
        "at": failure.at.isoformat(),
    }


def _progress(update: Mapping[str, Any]) -> str:
    if not update["size"] or update["done"] >= update["size"]:
        return ""
    return f", {100 * update['done'] / update['size']:.0f} % of {update['size'] / 1e6:.1f} MB"
