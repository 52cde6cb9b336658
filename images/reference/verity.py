"""The hash tree of a read-only root, appended to its image: what dm-verity needs to open it.

The layout is veritysetup's: data, one block of superblock, tree. The kernel is told the numbers
by the initrd and never reads the superblock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.errors import ImageSizeError, ToolFailedError
from images.reference.tools import run

BLOCK: Final = 4096  # bytes of a data block and of a hash block
# No salt: unchanged blocks hash alike in every version, so deltas of the tree stay small.
SALT: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """What opens a root, and what it must hash to.

    Attributes:
        data_blocks: blocks of 4096 bytes before the superblock; the tree is one block after them.
        salt: hex digits, or "-".
        root_hash: 64 lower-case hex digits of SHA-256.
    """

    data_blocks: int
    salt: str
    root_hash: str

    @property
    def text(self) -> str:
        """The file `/etc/bascule/verity` of the initrd, which reads it as shell."""
        return f"data_blocks={self.data_blocks}\nsalt={self.salt}\nroot_hash={self.root_hash}\n"


def format_arguments(image: Path, *, size: int, uuid: str) -> list[str | Path]:
    """Return the command that appends the tree of an image of `size` bytes to it.

    Raises:
        ImageSizeError: the image is not whole blocks.
    """
    if size == 0 or size % BLOCK:
        raise ImageSizeError(f"{image} has {size} bytes, not whole blocks of {BLOCK}")
    return [
        "veritysetup", "format", f"--salt={SALT}", f"--uuid={uuid}", "--hash=sha256",
        f"--data-block-size={BLOCK}", f"--hash-block-size={BLOCK}",
        f"--data-blocks={size // BLOCK}", f"--hash-offset={size}", image, image,
    ]  # fmt: skip


def root_hash_of(output: str) -> str:
    """Return the root hash that `veritysetup format` printed.

    Raises:
        ToolFailedError: there is none in its output.
    """
    found = re.search(r"^Root hash:\s*([0-9a-f]{64})$", output, re.MULTILINE)
    if found is None:
        raise ToolFailedError(f"veritysetup printed no root hash but {output[:200]!r}")
    return found.group(1)


def append_tree(image: Path, *, uuid: str) -> Verity:
    """Append the hash tree of `image` to it; the result is whole blocks again.

    Raises:
        ImageSizeError: the image is not whole blocks.
        ToolMissingError, ToolFailedError: veritysetup.
    """
    size = image.stat().st_size
    output = run(format_arguments(image, size=size, uuid=uuid))
    return Verity(data_blocks=size // BLOCK, salt=SALT, root_hash=root_hash_of(output))
