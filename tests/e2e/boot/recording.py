"""One whole update on a real loader, recorded write by write: before the first, until confirmed.

The engine is the shipped service in the guest; the loader counts and chooses by itself. What the
disk was told is replayed by `replay` afterwards, so one recording serves thousands of states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from partitions.table import read_table
from tests.e2e.boot.bench import OLD
from tests.e2e.boot.disks import copy, machine, make_disk, partitions, variables_of
from tests.e2e.boot.judge import Partitions, Version
from tests.e2e.boot.loaders import Loader
from tests.e2e.boot.machine import Drive, VirtualMachine
from tests.e2e.boot.node import SERVICE, START, Publisher, put, say_go, start_engine
from tests.e2e.boot.small_guest import System, build_system
from tests.e2e.boot.variables import Period, Watch, periods
from tests.e2e.boot.write_log import Step, read_log

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
        periods: what the firmware's boot variables were meanwhile; empty without any.
        versions: that may boot.
        partitions: where things are.
        cpu_seconds: what the recording took.
    """

    loader: Loader
    base: Path
    final: Path
    steps: Sequence[Step]
    periods: Sequence[Period]
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


def record(
    loader: Loader, folder: Path, *, whole: bool = True, faults: Sequence[str] = ()
) -> Recording:
    """Make a disk, boot it, update it and record all that it is told.

    Args:
        loader: what boots from the disk.
        folder: for everything.
        whole: whether the new version has an engine, which confirms it; else it is a small one,
            and the recording ends when it is up.
        faults: wrong orders of writes that the engine in the guest is made to have.

    Raises:
        GuestError: the update did not go as it should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = build_system(folder, OLD)
    new = build_system(folder, NEW, rollback_index=2, engine=whole, padding_bytes=PADDING_BYTES)
    disk, base, log = (folder / f"{loader.name}.{end}" for end in ("img", "base", "log"))
    make_disk(base, loader, old)
    copy(base, disk)
    with Publisher(folder / "published") as publisher:
        publisher.release(new, rollback_index=2)
        hardware = machine(loader, Drive(path=disk, write_log=log))
        watch = Watch(log, variables_of(log))
        with VirtualMachine(hardware) as guest, watch:
            guest.expect(f"slot=a version={OLD} root=verified")
            guest.expect_agent()
            publisher.instruct(guest, loader)
            if whole:
                put(guest, START, SERVICE.encode())
                guest.run(f"sync; . {START}")
                guest.expect(f"slot=b version={NEW} root=verified")
                guest.expect("slot confirmed slot=b")
                guest.expect("state changed")
            else:
                start_engine(guest, *faults)
                say_go(guest)
                guest.expect("ENGINE-ARMED")
                guest.expect("reboot ordered")
                if not faults:
                    guest.expect(f"slot=b version={NEW} root=verified")
            spent = guest.cpu_seconds
    steps = read_log(log)
    return Recording(
        loader=loader,
        base=base,
        final=disk,
        steps=steps,
        periods=_periods(loader, base, log, watch, steps),
        versions=(version_of(old), version_of(new)),
        partitions=partitions(read_table(base)),
        cpu_seconds=spent,
    )


def _periods(
    loader: Loader, base: Path, log: Path, watch: Watch, steps: Sequence[Step]
) -> list[Period]:
    """Return what the firmware's boot variables were, where they choose the slot."""
    if loader.boot_control != "efi":
        return []
    flash = variables_of(base).read_bytes()
    return periods(flash, variables_of(log), watch.looks, requests=len(steps))
