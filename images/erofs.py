"""A small file out of an EROFS image, without mounting it: what the image says of itself.

The tools of Debian 12 read no single file and no image at an offset. The format is that of Linux'
fs/erofs/erofs_fs.h. Files that are stored as they are can be read: those of at most a block are
so, unless the image was made with ztailpacking, fragments or chunks. Compressed ones cannot, and
links are not followed. All that is read is bounded, and what makes no sense is no file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Returns bytes of the image: (offset, how many), fewer where it ends."""

MAGIC: Final = b"\xe2\xe1\xf5\xe0"
MAGIC_AT: Final = 1024  # where the superblock begins
DIRECTORY_MAX_BYTES: Final = 4 * 1024 * 1024
OFFSET_MAX: Final = 2**62  # bytes
DEPTH_MAX: Final = 16  # names in a path
_UNDERSTOOD: Final = 0x7F  # incompatible features that change nothing of plain files
_EXTRA_DEVICES_AT: Final = 86
_BLOCK_BITS: Final = range(9, 17)
_SLOT: Final = 32  # an inode's number counts in these
_DIRENT: Final = struct.Struct("<QHBx")
_PLAIN, _INLINE = 0, 2  # how a file's bytes lie: in whole blocks, or the last of them by the inode
_TYPE_MASK, _FOLDER, _FILE = 0o170000, 0o040000, 0o100000


@dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    size: int
    layout: int
    first_block: int
    after: int  # the byte behind inode and extended attributes, where a last block may lie


def read_erofs(read_at: ReadAt, path: str, *, max_bytes: int) -> bytes | None:
    """Return the content of a file, at most `max_bytes` of it.

    Args:
        read_at: the image.
        path: names with `/` between, from its root.
        max_bytes: a longer file is cut there.

    Returns:
        None when there is no such plain file, or it cannot be had this way.
    """
    names = [name.encode() for name in path.split("/") if name]
    if len(names) > DEPTH_MAX:
        return None
    try:
        image = _Image(read_at)
        number = image.root
        for name in names:
            number = image.entry(number, name)
        return image.content(image.inode(number), _FILE, max_bytes)
    except (LookupError, struct.error):
        return None


class _Image:
    """An image whose superblock was read.

    All raise LookupError or struct.error for what is not there or not understood.
    """

    def __init__(self, read_at: ReadAt) -> None:
        self._read_at = read_at
        block = read_at(MAGIC_AT, 128)
        magic, bits, self.root = struct.unpack_from("<4s8xBxH", block)
        self._meta_block, incompatible = struct.unpack_from("<40xI36xI", block)
        (devices,) = struct.unpack_from("<H", block, _EXTRA_DEVICES_AT)
        if magic != MAGIC or bits not in _BLOCK_BITS or incompatible & ~_UNDERSTOOD or devices:
            raise LookupError("no such EROFS")
        self._block = 1 << bits

    def inode(self, number: int) -> _Inode:
        at = self._meta_block * self._block + number * _SLOT
        if at > OFFSET_MAX:
            raise LookupError("an inode beyond any disk")
        data = self._read_at(at, 64)
        form, attributes, mode = struct.unpack_from("<HHH", data)
        extended = form & 1
        size, first_block = struct.unpack_from("<8xQI" if extended else "<8xI4xI", data)
        length = 64 if extended else 32
        length += 12 + 4 * (attributes - 1) if attributes else 0
        return _Inode(mode, size, form >> 1 & 7, first_block, at + length)

    def content(self, inode: _Inode, kind: int, max_bytes: int) -> bytes:
        """Return the content of a plain file or a folder."""
        if inode.mode & _TYPE_MASK != kind or inode.layout not in {_PLAIN, _INLINE}:
            raise LookupError("another kind of file")
        wanted = min(inode.size, max_bytes)
        blocks = -(-inode.size // self._block) * self._block
        if inode.layout == _INLINE and blocks:
            blocks -= self._block
        head = self._read_at(inode.first_block * self._block, min(wanted, blocks))
        tail = self._read_at(inode.after, max(0, wanted - blocks))
        if len(head) + len(tail) != wanted:
            raise LookupError("the image ends before")
        return head + tail

    def entry(self, folder: int, wanted: bytes) -> int:
        """Return the inode's number of a name in a folder."""
        data = self.content(self.inode(folder), _FOLDER, DIRECTORY_MAX_BYTES)
        for start in range(0, len(data), self._block):
            for number, name in _entries(data[start : start + self._block]):
                if name == wanted:
                    return number
        raise LookupError(wanted)


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield numbers and names of a folder's block: first all entries, then all names."""
    _, first_name, _ = _DIRENT.unpack_from(block)
    if first_name < _DIRENT.size:  # zeros, for one: a slot that was written in part
        raise LookupError("a folder without entries")
    entries = list(_DIRENT.iter_unpack(block[: first_name - first_name % _DIRENT.size]))
    ends = [start for _, start, _ in entries[1:]] + [len(block)]
    for (number, start, _), end in zip(entries, ends, strict=True):
        yield number, block[start:end].rstrip(b"\0")
