"""What must happen by itself: signatures stay fresh, the database stays small.

Only the online keys are used by `refresh_online`, which `serve` calls; `renew` is for a person who
brings the offline ones.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Final

from server import grants, nodes
from server.activity import record
from server.errors import RoleUnknownError
from server.reflection import reflect
from server.roles import ONLINE_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.contents import Contents
    from server.desk import Desk
    from server.keys import KeyFolder

log = logging.getLogger(__name__)

GRANTS_KEPT_S: Final = 30 * 86400  # what a node was given lately


def due_roles(desk: Desk, contents: Contents) -> list[str]:
    """Return the roles whose signatures should be renewed by now."""
    now = desk.clock()
    return [
        name
        for name, signed in contents.signed_roles().items()
        if signed.expires - now < policy_of(name).renew_before
    ]


def refresh_online(desk: Desk, *, force: bool = False) -> list[str]:
    """Sign snapshot and timestamp again where they are due; return what was signed.

    Args:
        desk: whose files.
        force: sign both, due or not.

    Raises:
        KeysMissingError: an online key is not here.
        RepositoryDamagedError: what is published does not verify.
        DeskBusyError: another change goes on.
        DeskUnwritableError: a file cannot be written.
    """
    with desk.locked():
        contents = desk.repository.read()
        due = list(ONLINE_ROLES) if force else due_roles(desk, contents)
        if SNAPSHOT in due:
            desk.repository.publish(contents, {}, keys=None, online=desk.online)
            signed = [SNAPSHOT, TIMESTAMP]
        elif TIMESTAMP in due:
            desk.repository.refresh_timestamp(contents, online=desk.online)
            signed = [TIMESTAMP]
        else:
            return []
    log.info("metadata signed again roles=%s", ",".join(signed))
    return signed


def renew(desk: Desk, roles: Sequence[str], *, keys: KeyFolder) -> list[str]:
    """Sign offline roles again as they are, with a later expiry; return what was signed.

    Args:
        desk: whose files.
        roles: their names; none for those that are due.
        keys: where their keys are.

    Raises:
        RoleUnknownError: there is no such role.
        KeysMissingError: too few keys of a role are at hand; then nothing changed.
        DeskBusyError: another change goes on.
    """
    with desk.locked():
        contents = desk.repository.read()
        known = contents.signed_roles()
        for name in roles:
            if name not in known:
                raise RoleUnknownError(f"there is no role {name!a}")
        wanted = roles or due_roles(desk, contents)
        offline = [name for name in wanted if name not in ONLINE_ROLES]
        _check_keys(contents, offline, keys)
        if ROOT in offline:
            desk.repository.renew_root(contents, keys=keys)
        edits = {
            name: copy.deepcopy(
                contents.targets.signed if name == TARGETS else contents.delegated[name].signed
            )
            for name in offline
            if name != ROOT
        }
        if edits:
            desk.repository.publish(contents, edits, keys=keys, online=desk.online)
    if offline:
        with desk.store.writing() as connection:
            sentence = "signed again, with a later expiry"
            record(connection, desk.now_s(), "metadata refresh", ",".join(offline), sentence)
    return offline


def sweep(desk: Desk) -> None:
    """Reflect what was published, and drop what is too old to keep.

    Raises:
        RepositoryDamagedError: what is published does not verify.
        DatabaseError: the database cannot be used.
        OSError: an old metadata file cannot be removed.
    """
    reflect(desk)
    settings = desk.settings
    oldest = desk.now_s() - settings.nodes_kept_days * 86400
    with desk.store.writing() as connection:
        events = nodes.forget_old_events(connection, keep=settings.events_kept)
        silent = nodes.forget_silent(connection, before_s=oldest)
        grants.forget_ended(connection, before_s=desk.now_s() - GRANTS_KEPT_S)
    with desk.locked():
        files = desk.repository.prune()
    if events or silent or files:
        log.info("swept events=%d nodes=%d metadata_files=%d", events, silent, files)


def _check_keys(contents: Contents, roles: Sequence[str], keys: KeyFolder) -> None:
    """See that every role can be signed before one is."""
    for name in roles:
        publics, threshold = contents.keys_of(name)
        keys.signers(name, publics, threshold)
