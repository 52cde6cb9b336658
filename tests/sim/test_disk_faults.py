"""The disk fails or lies at any one of its writes and flushes: the node says so and lives on.

Each fault ends with a coded error or is made good; no half-written slot may boot; the booted one
does, untouched; and once the disk works again, the next release is installed without a person.
`BASCULE_PROOF_EFFORT=8` puts each fault at every place where it can be, else at some.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from partitions.slots import Slot
from tests.sim.crash_world import LOADERS, CrashWorld, keep, put_back
from tests.sim.lives import assert_rests_well, due_now, let_time_pass, live
from tests.sim.loaders import quick
from tests.sim.proof import EFFORT
from tests.sim.recorder import BOOT, DISK, STATE, VARIABLES, Event, Recorder, recording
from tests.sim.world import run_until
from updater.agent import Wait
from updater.engine import Engine
from updater.errors import IllegalTransitionError
from updater.rooms import ROOM_ERRORS

PLACES: Final = 5  # of a fault, unless all are wanted
ERRORS_MAX: Final = 5  # after so many in a row nothing new happens
CHANGES: Final = frozenset({"write", "resize", "create", "mkdir", "remove", "rename"})
FLUSHES: Final = frozenset({"sync-file", "sync-folder", "sync-all"})
GROWTHS: Final = frozenset({"write", "resize", "create", "mkdir"})


def _fails(number: int) -> Callable[[Event], bytes]:
    def act(_event: Event) -> bytes:
        raise OSError(number, os.strerror(number))

    return act


def _flips(event: Event) -> bytes:
    at = len(event.data) // 64  # not the middle: half of a header's sector means nothing
    return event.data[:at] + bytes([event.data[at] ^ 1]) + event.data[at + 1 :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong.

    Attributes:
        where, what: the events that it may befall.
        act: raises, or gives what the disk keeps instead.
        lasts: whether it befalls every later event, too.
        is_told: whether the node must say so.
        is_lie: whether it must befall more than zeros, which a slot holds anyway, and more than the
            blanks of an entry that goes away.
    """

    where: frozenset[str]
    what: frozenset[str]
    act: Callable[[Event], bytes]
    lasts: bool = False
    is_told: bool = True
    is_lie: bool = False

    def befalls(self, event: Event) -> bool:
        """Tell whether it may befall this event."""
        if self.is_lie and not event.data.strip(b"\0\n"):
            return False
        return event.where in self.where and event.what in self.what


DISKS: Final = frozenset({DISK, BOOT, VARIABLES})
LIARS: Final = frozenset({DISK, BOOT})  # a firmware writes a variable whole, or says that it cannot
FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "a write fails": Fault(where=DISKS, what=CHANGES, act=_fails(errno.EIO)),
        "a flush fails": Fault(where=DISKS, what=FLUSHES, act=_fails(errno.EIO)),
        "a write is lost": Fault(
            where=LIARS, what=frozenset({"write"}), act=lambda _event: b"", is_lie=True
        ),
        "a bit flips": Fault(where=LIARS, what=frozenset({"write"}), act=_flips, is_lie=True),
        "the loader's partition is full": Fault(
            where=frozenset({BOOT}), what=GROWTHS, act=_fails(errno.ENOSPC), lasts=True
        ),
        "the disk is gone": Fault(
            where=frozenset({DISK}),
            what=CHANGES | FLUSHES | {"open", "read"},
            act=_fails(errno.ENODEV),
            lasts=True,
        ),
        "the state folder is full": Fault(
            where=frozenset({STATE}),
            what=GROWTHS,
            act=_fails(errno.ENOSPC),
            lasts=True,
            is_told=False,  # a line of the history is lost with a warning
        ),
        "a flush of the state folder fails": Fault(
            where=frozenset({STATE}), what=FLUSHES, act=_fails(errno.EIO), is_told=False
        ),
    }
)


