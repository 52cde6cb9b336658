"""The works by name, and what they need made before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.bench import full_installs, pairwise
from tests.bench.figures import Section
from tests.bench.stand import FILE_SYSTEMS, PUBLISHED, SMALLEST, Bench, bound_of


@dataclass(frozen=True)
class Work:
    """One of the rows: what it does, and in words."""

    do: Callable[[Bench], Section | list[Section]]
    words: str


WORKS: Final[Mapping[str, Work]] = {
    "install": Work(full_installs.install, "full install beside swupdate, rauc, Python, a pipe"),
    "delta": Work(pairwise.delta, "sizes of pairwise deltas, cost of making"),
    "apply": Work(pairwise.apply, "installing pairwise deltas beside xdelta3"),
    "any": Work(full_installs.any_to_any, "any version to any"),
    "size": Work(pairwise.size, "full payloads beside zstd -19"),
    "written": Work(full_installs.written, "bytes that reach the disk"),
}


def make_all(bench: Bench) -> None:
    """Make what the rows need but for the peers' bundles, so that a timed run makes nothing."""
    bench.zstd("v2", "ext4", PUBLISHED)
    for kind in FILE_SYSTEMS:
        if bench.has(kind):
            bench.delta(kind)
            pairwise.patches(bench, kind, {})
    for kind in ("ext4", "erofs"):
        if bench.has(kind):
            bench.full("v2", kind)
            bench.zstd("v2", kind, SMALLEST)
            bound_of(bench, kind)
