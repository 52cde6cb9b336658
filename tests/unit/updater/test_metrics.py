from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from updater.gates import GateVerdict
from updater.lifecycle import State
from updater.metrics import Snapshot, render
from updater.state import NodeState, Update

NOW: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
IDLE: Final = Snapshot(
    memory=NodeState(permit="none"),
    slot="a",
    version="1.0.0",
    confirmed=True,
    gates=(),
    downloaded_bytes=0,
    denied={},
    events_waiting=0,
    next_check=None,
)
ARMED: Final = msgspec.structs.replace(
    IDLE.memory,
    state=State.ARMED,
    permit="held",
    update=Update(
        version="2.0.0", rollback_index=2, previous_version="1.0.0", slot="b", began=NOW, size=5000
    ),
    last_check=NOW,
    last_check_code="up-to-date",
    checks_failed=3,
    waiting_code="window-closed",
)
BUSY: Final = Snapshot(
    memory=ARMED,
    slot="a",
    version="1.0.0",
    confirmed=False,
    gates=(
        GateVerdict(code="rollout", sentence="", is_open=True),
        GateVerdict(code="window-closed", sentence="", is_open=False),
        GateVerdict(code="hold", sentence="", is_open=False),
    ),
    downloaded_bytes=1234,
    denied={"2.0.0": "trial-unhealthy", "2.1.0": "rolled-back", "2.2.0": "trial-reset"},
    events_waiting=7,
    next_check=NOW + timedelta(seconds=1.5),
)
OPERATING: Final = Path(__file__).parents[3] / "docs/operating-a-node.md"


def samples(snapshot: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the text as Prometheus's own client does."""
    found = {}
    for family in text_string_to_metric_families(render(snapshot)):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(snapshot: Snapshot, name: str, **labels: str) -> float | None:
    return samples(snapshot).get((f"bascule_{name}", frozenset(labels.items())))


@pytest.mark.parametrize("state", State)
def test_exactly_one_state_is_the_one(state: State) -> None:
    memory = msgspec.structs.replace(ARMED, state=state)
    found = samples(Snapshot(**{**_fields(BUSY), "memory": memory}))  # type: ignore[arg-type]  # as named
    states = {dict(key[1])["state"]: v for key, v in found.items() if key[0] == "bascule_state"}
    assert states == {other.value: float(other is state) for other in State}


def _fields(snapshot: Snapshot) -> dict[str, object]:
    return {name: getattr(snapshot, name) for name in Snapshot.__slots__}


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("booted_info", {"slot": "a", "version": "1.0.0"}, 1),
        ("booted_confirmed", {}, 0),
        ("update_info", {"slot": "b", "version": "2.0.0"}, 1),
        ("update_size_bytes", {}, 5000),
        ("update_downloaded_bytes", {}, 1234),
        ("last_check_timestamp_seconds", {}, NOW.timestamp()),
        ("last_check_info", {"code": "up-to-date"}, 1),
        ("checks_failed", {}, 3),
        ("next_check_timestamp_seconds", {}, NOW.timestamp() + 1.5),
        ("waiting_info", {"code": "window-closed"}, 1),
        ("gates_closed", {}, 2),
        ("gate_closed_info", {"code": "window-closed"}, 1),
        ("gate_closed_info", {"code": "hold"}, 1),
        ("gate_closed_info", {"code": "rollout"}, None),
        ("permit", {"permit": "held"}, 1),
        ("permit", {"permit": "none"}, 0),
        ("permit", {"permit": "unknown"}, 0),
        ("denied_versions", {}, 3),
        ("denied_info", {"version": "2.2.0", "code": "trial-reset"}, 1),
        ("failed_versions", {}, 2),
        ("events_waiting", {}, 7),
    ],
)
def test_a_fact_is_a_sample(name: str, labels: dict[str, str], expected: float | None) -> None:
    assert value(BUSY, name, **labels) == expected


@pytest.mark.parametrize("name", ["update", "last_check", "next_check", "waiting", "gate_closed"])
def test_what_is_not_known_has_no_sample(name: str) -> None:
    assert not [key for key in samples(IDLE) if key[0].startswith(f"bascule_{name}_")]


def test_what_is_counted_is_there_also_when_it_is_none() -> None:
    for name in ("gates_closed", "denied_versions", "failed_versions", "events_waiting"):
        assert value(IDLE, name) == 0


@given(st.text(max_size=20))
def test_a_version_is_told_as_it_is_whatever_is_in_it(version: str) -> None:
    text = version.replace("\r", "").encode(errors="ignore").decode()
    snapshot = Snapshot(**{**_fields(IDLE), "version": text})  # type: ignore[arg-type]  # as named
    assert value(snapshot, "booted_info", slot="a", version=text) == 1


def test_every_metric_is_documented_and_every_documented_one_is_there() -> None:
    import re

    documented = set(re.findall(r"`(bascule_[a-z_]+)(?:\{[a-z,]+\})?`", OPERATING.read_text()))
    assert {name for name, _ in samples(BUSY)} == documented
