"""A reader of the journal's native protocol, written from its specification.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL: `NAME=value\\n`, or `NAME\\n`, the value's length as a
little-endian 64-bit number, the value, `\\n`.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Self

DATAGRAM_MAX_BYTES = 256 * 1024


class Datagrams:
    """A socket that takes what is sent to it, as the journal and systemd have them.

    Attributes:
        address: a path, or a NUL and an abstract name.
    """

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def next(self) -> bytes:
        """Return the next datagram; half a minute without one fails the test."""
        return self._socket.recv(DATAGRAM_MAX_BYTES)

    def all(self) -> list[bytes]:
        """Return what has arrived and was not read."""
        found: list[bytes] = []
        self._socket.settimeout(0)
        try:
            while True:
                found.append(self._socket.recv(DATAGRAM_MAX_BYTES))
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(30)


def decode(datagram: bytes) -> dict[str, str]:
    """Return the fields of one journal entry."""
    fields: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest.startswith(b"\n"), "a long value ends with a newline"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        datagram = rest
    return fields
