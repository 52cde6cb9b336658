"""Ends a node's life just before any one of the steps that change what survives it.

What survives a power cut or a kill is the state folder, the loader's memory and the slots. A fuse
counts each change of the first two, and each reboot order, and burns before the n-th: everything
before it happened, nothing after it. (Cuts inside one write of the table or of a slot have tests
of their own.)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from typing_extensions import override

from partitions.boot.control import BootControl, BootState
from partitions.slots import Slot
from tests.sim.world import World
from updater.node import Node
from updater.state import Store

NEVER: Final = 1_000_000


class LifeEndsError(BaseException):
    """The power is cut, or the process killed: nobody gets to handle this."""


@dataclass
class Fuse:
    """Burns before step number `at`, counted from 0.

    Attributes:
        at: the step that never happens.
        steps: what happened, in order.
        burnt: the step that did not happen. What is tried on the way out is not it.
    """

    at: int = NEVER
    steps: list[str] = field(default_factory=list)
    burnt: str = ""

    def burn(self, step: str) -> None:
        """Pass one step, or end everything."""
        if len(self.steps) >= self.at:
            self.burnt = self.burnt or step
            raise LifeEndsError(self.burnt)
        self.steps.append(step)


class FusedStore(Store):
    """A state folder whose every change passes the fuse."""

    def __init__(self, folder: Path, fuse: Fuse) -> None:
        super().__init__(folder)
        self._fuse = fuse

    @override
    def _write(self, name: str, data: bytes) -> None:
        self._fuse.burn(f"write {name}")
        super()._write(name, data)

    @override
    def _drop(self, name: str) -> None:
        if (self.folder / name).exists():
            self._fuse.burn(f"drop {name}")
        super()._drop(name)


class FusedLoader(BootControl):
    """A loader's memory whose every change passes the fuse."""

    def __init__(self, real: BootControl, fuse: Fuse) -> None:
        self._real = real
        self._fuse = fuse

    @property
    @override
    def max_tries(self) -> int:
        return self._real.max_tries

    @override
    def read(self) -> BootState:
        return self._real.read()

    @override
    def disarm(self, slot: Slot) -> None:
        self._fuse.burn(f"disarm {slot.value}")
        self._real.disarm(slot)

    @override
    def arm(self, slot: Slot, *, tries: int) -> None:
        self._fuse.burn(f"arm {slot.value}")
        self._real.arm(slot, tries=tries)

    @override
    def confirm(self, slot: Slot) -> None:
        self._fuse.burn(f"confirm {slot.value}")
        self._real.confirm(slot)

    @override
    def reject(self, slot: Slot) -> None:
        self._fuse.burn(f"reject {slot.value}")
        self._real.reject(slot)


def fused(node: Node, fuse: Fuse) -> Node:
    """Return `node` with every lasting change going through the fuse."""
    node.store = FusedStore(node.store.folder, fuse)
    node.loader = FusedLoader(node.loader, fuse)
    order: Callable[[], None] = node.machine.reboot

    def reboot() -> None:
        fuse.burn("order the reboot")
        order()

    node.machine.reboot = reboot  # type: ignore[method-assign]  # this one machine's
    return node


@dataclass(frozen=True)
class Snapshot:
    """All of a node that survives a cut, kept beside it, to begin again from there."""

    world: World
    kept: Path

    @classmethod
    def take(cls, world: World) -> Snapshot:
        """Keep disk, boot files, state and the present boot."""
        kept = world.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        shutil.copyfile(world.disk, kept / "disk.img")
        shutil.copyfile(world.grubenv, kept / "grubenv")
        for name in ("state", "run", "boot", "efivars", "loader"):
            shutil.copytree(world.folder / name, kept / name, symlinks=True)
        return cls(world, kept)

    def restore(self) -> None:
        """Put everything back."""
        shutil.copyfile(self.kept / "disk.img", self.world.disk)
        shutil.copyfile(self.kept / "grubenv", self.world.grubenv)
        for name in ("state", "run", "boot", "efivars", "loader"):
            shutil.rmtree(self.world.folder / name, ignore_errors=True)
            shutil.copytree(self.kept / name, self.world.folder / name, symlinks=True)
