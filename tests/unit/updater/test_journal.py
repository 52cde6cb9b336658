from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import override

from tests.sim.journal import Datagrams, decode
from updater import journal
from updater.journal import (
    CUT_NOTE,
    MESSAGE_IDS,
    MESSAGE_MAX_CHARS,
    JournalHandler,
    StreamFormatter,
    event_of,
    leads_to_journal,
)

ROOT = Path(__file__).parents[3]
LOG_CALL = re.compile(r'log\.(?:info|warning|error)\(\s*"([^"]+)"')


class Stream(logging.Handler):
    """Takes what the journal did not."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    made = logging.Logger("updater.rebooting.test")  # noqa: LOG001  # nobody else hears it
    made.setLevel(logging.DEBUG)
    yield made
    for handler in list(made.handlers):
        handler.close()
        made.removeHandler(handler)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def reader(log: logging.Logger, socket_path: Path) -> Iterator[Datagrams]:
    with Datagrams(socket_path) as made:
        log.addHandler(JournalHandler(socket_path, Stream()))
        yield made


def test_a_line_has_its_message_priority_and_place(log: logging.Logger, reader: Datagrams) -> None:
    log.error("trial failed version=%s code=%s why=%s", "2.0.0", "trial-unhealthy", "no = good")
    fields = decode(reader.next())
    assert fields["MESSAGE"] == "trial failed version=2.0.0 code=trial-unhealthy why=no = good"
    assert fields["PRIORITY"] == "3"
    assert fields["SYSLOG_IDENTIFIER"] == "bascule"
    assert fields["CODE_FILE"] == __file__
    assert fields["CODE_FUNC"] == "test_a_line_has_its_message_priority_and_place"
    assert fields["LOGGER"] == "updater.rebooting.test"


def test_its_pairs_are_fields_with_their_whole_values(
    log: logging.Logger, reader: Datagrams
) -> None:
    log.error("trial failed version=%s code=%s why=%s", "2.0.0", "trial-unhealthy", "x=1 and y=2")
    fields = decode(reader.next())
    assert {name: value for name, value in fields.items() if name.startswith("BASCULE_")} == {
        "BASCULE_VERSION": "2.0.0",
        "BASCULE_CODE": "trial-unhealthy",
        "BASCULE_WHY": "x=1 and y=2",
    }


def test_a_pair_that_stands_in_the_format_is_a_field_too(
    log: logging.Logger, reader: Datagrams
) -> None:
    log.error("update is held back code=held-back current=%s since=%s", "2.0.0", None)
    fields = decode(reader.next())
    assert (fields["BASCULE_CODE"], fields["BASCULE_CURRENT"]) == ("held-back", "2.0.0")


def test_a_percent_sign_takes_no_value(log: logging.Logger, reader: Datagrams) -> None:
    log.info("at 50 %% of %s version=%s pause=%.0f", "it", "2.0.0", 1.6)
    fields = decode(reader.next())
    assert (fields["BASCULE_VERSION"], fields["BASCULE_PAUSE"]) == ("2.0.0", "2")


def test_a_move_says_the_state_before_and_after(log: logging.Logger, reader: Datagrams) -> None:
    log.info("state changed from=%s to=%s by=%s", "armed", "rebooting", "permitted")
    fields = decode(reader.next())
    assert fields["BASCULE_STATE_BEFORE"] == "armed"
    assert fields["BASCULE_STATE"] == "rebooting"
    assert fields["BASCULE_EVENT"] == "permitted"
    assert fields["MESSAGE_ID"] == MESSAGE_IDS["state changed"]


def test_a_line_that_nobody_alerts_on_has_no_id(log: logging.Logger, reader: Datagrams) -> None:
    log.info("trusted metadata is new root=%d", 3)
    assert "MESSAGE_ID" not in decode(reader.next())


def test_a_value_of_several_lines_arrives_whole(log: logging.Logger, reader: Datagrams) -> None:
    log.info("said why=%s", "one\ntwo=2\n\nBASCULE_STATE=forged")
    fields = decode(reader.next())
    assert fields["BASCULE_WHY"] == "one\ntwo=2\n\nBASCULE_STATE=forged"
    assert "BASCULE_STATE" not in fields


def test_a_traceback_is_part_of_the_message(log: logging.Logger, reader: Datagrams) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("broken")
    message = decode(reader.next())["MESSAGE"]
    assert message.startswith("broken\nTraceback")
    assert message.endswith("ValueError: odd")


def test_a_message_too_long_for_a_datagram_is_cut_and_says_so(
    log: logging.Logger, reader: Datagrams
) -> None:
    log.info("said why=%s", "\N{SNOWMAN}" * 1_000_000)
    fields = decode(reader.next())
    assert len(fields["MESSAGE"]) == MESSAGE_MAX_CHARS
    assert fields["MESSAGE"].endswith(CUT_NOTE)
    assert fields["BASCULE_WHY"].endswith(CUT_NOTE)


def test_control_characters_are_escaped(log: logging.Logger, reader: Datagrams) -> None:
    log.info("a %s", "\x1b[2J b \x07")
    assert decode(reader.next())["MESSAGE"] == "a ?[2J b ?"


def test_without_a_journal_the_line_goes_to_the_stream(log: logging.Logger, tmp_path: Path) -> None:
    stream = Stream()
    log.addHandler(JournalHandler(tmp_path / "gone", stream))
    log.info("slot armed slot=%s", "b")
    assert stream.lines == ["slot armed slot=b"]


def test_a_journal_that_comes_back_is_used_again(
    log: logging.Logger, socket_path: Path, reader: Datagrams
) -> None:
    log.info("one")
    reader.next()
    socket_path.unlink()
    log.info("two")
    with Datagrams(socket_path) as again:
        log.info("three")
        assert decode(again.next())["MESSAGE"] == "three"


def test_a_journal_that_does_not_read_holds_nobody_up(
    log: logging.Logger, reader: Datagrams
) -> None:
    for handler in log.handlers:
        assert isinstance(handler, JournalHandler)
        handler._socket.settimeout(0.001)
    for _ in range(2000):  # the queue of a datagram socket holds fewer by far
        log.info("slot armed")
    assert 0 < len(reader.all()) < 2000


def test_a_log_call_with_wrong_arguments_harms_nobody(
    log: logging.Logger, reader: Datagrams, capfd: pytest.CaptureFixture[str]
) -> None:
    log.info("slot armed tries=%d", "many")
    assert "Logging error" in capfd.readouterr().err
    assert reader.all() == []


class TestWhereTheErrorStreamLeads:
    def test_is_told_by_device_and_inode(self, tmp_path: Path) -> None:
        with (tmp_path / "stream").open("w") as stream:
            found = os.fstat(stream.fileno())
            assert leads_to_journal(f"{found.st_dev}:{found.st_ino}", stream.fileno())

    @pytest.mark.parametrize("variable", ["", "1:2", "no", "9:"])
    def test_anywhere_else_is_not_the_journal(self, tmp_path: Path, variable: str) -> None:
        with (tmp_path / "stream").open("w") as stream:
            assert not leads_to_journal(variable, stream.fileno())

    def test_a_closed_descriptor_is_not_the_journal(self) -> None:
        assert not leads_to_journal("1:2", 9999)

    @pytest.mark.parametrize("is_journal", [True, False])
    def test_chooses_the_handler(
        self, is_journal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        before = list(logging.root.handlers)
        with (tmp_path / "stderr").open("w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            found = os.fstat(stream.fileno())
            number = found.st_ino if is_journal else found.st_ino + 1
            monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{number}")
            journal.start_logging()
            (handler,) = logging.root.handlers
        logging.root.handlers = before
        assert isinstance(handler, JournalHandler) == is_journal
        handler.close()


@pytest.mark.parametrize(
    ("level", "message", "line"),
    [
        (logging.INFO, "state changed", "<6>state changed"),
        (logging.WARNING, "step failed", "<4>step failed"),
        (logging.ERROR, "trial failed", "<3>trial failed"),
        (logging.DEBUG, "asking", "<7>asking"),
        (logging.INFO, "a \x1b[2J b \x07", "<6>a ?[2J b ?"),
    ],
)
def test_a_line_on_the_stream_has_its_priority_and_no_control_characters(
    level: int, message: str, line: str
) -> None:
    record = logging.LogRecord("updater", level, "", 0, message, None, None)
    assert StreamFormatter("%(message)s").format(record) == line


class TestTheMessageIds:
    def test_are_of_sentences_that_the_program_says(self) -> None:
        """Who changes a log line's words must see that people filter by them."""
        said = {
            event_of(found)
            for file in (ROOT / "updater").rglob("*.py")
            for found in LOG_CALL.findall(file.read_text())
        }
        assert MESSAGE_IDS.keys() <= said

    def test_are_128_bits_each_and_no_two_the_same(self) -> None:
        assert all(re.fullmatch("[0-9a-f]{32}", value) for value in MESSAGE_IDS.values())
        assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)

    @pytest.mark.parametrize("event", MESSAGE_IDS)
    def test_are_documented(self, event: str) -> None:
        docs = (ROOT / "docs/operating-a-node.md").read_text()
        assert f"| {event} | `{MESSAGE_IDS[event]}` |" in docs
