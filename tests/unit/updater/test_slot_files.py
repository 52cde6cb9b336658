"""Facts out of slots with other file systems than ext: real images, at an offset, unmounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions.slots import Region
from tests.sim.world import TOOLS
from updater import processes, slot_files
from updater.machine import ImageFactsError
from updater.processes import Outcome
from updater.slot_files import read_file

PATH = "/usr/lib/bascule/image.toml"
FACTS = b'product = "acme-os"\nversion = "1.0.0"\n'
OFFSET = 1024 * 1024 + 512
LARGE = b"compresses well, " * 1000
MIB = 1024 * 1024

COMMANDS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-d", "{tree}", "{image}", "4M"],
    "squashfs": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-all-root"],
    "erofs": ["mkfs.erofs", "--all-root", "{image}", "{tree}"],
    "erofs-lz4": ["mkfs.erofs", "-zlz4hc", "{image}", "{tree}"],
    "btrfs": ["mkfs.btrfs", "-q", "--rootdir", "{tree}", "{image}"],
}
PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "mkfs.erofs": "erofs-utils",
    "mkfs.btrfs": "btrfs-progs",
}


def make(folder: Path, kind: str, *, root: bool = True) -> Region:
    """Make a disk file with such an image in its middle; `root`: of /, else of /usr."""
    tree = folder / "tree"
    own = tree / ("usr/lib/bascule" if root else "lib/bascule")
    own.mkdir(parents=True)
    (own / "image.toml").write_bytes(FACTS)
    (own / "large").write_bytes(LARGE)
    (own / "link").symlink_to("/etc/hostname")
    image = folder / "image"
    command = [word.format(tree=tree, image=image) for word in COMMANDS[kind]]
    if shutil.which(command[0], path=TOOLS) is None:
        pytest.skip(f"{command[0]} is not installed (package {PACKAGES.get(command[0], '?')})")
    if kind == "btrfs":
        os.truncate(image, 0) if image.exists() else image.touch()
        os.truncate(image, 128 * MIB)
    subprocess.run(command, check=True, capture_output=True, env={"PATH": TOOLS})
    disk = folder / "disk.img"
    size = image.stat().st_size
    with disk.open("wb") as file:
        file.seek(OFFSET)
        file.write(image.read_bytes())
        file.write(os.urandom(MIB))
    return Region(path=disk, offset=OFFSET, size=size, partuuid="u", label="ROOT-B")


@pytest.fixture
def no_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the service's sandbox."""
    real = processes.run

    def run(command: list[str], **more: object) -> Outcome:
        if command[0] == "unshare":
            return Outcome(status=1, output=b"unshare: Operation not permitted")
        return real(command, **more)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(slot_files, "run", run)


@pytest.fixture
def mounting() -> Callable[[str], None]:
    """Skip where a kind of image cannot be mounted."""

    def check(kind: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting needs root")
        if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
            pytest.skip(f"this kernel mounts no {kind}")
        probe = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
        if probe.returncode != 0:
            pytest.skip("there are no loop devices")

    return check


@pytest.mark.usefixtures("no_mount")
@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("kind", ["ext4", "squashfs", "erofs", "erofs-lz4"])
def test_facts_are_read_without_mounting(tmp_path: Path, kind: str, root: bool) -> None:
    assert read_file(make(tmp_path, kind, root=root), PATH, max_bytes=1000) == FACTS


@pytest.mark.parametrize("kind", ["ext4", "squashfs", "erofs"])
def test_what_is_not_there_or_too_long_is_said(tmp_path: Path, kind: str) -> None:
    region = make(tmp_path, kind)
    with pytest.raises(ImageFactsError, match="cannot be read from ROOT-B"):
        read_file(region, "/usr/lib/bascule/other", max_bytes=1000)
    with pytest.raises(ImageFactsError, match="is longer than 10 bytes"):
        read_file(region, PATH, max_bytes=10)


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_a_link_in_the_image_leads_to_nothing_of_the_running_system(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ImageFactsError):
        read_file(make(tmp_path, kind), "/usr/lib/bascule/link", max_bytes=1000)


def test_a_compressed_file_of_erofs_is_read_through_a_mount_that_ends_with_it(
    tmp_path: Path, mounting: Callable[[str], None]
) -> None:
    mounting("erofs")
    region = make(tmp_path, "erofs-lz4")
    assert read_file(region, "/usr/lib/bascule/large", max_bytes=100_000) == LARGE
    assert str(region.path) not in subprocess.check_output(["losetup"], text=True)


def test_btrfs_is_read_through_a_mount(tmp_path: Path, mounting: Callable[[str], None]) -> None:
    mounting("btrfs")
    region = make(tmp_path, "btrfs")
    before = region.path.read_bytes()
    assert read_file(region, PATH, max_bytes=1000) == FACTS
    assert region.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", bytes(MIB), os.urandom(MIB)])
def test_a_slot_without_a_file_system_says_so(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(content)
    region = Region(path=disk, offset=0, size=len(content), partuuid="u", label="ROOT-B")
    with pytest.raises(ImageFactsError, match="file system unknown"):
        read_file(region, PATH, max_bytes=1000)


def test_a_disk_that_is_gone_says_so(tmp_path: Path) -> None:
    region = Region(path=tmp_path / "no", offset=0, size=MIB, partuuid="u", label="ROOT-B")
    with pytest.raises(ImageFactsError, match="No such file"):
        read_file(region, PATH, max_bytes=1000)
