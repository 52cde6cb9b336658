"""What a plain Omaha server offers, where no TUF says what: a hint, and the limits of believing it.

No byte is fetched here. What is offered goes the way of a given payload: `given`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from images.version import parse_version
from updater.given import PLACE_MAX_CHARS, URL, PlaceInvalidError
from updater.hints import IN_PROGRESS
from updater.lifecycle import State
from updater.plan import Found
from updater.state import NodeState, Report
from updater.trust.errors import NothingNewerError, PinnedError, VersionDeniedError

if TYPE_CHECKING:
    from images.release import ImageFacts
    from updater.hints import Hint
    from updater.node import Node
    from updater.trust.view import Offer

log = logging.getLogger(__name__)


class ServerHoldsError(NothingNewerError):
    """The server has nothing for this node now; its reason is in the sentence."""

    hint = "The server steers the rollout: see the group on its dashboard."

    def __init__(self, sentence: str, *, code: str, poll_secs: int | None) -> None:
        super().__init__(sentence)
        self.server_code = code
        self.poll_secs = poll_secs


def take_up(node: Node, hint: Hint, running: ImageFacts, *, forced: bool, version: str) -> Found:
    """Return what a plain Omaha server wants; it is believed in nothing but what to look at.

    Raises:
        ServerHoldsError: it has nothing for this node now.
        AnyRoomError: as `offered`.
    """
    if hint.offer is None:
        raise ServerHoldsError(hint.sentence or hint.code, code=hint.code, poll_secs=hint.poll_secs)
    found = offered(node, hint.offer, hint.urls, running, pinned=version, forced=forced)
    return dataclasses.replace(found, poll_secs=hint.poll_secs)


def offered(
    node: Node,
    offer: Offer,
    urls: Sequence[str],
    running: ImageFacts,
    *,
    pinned: str,
    forced: bool,
) -> Found:
    """Return what a plain Omaha server offers, if this node may want it. Nothing is fetched.

    Raises:
        NothingNewerError: it is not above the running version.
        VersionDeniedError: it failed here before, or a person rolled back from it.
        PinnedError: the node is pinned to another version.
        PlaceInvalidError: the server names no usable URL.
        VersionInvalidError: it names no version.
    """
    version = parse_version(offer.version)
    if version <= parse_version(running.version):
        raise NothingNewerError(
            f"the server offers version {offer.version}, this node runs {running.version}"
        )
    if pinned and version != parse_version(pinned):
        raise PinnedError(f"Omaha offers {offer.version}, this node is pinned to {pinned}")
    if offer.version in node.store.read_denied() and not forced:
        raise VersionDeniedError(f"version {offer.version} is refused by this node")
    usable = tuple(url for url in urls if URL.fullmatch(url) and len(url) <= PLACE_MAX_CHARS)
    if not usable:
        raise PlaceInvalidError(f"the server offers version {offer.version} at {list(urls)}")
    file = offer.files[0]
    return Found(
        origin="offered",
        version=offer.version,
        sha256=file.sha256 or "",
        size=file.size or 0,
        facts=None,
        urls=usable,
        running=running,
    )


def tell_of_lost_install(node: Node, memory: NodeState, hint: Hint) -> None:
    """Let a server go that waits for an install which this node knows nothing of.

    A plain server refuses a node in the middle of an update until it reports a failure; after
    the memory was lost nobody else would.
    """
    waits = hint.offer is None and hint.code == IN_PROGRESS
    if not waits or memory.state is not State.CHECKING or node.store.read_reports():
        return
    sentence = "this node remembers no install under way"
    node.report(
        Report(
            event_type=3,
            event_result=0,
            at=node.clock(),
            version="",
            code="install-lost",
            sentence=sentence,
        )
    )
    log.warning("server waits in vain code=install-lost why=%s", sentence)
