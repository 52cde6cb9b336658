"""Pairwise deltas and full payloads as files, and deltas as they are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from tests.bench import peers
from tests.bench.artefacts import Made
from tests.bench.figures import OURS, Line, Section, Verdict, megabytes, number
from tests.bench.judging import median_of, memory, or_why, secs, sizes
from tests.bench.measure import CommandFailedError
from tests.bench.rounds import Competitor, compete
from tests.bench.stand import FILE_SYSTEMS, SMALLEST, Bench, long_of, window_of

PATCHED: Final = "xdelta3 -9 -S none"
SECOND: Final = "xdelta3 -9 -S lzma"
COST_HEAD: Final = ("", "file", "MB", "of xdelta3's", "made in CPU s", "wall s", "peak MiB")


def delta(bench: Bench) -> Section:
    """Pairwise deltas v1 to v2: sizes and what making them cost."""
    rows: list[Sequence[str]] = [COST_HEAD]
    verdicts: list[Verdict] = []
    left_out = {kind: "no images of it" for kind in FILE_SYSTEMS if not bench.has(kind)}
    for kind in FILE_SYSTEMS:
        if not bench.has(kind):
            continue
        try:
            ours = bench.delta(kind)
        except CommandFailedError as error:
            left_out[kind] = str(error)
            continue
        found = patches(bench, kind, left_out)
        theirs = found.get(PATCHED)
        for name, made in {OURS: ours, **found}.items():
            rows.append(cost_row(kind, name, made, theirs))
        if theirs is not None:
            work = f"delta v1→v2, {kind}"
            verdicts.append(sizes(work, ours.size, theirs.size, "xdelta3 -9", 0.65))
            if kind == "ext4":
                aim = sizes(work, ours.size, theirs.size, "xdelta3 -9", 0.35, figure="bytes, aim")
                verdicts += [aim, *_making(ours, theirs)]
    return Section(
        title="Pairwise deltas: size and making",
        about="From v1 to v2 of each file system. Making is measured when a file is made, not in "
        "this run; a dash where somebody put the file there. xdelta3 has the whole old image as "
        "its window; its second compressor, lzma, is off in what ours is measured by, as in the "
        "figures that were to be reached, and on in a row of its own.",
        verdicts=verdicts,
        left_out=left_out,
        extra=rows,
    )


def patches(
    bench: Bench, kind: str, left_out: dict[str, str], *, applied: bool = False
) -> dict[str, Made]:
    """Return the peers' patches; with `applied` only those that are applied, too."""
    found: dict[str, Made] = {}
    makers: dict[str, Callable[[str], Made]] = {
        PATCHED: bench.xdelta3,
        SECOND: partial(bench.xdelta3, second="lzma"),
        "zstd -3 --patch-from": bench.zstd_patch,
    }
    if applied:
        del makers[SECOND]
    for name, make in makers.items():
        program = name.split()[0]
        if peers.missing(program):
            left_out[name] = f"{program} not installed"
            continue
        try:
            found[name] = make(kind)
        except CommandFailedError as error:
            left_out[f"{name}, {kind}"] = str(error)
    return found


def cost_row(kind: str, name: str, made: Made, beside: Made | None) -> list[str]:
    share = number(made.size / beside.size) if beside is not None else "-"
    cost = made.cost
    shown = f"**{name}**" if name == OURS else name
    if made.stale:
        shown += " (by an earlier state of the builder)"
    return [
        shown, kind, megabytes(made.size, 2), share,
        number(cost.cpu_secs if cost else None, 0),
        number(cost.wall_secs if cost else None, 0),
        number(cost.peak_mib if cost else None, 0),
    ]  # fmt: skip


def _making(ours: Made, theirs: Made) -> Iterator[Verdict]:
    if ours.cost is None:
        return
    if theirs.cost is not None:
        yield secs(
            "making the ext4 delta", "CPU", ours.cost.cpu_secs, theirs.cost.cpu_secs,
            "xdelta3 -9", 4.0,
        )  # fmt: skip
    yield Verdict(
        work="making the ext4 delta", figure="peak memory", ours=ours.cost.peak_mib, theirs=None,
        beside="the process", limit=1024.0, unit="MiB",
    )  # fmt: skip


