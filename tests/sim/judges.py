"""Says of a cut whether exactly one whole, verified system would boot from it, and who agrees.

The loader's model boots every one of them, again and again until nothing changes any more. Other
people's programs look at each table, each FAT and each verified image that is not like another.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from partitions.boot import open_boot_control, power_on
from partitions.errors import PartitionsError
from partitions.slots import Slot
from tests.sim.block import Cut, Disk
from tests.sim.crash_world import ESP_BYTES, LOADERS, CrashWorld, places_in
from tests.sim.fat import SECTOR, read_tree
from tests.sim.gpt_tools import program
from tests.sim.recorder import LINK

BOOTS_MAX: Final = 16  # until the tries of both slots are used up
FAILURES_MAX: Final = 10  # more of them teach nothing
ENTRIES: Final = "loader/entries/"  # those of systemd-boot come and go; another may be torn
MENDINGS_MAX: Final = 4  # the last one finds nothing
UNTOLD: Final = frozenset({"idle", "checking", "installing", "verifying"})  # states before ARMED
SLOTS: Final = "bascule/"  # where the slots' own files are, on the loader's partition


@dataclass(frozen=True, slots=True)
class Memory:
    """What the loader makes of a cut.

    Attributes:
        chain: the slots that it boots, one after the other, until nothing changes.
        armed: the slots that it may choose at all, as our keeper reads it.
        words: of the failure, when there is one.
    """

    chain: tuple[Slot, ...]
    armed: frozenset[Slot]
    words: str = ""


@dataclass
class Tally:
    """What was examined."""

    states: int = 0
    distinct: int = 0
    sgdisk: int = 0
    fsck: int = 0
    verity: int = 0
    recovered: int = 0
    went_on: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, words: str) -> None:
        """Note a failure."""
        if len(self.failures) < FAILURES_MAX:
            self.failures.append(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Esp:
    """What a firmware sees on the loader's partition.

    Attributes:
        files: all of them.
        summary: tells all that a loader looks at from something else: its own files, and whether
            each of the slots' is there.
        bones: tells one file system's tables and folders from another's.
    """

    files: Mapping[str, bytes]
    summary: str
    bones: str

    @classmethod
    def of(cls, image: bytes | bytearray) -> Esp:
        """Read a FAT."""
        tree = read_tree(image)
        seen = sorted(
            (name, bool(data) if name.startswith(SLOTS) else data)
            for name, data in tree.files.items()
        )
        return cls(
            files=tree.files,
            summary=hashlib.sha256(repr(seen).encode()).hexdigest(),
            bones=hashlib.sha256(tree.bones).hexdigest(),
        )

    @property
    def own(self) -> dict[str, bytes]:
        """The loader's own files that have been there from the beginning."""
        passing = (SLOTS, ENTRIES, "FSCK")
        return {name: data for name, data in self.files.items() if not name.startswith(passing)}


