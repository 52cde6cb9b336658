"""`bascule`: what a person says to a node. A verb loads the heavy libraries that it needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from updater.errors import (
    EXIT_ARMED,
    EXIT_DONE,
    EXIT_FAILED,
    UpdaterError,
)
from updater.rooms import ROOM_ERRORS, AnyRoomError

if TYPE_CHECKING:
    from updater.node import Node

P = ParamSpec("P")
R = TypeVar("R")

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


class _Context:
    """What all verbs share: where the settings are."""

    def __init__(self, config: Path | None) -> None:
        self.config = config

    def node(self) -> Node:
        from updater.assembly import build
        from updater.settings import load

        return build(load(self.config).settings)


pass_context = click.make_pass_decorator(_Context)


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
@click.version_option(package_name="bascule")
@click.pass_context
def bascule(context: click.Context, config: Path | None) -> None:
    """Update this machine as one image, and go back if it does not hold."""
    context.obj = _Context(config)


@bascule.command()
@AS_JSON
@pass_context
def status(context: _Context, *, as_json: bool) -> None:
    """Show state, slots, versions and what the node waits for.

    Example: bascule status --json
    """
    from updater import shown

    facts = shown.status(context.node())
    _print(facts, shown.status_lines(facts), as_json=as_json)


@bascule.command()
@AS_JSON
@pass_context
def slots(context: _Context, *, as_json: bool) -> None:
    """Show what each slot holds and what the boot loader would do.

    Example: bascule slots
    """
    from updater import shown

    rows = shown.slots(context.node())
    _print(rows, shown.slot_lines(rows), as_json=as_json)


@bascule.command()
@AS_JSON
@pass_context
def check(context: _Context, *, as_json: bool) -> None:
    """Ask now, change nothing; status 0 when an update is available, 4 when not.

    Example: bascule check && echo "there is something new"
    """
    from updater import checking

    node = context.node()
    with node.locked() as memory:
        found = checking.look(node, memory, by_person=True)
    release = found.release
    facts = {
        "version": release.version,
        "running": found.running.version,
        "payload": found.payload.path,
        "size": found.payload.size,
    }
    text = f"version {release.version} is available, {found.payload.size / 1e6:.1f} MB to fetch"
    _print(facts, [text], as_json=as_json)


@bascule.command()
@click.option("--force", is_flag=True, help="Also take a version that failed here before.")
@click.option("--version", "version", default="", help="Take this version and no other.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def update(context: _Context, *, force: bool, version: str, yes: bool) -> None:
    """Check, install and arm now; status 5 when a reboot is needed, 4 when nothing is newer.

    Example: bascule update --yes
    """
    from updater import checking, updating
    from updater.lifecycle import State

    node = context.node()
    with node.locked() as memory:
        if memory.state in {State.INSTALLING, State.VERIFYING} and not version:
            found = None
        else:
            if force and not yes:
                click.confirm("Take it even if it failed here before?", abort=True)
            memory, found = checking.check(
                node, memory, by_person=True, forced=force, version=version
            )
        with _progress_shown(node):
            memory = updating.install(node, memory, found, by_person=True)
    _tell_server(node)
    done = memory.update
    click.echo(f"version {done.version if done else ''} is armed; `bascule reboot` starts it")
    raise SystemExit(EXIT_ARMED)


@bascule.command()
@click.option("--now", is_flag=True, help="Do not wait for gates; the permit is still needed.")
@pass_context
def reboot(context: _Context, *, now: bool) -> None:
    """Start the armed slot, as soon as gates and permit allow.

    Example: bascule reboot
    """
    from updater import rebooting
    from updater.gates import first_closed
    from updater.permit.contract import Waiting

    node = context.node()
    with node.locked() as memory:
        memory = rebooting.order_reboot(node, memory)
        closed = None if now else first_closed(node.gates(memory))
        if closed is not None:
            _wait_message(closed.code, closed.sentence)
        memory, answer = rebooting.take_permit(node, memory)
        if isinstance(answer, Waiting):
            _wait_message(answer.code, answer.sentence)
        rebooting.reboot(node, memory)
    click.echo("the reboot is ordered")


@bascule.command()
@pass_context
def rollback(context: _Context) -> None:
    """Take an armed update back, or arm the other slot; that version is refused from then on.

    Example: bascule rollback && bascule reboot
    """
    from updater import rebooting
    from updater.lifecycle import State

    node = context.node()
    with node.locked() as memory:
        memory = rebooting.roll_back(node, memory)
    if memory.state is State.ARMED and memory.update:
        click.echo(f"version {memory.update.version} is armed; `bascule reboot` starts it")
        raise SystemExit(EXIT_ARMED)
    click.echo("the update was taken back; the running version stays")


@bascule.command()
@pass_context
def confirm(context: _Context) -> None:
    """Say that the running system is good, whatever the checks say; ends its trial.

    Example: bascule confirm
    """
    from updater import rebooting

    node = context.node()
    with node.locked() as memory:
        rebooting.confirm(node, memory)
    _tell_server(node)
    click.echo("the running system is confirmed")


@bascule.command()
@click.option("-n", "--lines", default=20, show_default=True, help="How many of the newest.")
@AS_JSON
@pass_context
def history(context: _Context, lines: int, *, as_json: bool) -> None:
    """Show what happened on this node, newest last.

    Example: bascule history -n 5
    """
    entries = context.node().store.history()[-lines:] if lines > 0 else []
    text = (
        f"{entry.pop('at', '')}  {entry.pop('what', '')}  "
        + " ".join(f"{key}={value}" for key, value in entry.items())
        for entry in (dict(entry) for entry in entries)
    )
    _print(entries, text, as_json=as_json)


@bascule.group()
def permit() -> None:
    """Show or change who may reboot."""


@permit.command("status")
@AS_JSON
@pass_context
def permit_status(context: _Context, *, as_json: bool) -> None:
    """Show holders, places and the queue.

    Example: bascule permit status
    """
    from updater import shown

    facts = shown.permit(context.node().permits().status())
    places = "no such group yet" if facts["max"] is None else f"{facts['max']} places"
    text = [f"group {facts['group']}: {places}, {facts['waiting']} waiting"]
    text += [
        f"held by {h['host']} ({h['id']}) since {h['since']}: {h['reason']}"
        for h in facts["holders"]
    ]
    _print(facts, text, as_json=as_json)


@permit.command("set-max")
@click.argument("places", type=int)
@pass_context
def permit_set_max(context: _Context, places: int) -> None:
    """Set how many nodes of the group may be down at once; 0 stops all reboots.

    Example: bascule permit set-max 3
    """
    change = context.node().permits().set_max(places)
    click.echo(f"places: {change.before} before, {change.after} now, {change.held} held")


@permit.command("return")
@click.argument("holder", required=False)
@pass_context
def permit_return(context: _Context, holder: str | None) -> None:
    """Return this node's permit, or that of HOLDER, a node known to be dead.

    Example: bascule permit return 3d1219c7c4c5404aaa1f6d2a48adfda4
    """
    node = context.node()
    if holder is None:
        from updater import rebooting

        with node.locked() as memory:
            held = rebooting.return_own_permit(node, memory)
        click.echo("returned" if held else "this node held none")
        return
    gone = node.permits().return_for(holder)
    click.echo(f"returned the permit of {gone.host} ({gone.id})")


@bascule.group()
def config() -> None:
    """Check or show the settings."""


@config.command("check")
@pass_context
def config_check(context: _Context) -> None:
    """Read all settings, the keys and time zones that they name, and say whether they hold.

    Example: bascule config check
    """
    from updater.assembly import slot_layout
    from updater.settings import load
    from updater.updating import load_keys

    loaded = load(context.config)
    slot_layout(loaded.settings)
    load_keys(loaded.settings.trust.payload_keys)
    if rows := loaded.settings.reboot.windows:
        from updater.windows import read_windows
        from updater.zones import local_zone

        read_windows(rows, local=local_zone())
    click.echo("settings hold: " + ", ".join(str(file) for file in loaded.files))


@config.command("show")
@AS_JSON
@pass_context
def config_show(context: _Context, *, as_json: bool) -> None:
    """Show every setting and the file it comes from.

    Example: bascule config show
    """
    import msgspec

    from updater.settings import load

    loaded = load(context.config)
    values: dict[str, dict[str, Any]] = msgspec.to_builtins(loaded.settings)
    rows = [
        {
            "key": f"{table}.{key}",
            "value": value,
            "origin": str(loaded.origins.get(f"{table}.{key}", "default")),
        }
        for table, content in values.items()
        for key, value in content.items()
    ]
    text = (f"{row['key']} = {json.dumps(row['value'])}  # {row['origin']}" for row in rows)
    _print(rows, text, as_json=as_json)


@bascule.command()
@pass_context
def daemon(context: _Context) -> None:
    """Run the service: check, install, reboot when permitted, prove health.

    Example: bascule --config node.toml daemon
    """
    from updater.daemon import Daemon, log_to_stderr

    log_to_stderr()
    worker = [sys.executable, "-m", "updater.cli"]
    if context.config is not None:
        worker += ["--config", str(context.config)]
    service = Daemon(context.node(), [*worker, "step"])
    service.listen_to_signals()
    service.run()


@bascule.command(hidden=True)
@click.option("--action", type=click.Choice(["check", "install"]), required=True)
@pass_context
def step(context: _Context, action: str) -> None:
    """Take one action; what the service runs for checks and installs."""
    from updater.daemon import Step, log_to_stderr

    log_to_stderr()
    Step(context.node(), action).run()


def reports_errors(command: Callable[P, R]) -> Callable[P, R | int]:
    """Turn any room's error into sentence, hint, code on stderr and its exit status."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | int:
        try:
            return command(*args, **kwargs)
        except ROOM_ERRORS as error:
            return _tell(error)

    return guarded


