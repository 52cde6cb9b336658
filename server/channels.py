"""Channels: made, promoted, withdrawn from. Each change is one signed document and one publish."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import msgspec
from tuf.api.metadata import Targets

from images.errors import DocumentInvalidError
from images.release import encode_channel_document, tuf_channel_path
from server.activity import record
from server.catalogue import base_urls, delta_source
from server.contents import TargetContent
from server.errors import (
    ChannelExistsError,
    ChannelUnknownError,
    NameInvalidError,
    PayloadAbsentError,
    ReleaseUnknownError,
)
from server.foundation import add_delegation
from server.promotion import Promotion, Published, promote, withdraw
from server.reflection import published_documents, published_payloads, reflect
from server.roles import CHANNELS_MAX, RELEASES, TARGETS, check_channel_name, policy_of
from server.schema import CHANNELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from images.release import ChannelDocument
    from server.contents import Contents
    from server.desk import Desk
    from server.keys import KeyFolder


def create_channel(
    desk: Desk,
    name: str,
    *,
    keys: KeyFolder,
    key_count: int | None = None,
    threshold: int | None = None,
) -> None:
    """Make a channel: new keys for its role, and a delegation signed by `targets`.

    Args:
        desk: where.
        name: of the channel and of its role.
        keys: where the keys of `targets` are; the new ones are put there as well.
        key_count: how many keys; None for the policy's number.
        threshold: how many must sign; None for the policy's number.

    Raises:
        NameInvalidError: it cannot be called so, or the numbers do not fit.
        ChannelExistsError: there is one of this name, or there are too many.
        KeyOverwriteError: keys of this name are there.
        KeysMissingError: `targets` cannot be signed.
        DeskBusyError: another change goes on.
    """
    policy = policy_of(check_channel_name(name)).with_keys(key_count, threshold)
    with desk.locked():
        contents = desk.repository.read()
        if name in contents.delegated:
            raise ChannelExistsError(f"there is a channel {name} already")
        if len(contents.delegated) > CHANNELS_MAX:
            raise ChannelExistsError(f"there are {CHANNELS_MAX} channels already")
        publics, needed = contents.keys_of(TARGETS)
        keys.signers(TARGETS, publics, needed)  # before new key files are made
        targets = copy.deepcopy(contents.targets.signed)
        if targets.delegations is None:
            raise ChannelUnknownError("role targets delegates to nobody")
        made = keys.generate(name, policy.keys)
        add_delegation(targets.delegations, name, made, policy.threshold)
        desk.repository.publish(
            contents, {TARGETS: targets, name: Targets()}, keys=keys, online=desk.online
        )
        reflect(desk)
        sentence = f"{policy.threshold} of {policy.keys} keys sign for it"
        with desk.store.writing() as connection:
            record(connection, desk.now_s(), "channel create", name, sentence)


def set_base_urls(desk: Desk, name: str, urls: Sequence[str]) -> None:
    """Say where the payloads of a channel lie, best first; none for this server only.

    Raises:
        ChannelUnknownError: there is none of this name.
        NameInvalidError: a URL is not plain http or https.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")) or len(url) > 512 or "@" in url:
            raise NameInvalidError(f"{url!a} is no http or https URL without user information")
        if url != "".join(url.split()):
            raise NameInvalidError(f"{url!a} has blanks in it")
    with desk.store.writing() as connection:
        changed = connection.execute(
            CHANNELS.update().where(CHANNELS.c.name == name).values(base_urls="\n".join(urls))
        )
        if not changed.rowcount:
            raise ChannelUnknownError(f"there is no channel {name!a}")
        sentence = f"payloads lie at {', '.join(urls)}" if urls else "payloads lie here"
        record(connection, desk.now_s(), "channel set", name, sentence)


