"""What the system and the service run: the daemon, its steps, and verbs for other processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import msgspec

from updater.cli.root import Shared, bascule, pass_shared
from updater.client import Reply, reply_of
from updater.rooms import ROOM_ERRORS

if TYPE_CHECKING:
    from updater.bus.service import BusService
    from updater.node import Node


@bascule.command()
@pass_shared
def daemon(shared: Shared) -> None:
    """Run the service: check, install, reboot when permitted, prove health.

    Example: bascule --config node.toml daemon
    """
    import faulthandler
    import time

    from updater.daemon import Daemon
    from updater.journal import start_logging
    from updater.notify import Notifier, Watchdog, take_address, take_watchdog_limit

    notifier = Notifier(take_address(os.environ))
    limit = take_watchdog_limit(os.environ)
    faulthandler.enable()  # the watchdog's SIGABRT shows where each thread hung
    start_logging()
    node = shared.node()
    service = Daemon(
        node,
        [*own_command(shared), "step"],
        bus=_bus(shared, node),
        notifier=notifier,
        watchdog=Watchdog(notifier.alive, limit_secs=limit, monotonic=time.monotonic),
    )
    service.listen_to_signals()
    service.run()


def _bus(shared: Shared, node: Node) -> Callable[[Callable[[], None]], BusService] | None:
    """Return what makes the service's place on the bus; nothing is loaded where there is none."""
    from updater.bus.address import bus_address

    address = bus_address(node.settings)
    if not address:
        return None
    from updater.bus.service import BusService
    from updater.bus.session import Place

    def make(woken: Callable[[], None]) -> BusService:
        place = Place(
            node=node,
            command=[*own_command(shared), "verb"],
            compatible=node.settings.bus.compatible,
            woken=woken,
        )
        return BusService(place, address)

    return make


def own_command(shared: Shared) -> list[str]:
    """Return how this program is started again with the same settings, in the engine itself."""
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, "-m", "updater.cli", "--direct"]
    return [*command, "--config", str(shared.config)] if shared.config is not None else command


@bascule.command(hidden=True)
@click.option("--action", type=click.Choice(["check", "install"]), required=True)
@pass_shared
def step(shared: Shared, action: str) -> None:
    """Take one action; what the service runs for checks and installs."""
    from updater.daemon import Step
    from updater.journal import start_logging

    start_logging()
    Step(shared.node(), action).run()


@bascule.command(hidden=True)
@click.argument("name")
@click.argument("options", default="{}")
@click.option("--by", default="root")
@pass_shared
def verb(shared: Shared, name: str, options: str, by: str) -> None:
    """Carry out a verb with OPTIONS in JSON and print the reply; what the service runs."""
    from updater.daemon import end_with_parent, stop_on_signals
    from updater.journal import start_logging
    from updater.verbs import perform

    start_logging()
    end_with_parent()
    try:
        node = shared.node()
        stop_on_signals(node.stop)
        facts = perform(node, name, _options(name, options), by=by)
        reply = Reply(facts=msgspec.Raw(msgspec.json.encode(facts)))
    except ROOM_ERRORS as error:
        reply = reply_of(error)
    click.echo(msgspec.json.encode(reply))


def _options(name: str, text: str) -> dict[str, object]:
    from updater.verbs import VerbOptionsError

    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise VerbOptionsError(f"{name}: the options are no JSON object: {error}") from error
