"""The crash proof: `python -m tests.sim.proof [LOADER …]` runs it and prints what was examined.

For each loader one node lives through an update, one that is not healthy, and another update,
driven by the shipped engine on shipped writers. All that it asks of the disk is recorded below
every seam, and each state that a power cut can leave is judged. Then the engine is started on
several kinds of state: it rests well without a person, and installs what comes next.

`BASCULE_PROOF_EFFORT=8` tries more combinations, asks the tools about every state and starts the
engine on every kind.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.sim.block import Area, Cut, Disk, Machine, StateFolder
from tests.sim.crash_world import ESP_BYTES, LOADERS, CrashWorld, keep, put_back
from tests.sim.fat import SECTOR, Fat, read_tree
from tests.sim.judges import Judge, Tally, lay_out, mend
from tests.sim.lives import assert_rests_well, due_now, live
from tests.sim.recorder import Event, Recorder, recording
from tests.sim.world import run_until
from updater.engine import Engine
from updater.rooms import ROOM_ERRORS

SEED: Final = 20261128
EFFORT: Final = int(os.environ.get("BASCULE_PROOF_EFFORT", "1"))
TOOLS_MAX: Final = 120  # FATs of one chapter that fsck.vfat looks at
ENGINES_MAX: Final = 24  # kinds of state of one chapter that the engine is started on
AGAIN: Final = 2  # of those, so many are cut again at every instant of the life that follows
GO_ON_EVERY: Final = 3  # of those, every so many-th goes on to the next release
SPOKEN: Final = frozenset(
    {"state.json", "journal.json", "floor.json", "denied.json", "hold.json", "pin.json"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A part of a node's life.

    Attributes:
        old: what runs before.
        new: what is offered; also what runs after, unless it is not healthy.
        healthy: whether it is.
    """

    old: str
    new: str
    healthy: bool = True


