"""What the events of a node mean: progress of its grant, its errors, the end of a bad rollout.

Works inside the transaction of the request. An event of an unknown kind is kept and changes
nothing.
"""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from server import grants, nodes
from server.activity import SERVER, record
from server.claims import UNDER_WAY, clean_code, clean_sentence, clean_version
from server.schema import EVENTS, RELEASES
from server.stops import RolloutKey
from updater.omaha.codes import (
    EventResult,
    EventType,
    is_failed_trial,
    speaks_against_version,
    without_flags,
)
from updater.omaha.explanations import sentence_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

    from server.claims import Claim
    from server.grants import GrantRow
    from updater.omaha import Event

log = logging.getLogger(__name__)

FAILED_TRIAL_CODE: Final = "trial-failed"  # for engines that send a number only
UNKNOWN_CODE: Final = "unknown"

# (type, result) to the grant's phase and the state a stock engine is in then.
_PROGRESS: Final[Mapping[tuple[int, int], tuple[str, str]]] = MappingProxyType({
    (EventType.UPDATE_DOWNLOAD_STARTED, 1): (grants.DOWNLOADING, "installing"),
    (EventType.UPDATE_DOWNLOAD_FINISHED, 1): (grants.DOWNLOADED, "verifying"),
    (EventType.UPDATE_COMPLETE, 1): (grants.INSTALLED, "armed"),
    (EventType.UPDATE_INSTALLED, 1): (grants.INSTALLED, "armed"),
})  # fmt: skip
_COMPLETE: Final = (EventType.UPDATE_COMPLETE, EventResult.SUCCESS_REBOOTED)
_TROUBLES: Final = frozenset({EventResult.ERROR, EventResult.DEFERRED})
# A stock engine sends these with every check: they say nothing.
_NO_PREVIOUS: Final = frozenset({None, "", "0.0.0.0"})  # noqa: S104  # a version, no address


def take_reports(
    connection: Connection, claim: Claim, events: Sequence[Event], *, now_s: int
) -> None:
    """Keep the events of a request and do what they mean, oldest first."""
    for event in events:
        pair = (event.type, event.result)
        if pair == _COMPLETE and not claim.is_ours and event.previous_version in _NO_PREVIOUS:
            continue
        grant = grants.newest(connection, claim)
        _keep(connection, claim, event, _release_of(event, grant), now_s)
        if pair in _PROGRESS:
            phase, state = _PROGRESS[pair]
            _progress(connection, grant, phase=phase, now_s=now_s)
            nodes.note_state(connection, claim, state)
        elif pair == _COMPLETE:
            nodes.note_error(connection, claim, code="", sentence="", now_s=None)
            nodes.note_state(connection, claim, "idle")
        elif event.result == EventResult.ERROR:
            _failure(connection, claim, event, grant, now_s)
        elif event.result == EventResult.DEFERRED:
            _put_off(connection, claim, event, grant, now_s)


def settle(connection: Connection, claim: Claim, *, now_s: int) -> None:
    """End or refresh the node's grant by what the node runs and does now.

    A stock engine counts as done when it runs the release. Ours must have left the trial, which
    its state shows even when the event that says so was lost.
    """
    grant = grants.newest(connection, claim)
    if grant is None or grant.phase in {grants.COMPLETE, grants.SUPERSEDED}:
        return
    running = claim.running.text
    if claim.state in UNDER_WAY:
        _progress(connection, grant, phase=None, now_s=now_s)
    elif running == grant.version:
        grants.end(connection, grant, phase=grants.COMPLETE, code="", now_s=now_s)
    elif grant.active and running != grant.from_version:
        grants.end(connection, grant, phase=grants.SUPERSEDED, code="", now_s=now_s)


def keep_alive(connection: Connection, claim: Claim, *, now_s: int) -> None:
    """Take a bare ping as progress: a stock engine sends it while it waits for its reboot."""
    grant = grants.newest(connection, claim)
    if grant is not None and grant.phase == grants.INSTALLED:
        _progress(connection, grant, phase=None, now_s=now_s)


def _progress(
    connection: Connection, grant: GrantRow | None, *, phase: str | None, now_s: int
) -> None:
    if grant is not None and grant.active:
        grants.advance(connection, grant, phase=phase, now_s=now_s)


