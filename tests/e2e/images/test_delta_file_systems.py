"""Deltas between two versions of a tree, as each file system lays it out."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from images.apply import apply_file
from images.delta import build_delta

pytestmark = pytest.mark.e2e

Tool = Callable[[str], str]
FILES = 60  # modules of the standard library, about 1.5 MiB of them
UUID = "6c1a2f5e-0000-4000-8000-000000000001"
ALIGN = 4096  # bytes


def tree(folder: Path, *, is_new: bool) -> Path:
    """Lay out some of the standard library; the new version has files changed, added and gone."""
    folder.mkdir()
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:FILES]
    for number, module in enumerate(modules):
        content = module.read_bytes()
        if is_new and number % 7 == 0:
            content = content.replace(b"self", b"itself")
        if is_new and number % 11 == 0:
            content = b"# another first line\n" + content
        if not (is_new and number == 5):
            (folder / module.name).write_bytes(content)
    if is_new:
        (folder / "added.py").write_bytes(modules[3].read_bytes() + b"\n# added\n")
    return folder


def ext4(folder: Path, image: Path, tool: Tool) -> Sequence[str]:
    with image.open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    seed = f"hash_seed={UUID},lazy_itable_init=0"
    return [tool("mkfs.ext4"), "-q", "-F", "-U", UUID, "-E", seed, "-d", str(folder), str(image)]


def erofs(folder: Path, image: Path, tool: Tool) -> Sequence[str]:
    return [tool("mkfs.erofs"), "-T1700000000", "-U", UUID, str(image), str(folder)]


def erofs_lz4(folder: Path, image: Path, tool: Tool) -> Sequence[str]:
    return [*erofs(folder, image, tool)[:1], "-zlz4hc", *erofs(folder, image, tool)[1:]]


def squashfs(folder: Path, image: Path, tool: Tool) -> Sequence[str]:
    options = ["-quiet", "-no-progress", "-all-root", "-mkfs-time", "1700000000"]
    return [tool("mksquashfs"), str(folder), str(image), *options]


@pytest.mark.parametrize("make", [ext4, erofs, erofs_lz4, squashfs], ids=lambda make: make.__name__)
def test_a_delta_between_real_file_systems_makes_the_very_image(
    make: Callable[[Path, Path, Tool], Sequence[str]], tool: Tool, tmp_path: Path
) -> None:
    for version in ("v1", "v2"):
        folder = tree(tmp_path / f"{version}.tree", is_new=version == "v2")
        image = tmp_path / version
        subprocess.run(make(folder, image, tool), check=True, capture_output=True)
        with image.open("ab") as file:
            file.truncate(-(-image.stat().st_size // ALIGN) * ALIGN)
    payload = tmp_path / "delta"

    built = build_delta([("usr", tmp_path / "v2")], {"usr": tmp_path / "v1"}, payload)
    apply_file(payload, {"usr": tmp_path / "out"}, sources={"usr": tmp_path / "v1"})

    assert (tmp_path / "out").read_bytes() == (tmp_path / "v2").read_bytes()
    packed = [tool("zstd"), "-q", "-12", str(tmp_path / "v2"), "-o", str(tmp_path / "packed")]
    subprocess.run(packed, check=True)
    ratio = built.size_bytes / (tmp_path / "packed").stat().st_size
    assert ratio < 0.6  # of a squashfs half of what is new is packed, and looks like nothing
