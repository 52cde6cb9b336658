"""What Prometheus may know of a node: one snapshot of facts to the text that it reads. No I/O.

Text exposition format 0.0.4. Times are Unix seconds, and a fact that is not known has no sample.
Writing the text is `metrics_file`'s work. Each metric is documented in docs/operating-a-node.md,
held by a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from updater.gates import GateVerdict
from updater.lifecycle import State
from updater.state import NodeState

PERMITS: Final = ("none", "held", "unknown")
ROLLED_BACK: Final = "rolled-back"  # denied by a person, not because it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A node at one time.

    Attributes:
        memory: what it remembers.
        slot, version: what is booted; the version is empty when the image does not say.
        confirmed: whether the loader has the booted slot as good.
        gates: the verdicts before a reboot.
        downloaded_bytes: fetched for the update under way, all attempts together.
        denied: each version that is refused here, and the code of why.
        events_waiting: events that the server has not been told yet.
        next_check: when, as far as it is known.
    """

    memory: NodeState
    slot: str
    version: str
    confirmed: bool
    gates: Sequence[GateVerdict]
    downloaded_bytes: int
    denied: Mapping[str, str]
    events_waiting: int
    next_check: datetime | None


@dataclass(frozen=True, slots=True)
class _Sample:
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Gauge:
    """One metric: everything here goes up and down, or is a time."""

    name: str
    meaning: str
    samples: Sequence[_Sample]


def render(snapshot: Snapshot) -> str:
    """Return the facts as Prometheus reads them."""
    return "".join(f"{line}\n" for gauge in _gauges(snapshot) for line in _lines(gauge))


def _gauges(of: Snapshot) -> Iterator[_Gauge]:
    memory = of.memory
    yield _Gauge(
        "bascule_state",
        "1 for the state of the lifecycle that the node is in, 0 for all others.",
        [_Sample(memory.state is state, {"state": state.value}) for state in State],
    )
    yield _Gauge(
        "bascule_booted_info",
        "The slot that runs and its version.",
        [_Sample(1, {"slot": of.slot, "version": of.version})],
    )
    yield _Gauge(
        "bascule_booted_confirmed", "1 when the booted slot is confirmed.", [_Sample(of.confirmed)]
    )
    yield from _update(of)
    yield from _checks(of)
    yield from _waiting(of)
    failed = sum(code != ROLLED_BACK for code in of.denied.values())
    yield _one("bascule_denied_versions", "Versions that are refused here.", len(of.denied))
    yield _one("bascule_failed_versions", "Those of them that failed here.", failed)
    if of.denied:
        yield _Gauge(
            "bascule_denied_info",
            "Each version that is refused here, and why.",
            [_Sample(1, {"version": one, "code": why}) for one, why in of.denied.items()],
        )
    yield _one("bascule_events_waiting", "Events that the server was not told.", of.events_waiting)


def _update(of: Snapshot) -> Iterator[_Gauge]:
    update = of.memory.update
    if update is None:
        return
    labels = {"slot": update.slot, "version": update.version}
    yield _Gauge("bascule_update_info", "The update under way or armed.", [_Sample(1, labels)])
    yield _one("bascule_update_size_bytes", "Size of its payload.", update.size)
    yield _one("bascule_update_downloaded_bytes", "Fetched, all attempts.", of.downloaded_bytes)
    yield _one("bascule_update_written_bytes", "Written to the slot.", update.written)
    yield _one("bascule_update_kept_bytes", "In the slot already, not written.", update.kept)


def _checks(of: Snapshot) -> Iterator[_Gauge]:
    memory = of.memory
    yield from _time("bascule_last_check", "When the last check ended.", memory.last_check)
    if memory.last_check_code:
        yield _info("bascule_last_check_info", "How it ended.", [memory.last_check_code])
    yield _one(
        "bascule_checks_failed", "Checks and installs that failed in a row.", memory.checks_failed
    )
    yield from _time("bascule_next_check", "When the next check is due.", of.next_check)


def _waiting(of: Snapshot) -> Iterator[_Gauge]:
    """What keeps the node from the next step: its own wait, gates, the permit."""
    memory = of.memory
    if memory.waiting_code:
        yield _info("bascule_waiting_info", "What the node waits for.", [memory.waiting_code])
    closed = [gate for gate in of.gates if not gate.is_open]
    yield _one("bascule_gates_closed", "Gates that keep an armed slot from booting.", len(closed))
    if closed:
        codes = dict.fromkeys(gate.code for gate in closed)
        yield _info("bascule_gate_closed_info", "Each closed gate.", codes)
    yield _Gauge(
        "bascule_permit",
        "1 for how it stands with the permit to reboot, 0 for the others.",
        [_Sample(memory.permit == permit, {"permit": permit}) for permit in PERMITS],
    )


def _one(name: str, meaning: str, value: float) -> _Gauge:
    return _Gauge(name, meaning, [_Sample(value)])


def _info(name: str, meaning: str, codes: Iterable[str]) -> _Gauge:
    return _Gauge(name, meaning, [_Sample(1, {"code": code}) for code in codes])


def _time(name: str, meaning: str, moment: datetime | None) -> Iterator[_Gauge]:
    if moment is not None:
        yield _one(f"{name}_timestamp_seconds", meaning, moment.timestamp())


def _lines(gauge: _Gauge) -> Iterator[str]:
    yield f"# HELP {gauge.name} {gauge.meaning}"
    yield f"# TYPE {gauge.name} gauge"
    for sample in gauge.samples:
        pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        yield (
            f"{gauge.name}{{{pairs}}} {_number(sample.value)}"
            if pairs
            else (f"{gauge.name} {_number(sample.value)}")
        )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
