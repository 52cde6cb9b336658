"""The `[slots]` of a node's settings that go with a disk of a layout and a loader. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath

from partitions.layout import LETTERS, DiskLayout, Role
from partitions.loaders.job import Loader


def slots_settings(layout: DiskLayout, loader: Loader) -> str:
    """Return the section as TOML, to be copied into the node's settings.

    The disk is named by the label of one of its partitions, so that it is found on any bus.
    """
    labels = [one.label for one in layout.partitions if one.role is Role.SLOT_A]
    first = (labels or [layout.partitions[0].label])[0]
    lines = [
        "[slots]",
        f'disk = "/dev/disk/by-partlabel/{first}"',
        f'boot_control = "{loader.boot_control}"',
        *(f'{key} = "{value}"' for key, value in loader.settings(layout).items()),
        f"tries = {loader.tries}",
        *(f"{letter} = {{ {_parts(layout, role)} }}" for role, letter in LETTERS.items()),
    ]
    return "\n".join(lines) + "\n"


def _parts(layout: DiskLayout, role: Role) -> str:
    partitions = {
        one.part: f"PARTLABEL={one.label}" for one in layout.partitions if one.role is role
    }
    files = {
        file.part: f"FILE={PurePosixPath(layout.boot_folder) / file.names[role].lstrip('/')}"
        for file in layout.files
    }
    return ", ".join(f'{part} = "{place}"' for part, place in (partitions | files).items())
