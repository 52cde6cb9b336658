"""The verb "check": ask Omaha, refresh trust, decide whether. Nothing is written to a slot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from images.version import parse_version
from updater import ENGINE_VERSION, given, planning
from updater.budget import BudgetError
from updater.download import DownloadStoppedError
from updater.errors import EXIT_ARMED, RefusedError, UnreachableError
from updater.gates import ROLLOUT_STOPPED
from updater.lifecycle import Event, State
from updater.offers import ServerHoldsError, take_up, tell_of_lost_install
from updater.plan import Found
from updater.rooms import ROOM_ERRORS, AnyRoomError
from updater.schedule import SERVER_HINT_MAX, next_check
from updater.state import NodeState, Report, Update
from updater.steering import Self
from updater.trust.errors import NothingNewerError
from updater.trust.holdback import is_held_back, newer_since
from updater.trust.view import Identity, PayloadTarget

if TYPE_CHECKING:
    from images.release import ChannelDocument, ImageFacts
    from updater.hints import Hint
    from updater.node import Node

log = logging.getLogger(__name__)

# As the release desk says it: a rollout that a failed trial or a person stopped.
STOPPED: Final = frozenset({"rollout-stopped", "rollout-paused", "failed-here"})

# How a check ended that found something: a code, and a word for people.
_WORDS: Final = {"channel": "offered", "offered": "offered", "given": "given"}


class ArmedWithdrawnError(RefusedError):
    """What is armed may not run any more: the channel's signers took it back."""

    code = "armed-withdrawn"
    hint = "It was disarmed; what the channel allows now is taken by itself."


class ArmedAlreadyError(NothingNewerError):
    """What would be installed waits for its reboot."""

    code = "armed-already"
    hint = "`bascule reboot` starts it."
    exit_status = EXIT_ARMED


def look(
    node: Node,
    memory: NodeState,
    *,
    by_person: bool,
    forced: bool = False,
    version: str = "",
    on_channel: Callable[[ChannelDocument], None] = lambda _: None,
) -> Found:
    """Ask Omaha and TUF; changes nothing but what trust remembers.

    Args:
        node: the collaborators.
        memory: the node's memory.
        by_person: a person asks, so the server need not throttle.
        forced: a version that failed here may be tried again.
        version: only this one is wanted, empty for any.
        on_channel: shown the channel document as soon as it is trusted.

    Raises:
        NothingNewerError: nothing is wanted now (ServerHoldsError: the server says so).
        RefusedError: trust or policy says no.
        UnreachableError: a server could not be asked.
        DownloadStoppedError: the engine was told to stop.
        PartitionsError, MachineError: the booted slot cannot be told.
    """
    running = node.running()
    hint = _ask(node, memory, running, by_person=by_person)
    if hint is not None and node.settings.trust.mode == "payload-key":
        tell_of_lost_install(node, memory, hint)
        return take_up(node, hint, running, forced=forced, version=version)
    view = node.trust().refresh(node.settings.server.channel, running.product, running.board)
    _watch_for_holdback(node, view.channel, running.version)
    on_channel(view.channel)
    nothing = hint if hint is not None and hint.offer is None else None
    if nothing is not None and not version:
        raise _held(nothing)
    from updater.trust.policy import choose

    release = choose(
        view,
        _identity(node, running),
        floor=max(node.store.read_floor(), running.rollback_index),
        denied=node.store.read_denied(),
        offer=hint.offer if hint is not None and not version else None,
        now=node.clock(),
        pinned=version or None,
        forced=forced,
    )
    # Behind what this node itself has against the version, which no server takes back.
    if nothing is not None and nothing.code in STOPPED and not forced:
        raise _held(nothing)
    try:
        choice = planning.chosen(node, memory, release)
    except BudgetError as error:
        if hint is not None and hint.offer is not None:
            _put_off(node, running.version, release.version, error)
        raise
    payload = choice.best.payload
    return Found(
        version=release.version,
        rollback_index=release.rollback_index,
        path=payload.path,
        sha256=payload.sha256,
        size=payload.size,
        facts=payload.facts,
        urls=_urls(node, payload, hint),
        running=running,
        poll_secs=hint.poll_secs if hint else None,
        kind=payload.facts.kind,
        cost=choice.best.cost,
        left_out=choice.left_out,
        whole_on=planning.day_ahead(node, choice.further_days),
    )


