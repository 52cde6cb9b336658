"""One disk of sectors, and every state that a power cut can leave it in.

It is given what `recorder.py` wrote down, and turns it into sectors: GPT and slots lie where they
are, the loader's partition by way of `fat.py`. A sector of 512 bytes lands whole or not at all.
From a flush to the next, sectors land in any order or not at all; one that was written twice may
hold either. A flush makes durable what it names and nothing else.

The state folder is a file system with a journal: its changes of names become durable in order, a
flush of a file or folder makes all before it durable, and a file that was never flushed may be
empty.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.sim.fat import SECTOR, Dirty, Fat
from tests.sim.recorder import Event

EXHAUSTIVE: Final = 512  # up to so many combinations, all are tried
SAMPLED: Final = 224  # of more, besides the regular ones

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A stretch of the disk that is judged on its own, in sectors."""

    name: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Write:
    """A sector on its way: `weight` is what it adds to the digest of its area."""

    sector: int
    data: bytes
    area: str
    weight: int


@dataclass(slots=True)
class _Pending:
    writes: list[Write]
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A state in which a power cut can leave the machine.

    Attributes:
        digests: of each area of the disk.
        landed: the sectors that got there since what is durable.
        files: the state folder.
        variables: of the firmware.
    """

    digests: Mapping[str, int]
    landed: tuple[Write, ...]
    files: Files
    variables: Files


class Disk:
    """The sectors: what is durable, and what is under way."""

    def __init__(self, image: bytes, areas: Iterable[Area]) -> None:
        self._base = bytes(image)
        self.durable = bytearray(image)
        self.changed: dict[int, bytes] = {}  # durable sectors that are not as in the beginning
        self.view = bytearray(image)
        self._owner: dict[int, str] = {}
        self._areas = {
            sector: area.name
            for area in areas
            for sector in range(area.first, area.first + area.count)
        }
        self.digests = dict.fromkeys(self._areas.values(), 0)
        self._order: list[Write] = []
        self._hashes: dict[tuple[int, bytes], int] = {}

    def write(self, sector: int, data: bytes, owner: str) -> None:
        """Put a sector on its way."""
        at = sector * SECTOR
        if self.view[at : at + SECTOR] == data:
            return
        self.view[at : at + SECTOR] = data
        self._owner[sector] = owner
        weight = self._hash(sector, data) - self._hash(sector, self._kept(sector))
        self._order.append(Write(sector, data, self._areas[sector], weight))

    def flush(self, *owners: str) -> None:
        """Make durable what these owners wrote; an owner that ends in `*` is all of that prefix."""
        left = []
        for write in self._order:
            if any(_names(owner, self._owner[write.sector]) for owner in owners):
                self._settle(write)
            else:
                left.append(write)
        self._order = left

    def landings(self, chance: random.Random, *, effort: int = 1) -> Iterator[tuple[Write, ...]]:
        """Yield what may have landed, as all combinations or a fair sample of them."""
        choices: dict[int, list[Write | None]] = {}
        for write in self._order:
            choices.setdefault(write.sector, [None]).append(write)
        if math.prod(len(some) for some in choices.values()) <= EXHAUSTIVE * effort:
            for chosen in itertools.product(*choices.values()):
                yield tuple(write for write in chosen if write)
            return
        yield from _regular(self._order)
        for _ in range(SAMPLED * effort):
            share = chance.choice((0.1, 0.5, 0.9))
            picked = [chance.choice(some) for some in choices.values() if chance.random() < share]
            yield tuple(write for write in picked if write)

    @contextmanager
    def after(self, landed: tuple[Write, ...]) -> Iterator[bytearray]:
        """Lend the whole disk as a cut leaves it; it is undone afterwards."""
        for write in landed:
            at = write.sector * SECTOR
            self.durable[at : at + SECTOR] = write.data
        try:
            yield self.durable
        finally:
            for write in landed:
                at = write.sector * SECTOR
                self.durable[at : at + SECTOR] = self._kept(write.sector)

    def _kept(self, sector: int) -> bytes:
        kept = self.changed.get(sector)
        return self._base[sector * SECTOR : (sector + 1) * SECTOR] if kept is None else kept

    def _settle(self, write: Write) -> None:
        at = write.sector * SECTOR
        before = self._kept(write.sector)
        self.digests[write.area] += self._hash(write.sector, write.data)
        self.digests[write.area] -= self._hash(write.sector, before)
        self.durable[at : at + SECTOR] = write.data
        self.changed[write.sector] = write.data

    def _hash(self, sector: int, data: bytes) -> int:
        key = (sector, data)
        found = self._hashes.get(key)
        if found is None:
            digest = hashlib.blake2b(data, digest_size=16, salt=sector.to_bytes(8, "big")).digest()
            found = self._hashes[key] = int.from_bytes(digest, "big")
        return found


def _regular(writes: list[Write]) -> Iterator[tuple[Write, ...]]:
    """Yield every prefix, every suffix, each write alone, and all but each."""
    for cut in range(len(writes) + 1):
        yield _latest(writes[:cut])  # in order
    for cut in range(1, len(writes)):
        yield _latest(writes[cut:])  # the first ones are late
    for at, write in enumerate(writes):
        yield (write,)
        yield _latest(writes[:at] + writes[at + 1 :])


def _latest(writes: Iterable[Write]) -> tuple[Write, ...]:
    """Return the last write of each sector."""
    return tuple({write.sector: write for write in writes}.values())


def _names(pattern: str, owner: str) -> bool:
    return owner.startswith(pattern[:-1]) if pattern.endswith("*") else owner == pattern


@dataclass
class StateFolder:
    """What the state folder may hold after a cut: one of some contents, the durable one first."""

    contents: list[tuple[Files, frozenset[str]]]

    def change(self, event: Event) -> None:
        """Take what the folder holds after a change."""
        now = (event.files, event.soft)
        if self.contents[-1] != now:
            self.contents.append(now)

    def flush(self) -> None:
        """Make all of it durable."""
        del self.contents[:-1]

    def alternatives(self) -> Iterator[Files]:
        """Yield each content that may be found; what was never flushed also as empty."""
        for files, soft in self.contents:
            yield files
            if soft:
                yield {name: b"" if name in soft else data for name, data in files.items()}


_FLUSHED: Final[Mapping[str, Callable[[str], tuple[str, ...]]]] = {
    "sync-file": lambda name: (f"data {name}",),
    "sync-folder": lambda name: (f"folder {name}",),
    "sync-all": lambda _name: ("data *", "folder *", "map"),
}
"""What each flush of the loader's partition makes durable, by the names that `fat.py` gives."""


