"""What a figure of ours is judged by, as values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tests.bench.figures import MB, Line, Sample, Section, Verdict
from tests.bench.measure import CommandFailedError
from tests.bench.stand import Bench

ABOVE_IDLE_MIB: Final = 64.0


def median_of(lines: Sequence[Line], name: str) -> Sample | None:
    return next((line.median for line in lines if line.name == name), None)


def secs(
    work: str, figure: str, ours: float | None, theirs: float | None, beside: str, limit: float
) -> Verdict:
    return Verdict(
        work=work, figure=figure, ours=ours or 0.0, theirs=theirs or 0.0, beside=beside,
        limit=limit, unit="s",
    )  # fmt: skip


def memory(work: str, ours: Sample) -> Iterator[Verdict]:
    if ours.above_idle_mib is not None:
        yield Verdict(
            work=work, figure="peak memory", ours=ours.above_idle_mib, theirs=None,
            beside="above the idle engine", limit=ABOVE_IDLE_MIB, unit="MiB",
        )  # fmt: skip


def sizes(
    work: str, ours: float, theirs: float, beside: str, limit: float, *, figure: str = "bytes"
) -> Verdict:
    return Verdict(
        work=work, figure=figure, ours=ours / MB, theirs=theirs / MB, beside=beside,
        limit=limit, unit="MB",
    )  # fmt: skip


def or_why(title: str, work: Callable[[Bench, str], Section], bench: Bench, kind: str) -> Section:
    """Do a work, or say in its place why it cannot be done."""
    try:
        return work(bench, kind)
    except CommandFailedError as error:
        return Section(title=title, about=f"Not measured: {error}.")
