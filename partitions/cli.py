"""`bascule-image disk`: disk files with slots. Words in, words out; the work is in `disk_image.py`.

The group joins `bascule-image` by entry point (`bascule.image_commands`), so that the two rooms do
not import each other. Errors of this room pass through: who runs the group prints them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import rich_click as click

from partitions.attributes import BootBits
from partitions.disk_image import FirmwareFile, create_disk
from partitions.disk_settings import slots_settings
from partitions.errors import OutputUnwritableError
from partitions.gpt import Entry, Table
from partitions.layout import DiskLayout, Filesystem, read_layout
from partitions.loaders import LOADERS, efi
from partitions.table import read_table


@click.group()
def disk() -> None:
    """Make and look at disk files with two slots."""


@disk.command(epilog="Example: bascule-image disk create node.toml --output n.img --install usr=v1")
@click.argument("layout", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The disk file; appears when all is done.",
)
@click.option(
    "--install",
    "installs",
    multiple=True,
    metavar="PART=IMAGE",
    help="The first image of a part of slot A. All parts, or none.",
)
@click.option(
    "--loader",
    type=click.Choice(sorted(LOADERS)),
    help="Install this boot loader, so that the disk boots slot A.",
)
@click.option(
    "--contents",
    "folders",
    multiple=True,
    metavar="LABEL=FOLDER",
    help="Copy a folder into a partition's file system, as `contents` in the layout does.",
)
@click.option(
    "--efi-vars",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Make a virtual machine's file of EFI variables, with the loader's boot entries.",
)
@click.option(
    "--efi-template",
    type=click.Path(path_type=Path, dir_okay=False),
    default=efi.TEMPLATE,
    show_default=True,
    help="The fresh file of EFI variables that --efi-vars starts from.",
)
@click.option(
    "--settings",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the section [slots] of the node's settings that goes with the disk.",
)
@click.option("--seed", help="Derive all GUIDs from this text, as `seed` in the layout does.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def create(  # noqa: PLR0913, PLR0917 - click hands over each option as an argument
    layout: Path,
    output: Path,
    installs: tuple[str, ...],
    loader: str | None,
    folders: tuple[str, ...],
    efi_vars: Path | None,
    efi_template: Path,
    settings: Path | None,
    seed: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Make a disk file from a LAYOUT (TOML): ESP, slots A and B, state, and a boot loader."""
    if settings and not loader:
        raise click.UsageError("--settings needs --loader: they say how the node speaks to it")
    if efi_vars and not (loader and LOADERS[loader].started_by_efi):
        able = ", ".join(name for name, one in sorted(LOADERS.items()) if one.started_by_efi)
        raise click.UsageError(f"--efi-vars needs a --loader that EFI firmware starts: {able}")
    if settings:
        _check_writable(settings)
    read = _with_contents(read_layout(layout), _pairs(folders, "--contents", "LABEL=FOLDER"))
    if seed:
        read = replace(read, seed=seed)
    table = create_disk(
        read,
        output,
        images=_pairs(installs, "--install", "PART=IMAGE"),
        loader=loader,
        firmware=FirmwareFile(output=efi_vars, template=efi_template) if efi_vars else None,
        replace=force,
    )
    if settings and loader:
        settings.write_text(slots_settings(read, LOADERS[loader]))
    _print(output, table, as_json=as_json)
    if loader and not installs:
        click.echo("note: nothing is installed in slot A: the disk boots nothing yet", err=True)
    if loader == "efi" and not efi_vars:
        click.echo(
            "note: the firmware's entries are not on the disk: --efi-vars makes them for a virtual "
            "machine, docs/loaders.md tells how on a real one",
            err=True,
        )


def _check_writable(path: Path) -> None:
    """Make sure that a file can be written, before a disk is made or replaced.

    Raises:
        OutputUnwritableError: it cannot.
    """
    is_there = path.exists()
    try:
        path.open("ab").close()
        if not is_there:
            path.unlink()
    except OSError as error:
        raise OutputUnwritableError.because(path, error) from error


@disk.command(epilog="Example: bascule-image disk show node.img")
@click.argument("path", metavar="DISK", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def show(path: Path, *, as_json: bool) -> None:
    """Print the partitions of a DISK (file or device) and what the boot loader counts."""
    _print(path, read_table(path), as_json=as_json)


def _pairs(texts: tuple[str, ...], option: str, form: str) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{text!r} is not {form}", param_hint=option)
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = Path(path)
    return pairs


def _with_contents(layout: DiskLayout, folders: Mapping[str, Path]) -> DiskLayout:
    labels = [one.label for one in layout.partitions if one.filesystem is not Filesystem.NONE]
    for label in folders:
        if label not in labels:
            raise click.BadParameter(
                f"no partition {label!r} with a file system; there are: {', '.join(labels)}",
                param_hint="--contents",
            )
    partitions = (
        replace(one, contents=folders.get(one.label, one.contents)) for one in layout.partitions
    )
    return replace(layout, partitions=tuple(partitions))


def _print(path: Path, table: Table, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts(path, table), indent=2))
        return
    click.echo(
        f"{path}: {table.disk_sectors * table.sector_size} bytes in sectors of "
        f"{table.sector_size}, disk GUID {table.header.disk_guid}"
    )
    for entry in table.entries:
        click.echo(
            f"{entry.number:3}  {entry.name:20}  {entry.sectors * table.sector_size:>14} bytes "
            f"at {entry.first_lba * table.sector_size:<14}  {_bits(entry)}"
        )
    for fault in table.faults:
        click.echo(f"attention: {fault}; the next change mends it", err=True)


def _bits(entry: Entry) -> str:
    bits = BootBits.of(entry.attributes)
    return "" if bits == BootBits() else bits.words


def facts(path: Path, table: Table) -> dict[str, object]:
    """Return what `show --json` prints; the keys are stable."""
    return {
        "path": str(path),
        "sector_size": table.sector_size,
        "size": table.disk_sectors * table.sector_size,
        "guid": str(table.header.disk_guid),
        "faults": list(table.faults),
        "partitions": [_partition(entry, table.sector_size) for entry in table.entries],
    }


def _partition(entry: Entry, sector_size: int) -> dict[str, object]:
    bits = BootBits.of(entry.attributes)
    return {
        "number": entry.number,
        "label": entry.name,
        "partuuid": str(entry.part_guid),
        "type": str(entry.type_guid),
        "offset": entry.first_lba * sector_size,
        "size": entry.sectors * sector_size,
        "attributes": f"{entry.attributes:016x}",
        "priority": bits.priority,
        "tries": bits.tries,
        "successful": bits.successful,
    }
