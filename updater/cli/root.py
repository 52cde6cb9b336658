"""The group `bascule`, what its commands share, and how an error is told: three lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import click

from updater.client import DirectClient, Reply, person, reply_of
from updater.errors import EXIT_ARMED, EXIT_DONE, EXIT_STOPPED, UpdaterError
from updater.rooms import ROOM_ERRORS

if TYPE_CHECKING:
    from updater.client import Client
    from updater.node import Node
    from updater.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


class Shared:
    """What all verbs share: where the settings are, and who carries verbs out.

    Args:
        config: the one settings file, None for the system's folders.
        direct: never ask the service, work in this process.
    """

    def __init__(self, config: Path | None, *, direct: bool) -> None:
        self.config = config
        self.direct = direct
        self._asked = False
        self._found: Client | None = None

    def settings(self) -> Settings:
        """Return the checked settings."""
        from updater.settings import load

        return load(self.config).settings

    def node(self) -> Node:
        """Return the node that the settings describe."""
        from updater.assembly import build

        return build(self.settings())

    def client(self) -> Client:
        """Return who carries verbs out: the service when it runs, else the engine here."""
        return self._service() or self.engine()

    def reader(self) -> Client:
        """Return who shows: the engine where this person may read its memory, else the service."""
        readable = os.access(self.settings().node.state_folder, os.R_OK | os.X_OK)
        return self.engine() if readable else self.client()

    def _service(self) -> Client | None:
        """Return the service on the bus, None when there is none; asked once."""
        if not self._asked:
            self._asked = True
            self._found = None if self.direct else _on_bus(self.settings())
        return self._found

    def tell_server(self) -> None:
        """Send queued events if the server is there; the service sends what is left."""
        if self._service() is not None:
            return  # it has sent them, or does
        from updater.checking import present
        from updater.steering import flush

        node = self.node()
        if node.steering is None:
            return
        try:
            flush(node.store, node.steering, present(node, node.store.read_state()))
        except ROOM_ERRORS as error:
            click.echo(f"note: the server will be told later ({error})", err=True)

    def engine(self) -> DirectClient:
        """Return the engine in this process, whether a service runs or not."""
        return DirectClient(self.node, by=person())


def _on_bus(settings: Settings) -> Client | None:
    """Return the service on the bus; the library is loaded only where a bus may listen."""
    from updater.bus.address import bus_address, may_listen

    address = bus_address(settings)
    if not address or not may_listen(address):
        return None
    from updater.bus.client import BusClient

    service = BusClient(
        address,
        interactive=sys.stdin.isatty(),
        note=lambda line: click.echo(f"note: {line}", err=True),
    )
    return service if service.is_there() else None


pass_shared = click.make_pass_decorator(Shared)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit statuses: 0 done (check: an update is available), 1 failed, 2 usage, 3 refused, "
    "4 nothing to do, 5 armed (a reboot is needed), 6 cannot tell.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read this file (and FILE.d/*.toml) instead of the system's folders.",
)
@click.option("--direct", is_flag=True, help="Work in this process, do not ask the service.")
@click.version_option(package_name="bascule")
@click.pass_context
def bascule(context: click.Context, config: Path | None, *, direct: bool) -> None:
    """Update this machine as one image, and go back if it does not hold."""
    context.obj = Shared(config, direct=direct)


def show(facts: object, lines: Iterable[str], *, as_json: bool) -> None:
    """Print facts as JSON or as text."""
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for line in lines:
        click.echo(line)


def progress_shown(settings: Settings) -> AbstractContextManager[None]:
    """Show on stderr how far an install is, whoever does it."""
    import time

    from updater.progress import ProgressFile
    from updater.terminal import shown_progress

    progress = ProgressFile(Path(settings.node.run_folder), time.monotonic)
    return shown_progress(progress, sys.stderr)


def reports_errors(command: Callable[P, R]) -> Callable[P, R | int]:
    """Turn any room's error into sentence, hint, code on stderr and its exit status."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | int:
        try:
            return command(*args, **kwargs)
        except ROOM_ERRORS as error:
            return tell(reply_of(error))

    return guarded


@reports_errors
def _run(arguments: list[str] | None) -> int:
    try:
        bascule.main(arguments, prog_name="bascule", standalone_mode=False)
    except click.exceptions.Abort:
        return tell(reply_of(_StoppedError("stopped before it was done")))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return tell(_usage(error))
    except BrokenPipeError:  # the reader of our output has gone: `bascule history | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: without the program's name; the process's own by default.
    """
    try:
        return int(_run(arguments))
    except OSError as error:
        if os.environ.get("BASCULE_DEBUG"):
            raise
        words = f"{error.filename or 'the system'}: {error.strerror or error}"
        return tell(reply_of(_SystemError(words)))


def _usage(error: click.ClickException) -> Reply:
    """Return what was typed wrongly in the same three lines as any other error."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "bascule"
    return Reply(
        status=error.exit_code,
        code="usage",
        sentence=error.format_message().replace("\n", " "),
        hint=f"See `{path} --help`.",
    )


class _SystemError(UpdaterError):
    """The operating system refused something that nobody expected it to refuse."""

    code = "system"
    hint = "Check permissions and space; BASCULE_DEBUG=1 shows where it happened."


class _StoppedError(UpdaterError):
    """A person ended the command."""

    code = "interrupted"
    hint = "What the service does goes on; `bascule status` shows it."
    exit_status = EXIT_STOPPED


class _WaitingError(UpdaterError):
    """A reboot was ordered and waits; the service goes on with it."""

    code = "waiting"
    hint = "The service reboots as soon as it may; `bascule why` shows what it waits for."
    exit_status = EXIT_ARMED


def not_yet(code: str, sentence: str) -> NoReturn:
    """End with what an order has to wait for."""
    raise _WaitingError(f"not yet: {sentence} [{code}]")


def tell(reply: Reply) -> int:
    """Print an error as sentence, hint and code; returns its exit status."""
    lines = f"error: {reply.sentence}\nhint: {reply.hint}\ncode: {reply.code}"
    click.echo(lines, err=True)
    return reply.status
