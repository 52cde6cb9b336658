from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from updater.lifecycle import State
from updater.progress import Progress
from updater.service_line import service_line
from updater.state import NodeState, Update

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
UPDATE = Update(
    version="2.0.0",
    rollback_index=2,
    previous_version="1.0.0",
    slot="b",
    began=NOW,
    size=512_000_000,
)
WAITING: dict[str, Any] = {"waiting_code": "window", "waiting_sentence": "opens Sun 02:00"}
CHECKED: dict[str, Any] = {"last_check_code": "up-to-date", "last_check_sentence": "nothing newer"}


@pytest.mark.parametrize(
    ("memory", "done", "line"),
    [
        (NodeState(), None, "idle"),
        (NodeState(**CHECKED), None, "idle, last check: nothing newer [up-to-date]"),
        (NodeState(state=State.CHECKING, **CHECKED), None, "checking"),
        (
            NodeState(state=State.INSTALLING, update=UPDATE),
            220_000_000,
            "installing 2.0.0: 43 % of 512.0 MB",
        ),
        (
            NodeState(state=State.INSTALLING, update=UPDATE),
            None,
            "installing 2.0.0: 0 % of 512.0 MB",
        ),
        (NodeState(state=State.VERIFYING, update=UPDATE), 512_000_000, "verifying 2.0.0"),
        (
            NodeState(state=State.ARMED, update=UPDATE, **WAITING),
            None,
            "armed 2.0.0, waiting: opens Sun 02:00 [window]",
        ),
    ],
)
def test_it_shows_state_progress_and_wait(memory: NodeState, done: int | None, line: str) -> None:
    progress = None if done is None else Progress(version="2.0.0", done=done, size=512_000_000)
    assert service_line(memory, progress) == line


def test_progress_of_another_version_is_not_shown() -> None:
    memory = NodeState(state=State.INSTALLING, update=UPDATE)
    old = Progress(version="1.9.0", done=512_000_000, size=512_000_000)
    assert service_line(memory, old) == "installing 2.0.0: 0 % of 512.0 MB"
