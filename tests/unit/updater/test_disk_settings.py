"""The `[slots]` that `disk create --settings` writes are settings of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions import loaders
from partitions.disk_settings import slots_settings
from partitions.layout import read_layout
from partitions.loaders import LOADERS
from updater.settings import load

LAYOUT = Path(loaders.__file__).parents[1] / "layouts/reference.toml"


@pytest.mark.parametrize("name", LOADERS)
def test_the_settings_of_each_loader_are_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / "node.toml"
    section = slots_settings(read_layout(LAYOUT), LOADERS[name])
    path.write_text(f'{section}[trust]\nmetadata_url = "https://desk.example/metadata/"\n')
    slots = load(path).settings.slots
    assert slots.boot_control == LOADERS[name].boot_control
    assert slots.disk == "/dev/disk/by-partlabel/root-a"
    assert slots.a.keys() == slots.b.keys()
    assert slots.b == {
        "root": "PARTLABEL=root-b",
        "kernel": "FILE=/boot/bascule/b/linux",
        "initrd": "FILE=/boot/bascule/b/initrd",
    }
