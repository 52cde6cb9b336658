"""A file out of images that the real mkfs.erofs made, and out of damaged ones."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images.erofs import read_erofs

FACTS = b'product = "acme-os"\n' * 10
FILE = "usr/lib/bascule/image.toml"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with files of all sizes about a block, in a folder of several blocks."""
    folder = tmp_path_factory.mktemp("tree")
    own = folder / "usr/lib/bascule"
    own.mkdir(parents=True)
    (own / "image.toml").write_bytes(FACTS)
    for size in (0, 1, 4095, 4096, 4097, 9000):
        (own / f"size-{size}").write_bytes(random.Random(size).randbytes(size))
    for number in range(300):
        (folder / f"usr/lib/a-library-with-a-rather-long-name-{number}").touch()
    (own / "text").write_bytes(b"compresses well " * 4096)
    (own / "link").symlink_to("image.toml")
    return folder


@pytest.fixture(
    params=[
        (),
        ("-zlz4hc",),
        ("-Eforce-inode-compact",),
        ("-Enoinline_data",),
        ("-T1000000000", "--all-root"),
    ],
    scope="module",
)
def image(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("mkfs.erofs is not installed (package erofs-utils)")
    path = tmp_path_factory.mktemp("image") / "image.erofs"
    command = ["mkfs.erofs", *request.param, str(path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return path.read_bytes()


def test_a_packed_file_is_none_or_itself(tree: Path, tmp_path: Path) -> None:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("mkfs.erofs is not installed (package erofs-utils)")
    image = tmp_path / "image.erofs"
    command = ["mkfs.erofs", "-zlz4hc", "-Eztailpacking", str(image), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    assert read(image.read_bytes(), FILE) in {None, FACTS}


def reader(image: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: image[offset : offset + size]


def read(image: bytes, path: str, max_bytes: int = 100_000) -> bytes | None:
    return read_erofs(reader(image), path, max_bytes=max_bytes)


def test_a_file_is_read(image: bytes) -> None:
    assert read(image, FILE) == FACTS
    assert read(image, f"/{FILE}") == FACTS


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 9000])
def test_files_of_every_size_about_a_block_are_read(image: bytes, size: int) -> None:
    assert read(image, f"usr/lib/bascule/size-{size}") == random.Random(size).randbytes(size)


def test_no_more_is_read_than_asked_for(image: bytes) -> None:
    assert read(image, FILE, max_bytes=7) == FACTS[:7]
    asked: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        asked.append(size)
        return image[offset : offset + size]

    read_erofs(read_at, "usr/lib/bascule/size-9000", max_bytes=5000)
    assert max(asked) < 64 * 1024


@pytest.mark.parametrize(
    "path",
    [
        "usr/lib/bascule/no",
        "no/lib",
        "usr/lib/bascule",
        "usr/lib/bascule/link",
        f"{FILE}/more",
        "",
        "/".join("x" * 20),
    ],
)
def test_what_is_no_plain_file_is_none(image: bytes, path: str) -> None:
    assert read(image, path) is None


def test_a_compressed_file_is_none_and_never_its_compressed_bytes(image: bytes) -> None:
    assert read(image, "usr/lib/bascule/text") in {None, b"compresses well " * 4096}


def test_an_image_of_something_else_is_none() -> None:
    for image in (b"", bytes(8192), b"\xff" * 8192):
        assert read(image, FILE) is None


def test_damage_ends_in_some_answer_and_in_no_endless_reading(image: bytes) -> None:
    """Flips and cuts wherever metadata is: the answer may be wrong, as hashes judge elsewhere."""
    chance = random.Random(7)
    for _ in range(2000):
        bent = bytearray(image[: 256 * 1024])
        for _ in range(chance.randint(1, 4)):
            bent[chance.randrange(1024, min(len(bent), 24 * 1024))] = chance.randrange(256)
        answer = read(bytes(bent[: chance.choice([len(bent), 1100, 4096, 9000])]), FILE, 4096)
        assert answer is None or len(answer) <= 4096


def test_a_folder_of_zeros_has_no_file() -> None:
    """A slot that was written in part: its superblock is there, its folders are not."""
    image = bytearray(64 * 4096)
    struct.pack_into("<4s8xBxH", image, 1024, b"\xe2\xe1\xf5\xe0", 12, 36)
    # A compact inode in slot 36: a folder of one block, stored as it is in block 5.
    struct.pack_into("<HHHHIII", image, 36 * 32, 0, 0, 0o040755, 2, 4096, 0, 5)
    assert read(bytes(image), FILE) is None