def promote_channel(desk: Desk, order: Promotion, *, keys: KeyFolder) -> ChannelDocument:
    """Sign and publish the document that makes a release the current one of a channel.

    Raises:
        ChannelUnknownError: there is none of this name.
        ChannelError, ReleaseError: the order does not fit; see `promotion.promote`.
        PayloadAbsentError: a payload's file is away, and the channel names no other server.
        DocumentInvalidError: a name has a wrong shape, or the document would be too large.
        KeysMissingError: too few of the channel's keys are at hand.
        DeskBusyError: another change goes on.
    """
    with desk.locked():
        contents = _with_channel(desk, order.channel)
        before = _document(desk, contents, order)
        try:
            document = promote(before, order, _releases(contents, order))
        except msgspec.ValidationError as error:
            raise DocumentInvalidError(f"channel document: {error}") from error
        _require_files(desk, contents, document)
        _publish(desk, contents, [document], keys)
        with desk.store.writing() as connection:
            sentence = f"{document.current} is current, serial {document.serial}"
            record(connection, desk.now_s(), "channel promote", order.channel, sentence)
        return document


def withdraw_release(
    desk: Desk,
    version: str,
    *,
    product: str,
    board: str,
    channels: Sequence[str],
    keys: KeyFolder,
) -> list[ChannelDocument]:
    """Withdraw a release from the named channels, or from every one that allows it.

    Raises:
        ReleaseUnknownError: it is not published, or no channel allows it.
        ChannelUnknownError: a named channel does not exist.
        KeysMissingError: too few keys of one of the channels are at hand; then nothing changed.
        DeskBusyError: another change goes on.
    """
    with desk.locked():
        contents = desk.repository.read()
        for name in channels:
            if name not in contents.delegated:
                raise ChannelUnknownError(f"there is no channel {name!a}")
        documents = [
            document
            for document in published_documents(desk, contents)
            if (document.product, document.board) == (product, board)
            and (document.channel in channels or (not channels and version in document.allowed))
        ]
        if not documents:
            raise ReleaseUnknownError(f"no channel allows release {version} for {product}/{board}")
        after = [withdraw(document, version) for document in documents]
        _publish(desk, contents, after, keys)
        names = ", ".join(document.channel for document in after)
        with desk.store.writing() as connection:
            record(connection, desk.now_s(), "release withdraw", version, f"withdrawn from {names}")
        return after


def _with_channel(desk: Desk, name: str) -> Contents:
    contents = desk.repository.read()
    if name not in contents.delegated or name == RELEASES:
        raise ChannelUnknownError(f"there is no channel {name!a}")
    return contents


def _document(desk: Desk, contents: Contents, order: Promotion) -> ChannelDocument | None:
    wanted = (order.channel, order.product, order.board)
    for document in published_documents(desk, contents):
        if (document.channel, document.product, document.board) == wanted:
            return document
    return None


def _releases(contents: Contents, order: Promotion) -> dict[str, Published]:
    found: dict[str, Published] = {}
    for path, (_, facts) in published_payloads(contents).items():
        if (facts.product, facts.board) == (order.product, order.board):
            known = found.get(facts.version)
            paths = (*known.paths, path) if known else (path,)
            full_first = tuple(sorted(paths, key=lambda one: (bool(delta_source(one)), one)))
            found[facts.version] = Published(rollback_index=facts.rollback_index, paths=full_first)
    return found


def _require_files(desk: Desk, contents: Contents, document: ChannelDocument) -> None:
    """Refuse a document whose newest release this server could not serve, where nobody else does.

    A delta may be away: nodes take the full payload then.

    Raises:
        PayloadAbsentError: a payload's file is away.
    """
    with desk.store.reading() as connection:
        if base_urls(connection, document.channel):
            return
    published = published_payloads(contents)
    for path in document.allowed[document.current]:
        if not path.endswith("/full.crau"):
            continue
        sha256 = published[path][0].hashes["sha256"]
        if not desk.payload_file(sha256).is_file():
            raise PayloadAbsentError(
                f"payload {sha256[:16]} of {path} was signed, and its file is not on this server"
            )


def _publish(
    desk: Desk, contents: Contents, documents: Sequence[ChannelDocument], keys: KeyFolder
) -> None:
    """Sign all documents in one publish: readers see all of them or none."""
    edits: dict[str, Targets] = {}
    files: list[TargetContent] = []
    for document in documents:
        path = tuf_channel_path(document.channel, document.product, document.board)
        file = TargetContent(path=path, data=encode_channel_document(document))
        role = edits.setdefault(
            document.channel, copy.deepcopy(contents.delegated[document.channel].signed)
        )
        role.targets[path] = file.target_file()
        files.append(file)
    desk.repository.publish(contents, edits, keys=keys, online=desk.online, files=files)
    reflect(desk)
