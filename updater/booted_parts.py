"""What the booted slot really holds: hashed once in a boot, and known until the next one.

Only when a delta would start from it. A booted slot is read-only as a rule; where somebody wrote to
it, it is no image that any delta was made from, and the node has to know before it fetches one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from partitions.errors import DeviceTooSmallError, PartitionsError
from partitions.readback import read_back
from updater.download import DownloadStoppedError
from updater.payload_choice import Held

if TYPE_CHECKING:
    from partitions.slots import Region
    from updater.node import Node

log = logging.getLogger(__name__)

FILE_NAME: Final = "booted-parts.json"
FILE_MAX_BYTES: Final = 64 * 1024


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What was read.

    Attributes:
        boot_id, slot: when and of what; of another boot it tells nothing.
        places: by part, where it lies, as `_place` says it.
        parts: by part, what it holds.
    """

    boot_id: str
    slot: str
    places: dict[str, str] = {}
    parts: dict[str, Held] = {}


def read_parts(node: Node, wanted: Mapping[str, int], *, anew: bool = False) -> dict[str, Held]:
    """Return what parts of the booted slot hold; a part that it has not is left out.

    Args:
        node: the collaborators.
        wanted: by part, how many bytes of it.
        anew: read them even where they were read in this boot.

    Raises:
        PartitionsError: the slot's partitions cannot be found.
        MachineError: the booted slot cannot be told.
        DownloadStoppedError: the engine was told to stop.
    """
    if not wanted:  # no delta: nothing of the booted slot matters
        return {}
    boot = node.boot()
    regions = node.regions(boot.slot)
    path = Path(node.settings.node.run_folder) / FILE_NAME
    kept = _read(path)
    if kept is None or (kept.boot_id, kept.slot) != (boot.boot_id, boot.slot.value):
        kept = Known(boot_id=boot.boot_id, slot=boot.slot.value)
    places = {name: _place(regions[name]) for name in wanted if name in regions}
    usable = {
        name: held
        for name, held in kept.parts.items()
        if not anew
        and held.sha256
        and held.size == wanted.get(name)
        and kept.places.get(name) == places.get(name)
    }
    parts = {
        name: usable.get(name) or _hashed(node, regions[name], wanted[name]) for name in places
    }
    if parts.keys() - usable.keys():
        _keep(
            path,
            msgspec.structs.replace(kept, parts=kept.parts | parts, places=kept.places | places),
        )
    return parts


def _hashed(node: Node, region: Region, size: int) -> Held:
    """Read a part past the page cache; what cannot be read tells why, and stops nobody."""
    log.debug("booted part is hashed place=%s bytes=%d", region.words, size)
    digest = hashlib.sha256()
    try:
        if size > region.readable_bytes:
            raise DeviceTooSmallError(
                f"{region.words} has {region.readable_bytes} bytes, the delta starts from {size}"
            )
        for view in read_back(region.sized(size), size):
            if node.stop.is_set():
                raise DownloadStoppedError("the engine was told to stop")
            node.beat()
            digest.update(view)
    except PartitionsError as error:
        return Held(sha256="", size=size, why=str(error))
    return Held(sha256=digest.hexdigest(), size=size)


def _place(region: Region) -> str:
    """Name a region so that another partition of the same name is told from it."""
    return f"{region.path}:{region.offset}:{region.partuuid}"


def _read(path: Path) -> Known | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(FILE_MAX_BYTES), type=Known)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _keep(path: Path, known: Known) -> None:
    """Write what is known; losing it costs one more reading."""
    draft = path.with_suffix(".draft")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(known))
        draft.replace(path)
