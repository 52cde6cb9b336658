"""One whole update on a real loader, recorded write by write: before the first, until confirmed.

The engine is the shipped service in the guest; the loader counts and chooses by itself. What the
disk was told is replayed by `replay` afterwards, so one recording serves thousands of states.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from partitions.table import read_table
from tests.e2e.boot.disks import machine, make_disk, partitions
from tests.e2e.boot.judge import Partitions, Version
from tests.e2e.boot.loaders import Loader
from tests.e2e.boot.machine import Drive, VirtualMachine
from tests.e2e.boot.node import CONFIG, Publisher, put, say_go, start_engine
from tests.e2e.boot.small_guest import System, build_system
from tests.e2e.boot.write_log import Step, read_log

START: Final = "/var/lib/start"
SERVICE: Final = f"python3 -m updater.cli --config {CONFIG} daemon > /dev/console 2>&1 &\n"
OLD: Final = "1.0.0"
NEW: Final = "2.0.0"
PADDING_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What happened to a disk.

    Attributes:
        loader: what booted from it.
        base: the disk before the first write.
        final: the disk after the last one.
        steps: every write and flush in between.
        versions: that may boot.
        partitions: where things are.
        cpu_seconds: what the recording took.
    """

    loader: Loader
    base: Path
    final: Path
    steps: Sequence[Step]
    versions: Sequence[Version]
    partitions: Partitions
    cpu_seconds: float


def version_of(system: System) -> Version:
    """Return what a judge needs to know of a system."""
    digests = system.digests()
    return Version(
        name=system.version,
        kernel=digests["kernel"],
        initrd=digests["initrd"],
        root_hash=system.root_hash,
        data_blocks=system.data_blocks,
    )


def record(loader: Loader, folder: Path, *, faults: Sequence[str] = ()) -> Recording:
    """Make a disk, boot it, update it and record all that it is told.

    Without faults until the new version is confirmed; with one until the machine reboots.

    Args:
        loader: what boots from the disk.
        folder: for everything.
        faults: wrong orders of writes that the engine in the guest is made to have.

    Raises:
        GuestError: the update did not go as it should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = build_system(folder, OLD)
    new = build_system(
        folder, NEW, rollback_index=2, engine=not faults, padding_bytes=PADDING_BYTES
    )
    disk, base, log = (folder / f"{loader.name}.{end}" for end in ("img", "base", "log"))
    make_disk(base, loader, old)
    shutil.copyfile(base, disk)
    with Publisher(folder / "published") as publisher:
        publisher.release(new, rollback_index=2)
        hardware = machine(loader, Drive(path=disk, write_log=log))
        with VirtualMachine(hardware) as guest:
            guest.expect(f"slot=a version={OLD} root=verified")
            guest.expect_agent()
            publisher.instruct(guest, loader)
            if faults:
                start_engine(guest, *faults)
                say_go(guest)
                guest.expect("ENGINE-ARMED")
            else:
                put(guest, START, SERVICE.encode())
                guest.run(f"sync; . {START}")
                guest.expect(f"slot=b version={NEW} root=verified")
                guest.expect("slot confirmed slot=b")
                guest.expect("state changed")
            spent = guest.cpu_seconds
    return Recording(
        loader=loader,
        base=base,
        final=disk,
        steps=read_log(log),
        versions=(version_of(old), version_of(new)),
        partitions=partitions(read_table(base)),
        cpu_seconds=spent,
    )
