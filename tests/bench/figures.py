"""Figures as values: samples, medians, what is to be reached. Pure: no clock, no process.

A ratio is always ours by theirs, so less is better, and a figure to reach is the most it may be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

OURS: Final = "bascule"
MB: Final = 1_000_000
DASH: Final = "-"
FEW: Final = 10.0  # megabytes, below which a second digit tells something


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one run cost; None for what was not measured or does not apply.

    Attributes:
        wall_secs: from its start to the flushed target.
        cpu_secs: user and system time of all its processes.
        peak_mib: of its largest process, mapped files included.
        above_idle_mib: of ours, the peak less what the idle engine had.
        downloaded: bytes that the server sent.
        written: bytes that reached the target device.
    """

    wall_secs: float | None = None
    cpu_secs: float | None = None
    peak_mib: float | None = None
    above_idle_mib: float | None = None
    downloaded: float | None = None
    written: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One competitor, all rounds together: medians, and the range of its wall time."""

    name: str
    median: Sample
    wall_range: tuple[float, float] | None
    rounds: int
    note: str = ""


FIELDS: Final = (
    "wall_secs", "cpu_secs", "peak_mib", "above_idle_mib", "downloaded", "written",
)  # fmt: skip


def line_of(name: str, samples: Sequence[Sample], *, note: str = "") -> Line:
    """Return the medians of what was measured in every round."""

    def median(field: str) -> float | None:
        values = [getattr(sample, field) for sample in samples]
        return None if None in values or not values else statistics.median(values)

    walls = [sample.wall_secs for sample in samples if sample.wall_secs is not None]
    return Line(
        name=name,
        median=Sample(**{field: median(field) for field in FIELDS}),
        wall_range=(min(walls), max(walls)) if walls else None,
        rounds=len(samples),
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One figure of ours beside what it is measured by.

    Attributes:
        work: what was done.
        figure: which of its figures.
        ours, theirs: in `unit`; `theirs` is None where the limit stands for itself.
        beside: what `theirs` is.
        limit: the most that ours may be, in multiples of theirs, or in `unit`.
    """

    work: str
    figure: str
    ours: float
    theirs: float | None
    beside: str
    limit: float
    unit: str = ""

    @property
    def ratio(self) -> float:
        """Ours by theirs, or ours alone."""
        if self.theirs is None:
            return self.ours
        return self.ours / self.theirs if self.theirs else math.inf

    @property
    def reached(self) -> bool:
        """Whether ours is within the limit."""
        return self.ratio <= self.limit


@dataclass(frozen=True, kw_only=True)
class Section:
    """All that was measured of one work.

    Attributes:
        title: of the table.
        about: how it was measured, in a sentence or two.
        lines: the competitors.
        verdicts: against what is to be reached.
        left_out: names and reasons of what was not measured.
        extra: a table of its own, head first: sizes, costs of making.
    """

    title: str
    about: str
    lines: Sequence[Line] = ()
    verdicts: Sequence[Verdict] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    extra: Sequence[Sequence[str]] = ()


def number(value: float | None, digits: int = 2) -> str:
    """Return a figure as a table shows it."""
    return DASH if value is None else f"{value:.{digits}f}"


def megabytes(value: float | None, digits: int = 1) -> str:
    """Return bytes as megabytes."""
    return DASH if value is None else f"{value / MB:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = [":--" if not number else "--:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


VERDICT_HEAD: Final = ("work", "figure", "ratio", "to reach", "reached", "bascule", "beside")


def verdict_rows(sections: Sequence[Section]) -> list[list[str]]:
    """Return the rows of the first table: ratios, what is to be reached, both figures."""
    return [
        [
            verdict.work,
            verdict.figure,
            f"**{_ratio(verdict.ratio, verdict)}**",
            f"≤ {_ratio(verdict.limit, verdict)}",
            "yes" if verdict.reached else "no",
            _measured(verdict.ours, verdict.unit),
            f"{_measured(verdict.theirs, verdict.unit)} {verdict.beside}".strip()
            if verdict.theirs is not None
            else verdict.beside or DASH,
        ]
        for section in sections
        for verdict in section.verdicts
    ]


def _ratio(value: float, verdict: Verdict) -> str:
    """Return a multiple with as many digits as its limit needs, or a figure with its unit."""
    if verdict.theirs is None:
        return f"{value:.1f} {verdict.unit}".strip()
    digits = 4 if 1 < verdict.limit < 1.01 else 2
    return f"{value:.{digits}f}"


def _measured(value: float, unit: str) -> str:
    digits = 1 if unit in {"MB", "MiB"} and value >= FEW else 2
    return f"{value:.{digits}f} {unit}".strip()


LINE_HEAD: Final = (
    "", "wall s (range)", "CPU s", "peak MiB", "above idle MiB", "downloaded MB", "written MB",
)  # fmt: skip


def line_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Return the rows of a section's table, ours in bold."""
    return [
        [
            f"**{line.name}**" if line.name.startswith(OURS) else line.name,
            _wall(line),
            number(line.median.cpu_secs),
            number(line.median.peak_mib, 0),
            number(line.median.above_idle_mib, 1),
            megabytes(line.median.downloaded),
            megabytes(line.median.written),
        ]
        for line in lines
    ]


def _wall(line: Line) -> str:
    if line.median.wall_secs is None or line.wall_range is None:
        return DASH
    low, high = line.wall_range
    spread = f" ({low:.2f}-{high:.2f})" if line.rounds > 1 else ""
    return f"{line.median.wall_secs:.2f}{spread}"


def section_text(section: Section) -> str:
    """Return a section of the report, without its heading's level."""
    parts = [f"## {section.title}", section.about]
    if section.lines:
        parts.append(table(LINE_HEAD, line_rows(section.lines)))
    if section.extra[1:]:
        parts.append(table(section.extra[0], section.extra[1:]))
    notes = [f"* {line.name}: {line.note}." for line in section.lines if line.note]
    notes += [f"* Left out: {name}: {why}." for name, why in section.left_out.items()]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def report(sections: Sequence[Section], *, head: str) -> str:
    """Return docs/performance.md: what was to be reached first, then every table."""
    verdicts = verdict_rows(sections)
    first = [table(VERDICT_HEAD, verdicts)] if verdicts else []
    return "\n\n".join([head, *first, *map(section_text, sections)]) + "\n"
