from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sim.full_disk import fill, read_only, small_disk
from updater.errors import EXIT_FAILED, StateError
from updater.lifecycle import State
from updater.state import (
    DENIED_MAX,
    HISTORY_KEPT_LINES,
    HISTORY_MAX_LINES,
    REPORTS_MAX,
    SHELF_FILE,
    STATE_MAX_BYTES,
    Failure,
    Journal,
    NodeState,
    Report,
    SlotRecord,
    Store,
    Update,
)

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
UPDATE: Final = Update(
    version="2.0.0", rollback_index=2, previous_version="1.0.0", slot="b", began=NOW, size=4096
)
MEMORY: Final = NodeState(
    state=State.ARMED,
    boot_id="boot-1",
    update=UPDATE,
    slots={"b": SlotRecord(version="2.0.0", rollback_index=2)},
    permit="held",
    next_check=NOW + MINUTE,
)
JOURNAL: Final = Journal(sha256="a" * 64, slot="b", next_operation=7, downloaded=1234)
FILES: Final = ("state.json", "journal.json", "floor.json", "denied.json", "reports.json")


def failure(version: str, *, at: datetime = NOW) -> Failure:
    return Failure(code="trial-unhealthy", sentence="why", at=at, version=version)


def report(number: int) -> Report:
    return Report(event_type=3, event_result=2, at=NOW, version=f"{number}.0.0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.prepare()
    return made


def test_the_folder_is_private(store: Store) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_new_folder_remembers_nothing(store: Store) -> None:
    assert store.read_state() == NodeState()
    assert store.read_journal() is None
    assert store.read_floor() == 0
    assert store.read_denied() == {}
    assert store.read_reports() == []
    assert store.history() == []


def test_what_is_written_is_read_by_another_process(store: Store) -> None:
    store.write_state(MEMORY)
    store.write_journal(JOURNAL)
    store.raise_floor(3)
    store.deny("2.0.0", failure("2.0.0"))
    store.queue_report(report(1))
    store.remember(NOW, "armed", version="2.0.0")
    other = Store(store.folder)
    assert other.read_state() == MEMORY
    assert other.read_journal() == JOURNAL
    assert other.read_floor() == 3
    assert other.read_denied() == {"2.0.0": failure("2.0.0")}
    assert other.read_reports() == [report(1)]
    assert other.history() == [{"at": NOW.isoformat(), "what": "armed", "version": "2.0.0"}]


def read_everything(store: Store) -> tuple[object, ...]:
    return (
        store.read_state(),
        store.read_journal(),
        store.read_floor(),
        store.read_denied(),
        store.read_reports(),
    )


NOTHING: Final[tuple[object, ...]] = (NodeState(), None, 0, {}, [])
DAMAGE: Final = {
    "empty": b"",
    "cut short": msgspec.json.encode(MEMORY)[:-10],
    "zeros, as after a power cut": bytes(512),
    "no UTF-8": b'{"state": "\xff\xfe"}',
    "another kind": b'"a text"',
    "too deep": b"[" * 100_000,
    "too long": b" " * (STATE_MAX_BYTES + 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_taken_as_lost(store: Store, damage: bytes) -> None:
    for name in FILES:
        (store.folder / name).write_bytes(damage)
    assert read_everything(store) == NOTHING


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers(), st.lists).map(repr))
def test_no_bytes_whatever_stop_a_reader(store: Store, damage: bytes | str) -> None:
    for name in (*FILES, "history.jsonl"):
        (store.folder / name).write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    read_everything(store)
    store.history()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "resting"),
        ("permit", "perhaps"),
        ("next_check", "2026-11-20T12:00:00"),  # a time without a zone cannot be compared
        ("checks_failed", -1),
    ],
)
def test_a_memory_with_a_value_that_cannot_be_is_taken_as_lost(
    store: Store, field: str, value: object
) -> None:
    content = json.loads(msgspec.json.encode(MEMORY)) | {field: value}
    (store.folder / "state.json").write_text(json.dumps(content))
    assert store.read_state() == NodeState()


def test_a_slot_that_is_none_is_taken_as_lost(store: Store) -> None:
    for name, value in (("state.json", MEMORY), ("journal.json", JOURNAL)):
        text = msgspec.json.encode(value).replace(b'"slot":"b"', b'"slot":"c"')
        (store.folder / name).write_bytes(text)
    assert store.read_state() == NodeState()
    assert store.read_journal() is None


