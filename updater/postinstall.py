"""The post-install program of Flatcar's images, run out of the written slot.

Contract: the reference on payloads, section 11. The new partition is mounted read-only on a fresh
folder, `<mount>/postinst <device>` runs as we do, and its exit status says how it went. Beyond the
contract: ext4, squashfs and erofs are tried too, a read-only loop device keeps a journal from
being replayed into what was just verified, and the program has a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from updater.errors import UpdaterError
from updater.processes import ENVIRONMENT, Outcome, run

if TYPE_CHECKING:
    from partitions.slots import Region

log = logging.getLogger(__name__)

PROGRAM: Final = "postinst"
PART: Final = "usr"  # the part whose image carries the program
FOLDER_PREFIX: Final = "postinst-"
MOUNT_TIMEOUT_SECS: Final = 60.0  # a healthy disk mounts in well under a second
# What is tried, in this order, with the options of each; from ext4 on it is our addition.
FILE_SYSTEMS: Final = (
    ("ext2", ""),
    ("ext3", ""),
    ("btrfs", "rescue=nologreplay"),
    ("ext4", ""),
    ("squashfs", ""),
    ("erofs", ""),
)
# The only names that the program finds in its environment, where they are set.
PASSED_ON: Final = ("LD_LIBRARY_PATH", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")
# What the program is told of parts that are in their place already.
ARGUMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {"kernel": "KERNEL", "pcr-policy": "PCR_POLICY"}
)
# It ends with us: left alone it would arm a slot that the next install overwrites.
_UNTIL_WE_END: Final = ("setpriv", "--pdeathsig", "KILL")
FIRMWARE_STATUS: Final = 3  # ChromeOS: booted from the second firmware
LINES_MAX: Final = 200  # of the program's words in the log
LINE_MAX_CHARS: Final = 500


class PostinstallError(UpdaterError):
    """The post-install program is missing, failed or took too long."""

    code = "postinstall-failed"
    hint = "Its words are in the log, before this; the slot stays disarmed."


class PostinstallMountError(UpdaterError):
    """The new partition cannot be mounted for its post-install program."""

    code = "postinstall-mount"
    hint = "The image must be ext2, 3 or 4, btrfs, squashfs or erofs, and we must be root."


class PostinstallFirmwareError(UpdaterError):
    """The post-install program asks for a boot from the first firmware."""

    code = "postinstall-firmware"
    hint = "Reboot the machine, so that it comes up from its first firmware; then update again."


def run_postinstall(
    region: Region,
    *,
    brought: Mapping[str, Path],
    run_folder: Path,
    timeout_secs: float,
    environment: Mapping[str, str],
) -> None:
    """Run the post-install program of the image in `region`; returns when it succeeded.

    It runs as root with what the image brings, so the image must be verified.

    Args:
        region: of the part `usr` in the written slot, read back and judged.
        brought: `kernel` and `pcr-policy` as far as the payload brought them, and where they are:
            the program need not install them.
        run_folder: where the mount's folder is made.
        timeout_secs: after which the program and all it started in its group is killed.
        environment: ours; of it only what the contract names is passed on.

    Raises:
        PostinstallMountError: the image cannot be mounted.
        PostinstallError: the program is missing, was killed, or ended with another status.
        PostinstallFirmwareError: it ended with status 3.
    """
    with _mounted(region, run_folder) as (tree, device):
        program = tree / PROGRAM
        if not program.is_file():
            raise PostinstallError(f"the image has no program {PROGRAM}")
        log.info("post-install begins device=%s", device)
        outcome = run(
            [*_UNTIL_WE_END, str(program), device, *_arguments(brought)],
            timeout_secs=timeout_secs,
            environment=_environment(environment),
        )
    _say(outcome.output)
    _judge(outcome, timeout_secs)
    log.info("post-install ended well device=%s", device)


def _arguments(brought: Mapping[str, Path]) -> list[str]:
    """Return KERNEL= and PCR_POLICY=, in the order of the contract."""
    return [f"{word}={brought[part]}" for part, word in ARGUMENTS.items() if part in brought]


def clean_up(run_folder: Path) -> None:
    """Unmount what a process that was killed in the middle left behind."""
    for folder in run_folder.glob(f"{FOLDER_PREFIX}*"):
        _unmount(folder)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    passed = {name: ours[name] for name in PASSED_ON if name in ours}
    return {"PATH": ENVIRONMENT["PATH"]} | passed


def _judge(outcome: Outcome, timeout_secs: float) -> None:
    match outcome.status:
        case 0:
            return
        case None:
            raise PostinstallError(f"post-install did not end within {timeout_secs:.0f} s")
        case status if status == FIRMWARE_STATUS:
            raise PostinstallFirmwareError("post-install found the second firmware running")
        case status if status < 0:
            raise PostinstallError(f"post-install was ended by signal {-status}")
        case status:
            raise PostinstallError(f"post-install ended with status {status}")


def _say(output: bytes) -> None:
    lines = output.decode(errors="replace").splitlines()[-LINES_MAX:]
    for line in lines:
        log.info("post-install says %s", line[:LINE_MAX_CHARS])


@contextlib.contextmanager
def _mounted(region: Region, run_folder: Path) -> Iterator[tuple[Path, str]]:
    """Mount the region; gives where its tree is, and the device to tell the program."""
    run_folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=run_folder))
    try:
        in_use = _mount(region, folder)
        tree = Path("/usr") if in_use else folder
        yield tree, _device(region, folder)
    finally:
        _unmount(folder)


def _mount(region: Region, folder: Path) -> bool:
    """Mount the region; returns whether btrfs says that the same image is mounted already."""
    bounds = f"loop,ro,nodev,nosuid,offset={region.offset},sizelimit={region.size}"
    said: list[str] = []
    for kind, extra in FILE_SYSTEMS:
        options = f"{bounds},{extra}" if extra else bounds
        outcome = run(
            ["mount", "-t", kind, "-o", options, str(region.path), str(folder)],
            timeout_secs=MOUNT_TIMEOUT_SECS,
        )
        if outcome.status == 0:
            return False
        words = outcome.output.decode(errors="replace").strip()
        if kind == "btrfs" and "File exists" in words:
            return True  # the contract: then the running tree is the same image
        said.append(f"{kind}: {' '.join(words.split())[:LINE_MAX_CHARS]}")
    for line in said:
        log.warning("post-install image does not mount as %s", line)
    tried = ", ".join(kind for kind, _ in FILE_SYSTEMS)
    raise PostinstallMountError(f"{region.label} does not mount as any of {tried}")


def _device(region: Region, folder: Path) -> str:
    """Name the partition's node; where the kernel has none, the loop device below the mount."""
    if region.offset == 0 and stat.S_ISBLK(region.path.stat().st_mode):
        return str(region.path)
    outcome = run(
        ["findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(folder)],
        timeout_secs=MOUNT_TIMEOUT_SECS,
        with_errors=False,
    )
    return outcome.output.decode().strip() or str(region.path)


def _unmount(folder: Path) -> None:
    """Unmount and remove a folder; one that is still used goes when its last user does."""
    if os.path.ismount(folder):
        outcome = run(["umount", str(folder)], timeout_secs=MOUNT_TIMEOUT_SECS)
        if outcome.status != 0:
            run(["umount", "--lazy", str(folder)], timeout_secs=MOUNT_TIMEOUT_SECS)
    with contextlib.suppress(OSError):
        folder.rmdir()
