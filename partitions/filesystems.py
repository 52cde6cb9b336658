"""Making a file system with files in it, in a file of its own; no root, no mount, no loop device.

In a file of its own because `mkfs.vfat` sizes clusters by the whole file it is given. Files go in
one by one in the order of their names, since a host's folder order is chance; owners are root's,
whoever builds.
"""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from partitions.errors import ContentsInvalidError, InputUnreadableError, ToolFailedError
from partitions.layout import DiskLayout, Filesystem, Partition, Role
from partitions.tool import run_tool

Content: TypeAlias = bytes | Path
"""What a file holds: the bytes, or the file on the host that has them."""

_EXT4_LABEL_MAX: Final = 16  # bytes
_VFAT_LABEL_MAX: Final = 11  # characters
# FAT32 has at least 65,525 clusters, of one sector at least, and two tables of them. Firmware must
# take an ESP with another FAT too, but not every one does.
_FAT32_SECTORS_MIN: Final = 67_000
_UNSPEAKABLE: Final = frozenset('"\\\n\r\0')  # debugfs and mtools take names as words of a command


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One thing in a file system that shall be.

    Attributes:
        content: of a file; nothing for a folder; the target for a symbolic link.
        mode: permission bits.
        is_link: whether it is a symbolic link.
    """

    content: Content | None = None
    mode: int = 0o644
    is_link: bool = False


Tree: TypeAlias = Mapping[str, Node]
"""What a file system shall hold, by absolute path; folders too."""


def tree_of(folder: Path) -> dict[str, Node]:
    """Return what lies in a folder of the host.

    Raises:
        ContentsInvalidError: something is no file, folder or symbolic link, or has a name that
            cannot be handed on.
        InputUnreadableError: it cannot be read.
    """
    tree: dict[str, Node] = {}
    try:
        for path in sorted(folder.rglob("*")):
            tree[f"/{path.relative_to(folder).as_posix()}"] = _node(path)
        if not folder.is_dir():
            raise ContentsInvalidError(f"{folder} is no folder")
    except OSError as error:
        raise InputUnreadableError.because(folder, error) from error
    for name in tree:
        if _UNSPEAKABLE & set(name):
            raise ContentsInvalidError(f"{folder}: the name {name!r} has signs that cannot be used")
    return tree


def with_folders(tree: Tree) -> dict[str, Node]:
    """Return a tree with the folders that its files need, in the order of their names."""
    whole = dict(tree)
    for name in tree:
        for parent in PurePosixPath(name).parents:
            whole.setdefault(str(parent), Node(mode=0o755))
    whole.pop("/", None)
    return dict(sorted(whole.items()))


def make_filesystem(
    one: Partition, size_bytes: int, layout: DiskLayout, tree: Tree, file: Path, identity: uuid.UUID
) -> None:
    """Make the file system of a partition in a file that does not exist yet.

    Args:
        one: the partition; it has a file system.
        size_bytes: of the partition on the disk.
        layout: what the disk shall be.
        tree: what the file system shall hold.
        file: gets it.
        identity: of the file system; FAT takes 32 bits of it.

    Raises:
        ContentsInvalidError: the file system cannot hold such a thing.
        ToolMissingError, ToolFailedError: it cannot be made, or the files do not fit in.
    """
    with file.open("wb") as fresh:
        fresh.truncate(size_bytes)
    make, fill = _WAYS[one.filesystem]
    purpose = f"partition {one.label} shall have {one.filesystem.value}"
    seeded = bool(layout.seed)
    command = make(one, size_bytes, layout, identity)
    try:
        run_tool([*command, str(file)], purpose=purpose, seeded=seeded)
        if tree:
            with tempfile.TemporaryDirectory(dir=file.parent, prefix=".files-") as stage:
                fill(file, with_folders(tree), Path(stage), purpose=purpose, seeded=seeded)
    except ToolFailedError as error:  # most of all when the files do not fit in
        raise ToolFailedError(f"partition {one.label}: {error}") from error


def volume_id(identity: uuid.UUID) -> str:
    """Return the eight hex digits that name a FAT."""
    return f"{identity.int & 0xFFFF_FFFF:08x}"


def _node(path: Path) -> Node:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Node(content=os.fsencode(path.readlink()), mode=0o777, is_link=True)
    if stat.S_ISDIR(status.st_mode):
        return Node(mode=mode)
    if stat.S_ISREG(status.st_mode):
        return Node(content=path, mode=mode)
    raise ContentsInvalidError(f"{path} is no file, folder or symbolic link")


def _vfat(one: Partition, size: int, layout: DiskLayout, identity: uuid.UUID) -> list[str]:
    label = one.label.upper()[:_VFAT_LABEL_MAX]
    steady = ["--invariant"] if layout.seed else []
    is_large = one.role is Role.ESP and size // layout.sector_size >= _FAT32_SECTORS_MIN
    width = ["-F", "32"] if is_large else []
    sectors = ["-S", str(layout.sector_size)]
    return ["mkfs.vfat", *steady, *width, *sectors, "-i", volume_id(identity), "-n", label]


def _ext4(one: Partition, _size: int, layout: DiskLayout, identity: uuid.UUID) -> list[str]:
    label = one.label.encode()[:_EXT4_LABEL_MAX].decode(errors="ignore")
    block = ["-b", "4096"] if layout.sector_size == 4096 else []
    extended = f"hash_seed={identity},lazy_itable_init=1,lazy_journal_init=1"
    return ["mkfs.ext4", "-q", "-F", *block, "-L", label, "-U", str(identity), "-E", extended]


def _fill_vfat(file: Path, tree: Tree, stage: Path, *, purpose: str, seeded: bool) -> None:
    """Copy a tree in by mtools, which know neither owners nor modes: nor does FAT."""
    by_name: dict[str, str] = {}
    for name in tree:
        other = by_name.setdefault(name.lower(), name)
        if other != name:
            raise ContentsInvalidError(f"{other} and {name} are one name on FAT")
    for name, node in tree.items():
        if node.is_link:
            raise ContentsInvalidError(f"{name} is a symbolic link, and FAT has none")
        if node.content is None:
            command = ["mmd", "-i", str(file), f"::{name}"]
        else:
            source = str(_on_host(node.content, stage))
            command = ["mcopy", "-Q", "-i", str(file), source, f"::{name}"]
        run_tool(command, purpose=purpose, seeded=seeded)


def _fill_ext4(file: Path, tree: Tree, stage: Path, *, purpose: str, seeded: bool) -> None:
    """Copy a tree in by debugfs, which gives all to root and sets the times that it is told."""
    script = stage / "commands"
    script.write_text("\n".join(_debugfs_lines(tree, stage)) + "\n")
    command = ["debugfs", "-w", "-f", str(script), str(file)]
    said = run_tool(command, purpose=purpose, seeded=seeded)
    # It ends with 0 whatever happens; what it says besides version, echo and inodes is a complaint.
    complaints = [
        line
        for line in said.splitlines()
        if line and not line.startswith(("debugfs 1.", "debugfs: ", "Allocated inode: "))
    ]
    if complaints:
        raise ToolFailedError(f"debugfs: {complaints[0]}; {purpose}")


def _debugfs_lines(tree: Tree, stage: Path) -> Iterable[str]:
    for number, (name, node) in enumerate(tree.items()):
        if node.is_link and isinstance(node.content, bytes):
            yield f'symlink "{name}" "{os.fsdecode(node.content)}"'
        elif node.content is None:
            yield f'mkdir "{name}"'
            yield f'set_inode_field "{name}" mode 0{stat.S_IFDIR | node.mode:o}'
        else:
            # A name of our own: the host's may hold what debugfs does not take for one word.
            link = stage / f"file-{number}"
            link.symlink_to(_on_host(node.content, stage).resolve())
            yield f'write "{link}" "{name}"'
            yield f'set_inode_field "{name}" mode 0{stat.S_IFREG | node.mode:o}'


def _on_host(content: Content, stage: Path) -> Path:
    if isinstance(content, Path):
        return content
    file = stage / f"bytes-{len(list(stage.iterdir()))}"
    file.write_bytes(content)
    return file


_Make: TypeAlias = Callable[[Partition, int, DiskLayout, uuid.UUID], list[str]]

_WAYS: Final[Mapping[Filesystem, tuple[_Make, Callable[..., None]]]] = {
    Filesystem.VFAT: (_vfat, _fill_vfat),
    Filesystem.EXT4: (_ext4, _fill_ext4),
}
