"""The root image: whole blocks, reproducible, and verified by veritysetup itself."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from images.errors import ImageSizeError, ToolFailedError
from images.reference import image, tree
from images.reference.tools import run
from images.reference.variants import noise
from images.reference.verity import BLOCK, SALT, Verity, format_arguments, root_hash_of

BUILT = datetime(2026, 11, 28, 10, tzinfo=UTC)
UUID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(autouse=True)
def _tools() -> None:
    for program, package in (("mkfs.erofs", "erofs-utils"), ("veritysetup", "cryptsetup-bin")):
        if shutil.which(program, path="/usr/bin:/usr/sbin:/sbin") is None:
            pytest.skip(f"{program} is not installed (package {package})")


def folder(path: Path) -> Path:
    tree.place(path, "usr/lib/bascule/image.toml", b'version = "1.0.0"\n')
    tree.place(path, "sbin/init", b"#!/bin/sh\n" * 2000, executable=True)
    tree.place(path, "usr/lib/noise", noise(64 * 1024, "enough for a tree"))
    tree.link(path, "bin", "usr/bin")
    (path / "var").mkdir()
    return path


def make(root: Path, output: Path, *, built: datetime = BUILT) -> Verity:
    return image.make(root, output, name="product board 1.0.0 good", built=built)


def verify(output: Path, verity: Verity) -> bool:
    done = subprocess.run(
        [
            "/usr/sbin/veritysetup", "verify", output, output, verity.root_hash,
            f"--hash-offset={verity.data_blocks * BLOCK}",
        ],
        check=False, capture_output=True,
    )  # fmt: skip
    return done.returncode == 0


def test_the_image_is_whole_blocks_that_veritysetup_verifies(tmp_path: Path) -> None:
    output = tmp_path / "root.img"
    verity = make(folder(tmp_path / "root"), output)
    assert output.stat().st_size % BLOCK == 0
    assert verify(output, verity)


def test_one_flipped_bit_of_data_or_tree_is_found(tmp_path: Path) -> None:
    output = tmp_path / "root.img"
    verity = make(folder(tmp_path / "root"), output)
    whole = output.read_bytes()
    tree_start = (verity.data_blocks + 1) * BLOCK
    assert len(whole) > tree_start
    for place in (1024, verity.data_blocks * BLOCK - 1, tree_start):
        broken = bytearray(whole)
        broken[place] ^= 1
        output.write_bytes(broken)
        assert not verify(output, verity), place


def test_the_superblock_names_what_the_initrd_is_told(tmp_path: Path) -> None:
    output = tmp_path / "root.img"
    verity = make(folder(tmp_path / "root"), output)
    offset = f"--hash-offset={verity.data_blocks * BLOCK}"
    dump = run(["veritysetup", "dump", output, offset])
    assert f"Data blocks:     \t{verity.data_blocks}\n" in dump
    assert "Hash algorithm:  \tsha256\n" in dump
    assert verity.text == (
        f"data_blocks={verity.data_blocks}\nsalt={SALT}\nroot_hash={verity.root_hash}\n"
    )


def test_the_same_files_give_the_same_bytes_wherever_and_whenever_they_lie(tmp_path: Path) -> None:
    first, second = tmp_path / "1.img", tmp_path / "2.img"
    root = folder(tmp_path / "root")
    make(root, first)
    tree.copy(root, tmp_path / "elsewhere" / "copy")
    (tmp_path / "elsewhere/copy/sbin").touch()
    make(tmp_path / "elsewhere" / "copy", second)
    assert first.read_bytes() == second.read_bytes()


def test_another_file_or_another_time_gives_other_bytes(tmp_path: Path) -> None:
    root = folder(tmp_path / "root")
    first = make(root, tmp_path / "1.img")
    later = make(root, tmp_path / "2.img", built=datetime(2026, 11, 28, 11, tzinfo=UTC))
    tree.place(root, "sbin/init", b"#!/bin/sh\nexit 1\n", executable=True)
    changed = make(root, tmp_path / "3.img")
    assert len({first.root_hash, later.root_hash, changed.root_hash}) == 3


def test_everything_belongs_to_root_whoever_builds(tmp_path: Path) -> None:
    output = tmp_path / "root.img"
    make(folder(tmp_path / "root"), output)
    shown = run(["dump.erofs", "--path=/sbin/init", output])
    assert "Uid: 0   Gid: 0  Access: 0755" in shown


def test_an_image_that_is_not_whole_blocks_is_refused() -> None:
    with pytest.raises(ImageSizeError, match="4097 bytes"):
        format_arguments(Path("root.img"), size=4097, uuid=UUID)


def test_an_output_without_a_root_hash_is_not_taken() -> None:
    with pytest.raises(ToolFailedError, match="no root hash"):
        root_hash_of("VERITY header information\n")
