"""Sends a D-Bus message as no library would, as an unprivileged program: `PATH KIND`.

Run by path with any Python 3, without this project on the path; bytes follow the D-Bus
specification, sections "Authentication Protocol" and "Message Format".
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping

NAME = "org.bascule.Updater1"
OBJECT = "/org/bascule/Updater1"
BUS = "org.freedesktop.DBus"
CALL, RETURN, SIGNAL = 1, 2, 4
PATH, INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SIGNATURE = 1, 2, 3, 5, 6, 8
STATUS = {PATH: ("o", OBJECT), INTERFACE: ("s", NAME), MEMBER: ("s", "Status")}
TO_US = {DESTINATION: ("s", NAME)}
HUGE = 8 * 1024 * 1024
DEPTH = 60  # variants in variants; the specification allows 64


def padded(data: bytes, alignment: int) -> bytes:
    return data + b"\0" * (-len(data) % alignment)


def value(signature: str, content: str | int) -> bytes:
    if isinstance(content, int):
        return struct.pack("<I", content)
    if signature == "g":
        return bytes([len(content)]) + content.encode() + b"\0"
    return struct.pack("<I", len(content)) + content.encode() + b"\0"


def message(
    kind: int,
    fields: Mapping[int, tuple[str, str] | tuple[str, int]],
    *,
    flags: int = 0,
    body: bytes = b"",
) -> bytes:
    array = b""
    for code, (signature, content) in fields.items():
        array = padded(array, 8)
        array += bytes([code, len(signature)]) + signature.encode() + b"\0"
        array = padded(array, 1 if signature == "g" else 4) + value(signature, content)
    head = struct.pack("<BBBBIII", ord("l"), kind, flags, 1, len(body), 2, len(array))
    return padded(head + array, 8) + body


def nested() -> bytes:
    """Return `a{sv}` with one option whose value is a variant in a variant in a variant."""
    entry = value("s", "force") + value("g", "v") * DEPTH + value("g", "b")
    entry = padded(entry, 4) + struct.pack("<I", 1)
    return padded(struct.pack("<I", len(entry)), 8) + entry


def numbers() -> bytes:
    """Return `at` of some 8 MiB."""
    return struct.pack("<I", HUGE) + bytes(4) + bytes(HUGE)


def signatures() -> Iterator[bytes]:
    """Yield calls that want no reply, each with a signature that nobody saw before."""
    for number in range(1000):
        kinds = "".join("yu"[number >> bit & 1] for bit in range(10)) * 25
        body = b""
        for kind in kinds:
            body = padded(body, 4) + bytes(4) if kind == "u" else body + b"\0"
        yield message(CALL, STATUS | TO_US | {SIGNATURE: ("g", kinds)}, flags=1, body=body)


PIN = STATUS | TO_US | {MEMBER: ("s", "Pin"), SIGNATURE: ("g", "s")}
UPDATE = STATUS | TO_US | {MEMBER: ("s", "Update"), SIGNATURE: ("g", "a{sv}")}
CHANGED = {PATH: ("o", "/x"), INTERFACE: ("s", BUS), MEMBER: ("s", "NameOwnerChanged")}
MESSAGES = {
    "unknown-type": message(5, STATUS | TO_US),
    "unknown-field": message(CALL, STATUS | TO_US | {77: ("u", 1)}),
    "unknown-flags": message(CALL, STATUS | TO_US, flags=0xF8),
    "no-interface": message(CALL, {PATH: STATUS[PATH], MEMBER: STATUS[MEMBER]} | TO_US),
    "reply-to-nothing": message(RETURN, TO_US | {REPLY_SERIAL: ("u", 9999)}),
    "signal-to-us": message(SIGNAL, STATUS | TO_US),
    "empty-owner-change": message(SIGNAL, CHANGED | TO_US),
    "nested-option": message(CALL, UPDATE, body=nested()),
    "huge-text": message(CALL, PIN, body=value("s", "\1" * HUGE)),
    "huge-array": message(CALL, STATUS | TO_US | {SIGNATURE: ("g", "at")}, body=numbers()),
    "many-signatures": b"".join(signatures()),
    "torn": message(CALL, STATUS | TO_US)[:40],
}


def send(path: str, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.settimeout(20)
        bus.connect(path)
        user = str(os.getuid()).encode().hex().encode()
        bus.sendall(b"\0AUTH EXTERNAL " + user + b"\r\n")
        bus.recv(200)
        hello = {PATH: ("o", "/org/freedesktop/DBus"), INTERFACE: ("s", BUS)}
        hello |= {MEMBER: ("s", "Hello"), DESTINATION: ("s", BUS)}
        bus.sendall(b"BEGIN\r\n" + message(CALL, hello))
        bus.recv(4096)
        bus.sendall(MESSAGES[kind])
        bus.shutdown(socket.SHUT_WR)
        while bus.recv(4096):  # until the bus has taken it and hangs up
            pass


if __name__ == "__main__":
    send(sys.argv[1], sys.argv[2])
