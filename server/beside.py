"""Deltas beside a release: which are made, which are kept, and what is said of the others.

Nothing is published here: `publish` signs for what is kept, together with the release.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from images.errors import ImagesError, UnsupportedError
from images.release import tuf_payload_path
from server.added import AddedDelta, Outcome
from server.deltas import DELTAS_MAX, pays, starts_of, why_not
from server.errors import (
    DeltasTooManyError,
    PayloadAbsentError,
    ReleaseExistsError,
    ServerError,
)
from server.history import histories
from server.making import workshop
from server.reflection import published_documents, published_payloads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuf.api.metadata import TargetFile

    from images.release import PayloadFacts
    from server.contents import Contents
    from server.desk import Desk
    from server.intake import Incoming, Intake, ReleaseOrder
    from server.making import MakingOrder


def starts_for(
    desk: Desk, full: Incoming, coming: Sequence[Incoming], making: MakingOrder
) -> tuple[dict[str, str], list[str]]:
    """Return from which versions deltas are to be made, with the hashes of their full payloads.

    Those that are there already, published or given, are not made again, nor more than a channel
    can name. Where there is nothing to start from, or too much, the second value says so.
    """
    contents = desk.repository.read()
    published = published_payloads(contents)
    facts = full.facts
    path = tuf_payload_path(facts.product, facts.board, facts.version, "full")
    if path in published and published[path][0].hashes["sha256"] != full.sha256:
        return {}, []  # for stock clients, or refused below
    known = {
        one.version: file.hashes["sha256"]
        for file, one in published.values()
        if one.kind == "full" and (one.product, one.board) == (facts.product, facts.board)
    }
    have = {
        one.source.version
        for one in (*(one for _, one in published.values()), *(one.facts for one in coming))
        if one.source is not None and (one.product, one.board, one.version) == _release(facts)
    }
    past = histories(desk, contents, facts.product, facts.board, channels=making.channels)
    starts = starts_of(past, facts.version, last=making.last, published=known)
    if not starts:
        where = f"channel {', '.join(making.channels)}" if making.channels else "any channel"
        why = f"nothing older than {facts.version} that is not withdrawn was current on {where}"
        return {}, [f"no delta is made: {why}"]
    wanted = [version for version in starts if version not in have]
    room = max(0, DELTAS_MAX - len(have))
    notes = [f"no delta from {version} is made: there are too many" for version in wanted[room:]]
    return {version: known[version] for version in wanted[:room]}, notes


def make(
    desk: Desk,
    full: Incoming,
    coming: list[Incoming],
    starts: Mapping[str, str],
    making: MakingOrder,
    take: Intake,
) -> list[str]:
    """Make deltas and add them to what is coming; return why some of them are not there."""
    failures = []
    with workshop(desk, full.path, keys=making.keys, stage=take.stage) as shop:
        for version, sha256 in starts.items():
            try:
                with shop.made(desk.payload_file(sha256), version) as file:
                    coming.append(take.delta(file, full.facts))
            except (ImagesError, ServerError) as error:
                failures.append(f"no delta from {version} was made: {error} [{error.code}]")
    return failures


def try_given(desk: Desk, full: Incoming, given: Sequence[Incoming], take: Intake) -> list[str]:
    """Carry deltas out that were made elsewhere; return which of them could not be, and why.

    A node would not notice that one makes another image than it says: see `try_images`.

    Raises:
        ImagesError: one makes something else than it says.
    """
    if not given:
        return []
    published = published_payloads(desk.repository.read())
    untried = []
    with workshop(desk, full.path, keys=(), stage=take.stage) as shop:
        for one in given:
            source = one.facts.source
            if source is None:  # a broken invariant: `take.delta` looked
                raise AssertionError("a delta starts from nothing")
            path = tuf_payload_path(one.facts.product, one.facts.board, source.version, "full")
            old = desk.payload_file(published[path][0].hashes["sha256"])
            try:
                shop.try_given(one.path, old, source.version)
            except (UnsupportedError, PayloadAbsentError) as error:
                untried.append(
                    f"the delta from {source.version} was not tried, so nobody saw that it makes"
                    f" the image: {error} [{error.code}]"
                )
    return untried


def what_is_added(
    delta: Incoming, full_size: int, published: Mapping[str, tuple[TargetFile, PayloadFacts]]
) -> AddedDelta:
    """Decide what a delta is to its release; refuse what would change a published one."""
    facts = delta.facts
    source = facts.source.version if facts.source is not None else ""
    path = tuf_payload_path(facts.product, facts.board, facts.version, f"delta-from-{source}")
    outcome = Outcome.SIGNED
    if path in published:
        sha256 = published[path][0].hashes["sha256"]
        if sha256 != delta.sha256:
            raise ReleaseExistsError(
                f"release {facts.version} has delta {sha256[:16]} from {source},"
                f" this one is {delta.sha256[:16]}"
            )
        outcome = Outcome.UNCHANGED
    elif not pays(delta.size, full_size):
        outcome, path = Outcome.TOO_LARGE, ""
    return AddedDelta(
        outcome=outcome, source=source, sha256=delta.sha256, size=delta.size, tuf_path=path
    )


def one_of_each(added: Sequence[AddedDelta]) -> tuple[AddedDelta, ...]:
    """Keep of several deltas from one version the smallest: a release names one."""
    best: dict[str, AddedDelta] = {}
    for one in added:
        known = best.setdefault(one.source, one)
        if one.tuf_path and (not known.tuf_path or one.size < known.size):
            best[one.source] = one
    return tuple(
        one
        if one is best[one.source] or not one.tuf_path or one.sha256 == best[one.source].sha256
        else replace(one, outcome=Outcome.LARGER, tuf_path="")
        for one in added
    )


def require_room(
    order: ReleaseOrder,
    added: Sequence[AddedDelta],
    published: Mapping[str, tuple[TargetFile, PayloadFacts]],
) -> None:
    """Refuse more deltas than a channel can name: the release could not be promoted.

    Raises:
        DeltasTooManyError: there would be more.
    """
    wanted = (order.product, order.board, order.version)
    paths = {
        path
        for path, (_, facts) in published.items()
        if facts.kind == "delta" and _release(facts) == wanted
    }
    paths |= {one.tuf_path for one in added if one.tuf_path}
    if len(paths) > DELTAS_MAX:
        raise DeltasTooManyError(
            f"release {order.version} would have {len(paths)} deltas, a channel names"
            f" {DELTAS_MAX} at most"
        )


def not_kept(added: Sequence[AddedDelta], full_size: int) -> list[str]:
    """Say why deltas are not kept."""
    found = []
    for one in added:
        if one.outcome is Outcome.TOO_LARGE:
            found.append(why_not(one.size, full_size, one.source))
        elif one.outcome is Outcome.LARGER:
            found.append(
                f"a second delta from {one.source} is not kept: {one.sha256[:16]} is larger than"
                " the other"
            )
    return found


def not_named_yet(
    desk: Desk, contents: Contents, order: ReleaseOrder, added: Sequence[AddedDelta]
) -> list[str]:
    """Tell which channels allow the release, but not yet its new deltas."""
    new = {one.tuf_path for one in added if one.outcome is Outcome.SIGNED}
    return [
        f"channel {document.channel} allows release {order.version} without its new deltas:"
        " promote it again"
        for document in published_documents(desk, contents)
        if (document.product, document.board) == (order.product, order.board)
        and order.version in document.allowed
        and new - set(document.allowed[order.version])
    ]


def _release(facts: PayloadFacts) -> tuple[str, str, str]:
    return facts.product, facts.board, facts.version
