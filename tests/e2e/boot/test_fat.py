"""The reader of FAT that judges crash states, beside mtools and mkfs.vfat."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.e2e.boot.fat import Fat
from tests.sim.gpt_tools import program, run

MIB = 1024 * 1024
FILES = {
    "linux": 70_000,
    "a/long name of a file.conf": 300,
    "a/b/empty": 0,
    "SHORT.TXT": 512,
    "a/b/UPPER and lower+3.conf": 4097,
}


@pytest.mark.parametrize(
    ("bits", "size", "per_cluster"), [(12, 2 * MIB, 2), (16, 16 * MIB, 2), (32, 40 * MIB, 1)]
)
def test_the_reader_finds_what_mtools_wrote(
    tmp_path: Path, bits: int, size: int, per_cluster: int
) -> None:
    image, data = tmp_path / "fat", tmp_path / "data"
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.vfat", "-F", bits, "-s", per_cluster, image)
    chance = random.Random(bits)
    contents = {name: chance.randbytes(length) for name, length in FILES.items()}
    run("mmd", "-i", image, "::a", "::a/b")
    for name, content in contents.items():
        data.write_bytes(content)
        run("mcopy", "-i", image, data, f"::{name}")
    run("mdel", "-i", image, "::linux")  # its clusters are free again, and others are between
    data.write_bytes(contents["linux"])
    run("mcopy", "-i", image, data, "::linux")
    held = image.read_bytes()

    fat = Fat(lambda at, length: held[at : at + length])

    files = {name: found for name, found in fat.files().items() if not found.is_folder}
    assert {name: fat.content(found) for name, found in files.items()} == {
        name.lower(): content for name, content in contents.items()
    }


def test_metadata_is_all_that_fsck_looks_at(tmp_path: Path) -> None:
    image = tmp_path / "fat"
    with image.open("wb") as file:
        file.truncate(40 * MIB)
    run("mkfs.vfat", "-F", "32", "-s", "1", image)
    run("mmd", "-i", image, "::folder")
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    run("mcopy", "-i", image, tmp_path / "file", "::folder/file")
    held = image.read_bytes()
    fat = Fat(lambda at, length: held[at : at + length])
    copy = tmp_path / "copy"
    with copy.open("wb") as file:
        file.truncate(len(held))
        for at, length in fat.metadata():
            file.seek(at)
            file.write(held[at : at + length])

    for one in (image, copy):
        done = subprocess.run(
            [program("fsck.vfat"), "-n", "-v", str(one)], check=False, capture_output=True
        )
        assert done.returncode == 0
