"""`bascule-server channel`: which releases nodes may run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from server.commands.shared import (
    board_option,
    folder_argument,
    json_option,
    key_options,
    opened,
    product_option,
    read_passphrase,
    read_time,
    show_json,
    show_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group()
def channel() -> None:
    """Make channels, promote releases on them, list them."""


@channel.command(epilog="Example: bascule-server channel create desk beta --keys /media/usb")
@folder_argument
@click.argument("name")
@click.option("--key-count", type=click.IntRange(1, 16), help="Keys of its role.")
@click.option("--threshold", type=click.IntRange(1, 16), help="Signatures that it needs.")
@key_options
def create(
    *,
    folder: Path,
    name: str,
    key_count: int | None,
    threshold: int | None,
    keys_folder: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make the channel NAME: its keys, and its place in the signed metadata."""
    from server.channels import create_channel

    desk = opened(folder)
    keys = desk.offline(keys_folder, read_passphrase(passphrase_file))
    create_channel(desk, name, keys=keys, key_count=key_count, threshold=threshold)
    click.echo(f"channel {name} made; its keys are {keys.path}/{name}-*.pem: move them offline")


@channel.command(epilog="Example: bascule-server channel promote desk stable 2.0.0 --keep-previous")
@folder_argument
@click.argument("name")
@click.argument("version")
@product_option
@board_option
@click.option("--keep-previous", is_flag=True, help="The release before stays allowed.")
@click.option("--rollback-floor", type=click.IntRange(0), help="No older index is accepted.")
@click.option("--not-before", metavar="TIME", help="Nothing is installed earlier.")
@click.option("--stop", "stops", multiple=True, help="May not be jumped over; may repeat.")
@click.option("--remove-stop", "removed", multiple=True, help="May be jumped over again.")
@click.option("--downgrade-from", metavar="VERSION", help="May go back to VERSION, with --until.")
@click.option("--until", metavar="TIME", help="When that leave ends.")
@key_options
@json_option
def promote(  # noqa: PLR0913  # one parameter an option
    *,
    folder: Path,
    name: str,
    version: str,
    product: str | None,
    board: str | None,
    keep_previous: bool,
    rollback_floor: int | None,
    not_before: str | None,
    stops: Sequence[str],
    removed: Sequence[str],
    downgrade_from: str | None,
    until: str | None,
    keys_folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make VERSION what the nodes of channel NAME shall run."""
    from server.channels import promote_channel
    from server.promotion import Promotion

    desk = opened(folder)
    order = Promotion(
        channel=name,
        product=product or desk.settings.product,
        board=board or desk.settings.board,
        version=version,
        keep_previous=keep_previous,
        rollback_floor=rollback_floor,
        not_before=read_time(not_before),
        add_stops=tuple(stops),
        remove_stops=tuple(removed),
        downgrade_from=downgrade_from,
        until=read_time(until),
    )
    keys = desk.offline(keys_folder, read_passphrase(passphrase_file))
    document = promote_channel(desk, order, keys=keys)
    if as_json:
        show_json(document)
    else:
        click.echo(f"{document.current} is current on {name}, serial {document.serial}")


@channel.command("list", epilog="Example: bascule-server channel list desk --json")
@folder_argument
@json_option
def list_(*, folder: Path, as_json: bool) -> None:
    """List channels and what they say."""
    from server.queries import channels

    desk = opened(folder)
    with desk.store.reading() as connection:
        found = channels(connection)
    if as_json:
        show_json(found)
        return
    rows: list[tuple[object, ...]] = []
    for view in found:
        rows += [
            (
                view.name,
                document.product,
                document.board,
                document.current,
                document.serial,
                document.rollback_floor,
                ", ".join(document.withdrawn) or "-",
            )
            for document in view.documents
        ] or [(view.name, "-", "-", "-", 0, 0, "-")]
    show_table(("CHANNEL", "PRODUCT", "BOARD", "CURRENT", "SERIAL", "FLOOR", "WITHDRAWN"), rows)


@channel.command(
    "set",
    epilog="Example: bascule-server channel set desk stable --base-url https://cdn.example/os/",
)
@folder_argument
@click.argument("name")
@click.option("--base-url", "urls", multiple=True, help="Where its payloads lie; may repeat.")
def set_(*, folder: Path, name: str, urls: Sequence[str]) -> None:
    """Say where the payloads of channel NAME lie; without --base-url only here."""
    from server.channels import set_base_urls

    set_base_urls(opened(folder), name, urls)
    click.echo(f"payloads of {name}: {', '.join(urls) or 'this server'}")