def apply(bench: Bench) -> list[Section]:
    """Installing the pairwise deltas, beside xdelta3 and zstd."""
    return [
        or_why(f"Applying the {kind} delta", _applied, bench, kind)
        for kind in FILE_SYSTEMS
        if bench.has(kind)
    ]


def _applied(bench: Bench, kind: str) -> Section:
    image = bench.image("v2", kind)
    left_out: dict[str, str] = {}
    made, found = bench.delta(kind), patches(bench, kind, left_out, applied=True)
    with ExitStack() as stack:
        arena = stack.enter_context(bench.arena(image))
        booted = stack.enter_context(bench.booted(bench.image("v1", kind)))
        target = arena.target.path
        into = f"dd of={target} bs=4M iflag=fullblock oflag=direct conv=fsync,notrunc status=none"
        field_of = [
            bench.ours(
                "", made, target, booted.path,
                note="hashes the booted slot first, verifies every operation, reads back",
            )
        ]  # fmt: skip
        if patch := found.get(PATCHED):
            window = window_of(bench.image("v1", kind), image)
            field_of.append(
                Competitor(
                    name="xdelta3",
                    command=f"curl -sf {bench.url(patch.path)}"
                    f" | xdelta3 -d -c -B {window} -s {booted.path} | {into}",
                )
            )
        if patch := found.get("zstd -3 --patch-from"):
            long = long_of(bench.image("v1", kind), image)
            old = bench.image("v1", kind)  # zstd takes no device for a dictionary
            field_of.append(
                Competitor(
                    name="zstd --patch-from",
                    command=f"curl -sf {bench.url(patch.path)} | zstd -qdc --long={long}"
                    f" --memory=2048MB --patch-from={old} | {into}",
                    rounds=1,
                )
            )
        rounds = bench.rounds if kind == "ext4" else 1
        lines, failed = compete(field_of, rounds=rounds, arena=arena)
    return Section(
        title=f"Applying the {kind} delta",
        about=f"v1→v2, from a booted slot that holds v1, over HTTP into a partition that held "
        f"noise; {megabytes(image.stat().st_size)} MB.",
        lines=lines,
        verdicts=list(_apply_verdicts(lines)) if kind == "ext4" else [],
        left_out=left_out | failed,
    )


def _apply_verdicts(lines: Sequence[Line]) -> Iterator[Verdict]:
    ours, theirs = median_of(lines, OURS), median_of(lines, "xdelta3")
    if ours is None:
        return
    work = "applying the ext4 delta"
    if theirs is not None:
        yield secs(work, "wall", ours.wall_secs, theirs.wall_secs, "xdelta3", 0.4)
    yield from memory(work, ours)


def size(bench: Bench) -> Section:
    """What the layout for any-to-any costs in bytes."""
    rows: list[Sequence[str]] = [(*COST_HEAD[:3], "of zstd's", *COST_HEAD[4:])]
    verdicts, left_out = [], dict[str, str]()
    for kind in ("ext4", "erofs"):
        if not bench.has(kind):
            continue
        try:
            ours, whole = bench.full("v2", kind), bench.zstd("v2", kind, SMALLEST)
        except CommandFailedError as error:
            left_out[kind] = str(error)
            continue
        rows.append(cost_row(kind, OURS, ours, whole))
        rows.append(cost_row(kind, f"zstd -{SMALLEST}", whole, whole))
        work = f"full payload of v2.{kind}"
        verdicts.append(sizes(work, ours.size, whole.size, f"zstd -{SMALLEST}", 1.15))
    return Section(
        title="Size of full payloads",
        about="Ours with operations of 1 MiB, laid out by age after v1; zstd over the whole image.",
        verdicts=verdicts,
        left_out=left_out,
        extra=rows,
    )
