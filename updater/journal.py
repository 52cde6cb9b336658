"""Log lines of the service: into the journal with fields, else to the error stream.

The fields are the `key=value` pairs that every log call has already, so no call knows of the
journal: `log.info("slot armed slot=%s version=%s", …)` has MESSAGE, MESSAGE_ID, BASCULE_SLOT and
BASCULE_VERSION. The protocol is systemd's native one (systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from typing_extensions import override

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "bascule"
SEND_TIMEOUT_SECS: Final = 1.0  # a journal that is stuck must not hold the service up
MESSAGE_MAX_CHARS: Final = 12 * 1024  # 48 KiB in UTF-8: a datagram holds some 200 KiB
FIELD_MAX_CHARS: Final = 1024
CUT_NOTE: Final = " [cut]"
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

# What an operator may filter and alert on: `journalctl MESSAGE_ID=…`. By the sentence that a log
# call begins with; an id is never reused. docs/operating-a-node.md has the same table.
MESSAGE_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "service begins": "9270d152788b468a965683bfa79d181b",
        "service ends": "cae6daf549314996bcc5d778bebdad28",
        "state changed": "aaad35f0c6bf4e2496ce1064b5a7afdd",
        "state recovered": "c6001033f1d24099bf6c90e8ab142d8d",
        "check refused": "6dc9ff9f346f4ec7acd9d9586907d491",
        "update is held back": "d6bf208cbb7d4fe38eb54a7281d4288e",
        "armed version taken back": "93497568ea9246c2abcb476f64193327",
        "install begins": "77b44b9bdf894e2396a0e54d8e9c91c6",
        "delta is left out": "9774bd6ed1804f4f83e37c4f62a3a79a",
        "install waits": "b47106d2da924777b07b4b0d42ebb2c9",
        "install failed": "dd9976859f2c4231ae9e35e3d6c7bf7a",
        "slot armed": "5f7589724f4c47b592dad137392108ca",
        "waiting": "66c3814a33f04d72b0d651f198721105",
        "permit held": "9575e440c41d4c68a9416238daed0ad4",
        "permit returned": "ff24ef335aad4a0abe70a9ba2e005f4f",
        "reboot ordered": "835f4263f7014b7b826bb43052529b40",
        "reboot did not happen": "8b0e4539ca164ab39948f033147c9f78",
        "system is not healthy yet": "73b70381a3f04e63a066f6ef0050fe25",
        "trial failed": "bb2f2be7bcac4cdcb3e9a23289019f2b",
        "update did not hold": "43d0fe595f08483297e734f0b608f78f",
        "slot confirmed": "f0a69c067ca341c2bbc0a7fe1da70cc2",
        "try given back": "9788c0f8fe8c413a8df7d2f06f1961c9",
        "step failed": "2047349fc421478e8d10e77a554ac69e",
    }
)

# Keys whose name alone says too little, and what their fields are called.
_FIELD_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"from": "STATE_BEFORE", "to": "STATE", "by": "EVENT"}
)
_PART: Final = re.compile(r"%%|([a-z][a-z-]*)=(%[-.0-9]*[a-z]|\S+)|%[-.0-9]*[a-z]")
_FIRST_KEY: Final = re.compile(r"\s[a-z][a-z-]*=")


def start_logging(level: int = logging.INFO) -> None:
    """Send log lines to the journal when the error stream leads there, else to that stream."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(StreamFormatter("%(message)s"))
    handler: logging.Handler = stream
    if leads_to_journal(os.environ.get("JOURNAL_STREAM", ""), sys.stderr.fileno()):
        handler = JournalHandler(JOURNAL_SOCKET, stream)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("tuf").setLevel(logging.ERROR)


def leads_to_journal(journal_stream: str, descriptor: int) -> bool:
    """Tell whether a descriptor is the stream that systemd made (systemd.exec(5)).

    Args:
        journal_stream: the variable JOURNAL_STREAM: device and inode number in decimal.
        descriptor: of the error stream; it may have been redirected since.
    """
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        return journal_stream == f"{found.st_dev}:{found.st_ino}"
    return False


class StreamFormatter(logging.Formatter):
    """`<N>` before a line is its syslog priority (sd-daemon(3)); control characters are escaped."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_priority(record)}>{_printable(super().format(record))}"


class JournalHandler(logging.Handler):
    """Sends each record as one datagram with fields.

    Args:
        path: the journal's socket.
        otherwise: takes the records that the journal does not; its stream may lead there too.
    """

    def __init__(self, path: Path, otherwise: logging.Handler) -> None:
        super().__init__()
        self._path = str(path)
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_TIMEOUT_SECS)
        self.setFormatter(logging.Formatter("%(message)s"))

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(encode(fields_of(record, self.format(record))), self._path)
        except TimeoutError:
            return  # a journal that does not read would not read the stream either
        except OSError:
            self._otherwise.handle(record)
        except Exception:  # noqa: BLE001  # as the standard handlers: a log call harms nobody
            self.handleError(record)

    @override
    def close(self) -> None:
        self._socket.close()
        super().close()


def fields_of(record: logging.LogRecord, text: str) -> dict[str, str]:
    """Return the journal fields of one log record.

    Args:
        record: of the logging room.
        text: its message, with a traceback when there is one.
    """
    sentence = event_of(str(record.msg))
    fields = {
        "MESSAGE": _cut(_printable(text), MESSAGE_MAX_CHARS),
        "PRIORITY": str(_priority(record)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    if sentence in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[sentence]
    for key, value in pairs_of(record):
        name = _FIELD_NAMES.get(key, key.upper().replace("-", "_"))
        fields[f"BASCULE_{name}"] = _cut(value, FIELD_MAX_CHARS)
    return fields


def event_of(message: str) -> str:
    """Return the sentence that a log call's message begins with, without its `key=value` pairs."""
    return _FIRST_KEY.split(message, maxsplit=1)[0]


def pairs_of(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    """Yield the `key=value` pairs of a log call, each value as it was given.

    They are found in the format, not in the text: a value may hold spaces and equals signs.
    """
    arguments = iter(record.args if isinstance(record.args, tuple) else ())
    for part in _PART.finditer(str(record.msg)):
        key, value = part.group(1), part.group(2)
        conversion = value if key else part.group()
        if not conversion.startswith("%"):
            yield key, conversion
        elif conversion != "%%":
            text = conversion % (next(arguments, ""),)
            if key:
                yield key, text


def encode(fields: Mapping[str, str]) -> bytes:
    """Return the datagram; a value with a newline is sent with its length."""
    return b"".join(_encode_field(name, value.encode()) for name, value in fields.items())


def _encode_field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)


def _priority(record: logging.LogRecord) -> int:
    return next((number for level, number in _PRIORITIES if record.levelno >= level), 7)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT_NOTE)] + CUT_NOTE