def test_a_field_of_a_newer_bascule_is_left_out(store: Store) -> None:
    """Rolling back to an older bascule must not cost the memory."""
    content = json.loads(msgspec.json.encode(MEMORY)) | {"of_the_future": {"x": 1}}
    (store.folder / "state.json").write_text(json.dumps(content))
    assert store.read_state() == MEMORY


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_whole_after_the_next_write(store: Store, name: str) -> None:
    (store.folder / name).write_bytes(b"damage")
    store.write_state(MEMORY)
    store.write_journal(JOURNAL)
    store.raise_floor(1)
    store.deny("2.0.0", failure("2.0.0"))
    store.queue_report(report(1))
    assert read_everything(store) == (
        MEMORY,
        JOURNAL,
        1,
        {"2.0.0": failure("2.0.0")},
        [report(1)],
    )


def test_a_file_that_cannot_be_read_at_all_is_an_error(store: Store) -> None:
    """Lost is one thing; to take a folder or a failing disk for lost would forget the floor."""
    (store.folder / "floor.json").mkdir()
    with pytest.raises(StateError, match=r"floor\.json cannot be read"):
        store.read_floor()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(min_value=0, max_value=2**31), min_size=1))
def test_the_floor_never_sinks(store: Store, floors: list[int]) -> None:
    highest = store.read_floor()
    for floor in floors:
        store.raise_floor(floor)
        highest = max(highest, floor)
        assert store.read_floor() == highest


def test_a_version_is_allowed_again(store: Store) -> None:
    store.deny("2.0.0", failure("2.0.0"))
    store.deny("3.0.0", failure("3.0.0"))
    store.allow("2.0.0")
    store.allow("9.9.9")
    assert list(store.read_denied()) == ["3.0.0"]


def test_the_denied_are_bounded_and_the_newest_stay(store: Store) -> None:
    for number in range(DENIED_MAX + 10):
        store.deny(f"1.0.{number}", failure(f"1.0.{number}", at=NOW + number * MINUTE))
    denied = store.read_denied()
    assert len(denied) == DENIED_MAX
    assert "1.0.9" not in denied
    assert f"1.0.{DENIED_MAX + 9}" in denied


def test_reports_are_bounded_and_the_newest_stay(store: Store) -> None:
    for number in range(REPORTS_MAX + 5):
        store.queue_report(report(number))
    assert store.read_reports() == [report(number) for number in range(5, REPORTS_MAX + 5)]


def test_a_report_that_is_queued_while_others_are_sent_stays(store: Store) -> None:
    store.queue_report(report(1))
    being_sent = store.read_reports()
    store.queue_report(report(2))
    store.drop_reports(being_sent)
    assert store.read_reports() == [report(2)]


def test_reports_queued_and_dropped_at_the_same_time_are_neither_lost_nor_revived(
    store: Store,
) -> None:
    """The sender works beside the engine, without its lock."""
    count = 40
    told: list[Report] = []
    begun = threading.Barrier(2)

    def send() -> None:
        other = Store(store.folder)
        begun.wait()
        while len(told) < count:
            waiting = other.read_reports()
            other.drop_reports(waiting)
            told.extend(waiting)

    sender = threading.Thread(target=send)
    sender.start()
    begun.wait()
    for number in range(count):
        store.queue_report(report(number))
    sender.join()
    assert told == [report(number) for number in range(count)]
    assert store.read_reports() == []


def test_the_history_is_bounded(store: Store) -> None:
    path = store.folder / "history.jsonl"
    line = {"at": NOW.isoformat(), "what": "x" * 80}
    path.write_text(f"{json.dumps(line)}\n" * HISTORY_MAX_LINES)
    store.remember(NOW, "newest")
    entries = store.history()
    assert len(entries) == HISTORY_KEPT_LINES
    assert entries[-1]["what"] == "newest"


def test_a_torn_line_of_the_history_is_skipped(store: Store) -> None:
    store.remember(NOW, "first")
    with (store.folder / "history.jsonl").open("ab") as file:
        file.write(b'{"at": "2026')
    store.remember(NOW, "second")
    assert [entry["what"] for entry in store.history()] == ["first", "second"]