def _put_off(node: Node, running: str, version: str, error: BudgetError) -> None:
    """Let the server give the place of this node to another: it may be days until it goes on."""
    error.is_told = True
    node.report(
        Report(
            event_type=3,
            event_result=9,
            at=node.clock(),
            version=running,
            code=error.code,
            sentence=str(error),
            next_version=version,
        )
    )


def _held(nothing: Hint) -> ServerHoldsError:
    """Return the server's "nothing now".

    Naming a version passes the queue, that is share and number, but not what somebody stopped.
    """
    sentence = nothing.sentence or nothing.code
    return ServerHoldsError(sentence, code=nothing.code, poll_secs=nothing.poll_secs)


def check(
    node: Node,
    memory: NodeState,
    *,
    by_person: bool,
    forced: bool = False,
    version: str = "",
    payload: str = "",
) -> tuple[NodeState, Found]:
    """Check, and enter INSTALLING when there is something to install.

    Args:
        node: the collaborators.
        memory: the node's memory.
        by_person: a person asks.
        forced: a person insists.
        version: only this one is wanted, empty for any.
        payload: a path or URL that a person gave: no server is asked, empty to ask.

    Raises:
        AnyRoomError: as `look`; the memory then says why and when it asks again.
    """
    superseding = memory.state in {State.ARMED, State.INSTALLING}
    if not superseding:
        memory = node.advance(memory, Event.CHECK_DUE)
    if forced:
        memory = node.keep(memory, spoiled=())

    def still_allowed(channel: ChannelDocument) -> None:
        armed = memory.update if memory.state is State.ARMED else None
        if armed is not None and not armed.rollback:
            _check_allowed(channel, armed)

    try:
        if payload:
            found = given.given(node, payload)
        else:
            found = look(
                node,
                memory,
                by_person=by_person,
                forced=forced,
                version=version,
                on_channel=still_allowed,
            )
    except ROOM_ERRORS as error:
        _end(node, error, superseding=superseding, asked=not payload)
        raise
    memory = node.store.read_state()
    if memory.state is State.ARMED:
        _check_unsettled(node, memory, found, by_person=by_person)
    memory = _enter(node, memory, found, forced=forced, pinned=bool(version))
    return memory, found


def _end(node: Node, error: AnyRoomError, *, superseding: bool, asked: bool) -> None:
    """Note what a check that brought nothing ended with; where no server was asked, less."""
    memory = node.store.read_state()
    if isinstance(error, ArmedWithdrawnError):
        _take_back(node, memory, error)
    elif not isinstance(error, DownloadStoppedError):
        _note(node, memory, error, superseding=superseding, asked=asked)
    elif not superseding:  # it looks again when it starts again
        node.advance(memory, Event.RESTARTED)


def _enter(node: Node, memory: NodeState, found: Found, *, forced: bool, pinned: bool) -> NodeState:
    """Enter INSTALLING with what was found."""
    superseding = memory.state is not State.CHECKING
    if superseding:  # first, so that no cut can boot what the memory no longer names
        memory = withdraw(node, memory)
        node.loader.disarm(node.boot().slot.other)
    memory = node.advance(
        memory,
        Event.SUPERSEDED if superseding else Event.OFFERED,
        update=_update(node, found, forced=forced, pinned=pinned),
        **_outcome(node, _WORDS[found.origin], f"{shown(found)} is {_WORDS[found.origin]}"),
        reboot_ordered=False,
        checks_failed=0,
        next_check=None,
    )
    node.store.remember(
        node.clock(),
        "update began",
        version=found.version,
        origin=found.origin,
        kind=found.kind,
        cost=found.cost,
    )
    return memory