class Trap:
    """Springs at one event, or from there on; counts those that it could have sprung at."""

    def __init__(self, fault: Fault, at: int) -> None:
        self._fault = fault
        self._at = at
        self.seen = 0
        self.sprung = False

    def __call__(self, event: Event) -> bytes | None:
        if not self._fault.befalls(event):
            return None
        number, self.seen = self.seen, self.seen + 1
        if number == self._at or (self._fault.lasts and number > self._at):
            self.sprung = True
            return self._fault.act(event)
        return None


def lived(world: CrashWorld, recorder: Recorder) -> list[str]:
    """Let the node live as far as it gets; returns the codes of its errors."""
    engine = Engine(node=world.node())
    codes: list[str] = []
    for _ in range(60):
        try:
            wait = engine.step()
        except ROOM_ERRORS as error:
            codes.append(error.code)
            if len(codes) >= ERRORS_MAX:
                return codes
            continue
        if not isinstance(wait, Wait):
            continue
        if wait.code == "rebooting":
            trap, recorder.trap = recorder.trap, None  # a loader's disk is not the matter here
            engine = Engine(node=world.boot())
            recorder.trap = trap
        elif wait.code == "health-pending":
            let_time_pass(world)
            engine = Engine(node=world.node(), last_verdict=engine.last_verdict)
        else:
            return codes
    raise AssertionError(f"the node never rests: {codes}")


def assert_safe(world: CrashWorld, where: str) -> None:
    """Check that no slot may boot that is not whole."""
    node = world.node()
    state = node.loader.read()
    for slot in Slot:
        if slot is node.boot().slot or state.slots[slot].armed:
            version = node.machine.image_facts(slot).version
            assert world.slot_bytes(slot) == world.image_bytes(version), where
            for part in world.files:
                held = world.boot_file(slot, part).read_bytes()
                assert held == world.file_image(version, part), where


@pytest.fixture(params=quick(LOADERS, "grubenv", "systemd-boot"))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CrashWorld]:
    """A node that rests in 1.0.0 and is offered 2.0.0."""
    with CrashWorld(tmp_path / "world", kind=request.param) as made:
        made.health = ["true"]
        made.write_settings()
        run_until(Engine(node=made.boot()), "idle")
        for version in ("2.0.0", "3.0.0"):
            made.release(version, rollback_index=int(version[0]))
        due_now(made)
        keep(made, made.folder / "kept")
        yield made


def _once(world: CrashWorld, fault: Fault, at: int) -> tuple[Trap, list[str]]:
    put_back(world, world.folder / "kept")
    world.repository.promote("2.0.0")
    recorder = Recorder(world.watched)
    recorder.trap = trap = Trap(fault, at)
    with recording(recorder):
        return trap, lived(world, recorder)


def _places(fault: Fault, count: int) -> list[int]:
    """Return where to put a fault; a lie is told about the loader's memory, which comes last."""
    wanted = count if EFFORT > 1 else min(count, PLACES)
    if fault.is_lie:
        return list(range(count - wanted, count))
    return [number * count // wanted for number in range(wanted)]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_disk_costs_time_only(
    world: CrashWorld, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = FAULTS[name]
    dry, codes = _once(world, fault, at=-1 if not fault.lasts else sys.maxsize)
    assert codes == []
    said = set()
    for at in _places(fault, dry.seen):
        where = f"{name} at {at} of {dry.seen}"
        trap, codes = _once(world, fault, at)
        assert trap.sprung, where
        assert codes or not fault.is_told, where
        said.update(codes)
        assert IllegalTransitionError.code not in said, where
        assert_safe(world, where)
        world.repository.promote("3.0.0")
        world.boot()
        assert_safe(world, where)
        with world.node().locked():
            pass  # the boot is noted first: it may have been a trial's
        due_now(world)
        live(world)
        assert assert_rests_well(world, world.node(), where) == "3.0.0", where
    with capsys.disabled():
        sys.stdout.write(f"\n    {world.kind}: {name}: {dry.seen} places, {sorted(said)}")
