"""The signed files, reflected into the database so that a check is answered by a look-up.

The files are the truth. The database is compared with them by the snapshot's version whenever a
desk is opened, so a crash between publishing and reflecting, or a lost database, heals by itself.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from images.container import HEADER_SIZE, parse_header
from images.errors import ImagesError
from images.release import (
    ChannelDocument,
    PayloadFacts,
    encode_channel_document,
    parse_channel_document,
    parse_payload_facts,
)
from server.errors import RepositoryDamagedError
from server.roles import RELEASES as RELEASES_ROLE
from server.schema import CHANNEL_DOCUMENTS, CHANNELS, FACTS, PAYLOADS, RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection
    from tuf.api.metadata import TargetFile

    from server.contents import Contents
    from server.desk import Desk

log = logging.getLogger(__name__)

_REFLECTED: Final = "reflected_snapshot"
_CHUNK_BYTES: Final = 1024 * 1024
_FORMAT_UNKNOWN: Final = 2  # of a payload that is not here: what we build ourselves


def reflect(desk: Desk) -> None:
    """Bring the database to what is published; nothing is written when it is there.

    Raises:
        RepositoryDamagedError: what is published does not verify.
        DatabaseError: the database cannot be used.
    """
    version = desk.repository.read().snapshot.signed.version
    with desk.store.reading() as connection:
        if _reflected(connection) == str(version):
            return
    with desk.store.writing() as connection:
        # Read again now that nobody else reflects: else an older state could overwrite a newer.
        contents = desk.repository.read()
        version = contents.snapshot.signed.version
        _reflect_releases(connection, desk, contents)
        _reflect_channels(connection, desk, contents)
        row = {"name": _REFLECTED, "value": str(version)}
        connection.execute(
            insert(FACTS).values(row).on_conflict_do_update(index_elements=["name"], set_=row)
        )
    log.debug("reflected the signed files snapshot=%d", version)


def published_payloads(contents: Contents) -> dict[str, tuple[TargetFile, PayloadFacts]]:
    """Return every payload that `releases` lists, by TUF path.

    Raises:
        RepositoryDamagedError: a target has no sound facts.
    """
    targets = contents.delegated[RELEASES_ROLE].signed.targets
    try:
        return {
            path: (file, parse_payload_facts(file.custom or {})) for path, file in targets.items()
        }
    except ImagesError as error:
        raise RepositoryDamagedError(f"role releases: {error}") from error


def published_documents(desk: Desk, contents: Contents) -> list[ChannelDocument]:
    """Return every channel document that is published.

    Raises:
        RepositoryDamagedError: a document is missing, changed or unsound.
    """
    roles = (role for name, role in contents.delegated.items() if name != RELEASES_ROLE)
    files = [file for role in roles for file in role.signed.targets.values()]
    try:
        return [parse_channel_document(desk.repository.target_data(file)) for file in files]
    except ImagesError as error:
        raise RepositoryDamagedError(f"a channel document: {error}") from error


def _sha1_of(path: Path) -> str:
    """Return base64 of the SHA-1 of a file, which old clients compare; it protects nothing."""
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode("ascii")


def insert_payload(connection: Connection, row: dict[str, object]) -> None:
    """Add a payload of a release; one that is there stays as it is."""
    connection.execute(insert(PAYLOADS).values(row).on_conflict_do_nothing())


def release_id(connection: Connection, product: str, board: str, version: str) -> int | None:
    """Return the row of a release, or None."""
    query = sa.select(RELEASES.c.id).where(
        RELEASES.c.product == product, RELEASES.c.board == board, RELEASES.c.version == version
    )
    return connection.execute(query).scalar()


def _reflected(connection: Connection) -> str:
    query = sa.select(FACTS.c.value).where(FACTS.c.name == _REFLECTED)
    return connection.execute(query).scalar() or ""


def _reflect_releases(connection: Connection, desk: Desk, contents: Contents) -> None:
    for path, (file, facts) in published_payloads(contents).items():
        row: dict[str, object] = {
            "product": facts.product,
            "board": facts.board,
            "version": facts.version,
            "rollback_index": facts.rollback_index,
            "created_at": int(facts.created.timestamp()),
        }
        connection.execute(insert(RELEASES).values(row).on_conflict_do_nothing())
        release = release_id(connection, facts.product, facts.board, facts.version)
        sha256 = file.hashes["sha256"]
        if _has_payload(connection, release, sha256):
            continue
        sha1, major = look_into(desk.payload_file(sha256), file.length)
        row = {"sha256": sha256, "release_id": release, "tuf_path": path, "size": file.length}
        insert_payload(connection, row | {"sha1": sha1, "format": major})


def _has_payload(connection: Connection, release: int | None, sha256: str) -> bool:
    query = sa.select(PAYLOADS.c.sha256).where(
        PAYLOADS.c.release_id == release, PAYLOADS.c.sha256 == sha256
    )
    return connection.execute(query).first() is not None


def look_into(path: Path, size: int) -> tuple[str, int]:
    """Return SHA-1 and format of a payload file of `size` bytes; what we build if it is away."""
    try:
        with path.open("rb") as file:
            major = parse_header(file.read(HEADER_SIZE), payload_size=size).major
        return _sha1_of(path), major
    except (OSError, ImagesError) as error:
        log.warning("payload is signed but not here file=%s error=%s", path, error)
        return "", _FORMAT_UNKNOWN


def _reflect_channels(connection: Connection, desk: Desk, contents: Contents) -> None:
    for name in contents.delegated:
        if name != RELEASES_ROLE:
            row = {"name": name, "base_urls": ""}
            connection.execute(insert(CHANNELS).values(row).on_conflict_do_nothing())
    for document in published_documents(desk, contents):
        values: dict[str, object] = {
            "channel": document.channel,
            "product": document.product,
            "board": document.board,
            "serial": document.serial,
            "document": encode_channel_document(document).decode(),
        }
        key = ["channel", "product", "board"]
        connection.execute(
            insert(CHANNEL_DOCUMENTS)
            .values(values)
            .on_conflict_do_update(index_elements=key, set_=values)
        )
