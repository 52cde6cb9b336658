"""What the commands share: common options, opening a desk, printing facts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import rich_click as click

from server.errors import KeyFileError, TimeInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from server.desk import Desk

PASSPHRASE_MAX_BYTES: Final = 4096

F = TypeVar("F", bound="Callable[..., Any]")

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
product_option = click.option("--product", help="Default: product of server.toml.")
board_option = click.option("--board", help="Default: board of server.toml.")


def key_options(command: F) -> F:
    """Add the options of a command that signs with offline keys."""
    keys = click.option(
        "--keys",
        "keys_folder",
        type=click.Path(path_type=Path),
        help="Folder with the offline keys. Default: DIR/keys/offline.",
    )
    passphrase = click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help="Its first line opens encrypted keys.",
    )
    return keys(passphrase(command))


def opened(folder: Path) -> Desk:
    """Open a desk for a command, its database in step with the signed files.

    Raises:
        ServerError: it is none, or something of it cannot be used.
    """
    from server.desk import open_desk
    from server.reflection import reflect

    desk = open_desk(folder)
    if (context := click.get_current_context(silent=True)) is not None:
        context.call_on_close(desk.store.close)
    reflect(desk)
    return desk


def read_passphrase(file: Path | None) -> bytes | None:
    """Return the first line of a passphrase file, or None when none is given.

    Raises:
        KeyFileError: it cannot be read or is empty.
    """
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            line = stream.readline(PASSPHRASE_MAX_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise KeyFileError(f"passphrase file {file} cannot be read: {error.strerror}") from error
    if not line:
        raise KeyFileError(f"passphrase file {file} has an empty first line")
    return line


def read_time(text: str | None) -> datetime | None:
    """Return a time with a zone.

    Raises:
        TimeInvalidError: it is none, or has no zone.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise TimeInvalidError(f"{text!a} is no time") from error
    if moment.tzinfo is None:
        raise TimeInvalidError(f"{text!a} has no zone")
    return moment


def show_json(value: object) -> None:
    """Print a value as JSON for programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns, or a line that says there are none."""
    texts = [[safe(str(cell)) for cell in row] for row in rows]
    if not texts:
        click.echo("none")
        return
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for line in (list(head), *texts):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def safe(text: str) -> str:
    """Return text that cannot drive a terminal: what is not printable is escaped."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
