"""Runs in the guest: the shipped engine, all of it imported, waiting for a word to update.

    python3 in_guest.py CONFIG GO [FAULT]

Under emulation the imports take longer than an update of small parts. So a snapshot is taken while
this waits, and each cut begins there. It calls what `bascule update` and `bascule reboot` call.

A fault is a wrong order of writes, put into this process alone, for the test of the tests.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import requests  # noqa: F401  # loaded before the snapshot, as all below
import tuf.ngclient

from partitions import boot_files, disk, table, writer
from partitions.boot import open_boot_control
from updater import assembly, given, install, pipeline, settings, updating, verbs, writing
from updater.journal import start_logging
from updater.trust import refresh

LOADED = (tuf.ngclient, given, install, pipeline, updating, writing, refresh, open_boot_control)


def say(word: str) -> None:
    """Print a marker on the console, between whole lines of the kernel's."""
    print(f"\n{word}", flush=True)


def main() -> NoReturn:
    """Wait for the word, update, reboot."""
    config, go, *faults = sys.argv[1:]
    start_logging()
    assembly.build(settings.load(Path(config)).settings).loader.read()
    for fault in faults:
        FAULTS[fault]()
    say("ENGINE-WAITS")
    while not Path(go).exists():
        time.sleep(0.01)
    say("ENGINE-BEGINS")
    node = assembly.build(settings.load(Path(config)).settings)
    verbs.perform(node, "update", {}, by="test")
    say("ENGINE-ARMED")
    verbs.perform(node, "reboot", {"now": True}, by="test")
    sys.exit("the machine did not reboot")


def _arm_before_data() -> None:
    """Leave the flush of slots' data out: it is on its way when the slot is armed."""

    def nothing(*_: Any) -> None:
        """Do not flush."""

    writer.RegionWriter.sync = nothing  # type: ignore[method-assign]
    boot_files.BootFile.sync = nothing  # type: ignore[method-assign]
    install.digest_of = _expected  # type: ignore[assignment]  # reading back would push it out


def _expected(region: Any, size: int) -> bytes:
    """Read through the page cache: the disk is not asked."""
    import hashlib

    with region.path.open("rb") as file:
        file.seek(region.offset)
        return hashlib.sha256(file.read(size)).digest()


def _both_tables_at_once() -> None:
    """Leave the flush between the two copies of the partition table out."""
    real = disk.OpenDisk.sync
    count = [0]

    def every_second(self: disk.OpenDisk) -> None:
        count[0] += 1
        if count[0] % 2 == 0:
            real(self)

    for place in (disk.OpenDisk, table.open_disk):
        if isinstance(place, type):
            place.sync = every_second  # type: ignore[method-assign]


FAULTS = {"arm-before-data": _arm_before_data, "both-tables-at-once": _both_tables_at_once}

if __name__ == "__main__":
    os.chdir("/run")
    main()
