"""`bascule config`: the settings, checked or shown with where each value is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from updater.cli.root import AS_JSON, Shared, bascule, pass_shared, show

if TYPE_CHECKING:
    from updater.settings import Settings


@bascule.group()
def config() -> None:
    """Check or show the settings."""


@config.command("check")
@click.option("--settings-only", is_flag=True, help="Do not look at this machine.")
@pass_shared
def config_check(shared: Shared, *, settings_only: bool) -> None:
    """Say whether the settings hold, and whether this machine has what they name.

    Example: bascule config check
    """
    from updater.assembly import etcd_settings, slot_layout
    from updater.given import load_keys
    from updater.settings import load

    loaded = load(shared.config)
    slot_layout(loaded.settings)
    if loaded.settings.permit.kind == "etcd":
        etcd_settings(loaded.settings.permit)
    load_keys(loaded.settings.trust.payload_keys)
    if rows := loaded.settings.reboot.windows:
        from updater.windows import read_windows
        from updater.zones import local_zone

        read_windows(rows, local=local_zone())
    click.echo("settings hold: " + ", ".join(str(file) for file in loaded.files))
    if not settings_only:
        _check_machine(loaded.settings)


def _check_machine(settings: Settings) -> None:
    """Print what does not fit, a line each.

    Raises:
        MachineUnfitError: something does not.
    """
    from partitions.errors import BootControlUnknownError
    from updater.errors import MachineUnfitError
    from updater.fit import look

    click.echo(f"boot loader: {_loader(settings)['words']}")
    fit = look(settings)
    for note in fit.notes:
        click.echo(f"note: {note}")
    for fault in fit.faults:
        if not isinstance(fault, BootControlUnknownError):  # it is told already
            click.echo(f"does not fit: {fault} [{fault.code}]")
    if fit.faults:
        raise MachineUnfitError(f"this machine does not fit the settings in {len(fit.faults)} ways")


@config.command("show")
@AS_JSON
@pass_shared
def config_show(shared: Shared, *, as_json: bool) -> None:
    """Show every setting and the file it comes from.

    Example: bascule config show
    """
    import msgspec

    from updater.settings import load

    loaded = load(shared.config)
    values: dict[str, dict[str, Any]] = msgspec.to_builtins(loaded.settings)
    rows = [
        {
            "key": f"{table}.{key}",
            "value": value,
            "origin": _origin(loaded.origins, f"{table}.{key}"),
        }
        for table, content in values.items()
        for key, value in content.items()
    ]
    for row in rows:
        if row["key"] == "slots.boot_control":
            row |= {"found": _loader(loaded.settings)}
    show(rows, map(_line, rows), as_json=as_json)


def _line(row: Mapping[str, Any]) -> str:
    found = f"; {row['found']['words']}" if "found" in row else ""
    return f"{row['key']} = {json.dumps(row['value'])}  # {row['origin']}{found}"


def _loader(settings: Settings) -> dict[str, str | None]:
    """Tell which boot loader this machine has; the settings may be read on another one."""
    from partitions.boot import choose_loader
    from partitions.errors import BootControlUnknownError
    from updater.assembly import places, slot_layout

    try:
        choice = choose_loader(settings.slots.boot_control, places(settings, slot_layout(settings)))
    except BootControlUnknownError as error:
        return {"name": None, "code": error.code, "words": f"{error} [{error.code}]"}
    words = f"{choice.name}, since {choice.because}"
    return {"name": choice.name, "code": None, "words": words}


def _origin(origins: Mapping[str, Path], key: str) -> str:
    """Name the file that a value, or a table below it, is from."""
    below = (origins[name] for name in origins if name.startswith(f"{key}."))
    return str(origins.get(key) or next(below, "default"))
