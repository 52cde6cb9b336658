"""Whether a disk boots: asked of a model of its loader and of programs that are not ours.

For a state of the disk, the loader's model is switched on until it settles; each slot that it
would start on the way must be whole: kernel and initrd of one known version, read off the FAT by a
reader of our own, and a root that `veritysetup` verifies against the hash in that initrd. `sgdisk`
must read the table, the kernel find it, and `fsck.vfat -a` leave the boot files as they are.

States differ in a few sectors, so each question is asked once for each content of what it is about.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from partitions.boot import power_on
from partitions.errors import PartitionsError
from partitions.slots import Slot
from tests.e2e.boot.archive import tool
from tests.e2e.boot.fat import Fat, Found, Span
from tests.e2e.boot.loaders import COMMAND_LINE, Loader
from tests.e2e.boot.write_log import Medium
from tests.sim.gpt_disk import whole_copy

T = TypeVar("T")

TABLE_SECTORS: Final = 34  # protective MBR, header, 128 entries
POWER_ONS: Final = 20  # more than any loader counts tries
NO_VARIABLES: Final[Mapping[str, bytes]] = MappingProxyType({})
SMALL_FILE_BYTES: Final = 64 * 1024  # what a loader remembers by; kernels are larger


class BrickError(AssertionError):
    """A state that does not boot, or boots what is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What makes one version of the system, by digest.

    Attributes:
        name: the version.
        kernel, initrd: sha256 of the boot files.
        root_hash, data_blocks: of the verified root.
    """

    name: str
    kernel: str
    initrd: str
    root_hash: str
    data_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """Where the partitions are, as offset and size in bytes."""

    esp: Span
    roots: Mapping[Slot, Span]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a state does: what each power-on starts, without anybody confirming anything.

    Attributes:
        boots: slot and version, in order, until the loader settles.
    """

    boots: tuple[tuple[Slot, str], ...]