CHAPTERS: Final = (
    Chapter(old="1.0.0", new="2.0.0"),
    Chapter(old="2.0.0", new="3.0.0", healthy=False),
    Chapter(old="2.0.0", new="4.0.0"),
)
NEXT: Final = "5.0.0"  # what every recovered node goes on to


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A state to start the engine on.

    Attributes:
        where: the words for it.
        sectors: in which it differs from the disk at the beginning of the chapter.
        base: that disk.
        files, variables: the state folder and the firmware's variables.
        versions: what may run after it.
    """

    where: str
    sectors: Mapping[int, bytes]
    base: bytes
    files: Mapping[str, bytes]
    variables: Mapping[str, bytes]
    versions: frozenset[str]

    def image(self) -> bytes:
        """Return the disk."""
        image = bytearray(self.base)
        for sector, data in self.sectors.items():
            image[sector * SECTOR : (sector + 1) * SECTOR] = data
        return bytes(image)


Edit = Callable[[list[Event]], list[Event]]
"""Changes a record before it is replayed: what a test of the proof does."""


def as_it_is(log: list[Event]) -> list[Event]:
    """Change nothing."""
    return log


@dataclass
class Proof:
    """The proof for one loader, on one world.

    Attributes:
        world: the node; it rests in slot A.
        tally: what was examined.
        effort: how many times as many combinations, tools and engines as by default.
        engines: on how many kinds of state of a chapter the engine is started.
        to_the_end: whether it goes on after a failure.
        edit: changes a record before it is replayed, for tests of the proof.
        samples: what goes on to the next release in the end.
    """

    world: CrashWorld
    tally: Tally = field(default_factory=Tally)
    effort: int = EFFORT
    engines: int = ENGINES_MAX
    to_the_end: bool = True
    edit: Edit = as_it_is
    samples: list[Sample] = field(default_factory=list)
    _fat: bytes = b""

    def run(self, chapters: Sequence[Chapter] = CHAPTERS) -> Tally:
        """Live through the chapters, judge every cut, and recover."""
        run_until(Engine(node=self.world.boot()), "idle")
        for chapter in chapters:
            self.chapter(chapter)
            if self.tally.failures and not self.to_the_end:
                return self.tally
        if self.samples:
            self.go_on()
        return self.tally

    def chapter(self, chapter: Chapter) -> None:
        """Record one chapter, judge its cuts, start the engine on some of them."""
        world = self.world
        world.release(chapter.new, rollback_index=int(chapter.new[0]))
        due_now(world)
        self._fat = self._fat or world.fresh_fat()
        log, machine = self.record(lambda: self._lived(chapter))
        end = world.folder / "end"
        keep(world, end)
        found = self.judge(log, machine, frozenset({chapter.old, chapter.new}), end)
        self._fat = fat = bytes(machine.fat.image)
        chosen = list(self._chosen(found))
        for sample in chosen:
            self.recover(sample)
        for sample in chosen[:: ENGINES_MAX // AGAIN]:
            self.cut_again(sample)
        self._fat = fat
        put_back(world, end)

    def cut_again(self, sample: Sample) -> None:
        """Judge every cut of the life after a cut, too."""
        world = self.world
        self._fat = lay_machine_out(world, sample)

        def lived() -> None:
            world.boot()
            live(world)

        log, machine = self.record(lived)
        end = world.folder / "end of another"
        keep(world, end)
        self.judge(log, machine, sample.versions, end)

    def _lived(self, chapter: Chapter) -> None:
        live(self.world)
        runs = chapter.new if chapter.healthy else chapter.old
        assert self.world.node().running().version == runs, "the chapter itself ends as it should"

    def record(self, life: Callable[[], None]) -> tuple[list[Event], Machine]:
        """Record a life; returns it with the machine as it was before."""
        world = self.world
        image = bytearray(world.disk.read_bytes())
        image[world.esp_at : world.esp_at + ESP_BYTES] = self._fat
        recorder = Recorder(world.watched)
        recorder.note_state("begin", "")
        first = recorder.log.pop()
        machine = Machine(
            disk=Disk(bytes(image), [*world.areas(), *_unwatched(world)]),
            fat=Fat(self._fat),
            fat_at=world.esp_at // SECTOR,
            state=StateFolder([(first.files, frozenset())]),
            variables=_files(world.folder / "efivars"),
            effort=self.effort,
        )
        with recording(recorder):
            life()
        return recorder.log, machine

    def judge(
        self, log: list[Event], machine: Machine, allowed: frozenset[str], end: Path
    ) -> dict[object, Sample]:
        """Judge each cut; returns one sample of each kind of state.

        Args:
            log: what was recorded.
            machine: as it was before.
            allowed: the versions that may be found running.
            end: a copy of the machine's files as they were after.
        """
        judge = Judge(
            self.world,
            machine.disk,
            self.tally,
            allowed=allowed,
            tools_max=TOOLS_MAX * self.effort,
        )
        found: dict[object, Sample] = {}
        base = bytes(machine.disk.durable)
        for cut in machine.cuts(self.edit(log), random.Random(SEED)):
            kind = judge.judge(cut)
            if kind is None:
                continue
            key = (kind, _spoken(cut.files))
            if self.tally.failures and not self.to_the_end:
                break
            if key not in found:
                found[key] = _sample(len(found), cut, machine.disk, base, allowed)
        if self.edit is as_it_is and (self.to_the_end or not self.tally.failures):
            self._check(machine, end)
        return found

    def _check(self, machine: Machine, end: Path) -> None:
        """Make sure that nothing was written which the recorder did not see."""
        world, view = self.world, machine.disk.view
        disk = (end / "disk.img").read_bytes()
        at = world.esp_at
        assert disk[:at] == view[:at], "the recorder saw every write to the disk"
        assert disk[at + ESP_BYTES :] == view[at + ESP_BYTES :]
        assert read_tree(machine.fat.image).files == _files(end / "boot"), "and to the ESP"
        assert machine.variables == _files(end / "efivars"), "and to the variables"

    def _chosen(self, found: Mapping[object, Sample]) -> Iterator[Sample]:
        """Yield a fair share of the kinds."""
        all_of_them = list(found.values())
        wanted = min(len(all_of_them), self.engines * self.effort)
        for number in range(wanted):
            sample = all_of_them[number * len(all_of_them) // wanted]
            if number % GO_ON_EVERY == 0 or self.effort > 1:
                self.samples.append(sample)
            yield sample

    def recover(self, sample: Sample) -> None:
        """Start the engine on a state, and see that it rests well."""
        version = self._revived(sample)
        if version is not None:
            self.tally.recovered += 1
            if version not in sample.versions:
                self.tally.fail(f"{sample.where}: ends with {version}")

    def go_on(self) -> None:
        """Start the engine on what was kept of all chapters, with something new to install."""
        self.world.release(NEXT, rollback_index=int(NEXT[0]))
        for sample in self.samples:
            version = self._revived(sample, due=True)
            if version is not None:
                self.tally.went_on += 1
                if version != NEXT:
                    self.tally.fail(f"{sample.where}: does not go on to {NEXT}, has {version}")

    def _revived(self, sample: Sample, *, due: bool = False) -> str | None:
        world = self.world
        lay_machine_out(world, sample)
        try:
            node = world.boot()
            if due:
                with node.locked():
                    pass  # the boot is noted first: it may have been a trial's
                due_now(world)
            live(world)
            return assert_rests_well(world, world.node(), sample.where)
        except (AssertionError, *ROOM_ERRORS) as error:
            self.tally.fail(f"{sample.where}: {type(error).__name__}: {error}")
            return None


def _sample(number: int, cut: Cut, disk: Disk, base: bytes, versions: frozenset[str]) -> Sample:
    landed = {write.sector: write.data for write in cut.landed}
    return Sample(
        where=f"state {number} after {', '.join(sorted(versions))}",
        sectors={**disk.changed, **landed},
        base=base,
        files=cut.files,
        variables=cut.variables,
        versions=versions,
    )


def lay_machine_out(world: CrashWorld, sample: Sample) -> bytes:
    """Make the world's machine what the cut left, its loader's partition mended as at boot.

    Returns:
        The bytes of that partition.
    """
    for name in ("boot", "efivars", "state", "run"):
        shutil.rmtree(world.folder / name, ignore_errors=True)
    image = sample.image()
    world.disk.write_bytes(image)
    esp = world.folder / "esp.img"
    esp.write_bytes(image[world.esp_at : world.esp_at + ESP_BYTES])
    mend(esp)
    tree = read_tree(esp.read_bytes())
    for folder in tree.folders:
        (world.folder / "boot" / folder).mkdir(parents=True, exist_ok=True)
    lay_out(tree.files, world.folder / "boot")
    lay_out(sample.variables, world.folder / "efivars")
    lay_out(sample.files, world.folder / "state")
    return esp.read_bytes()


def _unwatched(world: CrashWorld) -> list[Area]:
    """Return the sectors that nobody may write."""
    taken = {at for area in world.areas() for at in range(area.first, area.first + area.count)}
    last = world.disk.stat().st_size // SECTOR
    return [Area(name="nobody's", first=at, count=1) for at in range(last) if at not in taken]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _spoken(files: Mapping[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted((name, data) for name, data in files.items() if name in SPOKEN))


TITLES: Final = (
    "loader", "states", "distinct", "sgdisk", "fsck", "verity", "recovered", "went on", "failures",
    "per second",
)  # fmt: skip


def row(loader: str, tally: Tally, seconds: float) -> str:
    """Return one line of the summary."""
    cells = (
        loader,
        *(tally.states, tally.distinct, tally.sgdisk, tally.fsck, tally.verity),
        *(tally.recovered, tally.went_on, len(tally.failures), round(tally.states / seconds)),
    )
    return " ".join(f"{cell:>15}" for cell in cells)


def prove(loader: str, folder: Path) -> Tally:
    """Run the proof for one loader."""
    with CrashWorld(folder, kind=loader) as world:
        return Proof(world).run()


def main(arguments: Sequence[str]) -> int:
    """Run the proof for the loaders that are named, or for all."""
    logging.disable(logging.CRITICAL)  # what the engine says of thousands of lives
    _say(" ".join(f"{word:>15}" for word in TITLES))
    worst = 0
    for loader in arguments or LOADERS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bascule-proof-") as folder:
            tally = prove(loader, Path(folder) / "world")
        _say(row(loader, tally, time.monotonic() - began))
        for failure in tally.failures:
            _say(f"    {failure}")
        worst |= bool(tally.failures)
    return worst


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
