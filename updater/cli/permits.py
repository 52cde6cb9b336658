"""`bascule permit`: who may reboot."""

from __future__ import annotations

import click

from updater.cli.root import AS_JSON, Shared, bascule, pass_shared, show


@bascule.group()
def permit() -> None:
    """Show or change who may reboot."""


@permit.command("status")
@AS_JSON
@pass_shared
def permit_status(shared: Shared, *, as_json: bool) -> None:
    """Show holders, places and the queue.

    Example: bascule permit status
    """
    facts = shared.client().call("permit-status")
    places = "no such group yet" if facts["max"] is None else f"{facts['max']} places"
    text = [f"group {facts['group']}: {places}, {facts['waiting']} waiting"]
    text += [
        f"held by {h['host']} ({h['id']}) since {h['since']}: {h['reason']}"
        for h in facts["holders"]
    ]
    show(facts, text, as_json=as_json)


@permit.command("set-max")
@click.argument("places", type=int)
@pass_shared
def permit_set_max(shared: Shared, places: int) -> None:
    """Set how many nodes of the group may be down at once; 0 stops all reboots.

    Example: bascule permit set-max 3
    """
    change = shared.client().call("permit-set-max", places=places)
    click.echo(f"places: {change['before']} before, {change['after']} now, {change['held']} held")


@permit.command("return")
@click.argument("holder", default="")
@pass_shared
def permit_return(shared: Shared, holder: str) -> None:
    """Return this node's permit, or that of HOLDER, a node known to be dead.

    Example: bascule permit return 3d1219c7c4c5404aaa1f6d2a48adfda4
    """
    facts = shared.client().call("permit-return", holder=holder)
    if facts["id"]:
        click.echo(f"returned the permit of {facts['host']} ({facts['id']})")
        return
    click.echo("returned" if facts["returned"] else "this node held none")
