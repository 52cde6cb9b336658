"""The verbs that show: status, why, slots, history. They change nothing and need no lock."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from updater.cli.root import AS_JSON, Shared, bascule, pass_shared, show

if TYPE_CHECKING:
    from updater.client import Client

WATCH_PAUSE_SECS: Final = 1.0


@bascule.command()
@AS_JSON
@click.option("--watch", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@pass_shared
def status(shared: Shared, *, as_json: bool, watch: bool) -> None:
    """Show state, slots, versions and what the node waits for.

    Example: bascule status --json
    """
    from updater import shown

    client = shared.reader()
    if watch:
        _watch(client, as_json=as_json)
        return
    facts = client.call("status")
    show(facts, shown.status_lines(facts), as_json=as_json)


def _watch(client: Client, *, as_json: bool) -> None:
    """Show the status at each change: in place on a terminal, else one block or line a change."""
    from updater.shown import status_lines
    from updater.terminal import redrawn

    last: Mapping[str, Any] | None = None
    in_place = sys.stdout.isatty() and not as_json
    height = 0
    pressed, told = os.pipe()
    os.set_blocking(told, False)
    # The exception alone can be lost: raised in a finaliser, it is printed and forgotten.
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        while True:
            facts = client.call("status")
            if facts != last and as_json:
                click.echo(json.dumps(facts))
            elif facts != last:
                lines = [*status_lines(facts, bar=True)]
                click.echo(redrawn(lines, height) if in_place else "\n".join([*lines, ""]))
                height = len(lines)
            last = facts
            sys.stdout.flush()
            if _is_over(pressed, WATCH_PAUSE_SECS):
                return
    except KeyboardInterrupt:
        return


def _is_over(pressed: int, limit_secs: float) -> bool:
    """Wait; returns early and true after Ctrl-C, or when nobody reads us any more: `| head -1`.

    Args:
        pressed: a descriptor that has bytes when a signal came.
        limit_secs: how long to wait at most.
    """
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # only errors and the end
    poller.register(pressed, select.POLLIN)
    return bool(poller.poll(limit_secs * 1000))


@bascule.command()
@AS_JSON
@pass_shared
def why(shared: Shared, *, as_json: bool) -> None:
    """Show every gate and condition, open or closed, why and until when, and the next step.

    Example: bascule why
    """
    from updater.why import lines

    facts = shared.reader().call("why")
    show(facts, lines(facts), as_json=as_json)


@bascule.command()
@AS_JSON
@pass_shared
def slots(shared: Shared, *, as_json: bool) -> None:
    """Show what each slot holds and what the boot loader would do.

    Example: bascule slots
    """
    from updater import shown

    rows = shared.reader().call("slots")
    show(rows, shown.slot_lines(rows), as_json=as_json)


@bascule.command()
@click.option(
    "-n", "--lines", type=click.IntRange(0, 1000), default=20, show_default=True,
    help="How many of the newest.",
)  # fmt: skip
@AS_JSON
@pass_shared
def history(shared: Shared, lines: int, *, as_json: bool) -> None:
    """Show what happened on this node, newest last.

    Example: bascule history -n 5
    """
    entries = shared.reader().call("history", lines=lines)
    text = (
        f"{entry.pop('at', '')}  {entry.pop('what', '')}  "
        + " ".join(f"{key}={value}" for key, value in entry.items())
        for entry in (dict(entry) for entry in entries)
    )
    show(entries, text, as_json=as_json)
