"""The one line that `systemctl status bascule` shows: state, progress, what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater.lifecycle import State

if TYPE_CHECKING:
    from updater.progress import Progress
    from updater.state import NodeState


def service_line(memory: NodeState, progress: Progress | None) -> str:
    """Return state, version, progress and wait in one line.

    Args:
        memory: the node's memory.
        progress: how far the install is, None when that is not known.
    """
    version = f" {memory.update.version}" if memory.update else ""
    line = f"{memory.state.value}{version}{_how_far(memory, progress)}"
    if memory.waiting_code:
        return f"{line}, waiting: {memory.waiting_sentence} [{memory.waiting_code}]"
    if memory.state is State.IDLE and memory.last_check_code:
        said = memory.last_check_sentence or "done"
        return f"{line}, last check: {said} [{memory.last_check_code}]"
    return line


def _how_far(memory: NodeState, progress: Progress | None) -> str:
    update = memory.update
    if memory.state is not State.INSTALLING or update is None or not update.size:
        return ""
    is_current = progress is not None and progress.version == update.version
    done = progress.done if progress is not None and is_current else 0
    return f": {100 * done / update.size:.0f} % of {update.size / 1e6:.1f} MB"
