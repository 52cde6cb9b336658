"""The root of a version as one image: erofs, with its hash tree after it."""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import Final

from images.reference.tools import run
from images.reference.verity import Verity, append_tree

# UUIDs of images are names in this space: the same for the same version and variant.
NAMES: Final = uuid.UUID("6a6e4d2f-3f63-4d5b-9a87-2f9f0c4d7b11")
# Linux 6.1 reads lz4 in clusters of 64 KiB and packed tails; lz4 costs a small node the least.
_EROFS: Final = ("-zlz4hc", "-C65536", "-Eztailpacking", "--all-root", "-x-1")


def make(root: Path, image: Path, *, name: str, built: datetime) -> Verity:
    """Write the image of a folder: whole blocks, the same bytes for the same files.

    Args:
        root: the folder; all of it belongs to root in the image, extended attributes are left out.
        image: the file to write.
        name: what its UUIDs are made from.
        built: the time of all its files.

    Raises:
        ToolMissingError, ToolFailedError: mkfs.erofs or veritysetup.
    """
    identity = str(uuid.uuid5(NAMES, name))
    stamp = f"-T{int(built.timestamp())}"
    run(["mkfs.erofs", "--quiet", *_EROFS, "-U", identity, stamp, image, root])
    return append_tree(image, uuid=identity)
