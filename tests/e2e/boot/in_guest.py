"""Runs in the guest: the shipped engine, all of it imported, waiting for a word to update.

    python3 in_guest.py CONFIG UPDATE WRITE REBOOT [FAULT]

UPDATE, WRITE and REBOOT are files that say the word once they are there.

Under emulation the imports take longer than an update of small parts. So a snapshot is taken while
this waits, and each cut begins there. It calls what `bascule update` and `bascule reboot` call.

A fault is a wrong order of writes, put into this process alone, for the test of the tests.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import requests  # noqa: F401  # loaded before the snapshot, as all below
import tuf.ngclient

from partitions import boot_files, gpt, table, writer
from partitions.boot import open_boot_control
from partitions.copies import Disk
from partitions.gpt import Header
from partitions.slots import Region
from updater import assembly, given, install, pipeline, proof, settings, updating, verbs, writing
from updater.journal import start_logging
from updater.trust import refresh

LOADED = (tuf.ngclient, given, install, pipeline, updating, writing, refresh, open_boot_control)


def say(word: str) -> None:
    """Print a marker on the console, between whole lines of the kernel's."""
    print(f"\n{word}", flush=True)


def main() -> NoReturn:
    """Wait for the word, update, reboot."""
    config, update, write, reboot, *faults = sys.argv[1:]
    start_logging()
    assembly.build(settings.load(Path(config)).settings).loader.read()
    for fault in faults:
        FAULTS[fault]()
    _wait_before_writing(write)
    say("ENGINE-WAITS")
    _await(update)
    say("ENGINE-BEGINS")
    node = assembly.build(settings.load(Path(config)).settings)
    verbs.perform(node, "update", {}, by="test")
    say("ENGINE-ARMED")
    _await(reboot)
    verbs.perform(node, "reboot", {"now": True}, by="test")
    sys.exit("the machine did not reboot")


def _await(word: str) -> None:
    while not Path(word).exists():
        time.sleep(0.01)


def _wait_before_writing(word: str) -> None:
    real = writing.write

    def write(*arguments: object, **named: object) -> object:
        say("ENGINE-WRITES")
        _await(word)
        return real(*arguments, **named)  # type: ignore[arg-type]

    _replace(updating, "write", write)


def _arm_before_data() -> None:
    """Leave the flush of the slot's data out: it is still under way when the slot is armed."""
    _replace(writer.RegionWriter, "sync", _nothing)
    _replace(boot_files.BootFile, "sync", _nothing)
    # Reading back past the page cache would push the data out to the disk, though not flush it.
    _replace(proof, "is_provable", _nothing)
    _replace(install, "digest_of", _digest_in_cache)


def _both_tables_at_once() -> None:
    """Leave the flush between the two copies of the partition table out."""
    real = table._write_copy

    def write(disk: Disk, header: Header, array: bytes, *, sector_size: int) -> None:
        is_backup = header.own_lba != gpt.PRIMARY_LBA
        medium = _Unflushed(disk) if is_backup else disk
        real(medium, header, array, sector_size=sector_size)

    _replace(table, "_write_copy", write)


class _Unflushed:
    """A disk that takes writes and is never told to make them durable."""

    sync = staticmethod(lambda: None)

    def __init__(self, disk: Disk) -> None:
        self.size_bytes = disk.size_bytes
        self.sector_sizes = disk.sector_sizes
        self.pread = disk.pread
        self.pwrite = disk.pwrite


def _nothing(*_: object) -> None:
    """Do not flush."""


def _digest_in_cache(region: Region, size: int) -> bytes:
    with region.path.open("rb") as file:
        file.seek(region.offset)
        return hashlib.sha256(file.read(size)).digest()


def _replace(owner: object, name: str, by: object) -> None:
    setattr(owner, name, by)


FAULTS = {"arm-before-data": _arm_before_data, "both-tables-at-once": _both_tables_at_once}

if __name__ == "__main__":
    os.chdir("/run")
    main()
