"""Every state that a power cut could have left during a recording, judged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.boot.judge import NO_VARIABLES, BrickError, Judge, Verdict
from tests.e2e.boot.recording import Recording
from tests.e2e.boot.write_log import Flush, Medium, cut_states

BRICKS_KEPT = 20  # with their reasons; more are only counted


@dataclass
class Tally:
    """What was found.

    Attributes:
        states: how many were examined.
        distinct: how many of them differ from all others.
        kinds: how many of each kind.
        outcomes: how many boot what: `a 1.0.0`, or `b 2.0.0, then a 1.0.0` on trial.
        bricks: how many do not boot, or boot what is not whole.
        reasons: of the first bricks.
        asked: how often each other program was run.
    """

    states: int = 0
    distinct: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    bricks: int = 0
    reasons: list[str] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return it for a person."""
        return [
            f"states={self.states} distinct={self.distinct} bricks={self.bricks}",
            "  by kind: " + ", ".join(f"{kind} {count}" for kind, count in self.kinds.items()),
            "  boots: " + "; ".join(f"{what}: {count}" for what, count in self.outcomes.items()),
            "  asked: " + ", ".join(f"{name} {count}" for name, count in self.asked.items()),
            *(f"  BRICK {reason}" for reason in self.reasons),
        ]


def replay(
    recording: Recording,
    scratch: Path,
    *,
    seed: int = 1,
    sampled: int | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Judge every state, or a fair sample where there are too many.

    Args:
        recording: what happened.
        scratch: a folder for what other programs look at.
        seed: of the sample.
        sampled: random states between two flushes; the default is that of `cut_states`.
        told: called with the number of each state.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    medium = Medium(recording.base)
    judge = Judge(
        loader=recording.loader,
        partitions=recording.partitions,
        versions=recording.versions,
        scratch=scratch,
    )
    tally = Tally(asked=judge.asked)
    candidates = _variables_by_flush(recording)
    seen: set[bytes] = set()
    for state in cut_states(medium, recording.steps, random.Random(seed), sampled=sampled):
        for number, variables in enumerate(candidates[state.flushes]):
            tally.states += 1
            told(tally.states)
            seen.add(medium.digest() + bytes([number]))
            tally.kinds[state.kind] += 1
            try:
                tally.outcomes[_words(judge.judge(medium, variables))] += 1
            except BrickError as error:
                tally.bricks += 1
                if len(tally.reasons) < BRICKS_KEPT:
                    tally.reasons.append(f"{state}: {error}")
    tally.distinct = len(seen)
    if medium.digest() != Medium(recording.final).digest():
        raise AssertionError("the log does not lead to the disk as it is now")
    return tally


def _variables_by_flush(recording: Recording) -> list[list[Mapping[str, bytes]]]:
    """Return what the firmware's variables may have been, by how many flushes were complete."""
    found: list[list[Mapping[str, bytes]]] = []
    first = 0
    ends = [at for at, step in enumerate(recording.steps, 1) if isinstance(step, Flush)]
    for last in [*ends, len(recording.steps)]:
        possible = [
            period.values
            for period in recording.periods
            if period.first <= last and first <= period.last
        ]
        found.append(possible or [NO_VARIABLES])
        first = last
    return found


def flushes(recording: Recording) -> int:
    """Return how often the disk was told to make everything durable."""
    return sum(isinstance(step, Flush) for step in recording.steps)


def _words(verdict: Verdict) -> str:
    boots = dict.fromkeys(verdict.boots)
    return ", then ".join(f"{slot.value} {version}" for slot, version in boots)