def test_pieces_of_a_payload_are_void_for_another_and_go_with_the_journal(store: Store) -> None:
    pieces = {0: b"\x00metadata\xff", 70_000_000_000: b""}
    store.write_journal(JOURNAL)
    store.write_pieces("one", pieces)
    assert Store(store.folder).read_pieces("one") == pieces
    assert store.read_pieces("two") == {}
    store.drop_journal()
    assert store.read_pieces("one") == {}
    assert list(store.folder.iterdir()) == []


def test_damaged_pieces_of_a_payload_are_taken_as_lost(store: Store) -> None:
    store.write_pieces("one", {0: b"metadata"})
    whole = (store.folder / SHELF_FILE).read_bytes()
    for damage in (*DAMAGE.values(), whole[:-1], whole + b"x", whole.replace(b"pieces", b"pieses")):
        (store.folder / SHELF_FILE).write_bytes(damage)
        assert store.read_pieces("one") == {}


def test_one_wrong_bit_of_the_pieces_is_seen_without_any_key(store: Store) -> None:
    store.write_pieces("one", {0: b"metadata and its signature", 99: b"index"})
    file = store.folder / "shelf.bin"
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"signature") + 3] ^= 1
    file.write_bytes(whole)
    assert store.read_pieces("one") == {}


def test_a_full_disk_costs_the_pieces_and_not_the_state(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state") as folder:
        store = filled(folder)
        store.write_pieces("one", {0: bytes(20_000)})
        fill(folder)
        store.raise_floor(70)
        assert store.read_floor() == 70
        assert store.read_pieces("one") == {}


def test_pieces_that_cannot_be_removed_keep_nobody_from_ending_an_update(store: Store) -> None:
    store.write_journal(JOURNAL)
    (store.folder / SHELF_FILE).mkdir()
    store.drop_journal()
    assert store.read_journal() is None


def test_dropping_a_journal_that_is_not_there_is_no_error(store: Store) -> None:
    store.drop_journal()
    store.write_journal(JOURNAL)
    store.drop_journal()
    assert store.read_journal() is None


WRITERS: Final[dict[str, Callable[[Store], None]]] = {
    "state": lambda store: store.write_state(MEMORY),
    "journal": lambda store: store.write_journal(JOURNAL),
    "no journal": lambda store: store.drop_journal(),
    "pieces": lambda store: store.write_pieces("one", {0: b"metadata"}),
    "floor": lambda store: store.raise_floor(9),
    "denied": lambda store: store.deny("3.0.0", failure("3.0.0")),
    "allowed": lambda store: store.allow("2.0.0"),
    "reports": lambda store: store.queue_report(report(2)),
    "fewer reports": lambda store: store.drop_reports([report(1)]),
}


def filled(folder: Path) -> Store:
    store = Store(folder)
    store.prepare()
    store.write_state(NodeState())
    store.write_journal(msgspec.structs.replace(JOURNAL, next_operation=1))
    store.raise_floor(3)
    store.deny("2.0.0", failure("2.0.0"))
    store.queue_report(report(1))
    return store


def test_in_a_read_only_folder_every_write_is_a_state_error_and_loses_nothing(
    tmp_path: Path,
) -> None:
    store = filled(tmp_path / "state")
    before = read_everything(store)
    with read_only(store.folder):
        for name, write in WRITERS.items():
            with pytest.raises(StateError, match="cannot be") as caught:
                write(store)
            assert (caught.value.code, caught.value.exit_status) == ("state-folder", EXIT_FAILED)
            assert str(store.folder) in str(caught.value), name
        store.remember(NOW, "lost")
        assert read_everything(store) == before
    assert store.history() == []


def test_on_a_full_disk_every_write_is_a_state_error_and_loses_nothing(tmp_path: Path) -> None:
    writers = {name: write for name, write in WRITERS.items() if name != "no journal"}
    with small_disk(tmp_path / "state") as folder:
        store = filled(folder)
        store.drop_pieces()  # the next test is of what they are given up for
        fill(folder)
        before = read_everything(store)
        for write in writers.values():
            with pytest.raises(StateError, match="No space left on device"):
                write(store)
        store.remember(NOW, "lost")
        assert read_everything(store) == before
        store.drop_journal()  # needs no space
        assert store.read_journal() is None


def test_a_folder_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match="cannot be made"):
        Store(tmp_path / "file" / "state").prepare()
