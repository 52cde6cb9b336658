"""Payloads that other programs made, unpacked from `tests/data`, and the images they make."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bsdiff4

ARCHIVE: Final = Path(__file__).parent.parent / "data" / "payload-samples.tar.xz"
OLD_PATCH: Final = ARCHIVE.parent / "old.ext2.img.bsdiff"  # makes the old image of the new one
KEY: Final = "sample-rsa2048.pub.pem"
OTHER_KEY: Final = "other-rsa2048.pub.pem"

EXT2_SHA256: Final = "5661723d60ff37f875982ecd394431248cda7a090133837ad2356d277b0296b9"
OLD_EXT2_SHA256: Final = "e0fcff0166a5303eb0f2c7cf62d5e04d8e17ab2f4f3ced6fc975b9d805a64b65"
SQUASHFS_SHA256: Final = "b006191e077adfbd639640e72a2910ba370c2eea2ff5cc7aaa3e9412054b19a0"
KERNEL_SHA256: Final = "d29e070dc9fb9e22e752b06d3c78a32afa8cb60a9b9b4f26a503c0787edc7ed7"


@dataclass(frozen=True, slots=True)
class Image:
    """What a part must be after it was applied: size in bytes and SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One full payload: its file, its format and the images of its parts."""

    file: str
    major: int
    images: Mapping[str, Image]


_EXT2: Final = Image(16_777_216, EXT2_SHA256)
FULL: Final = (
    Sample("full-signed.crau", 1, {"usr": _EXT2}),
    Sample("full-signed-squashfs.crau", 1, {"usr": Image(4_964_352, SQUASHFS_SHA256)}),
    Sample("full-signed-kernel.crau", 1, {"usr": _EXT2, "kernel": Image(1_234_589, KERNEL_SHA256)}),
    Sample("v2-full-signed.crau", 2, {"usr": _EXT2}),
)
DELTA: Final = "delta-signed.crau"


def unpack(folder: Path) -> Path:
    """Unpack all samples into `folder` and return it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def old_image(new: bytes) -> bytes:
    """Return the image that `DELTA` starts from, given the one that it makes."""
    old = bsdiff4.patch(new, OLD_PATCH.read_bytes())
    assert isinstance(old, bytes)
    assert hashlib.sha256(old).hexdigest() == OLD_EXT2_SHA256
    return old
