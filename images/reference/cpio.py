"""Archives that the kernel unpacks as an initrd ("newc"), the same bytes for the same nodes.

Written here rather than by cpio(1): device nodes and root's ownership need no privilege then, and
inode numbers and times are ours. Format: Documentation/driver-api/early-userspace/buffer-format.rst
of Linux.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"
BLOCK: Final = 512  # bytes; cpio(1) pads archives to it, and some loaders want it


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One file, folder, link or device of an archive; owned by root, of time 0.

    Attributes:
        name: its path without a leading slash.
        mode: kind and permissions, as in `st_mode`.
        data: contents, or the target of a link.
        device: major and minor number of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, *, executable: bool = False) -> Node:
    """Return a regular file, 0755 or 0644."""
    return Node(name=name, mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def folder(name: str) -> Node:
    """Return a folder, 0755."""
    return Node(name=name, mode=stat.S_IFDIR | 0o755)


def link(name: str, target: str) -> Node:
    """Return a symbolic link."""
    return Node(name=name, mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(name: str, major: int, minor: int) -> Node:
    """Return a character device, 0600."""
    return Node(name=name, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def archive(nodes: Iterable[Node]) -> bytes:
    """Return the archive of `nodes`, by name; folders that a name needs are added.

    Raises:
        ValueError: two nodes have the same name.
    """
    named: dict[str, Node] = {}
    for node in nodes:
        if node.name in named:
            raise ValueError(f"{node.name} is in the archive twice")
        named[node.name] = node
    for name in list(named):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                named.setdefault(str(parent), folder(str(parent)))
    # By name a folder comes before what is in it, as the kernel needs it.
    packed = b"".join(
        _packed(node, number) for number, (_, node) in enumerate(sorted(named.items()), start=1)
    )
    packed += _packed(Node(name=TRAILER, mode=0), 0)
    return packed + bytes(-len(packed) % BLOCK)


def _packed(node: Node, number: int) -> bytes:
    name = node.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (
        number, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0,
    )  # fmt: skip
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + node.data + bytes(-len(node.data) % 4)
