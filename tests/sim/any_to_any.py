"""Three versions of an image, their payloads laid out by age, and a disk to install them on."""

from __future__ import annotations

import functools
import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from backports import zstd

from images.build import build
from images.payload import Manifest
from images.reader import verify_file
from images.release import facts_of
from images.signing import load_public_keys
from partitions.booted import Booted
from partitions.slots import Region, Slot
from tests.sim.payload_server import Manners, PayloadServer
from tests.sim.payloads import key
from updater.download import Download, Patience
from updater.install import WrittenSlot, verify_slot, write_slot
from updater.plan import Plan
from updater.shelf import Shelf, shelf_of
from updater.shell import Shell
from updater.state import Journal, Store
from updater.trust.fetcher import open_session

BLOCK = 4096
BLOCKS = 1536  # of an image: 6 MiB


@functools.cache
def _common() -> bytes:
    return random.Random(5).randbytes(BLOCK - 400)


def blocks(count: int, seed: int) -> bytes:
    """Return different blocks that have most bytes in common, as files of one kind have."""
    chance = random.Random(seed)
    return b"".join(chance.randbytes(400) + _common() for _ in range(count))


def edited(image: bytes, seed: int, *, changed: int) -> bytes:
    """Return an image where some blocks are new, and half of it lies elsewhere."""
    chance = random.Random(seed)
    pieces = [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]
    for number in chance.sample(range(len(pieces)), changed):
        pieces[number] = blocks(1, seed * 100_000 + number)
    cut = len(pieces) // 2 + 3
    return b"".join(pieces[cut:] + pieces[:cut])


def first_image() -> bytes:
    return blocks(BLOCKS - 256, 1) + bytes(64 * BLOCK) + random.Random(2).randbytes(192 * BLOCK)


@dataclass(frozen=True)
class Versions:
    """Images and payloads, oldest first; each payload names those before it."""

    folder: Path
    images: tuple[bytes, ...]

    def payload(self, number: int) -> Path:
        return self.folder / f"v{number}.crau"

    def manifest(self, number: int) -> Manifest:
        return verify_file(self.payload(number), None).manifest

    @classmethod
    def make(cls, folder: Path) -> Versions:
        first = first_image()
        second = edited(first, 11, changed=120)
        third = edited(second, 12, changed=60)
        made = cls(folder, (first, second, third))
        for number, image in enumerate(made.images):
            made.build(number, image)
        return made

    def build(self, number: int, image: bytes, name: str | None = None) -> Path:
        source = self.folder / f"v{number}.img"
        source.write_bytes(image)
        output = self.folder / (name or f"v{number}.crau")
        after = [self.payload(earlier) for earlier in reversed(range(number))]
        build([("usr", source)], output, keys=[key()], after=after, workers=2)
        return output


def bound(old: bytes, new: bytes) -> int:
    """Return what a block hash index as RAUC's costs: 32 bytes a block, missing ones packed."""
    held = {old[at : at + BLOCK] for at in range(0, len(old), BLOCK)} | {bytes(BLOCK)}
    new_blocks = [new[at : at + BLOCK] for at in range(0, len(new), BLOCK)]
    missing = {block for block in new_blocks if block not in held}
    return 32 * len(new_blocks) + sum(len(zstd.compress(block, 19)) for block in missing)


@dataclass
class Disk:
    """A disk file with a booted and a passive slot, and a mirror with one payload.

    Attributes:
        noted: the journals that were kept, in order.
        done: what was told of the progress.
        store: the state folder that keeps metadata between attempts; None for none.
    """

    folder: Path
    payload: Path
    booted: bytes
    passive: bytes
    size: int = BLOCKS * BLOCK
    manners: Manners = field(default_factory=Manners)
    reuse: bool = True
    noted: list[Journal] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    store: Store | None = None

    def __post_init__(self) -> None:
        self.path = self.folder / "disk.img"
        self.path.write_bytes(
            self.booted.ljust(self.size, b"\xaa") + self.passive.ljust(self.size, b"\xbb")
        )
        self.sent = 0
        self.requests: list[str] = []

    def plan(self, **changes: object) -> Plan:
        facts = facts_of(
            self.payload,
            product="acme-os",
            board="amd64-usr",
            version="2.0.0",
            rollback_index=2,
            min_engine="0.1.0",
            created=datetime(2026, 1, 1, tzinfo=UTC),
        )
        data = self.payload.read_bytes()
        values: dict[str, object] = {
            "facts": facts,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "slot": Slot.B,
            "regions": {"usr": self.region("b", self.size)},
            "keys": load_public_keys(self._public_key()),
            "checkpoint_bytes": 64 * 1024,
            "booted": Booted.nothing(),
            "workers": 2,
            "sources": {"usr": self.region("a", 0)},
            "reuse": self.reuse,
        }
        return Plan(**(values | changes))  # type: ignore[arg-type]  # by name

    def region(self, label: str, offset: int) -> Region:
        return Region(path=self.path, offset=offset, size=self.size, partuuid=label, label=label)

    def _public_key(self) -> Path:
        from cryptography.hazmat.primitives import serialization

        path = self.folder / "key.pub.pem"
        path.write_bytes(
            key()
            .public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return path

    def install(self, next_operation: int = 0, plan: Plan | None = None) -> WrittenSlot:
        """Install over a real HTTP server; what it sent is added to `sent`."""
        plan = plan or self.plan()
        journal = Journal(sha256=plan.sha256, slot="b", next_operation=next_operation)
        stop = threading.Event()
        shelf = Shelf()
        if self.store is not None:
            shelf = shelf_of(self.store, plan.identity, begun=bool(self.requests))
        shell = Shell(
            keep_journal=self.noted.append, progress=self.done.append, stop=stop, shelf=shelf
        )
        with self._served() as mirror, self._download(mirror, plan, stop) as download:
            try:
                written = write_slot(plan, download, journal, shell)
            finally:
                self.sent += mirror.sent
                self.requests += mirror.requests
        verify_slot(written)
        return written

    @contextmanager
    def _served(self) -> Iterator[PayloadServer]:
        files = {"p": self.payload.read_bytes()}
        with PayloadServer(files=files, manners=self.manners) as mirror:
            yield mirror

    def _download(self, mirror: PayloadServer, plan: Plan, stop: threading.Event) -> Download:
        return Download(
            [f"{mirror.base}/p"],
            size=plan.size,
            session=open_session(),
            patience=Patience(idle_timeout_secs=30, retries=2, retry_delay_secs=0.001),
            monotonic=lambda: 0.0,
            stop=stop,
        )

    def content(self) -> bytes:
        return self.path.read_bytes()[self.size :]

    def spoil(self, places: Sequence[int], seed: int) -> None:
        """Write other bytes over blocks of the passive slot."""
        chance = random.Random(seed)
        with self.path.open("r+b") as file:
            for block in places:
                file.seek(self.size + block * BLOCK)
                file.write(chance.randbytes(BLOCK))