def _failure(
    connection: Connection, claim: Claim, event: Event, grant: GrantRow | None, now_s: int
) -> None:
    code = _note_trouble(connection, claim, event, now_s)
    if _is_failed_trial(event):
        release = _release_of(event, grant)
        if release and _tried_here(connection, claim, release, code=code, now_s=now_s):
            _judge_release(connection, claim, event, release, code=code, now_s=now_s)
    elif grant is not None and grant.active:
        grants.end(connection, grant, phase=grants.FAILED, code=code, now_s=now_s)


def _put_off(
    connection: Connection, claim: Claim, event: Event, grant: GrantRow | None, now_s: int
) -> None:
    """Free the place of a node that will not take the release now, maybe for days."""
    code = _note_trouble(connection, claim, event, now_s)
    if grant is not None and grant.active:
        grants.end(connection, grant, phase=grants.DEFERRED, code=code, now_s=now_s)


def _note_trouble(connection: Connection, claim: Claim, event: Event, now_s: int) -> str:
    """Note what keeps the node from its update, and return its code."""
    code = _code_of(event)
    nodes.note_error(connection, claim, code=code, sentence=_sentence_of(event, code), now_s=now_s)
    nodes.note_state(connection, claim, "idle")
    return code


def _tried_here(
    connection: Connection, claim: Claim, release: str, *, code: str, now_s: int
) -> bool:
    """Remember for this node that the release was tried and is not running; tell if it is one."""
    if not _is_release(connection, claim, release):
        log.warning("failed trial of no release node=%s version=%s", claim.machine_id, release)
        return False
    grant = grants.newest(connection, claim)
    if grant is None or grant.version != release:
        grants.give(connection, claim, release, now_s=now_s)  # it came another way
        grant = grants.newest(connection, claim)
    if grant is not None:
        grants.end(connection, grant, phase=grants.FAILED_TRIAL, code=code, now_s=now_s)
    return True


def _judge_release(
    connection: Connection, claim: Claim, event: Event, release: str, *, code: str, now_s: int
) -> None:
    """Stop the release in the node's group, unless it was people who ended its trial."""
    node = claim.alias or claim.machine_id
    if not speaks_against_version(error_code=event.error_code, bascule_code=event.bascule_code):
        log.info("trial says nothing node=%s version=%s code=%s", node, release, code)
        return
    key = RolloutKey(
        group_name=claim.group_name, product=claim.product, board=claim.board, version=release
    )
    sentence = f"release {release} did not hold on node {node} ({code})"
    if key.stop(connection, code=code, sentence=sentence, now_s=now_s):
        record(connection, now_s, "rollout stop", claim.group_name, sentence, actor=SERVER)


def _is_release(connection: Connection, claim: Claim, version: str) -> bool:
    query = sa.select(RELEASES.c.id).where(
        RELEASES.c.product == claim.product,
        RELEASES.c.board == claim.board,
        RELEASES.c.version == version,
    )
    return connection.execute(query).first() is not None


def _release_of(event: Event, grant: GrantRow | None) -> str:
    named = clean_version(event.next_version)
    if named or grant is None:
        return named
    return grant.version


def _is_failed_trial(event: Event) -> bool:
    return is_failed_trial(error_code=event.error_code, bascule_code=event.bascule_code)


def _code_of(event: Event) -> str:
    """Return the code of a failure; stock engines send a number, flag bits included."""
    if code := clean_code(event.bascule_code):
        return code
    if _is_failed_trial(event):
        return FAILED_TRIAL_CODE
    return UNKNOWN_CODE if event.error_code is None else f"engine-{without_flags(event.error_code)}"


def _sentence_of(event: Event, code: str) -> str:
    if sentence := clean_sentence(event.bascule_sentence):
        return sentence
    number = "" if event.error_code is None else sentence_of(event.error_code)
    return number or f"the node reported {code}"


def _keep(connection: Connection, claim: Claim, event: Event, release: str, now_s: int) -> None:
    code, sentence = clean_code(event.bascule_code), clean_sentence(event.bascule_sentence)
    if event.result in _TROUBLES:
        code = _code_of(event)
        sentence = _sentence_of(event, code)
    connection.execute(
        EVENTS.insert().values(
            at=now_s,
            product=claim.product,
            machine_id=claim.machine_id,
            group_name=claim.group_name,
            version=claim.running.text,
            type=event.type,
            result=event.result,
            error_code=event.error_code,
            bascule_code=code,
            sentence=sentence,
            release=release,
        )
    )
