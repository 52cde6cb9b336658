"""Where every work of the benchmarks stands: images, artefacts, the server, the target."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.signing import keygen
from tests.bench import peers
from tests.bench.artefacts import Artefacts, Made, our_key
from tests.bench.block_bound import Bound
from tests.bench.facts import describe
from tests.bench.figures import OURS
from tests.bench.partition import Partition, file_digest, partition
from tests.bench.rounds import Arena, Competitor
from tests.bench.web import Web

FILE_SYSTEMS: Final = ("ext4", "erofs", "lz4.erofs", "squashfs")
MIB: Final = 1024 * 1024
SMALLEST: Final = 19  # zstd's level for the smallest file
PUBLISHED: Final = 12  # of what the peers fetch: the level of our payloads
IMAGE_COMMAND: Final = (sys.executable, "-m", "images.cli")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every work needs.

    Attributes:
        images: the folder of v1.ext4 and so on.
        art: artefacts; the web server serves this folder.
        scratch: of this run.
        artefacts: makes them.
        web: the server.
        rounds: how often everybody runs.
    """

    images: Path
    art: Path
    scratch: Path
    artefacts: Artefacts
    web: Web
    rounds: int

    def image(self, version: str, kind: str) -> Path:
        return self.images / f"{version}.{kind}"

    def has(self, kind: str) -> bool:
        return self.image("v1", kind).exists() and self.image("v2", kind).exists()

    def url(self, path: Path) -> str:
        return f"{self.web.url}/{path.name}"

    def key(self) -> Path:
        """Return the private key of our payloads, made once."""
        prefix = self.art / "keys" / "bench"
        private = prefix.with_name("bench.key.pem")
        if not private.exists():
            prefix.parent.mkdir(parents=True, exist_ok=True)
            keygen(prefix)
        return private

    def full(self, version: str, kind: str) -> Made:
        """Return our full payload of an image, laid out after the version before it."""
        image = self.image(version, kind)
        after = [self.full("v1", kind).path] if version == "v2" else []
        command = [*IMAGE_COMMAND, "build", "--partition", f"usr={image}", "--key",
                   str(self.key()), "--output", "{output}"]  # fmt: skip
        for earlier in after:
            command += ["--after", str(earlier)]
        return self._ours(f"{version}.{kind}.crau", command, [image])

    def delta(self, kind: str) -> Made:
        """Return our delta from v1 to v2."""
        old, new = self.image("v1", kind), self.image("v2", kind)
        command = [*IMAGE_COMMAND, "build", "--partition", f"usr={new}", "--source", f"usr={old}",
                   "--key", str(self.key()), "--output", "{output}"]  # fmt: skip
        return self._ours(f"v1-v2.{kind}.delta.crau", command, [old, new])

    def _ours(self, name: str, command: Sequence[str], images: Sequence[Path]) -> Made:
        made = self.artefacts.make(name, command, images=images, maker=our_key())
        describe(made.path)
        return made

    def zstd(self, version: str, kind: str, level: int) -> Made:
        """Return the image as one zstd file."""
        image = self.image(version, kind)
        command = f"zstd -q -f -T0 -{level} {image} -o {{output}}"
        maker = f"zstd {peers.versions().get('zstd', '')} -{level}"
        return self.artefacts.make(f"{image.name}.zst{level}", command, images=[image], maker=maker)

    def xdelta3(self, kind: str, *, second: str = "none") -> Made:
        """Return xdelta3's patch, with the whole old image as its window.

        `second` is the compressor that packs it once more: Debian's takes lzma when not told.
        """
        old, new = self.image("v1", kind), self.image("v2", kind)
        suffix = "xd" if second == "none" else f"xd-{second}"
        command = f"xdelta3 -e -9 -S {second} -f -B {window_of(old, new)} -s {old} {new} {{output}}"
        maker = f"xdelta3 {peers.versions().get('xdelta3', '')} -9 -S {second}"
        return self.artefacts.make(
            f"v1-v2.{kind}.{suffix}", command, images=[old, new], maker=maker
        )

    def zstd_patch(self, kind: str) -> Made:
        """Return zstd's patch."""
        old, new = self.image("v1", kind), self.image("v2", kind)
        command = f"zstd -q -f -3 --long={long_of(old, new)} --patch-from={old} {new} -o {{output}}"
        maker = f"zstd {peers.versions().get('zstd', '')} -3 --patch-from"
        return self.artefacts.make(
            f"v1-v2.{kind}.zstd-patch", command, images=[old, new], maker=maker
        )

    def ours(
        self, name: str, made: Made, target: Path, booted: Path | None, *words: str,
        before: Path | None = None, note: str = "", rounds: int = 99,
    ) -> Competitor:  # fmt: skip
        """Return our engine as it installs a payload."""
        command = [sys.executable, "-m", "tests.bench.install_once", self.url(made.path)]
        command += [str(target), *words]
        if booted is not None:
            command += ["--booted", str(booted)]
        return Competitor(
            name=f"{OURS} {name}".strip(), command=command, before=before, note=note, rounds=rounds
        )

    @contextmanager
    def arena(self, image: Path) -> Iterator[Arena]:
        """Make a target that fits every version of an image's file system."""
        kind = image.name.partition(".")[2]
        sizes = [path.stat().st_size for path in self.images.glob(f"v?.{kind}")]
        with partition(self.scratch / "target.img", max(sizes)) as target:
            yield Arena(
                target=target,
                web=self.web,
                folder=self.scratch,
                say=self.artefacts.say,
                sha256=file_digest(image),
                size=image.stat().st_size,
            )

    @contextmanager
    def booted(self, image: Path) -> Iterator[Partition]:
        """Make a partition that holds an image."""
        with partition(self.scratch / "booted.img", image.stat().st_size) as made:
            made.fill(image)
            yield made


def bound_of(bench: Bench, kind: str) -> Bound:
    """Return the bound of a pair, worked out once."""
    old, new = bench.image("v1", kind), bench.image("v2", kind)
    command = [sys.executable, "-m", "tests.bench.block_bound", str(old), str(new), "{output}"]
    made = bench.artefacts.make(f"v1-v2.{kind}.bound.json", command, images=[old, new], maker="1")
    return Bound(**json.loads(made.path.read_text()))


def window_of(*images: Path) -> int:
    """Return a power of two that holds the larger image, as xdelta3's source window."""
    largest = max(image.stat().st_size for image in images)
    return int(min(2**31, max(MIB, 1 << (largest - 1).bit_length())))


def long_of(*images: Path) -> int:
    return min(31, max(27, (2 * max(image.stat().st_size for image in images)).bit_length()))
