"""Competitors take turns: A B C, A B C, … so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.figures import OURS, Line, Sample, line_of
from tests.bench.measure import CommandFailedError, process_cpu_secs, process_peak_mib, run
from tests.bench.partition import Partition
from tests.bench.web import Web

Service = Callable[[], AbstractContextManager[int | None]]
"""Starts what works for the command; gives its process id."""


class WrongBytesError(Exception):
    """A competitor said it was done, and the target is not the image."""


def no_service() -> AbstractContextManager[int | None]:
    """Start nothing."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """Something that installs an image, or does a part of it.

    Attributes:
        name: in the table; ours begins with `OURS`.
        command: words, or a line of shell.
        environment: besides this process's own.
        service: works for the command; its cost is added.
        installs: whether the target must be the image afterwards.
        before: what the target holds when it starts: an image, or noise.
        rounds: at most so many; the others are of everybody.
        note: for the report.
    """

    name: str
    command: str | Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    service: Service = no_service
    installs: bool = True
    before: Path | None = None
    rounds: int = 99
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Where they compete.

    Attributes:
        target: the partition.
        web: serves what they fetch.
        folder: for what measuring needs.
        say: told of each run.
        sha256, size: of the image that the target must hold.
    """

    target: Partition
    web: Web
    folder: Path
    say: Callable[[str], None]
    sha256: str
    size: int


OUR_NOTE: Final = "in the engine alone, without starting Python"


def compete(
    competitors: Sequence[Competitor], *, rounds: int, arena: Arena
) -> tuple[list[Line], dict[str, str]]:
    """Let all run in turns; return their medians, and who failed and why."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for one in competitors:
            if one.name in failed or number > one.rounds:
                continue
            try:
                sample, engine = measured(one, arena)
            except (CommandFailedError, WrongBytesError) as error:
                failed[one.name] = str(error)
                arena.say(f"{one.name}: {error}")
                continue
            samples[one.name].append(sample)
            samples[_engine_of(one)] += [engine] if engine else []
            arena.say(
                f"{number}/{rounds} {one.name}: {sample.wall_secs:.2f} s wall,"
                f" {sample.cpu_secs:.2f} s CPU"
            )
    return list(_lines(competitors, samples, failed)), failed


def _lines(
    competitors: Sequence[Competitor],
    samples: Mapping[str, Sequence[Sample]],
    failed: Mapping[str, str],
) -> Iterator[Line]:
    for one in competitors:
        if one.name in failed:
            continue
        yield line_of(one.name, samples[one.name], note=one.note)
        if samples.get(_engine_of(one)):
            yield line_of(_engine_of(one), samples[_engine_of(one)])


def _engine_of(one: Competitor) -> str:
    return f"{one.name}, {OUR_NOTE}"


def measured(one: Competitor, arena: Arena) -> tuple[Sample, Sample | None]:
    """Run a competitor once; also returns what our engine says of itself.

    Raises:
        CommandFailedError: it failed.
        WrongBytesError: the target is not the image.
    """
    if one.installs:
        arena.target.fill(one.before)
    os.sync()
    with one.service() as service:
        cpu_before = process_cpu_secs(service) if service else 0.0
        written = arena.target.written()
        arena.web.mark()
        began = time.monotonic()
        cost = run(one.command, folder=arena.folder, environment=one.environment)
        if one.installs:
            arena.target.forget()
        wall = time.monotonic() - began
        cpu, peak = cost.cpu_secs, cost.peak_mib
        if service:
            cpu += process_cpu_secs(service) - cpu_before
            peak = max(peak, process_peak_mib(service))
    if one.installs and arena.target.digest(arena.size) != arena.sha256:
        raise WrongBytesError("the target is not the image")
    after = arena.target.written()
    said = engine_says(cost.output) if one.name.startswith(OURS) else {}
    sample = Sample(
        wall_secs=wall,
        cpu_secs=cpu,
        peak_mib=peak,
        above_idle_mib=said.get("above_idle_mib"),
        downloaded=arena.web.sent(),
        written=after - written if after is not None and written is not None else None,
    )
    if "wall" not in said:
        return sample, None
    return sample, Sample(
        wall_secs=said["wall"], cpu_secs=said["cpu"], above_idle_mib=said["above_idle_mib"]
    )


def engine_says(output: str) -> dict[str, float]:
    """Return the figures in the last line of what `install_once` printed."""
    with contextlib.suppress(IndexError, json.JSONDecodeError):
        facts = json.loads(output.strip().splitlines()[-1])
        return {name: value for name, value in facts.items() if isinstance(value, float)}
    return {}
