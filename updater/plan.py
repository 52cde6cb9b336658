"""Which signed bytes go where, decided before the first of them is fetched. No I/O happens here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from updater.errors import RefusedError

if TYPE_CHECKING:
    from images.release import PayloadFacts
    from images.signing import TrustedKeys
    from partitions.booted import Booted
    from partitions.slots import Region, Slot


class DoesNotFitError(RefusedError):
    """The signed facts name an image that this node's slot cannot hold."""

    code = "does-not-fit"
    hint = "The partitions of this node need other sizes or names; nothing was written."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is written where; all facts are signed ones.

    Attributes:
        facts: of the payload, from its TUF target.
        sha256: digest of the whole payload file, hex.
        size: bytes of the payload file.
        slot: the passive slot.
        regions: part name to the region of that slot.
        keys: keys of the payload signature; None when the settings name none.
        checkpoint_bytes: downloaded bytes between two flushes.
        booted: the running system's partitions, which must never be written.
        workers: threads that decompress; None for one a core.
    """

    facts: PayloadFacts
    sha256: str
    size: int
    slot: Slot
    regions: Mapping[str, Region]
    keys: TrustedKeys | None
    checkpoint_bytes: int
    booted: Booted
    workers: int | None = None


def check_fit(facts: PayloadFacts, regions: Mapping[str, Region]) -> None:
    """Refuse, before the first byte, images that the slot cannot hold.

    Raises:
        DoesNotFitError: a part has no partition here, lacks, or is larger than it.
    """
    named = {part.name for part in facts.partitions}
    if named != set(regions):
        raise DoesNotFitError(
            f"release {facts.version} has parts {sorted(named)}, this node {sorted(regions)}"
        )
    for part in facts.partitions:
        room = regions[part.name].size
        if part.size > room:
            raise DoesNotFitError(f"part {part.name} has {part.size} bytes, its partition {room}")