def _check_unsettled(node: Node, memory: NodeState, found: Found, *, by_person: bool) -> None:
    """Refuse to install again what is armed already."""
    armed = memory.update
    if armed is None or not _is_settled_by(armed, found, by_person=by_person):
        return
    message = f"version {armed.version} is armed already"
    changes = _schedule(node, memory, failed=False, poll_secs=found.poll_secs)
    changes |= _outcome(node, ArmedAlreadyError.code, message)
    node.keep(memory, **changes)
    raise ArmedAlreadyError(message)


def shown(found: Found) -> str:
    """Name what was found, for people."""
    return (
        f"version {found.version}"
        if found.version
        else f"payload {found.urls[0].partition('?')[0]}"
    )


def _is_settled_by(armed: Update, found: Found, *, by_person: bool) -> bool:
    """Tell whether what is armed is what was found, or was given by a person and is no older."""
    if found.version == armed.version:
        return True
    if by_person or armed.origin != "given":
        return False
    return parse_version(found.version) <= parse_version(armed.version)


def withdraw(node: Node, memory: NodeState) -> NodeState:
    """Note that the armed slot is about to be disarmed by us.

    Written before the loader's memory: after a cut in between, the boot of the old slot is not
    taken for a version that did not hold.
    """
    if memory.update is None:
        return memory
    return node.keep(memory, update=msgspec.structs.replace(memory.update, withdrawn=True))


def present(node: Node, memory: NodeState) -> Self:
    """Return how the node presents itself to a server."""
    running = node.running()
    boot = node.boot()
    identity = node.machine.identity()
    # While it asks, every node is CHECKING; what a server wants to know is how it rests.
    resting = State.IDLE if memory.state is State.CHECKING else memory.state
    return Self(
        product=running.product,
        board=running.board,
        version=running.version,
        group=node.settings.server.group,
        machine_id=identity.machine_id,
        host=identity.host,
        boot_id=boot.boot_id,
        state=resting.value,
        slot=boot.slot.value,
        delta_okay=node.settings.download.deltas,
    )


def _watch_for_holdback(node: Node, channel: ChannelDocument, running: str) -> None:
    """Say aloud when the server is silent for long about what the signed channel names."""
    memory = node.store.read_state()
    now = node.clock()
    since = newer_since(channel, running, since=memory.newer_since, now=now)
    limit = timedelta(days=node.settings.trust.max_holdback_days)
    if is_held_back(since, now=now, max_holdback=limit):
        log.error("update is held back code=held-back current=%s since=%s", channel.current, since)
    node.keep(memory, newer_since=since)


def _ask(node: Node, memory: NodeState, running: ImageFacts, *, by_person: bool) -> Hint | None:
    if node.steering is None:
        return None
    log.debug("asking the server version=%s", running.version)
    return node.steering.ask(present(node, memory), by_person=by_person)


def _identity(node: Node, running: ImageFacts) -> Identity:
    return Identity(
        product=running.product,
        board=running.board,
        channel=node.settings.server.channel,
        version=running.version,
        engine=ENGINE_VERSION,
    )


def _urls(node: Node, payload: PayloadTarget, hint: Hint | None) -> tuple[str, ...]:
    """Mirrors of the settings first; the server's URLs only for the file that they name."""
    name = f"{payload.sha256}.crau"
    mirrors = [f"{base.rstrip('/')}/{name}" for base in node.settings.download.mirrors]
    if hint is not None and hint.offer is not None:
        named = hint.offer.files[0].sha256
        is_meant = payload.facts.kind == "full" if named is None else named == payload.sha256
        mirrors += hint.urls if is_meant else ()
        mirrors += hint.urls_of(payload.sha256)
    if not mirrors:
        base = node.settings.trust.metadata_url.rsplit("/repository/", 1)[0]
        mirrors.append(f"{base}/payloads/{name}")
    return tuple(dict.fromkeys(mirrors))


