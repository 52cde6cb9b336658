"""How far an install is, for whoever looks; lost at every boot, written without a flush."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

MIN_PAUSE_SECS: Final = 0.5  # at most two writes a second
FILE_NAME: Final = "progress.json"
PROGRESS_MAX_BYTES: Final = 4096


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is.

    Attributes:
        version: what is being installed.
        done, size: payload bytes.
        downloaded: bytes fetched, all attempts together.
    """

    version: str
    done: int
    size: int
    downloaded: int = 0


class ProgressFile:
    """Progress as a file in the run folder. Failing to write it is nobody's trouble."""

    def __init__(self, folder: Path, monotonic: Callable[[], float]) -> None:
        self._path = folder / FILE_NAME
        self._monotonic = monotonic
        self._last = float("-inf")

    def show(self, progress: Progress) -> None:
        """Write it, unless the last time was a moment ago."""
        now = self._monotonic()
        if now - self._last < MIN_PAUSE_SECS and progress.done < progress.size:
            return
        self._last = now
        draft = self._path.with_suffix(".draft")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(progress))
            draft.replace(self._path)

    def read(self) -> Progress | None:
        """Return the last one shown in this boot, None when there is none."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(PROGRESS_MAX_BYTES), type=Progress)
        except (OSError, msgspec.MsgspecError):
            return None

    def clear(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