@reports_errors
def _run(arguments: list[str] | None) -> int:
    try:
        bascule.main(arguments, prog_name="bascule", standalone_mode=False)
    except click.exceptions.Abort:
        print("error: stopped", file=sys.stderr)
        return EXIT_FAILED
    except click.ClickException as error:
        error.show()
        return error.exit_code
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
        return _tell(_SystemError(f"{error.filename or 'the system'}: {error.strerror or error}"))


class _SystemError(UpdaterError):
    """The operating system refused something that nobody expected it to refuse."""

    code = "system"
    hint = "Check permissions and space; BASCULE_DEBUG=1 shows where it happened."


class _WaitingError(UpdaterError):
    """A reboot was ordered and waits; the service goes on with it."""

    code = "waiting"
    hint = "The service reboots as soon as it may; `bascule status` shows what it waits for."
    exit_status = EXIT_ARMED


def _wait_message(code: str, sentence: str) -> None:
    raise _WaitingError(f"not yet: {sentence} [{code}]")


def _tell(error: AnyRoomError) -> int:
    print(f"error: {error}\nhint: {error.hint}\ncode: {error.code}", file=sys.stderr)
    return error.exit_status


def _print(facts: object, lines: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for line in lines:
        click.echo(line)


def _tell_server(node: Node) -> None:
    """Send queued events if the server is there; the service sends what is left."""
    from updater.checking import present
    from updater.steering import flush

    if node.steering is None:
        return
    try:
        flush(node.store, node.steering, present(node, node.store.read_state()))
    except ROOM_ERRORS as error:
        click.echo(f"note: the server will be told later ({error})", err=True)


def _progress_shown(node: Node) -> Any:  # noqa: ANN401  # a context manager of two kinds
    from updater.terminal import shown_progress

    return shown_progress(node.progress, sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
