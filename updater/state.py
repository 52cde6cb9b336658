"""What the node remembers between processes and boots, and how it is kept on disk.

The folder is root's alone. Every file is replaced durably. Loss of any of them costs work,
never safety: a file that makes no sense is taken as lost, with a warning. The one exception is
an order not to reboot: as long as its file is there the node is held, readable or not.

    state.json     lifecycle, the update under way, what each slot holds
    journal.json   how far the install of that update is flushed
    shelf.bin      metadata and block index of its payload, to be checked when read (bounded)
    floor.json     the lowest rollback index this node still accepts
    denied.json    versions that failed here or that a person rolled back from
    hold.json      a person's order not to reboot; written without the engine's lock
    trial          a trial to come or under way, for its guard: plain lines
    pin.json       a person's order to run one version and no other; likewise
    reports.json   events that the server has not been told yet (bounded); reports.lock guards it
    traffic.json   payload bytes fetched, for the budgets of day and update
    history.jsonl  what happened, newest last (bounded)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec

from updater.durable import append_durably, replace_durably, sync_folder
from updater.errors import StateError
from updater.lifecycle import State
from updater.trial_marker import TrialMarker, decode_marker

log = logging.getLogger(__name__)

STATE_MAX_BYTES: Final = 1024 * 1024  # our own files; more is damage
SHELF_FILE: Final = "shelf.bin"
SHELF_FILE_MAX_BYTES: Final = 9 * 1024 * 1024  # its pieces have 8 MiB at most
HISTORY_MAX_LINES: Final = 1000
HISTORY_KEPT_LINES: Final = 500
DENIED_MAX: Final = 64
REPORTS_MAX: Final = 64
SPOILED_MAX: Final = 16
RESETS_MAX: Final = 16
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # of any bytes

T = TypeVar("T")
Instant: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
SlotName: TypeAlias = Literal["a", "b"]
# Who named a payload: the signed channel, a person with a file or URL, or a plain Omaha server.
Origin: TypeAlias = Literal["channel", "given", "offered"]
Kind: TypeAlias = Literal["full", "delta"]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Day: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^(\d{4}-\d\d-\d\d)?\Z")]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why something did not happen, in the words of an error's code and sentence."""

    code: str
    sentence: str
    at: Instant
    hint: str = ""
    version: str = ""


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """The update under way.

    Attributes:
        version, rollback_index: of the release; of a given payload known when its image is.
        origin: who named it; all but the channel's are trusted by their own signature alone.
        places: where such a payload is: URLs, or one path.
        previous_version: what ran when it began.
        slot: "a" or "b", the passive slot that it is written to.
        target_path, sha256, size: the payload's TUF target path, hex digest and bytes, as far as
            somebody named them.
        tries_used: boots of the new slot so far.
        tries_given_back: clean shutdowns in the trial that were not counted.
        shut_down_in: the last boot of the trial that ended by an orderly shutdown.
        lost_once: a loader that counts one boot had forgotten it, perhaps without a boot of it.
        guarded_in: the last boot that the guard had ended when the present one began.
        rollback: a person chose the other slot; nothing is downloaded.
        forced: a person ordered it; a denied version may run.
        pinned: a person wants this version and no other.
        withdrawn: we are about to disarm it: the boot of the old slot is no failure of its.
        verified: the slot was read back and is whole; noted before it is armed.
        kind: of the payload.
        cost: bytes that were still to be fetched when it was planned.
        left_out: why payloads that might have cost less are not taken, a sentence each.
        whole_on: the day (UTC) on which a day's bytes will have sufficed; empty for the first.
        downloaded: bytes fetched so far, over all attempts.
        written: bytes written to the slot, over all attempts; known once all are.
        kept: bytes that the slot held already.
        attempts: installs begun.
    """

    version: str
    rollback_index: int
    previous_version: str
    slot: SlotName
    began: Instant
    origin: Origin = "channel"
    places: tuple[str, ...] = ()
    target_path: str = ""
    sha256: str = ""
    size: Count = 0
    kind: Kind = "full"
    cost: Count = 0
    left_out: tuple[str, ...] = ()
    whole_on: str = ""
    tries_used: Count = 0
    tries_given_back: Count = 0
    lost_once: bool = False
    shut_down_in: str = ""
    guarded_in: str = ""
    rollback: bool = False
    forced: bool = False
    pinned: bool = False
    withdrawn: bool = False
    verified: bool = False
    downloaded: Count = 0
    written: Count = 0
    kept: Count = 0
    attempts: Count = 0


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A person's order not to reboot. Downloads and installs go on.

    Attributes:
        since, by: when, and who gave it.
        reason: for whoever finds the node held; may be empty.
        until: when it ends by itself, None for never.
    """

    since: Instant
    by: str
    reason: str = ""
    until: Instant | None = None

    def holds(self, now: datetime) -> bool:
        """Tell whether the order is still in force."""
        return self.until is None or now < self.until


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A person's order that this node runs `version` and no other, whatever a server offers.

    What the signed channel does not allow is refused all the same.
    """

    version: str
    since: Instant
    by: str


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What we last wrote to or booted from a slot."""

    version: str
    rollback_index: int


class Unverified(msgspec.Struct, frozen=True, kw_only=True):
    """A slot that an install began to write and that was not read back since.

    Whatever a loader's memory says of it, or whoever boots it: it may not be trusted.

    Attributes:
        slot: "a" or "b".
        booted_in: the last boot that came up in it, empty for none.
        boots: how many did.
    """

    slot: SlotName
    booted_in: str = ""
    boots: Count = 0


class Spoiled(msgspec.Struct, frozen=True, kw_only=True):
    """A payload that failed here, and why; its version may be had by another one.

    Attributes:
        sha256: of it, hex.
        code, sentence: why.
        version: that it would have made.
        cost: bytes that were fetched for it in vain.
        day: on which it failed, as the day's account has it.
    """

    sha256: str
    code: str
    sentence: str
    version: str = ""
    cost: Count = 0
    day: Day = ""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Payload bytes that came over the network.

    Attributes:
        day, day_bytes: those of one day, in UTC: the latest that the clock showed.
        back: the day that a clock which went back showed last, empty for none.
        version, version_bytes: those for one version, all attempts together.
        metered_bytes: of these, those that came over a metered link.
        counted: what the journal of that version had when it was counted last.
        metered: whether the bytes that come now come over a metered link.
        priced, price, priced_in: a payload by its SHA-256, the bytes of it that this node turned
            out to lack, and the boot and the day in which that was found.
    """

    day: Day = ""
    day_bytes: Count = 0
    back: Day = ""
    version: str = ""
    version_bytes: Count = 0
    metered_bytes: Count = 0
    counted: Count = 0
    metered: bool = False
    priced: str = ""
    price: Count = 0
    priced_in: str = ""


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """The node's memory, one value.

    Attributes:
        boot_id: the boot in which this was written.
        writer: the process that wrote it.
        unverified: a slot that may hold half an image, from its first byte until it is armed.
        permit: "none", "held", or "unknown" after the memory was lost.
        reboot_ordered: a person ordered the reboot; gates still hold, the manual policy does not.
        newer_since: since when the channel names something newer than what runs.
        healthy_boot: the boot id whose health was shown.
        reset_versions: those of which one trial ended by a reset, newest last; not refused for it.
        failed_version, failed_times: installs of one version that failed in a row.
        spoiled: payloads of the wanted version that failed here, newest last.
    """

    schema: str = "bascule.state/1"
    state: State = State.IDLE
    boot_id: str = ""
    writer: str = ""
    update: Update | None = None
    slots: dict[str, SlotRecord] = {}
    unverified: Unverified | None = None
    permit: Literal["none", "held", "unknown"] = "unknown"
    reboot_ordered: bool = False
    healthy_boot: str = ""
    last_check: Instant | None = None
    last_check_code: str = ""
    last_check_sentence: str = ""
    next_check: Instant | None = None
    newer_since: Instant | None = None
    checks_failed: Count = 0
    reset_versions: tuple[str, ...] = ()
    failed_version: str = ""
    failed_times: Count = 0
    spoiled: tuple[Spoiled, ...] = ()
    last_failure: Failure | None = None
    waiting_code: str = ""
    waiting_sentence: str = ""

    def failures_of(self, version: str) -> int:
        """Return how often installing `version` failed in a row."""
        return self.failed_times if self.failed_version == version else 0


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """How far an install is durable.

    Attributes:
        sha256: the payload's digest, hex: a journal of another payload is void. Without a
            release it is that of header and manifest.
        slot: "a" or "b".
        version: that is installed, as the budget counts it.
        next_operation: operations before this one, counted over all parts, are flushed.
        spared: payload bytes of them, which need not be fetched again.
        downloaded: bytes fetched for this version by all attempts so far.
        before: of these, those that are known as the cost of payloads that failed.
        written: bytes written to the slot by all attempts at this payload so far.
        kept: bytes that the slot held already and that were not written again.
    """

    sha256: str
    slot: SlotName
    version: str = ""
    next_operation: Count = 0
    spared: Count = 0
    downloaded: Count = 0
    before: Count = 0
    written: Count = 0
    kept: Count = 0


