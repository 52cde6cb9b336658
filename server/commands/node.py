"""`bascule-server node`: who reported, and what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from server.commands.shared import (
    folder_argument,
    json_option,
    opened,
    safe,
    show_json,
    show_table,
)

if TYPE_CHECKING:
    from server.views import NodeView


@click.group()
def node() -> None:
    """Look at the nodes that report to this desk."""


@node.command("list", epilog="Example: bascule-server node list desk --group canary --json")
@folder_argument
@click.option("--group", help="Only of this group.")
@click.option("--version", help="Only on this version.")
@click.option("--state", help="Only in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True)
@json_option
def list_(
    *,
    folder: Path,
    group: str | None,
    version: str | None,
    state: str | None,
    limit: int,
    offset: int,
    as_json: bool,
) -> None:
    """List nodes as they last spoke."""
    from server.queries import nodes
    from server.wording import ago

    desk = opened(folder)
    with desk.store.reading() as connection:
        found = nodes(
            connection, group=group, version=version, state=state, limit=limit, offset=offset
        )
    if as_json:
        show_json(found)
        return
    now = desk.clock()
    show_table(
        ("NODE", "ALIAS", "GROUP", "VERSION", "SLOT", "STATE", "SEEN", "LAST ERROR OR WAIT"),
        [
            (
                view.machine_id,
                view.alias or "-",
                view.group,
                view.version,
                view.slot or "-",
                view.state or "-",
                ago(view.last_seen, now),
                _trouble(view),
            )
            for view in found
        ],
    )


@node.command(epilog="Example: bascule-server node show desk rack1-node7")
@folder_argument
@click.argument("name")
@json_option
def show(*, folder: Path, name: str, as_json: bool) -> None:
    """Show one node, by machine id or alias, with what it was given and what it reported."""
    from server.queries import events, grants_of
    from server.queries import node as find
    from server.wording import event_words

    desk = opened(folder)
    with desk.store.reading() as connection:
        view = find(connection, name)
        grants = grants_of(connection, view)
        reported = events(connection, machine_id=view.machine_id)
    if as_json:
        show_json({"node": view, "grants": grants, "events": reported})
        return
    for label, value in _facts(view):
        click.echo(f"{label:<12} {safe(value)}")
    click.echo("")
    show_table(
        ("GRANTED", "RELEASE", "FROM", "PHASE", "CODE"),
        [
            (f"{g.granted:%Y-%m-%d %H:%M:%S}", g.version, g.from_version, g.phase, g.code or "-")
            for g in grants
        ],
    )
    click.echo("")
    show_table(
        ("REPORTED", "EVENT", "RELEASE", "CODE", "SENTENCE"),
        [
            (
                f"{e.at:%Y-%m-%d %H:%M:%S}",
                event_words(e.type, e.result),
                e.release or "-",
                e.code or "-",
                e.sentence or "-",
            )
            for e in reported
        ],
    )


def _facts(view: NodeView) -> list[tuple[str, str]]:
    return [
        ("machine id", view.machine_id),
        ("alias", view.alias or "-"),
        ("product", view.product),
        ("board", view.board),
        ("group", view.group),
        ("version", view.version),
        ("slot", view.slot or "-"),
        ("state", view.state or "-"),
        ("agent", view.agent or "-"),
        ("first seen", f"{view.first_seen:%Y-%m-%d %H:%M:%S} UTC"),
        ("last seen", f"{view.last_seen:%Y-%m-%d %H:%M:%S} UTC"),
        ("trouble", _trouble(view)),
    ]


def _trouble(view: NodeView) -> str:
    if view.error_code:
        return f"{view.error_sentence} [{view.error_code}]"
    return f"waits: {view.waits_for}" if view.waits_for not in {"", "current"} else "-"