@dataclass(kw_only=True)
class Machine:
    """Lives through what was recorded, and stops at each instant to say what a cut would leave.

    Attributes:
        disk: the sectors.
        fat: the driver of the loader's partition.
        fat_at: the sector at which that partition begins.
        state: the state folder.
        variables: of the firmware.
    """

    disk: Disk
    fat: Fat
    fat_at: int
    state: StateFolder
    variables: dict[str, bytes] = field(default_factory=dict)
    effort: int = 1

    def cuts(self, log: Iterable[Event], chance: random.Random) -> Iterator[Cut]:
        """Take every event; yield what a cut before each flush can leave, and at the end."""
        for event in log:
            if event.what.startswith("sync"):
                yield from self.now(chance)
            self.take(event)
        yield from self.now(chance)

    def now(self, chance: random.Random) -> Iterator[Cut]:
        """Yield each state that a cut at this instant can leave."""
        alternatives = list(self.state.alternatives())
        variables = dict(self.variables)
        for landed in self.disk.landings(chance, effort=self.effort):
            digests = dict(self.disk.digests)
            for write in landed:
                digests[write.area] += write.weight
            for files in alternatives:
                yield Cut(digests=digests, landed=landed, files=files, variables=variables)

    def take(self, event: Event) -> None:
        """Let one event happen."""
        match event.where:
            case "disk":
                self._disk(event)
            case "boot":
                self._boot(event)
            case "state":
                self.state.change(event)
                if event.what.startswith("sync"):
                    self.state.flush()
            case "variables":
                self._variable(event)
            case _:
                pass

    def _disk(self, event: Event) -> None:
        owner = f"raw {event.stream}"
        if event.what == "sync-file":
            self.disk.flush(owner)
        elif event.what == "write":
            for sector, data in _sectors(self.disk.view, event.offset, event.data):
                self.disk.write(sector, data, owner)

    def _boot(self, event: Event) -> None:
        name = event.name
        if event.what.startswith("sync"):
            self.disk.flush(*_FLUSHED[event.what](name))
            return
        fat = self.fat
        changes: Mapping[str, Callable[[], None]] = {
            "create": lambda: fat.create(name),
            "mkdir": lambda: fat.mkdir(name),
            "write": lambda: fat.write(name, event.offset, event.data),
            "resize": lambda: fat.resize(name, event.offset),
            "remove": lambda: fat.remove(name),
            "release": lambda: fat.release(name),
            "remove-folder": lambda: fat.remove_folder(name),
            "rename": lambda: fat.rename(name, event.other),
        }
        changes[event.what]()
        self.dirty(fat.changed())

    def dirty(self, sectors: Iterable[Dirty]) -> None:
        """Put what the driver changed on its way."""
        for one in sectors:
            self.disk.write(self.fat_at + one.sector, one.data, one.owner)

    def _variable(self, event: Event) -> None:
        if event.what == "write":  # the firmware writes one variable at once
            self.variables[event.name] = event.data
        elif event.what == "remove":
            self.variables.pop(event.name, None)


def _sectors(view: bytearray, offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a write into whole sectors; what it leaves of the first and last stays."""
    begin, end = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
    whole = bytearray(view[begin * SECTOR : end * SECTOR])
    whole[offset - begin * SECTOR : offset - begin * SECTOR + len(data)] = data
    for number in range(begin, end):
        at = (number - begin) * SECTOR
        yield number, bytes(whole[at : at + SECTOR])
