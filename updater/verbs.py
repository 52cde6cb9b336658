"""What can be asked of a node, as one table: the same verbs by command line, D-Bus and service.

A verb takes options as plain values and gives facts as plain values, or raises an error with a
code. Printing, permission and transport are somebody else's: `cli` prints, the bus room asks who
calls. Heavy verbs load big libraries or take long: a service runs them in a process of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec

from updater.errors import EXIT_USAGE, RefusedError, UpdaterError
from updater.state import Hold, Instant, NodeState, Pin

if TYPE_CHECKING:
    from updater.node import Node

Facts: TypeAlias = Any  # JSON's values; each verb's shape is in docs/json.md
Right: TypeAlias = Literal["read", "check", "update", "reboot", "hold", "permit"]

PATIENCE_SECS: Final = 3.0  # for the service's own look at the node to end
REASON_MAX_CHARS: Final = 300
PLAIN: Final = r"^[^\x00-\x1f\x7f]*\Z"  # no control characters: the bus refuses NUL, terminals obey
HISTORY_MAX: Final = 1000


class VerbOptionsError(UpdaterError):
    """A verb was asked for with options that it does not take."""

    code = "usage"
    hint = "See the command's `--help`, or docs/d-bus.md for what D-Bus takes."
    exit_status = EXIT_USAGE


class PinnedElsewhereError(RefusedError):
    """Another version is wanted than the one this node is pinned to."""

    code = "pinned-elsewhere"
    hint = "`bascule unpin`, or pin the version that is wanted."


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a verb takes; unknown names are refused."""


class NoOptions(_Options, frozen=True):
    """A verb without options."""


class UpdateOptions(_Options, frozen=True):
    """`force`: also a version that failed here; `version`: this one and no other.

    `payload`: the path or URL of a payload to install, instead of asking; then `force` also
    takes an older one. An empty text is refused: it is somebody's variable that is not set.
    """

    force: bool = False
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    payload: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=PLAIN)] | None = (
        None
    )


class RebootOptions(_Options, frozen=True):
    """`now`: do not wait for gates; a person's hold or pin and the permit still count."""

    now: bool = False


class HoldOptions(_Options, frozen=True):
    """`reason`: for whoever finds the node held; `until`: RFC 3339, None for no end."""

    reason: Annotated[str, msgspec.Meta(max_length=REASON_MAX_CHARS, pattern=PLAIN)] = ""
    until: Instant | None = None


class PinOptions(_Options, frozen=True):
    """`version`: the one to run."""

    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class PlacesOptions(_Options, frozen=True):
    """`places`: how many nodes of the group may be down at once."""

    places: int


class ReturnOptions(_Options, frozen=True):
    """`holder`: the machine id of a node known to be dead; empty for this node."""

    holder: Annotated[str, msgspec.Meta(max_length=64)] = ""


