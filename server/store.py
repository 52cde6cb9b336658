"""The database: one SQLite file, its transactions and its migrations. What is in it: `schema`.

A transaction either reads, or writes and then holds the one write lock of the database from its
first statement (BEGIN IMMEDIATE). So what a writer counts cannot change before it has acted on it:
grants rely on that.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError as DriverError
from sqlalchemy.exc import OperationalError

from server.errors import DatabaseBusyError, DatabaseNewerError, DatabaseUnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

HEAD: Final = "0001"  # the newest migration; a test holds it
BUSY_TIMEOUT_S: Final = 10  # a writer holds the lock for milliseconds
CONNECTIONS_MAX: Final = 48  # the web server's threads (40) and some spare

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_WRITES: Final = "bascule_writes"


class Store:
    """Connections to one database file."""

    def __init__(self, file: Path) -> None:
        """Keep the path; the file is opened, and made if missing, by `migrate`."""
        self._file = file
        self._engine = sa.create_engine(
            f"sqlite:///{file}",
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        )
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        # Writers of this process queue here, fairly, not in SQLite's sleep-and-retry.
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees one state of the database.

        Raises:
            DatabaseBusyError: the database is locked for too long.
            DatabaseUnreadableError: the file is damaged, or is no database.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection that holds the write lock from now until the block ends.

        The block is committed as a whole when it ends, or not at all when it raises.

        Raises:
            DatabaseBusyError: the database is locked for too long.
            DatabaseUnreadableError: the file is damaged, or is no database.
        """
        with self._translated(), self._turn, self._writer.begin() as connection:
            yield connection

    def version(self) -> str:
        """Return the migration the database stands at; empty for a new one.

        Raises:
            DatabaseBusyError: the database is locked for too long.
            DatabaseUnreadableError: the file is damaged, or is no database.
        """
        with self.reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return ""
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
            return str(found.scalar() or "")

    def migrate(self) -> None:
        """Bring the tables to `HEAD`; nothing happens when they are there.

        Raises:
            DatabaseNewerError: a newer program has worked on the file.
            DatabaseBusyError: the database is locked for too long.
            DatabaseUnreadableError: the file is damaged, or is no database.
        """
        version = self.version()
        if version == HEAD:
            return
        if version and not list(_MIGRATIONS.glob(f"versions/{version}_*.py")):
            raise DatabaseNewerError(
                f"{self._file} stands at migration {version}, this program ends at {HEAD}"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.writing() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)

    def close(self) -> None:
        """Close all connections; a later use opens new ones."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            if _is_busy(error):
                raise DatabaseBusyError(
                    f"{self._file} was locked for more than {BUSY_TIMEOUT_S} s"
                ) from error
            raise DatabaseUnreadableError(f"{self._file}: {error.orig}") from error
        except DriverError as error:
            if isinstance(error.orig, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise  # our own mistake, not the file's
            raise DatabaseUnreadableError(f"{self._file}: {error.orig}") from error


def _is_busy(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Take transactions into our own hands; flush at checkpoints, as WAL allows.

    With `synchronous=NORMAL` a power cut may lose the last reports, never the file.
    """
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
