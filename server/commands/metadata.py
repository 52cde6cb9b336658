"""`bascule-server metadata`: the signatures and how long they hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from server.commands.shared import (
    folder_argument,
    json_option,
    key_options,
    opened,
    read_passphrase,
    show_json,
    show_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group()
def metadata() -> None:
    """Look at signatures and renew them."""


@metadata.command(
    epilog="Example: bascule-server metadata refresh desk --role stable --keys /media/usb"
)
@folder_argument
@click.option("--role", "roles", multiple=True, help="An offline role to sign again; may repeat.")
@click.option("--due", is_flag=True, help="Every offline role that ends soon.")
@key_options
@json_option
def refresh(
    *,
    folder: Path,
    roles: Sequence[str],
    due: bool,
    keys_folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign snapshot and timestamp again, and the offline roles that are asked for."""
    from server.upkeep import refresh_online, renew

    desk = opened(folder)
    signed: list[str] = []
    if roles or due:
        keys = desk.offline(keys_folder, read_passphrase(passphrase_file))
        signed += renew(desk, roles, keys=keys)
    signed += refresh_online(desk, force=True)
    if as_json:
        show_json({"signed": signed})
    else:
        click.echo(f"signed again: {', '.join(signed)}")


@metadata.command(epilog="Example: bascule-server metadata show desk")
@folder_argument
@json_option
def show(*, folder: Path, as_json: bool) -> None:
    """Show every signing role: version, keys, and until when it holds."""
    from server.queries import roles
    from server.wording import span

    desk = opened(folder)
    found = roles(desk.repository.read())
    if as_json:
        show_json(found)
        return
    now = desk.clock()
    show_table(
        ("ROLE", "VERSION", "SIGNATURES", "HOLDS UNTIL", "LEFT"),
        [
            (
                role.name,
                role.version,
                f"{role.threshold} of {role.keys}",
                f"{role.expires:%Y-%m-%d %H:%M} UTC",
                span(role.expires - now) if role.expires > now else "ended",
            )
            for role in found
        ],
    )
