"""The last bytes of files in images that mkfs.erofs made, found without the names of the files."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from images import coders
from images.file_tails import Tail, find_tails
from images.packed import LZ4_LEGACY_MAGIC, _legacy_blocks
from tests.sim.coders import need_coders

BLOCK = 4096
SIZES = {"a": 5000, "b": 3 * BLOCK, "c": 700, "d": 40 * BLOCK + 1, "e": 2 * BLOCK + 3000}


@pytest.fixture(params=[(), ("-Eforce-inode-compact",), ("-Eforce-inode-extended",)])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("mkfs.erofs is not installed (package erofs-utils)")
    (tmp_path / "tree").mkdir()
    for name, data in files().items():
        (tmp_path / "tree" / name).write_bytes(data)
    subprocess.run(
        ["mkfs.erofs", *request.param, "-T0", tmp_path / "image", tmp_path / "tree"],
        check=True, capture_output=True,
    )  # fmt: skip
    return (tmp_path / "image").read_bytes()


def files() -> dict[str, bytes]:
    chosen = random.Random(5)
    return {name: chosen.randbytes(size) for name, size in SIZES.items()}


def test_a_file_is_read_to_its_end_from_where_its_blocks_are(image: bytes) -> None:
    tails = find_tails(lambda at, size: image[at : at + size], len(image))

    inlined = 0
    for data in files().values():
        start = image.find(data[:BLOCK])
        whole = image.find(data) >= 0
        tail = tails.of(start) if len(data) > BLOCK else None
        if tail is None:
            assert whole
            continue
        inlined += 1
        read = tail.behind(lambda at, size: image[at : at + size])
        assert (tail.start, tail.end) == (start, start + len(data) // BLOCK * BLOCK)
        assert read(start, len(data)) == data
        assert read(start + 100, len(data)) == data[100:]
        assert read(tail.end + 2, 5) == data[len(data) // BLOCK * BLOCK :][2:7]
        assert tails.of(tail.end) is None or tails.of(tail.end) != tail
    assert inlined >= 2


def test_another_file_system_has_none(image: bytes) -> None:
    other = image[:1024] + b"none" + image[1028:]
    tails = find_tails(lambda at, size: other[at : at + size], len(other))

    assert all(tails.of(at) is None for at in range(0, len(other), BLOCK))


def test_a_block_of_lz4_that_lies_in_a_tail_alone_is_none_of_the_image() -> None:
    """Behind the last whole block of its file the image has something else."""
    need_coders()
    chosen = random.Random(3)
    blocks = [bytes(coders._lz4(data, 9)) for data in (bytes(8 << 20), chosen.randbytes(300))]
    frame = LZ4_LEGACY_MAGIC + b"".join(struct.pack("<I", len(one)) + one for one in blocks)
    whole = len(frame) // BLOCK * BLOCK
    assert whole <= 4 + 4 + len(blocks[0]) + 4
    image = frame[:whole] + bytes(BLOCK) + frame[whole:]
    tail = Tail(0, whole, whole + BLOCK, len(frame) - whole)

    found = list(_legacy_blocks(lambda at, size: image[at : at + size], 0, len(image), tail))

    assert [(one.offset, one.end) for one in found] == [(8, whole)]
