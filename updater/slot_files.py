"""Small files read out of a slot's file system without mounting it.

`debugfs` reads ext2, ext3 and ext4 at an offset of a disk or a disk file, without root where
the file is readable. Other file systems are read where they are mounted (machine_linux).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from updater.machine import ImageFactsError, MachineError
from updater.processes import ENVIRONMENT, run

if TYPE_CHECKING:
    from partitions.slots import Region

READ_TIMEOUT_SECS: Final = 20.0


class ToolMissingError(MachineError):
    """debugfs is not installed."""

    code = "debugfs-missing"
    hint = "Install e2fsprogs."


def file_systems_first(regions: Mapping[str, Region]) -> list[Region]:
    """Return a slot's parts, those before that are likely to hold a file system: no boot files."""
    return sorted(regions.values(), key=lambda region: region.room is not None)


def read_file(region: Region, path: str, *, max_bytes: int) -> bytes:
    """Return the content of `path` inside the ext file system of `region`.

    The part may be a root file system or one that is mounted at /usr; both places are tried.

    Raises:
        ImageFactsError: no ext file system, no such file, or a longer one.
        ToolMissingError: debugfs is not installed.
    """
    for candidate in dict.fromkeys((path, path.removeprefix("/usr"))):
        content = _cat(region, candidate, max_bytes + 1)
        if content:
            if len(content) > max_bytes:
                raise ImageFactsError(f"{path} in {region.label} is longer than {max_bytes} bytes")
            return content
    raise ImageFactsError(f"{path} cannot be read from {region.label}")


def _cat(region: Region, path: str, keep_bytes: int) -> bytes:
    tool = shutil.which("debugfs", path=ENVIRONMENT["PATH"])
    if tool is None:
        raise ToolMissingError("debugfs is not installed")
    device = f"{Path(region.path).absolute()}?offset={region.offset}"
    outcome = run(
        [tool, "-R", f"cat {path}", device],
        timeout_secs=READ_TIMEOUT_SECS,
        with_errors=False,
        output_max_bytes=keep_bytes,
    )
    return outcome.output if outcome.status == 0 else b""
