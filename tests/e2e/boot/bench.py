"""One loader's machine, kept as it was when the engine in it waited for a word to update.

The firmware, the kernel and the imports are paid for once; whatever begins here begins within a
second. QEMU goes back to the snapshot inside the disk file, so that one file serves many times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from tests.e2e.boot.disks import convert, copy, machine, make_disk
from tests.e2e.boot.loaders import Loader
from tests.e2e.boot.machine import Drive, Hardware, VirtualMachine
from tests.e2e.boot.node import Publisher, say_update, say_write, start_engine
from tests.e2e.boot.small_guest import build_system

OLD: Final = "1.0.0"
WAITING: Final = "waiting"  # snapshots: for the word to update,
BEGUN: Final = "begun"  # for the word to write,
ARMED: Final = "armed"  # and for the word to reboot into what was installed
USES: Final = 20  # killed machines leave clusters behind in the disk file: then a fresh one
UP: Final = r"bascule-initrd: slot=(\w) version=(\S+) root=verified"


class Bench:
    """A machine that can be begun again and again.

    Attributes:
        folder: where its files are.
        publisher: what it updates from.
        cpu_seconds: what making it took.
    """

    def __init__(self, loader: Loader, folder: Path) -> None:
        """Name the loader; `ready` makes the machine.

        Args:
            loader: what boots it.
            folder: for its files.
        """
        self.loader = loader
        self.folder = folder
        self.publisher = Publisher(folder / "published")
        self.cpu_seconds = 0.0
        self._kept = folder / "kept.qcow2"
        self._disk = folder / "disk.qcow2"
        self._used = USES

    @contextmanager
    def ready(self) -> Iterator[Self]:
        """Make the machine, and serve its updates for as long as it is used.

        Raises:
            GuestError: it does not get there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        raw = self.folder / "disk.img"
        make_disk(raw, self.loader, build_system(self.folder, OLD))
        convert(raw, self._kept)
        with self.publisher:
            with VirtualMachine(self._machine(self._kept)) as guest:
                guest.expect(UP)
                guest.expect_agent()
                self.publisher.instruct(guest, self.loader)
                start_engine(guest)
                guest.save(WAITING)
                self.cpu_seconds = guest.cpu_seconds
            yield self

    def update(self) -> None:
        """Update once, to what is published, and keep the machine on the way there.

        Raises:
            GuestError: it does not update.
        """
        with VirtualMachine(self._machine(self._kept), snapshot=WAITING) as guest:
            guest.run("true")
            say_update(guest)
            guest.expect("ENGINE-WRITES")
            guest.save(BEGUN)
            say_write(guest)
            guest.expect("ENGINE-ARMED")
            guest.save(ARMED)
            self.cpu_seconds += guest.cpu_seconds
        self._used = USES

    @contextmanager
    def begun(self, snapshot: str = WAITING) -> Iterator[VirtualMachine]:
        """Go back to where the engine waits for a word."""
        if self._used >= USES:
            copy(self._kept, self._disk)
            self._used = 0
        self._used += 1
        with VirtualMachine(self._machine(self._disk), snapshot=snapshot) as guest:
            guest.run("true")
            yield guest

    def switched_on(self) -> VirtualMachine:
        """Return the machine as it starts from the disk as it was left."""
        return VirtualMachine(self._machine(self._disk))

    def _machine(self, disk: Path) -> Hardware:
        return machine(self.loader, Drive(path=disk, format="qcow2"))
