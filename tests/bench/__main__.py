"""`make bench`: what bascule costs beside its peers, measured in turns on this machine.

    python -m tests.bench [--folder BENCH_DIR] [--rows install,delta,...] [--rounds N]

BENCH_DIR/images holds v1.KIND and v2.KIND (README.md here says how they are made); without
a folder a small pair is made of this machine's own files, and all is gone afterwards. What is made
once is kept in BENCH_DIR/art.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.bench import peers
from tests.bench.artefacts import ROOT, Artefacts
from tests.bench.figures import (
    VERDICT_HEAD,
    Section,
    report,
    section_text,
    table,
    verdict_rows,
)
from tests.bench.measure import GNU_TIME, CommandFailedError
from tests.bench.stand import Bench
from tests.bench.web import serve
from tests.bench.works import WORKS, make_all
from tests.sim.system_images import FILE_SYSTEMS, make_images, missing_program

SMALL_BYTES: Final = 48 * 1024 * 1024  # of files in v1
GIB: Final = 1024**3
REAL_BYTES: Final = 256 * 1024 * 1024  # an image below this is an example

HEAD: Final = """\
# Performance

Printed by `make bench` on {date}. {machine} {peers} {images}

Figures are medians of {rounds} rounds in which all took turns, or of one run where the table
shows no range. Ratios are bascule's figure by the other's of the same run, so less is better;
compare no seconds across runs or machines. bascule's rows are the engine's own path in a process of
its own, from the check of what a delta starts from to reading the slot back past the page cache,
and include starting Python. Partitions are loop devices over files of one disk, or these files
where there are none. MB are 10^6 bytes, MiB are 2^20."""
SMALL: Final = """

**The images are small: what starting a program costs outweighs the work. Give BENCH_DIR.**"""


def machine() -> str:
    """Describe this machine without naming it."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    known = {"sha_ni": "SHA instructions", "avx2": "AVX2"}
    has = [words for flag, words in known.items() if flags and f" {flag}" in flags[1]]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"Machine: {os.cpu_count()} cores ({platform.machine()}"
        f"{', with ' + ' and '.join(has) if has else ''}), {memory:.0f} GiB of memory, Linux "
        f"{kernel}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    )


def head(bench: Bench) -> str:
    """Return what stands above the tables."""
    versions = ", ".join(f"{name} {number}" for name, number in peers.versions().items())
    sizes = ", ".join(
        f"{kind} {bench.image('v2', kind).stat().st_size / 1e6:.0f} MB"
        for kind in FILE_SYSTEMS
        if bench.has(kind)
    )
    return HEAD.format(
        date=datetime.now(UTC).date(),
        machine=machine(),
        peers=f"Peers: {versions}; served by {bench.web.name}.",
        images=f"Images (v2): {sizes}.",
        rounds=bench.rounds,
    ) + (SMALL if bench.image("v2", "ext4").stat().st_size < REAL_BYTES else "")


def say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def place(given: Path | None) -> Iterator[Path]:
    """Give the folder of images and artefacts; make a small one where none was given."""
    if given is not None:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="bascule-bench-", dir="/var/tmp") as made:
        kinds = [kind for kind in FILE_SYSTEMS if not missing_program(kind)]
        say(f"making small images of this machine's files: {', '.join(kinds)}")
        make_images(Path(made) / "images", content_bytes=SMALL_BYTES, kinds=kinds)
        yield Path(made)


def measure(bench: Bench, rows: Sequence[str]) -> list[Section]:
    """Do the works, and print each as soon as it is done."""
    sections: list[Section] = []
    for name in rows:
        say(f"{name}: {WORKS[name].words}")
        try:
            done = WORKS[name].do(bench)
        except CommandFailedError as error:
            done = Section(title=name, about=f"Not measured: {error}.")
        for section in done if isinstance(done, list) else [done]:
            sections.append(section)
            print(f"\n{section_text(section)}\n", flush=True)
    print(table(VERDICT_HEAD, verdict_rows(sections)))
    return sections


def run(arguments: argparse.Namespace) -> None:
    with place(arguments.folder) as folder:
        art, scratch = folder / "art", folder / "run"
        for made in (art, scratch):
            made.mkdir(parents=True, exist_ok=True)
        with serve(art, scratch / "web") as web:
            artefacts = Artefacts(
                folder=art, scratch=scratch, keep=arguments.keep, say=say,
                makes=not arguments.no_make,
            )  # fmt: skip
            bench = Bench(
                images=folder / "images", art=art, scratch=scratch, artefacts=artefacts, web=web,
                rounds=arguments.rounds,
            )  # fmt: skip
            if arguments.make_only:
                make_all(bench)
                return
            sections = measure(bench, arguments.rows)
            text = report(sections, head=head(bench))
        shutil.rmtree(scratch)
    output = arguments.output or output_of(arguments)
    output.parent.mkdir(exist_ok=True)
    output.write_text(text)
    say(f"written: {output}")


def output_of(arguments: argparse.Namespace) -> Path:
    """Return where the report goes: to the docs when it has all rows, of images that were given."""
    whole = set(arguments.rows) == set(WORKS) and arguments.folder is not None
    return ROOT / ("docs" if whole else "build") / "performance.md"


def rows_of(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}")
    return names or list(WORKS)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="make bench", description="Measure bascule and its peers.")
    made.add_argument("--folder", type=Path, help="has images/, gets art/")
    made.add_argument("--rows", type=rows_of, default=list(WORKS), help=", ".join(WORKS))
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--keep", action="store_true", help="take artefacts of an earlier builder")
    made.add_argument("--no-make", action="store_true", help="leave out what is not made yet")
    made.add_argument("--make-only", action="store_true", help="make artefacts, measure nothing")
    made.add_argument("--output", type=Path, help="where the report goes")
    return made


if __name__ == "__main__":
    if not Path(GNU_TIME).exists():
        sys.exit(f"{GNU_TIME} is needed (Debian: time)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # devices and servers are given back
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT)
    run(parser().parse_args())