@dataclass
class Judge:
    """Judges states of one disk; keeps what it found out.

    Attributes:
        loader: what starts the machine.
        partitions: where things are.
        versions: that may boot.
        scratch: a folder for what other programs look at.
        asked: how often each program was run.
    """

    loader: Loader
    partitions: Partitions
    versions: Sequence[Version]
    scratch: Path
    asked: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[str, Hashable], object] = field(default_factory=dict)

    def judge(self, medium: Medium, variables: Mapping[str, bytes] = NO_VARIABLES) -> Verdict:
        """Return what a state boots.

        Args:
            medium: holds the state.
            variables: of the firmware at that moment, with their attributes.

        Raises:
            BrickError: it does not, or what it boots is not whole.
        """
        self._check_table(medium)
        fat = self._fat(medium)
        files = fat.files()
        small = {
            # Of kernels, loaders' models only see that they are there.
            name: fat.content(found) if found.size <= SMALL_FILE_BYTES else b"large"
            for name, found in files.items()
            if not found.is_folder
        }
        started = self._power_ons(medium, small, variables)
        versions = {
            slot: self._require_whole(medium, fat, files, slot) for slot in dict.fromkeys(started)
        }
        self._check_repair(medium, fat, files, set(versions))
        return Verdict(tuple((slot, versions[slot]) for slot in started))

    def _once(self, question: str, about: Hashable, answer: Callable[[], T]) -> T:
        key = (question, about)
        if key not in self._known:
            self.asked[question] = self.asked.get(question, 0) + 1
            try:
                self._known[key] = answer()
            except BrickError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, BrickError):
            raise known
        return known  # type: ignore[return-value]  # kept by question

    def _table_spans(self, medium: Medium) -> list[Span]:
        size = TABLE_SECTORS * 512
        return [(0, size), (medium.size - size, size)]

    def _check_table(self, medium: Medium) -> None:
        spans = self._table_spans(medium)
        about = tuple(medium.read(*span) for span in spans)
        self._once("sgdisk", about, lambda: self._ask_sgdisk(medium, spans))

    def _ask_sgdisk(self, medium: Medium, spans: Sequence[Span]) -> None:
        """Require what partitions programs and the kernel need to find the partitions."""
        head = medium.read(*spans[0])
        words = COMMAND_LINE.split()
        if "gpt" not in words and whole_copy(head, 512, 1) is None:
            raise BrickError("the kernel finds no partitions: the primary table is not whole")
        disk = self._materialise("table", medium, spans)
        said = _run("sgdisk", "-v", "-p", str(disk))
        rows = {
            row[3]: (int(row[1]) * 512, (int(row[2]) + 1 - int(row[1])) * 512)
            for row in re.finditer(r"^ +\d+ +(\d+) +(\d+) .* (\S+)$", said, re.MULTILINE)
        }
        wanted = {"esp": self.partitions.esp}
        wanted |= {f"root-{slot.value}": span for slot, span in self.partitions.roots.items()}
        for name, span in wanted.items():
            if rows.get(name) != span:
                raise BrickError(f"sgdisk finds {name} at {rows.get(name)}, not {span}: {said}")

    def _fat(self, medium: Medium) -> Fat:
        begin, _size = self.partitions.esp
        data = Fat.data_offset(medium.read(begin, 512))
        about = medium.digest(begin, data)
        return self._once("fat", about, lambda: Fat(lambda at, size: medium.read(begin + at, size)))

    def _power_ons(
        self, medium: Medium, small: Mapping[str, bytes], variables: Mapping[str, bytes]
    ) -> tuple[Slot, ...]:
        spans = self._table_spans(medium)
        about = (
            tuple(medium.read(*span) for span in spans),
            tuple(sorted(small.items())),
            tuple(sorted(variables.items())),
        )

        def boot() -> tuple[Slot, ...]:
            disk = self._materialise("firmware", medium, spans)
            places = self.loader.places(disk, self.scratch / "places", small, variables)
            try:
                return tuple(power_on(self.loader.boot_control, places) for _ in range(POWER_ONS))
            except PartitionsError as error:
                raise BrickError(f"nothing boots: {error}") from error

        return self._once("loader", about, boot)

    def _require_whole(
        self, medium: Medium, fat: Fat, files: Mapping[str, Found], slot: Slot
    ) -> str:
        """Return the version that a slot holds, when all of it is whole."""
        digests = [
            self._digest(medium, fat, files.get(f"bascule/{slot.value}/{name}"))
            for name in ("linux", "initrd")
        ]
        found = [one for one in self.versions if [one.kernel, one.initrd] == digests]
        if not found:
            raise BrickError(f"slot {slot.value} boots with unknown boot files {digests}")
        version = found[0]
        offset, size = self.partitions.roots[slot]
        about = (medium.digest(offset, size), version.root_hash)
        self._once("veritysetup", about, lambda: self._verify_root(medium, offset, version))
        return version.name

    def _digest(self, medium: Medium, fat: Fat, found: Found | None) -> str:
        if found is None:
            return "absent"
        begin = self.partitions.esp[0]
        pieces = tuple(medium.digest(begin + at, size) for at, size in found.spans)
        return self._once(
            "boot file",
            (pieces, found.spans, found.size),
            lambda: hashlib.sha256(fat.content(found)).hexdigest(),
        )

    def _verify_root(self, medium: Medium, offset: int, version: Version) -> None:
        blocks = version.data_blocks * 4096
        size = min(blocks + (blocks >> 6) + (1 << 20), self.partitions.roots[Slot.A][1])
        image = self.scratch / "root"
        image.write_bytes(medium.read(offset, size))
        command = ["veritysetup", "verify", str(image), str(image), version.root_hash]
        said = _run(*command, f"--hash-offset={blocks}", accept=range(256))
        if said.startswith("status 0\n"):
            return
        raise BrickError(f"the root of version {version.name} does not verify: {said}")

    def _check_repair(
        self, medium: Medium, fat: Fat, files: Mapping[str, Found], started: set[Slot]
    ) -> None:
        """Require that the repair at boot leaves the boot files of what boots as they are."""
        begin = self.partitions.esp[0]
        spans = fat.metadata()
        about = (tuple(medium.digest(begin + at, size) for at, size in spans), frozenset(started))
        names = [f"bascule/{slot.value}/{name}" for slot in started for name in ("linux", "initrd")]
        self._once("fsck.vfat", about, lambda: self._repair(medium, spans, names, files))

    def _repair(
        self,
        medium: Medium,
        spans: Sequence[Span],
        names: Sequence[str],
        files: Mapping[str, Found],
    ) -> None:
        begin, size = self.partitions.esp
        image = self.scratch / "esp"
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(size)
            for at, length in spans:
                file.seek(at)
                file.write(medium.read(begin + at, length))
        said = _run("fsck.vfat", "-a", str(image), accept=range(2))
        with image.open("rb") as file:
            left = Fat(lambda at, length: (file.seek(at), file.read(length))[1]).files()
        for name in names:
            if left.get(name) != files[name]:
                raise BrickError(f"fsck.vfat -a changes {name}: {said}")
        _run("fsck.vfat", "-n", str(image), accept=range(1))

    def _materialise(self, name: str, medium: Medium, spans: Sequence[Span]) -> Path:
        """Make a sparse file of the disk's size that holds only these spans."""
        path = self.scratch / name
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(medium.size)
            for at, size in spans:
                file.seek(at)
                file.write(medium.read(at, size))
        return path


def _run(name: str, *arguments: str, accept: range = range(1)) -> str:
    """Run a program and return its status and what it printed.

    Raises:
        BrickError: its status is none of those that are accepted.
    """
    done = subprocess.run(
        [tool(name), *arguments],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    said = f"status {done.returncode}\n{done.stdout}{done.stderr}"
    if done.returncode not in accept:
        raise BrickError(f"{name}: {said}")
    return said
