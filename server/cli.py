"""The command `bascule-server`: arguments in, facts or three lines of error out. No rules here."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from server.commands.channel import channel
from server.commands.group import group
from server.commands.metadata import metadata
from server.commands.node import node
from server.commands.release import release
from server.commands.shared import (
    folder_argument,
    json_option,
    opened,
    read_passphrase,
    safe,
    show_json,
)
from server.errors import DeskUnwritableError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 and the number of SIGINT, as shells have it


@runtime_checkable
class CodedError(Protocol):
    """What the error families of all rooms share."""

    code: str
    hint: str
    exit_status: int


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 failed, 2 usage, 3 refused, 6 cannot tell (desk or database"
    " busy).",
)
@click.version_option(package_name="bascule")
@click.option("--verbose", "-v", is_flag=True, help="Log what is done, on standard error.")
def cli(*, verbose: bool) -> None:
    """Publish releases, steer rollouts, serve nodes."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@cli.command(
    epilog="Example: bascule-server init desk --product my-os --board x86-64"
    " --channel stable --public-url https://updates.example"
)
@folder_argument
@click.option("--product", default="bascule", show_default=True)
@click.option("--board", default="generic", show_default=True)
@click.option("--public-url", default="", help="How nodes reach the server.")
@click.option(
    "--channel", "channels", multiple=True,
    help="A channel to make; may repeat. The group `default` follows the first.",
)  # fmt: skip
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path),
    help="Its first line encrypts the offline keys.",
)  # fmt: skip
@json_option
def init(
    *,
    folder: Path,
    product: str,
    board: str,
    public_url: str,
    channels: Sequence[str],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Lay a new release desk in DIR: keys, signed metadata, database."""
    from server.desk import now_utc
    from server.foundation import found
    from server.settings import checked_settings

    settings = checked_settings(product=product, board=board, public_url=public_url.rstrip("/"))
    founded = found(
        folder,
        settings,
        channels=channels,
        passphrase=read_passphrase(passphrase_file),
        clock=now_utc,
    )
    founded.desk.store.close()
    if as_json:
        show_json(
            {
                "folder": str(folder),
                "root": str(founded.root),
                "offline_keys": [str(path) for path in founded.offline_keys],
            }
        )
        return
    click.echo(f"release desk {folder} is laid.\n")
    click.echo("Put this root of trust into every image as /usr/lib/bascule/root.json:")
    click.echo(f"  {founded.root}\n")
    click.echo("Move these keys to a safe place offline; verbs that sign take --keys FOLDER:")
    for path in founded.offline_keys:
        click.echo(f"  {path}")
    click.echo(f"\nServe it: bascule-server serve {folder}")


@cli.command(epilog="Example: bascule-server serve desk --listen 127.0.0.1:8000")
@folder_argument
@click.option(
    "--listen", "address", default="127.0.0.1:8000", show_default=True, help="Port 0: any free one."
)
@click.option("--public-url", help="Default: public_url of server.toml, or the address.")
def serve(*, folder: Path, address: str, public_url: str | None) -> None:
    """Serve nodes, files, API and dashboard of the desk in DIR; keep its signatures fresh."""
    from server.serve import listen, url_of
    from server.serve import serve as run_server

    desk = opened(folder)
    sock = listen(address)
    url = url_of(sock)
    public = (public_url or desk.settings.public_url or url).rstrip("/")
    logging.getLogger("server").setLevel(logging.INFO)
    run_server(
        desk, sock, public_url=public, ready=lambda: click.echo(f"serving {folder} on {url}")
    )


for noun in (release, channel, group, node, metadata):
    cli.add_command(noun)


def main() -> None:
    """Run the command; every foreseen failure is a sentence, a hint and a code on stderr."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status."""
    try:
        status = cli.main(list(arguments), prog_name="bascule-server", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        again = "What was published is whole; run the command again."
        return _fail("interrupted", again, "interrupted", EXIT_INTERRUPTED)
    except click.UsageError as error:
        return _fail_usage(error)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EXIT_FAILED
    except OSError as error:  # of a file nobody foresaw, for example standard output
        return _fail(str(error), DeskUnwritableError.hint, DeskUnwritableError.code, EXIT_FAILED)
    except Exception as error:
        if not isinstance(error, CodedError):
            raise
        return _fail(str(error), error.hint, error.code, error.exit_status)
    return status if isinstance(status, int) else 0


def _fail_usage(error: click.UsageError) -> int:
    if isinstance(error, NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    path = error.ctx.command_path if error.ctx is not None else "bascule-server"
    return _fail(error.format_message(), f"See `{path} --help`.", "usage", EXIT_USAGE)


def _fail(sentence: str, hint: str, code: str, status: int) -> int:
    """Print the three lines; what came from a file or a path cannot add a fourth."""
    for label, text in (("error", sentence), ("hint", hint), ("code", code)):
        click.echo(f"{label}: {safe(text)}", err=True)
    return status


if __name__ == "__main__":
    main()
