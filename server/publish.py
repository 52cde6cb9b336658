"""A payload becomes a release: kept under its hash, signed for, reflected.

The order makes a crash harmless: the bytes are durable before their name, the name before the
signature, the signature before the database. What a crash leaves is either not yet visible or
completed by the same command, run again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import msgspec
from tuf.api.metadata import TargetFile

from images.release import encode_payload_facts, tuf_payload_path
from images.version import parse_version
from server.activity import record
from server.added import Added, AddedDelta, Outcome
from server.beside import (
    make,
    not_kept,
    not_named_yet,
    one_of_each,
    require_room,
    starts_for,
    try_given,
    what_is_added,
)
from server.catalogue import payloads_of
from server.durable import link_durably
from server.errors import (
    ReleaseExistsError,
    ReleaseFormatError,
)
from server.intake import Intake
from server.making import MakingOrder, require_key
from server.reflection import (
    insert_payload,
    look_into,
    published_payloads,
    reflect,
    release_id,
)
from server.roles import RELEASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from images.release import PayloadFacts
    from images.signing import TrustedKeys
    from server.contents import Contents
    from server.desk import Desk
    from server.intake import Incoming, ReleaseOrder
    from server.keys import KeyFolder
    from server.making import Stage


def _silent(_what: str) -> AbstractContextManager[None]:
    return nullcontext()


def add_release(
    desk: Desk,
    payload: Path,
    order: ReleaseOrder,
    *,
    trusted: TrustedKeys | None,
    keys: KeyFolder,
    deltas: Sequence[Path] = (),
    making: MakingOrder | None = None,
    stage: Stage = _silent,
) -> Added:
    """Verify a payload and publish it; doing it twice is the same as once.

    Args:
        desk: where to.
        payload: the file.
        order: what a person says about it.
        trusted: public keys of payload signatures; None leaves signatures unchecked.
        keys: where the keys of `releases` are.
        deltas: files of deltas to the same images; those that pay are published with it.
        making: which more of them are made here; None for none. One that cannot be made is told
            of, and the release is published without it.
        stage: gives, by what is done, the callback that shows how far it is.

    Raises:
        ImagesError: a payload does not verify or makes something else than it says, or a name or
            version is not of the right shape.
        ReleaseExistsError: the version, or its delta from a version, was published with other bytes
            or facts.
        ReleaseFormatError: a payload of format 2 comes after one of format 1, or deltas with one
            for stock clients.
        DeltaTargetError: a delta makes another image.
        DeltaSourceUnknownError: a delta starts from what was never published.
        DeltasTooManyError: it would have more deltas than a channel can name.
        DeltaKeyError: deltas are to be made that nothing would sign.
        ChannelUnknownError: deltas are to be made from the releases of a channel that is none.
        KeysMissingError: the release cannot be signed.
        DeskUnwritableError: no space, no permission; readers see the old state.
        DeskBusyError: another change goes on.
    """
    created = desk.clock().replace(microsecond=0)
    with ExitStack() as stack:
        take = Intake(desk, order, trusted, created, stage, stack)
        incoming = take.full(payload)
        coming = [take.delta(file, incoming.facts) for file in deltas]
        failures = try_given(desk, incoming, coming, take)
        if making is not None and making.last:
            starts, notes = starts_for(desk, incoming, coming, making)
            failures += notes
            if starts:
                require_key(making.keys, trusted=trusted, full=incoming)
                _require_signers(desk, keys)
                failures += make(desk, incoming, coming, starts, making, take)
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
        added = one_of_each([what_is_added(one, incoming.size, published) for one in coming])
        require_room(order, added, published)
        _keep(desk, incoming, path, is_named=outcome is not Outcome.STOCK)
        new = {path: incoming} if outcome is Outcome.SIGNED else {}
        for one, what in zip(coming, added, strict=True):
            if what.tuf_path:
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
                *not_kept(added, incoming.size),
                *failures,
                *not_named_yet(desk, contents, order, added),
            ),
        )


def _require_signers(desk: Desk, keys: KeyFolder) -> None:
    """See that the release can be signed before work of minutes is done for it."""
    publics, threshold = desk.repository.read().keys_of(RELEASES)
    keys.signers(RELEASES, publics, threshold)


def _keep(desk: Desk, incoming: Incoming, path: str, *, is_named: bool) -> None:
    """Give a payload its name by hash and, when it is signed for, by its TUF path."""
    kept = desk.payload_file(incoming.sha256)
    incoming.keep_as(kept)
    if is_named:
        link_durably(kept, desk.repository.target_path(path, incoming.sha256))


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
