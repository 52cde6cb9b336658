"""Full installs, and installs of the full payload by nodes that hold some of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench import peers
from tests.bench.artefacts import Made
from tests.bench.figures import OURS, Line, Section, Verdict, megabytes
from tests.bench.judging import median_of, memory, or_why, secs, sizes
from tests.bench.partition import Partition
from tests.bench.rounds import OUR_NOTE, Arena, Competitor, compete
from tests.bench.stand import MIB, PUBLISHED, Bench, bound_of

BLOCK: Final = 4096
PARTS_ALONE: Final = 4  # rows of `peers.alone`


def install(bench: Bench) -> Section:
    """Full install of v2.ext4 over HTTP, beside swupdate, rauc, plain Python and a pipe."""
    image = bench.image("v2", "ext4")
    made, packed = bench.full("v2", "ext4"), bench.zstd("v2", "ext4", PUBLISHED)
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        arena = stack.enter_context(bench.arena(image))
        booted = stack.enter_context(bench.booted(bench.image("v1", "ext4")))
        url = bench.url(packed.path)
        ours = bench.ours(
            "", made, arena.target.path, None, "--no-reuse",
            note="verifies hashes and signature, keeps a journal, reads all of it back",
        )  # fmt: skip
        field_of = [
            ours,
            *_swupdate(bench, packed, arena, left_out),
            *_rauc(bench, image, arena, booted, left_out),
            peers.threads(url, arena.target.path, arena.sha256),
            peers.pipe(url, arena.target.path),
            *peers.alone(url, packed.path, image, arena.target.path),
        ]
        lines, failed = compete(field_of, rounds=bench.rounds, arena=arena)
    return Section(
        title="Full install",
        about=f"v2.ext4, {megabytes(image.stat().st_size)} MB, over HTTP into a partition that "
        f"held noise; the peers' file is packed by zstd -{PUBLISHED}. The bytes of every target "
        "are compared with the image afterwards, which is "
        "not timed. CPU is that of all processes on the node's side.",
        lines=lines,
        verdicts=list(_install_verdicts(lines)),
        left_out=left_out | failed,
    )


def _swupdate(
    bench: Bench, packed: Made, arena: Arena, left_out: dict[str, str]
) -> Iterator[Competitor]:
    lacks = peers.missing("swupdate", "cpio", "openssl")
    if lacks or not arena.target.is_device:
        left_out["swupdate"] = f"{lacks} not installed" if lacks else "no loop device"
        return
    keys = peers.certificates(bench.art / "keys" / "peers")
    link = bench.scratch / "target-device"
    link.unlink(missing_ok=True)
    link.symlink_to(arena.target.path)
    line = peers.swupdate_bundle(packed.path, link, keys, bench.scratch)
    made = bench.artefacts.make("v2.ext4.swu", line, images=[packed.path], maker=f"cpio {link}")
    yield peers.swupdate(bench.url(made.path), keys, bench.scratch)


def _rauc(
    bench: Bench, image: Path, arena: Arena, booted: Partition, left_out: dict[str, str]
) -> Iterator[Competitor]:
    lacks = peers.missing("rauc", "mksquashfs", "dbus-daemon", "openssl")
    if lacks or not arena.target.is_device:
        left_out["rauc"] = f"{lacks} not installed" if lacks else "no loop device"
        return
    keys = peers.certificates(bench.art / "keys" / "peers")
    line = peers.rauc_bundle(image, keys, bench.scratch)
    maker = f"rauc {peers.versions().get('rauc', '')}"
    made = bench.artefacts.make("v2.ext4.raucb", line, images=[image], maker=maker)
    rauc = peers.Rauc(
        folder=bench.scratch / "rauc", keys=keys, booted=booted.path, target=arena.target.path
    )
    yield rauc.competitor(bench.url(made.path))


def _install_verdicts(lines: Sequence[Line]) -> Iterator[Verdict]:
    work = "full install"
    ours = median_of(lines, OURS)
    if ours is None:
        return
    for name, limit in (("swupdate", 0.65), ("rauc", 0.3)):
        theirs = median_of(lines, name)
        if theirs is not None:
            yield secs(work, "wall", ours.wall_secs, theirs.wall_secs, name, limit)
    alone = [line.median.cpu_secs for line in lines if " alone " in line.name]
    if len(alone) == PARTS_ALONE:  # one that failed would make the sum of the others a wrong bound
        parts = sum(cpu for cpu in alone if cpu is not None)
        yield secs(work, "CPU", ours.cpu_secs, parts, "its parts alone, together", 1.3)
    yield from memory(work, ours)


def any_to_any(bench: Bench) -> list[Section]:
    """From v1 by the full payload of v2, beside the least that a block index fetches."""
    kinds = [kind for kind in ("ext4", "erofs") if bench.has(kind)]
    title = "Any version to any"
    from_v1 = [or_why(f"{title}: {kind}", _from_v1, bench, kind) for kind in kinds]
    return [*from_v1, _major_change(bench)]


def _from_v1(bench: Bench, kind: str) -> Section:
    image, old = bench.image("v2", kind), bench.image("v1", kind)
    made, bound = bench.full("v2", kind), bound_of(bench, kind)
    with ExitStack() as stack:
        arena = stack.enter_context(bench.arena(image))
        booted = stack.enter_context(bench.booted(old))
        ours = bench.ours("any-to-any", made, arena.target.path, booted.path)
        lines, failed = compete([ours], rounds=1 if kind != "ext4" else bench.rounds, arena=arena)
    fetched = median_of(lines, ours.name)
    work = f"any-to-any v1→v2, {kind}"
    verdicts = (
        [sizes(work, fetched.downloaded or 0, bound.fetched, "a block hash index", 0.85)]
        if fetched is not None
        else []
    )
    return Section(
        title=f"Any version to any: {kind}",
        about=f"The full payload of v2, {megabytes(made.size)} MB, on a node that runs v1, the "
        "passive slot full of noise. Beside it the least that RAUC's block hash index fetches: "
        f"{bound.blocks} hashes of 32 bytes, and each of the {bound.missing} blocks of 4 KiB that "
        f"v1 lacks as a zstd -{bound.level} frame of its own: {megabytes(bound.fetched)} MB.",
        lines=lines,
        verdicts=verdicts,
        left_out=failed,
    )


def _major_change(bench: Bench) -> Section:
    """The booted slot has nothing of the new image: what looking for it costs."""
    image, other = bench.image("v2", "ext4"), bench.image("v1", "squashfs")
    made = bench.full("v2", "ext4")
    if not other.exists():
        other = made.path  # as packed as the other, and nothing of the image is in it
    with ExitStack() as stack:
        arena = stack.enter_context(bench.arena(image))
        booted = stack.enter_context(bench.booted(other))
        ours = bench.ours("any-to-any", made, arena.target.path, booted.path)
        lines, failed = compete([ours], rounds=1, arena=arena)
    fetched = median_of(lines, ours.name)
    verdicts = []
    if fetched is not None:
        work = "any-to-any on a major change"
        verdicts.append(sizes(work, fetched.downloaded or 0, made.size, "the payload", 1.001))
    return Section(
        title="Any version to any: a major change",
        about="The full payload of v2.ext4 on a node whose booted slot holds packed content that "
        "has no block of it.",
        lines=lines,
        verdicts=verdicts,
        left_out=failed,
    )


def written(bench: Bench) -> Section:
    """What reaches the disk when the passive slot holds an older version."""
    image, old = bench.image("v2", "ext4"), bench.image("v1", "ext4")
    differ = differing_bytes(old, image)
    with ExitStack() as stack:
        arena = stack.enter_context(bench.arena(image))
        booted = stack.enter_context(bench.booted(old))
        target = arena.target.path
        field_of = [
            bench.ours("full", bench.full("v2", "ext4"), target, None, "--no-reuse", before=old),
            bench.ours("any-to-any", bench.full("v2", "ext4"), target, booted.path, before=old),
            bench.ours("delta", bench.delta("ext4"), target, booted.path, before=old),
        ]
        lines, failed = compete(field_of, rounds=1, arena=arena)
    verdicts = [
        sizes(f"written on v1→v2, {line.name}", line.median.written, differ, "that differ", 1.1)
        for line in lines
        if line.median.written is not None
    ]
    return Section(
        title="Bytes written over an older version",
        about="v2.ext4 on a passive slot that holds v1. "
        f"{megabytes(differ)} MB of its blocks of 4 KiB differ.",
        lines=[line for line in lines if OUR_NOTE not in line.name],
        verdicts=verdicts,
        left_out=failed,
    )


def differing_bytes(old: Path, new: Path) -> int:
    """Return the bytes of those blocks of `new` that are not in their place in `old`."""
    differ = 0
    with old.open("rb") as before, new.open("rb") as after:
        while now := after.read(MIB):
            then = before.read(len(now))
            if now == then:
                continue
            differ += sum(
                min(BLOCK, len(now) - at)
                for at in range(0, len(now), BLOCK)
                if now[at : at + BLOCK] != then[at : at + BLOCK]
            )
    return differ
