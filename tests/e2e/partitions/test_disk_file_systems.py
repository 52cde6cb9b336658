"""`disk create` with real mkfs programs: the file systems are sound where the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.disk_image import create_disk
from partitions.gpt import Entry, Table
from partitions.layout import parse_layout
from tests.sim.gpt_tools import program, run, sgdisk_is_content

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
LAYOUT = """\
seed = "node-1"
[[partition]]
label = "ESP"
role = "esp"
size = "40MiB"
filesystem = "vfat"
[[partition]]
label = "STATE-OF-THE-NODE"
role = "state"
size = "16MiB"
filesystem = "ext4"
"""


@pytest.fixture(params=[512, 4096])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Table]:
    for name in ("mkfs.vfat", "mkfs.ext4"):
        program(name)
    path = tmp_path / "disk.img"
    return path, _create(path, sector_size=request.param)


def _create(path: Path, *, sector_size: int) -> Table:
    text = f"sector_size = {sector_size}\n{LAYOUT}"
    return create_disk(parse_layout(text.encode(), name="x"), path, images={})


def _cut_out(disk: tuple[Path, Table], entry: Entry) -> Path:
    path, table = disk
    part = path.with_name(f"part-{entry.number}.img")
    begin, size = entry.first_lba * table.sector_size, entry.sectors * table.sector_size
    part.write_bytes(path.read_bytes()[begin : begin + size])
    return part


def test_the_esp_is_a_sound_fat_with_its_label(disk: tuple[Path, Table]) -> None:
    esp = _cut_out(disk, disk[1].entries[0])
    run("fsck.vfat", "-n", esp)
    assert 'LABEL="ESP"' in run("blkid", "--probe", esp)
    assert int.from_bytes(esp.read_bytes()[11:13], "little") == disk[1].sector_size


def test_the_state_is_a_sound_ext4_with_its_label(disk: tuple[Path, Table]) -> None:
    state = _cut_out(disk, disk[1].entries[1])
    run("fsck.ext4", "-n", "-f", state)
    facts = run("dumpe2fs", "-h", state)
    assert "STATE-OF-THE-NOD" in facts  # an ext4 label has 16 bytes


def test_a_disk_with_file_systems_passes_sgdisk_and_stays_sparse(disk: tuple[Path, Table]) -> None:
    path, table = disk
    if table.sector_size == 512:
        sgdisk_is_content(path)
    assert path.stat().st_blocks * 512 < 8 * MIB


def test_the_same_seed_makes_the_same_file_systems(
    disk: tuple[Path, Table], tmp_path: Path
) -> None:
    again = tmp_path / "again.img"
    _create(again, sector_size=disk[1].sector_size)
    assert again.read_bytes() == disk[0].read_bytes()
