"""`bascule-server release`: what is built and may be shipped."""

from __future__ import annotations

import sys
import time
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
    show_json,
    show_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from images.signing import TrustedKeys
    from server.desk import Desk


@click.group()
def release() -> None:
    """Publish, list and withdraw releases."""


@release.command(
    epilog="Example: bascule-server release add desk v2.crau --version 2.0.0 --public-key"
    " release.pub.pem"
)
@folder_argument
@click.argument("payload", type=click.Path(path_type=Path))
@product_option
@board_option
@click.option("--version", required=True, help="The version that the payload makes.")
@click.option("--rollback-index", type=click.IntRange(0), default=0, show_default=True)
@click.option("--min-engine", default="0.1.0", show_default=True, help="Oldest bascule for it.")
@click.option("--requires-from", help="Oldest version that may go to it directly.")
@click.option(
    "--public-key", "public_keys", type=click.Path(path_type=Path), multiple=True,
    help="Verifies the payload's signatures; may repeat. Default: payload_keys of server.toml.",
)  # fmt: skip
@click.option(
    "--delta", "deltas", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="A delta to the same image, published with it if it pays; may repeat.",
)  # fmt: skip
@click.option(
    "--deltas-from", "deltas_from", type=click.IntRange(0, 63), metavar="K",
    help="Make deltas from the last K releases of each channel. Default: deltas_from of"
    " server.toml.",
)  # fmt: skip
@click.option(
    "--channel", "channels", multiple=True,
    help="With --deltas-from: the last releases of this channel only; may repeat.",
)  # fmt: skip
@click.option(
    "--payload-key", "payload_keys", type=click.Path(path_type=Path), multiple=True,
    help="Private key that signs the deltas made here; may repeat.",
)  # fmt: skip
@key_options
@json_option
def add(  # noqa: PLR0913  # one parameter an option
    *,
    folder: Path,
    payload: Path,
    product: str | None,
    board: str | None,
    version: str,
    rollback_index: int,
    min_engine: str,
    requires_from: str | None,
    public_keys: Sequence[Path],
    deltas: Sequence[Path],
    deltas_from: int | None,
    channels: Sequence[str],
    payload_keys: Sequence[Path],
    keys_folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Verify PAYLOAD and publish it as a release; nodes see it once a channel names it."""
    from images.progress import shown
    from images.signing import load_private_key
    from server.intake import ReleaseOrder
    from server.making import MakingOrder
    from server.publish import add_release

    desk = opened(folder)
    order = ReleaseOrder(
        product=product or desk.settings.product,
        board=board or desk.settings.board,
        version=version,
        rollback_index=rollback_index,
        min_engine=min_engine,
        requires_from=requires_from,
    )
    keys = desk.offline(keys_folder, read_passphrase(passphrase_file))
    making = MakingOrder(
        last=desk.settings.deltas_from if deltas_from is None else deltas_from,
        channels=tuple(channels),
        keys=tuple(load_private_key(file) for file in payload_keys),
    )
    added = add_release(
        desk,
        payload,
        order,
        trusted=_trusted(desk, public_keys),
        keys=keys,
        deltas=deltas,
        making=making,
        stage=lambda what: shown(what, sys.stderr, clock=time.monotonic),
    )
    for warning in added.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        show_json(added)
        return
    click.echo(f"release {version} {added.outcome.value}: {added.sha256} {added.size} bytes")
    for delta in added.deltas:
        click.echo(
            f"delta from {delta.source} {delta.outcome.value}: {delta.sha256} {delta.size} bytes"
        )


@release.command("list", epilog="Example: bascule-server release list desk --json")
@folder_argument
@json_option
def list_(*, folder: Path, as_json: bool) -> None:
    """List what was published; with deltas, also what it costs to come from where."""
    from server.queries import releases
    from server.views import costs
    from server.wording import size_words

    desk = opened(folder)
    with desk.store.reading() as connection:
        found = releases(connection)
    if as_json:
        show_json(found)
        return
    show_table(
        ("VERSION", "PRODUCT", "BOARD", "INDEX", "PAYLOADS", "CURRENT ON", "WITHDRAWN FROM"),
        [
            (
                view.version,
                view.product,
                view.board,
                view.rollback_index,
                ", ".join(
                    f"format {p.format} {size_words(p.size)}"
                    for p in view.payloads
                    if not p.delta_from
                ),
                ", ".join(view.current_on) or "-",
                ", ".join(view.withdrawn_from) or "-",
            )
            for view in found
        ],
    )
    for title, sources, rows in costs(found):
        click.echo(f"\n{title}: from left to right where a node comes from")
        show_table(
            ("TO", "FULL", *sources),
            [(to, *(size_words(size) if size else "-" for size in sizes)) for to, sizes in rows],
        )


@release.command(epilog="Example: bascule-server release show desk 2.0.0")
@folder_argument
@click.argument("version")
@product_option
@board_option
@json_option
def show(
    *, folder: Path, version: str, product: str | None, board: str | None, as_json: bool
) -> None:
    """Show the payloads of VERSION: what each costs, and whether its file is here."""
    from server.queries import release
    from server.wording import size_words

    desk = opened(folder)
    with desk.store.reading() as connection:
        view = release(
            connection,
            product or desk.settings.product,
            board or desk.settings.board,
            version,
            is_here=lambda sha256: desk.payload_file(sha256).is_file(),
        )
    if as_json:
        show_json(view)
        return
    show_table(
        ("FROM", "SIZE", "OF FULL", "FORMAT", "FILE", "SHA256"),
        [
            (
                payload.delta_from or "any",
                size_words(payload.size),
                f"{100 * payload.size / view.full_size:.0f} %" if view.full_size else "-",
                payload.format,
                "here" if payload.is_here else "missing",
                payload.sha256,
            )
            for payload in view.payloads
        ],
    )


@release.command(epilog="Example: bascule-server release withdraw desk 3.0.0 --keys /media/usb")
@folder_argument
@click.argument("version")
@product_option
@board_option
@click.option(
    "--channel", "channels", multiple=True,
    help="Only from this one; may repeat. Default: every channel that allows it.",
)  # fmt: skip
@key_options
@json_option
def withdraw(
    *,
    folder: Path,
    version: str,
    product: str | None,
    board: str | None,
    channels: Sequence[str],
    keys_folder: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Take VERSION back: no node installs it any more, whatever it is offered."""
    from server.channels import withdraw_release

    desk = opened(folder)
    documents = withdraw_release(
        desk,
        version,
        product=product or desk.settings.product,
        board=board or desk.settings.board,
        channels=channels,
        keys=desk.offline(keys_folder, read_passphrase(passphrase_file)),
    )
    if as_json:
        show_json(documents)
    for document in [] if as_json else documents:
        click.echo(f"{version} withdrawn from {document.channel}, serial {document.serial}")


def _trusted(desk: Desk, given: Sequence[Path]) -> TrustedKeys | None:
    from images.signing import load_public_keys

    files = list(given) or [desk.folder / name for name in desk.settings.payload_keys]
    return load_public_keys(*files) if files else None
