"""The header of a payload, each field at its boundaries."""

from __future__ import annotations

import struct

import pytest

from images.container import MANIFEST_MAX_BYTES, SIGNATURES_MAX_BYTES, Header, parse_header
from images.errors import (
    ManifestInvalidError,
    PayloadLimitsError,
    PayloadMagicError,
    PayloadVersionError,
    TruncatedPayloadError,
)

HUGE = 2**62


def encoded(
    magic: bytes = b"CrAU", major: int = 2, manifest: int = 100, signature: int = 0
) -> bytes:
    return struct.pack(">4sQQI", magic, major, manifest, signature)


def test_a_format_2_header_is_24_bytes_and_metadata_excludes_the_signature() -> None:
    header = parse_header(encoded(manifest=918, signature=267), payload_size=HUGE)

    assert (header.header_size, header.metadata_size, header.data_offset) == (24, 942, 1209)


def test_a_format_1_header_is_20_bytes_and_has_no_metadata_signature() -> None:
    header = parse_header(encoded(major=1, manifest=935, signature=2**32 - 1), payload_size=HUGE)

    assert (header.header_size, header.metadata_size, header.data_offset) == (20, 955, 955)
    assert header.metadata_signature_size == 0


@pytest.mark.parametrize(
    "header",
    [
        Header(major=1, manifest_size=9, metadata_signature_size=0),
        Header(major=2, manifest_size=9, metadata_signature_size=7),
    ],
    ids=["1", "2"],
)
def test_an_encoded_header_is_parsed_back(header: Header) -> None:
    assert parse_header(header.encode() + bytes(4), payload_size=HUGE) == header


@pytest.mark.parametrize("magic", [b"CrAV", b"\0\0\0\0", b"crau", b"UArC"])
def test_another_magic_is_refused(magic: bytes) -> None:
    with pytest.raises(PayloadMagicError, match=r"begins with b'.*', a payload with b'CrAU'"):
        parse_header(encoded(magic=magic), payload_size=HUGE)


@pytest.mark.parametrize("major", [0, 3, 2**63, 2**64 - 1])
def test_another_major_version_is_refused_before_anything_else_is_read(major: int) -> None:
    with pytest.raises(PayloadVersionError, match=f"major version {major}, we read 1 and 2"):
        parse_header(encoded(major=major, manifest=2**64 - 1), payload_size=HUGE)


@pytest.mark.parametrize("major", [1, 2])
def test_an_empty_manifest_is_refused(major: int) -> None:
    with pytest.raises(ManifestInvalidError, match="empty"):
        parse_header(encoded(major=major, manifest=0), payload_size=HUGE)


@pytest.mark.parametrize("major", [1, 2])
@pytest.mark.parametrize("size", [1, MANIFEST_MAX_BYTES])
def test_a_manifest_up_to_the_limit_is_taken(major: int, size: int) -> None:
    assert (
        parse_header(encoded(major=major, manifest=size), payload_size=HUGE).manifest_size == size
    )


@pytest.mark.parametrize("major", [1, 2])
@pytest.mark.parametrize("size", [MANIFEST_MAX_BYTES + 1, 2**63, 2**64 - 1])
def test_a_manifest_above_the_limit_is_refused(major: int, size: int) -> None:
    with pytest.raises(PayloadLimitsError, match=f"claims {size} bytes, at most 8388608"):
        parse_header(encoded(major=major, manifest=size), payload_size=HUGE)


@pytest.mark.parametrize("size", [0, 1, SIGNATURES_MAX_BYTES])
def test_a_metadata_signature_up_to_the_limit_is_taken(size: int) -> None:
    header = parse_header(encoded(signature=size), payload_size=HUGE)
    assert header.metadata_signature_size == size


@pytest.mark.parametrize("size", [SIGNATURES_MAX_BYTES + 1, 2**32 - 1])
def test_a_metadata_signature_above_the_limit_is_refused(size: int) -> None:
    with pytest.raises(PayloadLimitsError, match=f"claims {size} bytes, at most 65536"):
        parse_header(encoded(signature=size), payload_size=HUGE)


def test_metadata_may_fill_the_file_to_its_last_byte_and_not_one_more() -> None:
    data = encoded(manifest=100, signature=10)

    assert parse_header(data, payload_size=134).data_offset == 134
    with pytest.raises(TruncatedPayloadError, match="has 133 bytes, its metadata alone 134"):
        parse_header(data, payload_size=133)


@pytest.mark.parametrize("length", [4, 12, 23])
def test_a_header_that_ends_early_is_truncated(length: int) -> None:
    with pytest.raises(TruncatedPayloadError):
        parse_header(encoded()[:length], payload_size=length)