class HistoryOptions(_Options, frozen=True):
    """`lines`: how many of the newest entries."""

    lines: Annotated[int, msgspec.Meta(ge=0, le=HISTORY_MAX)] = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that can be asked.

    Attributes:
        do: carries it out; takes the node, checked options and who asks.
        options: what it takes.
        right: what the caller must be allowed to do.
        heavy: a service runs it in a process of its own.
    """

    do: Callable[[Node, Any, str], Facts]
    options: type[_Options] = NoOptions
    right: Right = "read"
    heavy: bool = False


def perform(node: Node, name: str, options: Mapping[str, object], *, by: str) -> Facts:
    """Carry out the verb `name` and return its facts.

    Args:
        node: the collaborators.
        name: a key of `VERBS`.
        options: as the verb's options class names them.
        by: who asks, for the history and for whoever comes later.

    Raises:
        VerbOptionsError: there is no such verb, or it does not take these options.
        AnyRoomError: it was refused or failed.
    """
    checked = checked_options(name, options)
    return VERBS[name].do(node, checked, by)


def checked_options(name: str, options: Mapping[str, object]) -> _Options:
    """Return the options of the verb `name` as its options class, for whoever only passes it on.

    Raises:
        VerbOptionsError: there is no such verb, or it does not take these options.
    """
    verb = VERBS.get(name)
    if verb is None:
        raise VerbOptionsError(f"there is no verb {name!r}")
    try:
        return msgspec.convert(dict(options), verb.options)
    except msgspec.ValidationError as error:
        raise VerbOptionsError(f"{name}: {error}") from error


def _status(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import shown

    return shown.status(node)


def _slots(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import shown

    return shown.slots(node)


def _why(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import why

    return why.explain(node)


def _history(node: Node, options: HistoryOptions, _by: str) -> Facts:
    return node.store.history()[-options.lines :] if options.lines else []


def _check(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import checking
    from updater.lifecycle import State

    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        found = checking.look(node, memory, by_person=True, version=pinned_version(node))
    armed = memory.update if memory.state is State.ARMED else None
    if armed is not None and armed.version == found.version:
        raise checking.ArmedAlreadyError(f"version {armed.version} is armed already")
    return {
        "version": found.version,
        "running": found.running.version,
        "payload": found.path or found.urls[0],
        "size": found.size,
        "kind": found.kind,
        "cost": found.cost,
        "left_out": list(found.left_out),
        "whole_on": found.whole_on,
    }


def _update(node: Node, options: UpdateOptions, _by: str) -> Facts:
    from updater import checking, updating
    from updater.lifecycle import State

    if options.payload and options.version:
        raise VerbOptionsError("update: a payload says itself which version it is")
    version = _wanted(node, _version("update", options.version) if options.version else "")
    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        found = None
        resumes = memory.state in {State.INSTALLING, State.VERIFYING}
        if not resumes or options.version or options.payload:
            memory, found = checking.check(
                node,
                memory,
                by_person=True,
                forced=options.force,
                version=version,
                payload=options.payload or "",
            )
        elif options.force:  # what failed here may be tried again, as after a forced check
            memory = node.keep(memory, spoiled=())
        memory = updating.install(node, memory, found, by_person=True)
    return _armed(memory)


def _version(verb: str, text: str) -> str:
    """Return `text` if it is a version."""
    from images.errors import VersionInvalidError
    from images.version import parse_version

    try:
        parse_version(text)
    except VersionInvalidError as error:
        raise VerbOptionsError(f"{verb}: {error}") from error
    return text


def pinned_version(node: Node) -> str:
    """Return the version that a person pinned this node to, empty when none did."""
    pin = node.store.read_pin()
    return pin.version if pin else ""


def _wanted(node: Node, version: str) -> str:
    pinned = pinned_version(node)
    if pinned and version and version != pinned:
        raise PinnedElsewhereError(
            f"version {version} is asked for, the node is pinned to {pinned}"
        )
    return version or pinned


def _armed(memory: NodeState) -> Facts:
    update = memory.update
    return {
        "state": memory.state.value,
        "version": update.version if update else None,
        "slot": update.slot if update else None,
    }


def _reboot(node: Node, options: RebootOptions, _by: str) -> Facts:
    """Order it; `waiting` says what it waits for when it cannot be now."""
    from updater import rebooting
    from updater.gates import ORDERS, first_closed
    from updater.permit.contract import Waiting

    # Judged when it is asked, too: not what somebody else arms while we wait for the lock.
    rebooting.require_armed(node.store.read_state())
    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        memory = rebooting.order_reboot(node, memory)
        verdicts = node.gates(memory)
        closed = first_closed([v for v in verdicts if v.code in ORDERS or not options.now])
        if closed is not None:
            return _waits(closed.code, closed.sentence)
        memory, answer = rebooting.take_permit(node, memory)
        if isinstance(answer, Waiting):
            return _waits(answer.code, answer.sentence)
        rebooting.reboot(node, memory)
    return {"ordered": True, "waiting": None}


def _waits(code: str, sentence: str) -> Facts:
    return {"ordered": True, "waiting": {"code": code, "sentence": sentence}}


def _rollback(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import rebooting

    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        memory = rebooting.roll_back(node, memory)
    return _armed(memory)


def _reset(node: Node, _: NoOptions, _by: str) -> Facts:
    """What update_engine's users know as resetting its status; `rollback` refuses the version."""
    from updater import rebooting

    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        memory = rebooting.reset(node, memory)
    return _armed(memory)


