"""What a manifest holds is counted before a parser sees it."""

from __future__ import annotations

import pytest

from images.errors import ManifestInvalidError, PayloadLimitsError
from images.proto import payload_pb2 as pb
from images.wire import EXTENTS_MAX, OPERATIONS_MAX, OTHERS_MAX, PARTS_MAX, check_counts

EMPTY_OPERATION = b"\x08\x00"


def nested(number: int, content: bytes) -> bytes:
    """Return a field that holds a message; the field's number is below 16."""
    length = len(content)
    digits = bytearray([number << 3 | 2])
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*digits, length]) + content


def test_a_manifest_at_its_limits_is_taken() -> None:
    operation = nested(8, EMPTY_OPERATION)
    check_counts(nested(13, operation) * PARTS_MAX)
    check_counts(nested(13, operation * OPERATIONS_MAX))
    check_counts(nested(13, nested(8, nested(6, b"") * EXTENTS_MAX)))


ONE_MORE: dict[str, tuple[bytes, str]] = {
    "partitions": (nested(13, b"") * (PARTS_MAX + 1), "64 parts"),
    "procedures": (nested(10, b"") * (PARTS_MAX + 1), "64 parts"),
    "operations": (nested(13, nested(8, b"") * (OPERATIONS_MAX + 1)), "50000 operations"),
    "operations of format 1": (nested(1, b"") * (OPERATIONS_MAX + 1), "50000 operations"),
    "no-ops": (nested(2, b"") * (OPERATIONS_MAX + 1), "50000 operations"),
    "of procedures": (nested(10, nested(2, b"") * (OPERATIONS_MAX + 1)), "50000 operations"),
    "extents of format 1": (nested(1, nested(6, b"") * (EXTENTS_MAX + 1)), "100000 extents"),
    "source extents": (
        nested(13, nested(8, nested(4, b"") * (EXTENTS_MAX + 1))),
        "100000 extents",
    ),
    "signatures": (nested(13, nested(5, b"") * (OTHERS_MAX + 1)), "10000 other messages"),
}


@pytest.mark.parametrize(("data", "what"), ONE_MORE.values(), ids=ONE_MORE.keys())
def test_one_more_than_a_limit_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(PayloadLimitsError, match=f"more than {what}"):
        check_counts(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a number is missing
        b"\x08" + b"\xff" * 10,  # a number of more than 10 bytes
        b"\x0a\x05abc",  # five bytes are announced, three follow
        b"\x0a" + b"\xff" * 9 + b"\x01",  # 2^64-1 bytes are announced
        b"\x6a\x03\x42\x05\x08",  # an operation ends outside its part
        b"\x0b\x0c",  # a group
        b"\x09abc",  # a fixed64 of three bytes
        b"\x0d\x00",  # a fixed32 of one byte
        b"\x0f",  # a wire type that does not exist
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        check_counts(data)


def test_fields_that_are_not_ours_are_passed_over() -> None:
    message = pb.DeltaArchiveManifest(block_size=4096, security_patch_level="2026-11-01")
    unknown = b"\xc2\x3e\x03abc" + b"\xc5\x3e\x00\x00\x00\x00" + b"\xc1\x3e" + bytes(8)

    check_counts(message.SerializeToString() + unknown)
