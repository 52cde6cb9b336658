"""A payload becomes a release: kept under its hash, signed for, reflected.

The order makes a crash harmless: the bytes are durable before their name, the name before the
signature, the signature before the database. What a crash leaves is either not yet visible or
completed by the same command, run again.
"""

from __future__ import annotations

import enum
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from tuf.api.metadata import TargetFile

from images.release import encode_payload_facts, tuf_payload_path
from images.version import parse_version
from server.activity import record
from server.catalogue import payloads_of
from server.deltas import pays, source_of, why_not
from server.durable import link_durably
from server.errors import ReleaseExistsError, ReleaseFormatError
from server.intake import take_in
from server.reflection import (
    insert_payload,
    look_into,
    published_documents,
    published_payloads,
    reflect,
    release_id,
)
from server.roles import RELEASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from images.payload import Manifest
    from images.reader import Progress
    from images.release import PayloadFacts
    from images.signing import TrustedKeys
    from server.contents import Contents
    from server.desk import Desk
    from server.intake import Incoming, ReleaseOrder
    from server.keys import KeyFolder


class Outcome(enum.Enum):
    """What publishing a payload came to; the value is what `release add --json` prints."""

    SIGNED = "signed"  # a new release
    STOCK = "stock"  # a payload of format 1 beside a signed one, for stock clients only
    UNCHANGED = "unchanged"  # it had been published before, exactly so
    TOO_LARGE = "too-large"  # a delta that does not pay: it is not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedDelta:
    """What `add_release` did with a delta.

    Attributes:
        outcome: in one word.
        source: the version that it starts from.
        sha256: its name.
        size: its bytes.
        tuf_path: where `releases` lists it; empty when it is not kept.
    """

    outcome: Outcome
    source: str
    sha256: str
    size: int
    tuf_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add_release` did.

    Attributes:
        outcome: in one word.
        facts: what was signed, or for a stock payload what would have been.
        sha256: the payload's name.
        size: its bytes.
        tuf_path: where `releases` lists the version.
        deltas: what was done with each delta, in their order.
        warnings: sentences that a person should read.
    """

    outcome: Outcome
    facts: PayloadFacts
    sha256: str
    size: int
    tuf_path: str
    warnings: tuple[str, ...]
    deltas: tuple[AddedDelta, ...] = ()


def add_release(
    desk: Desk,
    payload: Path,
    order: ReleaseOrder,
    *,
    trusted: TrustedKeys | None,
    keys: KeyFolder,
    deltas: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Added:
    """Verify a payload and publish it; doing it twice is the same as once.

    Args:
        desk: where to.
        payload: the file.
        order: what a person says about it.
        trusted: public keys of payload signatures; None leaves signatures unchecked.
        keys: where the keys of `releases` are.
        deltas: files of deltas to the same images; those that pay are published with it.
        progress: called with bytes done and their whole number while a copy is verified.

    Raises:
        ImagesError: a payload does not verify, or a name or version is not of the right shape.
        ReleaseExistsError: the version, or its delta from a version, was published with other bytes
            or facts.
        ReleaseFormatError: a payload of format 2 comes after one of format 1, or deltas with one
            for stock clients.
        DeltaTargetError: a delta makes another image.
        DeltaSourceUnknownError: a delta starts from what was never published.
        KeysMissingError: the release cannot be signed.
        DeskUnwritableError: no space, no permission; readers see the old state.
        DeskBusyError: another change goes on.
    """
    created = desk.clock().replace(microsecond=0)
    with ExitStack() as stack:
        take = partial(take_in, trusted=trusted, created=created, progress=progress)
        incoming = stack.enter_context(take(payload, desk.payloads, order))
        sources = _sources(desk, incoming.facts) if deltas else None
        coming = [
            stack.enter_context(take(file, desk.payloads, order, source_of=sources))
            for file in deltas
        ]
        stack.enter_context(desk.locked())
        contents = desk.repository.read()
        published = published_payloads(contents)
        path = tuf_payload_path(order.product, order.board, order.version, "full")
        outcome = _outcome(desk, incoming, published.get(path))
        if outcome is Outcome.STOCK and coming:
            raise ReleaseFormatError(
                f"payload {incoming.sha256[:16]} of release {order.version} is for stock clients,"
                " so no delta goes with it"
            )
        added = tuple(_added(one, incoming.size, published) for one in coming)
        _keep(desk, incoming, path, is_named=outcome is not Outcome.STOCK)
        new = {path: incoming} if outcome is Outcome.SIGNED else {}
        for one, what in zip(coming, added, strict=True):
            if what.outcome is not Outcome.TOO_LARGE:
                _keep(desk, one, what.tuf_path, is_named=True)
            if what.outcome is Outcome.SIGNED:
                new[what.tuf_path] = one
        if new:
            _sign(desk, contents, new, keys)
        reflect(desk)
        _note(desk, order, incoming, outcome, added)
        return Added(
            outcome=outcome,
            facts=incoming.facts,
            sha256=incoming.sha256,
            size=incoming.size,
            tuf_path=path,
            deltas=added,
            warnings=(
                *_warnings(order, (facts for _, facts in published.values()), trusted),
                *_differences(incoming.facts, published.get(path)),
                *(
                    why_not(one.size, incoming.size, one.source)
                    for one in added
                    if one.outcome is Outcome.TOO_LARGE
                ),
                *_not_named_yet(desk, contents, order, added),
            ),
        )


def _sources(desk: Desk, full: PayloadFacts) -> Callable[[Manifest], str]:
    """Return what tells the version that a delta to the release of `full` starts from."""
    known = published_payloads(desk.repository.read()).values()
    others = [facts for _, facts in known if facts.kind == "full"]
    return partial(source_of, full=full, others=others)


def _added(
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


def _keep(desk: Desk, incoming: Incoming, path: str, *, is_named: bool) -> None:
    """Give a payload its name by hash and, when it is signed for, by its TUF path."""
    kept = desk.payload_file(incoming.sha256)
    incoming.keep_as(kept)
    if is_named:
        link_durably(kept, desk.repository.target_path(path, incoming.sha256))


def _not_named_yet(
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


def _outcome(
    desk: Desk, incoming: Incoming, existing: tuple[TargetFile, PayloadFacts] | None
) -> Outcome:
    """Decide what a payload is to a version; refuse what would change a published one."""
    if existing is None:
        return Outcome.SIGNED
    file, facts = existing
    sha256 = file.hashes["sha256"]
    if sha256 == incoming.sha256:
        if msgspec.structs.replace(incoming.facts, created=facts.created) != facts:
            raise ReleaseExistsError(
                f"release {facts.version} is published with other facts for the same payload"
            )
        return Outcome.UNCHANGED
    _, signed_format = look_into(desk.payload_file(sha256), file.length)
    if (incoming.format, signed_format) == (1, 2):
        return _stock_outcome(desk, incoming)
    if (incoming.format, signed_format) == (2, 1):
        raise ReleaseFormatError(
            f"release {facts.version} has a signed payload of format 1, so one of format 2"
            " cannot be added"
        )
    raise ReleaseExistsError(
        f"release {facts.version} is published with payload {sha256[:16]},"
        f" this one is {incoming.sha256[:16]}"
    )


def _stock_outcome(desk: Desk, incoming: Incoming) -> Outcome:
    """Decide what a payload of format 1 beside a signed one is; there may be one."""
    facts = incoming.facts
    with desk.store.reading() as connection:
        payloads = payloads_of(connection, facts.product, facts.board, facts.version)
    beside = [payload.sha256 for payload in payloads if not payload.tuf_path]
    if beside and incoming.sha256 not in beside:
        raise ReleaseExistsError(
            f"release {facts.version} has payload {beside[0][:16]} for stock clients,"
            f" this one is {incoming.sha256[:16]}"
        )
    return Outcome.UNCHANGED if beside else Outcome.STOCK


def _sign(desk: Desk, contents: Contents, new: Mapping[str, Incoming], keys: KeyFolder) -> None:
    """Sign for payloads by their TUF paths, in one publish."""
    releases = contents.delegated[RELEASES].signed
    for path, incoming in new.items():
        custom = {"custom": encode_payload_facts(incoming.facts)}
        hashes = {"sha256": incoming.sha256}
        releases.targets[path] = TargetFile(incoming.size, hashes, path, custom)
    desk.repository.publish(contents, {RELEASES: releases}, keys=keys, online=desk.online)


def _note(
    desk: Desk,
    order: ReleaseOrder,
    incoming: Incoming,
    outcome: Outcome,
    deltas: Sequence[AddedDelta],
) -> None:
    row: dict[str, object] = {"sha256": incoming.sha256, "tuf_path": "", "size": incoming.size}
    if outcome is Outcome.STOCK:
        row["sha1"], row["format"] = look_into(desk.payload_file(incoming.sha256), incoming.size)
    with desk.store.writing() as connection:
        if outcome is Outcome.STOCK:
            row["release_id"] = release_id(connection, order.product, order.board, order.version)
            insert_payload(connection, row)
        sentence = f"payload {incoming.sha256[:16]} of format {incoming.format}: {outcome.value}"
        subject = f"{order.product}/{order.board}/{order.version}"
        record(connection, desk.now_s(), "release add", subject, sentence)
        for one in deltas:
            sentence = f"delta {one.sha256[:16]} from {one.source}: {one.outcome.value}"
            record(connection, desk.now_s(), "release add", subject, sentence)


def _warnings(
    order: ReleaseOrder, published: Iterable[PayloadFacts], trusted: TrustedKeys | None
) -> tuple[str, ...]:
    found = []
    if trusted is None:
        found.append("no public key was given: the payload's signatures were not checked")
    version = parse_version(order.version)
    higher = [
        facts
        for facts in published
        if (facts.product, facts.board) == (order.product, order.board)
        and facts.rollback_index > order.rollback_index
        and parse_version(facts.version) < version
    ]
    if higher:
        found.append(
            f"rollback index {order.rollback_index} is lower than the {higher[0].rollback_index}"
            f" of the older {higher[0].version}: nodes that ran that may refuse this one"
        )
    return tuple(found)


def _differences(
    facts: PayloadFacts, existing: tuple[TargetFile, PayloadFacts] | None
) -> list[str]:
    """Tell which parts stock clients would get otherwise than ours, under one version."""
    signed = {} if existing is None else {part.name: part for part in existing[1].partitions}
    return [
        f"part {part.name} is another image than in the signed payload of version {facts.version}"
        for part in facts.partitions
        if part != signed.get(part.name, part)
    ]
