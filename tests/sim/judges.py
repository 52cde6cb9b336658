"""Says of a cut whether exactly one whole, verified system would boot from it, and who agrees.

The loader's model boots every one of them, again and again until nothing changes any more. Other
people's programs look at each table, each FAT and each verified image that is not like another.
"""

from __future__ import annotations

import hashlib
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
from tests.sim.crash_world import ESP_BYTES, SEEDS, CrashWorld, places_in
from tests.sim.fat import SECTOR, read_tree
from tests.sim.gpt_tools import program

BOOTS_MAX: Final = 16  # until the tries of both slots are used up
FAILURES_MAX: Final = 10  # more of them teach nothing


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


class Judge:
    """Judges the cuts of one world's disk; it remembers each area that it has seen."""

    def __init__(self, world: CrashWorld, disk: Disk, tally: Tally, *, tools_max: int) -> None:
        self._world = world
        self._disk = disk
        self.tally = tally
        self._tools_max = tools_max
        self._layout = world.layout
        self._esp_at = world.esp_at
        self._areas = world.areas()
        self._slots = {area.name: area for area in self._areas if area.name.startswith("slot")}
        self._size = world.images["1.0.0"].stat().st_size
        self._digests = {
            hashlib.sha256(image.read_bytes()).hexdigest(): version
            for version, image in world.images.items()
        }
        self.allowed: frozenset[str] = frozenset()
        self._folder = world.folder / "judge"
        self._trees: dict[int, tuple[Mapping[str, bytes], str]] = {}
        self._memories: dict[object, Memory] = {}
        self._contents: dict[tuple[str, int], str] = {}
        self._seen: set[object] = set()
        self._bones: set[str] = set()
        self._tables: set[int] = set()

    def judge(self, cut: Cut) -> tuple[object, ...] | None:
        """Judge a cut; returns what kind of state it is, or None when it was seen before."""
        self.tally.states += 1
        key = (*sorted(cut.digests.items()), *sorted(cut.variables.items()))
        state = hash(tuple(sorted(cut.files.items())))
        if (key, state) in self._seen:
            return None
        self._seen.add((key, state))
        self.tally.distinct += 1
        with self._disk.after(cut.landed) as image:
            memory = self._memory(cut, image)
            if key not in self._seen:
                self._seen.add(key)
                self._look(cut, image, memory)
        versions = tuple(self._content(slot, cut, None) for slot in Slot)
        return (memory, versions, state)

    def _look(self, cut: Cut, image: bytearray, memory: Memory) -> None:
        """Judge what lies on the disk."""
        if memory.words:
            self.tally.fail(memory.words)
            return
        for slot in dict.fromkeys((*memory.chain, *memory.armed)):
            if not self._content(slot, cut, image):
                what = "boots" if slot in memory.chain else "may boot"
                self.tally.fail(f"slot {slot.value} {what} and holds no whole system")
        first = memory.chain[0]
        version = self._content(first, cut, image)
        if version and version not in self.allowed:
            may = " or ".join(sorted(self.allowed))
            self.tally.fail(f"slot {first.value} boots and holds {version}, not {may}")

    def _content(self, slot: Slot, cut: Cut, image: bytearray | None) -> str:
        """Return the version whose bytes a slot holds, or nothing when they are not whole."""
        name = f"slot {slot.value}"
        key = (name, cut.digests[name])
        if key not in self._contents:
            if image is None:
                return "?"
            at = self._slots[name].first * SECTOR
            held = bytes(image[at : at + self._size])
            version = self._digests.get(hashlib.sha256(held).hexdigest(), "")
            if version:
                self._verify(held, version)
            self._contents[key] = version
        return self._contents[key]

    def _verify(self, held: bytes, version: str) -> None:
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

    def _memory(self, cut: Cut, image: bytearray) -> Memory:
        tree, summary = self._tree(cut, image)
        table = cut.digests["gpt"]
        key = (table, summary, *sorted(cut.variables.items()))
        if key not in self._memories:
            self._memories[key] = self._boot(cut, image, tree)
        return self._memories[key]

    def _tree(self, cut: Cut, image: bytearray) -> tuple[Mapping[str, bytes], str]:
        digest = cut.digests["esp"]
        if digest not in self._trees:
            esp = image[self._esp_at : self._esp_at + ESP_BYTES]
            tree = read_tree(esp)
            whole = hashlib.sha256()
            for name, content in sorted(tree.files.items()):
                whole.update(f"{name}\0{len(content)}\0".encode() + content)
            self._trees[digest] = (tree.files, whole.hexdigest())
            bones = hashlib.sha256(tree.bones).hexdigest()
            if bones not in self._bones and len(self._bones) < self._tools_max:
                self._bones.add(bones)
                self._ask_fsck(bytes(esp), tree.files)
        return self._trees[digest]

    def _boot(self, cut: Cut, image: bytearray, tree: Mapping[str, bytes]) -> Memory:
        """Let the loader's model boot until nothing changes."""
        self._lay_out(image, tree, cut.variables)
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
        SEEDS[self._world.boot_control](self._folder)
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

    def _ask_fsck(self, esp: bytes, files: Mapping[str, bytes]) -> None:
        """Let fsck.vfat look; what it finds it must be able to mend without losing a file."""
        self.tally.fsck += 1
        self._folder.mkdir(exist_ok=True)
        path = self._folder / "esp.img"
        path.write_bytes(esp)
        said = mend(path)
        if "share clusters" in said:
            self.tally.fail(f"fsck.vfat: cross-linked: {said}")
        mended = read_tree(path.read_bytes()).files
        lost = [name for name in files if files[name] and mended.get(name) != files[name]]
        self.lost(lost, said)

    def lost(self, names: list[str], said: str) -> None:
        """Judge which files the mending may have cost."""
        if names:
            self.tally.fail(f"fsck.vfat loses {names}: {said}")


def mend(path: Path) -> str:
    """Let fsck.vfat mend a file system as at boot; returns what it said.

    Raises:
        AssertionError: it is not clean afterwards.
    """
    tool = program("fsck.vfat")
    said = subprocess.run(
        [tool, "-a", "-w", str(path)], check=False, capture_output=True, text=True
    )
    again = subprocess.run([tool, "-n", str(path)], check=False, capture_output=True, text=True)
    assert again.returncode == 0, f"not mended: {said.stdout}{said.stderr} then {again.stdout}"
    return said.stdout + said.stderr


def lay_out(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files below a folder; a zero byte in front of the content makes it a link."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith(b"\0"):
            path.symlink_to(content[1:].decode())
        else:
            path.write_bytes(content)