def _update(node: Node, found: Found, *, forced: bool, pinned: bool) -> Update:
    return Update(
        version=found.version,
        rollback_index=found.rollback_index,
        previous_version=found.running.version,
        slot=node.boot().slot.other.value,
        began=node.clock(),
        origin=found.origin,
        places=() if found.origin == "channel" else found.urls,
        target_path=found.path,
        sha256=found.sha256,
        size=found.size,
        kind=found.kind,
        cost=found.cost,
        left_out=found.left_out,
        whole_on=found.whole_on,
        forced=forced,
        pinned=pinned,
    )


def _note(
    node: Node, memory: NodeState, error: AnyRoomError, *, superseding: bool, asked: bool
) -> None:
    """Remember why the check brought nothing, and when the next one is due.

    While something is armed, the gate of the rollout reads what a server said last: where none
    was asked, or none answered, a stop stays.
    """
    unreachable = isinstance(error, UnreachableError)
    nothing = isinstance(error, NothingNewerError)
    code = getattr(error, "server_code", error.code)
    poll_secs = getattr(error, "poll_secs", None)
    changes = _schedule(node, memory, failed=unreachable, poll_secs=poll_secs)
    changes |= _outcome(node, code, str(error))
    if not unreachable and not nothing:
        log.info("check refused code=%s why=%s", code, error)
    if superseding:
        if unreachable and memory.last_check_code == ROLLOUT_STOPPED:
            changes = _schedule(node, memory, failed=True)
        node.keep(memory, **(changes if asked else {}))
        return
    event = Event.NOTHING if nothing else Event.UNREACHABLE if unreachable else Event.REFUSED
    node.advance(memory, event, **changes)


def _check_allowed(channel: ChannelDocument, armed: Update) -> None:
    """What a server steered to must be allowed; what a person gave is forbidden by name alone."""
    version = armed.version
    missing = armed.origin != "given" and version not in channel.allowed
    if version in channel.withdrawn or missing:
        raise ArmedWithdrawnError(
            f"version {version} is armed, and channel {channel.channel} serial {channel.serial} "
            "allows it no longer"
        )


def _take_back(node: Node, memory: NodeState, error: ArmedWithdrawnError) -> None:
    """Disarm what the signed channel does not allow any more; nothing newer is known yet."""
    version = memory.update.version if memory.update else ""
    memory = withdraw(node, memory)
    node.loader.disarm(node.boot().slot.other)
    node.store.remember(node.clock(), "taken back", version=version, code=error.code)
    log.warning("armed version taken back version=%s why=%s", version, error)
    node.advance(
        memory,
        Event.CANCELLED,
        update=None,
        reboot_ordered=False,
        next_check=None,
        **_outcome(node, error.code, str(error)),
    )


def _outcome(node: Node, code: str, sentence: str) -> dict[str, object]:
    """Return how a check ended, as the memory keeps it."""
    return {
        "last_check": node.clock(),
        "last_check_code": code,
        "last_check_sentence": sentence,
    }


def _schedule(
    node: Node, memory: NodeState, *, failed: bool, poll_secs: int | None = None
) -> dict[str, object]:
    server = node.settings.server
    # Bounded as a number first: a timedelta of what a server may send overflows.
    hinted = timedelta(seconds=min(max(poll_secs or 0, 0), SERVER_HINT_MAX.total_seconds()))
    failures = memory.checks_failed + 1 if failed else 0
    due = next_check(
        node.clock(),
        interval=max(timedelta(seconds=server.poll_interval_secs), hinted),
        jitter_share=server.poll_jitter_share,
        chance=node.chance(),
        failures=failures,
    )
    return {"next_check": due, "checks_failed": failures}
