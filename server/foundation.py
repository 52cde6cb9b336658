"""Laying a new release desk: folders, keys, the first signed metadata, the first group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuf.api.metadata import DelegatedRole, Delegations, Root, Targets

from server.activity import record
from server.desk import DATABASE_NAME, Desk, make_database
from server.durable import PRIVATE_FOLDER_MODE, make_folder, replace_durably
from server.errors import DeskExistsError
from server.groups import insert_group
from server.keys import KeyFolder, check_distinct
from server.reflection import reflect
from server.repository import Repository
from server.roles import (
    ONLINE_ROLES,
    RELEASES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    check_channel_name,
    paths_of,
    policy_of,
)
from server.settings import FILE_NAME, Settings, encode_settings
from server.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import Key

FIRST_GROUP = "default"  # what a node asks for when its settings name no group


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """What a new desk tells its founder.

    Attributes:
        desk: the desk, open.
        root: the root metadata to put into every image.
        offline_keys: the key files to move to a safe place.
    """

    desk: Desk
    root: Path
    offline_keys: tuple[Path, ...]


def found(
    folder: Path,
    settings: Settings,
    *,
    channels: Sequence[str],
    passphrase: bytes | None,
    clock: Callable[[], datetime],
) -> Founded:
    """Make a desk in `folder` with all keys, signed metadata, channels and one group.

    server.toml is written last: a folder without it is no desk, so a founding that was cut short
    is never taken for one.

    Args:
        folder: an empty or a new one.
        settings: what server.toml shall say.
        channels: their names; the first is what the first group follows.
        passphrase: closes the offline keys; None leaves them in the clear.
        clock: the present, with a zone.

    Raises:
        DeskExistsError: the folder is not empty.
        NameInvalidError: a channel cannot be called so.
        DeskUnwritableError: something cannot be written.
    """
    for name in channels:
        check_channel_name(name)
    _check_empty(folder)
    make_folder(folder)
    make_folder(folder / "payloads")
    make_folder(folder / "keys", mode=PRIVATE_FOLDER_MODE)
    offline = KeyFolder(path=folder / "keys" / "offline", passphrase=passphrase)
    online = KeyFolder(path=folder / "keys" / "online")
    repository = Repository(folder / "repository", clock=clock)
    root, targets = _first_metadata(offline, online, channels)
    repository.create(root, targets, keys=offline, online=online)
    make_database(folder)
    store = Store(folder / DATABASE_NAME)
    store.migrate()
    desk = Desk(folder=folder, settings=settings, repository=repository, store=store, clock=clock)
    reflect(desk)
    with store.writing() as connection:
        for name in channels[:1]:
            insert_group(connection, FIRST_GROUP, channel=name, now_s=desk.now_s())
        record(connection, desk.now_s(), "desk init", str(folder), "the desk was founded")
    replace_durably(folder / FILE_NAME, encode_settings(settings))
    return Founded(
        desk=desk,
        root=repository.metadata_folder / "1.root.json",
        offline_keys=tuple(sorted(offline.path.glob("*.pem"))),
    )


def delegation(role: str, keys: Sequence[Key], threshold: int) -> DelegatedRole:
    """Return the terminating delegation of `releases` or of a channel.

    Raises:
        KeyDuplicateError: a key would count twice.
    """
    keyids = [key.keyid for key in check_distinct(keys)]
    return DelegatedRole(role, keyids, threshold, terminating=True, paths=paths_of(role))


def _check_empty(folder: Path) -> None:
    try:
        found = next(folder.iterdir(), None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise DeskExistsError(f"{folder} is a file, not a folder") from None
    if found is not None:
        raise DeskExistsError(f"{folder} is not empty: it has {found.name}")


def _first_metadata(
    offline: KeyFolder, online: KeyFolder, channels: Sequence[str]
) -> tuple[Root, Targets]:
    root = Root(consistent_snapshot=True)
    for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
        policy = policy_of(role)
        folder = online if role in ONLINE_ROLES else offline
        for key in check_distinct(folder.generate(role, policy.keys)):
            root.add_key(key, role)
        root.roles[role].threshold = policy.threshold
    delegations = Delegations(keys={}, roles={})
    for role in (RELEASES, *channels):
        policy = policy_of(role)
        add_delegation(delegations, role, offline.generate(role, policy.keys), policy.threshold)
    return root, Targets(delegations=delegations)


def add_delegation(
    delegations: Delegations, role: str, keys: Sequence[Key], threshold: int
) -> None:
    """Add a role with its keys to `delegations`.

    Raises:
        KeyDuplicateError: a key would count twice.
    """
    roles = delegations.roles if delegations.roles is not None else {}
    roles[role] = delegation(role, keys, threshold)
    delegations.roles = roles
    delegations.keys.update({key.keyid: key for key in keys})
