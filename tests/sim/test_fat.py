"""The model of FAT does what Linux does with one: other people's programs agree with every step."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.sim.fat import Fat, Shape, read_tree
from tests.sim.gpt_tools import run

SIZE_BYTES = 2304 * 1024


@pytest.fixture(params=[16, 32])
def empty(tmp_path: Path, request: pytest.FixtureRequest) -> bytes:
    """An empty FAT, as mkfs.vfat makes it."""
    image = tmp_path / "fat.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    run("mkfs.vfat", "-F", str(request.param), "-s", "1", "-i", "12345678", "--invariant", image)
    return image.read_bytes()


def agreed(image: bytes, folder: Path, expected: dict[str, bytes]) -> None:
    """Ask the reader, fsck.vfat and mtools what an image holds."""
    assert read_tree(image).files == expected
    path = folder / "judged.img"
    path.write_bytes(image)
    run("fsck.vfat", "-n", path)  # fails when it finds anything
    if Shape.of(image).bits == 32:
        return  # mtools take so small a FAT32 for something else
    for name, content in expected.items():
        copy = folder / "copy"
        run("mcopy", "-n", "-o", "-i", path, f"::{name}", copy)
        assert copy.read_bytes() == content, name


def test_files_folders_and_long_names(empty: bytes, tmp_path: Path) -> None:
    fat = Fat(empty)
    fat.mkdir("loader")
    fat.mkdir("loader/entries")
    expected: dict[str, bytes] = {}
    for number in range(30):  # more than one cluster of a folder holds
        name = f"loader/entries/bascule-with-a-long-name-{number}+3.conf"
        fat.create(name)
        expected[name] = random.Random(number).randbytes(number * 61)
        fat.write(name, 0, expected[name])
    agreed(bytes(fat.image), tmp_path, expected)
    for number in range(0, 30, 2):
        name = f"loader/entries/bascule-with-a-long-name-{number}+3.conf"
        fat.remove(name)
        fat.release(name)
        del expected[name]
    fat.rename("loader/entries/bascule-with-a-long-name-1+3.conf", "loader/entries/one.conf")
    expected["loader/entries/one.conf"] = expected.pop(
        "loader/entries/bascule-with-a-long-name-1+3.conf"
    )
    fat.rename("loader/entries/one.conf", "loader/entries/bascule-with-a-long-name-3+3.conf")
    fat.release("loader/entries/bascule-with-a-long-name-3+3.conf")
    expected["loader/entries/bascule-with-a-long-name-3+3.conf"] = expected.pop(
        "loader/entries/one.conf"
    )
    fat.create("linux")
    fat.resize("linux", 70_000)
    fat.write("linux", 512, b"x" * 3000)
    fat.resize("linux", 5000)
    expected["linux"] = bytes(512) + b"x" * 3000 + bytes(5000 - 3512)
    agreed(bytes(fat.image), tmp_path, expected)


def test_what_became_dirty_is_all_that_changed(empty: bytes) -> None:
    fat = Fat(empty)
    disk = bytearray(empty)
    fat.mkdir("bascule")
    fat.create("bascule/linux")
    fat.write("bascule/linux", 0, b"k" * 5000)
    fat.create("bascule/initrd")
    fat.write("bascule/initrd", 0, b"i" * 5000)
    fat.remove("bascule/linux")
    fat.release("bascule/linux")
    for dirty in fat.changed():
        disk[dirty.sector * 512 : (dirty.sector + 1) * 512] = dirty.data
    assert disk == fat.image
    assert fat.changed() == []


def test_a_full_file_system_says_so(empty: bytes) -> None:
    fat = Fat(empty)
    fat.create("linux")
    with pytest.raises(OSError, match="no space"):
        fat.resize("linux", SIZE_BYTES)
