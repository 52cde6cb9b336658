"""Progress for whoever waits at a terminal: a line that moves, or a line every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from updater.progress import Progress, ProgressFile

TERMINAL_PAUSE_SECS: Final = 0.5
LOG_PAUSE_SECS: Final = 5.0


@contextmanager
def shown_progress(progress: ProgressFile, stream: TextIO) -> Iterator[None]:
    """Show progress on `stream` until the block ends."""
    ended = threading.Event()
    moving = stream.isatty()
    pause = TERMINAL_PAUSE_SECS if moving else LOG_PAUSE_SECS

    def show() -> None:
        while not ended.wait(pause):
            seen = progress.read()
            if seen is not None:
                stream.write(f"\r{_line(seen)}\x1b[K" if moving else f"{_line(seen)}\n")
                stream.flush()

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if moving:
            stream.write("\r\x1b[K")


def redrawn(lines: Sequence[str], height: int) -> str:
    """Return what draws `lines` over the `height` lines that were drawn before."""
    up = f"\x1b[{height}A" if height else ""
    return up + "\r\x1b[J" + "\n".join(lines)


def bar(share: float, width: int = 30) -> str:
    """Return a bar that is `share` (0 to 1) full."""
    full = round(max(0.0, min(share, 1.0)) * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"


def _line(progress: Progress) -> str:
    share = progress.done / progress.size if progress.size else 0.0
    return f"installing {progress.version}: {share:4.0%} of {progress.size / 1e6:.1f} MB"
