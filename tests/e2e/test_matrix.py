"""Every file system, every pair of versions, every way: the slot is the image, byte for byte.

Four file systems, v1 to v2, v2 to v3, v3 to v1 (a downgrade is a pair like any other here), by
pairwise delta, any-to-any and in full; and the same with the engine's process killed at random
moments, and another one that goes on. The engine is that of `tests.bench.install_once`, the mirror
a real web server. Images are small here; with BENCH_DIR, a folder of real ones (tests/bench), the
slow tests do the same with what payloads lie in BENCH_DIR/art.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from typing_extensions import override

from images.build import build
from images.delta import build_delta
from tests.bench.facts import describe
from tests.bench.partition import Partition, file_digest, partition
from tests.bench.web import Web, serve
from tests.sim.payloads import key
from tests.sim.system_images import FILE_SYSTEMS, PAIRS, VERSIONS, make_images, missing_program
from updater.state import Store

pytestmark = pytest.mark.e2e

CONTENT_BYTES = 2_000_000  # of files in v1 of the small images
KILLS = 20  # of a pair of real images, of a small file system: all ways together
LIMIT_SECS = 3600.0  # of a cell; squashfs deltas took 1350 while other work had most of the CPU
POLL_SECS = 0.02  # between two looks at how much is flushed


class Way(Enum):
    """How v2 comes to a node that runs v1."""

    DELTA = "delta"
    ANY = "any-to-any"
    FULL = "full"


@dataclass(frozen=True)
class Cell:
    kind: str
    old: str
    new: str
    way: Way

    @property
    def third(self) -> str:
        """The version that is neither: what the passive slot holds."""
        return next(version for version in VERSIONS if version not in {self.old, self.new})

    @override
    def __str__(self) -> str:
        return f"{self.kind}-{self.old}-{self.new}-{self.way.value}"


def cells(kind: str) -> list[Cell]:
    return [Cell(kind, old, new, way) for old, new in PAIRS for way in Way]


ALL = [cell for kind in FILE_SYSTEMS for cell in cells(kind)]


@dataclass
class Stock:
    """Images, payloads and where installs happen.

    Attributes:
        images: the folder of v1.ext4 and so on.
        art: the folder of payloads.
        scratch: for targets and state.
        checkpoint_kib: how often an install flushes.
        loop: slots are loop devices where that can be, else files.
    """

    images: Path
    art: Path
    scratch: Path
    web: Web
    engine: subprocess.Popen[str]
    checkpoint_kib: int
    loop: bool

    def image(self, version: str, kind: str) -> Path:
        return self.images / f"{version}.{kind}"

    def payload(self, cell: Cell) -> Path:
        if cell.way is Way.DELTA:
            return self.art / f"{cell.old}-{cell.new}.{cell.kind}.delta.crau"
        return self.art / f"{cell.new}.{cell.kind}.crau"

    @contextlib.contextmanager
    def slots(self, cell: Cell) -> Iterator[tuple[Partition, Partition]]:
        """Make a booted slot with the old version, and a passive one with the third."""
        images = [self.image(version, cell.kind) for version in VERSIONS]
        size = max(image.stat().st_size for image in images)
        with ExitStack() as stack:
            booted = stack.enter_context(self._slot("booted", size))
            passive = stack.enter_context(self._slot("passive", size))
            booted.fill(self.image(cell.old, cell.kind))
            yield booted, passive

    def _slot(self, name: str, size: int) -> AbstractContextManager[Partition]:
        return partition(self.scratch / f"{name}.img", size, loop=self.loop)

    def begin(self, cell: Cell, passive: Partition) -> Path:
        """Let the passive slot hold another version, and forget all journals."""
        state = self.scratch / "state"
        shutil.rmtree(state, ignore_errors=True)
        passive.fill(self.image(cell.third, cell.kind))
        return state

    def start(self, cell: Cell, booted: Partition, passive: Partition, state: Path) -> int:
        """Start an engine process; return its id."""
        words = [f"{self.web.url}/{self.payload(cell).name}", str(passive.path)]
        words += ["--booted", str(booted.path), "--state", str(state)]
        words += ["--checkpoint-kib", str(self.checkpoint_kib)]
        words += ["--no-reuse"] if cell.way is Way.FULL else []
        assert self.engine.stdin is not None
        self.engine.stdin.write(json.dumps(words) + "\n")
        self.engine.stdin.flush()
        return int(self._line())

    def ended(self) -> float | None:
        """Wait for the end of the process; return the seconds it took, None when it was killed."""
        took = 0.0
        while True:
            line = json.loads(self._line())
            if isinstance(line, dict):
                took = line["wall"]
                continue
            assert line in {0, -signal.SIGKILL}, f"the engine ended with status {line}"
            return took if line == 0 else None

    def _line(self) -> str:
        assert self.engine.stdout is not None
        line = self.engine.stdout.readline()
        assert line, "the engine's parent is gone"
        return line


@contextlib.contextmanager
def stock_of(
    images: Path, art: Path, scratch: Path, *, checkpoint_kib: int, loop: bool
) -> Iterator[Stock]:
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.install_once", "--forks"]
    engine = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    try:
        with serve(art, scratch / "web") as web:
            yield Stock(images, art, scratch, web, engine, checkpoint_kib, loop)
    finally:
        engine.communicate()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    folder = tmp_path_factory.mktemp("matrix")
    kinds = [kind for kind in FILE_SYSTEMS if not missing_program(kind)]
    make_images(folder / "images", content_bytes=CONTENT_BYTES, kinds=kinds)
    places = (folder / "images", folder / "art", folder / "run")
    with stock_of(*places, checkpoint_kib=16, loop=False) as stock:
        for kind in kinds:
            build_all(stock, kind)
        yield stock


def build_all(stock: Stock, kind: str) -> None:
    """Build the full payload of each version, each laid out after those before it, and deltas."""
    stock.art.mkdir(exist_ok=True)
    made: list[Path] = []
    for version in VERSIONS:
        output = stock.art / f"{version}.{kind}.crau"
        image = stock.image(version, kind)
        build([("usr", image)], output, keys=[key()], after=list(reversed(made)))
        made.append(output)
    for old, new in PAIRS:
        output = stock.art / f"{old}-{new}.{kind}.delta.crau"
        sources = {"usr": stock.image(old, kind)}
        build_delta([("usr", stock.image(new, kind))], sources, output, keys=[key()])
        made.append(output)
    for payload in made:
        describe(payload)


def install(cell: Cell, stock: Stock) -> float:
    """Install without a kill; return how long it took, in seconds."""
    with stock.slots(cell) as (booted, passive):
        state = stock.begin(cell, passive)
        stock.web.mark()
        stock.start(cell, booted, passive, state)
        took = stock.ended()
        assert took is not None
        check(stock, passive, cell.new, cell.kind)
        check(stock, booted, cell.old, cell.kind)
    print(f"{cell}: fetched {stock.web.sent()} bytes, {took:.1f} s")
    return took


def check(stock: Stock, slot: Partition, version: str, kind: str) -> None:
    image = stock.image(version, kind)
    assert slot.digest(image.stat().st_size) == digest_of(image), f"this is not {image.name}"


@functools.cache  # an image does not change; reading a real one takes seconds
def digest_of(image: Path) -> str:
    return file_digest(image)


def killed(cell: Cell, stock: Stock, chance: random.Random, kills: int, whole_secs: float) -> None:
    """Install with kills: an install that is done before its kill begins anew.

    Every other kill waits for time, every other for a share of the payload to be flushed, and a
    little more: most of the time of an any-to-any install passes before its first byte, so that
    time alone would leave out its rest. What a whole one takes is learnt again from each that no
    kill interrupted: a machine that was busy with something else the first time would have most
    kills come too late.
    """
    deadline = time.monotonic() + LIMIT_SECS
    size = stock.payload(cell).stat().st_size
    flushed: list[int] = []  # percent of the payload that was behind each kill

    def share() -> float:
        journal = Store(state).read_journal()
        return journal.spared / size if journal is not None else 0.0

    stock.web.mark()
    with stock.slots(cell) as (booted, passive):
        state, unbroken = stock.begin(cell, passive), True
        while len(flushed) < kills:
            assert time.monotonic() < deadline, f"{cell}: killed at {flushed} percent alone"
            process = stock.start(cell, booted, passive, state)
            if len(flushed) % 2:
                wait_for_share(chance.uniform(share(), 1.0), share, process)
                time.sleep(chance.uniform(0.0, whole_secs / 10))
            else:
                time.sleep(chance.uniform(0.0, whole_secs))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            took = stock.ended()
            if took is not None:
                check(stock, passive, cell.new, cell.kind)
                whole_secs = min(whole_secs, took) if unbroken else whole_secs
                state, unbroken = stock.begin(cell, passive), True
            else:
                unbroken = False
                flushed.append(round(100 * share()))
        stock.start(cell, booted, passive, state)
        assert stock.ended() is not None
        check(stock, passive, cell.new, cell.kind)
        check(stock, booted, cell.old, cell.kind)  # it was filled once: no install wrote to it
    print(f"{cell}: {kills} kills at {flushed} percent, fetched {stock.web.sent()} bytes in all")


def wait_for_share(wanted: float, share: Callable[[], float], process: int) -> None:
    """Wait until so much of the payload is flushed, or the process is no more."""
    with contextlib.suppress(ProcessLookupError):
        while share() < wanted:
            os.kill(process, 0)
            time.sleep(POLL_SECS)


def needs(kind: str) -> None:
    if program := missing_program(kind):
        pytest.skip(f"{program} is not installed")


def new_chance() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed={seed}")  # shown when the test fails
    return random.Random(seed)


@pytest.mark.parametrize("cell", ALL, ids=str)
def test_the_slot_is_the_image(small: Stock, cell: Cell) -> None:
    needs(cell.kind)
    install(cell, small)


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_the_slot_is_the_image_after_kills(small: Stock, kind: str) -> None:
    needs(kind)
    chance, every = new_chance(), cells(kind)
    whole_secs = install(every[0], small)
    for cell in every:
        killed(cell, small, chance, -(-KILLS // len(every)), whole_secs)


@pytest.fixture(scope="module")
def real() -> Iterator[Stock]:
    if "BENCH_DIR" not in os.environ:
        pytest.skip("BENCH_DIR names no folder of images: see tests/bench/README.md")
    folder = Path(os.environ["BENCH_DIR"]).resolve()
    scratch = folder / "matrix-run"
    places = (folder / "images", folder / "art", scratch)
    with stock_of(*places, checkpoint_kib=8 * 1024, loop=True) as stock:
        yield stock
    shutil.rmtree(scratch)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ALL, ids=str)
def test_the_slot_is_the_real_image_after_kills(real: Stock, cell: Cell) -> None:
    payload = real.payload(cell)
    if not payload.exists():
        pytest.skip(f"{payload.name} is not there")
    describe(payload)
    chance = new_chance()
    whole_secs = install(cell, real)
    killed(cell, real, chance, -(-KILLS // len(Way)), whole_secs)
