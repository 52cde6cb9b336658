"""Shows how far long work is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from images.reader import Progress

LINE_EVERY_SECONDS: Final = 5.0
_MIB: Final = 1024 * 1024


@contextlib.contextmanager
def shown(what: str, stream: TextIO, *, clock: Callable[[], float]) -> Iterator[Progress]:
    """Give a callback that shows the progress of `what` on `stream`.

    Args:
        what: one word, at the head of each line.
        stream: a bar is drawn when it is a terminal.
        clock: seconds that only grow.
    """
    if stream.isatty():
        with _bar(what, stream) as progress:
            yield progress
    else:
        yield _lines(what, stream, clock)


def _lines(what: str, stream: TextIO, clock: Callable[[], float]) -> Progress:
    next_line = clock() + LINE_EVERY_SECONDS

    def tell(done: int, total: int) -> None:
        nonlocal next_line
        now = clock()
        if now >= next_line:
            next_line = now + LINE_EVERY_SECONDS
            percent = done * 100 // max(total, 1)
            stream.write(f"{what}: {percent} % of {total // _MIB} MiB\n")
            stream.flush()

    return tell


@contextlib.contextmanager
def _bar(what: str, stream: TextIO) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn(what),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
