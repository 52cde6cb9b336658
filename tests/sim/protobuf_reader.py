"""A reader of protobuf's wire format in forty lines: the second opinion on what we write.

It shares nothing with the protobuf library or with our schema.
"""

from __future__ import annotations

from collections.abc import Iterator

Field = tuple[int, int | bytes]  # number, and a number or the bytes


def fields(data: bytes) -> Iterator[Field]:
    """Yield the fields of one message in the order in which they stand."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = varint(data, at)
            if at + length > len(data):
                raise ValueError(f"field {number} of {length} bytes ends outside the message")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            yield number, int.from_bytes(data[at : at + width], "little")
            at += width
        else:
            raise ValueError(f"field {number} has wire type {kind}")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def one(data: bytes, number: int) -> int | bytes:
    """Return the only value of a field; raise ValueError when there is none or more."""
    values = every(data, number)
    if len(values) != 1:
        raise ValueError(f"field {number} is there {len(values)} times")
    return values[0]


def one_number(data: bytes, number: int) -> int:
    """Return the only value of a field that is a number."""
    value = one(data, number)
    assert isinstance(value, int)
    return value


def one_bytes(data: bytes, number: int) -> bytes:
    """Return the only value of a field that is bytes."""
    value = one(data, number)
    assert isinstance(value, bytes)
    return value


def every(data: bytes, number: int) -> list[int | bytes]:
    """Return all values of a field."""
    return [value for found, value in fields(data) if found == number]


def messages(data: bytes, number: int) -> list[bytes]:
    """Return all values of a field that holds messages."""
    return [value for value in every(data, number) if isinstance(value, bytes)]


def numbers(data: bytes) -> list[int]:
    """Return the numbers of the fields in the order in which they stand."""
    return [number for number, _ in fields(data)]
