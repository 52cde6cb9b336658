"""The machine as a seam: what the engine must know of the computer it runs on, and may ask of it.

Two keepers: `machine_linux` for a real system, `machine_model` for tests and the demo, where a
firmware model chooses the slot and a process stands for each boot. Boot control and slots are
not here: they belong to partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from updater.errors import UpdaterError

if TYPE_CHECKING:
    from images.release import ImageFacts
    from partitions.slots import Slot

# Where every image keeps its facts and the trusted TUF root, inside its file system.
IMAGE_FACTS_PATH = "/usr/lib/bascule/image.toml"
TRUSTED_ROOT_PATH = "/usr/lib/bascule/root.json"
IMAGE_FACTS_MAX_BYTES = 16 * 1024
TRUSTED_ROOT_MAX_BYTES = 256 * 1024


class MachineError(UpdaterError):
    """The machine cannot tell what it is or does not do what it is asked."""

    code = "machine"
    hint = "`bascule slots` shows the disk; check [slots] and [node] in the settings."


class BootedSlotError(MachineError):
    """No slot of the settings is the one that is running."""

    code = "booted-slot-unknown"
    hint = "The running system must be one of the partitions named in [slots]; check PARTLABELs."


class ImageFactsError(MachineError):
    """The booted slot does not say what it holds."""

    code = "image-facts"
    hint = "Every image carries /usr/lib/bascule/image.toml; rebuild the image with one."


class RebootError(MachineError):
    """The reboot command failed."""

    code = "reboot-command"
    hint = "Run node.reboot_command by hand; the update stays armed and any reboot starts it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One boot of the machine.

    Attributes:
        slot: what runs.
        boot_id: changes at every boot, never within one.
    """

    slot: Slot
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this node is, to servers and to the permit's other holders.

    Attributes:
        machine_id: 32 hex digits, the same for the machine's life.
        host: a name people know.
    """

    machine_id: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inhibitor:
    """Somebody's wish that the machine not do something now, as logind keeps it.

    Attributes:
        what: "shutdown", "sleep" and others.
        who, why: as they said it, bounded and printable.
        mode: "block", or "delay" for a moment's patience.
        uid, pid: who holds it.
    """

    what: frozenset[str]
    who: str
    why: str
    mode: str
    uid: int
    pid: int

    @property
    def blocks_shutdown(self) -> bool:
        """Tell whether a reboot would break what somebody asked for."""
        return self.mode == "block" and "shutdown" in self.what


class Machine(Protocol):
    """The computer.

    All raise `MachineError` when it cannot be asked.
    """

    def boot(self) -> Boot:
        """Tell which slot runs and in which boot."""

    def uptime(self) -> timedelta:
        """Tell how long ago this boot was, by a clock that never jumps."""

    def is_stopping(self) -> bool:
        """Tell whether an orderly shutdown is under way, by whoever ordered it."""

    def identity(self) -> Identity:
        """Tell who this node is."""

    def image_facts(self, slot: Slot) -> ImageFacts:
        """Read the facts out of a slot's image; raises `ImageFactsError` when there are none."""

    def trusted_root(self) -> bytes:
        """Read the TUF root that the booted image carries."""

    def system_folders(self) -> Sequence[Path]:
        """Name folders of the running system itself: a boot file beside them never boots."""

    def inhibitors(self) -> Sequence[Inhibitor]:
        """Tell who asked that the machine not be shut down and the like, the present moment's."""

    def reboot(self) -> None:
        """Order the reboot; returning means it was ordered, not that it happened."""