class Judge:
    """Judges the cuts of one world's disk; it remembers each area that it has seen.

    Attributes:
        allowed: the versions that may be what boots first.
    """

    def __init__(
        self,
        world: CrashWorld,
        disk: Disk,
        tally: Tally,
        *,
        allowed: frozenset[str],
        tools_max: int,
    ) -> None:
        self.tally = tally
        self.allowed = allowed
        self._world = world
        self._disk = disk
        self._tools_left = tools_max
        self._layout = world.layout
        self._esp_at = world.esp_at
        self._areas = world.areas()
        self._slots = {area.name: area for area in self._areas if area.name.startswith("slot")}
        self._size = world.images["1.0.0"].stat().st_size
        self._digests = {
            hashlib.sha256(image.read_bytes()).hexdigest(): version
            for version, image in world.images.items()
        }
        self._expected = {
            (version, slot): world.boot_files(version, slot)
            for version in world.images
            for slot in Slot
        }
        self._folder = world.folder / "judge"
        self._esps: dict[int, Esp] = {}
        self._memories: dict[object, Memory] = {}
        self._contents: dict[tuple[str, int], str] = {}
        self._seen: dict[object, tuple[object, ...]] = {}
        self._states: set[object] = set()
        self._bones: set[str] = set()
        self._taken_back: set[str] = set()
        self._tables: set[int] = set()

    def judge(self, cut: Cut) -> tuple[object, ...] | None:
        """Judge a cut; returns what kind of disk it leaves, or None when it was seen before."""
        self.tally.states += 1
        disk = (*sorted(cut.digests.items()), *sorted(cut.variables.items()))
        state = (disk, hash(tuple(sorted(cut.files.items()))))
        if state in self._states:
            return None
        self._states.add(state)
        self.tally.distinct += 1
        if disk not in self._seen:
            with self._disk.after(cut.landed) as image:
                self._seen[disk] = self._look(cut, image)
        if self._esps[cut.digests["esp"]].bones in self._taken_back:
            self._judge_taken_back(cut)
        return self._seen[disk]

    def _look(self, cut: Cut, image: bytearray) -> tuple[object, ...]:
        """Judge what lies on the disk."""
        esp = self._esp(cut, image)
        memory = self._memory(cut, image, esp)
        systems = {slot: self._system(slot, cut, image, esp) for slot in Slot}
        if memory.words:
            self.tally.fail(memory.words)
        else:
            self._judge_systems(memory, systems)
            if esp.bones not in self._bones and self._tools_left:
                self._bones.add(esp.bones)
                self._tools_left -= 1
                self._ask_others(cut, image, esp, memory)
        sizes = tuple((name, len(data)) for name, data in sorted(esp.files.items()))
        return (memory, *systems.values(), *self._contents_of(cut), sizes)

    def _contents_of(self, cut: Cut) -> tuple[str, ...]:
        return tuple(self._contents[name, cut.digests[name]] for name in self._slots)

    def _judge_systems(self, memory: Memory, systems: Mapping[Slot, str]) -> None:
        for slot in dict.fromkeys((*memory.chain, *memory.armed)):
            if not systems[slot]:
                what = "boots" if slot in memory.chain else "may boot"
                self.tally.fail(f"slot {slot.value} {what} and holds no whole system")
        first = memory.chain[0]
        if systems[first] and systems[first] not in self.allowed:
            may = " or ".join(sorted(self.allowed))
            self.tally.fail(f"slot {first.value} boots and holds {systems[first]}, not {may}")

    def _system(self, slot: Slot, cut: Cut, image: bytearray, esp: Esp) -> str:
        """Return the version that a slot is, partition and files, or nothing."""
        version = self._content(slot, cut, image)
        files = self._expected.get((version, slot), {})
        whole = all(esp.files.get(name) == data for name, data in files.items())
        return version if whole else ""

    def _content(self, slot: Slot, cut: Cut, image: bytearray) -> str:
        """Return the version whose image a slot's partition holds, or nothing."""
        name = f"slot {slot.value}"
        key = (name, cut.digests[name])
        if key not in self._contents:
            at = self._slots[name].first * SECTOR
            held = bytes(image[at : at + self._size])
            version = self._digests.get(hashlib.sha256(held).hexdigest(), "")
            if version:
                self._ask_veritysetup(held, version)
            self._contents[key] = version
        return self._contents[key]

    def _esp(self, cut: Cut, image: bytearray) -> Esp:
        digest = cut.digests["esp"]
        if digest not in self._esps:
            self._esps[digest] = Esp.of(image[self._esp_at : self._esp_at + ESP_BYTES])
        return self._esps[digest]

    def _memory(self, cut: Cut, image: bytearray, esp: Esp) -> Memory:
        key = (cut.digests["gpt"], esp.summary, *sorted(cut.variables.items()))
        if key not in self._memories:
            self._memories[key] = self._boot(cut, image, esp)
        return self._memories[key]

    def _boot(self, cut: Cut, image: bytearray, esp: Esp) -> Memory:
        """Let the loader's model boot until nothing changes."""
        self._lay_out(image, esp.files, cut.variables)
        if cut.digests["gpt"] not in self._tables:
            self._tables.add(cut.digests["gpt"])
            self._ask_sgdisk()
        places = places_in(self._folder, self._layout)
        chain: list[Slot] = []
        try:
            state = open_boot_control(self._world.boot_control, places).read()
            before = b""
            for _ in range(BOOTS_MAX):
                chain.append(power_on(self._world.boot_control, places))
                after = self._fingerprint()
                if after == before:
                    break
                before = after
            else:
                return Memory(tuple(chain), frozenset(), "the tries never end")
        except PartitionsError as error:
            return Memory(tuple(chain), frozenset(), f"nothing boots: {error.code}: {error}")
        if state.target is not chain[0]:
            words = f"the keeper reads target {state.target}, the loader boots {chain[0]}"
            return Memory(tuple(chain), frozenset(), words)
        armed = frozenset(slot for slot, one in state.slots.items() if one.armed)
        return Memory(tuple(chain), armed)

    def _lay_out(
        self, image: bytearray, tree: Mapping[str, bytes], variables: Mapping[str, bytes]
    ) -> None:
        """Put the loader's memory into files, as the model wants it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        LOADERS[self._world.kind].seed(self._folder)
        shutil.rmtree(self._folder / "boot", ignore_errors=True)
        lay_out(tree, self._folder / "boot")
        lay_out(variables, self._folder / "efivars")
        with (self._folder / "disk.img").open("wb") as file:
            for area in self._areas:
                if area.name == "gpt":
                    file.seek(area.first * SECTOR)
                    file.write(image[area.first * SECTOR : (area.first + area.count) * SECTOR])

    def _fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                digest.update(f"{path}\0".encode() + path.read_bytes())
        return digest.digest()

    def _ask_sgdisk(self) -> None:
        """Let sgdisk find the table; a copy of it may be damaged."""
        self.tally.sgdisk += 1
        disk = self._folder / "disk.img"
        done = subprocess.run(
            [program("sgdisk"), "-v", "-p", str(disk)], check=False, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        labels = ("ESP", "USR-A", "USR-B", "STATE")
        if "Creating new GPT" in said or not all(f" {label}\n" in said for label in labels):
            self.tally.fail(f"sgdisk finds no table: {said}")

    def _ask_veritysetup(self, held: bytes, version: str) -> None:
        """Let veritysetup look at an image that our digest calls whole."""
        self.tally.verity += 1
        path = self._folder / "slot.img"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(held)
        root = self._world.roots[version]
        offset = f"--hash-offset={self._world.image_size}"
        command = [program("veritysetup"), "verify", str(path), str(path), root, offset]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            self.tally.fail(f"veritysetup finds fault with {version}: {done.stderr}")

    def _ask_others(self, cut: Cut, image: bytearray, esp: Esp, memory: Memory) -> None:
        """Let mtools read what is needed, and fsck.vfat mend it without losing any of that."""
        self.tally.fsck += 1
        slot = memory.chain[0]
        version = self._system(slot, cut, image, esp)
        needed = [*esp.own, *self._expected.get((version, slot), {})]
        path = self._folder / "esp.img"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image[self._esp_at : self._esp_at + ESP_BYTES])
        self._ask_mtools(path, {name: esp.files[name] for name in needed})
        said = mend(path)
        if not all(name.lower().startswith(f"/{ENTRIES}") for name in cross_linked(said)):
            self.tally.fail(f"fsck.vfat: cross-linked: {said}")
        mended = Esp.of(path.read_bytes())
        after = self._memory(cut, image, mended)
        if takes_an_arming_back(memory, after):
            self._taken_back.add(esp.bones)
        elif after != memory:
            self.tally.fail(f"fsck.vfat makes {after} of {memory}: {said}")
        if self._system(slot, cut, image, mended) != version:
            self.tally.fail(f"fsck.vfat loses a file of slot {slot.value}: {said}")

    def _judge_taken_back(self, cut: Cut) -> None:
        """Let nobody have been told of an arming that fsck.vfat takes back."""
        state = json.loads(cut.files["state.json"])["state"]
        if state not in UNTOLD:
            self.tally.fail(f"fsck.vfat takes back what a node in state {state} relies on")

    def _ask_mtools(self, path: Path, needed: Mapping[str, bytes]) -> None:
        if not needed:
            return
        target = self._folder / "mtools"
        target.mkdir(exist_ok=True)
        sources = [f"::{name}" for name in needed]
        command = [program("mcopy"), "-n", "-o", "-i", str(path), *sources, str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        for name, content in needed.items():
            copy = target / Path(name).name
            if not copy.exists() or copy.read_bytes() != content:
                self.tally.fail(f"mtools read {name} otherwise: {done.stderr}")


def takes_an_arming_back(before: Memory, after: Memory) -> bool:
    """Tell whether mending only undoes an arming: the loader goes on to the slot it falls back to.

    A new entry of systemd-boot whose name is on the disk while its cluster is not yet taken is
    read by the loader and emptied by fsck.vfat. Nobody may have been told that it is armed, which
    comes after the flush of both: each state of the node beside such a disk is looked at.
    """
    trial, fallback = before.chain[0], before.chain[-1]
    return (
        trial is not fallback
        and set(after.chain) == {fallback}
        and after.armed == before.armed - {trial}
        and not after.words
    )


def cross_linked(said: str) -> list[str]:
    """Return the files that share clusters, as fsck.vfat said.

    Entries of systemd-boot may: the loader itself counts by renaming them, and that can be cut.
    """
    pairs = re.findall(r"^(/.+?) +and\n(/.+)\n  share clusters", said, flags=re.MULTILINE)
    return [name for pair in pairs for name in pair]


def mend(path: Path) -> str:
    """Let fsck.vfat mend a file system as at boot; returns what it said.

    What it leaves for its next run is a folder that was being made: it mends one thing at a time.

    Raises:
        AssertionError: it is not clean after `MENDINGS_MAX` boots.
    """
    tool = program("fsck.vfat")
    said = ""
    for _ in range(MENDINGS_MAX):
        done = subprocess.run(
            [tool, "-a", "-w", str(path)], check=False, capture_output=True, text=True
        )
        said += done.stdout + done.stderr
        if done.returncode == 0:
            return said
    raise AssertionError(f"not mended: {said}")


def lay_out(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files below a folder; `recorder.LINK` in front of the content makes it a link."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(LINK):
            path.symlink_to(content.removeprefix(LINK).decode())
        else:
            path.write_bytes(content)
