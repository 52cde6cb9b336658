"""The verbs that do: check, update, reboot, rollback, confirm, hold, pin."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from updater.cli.root import AS_JSON, Shared, bascule, not_yet, pass_shared, progress_shown, show
from updater.errors import EXIT_ARMED

SPANS = {"m": "minutes", "h": "hours", "d": "days"}


@bascule.command()
@AS_JSON
@pass_shared
def check(shared: Shared, *, as_json: bool) -> None:
    """Ask now, change nothing; status 0 when an update is available, 4 when not.

    Example: bascule check && echo "there is something new"
    """
    facts = shared.client().call("check")
    text = f"version {facts['version']} is available, {facts['cost'] / 1e6:.1f} MB to fetch"
    if facts["kind"] == "delta":
        text += " as a delta from the booted slot"
    if facts["whole_on"]:
        text += f", over days: whole on {facts['whole_on']} (UTC)"
    lines = [text, *(f"not taken: {why}" for why in facts["left_out"])]
    show(facts, lines, as_json=as_json)


@bascule.command()
@click.option(
    "--force", is_flag=True, help="Also take what failed here before, or what a rollout stopped."
)
@click.option("--version", "version", help="Take this version; passes the rollout's queue.")
@click.option(
    "--payload",
    metavar="PLACE",
    help="Install this file or URL, signed by a key of trust.payload_keys; ask no server.",
)
@click.option("--yes", is_flag=True, help="With --force: do not ask.")
@pass_shared
def update(
    shared: Shared, *, force: bool, version: str | None, payload: str | None, yes: bool
) -> None:
    """Check, install and arm now; status 5 when a reboot is needed, 4 when nothing is newer.

    Example: bascule update --yes
    """
    if force and not yes and not sys.stdin.isatty():
        raise click.UsageError("--force without a terminal needs --yes")
    if force and not yes:
        older = "is older or " if payload else ""
        click.confirm(f"Take it even if it {older}failed here before?", abort=True)
    place = payload if not payload or "://" in payload else str(Path(payload).absolute())
    with progress_shown(shared.settings()):
        facts = shared.client().call("update", force=force, version=version, payload=place)
    shared.tell_server()
    click.echo(f"version {facts['version']} is armed; `bascule reboot` starts it")
    raise SystemExit(EXIT_ARMED)


@bascule.command()
@click.option("--now", is_flag=True, help="Do not wait for gates; hold and permit still count.")
@pass_shared
def reboot(shared: Shared, *, now: bool) -> None:
    """Start the armed slot, as soon as gates and permit allow.

    Example: bascule reboot
    """
    facts = shared.client().call("reboot", now=now)
    if facts["waiting"]:
        not_yet(facts["waiting"]["code"], facts["waiting"]["sentence"])
    click.echo("the reboot is ordered")


@bascule.command()
@pass_shared
def rollback(shared: Shared) -> None:
    """Take an armed update back, or arm the other slot; that version is refused from then on.

    Example: bascule rollback; bascule reboot
    """
    facts = shared.client().call("rollback")
    if facts["version"]:
        click.echo(f"version {facts['version']} is armed; `bascule reboot` starts it")
        raise SystemExit(EXIT_ARMED)
    click.echo("the update was taken back; the running version stays")


@bascule.command()
@pass_shared
def confirm(shared: Shared) -> None:
    """Say that the running system is good, whatever the checks say; ends its trial.

    Example: bascule confirm
    """
    shared.client().call("confirm")
    shared.tell_server()
    click.echo("the running system is confirmed")


def _until(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """Read `4h`, `30m`, `2d` or a date with time zone; give RFC 3339."""
    if text is None:
        return None
    try:
        if text[-1:] in SPANS:
            span = timedelta(**{SPANS[text[-1]]: int(text[:-1])})
            return (datetime.now(UTC) + span).isoformat(timespec="seconds")
        end = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time: 4h, 30m, 2d or 2026-12-01T06:00+01:00"
        ) from None
    return end.astimezone().isoformat(timespec="seconds")  # without a zone: this machine's


@bascule.command()
@click.option("--reason", default="", help="For whoever finds the node held.")
@click.option("--until", callback=_until, help="When it ends: 4h, 30m, 2d, or a date and time.")
@pass_shared
def hold(shared: Shared, *, reason: str, until: str | None) -> None:
    """Do not reboot for now. Downloads and installs go on.

    Example: bascule hold --reason "database migration" --until 4h
    """
    facts: dict[str, Any] = shared.client().call("hold", reason=reason, until=until)
    end = f" until {facts['until']}" if facts["until"] else ""
    click.echo(f"reboots are held{end}; `bascule unhold` ends it")


@bascule.command()
@pass_shared
def unhold(shared: Shared) -> None:
    """End a hold.

    Example: bascule unhold
    """
    facts = shared.client().call("unhold")
    click.echo("the hold is ended" if facts["held"] else "nobody held this node")


@bascule.command()
@click.argument("version")
@pass_shared
def pin(shared: Shared, version: str) -> None:
    """Run VERSION and no other, whatever the server offers. The channel must allow it.

    Example: bascule pin 1.4.2
    """
    shared.client().call("pin", version=version)
    click.echo(f"this node is pinned to version {version}; `bascule unpin` ends it")


@bascule.command()
@pass_shared
def unpin(shared: Shared) -> None:
    """Follow the channel and the server again.

    Example: bascule unpin
    """
    facts = shared.client().call("unpin")
    was = facts["version"]
    click.echo(f"the pin to version {was} is gone" if was else "this node was not pinned")
