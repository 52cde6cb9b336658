"""A release desk on disk: where its parts lie, opening it, and the lock that changes take.

DIR/server.toml             settings                 DIR/keys/online/     snapshot, timestamp
DIR/bascule.db              the database             DIR/keys/offline/    all other keys, to be
DIR/payloads/<sha256>.crau  payload files                                 moved to a safe place
DIR/repository/             signed metadata, targets DIR/lock             taken by each change
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from server.durable import PRIVATE_MODE
from server.errors import DeskBusyError, DeskMissingError, DeskUnwritableError
from server.keys import KeyFolder
from server.repository import Repository
from server.settings import Settings, load_settings
from server.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_PATIENCE_S: Final = 30.0  # a command holds the lock while it copies one payload
_LOCK_LOOK_S: Final = 0.1

DATABASE_NAME: Final = "bascule.db"
PAYLOAD_SUFFIX: Final = ".crau"


def now_utc() -> datetime:
    """Return the present; the one place of this room that reads the clock."""
    return datetime.now(tz=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts of one release desk.

    Attributes:
        folder: the desk's folder.
        settings: what server.toml says.
        repository: the signed files.
        store: the database, migrated.
        clock: the present, with a zone.
    """

    folder: Path
    settings: Settings
    repository: Repository
    store: Store
    clock: Callable[[], datetime]

    @property
    def payloads(self) -> Path:
        """The folder of payload files, each named by its SHA-256."""
        return self.folder / "payloads"

    @property
    def online(self) -> KeyFolder:
        """The keys that `serve` signs with."""
        return KeyFolder(path=self.folder / "keys" / "online")

    def offline(self, folder: Path | None = None, passphrase: bytes | None = None) -> KeyFolder:
        """Return the keys a person brings: `folder`, or where `init` has put them."""
        return KeyFolder(path=folder or self.folder / "keys" / "offline", passphrase=passphrase)

    def payload_file(self, sha256: str) -> Path:
        """Return where the payload of this hash lies."""
        return self.payloads / f"{sha256}{PAYLOAD_SUFFIX}"

    def now_s(self) -> int:
        """Return the present as the database keeps it: whole seconds since 1970."""
        return int(self.clock().timestamp())

    @contextlib.contextmanager
    def locked(
        self,
        *,
        patience_s: float = LOCK_PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[None]:
        """Keep every other change away while the block runs; readers are not disturbed.

        Raises:
            DeskBusyError: another change went on for longer than `patience_s`.
            DeskUnwritableError: the lock file cannot be made.
        """
        path = self.folder / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        except OSError as error:
            raise DeskUnwritableError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            looks = int(patience_s / _LOCK_LOOK_S)
            while not _try_lock(descriptor):
                if looks <= 0:
                    raise DeskBusyError(f"{self.folder} has been locked for {patience_s:g} s")
                looks -= 1
                sleep(_LOCK_LOOK_S)
            yield
        finally:
            os.close(descriptor)


def open_desk(folder: Path, *, clock: Callable[[], datetime] = now_utc) -> Desk:
    """Open the desk in `folder` and bring its database up to date.

    Raises:
        DeskMissingError: it is none.
        DeskSettingsError: server.toml is broken.
        DatabaseError: the database cannot be used.
    """
    settings = load_settings(folder)
    if not (folder / DATABASE_NAME).is_file():
        make_database(folder)
    if not (folder / "repository" / "metadata").is_dir():
        raise DeskMissingError(f"{folder} is no release desk: it has no repository/metadata")
    store = Store(folder / DATABASE_NAME)
    store.migrate()
    return Desk(
        folder=folder,
        settings=settings,
        repository=Repository(folder / "repository", clock=clock),
        store=store,
        clock=clock,
    )


def make_database(folder: Path) -> None:
    """Make an empty database file that only its owner may read; one that is there stays.

    Raises:
        DeskUnwritableError: the file cannot be made.
    """
    path = folder / DATABASE_NAME
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE))
    except OSError as error:
        raise DeskUnwritableError(f"{path} cannot be made: {error.strerror}") from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