def _confirm(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import rebooting

    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        rebooting.confirm(node, memory)
    return {}


def _hold(node: Node, options: HoldOptions, by: str) -> Facts:
    now = node.clock()
    hold = Hold(since=now, by=by, reason=options.reason, until=options.until)
    if not hold.holds(now):
        raise VerbOptionsError(f"hold: {options.until} is past")
    node.store.prepare()
    node.store.write_hold(hold)
    node.store.remember(now, "held", by=by, reason=options.reason)
    facts: Facts = msgspec.to_builtins(hold)
    return facts


def _unhold(node: Node, _: NoOptions, by: str) -> Facts:
    held = node.store.read_hold() is not None
    node.store.write_hold(None)
    if held:
        node.store.remember(node.clock(), "hold ended", by=by)
    return {"held": held}


def _pin(node: Node, options: PinOptions, by: str) -> Facts:
    _version("pin", options.version)
    now = node.clock()
    node.store.prepare()
    node.store.write_pin(Pin(version=options.version, since=now, by=by))
    node.store.remember(now, "pinned", version=options.version, by=by)
    return {"version": options.version}


def _unpin(node: Node, _: NoOptions, by: str) -> Facts:
    pin = node.store.read_pin()
    node.store.write_pin(None)
    if pin:
        node.store.remember(node.clock(), "unpinned", version=pin.version, by=by)
    return {"version": pin.version if pin else None}


def _permit_status(node: Node, _: NoOptions, _by: str) -> Facts:
    from updater import shown

    return shown.permit(node.permits().status())


def _permit_set_max(node: Node, options: PlacesOptions, _by: str) -> Facts:
    node.store.prepare()
    change = node.permits().set_max(options.places)
    return {"before": change.before, "after": change.after, "held": change.held}


def _permit_return(node: Node, options: ReturnOptions, _by: str) -> Facts:
    from updater import rebooting

    if options.holder:
        node.store.prepare()
        gone = node.permits().return_for(options.holder)
        return {"returned": True, "id": gone.id, "host": gone.host}
    with node.locked(patience_secs=PATIENCE_SECS) as memory:
        held = rebooting.return_own_permit(node, memory)
    return {"returned": held, "id": None, "host": None}


VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {
        "status": Verb(do=_status),
        "slots": Verb(do=_slots),
        "why": Verb(do=_why),
        "history": Verb(do=_history, options=HistoryOptions),
        "permit-status": Verb(do=_permit_status, heavy=True),
        "check": Verb(do=_check, right="check", heavy=True),
        "update": Verb(do=_update, options=UpdateOptions, right="update", heavy=True),
        "reboot": Verb(do=_reboot, options=RebootOptions, right="reboot", heavy=True),
        "rollback": Verb(do=_rollback, right="update"),
        "reset": Verb(do=_reset, right="update"),
        "confirm": Verb(do=_confirm, right="update"),
        "hold": Verb(do=_hold, options=HoldOptions, right="hold"),
        "unhold": Verb(do=_unhold, right="hold"),
        "pin": Verb(do=_pin, options=PinOptions, right="hold"),
        "unpin": Verb(do=_unpin, right="hold"),
        "permit-set-max": Verb(
            do=_permit_set_max, options=PlacesOptions, right="permit", heavy=True
        ),
        "permit-return": Verb(do=_permit_return, options=ReturnOptions, right="permit", heavy=True),
    }
)
