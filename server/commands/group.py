"""`bascule-server group`: how fast nodes reach a release."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import rich_click as click

from server.commands.shared import folder_argument, json_option, opened, show_json, show_table

LIMIT_MAX: Final = 1_000_000  # more than any fleet


def _limit(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number, or the word `none` for no limit, which becomes -1."""
    if value is None or value == "none":
        return None if value is None else -1
    if not value.isascii() or not value.isdigit() or int(value) > LIMIT_MAX:
        raise click.BadParameter(f"it is neither a number up to {LIMIT_MAX} nor none", ctx, param)
    return int(value)


def _percent(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse what is within every range because it compares with nothing."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("it is not a number", ctx, param)
    return value


share_option = click.option(
    "--share",
    type=click.FloatRange(0, 100),
    callback=_percent,
    help="Percent of the group that may have a release.",
)
max_option = click.option(
    "--concurrency",
    "--max",
    "maximum",
    metavar="N|none",
    callback=_limit,
    help="How many may be under way at once.",
)
timeout_option = click.option(
    "--grant-timeout", type=click.IntRange(1, 30 * 86400),
    help="Seconds without progress after which a place is free.",
)  # fmt: skip
poll_option = click.option(
    "--poll-interval", type=click.IntRange(1, 86400), help="Seconds between checks."
)


@click.group()
def group() -> None:
    """Make groups, pause, resume and tune their rollouts."""


@group.command(
    epilog="Example: bascule-server group create desk canary --channel stable --concurrency 1"
)
@folder_argument
@click.argument("name")
@click.option("--channel", default="stable", show_default=True, help="What it follows.")
@share_option
@max_option
@timeout_option
@poll_option
def create(
    *,
    folder: Path,
    name: str,
    channel: str,
    share: float | None,
    maximum: int | None,
    grant_timeout: int | None,
    poll_interval: int | None,
) -> None:
    """Make the group NAME; nodes join it by asking for it."""
    from server.steering import create_group

    changes = _changes(share, maximum, grant_timeout, poll_interval)
    create_group(opened(folder), name, channel=channel, changes=changes)
    click.echo(f"group {name} follows {channel}")


@group.command(
    "set", epilog="Example: bascule-server group set desk default --share 25 --concurrency 5"
)
@folder_argument
@click.argument("name")
@click.option("--channel", help="What it follows.")
@share_option
@max_option
@timeout_option
@poll_option
def set_(
    *,
    folder: Path,
    name: str,
    channel: str | None,
    share: float | None,
    maximum: int | None,
    grant_timeout: int | None,
    poll_interval: int | None,
) -> None:
    """Change the policy of group NAME; running updates go on."""
    from server.steering import set_group

    changes = _changes(share, maximum, grant_timeout, poll_interval)
    after = set_group(opened(folder), name, channel=channel, changes=changes)
    limit = "any number" if after.max_concurrent is None else after.max_concurrent
    click.echo(
        f"group {name} follows {after.channel}, share {after.share_percent:g} %,"
        f" at most {limit} under way"
    )


@group.command(epilog="Example: bascule-server group pause desk default --reason 'public holiday'")
@folder_argument
@click.argument("name")
@click.option("--reason", default="", help="Shown to whoever asks why nothing happens.")
def pause(*, folder: Path, name: str, reason: str) -> None:
    """Give no new grants in group NAME; running updates go on."""
    from server.steering import pause_group

    pause_group(opened(folder), name, reason=reason)
    click.echo(f"group {name} is paused")


@group.command(epilog="Example: bascule-server group resume desk default")
@folder_argument
@click.argument("name")
def resume(*, folder: Path, name: str) -> None:
    """End a pause of group NAME and lift what the server stopped in it."""
    from server.steering import resume_group

    lifted = resume_group(opened(folder), name)
    click.echo(f"group {name} goes on" + (f", also with {', '.join(lifted)}" if lifted else ""))


@group.command("list", epilog="Example: bascule-server group list desk --json")
@folder_argument
@json_option
def list_(*, folder: Path, as_json: bool) -> None:
    """List groups, how far they are, and what holds them."""
    from server.queries import groups

    desk = opened(folder)
    with desk.store.reading() as connection:
        found = groups(connection, desk.settings, now_s=desk.now_s())
    if as_json:
        show_json(found)
        return
    show_table(
        ("GROUP", "CHANNEL", "NODES", "CURRENT", "UNDER WAY", "MAX", "SHARE", "HELD BY"),
        [
            (
                view.name,
                view.channel,
                view.nodes,
                view.on_current,
                view.under_way,
                "-" if view.max_concurrent is None else view.max_concurrent,
                f"{view.share_percent:g} %",
                "; ".join(stop.sentence for stop in view.stops)
                or (f"paused {view.pause_reason}".strip() if view.paused else "-"),
            )
            for view in found
        ],
    )


def _changes(
    share: float | None,
    maximum: int | None,
    grant_timeout: int | None,
    poll_interval: int | None,
) -> dict[str, object]:
    """Return the columns that were given; a limit of `none` is SQL's NULL."""
    changes: dict[str, object] = {}
    if share is not None:
        changes["share_percent"] = share
    if maximum is not None:
        changes["max_concurrent"] = None if maximum < 0 else maximum
    if grant_timeout is not None:
        changes["grant_timeout_s"] = grant_timeout
    if poll_interval is not None:
        changes["poll_interval_s"] = poll_interval
    return changes