class Pieces(msgspec.Struct, frozen=True, kw_only=True):
    """Pieces of a payload, by the offset of their first byte; of another one they are void.

    Their hash is ours: not all that is signed can be told without the payload's key.
    """

    identity: str
    pieces: dict[int, bytes]
    sha256: bytes

    @property
    def whole(self) -> bool:
        """Whether they are what was written."""
        return _digest_of(self.pieces) == self.sha256


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One Omaha event that the server has yet to hear."""

    event_type: int
    event_result: int
    at: Instant
    version: str
    code: str = ""
    sentence: str = ""
    previous_version: str = ""
    next_version: str = ""
    downloaded: int = 0


class Store:
    """The state folder as values.

    All `read_*` give a default for what is missing or damaged. All `write_*` are durable on
    return and raise `StateError` when the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The state folder."""
        return self._folder

    def prepare(self) -> None:
        """Make the folder, private to its owner.

        Raises:
            StateError: it cannot be made.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{self._folder} cannot be made: {error.strerror}") from error

    def read_state(self) -> NodeState:
        """Return the node's memory."""
        return self._read("state.json", NodeState) or NodeState()

    def write_state(self, state: NodeState) -> None:
        """Keep the node's memory."""
        self._write("state.json", msgspec.json.encode(state))

    def read_journal(self) -> Journal | None:
        """Return the install journal, None when there is none."""
        return self._read("journal.json", Journal)

    def write_journal(self, journal: Journal) -> None:
        """Keep the install journal."""
        self._write("journal.json", msgspec.json.encode(journal))

    def drop_journal(self) -> None:
        """Forget the install journal, durably, and what is kept of its payload."""
        self._drop("journal.json")
        self.drop_pieces()

    def read_pieces(self, identity: str) -> dict[int, bytes]:
        """Return what is kept of the payload of that identity: nobody vouches for it any more."""
        data = self._read_bytes(SHELF_FILE, most=SHELF_FILE_MAX_BYTES)
        if data is None:
            return {}
        try:
            kept = msgspec.msgpack.decode(data, type=Pieces)
        except _NONSENSE as error:
            self._warn_of(SHELF_FILE, error)
            return {}
        if not kept.whole:
            self._warn_of(SHELF_FILE, "its pieces have another hash")
            return {}
        return kept.pieces if kept.identity == identity else {}

    def write_pieces(self, identity: str, pieces: dict[int, bytes]) -> None:
        """Keep pieces of a payload, in the place of all that is kept of any."""
        kept = Pieces(identity=identity, pieces=pieces, sha256=_digest_of(pieces))
        self._write(SHELF_FILE, msgspec.msgpack.encode(kept))

    def drop_pieces(self) -> None:
        """Forget what is kept of a payload; what cannot be removed does no harm, and is said."""
        try:
            self._drop(SHELF_FILE)
        except StateError as error:
            log.warning("not removed code=%s why=%s", error.code, error)

    def read_traffic(self) -> Traffic:
        """Return what was fetched so far; nothing when that is not known."""
        return self._read("traffic.json", Traffic) or Traffic()

    def write_traffic(self, traffic: Traffic) -> None:
        """Keep what was fetched so far."""
        self._write("traffic.json", msgspec.json.encode(traffic))

    def read_hold(self) -> Hold | None:
        """Return the order not to reboot, also one that has ended; None when there is none.

        A file that cannot be read or makes no sense is an order without end: somebody gave one,
        and a node that waits too long is better than one that reboots under someone.
        """
        path = self._folder / "hold.json"
        try:
            hold = self._read(path.name, Hold)
        except StateError as error:
            return _damaged_hold(str(error))
        if hold is None and os.path.lexists(path):
            return _damaged_hold(f"{path} is damaged")
        return hold

    def write_hold(self, hold: Hold | None) -> None:
        """Keep the order not to reboot, or take it back."""
        self._write("hold.json", msgspec.json.encode(hold)) if hold else self._drop("hold.json")

    def read_pin(self) -> Pin | None:
        """Return the order to run one version, None when there is none."""
        return self._read("pin.json", Pin)

    def write_pin(self, pin: Pin | None) -> None:
        """Keep the order to run one version, or take it back."""
        self._write("pin.json", msgspec.json.encode(pin)) if pin else self._drop("pin.json")

    def read_marker(self) -> TrialMarker | None:
        """Return what the guard knows of a trial, None when there is none to guard."""
        data = self._read_bytes("trial")
        marker = decode_marker(data) if data is not None else None
        if data is not None and marker is None:
            log.warning("marker of the trial is damaged and taken as lost folder=%s", self._folder)
        return marker

    def write_marker(self, marker: TrialMarker) -> None:
        """Let the guard know of a trial to come."""
        self._write("trial", marker.encode())

    def drop_marker(self) -> None:
        """Leave the guard nothing to do."""
        self._drop("trial")

    def read_floor(self) -> int:
        """Return the lowest rollback index still accepted, 0 when none is known."""
        return (self._read("floor.json", dict[str, int]) or {}).get("floor", 0)

    def raise_floor(self, floor: int) -> None:
        """Raise the floor; it never sinks."""
        if floor > self.read_floor():
            self._write("floor.json", msgspec.json.encode({"floor": floor}))

    def read_denied(self) -> dict[str, Failure]:
        """Return the versions that are refused here, each with why."""
        return self._read("denied.json", dict[str, Failure]) or {}

    def deny(self, version: str, why: Failure) -> None:
        """Refuse `version` from now on; the oldest of more than `DENIED_MAX` is forgotten."""
        denied = self.read_denied() | {version: why}
        newest = sorted(denied.items(), key=lambda item: item[1].at)[-DENIED_MAX:]
        self._write("denied.json", msgspec.json.encode(dict(newest)))

    def allow(self, version: str) -> None:
        """Take `version` off the list of the refused."""
        denied = self.read_denied()
        if denied.pop(version, None) is not None:
            self._write("denied.json", msgspec.json.encode(denied))

    def read_reports(self) -> list[Report]:
        """Return the events still to be told, oldest first."""
        return self._read("reports.json", list[Report]) or []

    def queue_report(self, report: Report) -> None:
        """Add an event to be told; the oldest of more than `REPORTS_MAX` is dropped."""
        with self._reports_locked():
            self._write_reports([*self.read_reports(), report])

    def drop_reports(self, told: list[Report]) -> None:
        """Take events that were told off the queue; those queued meanwhile stay."""
        with self._reports_locked():
            self._write_reports([report for report in self.read_reports() if report not in told])

    def _write_reports(self, reports: list[Report]) -> None:
        self._write("reports.json", msgspec.json.encode(reports[-REPORTS_MAX:]))

    @contextmanager
    def _reports_locked(self) -> Iterator[None]:
        """Guard read and write; held for a write, never while anything is sent.

        The sender works without the engine's lock, in another thread or process.
        """
        path = self._folder / "reports.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def remember(self, at: datetime, what: str, **facts: str | int) -> None:
        """Append a line to the history. A full disk loses the line, nothing else."""
        line = {"at": at.isoformat(timespec="seconds"), "what": what, **facts}
        path = self._folder / "history.jsonl"
        try:
            append_durably(path, json.dumps(line).encode() + b"\n")
            self._trim(path)
        except OSError as error:
            log.warning("history line lost path=%s error=%s", path, error)

    def history(self) -> list[dict[str, str | int]]:
        """Return the history, oldest first; torn lines are skipped."""
        entries: list[dict[str, str | int]] = []
        for line in self._history_lines():
            try:
                entries.append(msgspec.json.decode(line, type=dict[str, str | int]))
            except _NONSENSE:
                continue
        return entries

    def _history_lines(self) -> list[bytes]:
        try:
            return (self._folder / "history.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"{self._folder} cannot be read: {error.strerror}") from error

    def _trim(self, path: Path) -> None:
        if path.stat().st_size < HISTORY_MAX_LINES * 64:
            return
        lines = path.read_bytes().splitlines()
        if len(lines) > HISTORY_MAX_LINES:
            replace_durably(path, b"\n".join(lines[-HISTORY_KEPT_LINES:]) + b"\n")

    def _read(self, name: str, kind: type[T]) -> T | None:
        data = self._read_bytes(name)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except _NONSENSE as error:
            self._warn_of(name, error)
            return None

    def _has_pieces(self) -> bool:
        return (self._folder / SHELF_FILE).exists()

    def _warn_of(self, name: str, error: object) -> None:
        path = self._folder / name
        log.warning("state file is damaged and taken as lost path=%s error=%s", path, error)

    def _read_bytes(self, name: str, *, most: int = STATE_MAX_BYTES) -> bytes | None:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                return file.read(most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error.strerror}") from error

    def _drop(self, name: str) -> None:
        path = self._folder / name
        try:
            path.unlink()
            sync_folder(self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"{path} cannot be removed: {error.strerror}") from error

    def _write(self, name: str, data: bytes) -> None:
        try:
            try:
                replace_durably(self._folder / name, data)
            except OSError as error:
                if error.errno != errno.ENOSPC or name == SHELF_FILE or not self._has_pieces():
                    raise
                self.drop_pieces()  # what only saves bytes may not keep the rest from being kept
                replace_durably(self._folder / name, data)
        except OSError as error:
            raise StateError(
                f"{self._folder / name} cannot be written: {error.strerror}"
            ) from error


def _digest_of(pieces: Mapping[int, bytes]) -> bytes:
    digest = hashlib.sha256()
    for start, data in pieces.items():
        digest.update(b"%d %d\n" % (start, len(data)))
        digest.update(data)
    return digest.digest()


def _damaged_hold(why: str) -> Hold:
    reason = f"{why}, so who gave the order and until when cannot be told"
    return Hold(since=datetime.fromtimestamp(0, UTC), by="an unreadable order", reason=reason)
