"""Who may have a release now: arithmetic on values. No database, no clock, no XML.

A node's place is a number in [0, 1) from a hash of version and node, so each release deals anew,
the same question has the same answer, and no state is kept for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeAlias

CURRENT: Final = "current"  # nothing newer for this node
NO_RELEASE: Final = "no-release"  # the channel names nothing for this product and board
WITHDRAWN: Final = "withdrawn"
STOP_UNAVAILABLE: Final = "stop-unavailable"
STOP_BETWEEN: Final = "stop-between"  # for a following server that reads one manifest
NOT_BEFORE: Final = "not-before"
PAYLOAD_UNSUITABLE: Final = "payload-unsuitable"  # the client cannot read what there is
ROLLOUT_STOPPED: Final = "rollout-stopped"
ROLLOUT_PAUSED: Final = "rollout-paused"
ROLLOUT_SHARE: Final = "rollout-share"
ROLLOUT_CONCURRENCY: Final = "rollout-concurrency"
FAILED_HERE: Final = "failed-here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How fast a group reaches a release.

    Attributes:
        paused: no new grants; running updates go on.
        pause_reason: what the operator said.
        share: the part of the group that may have it, 0 to 1.
        max_concurrent: how many may be under way at once; None for any number.
    """

    paused: bool
    pause_reason: str
    share: float
    max_concurrent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What else a decision depends on.

    Attributes:
        place: the node's place for this release, in [0, 1).
        holds_grant: the node was given this release before and is under way.
        failed_here: this release was tried on this node and did not hold.
        under_way: how many other nodes of the group are under way, with any release.
        stopped: why the rollout of this release in this group was stopped; empty if it was not.
    """

    place: float
    holds_grant: bool
    failed_here: bool
    under_way: int
    stopped: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The node may have the release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The node has to wait, or there is nothing for it.

    Attributes:
        reason: a code of this module.
        sentence: the same for people.
        retry_after_s: when to ask again; None for the group's poll interval.
    """

    reason: str
    sentence: str
    retry_after_s: int | None = None


Decision: TypeAlias = Grant | Hold


def place_of(version: str, node_id: str) -> float:
    """Return the node's place for this release: stable, evenly spread, in [0, 1)."""
    digest = hashlib.sha256(f"{version}\n{node_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48  # 48 bits fit a float exactly, so never 1.0


def decide(policy: Policy, situation: Situation) -> Decision:
    """Return whether the node may have the release; the first reason against it wins.

    A node that is under way keeps its grant through a pause or a smaller share, but not once the
    release proved bad: then it is told to wait like all others.
    """
    if situation.stopped:
        return Hold(reason=ROLLOUT_STOPPED, sentence=situation.stopped)
    if situation.holds_grant:
        return Grant()
    if situation.failed_here:
        return Hold(
            reason=FAILED_HERE,
            sentence="this release was tried on this node and did not hold",
        )
    return _decide_new(policy, situation)


def _decide_new(policy: Policy, situation: Situation) -> Decision:
    if policy.paused:
        because = f": {policy.pause_reason}" if policy.pause_reason else ""
        return Hold(reason=ROLLOUT_PAUSED, sentence=f"the group is paused{because}")
    if situation.place >= policy.share:
        return Hold(
            reason=ROLLOUT_SHARE,
            sentence=(
                f"{policy.share:.4g} of the group may have it,"
                f" this node's place is {situation.place:.4f}"
            ),
        )
    limit = policy.max_concurrent
    if limit is not None and situation.under_way >= limit:
        return Hold(
            reason=ROLLOUT_CONCURRENCY,
            sentence=f"{situation.under_way} nodes are under way, at most {limit} may be",
        )
    return Grant()
