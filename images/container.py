"""The first bytes of a payload: magic, version, sizes. What the manifest says is `manifest`'s."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from images.errors import (
    ManifestInvalidError,
    PayloadLimitsError,
    PayloadMagicError,
    PayloadVersionError,
    TruncatedPayloadError,
)

MAGIC: Final = b"CrAU"
HEADER_SIZE: Final = 24  # bytes of the longer header, major 2; a major 1 file is longer too
MANIFEST_MAX_BYTES: Final = 8 * 1024 * 1024  # design.md 8.9: about 100 000 operations
SIGNATURES_MAX_BYTES: Final = 64 * 1024  # trust.md 5.3; one signature has 267 or 523
PAYLOAD_MAX_BYTES: Final = 2**63 - 1  # what a file offset holds

_HEADER_1: Final = struct.Struct(">4sQQ")
_HEADER_2: Final = struct.Struct(">4sQQI")
_HEADERS: Final = {1: _HEADER_1, 2: _HEADER_2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a payload.

    Attributes:
        major: the format, 1 or 2.
        manifest_size: bytes of the manifest.
        metadata_signature_size: bytes of the metadata signature; always 0 in format 1.
    """

    major: int
    manifest_size: int
    metadata_signature_size: int

    @property
    def header_size(self) -> int:
        """Return the bytes of the header itself: 20 or 24."""
        return _HEADERS[self.major].size

    @property
    def metadata_size(self) -> int:
        """Return the bytes of header and manifest, without the metadata signature."""
        return self.header_size + self.manifest_size

    @property
    def data_offset(self) -> int:
        """Return where in the file the data area begins, which manifest offsets count from."""
        return self.metadata_size + self.metadata_signature_size

    def encode(self) -> bytes:
        """Return the bytes of the header."""
        if self.major == 1:
            return _HEADER_1.pack(MAGIC, self.major, self.manifest_size)
        return _HEADER_2.pack(MAGIC, self.major, self.manifest_size, self.metadata_signature_size)


def parse_header(data: bytes, *, payload_size: int) -> Header:
    """Return the header in the first 24 bytes of a payload of `payload_size` bytes.

    Checks in this order: magic, version, length, each size against its limit and against the file.

    Raises:
        PayloadMagicError: it is no payload.
        PayloadVersionError: the major version is neither 1 nor 2.
        TruncatedPayloadError: `data` or the file is shorter than what the header names.
        PayloadLimitsError: manifest or signature are larger than we hold in memory.
        ManifestInvalidError: the manifest is empty.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise PayloadMagicError(f"the file begins with {data[:4]!r}, a payload with {MAGIC!r}")
    if len(data) < HEADER_SIZE:
        raise TruncatedPayloadError(f"the payload has {len(data)} bytes, its header {HEADER_SIZE}")
    _, major, manifest_size = _HEADER_1.unpack_from(data)
    if major not in _HEADERS:
        raise PayloadVersionError(f"the payload has major version {major}, we read 1 and 2")
    signature_size = _HEADER_2.unpack_from(data)[3] if major == 2 else 0
    _check_sizes(manifest_size, signature_size)
    header = Header(
        major=major, manifest_size=manifest_size, metadata_signature_size=signature_size
    )
    if header.data_offset > payload_size:
        raise TruncatedPayloadError(
            f"the payload has {payload_size} bytes, its metadata alone {header.data_offset}"
        )
    return header


def _check_sizes(manifest_size: int, signature_size: int) -> None:
    if manifest_size == 0:
        raise ManifestInvalidError("the manifest is empty")
    if manifest_size > MANIFEST_MAX_BYTES:
        raise PayloadLimitsError(
            f"the manifest claims {manifest_size} bytes, at most {MANIFEST_MAX_BYTES} are allowed"
        )
    if signature_size > SIGNATURES_MAX_BYTES:
        raise PayloadLimitsError(
            f"the metadata signature claims {signature_size} bytes,"
            f" at most {SIGNATURES_MAX_BYTES} are allowed"
        )
