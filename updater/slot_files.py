"""Small files read out of a slot's file system, without mounting it wherever that is possible.

ext2, ext3 and ext4 are read by `debugfs`, squashfs by `unsquashfs`, erofs by `images.erofs`: at an
offset of a disk or a disk file, without root where the file is readable, so the sandboxed service
can. What they cannot read, and btrfs, is mounted read-only in a mount namespace that ends with the
process, which needs root and is denied to the sandboxed service.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from images.erofs import MAGIC as EROFS_MAGIC
from images.erofs import MAGIC_AT as EROFS_MAGIC_AT
from images.erofs import read_erofs
from partitions.errors import PartitionsError
from updater.machine import ImageFactsError, MachineError
from updater.processes import ENVIRONMENT, CommandError, run
from updater.sources import images_of

if TYPE_CHECKING:
    from partitions.slots import Region

READ_TIMEOUT_SECS: Final = 20.0
# Where and by what a file system is known.
_MARKS: Final[Mapping[str, tuple[int, bytes]]] = MappingProxyType(
    {
        "ext": (1024 + 56, b"\x53\xef"),
        "squashfs": (0, b"hsqs"),
        "erofs": (EROFS_MAGIC_AT, EROFS_MAGIC),
        "btrfs": (64 * 1024 + 64, b"_BHRfS_M"),
    }
)
# Links in the image are not followed: they would lead into the running system. Beside that, what
# keeps a mount from writing.
_MOUNT_OPTIONS: Final = "ro,nodev,nosuid,noexec,nosymfollow"
_MORE_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({"btrfs": ",rescue=nologreplay"})
# Over a folder that every system has, seen by this process alone; the device is opened before.
_SCRIPT: Final = 'mount -t "$1" -o "$2" -- "$3" /tmp && exec head -c "$4" -- "/tmp/$5"'

_Read: TypeAlias = Callable[["Region", str, int], bytes]


class ToolMissingError(MachineError):
    """debugfs is not installed."""

    code = "debugfs-missing"
    hint = "Install e2fsprogs."


def file_systems_first(regions: Mapping[str, Region]) -> list[Region]:
    """Return a slot's parts, those before that are likely to hold a file system: no boot files."""
    return sorted(regions.values(), key=lambda region: region.room is not None)


def read_file(region: Region, path: str, *, max_bytes: int) -> bytes:
    """Return the content of `path` inside the file system of `region`.

    The part may be a root file system or one that is mounted at /usr; both places are tried.

    Raises:
        ImageFactsError: no file system that we can read, no such file, or a longer one.
        ToolMissingError: debugfs is not installed.
    """
    try:
        return _read(region, path, max_bytes)
    except PartitionsError as error:
        raise ImageFactsError(f"{path} cannot be read from {region.label}: {error}") from error


def _read(region: Region, path: str, max_bytes: int) -> bytes:
    kind = _kind(region)
    readers = (_READERS[kind], _mounted(kind)) if kind in _MOUNTABLE else (_READERS[kind],)
    for read in readers:
        for candidate in dict.fromkeys((path, path.removeprefix("/usr"))):
            content = read(region, candidate, max_bytes + 1)
            if len(content) > max_bytes:
                raise ImageFactsError(f"{path} in {region.label} is longer than {max_bytes} bytes")
            if content:
                return content
    raise ImageFactsError(f"{path} cannot be read from {region.label}, file system {kind}")


def _kind(region: Region) -> str:
    with images_of({"": region}) as images:
        for kind, (at, mark) in _MARKS.items():
            if images[""].read_at(at, len(mark)) == mark:
                return kind
    return "unknown"


def _read_ext(region: Region, path: str, keep_bytes: int) -> bytes:
    tool = shutil.which("debugfs", path=ENVIRONMENT["PATH"])
    if tool is None:
        raise ToolMissingError("debugfs is not installed")
    device = f"{Path(region.path).absolute()}?offset={region.offset}"
    return _said([tool, "-R", f"cat {path}", device], keep_bytes)


def _read_squashfs(region: Region, path: str, keep_bytes: int) -> bytes:
    command = ["unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-processors", "1"]
    place = [str(region.path), path.removeprefix("/")]
    return _said([*command, "-cat", "-offset", str(region.offset), *place], keep_bytes)


def _read_erofs(region: Region, path: str, keep_bytes: int) -> bytes:
    with images_of({"": region}) as images:
        return read_erofs(images[""].read_at, path, max_bytes=keep_bytes) or b""


def _read_nothing(_region: Region, _path: str, _keep_bytes: int) -> bytes:
    return b""


def _mounted(kind: str) -> _Read:
    """Return what reads a file of a kind of file system through a mount of its own."""

    def read(region: Region, path: str, keep_bytes: int) -> bytes:
        bounds = f",loop,offset={region.offset},sizelimit={region.size}"
        options = _MOUNT_OPTIONS + bounds + _MORE_OPTIONS.get(kind, "")
        namespace = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _SCRIPT]
        values = [kind, options, str(Path(region.path).absolute()), str(keep_bytes), path[1:]]
        return _said([*namespace, "sh", *values], keep_bytes)

    return read


def _said(command: list[str], keep_bytes: int) -> bytes:
    """Return the end of what a program says, nothing when it fails or is not installed."""
    try:
        outcome = run(
            command,
            timeout_secs=READ_TIMEOUT_SECS,
            with_errors=False,
            output_max_bytes=keep_bytes,
        )
    except CommandError:
        return b""
    return outcome.output if outcome.status == 0 else b""


_READERS: Final[Mapping[str, _Read]] = MappingProxyType(
    {
        "ext": _read_ext,
        "squashfs": _read_squashfs,
        "erofs": _read_erofs,
        "btrfs": _read_nothing,
        "unknown": _read_nothing,
    }
)
_MOUNTABLE: Final = frozenset({"squashfs", "erofs", "btrfs"})
