"""The database: migrations, transactions, and what a broken file says."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import server.store
from server.errors import DatabaseBusyError, DatabaseNewerError, DatabaseUnreadableError
from server.schema import FACTS, METADATA
from server.store import HEAD, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "bascule.db")
    made.migrate()
    return made


def names(store: Store) -> list[str]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(FACTS.c.name)).scalars())


def add(connection: sa.Connection, name: str) -> None:
    connection.execute(FACTS.insert().values(name=name, value=""))


def test_the_migrations_make_exactly_the_tables_of_the_schema(store: Store) -> None:
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_newest_migration_is_the_one_the_program_knows() -> None:
    config = Config()
    config.set_main_option("script_location", str(server.store._MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_migrating_twice_is_the_same_as_once(store: Store) -> None:
    with store.writing() as connection:
        add(connection, "kept")
    store.migrate()
    assert names(store) == ["kept"]


def test_a_database_of_a_newer_program_is_left_alone(store: Store, tmp_path: Path) -> None:
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseNewerError, match="9999"):
        Store(tmp_path / "bascule.db").migrate()


def test_a_block_that_raises_leaves_nothing_behind(store: Store) -> None:
    def half() -> None:
        with store.writing() as connection:
            add(connection, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert names(store) == []


def test_a_writer_holds_the_lock_from_its_first_instant(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.store, "BUSY_TIMEOUT_S", 0)
    other = Store(tmp_path / "bascule.db")
    with store.writing(), pytest.raises(DatabaseBusyError, match="locked"), other.writing():
        pass  # nothing was written yet, and still nobody else may begin


def test_readers_do_not_wait_for_a_writer(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "bascule.db")
    with store.writing() as connection:
        add(connection, "unseen")
        assert names(other) == []
    assert names(other) == ["unseen"]


def test_writers_of_one_process_take_turns(store: Store) -> None:
    def count_up() -> None:
        for _ in range(20):
            with store.writing() as connection:
                number = connection.execute(sa.select(sa.func.count()).select_from(FACTS)).scalar()
                add(connection, f"n{number}")

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(store)) == sorted(f"n{number}" for number in range(160))


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    file = tmp_path / "bascule.db"
    file.write_bytes(b"once upon a time" * 100)
    with pytest.raises(DatabaseUnreadableError, match="not a database"):
        Store(file).migrate()


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreadableError, match="unable to open"):
        Store(tmp_path / "nowhere" / "bascule.db").migrate()


def test_a_mistake_of_ours_is_not_blamed_on_the_file(store: Store) -> None:
    with store.writing() as connection:
        add(connection, "once")
    with pytest.raises(sa.exc.IntegrityError), store.writing() as connection:
        add(connection, "once")


def test_the_file_survives_a_plain_sqlite_reader(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "bascule.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    store.close()
