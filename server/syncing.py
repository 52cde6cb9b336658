"""What a server that follows this one is told: every version on the way, and no place is taken.

A following server is no node. It is not registered, waits for no share and takes no place, and
it must not learn of a release that its nodes would be told to wait with: a paused group and a
stopped release hold it as they hold a node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.catalogue import find_document, payloads_of, suitable
from server.choice import choose_way
from server.offers import manifest_of, marked, no_payload, no_release
from server.rollout import STOP_BETWEEN, Hold, Situation, decide
from server.stops import RolloutKey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from server.claims import Claim
    from server.groups import Group
    from updater.omaha import Manifest

MANIFESTS_MAX: Final = 32  # of one answer: 6 elements each, and a reader bounds them


def follow(
    connection: Connection, claim: Claim, group: Group, now: datetime
) -> tuple[Manifest, ...] | Hold:
    """Return what a following server may take over, oldest first, or why nothing now."""
    document = find_document(connection, group.channel, claim.product, claim.board)
    if document is None:
        return no_release(group.channel, claim.board)
    way = choose_way(document, claim.running, now)
    if isinstance(way, Hold):
        return way
    if len(way) > 1 and not claim.reads_several:
        return Hold(
            reason=STOP_BETWEEN,
            sentence=f"version {way[0]} may not be jumped over, and one manifest cannot say so",
        )
    manifests = []
    for version in way:
        step = _step(connection, claim, group, version, document.allowed[version])
        if isinstance(step, Hold):
            return step
        manifests.append(step)
    return marked(manifests)[:MANIFESTS_MAX] if claim.reads_several else tuple(manifests)


def _step(
    connection: Connection, claim: Claim, group: Group, version: str, allowed: Sequence[str]
) -> Manifest | Hold:
    """Return one version of the way, or what holds it."""
    held = _held(connection, claim, group, version)
    if held is not None:
        return held
    payloads = payloads_of(connection, claim.product, claim.board, version)
    payload = suitable(payloads, claim, allowed)
    return no_payload(version) if payload is None else manifest_of(version, payload)


def _held(connection: Connection, claim: Claim, group: Group, version: str) -> Hold | None:
    """Return what would hold the first node of the group, or None."""
    rollout = RolloutKey(
        group_name=group.name, product=claim.product, board=claim.board, version=version
    )
    situation = Situation(
        place=0.0,
        holds_grant=False,
        failed_here=False,
        under_way=0,
        stopped=rollout.stopped_because(connection),
    )
    decision = decide(group.policy(), situation)
    return decision if isinstance(decision, Hold) else None
