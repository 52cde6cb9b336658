"""Which signed bytes go where, decided before the first of them is written. No I/O happens here.

Who signed them is the payload's *origin*: a release of the channel, whose facts TUF vouches for
before a byte is fetched, or a payload that a person gave or a plain Omaha server offered, which
vouches for itself by its own signature.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from updater.errors import RefusedError

if TYPE_CHECKING:
    from images.payload import Part
    from images.release import ImageFacts, PartFacts, PayloadFacts
    from images.signing import TrustedKeys
    from partitions.booted import Booted
    from partitions.slots import Region, Slot
    from updater.state import Kind, Origin


class DoesNotFitError(RefusedError):
    """The signed facts name an image that this node's slot cannot hold."""

    code = "does-not-fit"
    hint = "The partitions of this node need other sizes or names; nothing was written."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFacts:
    """What a payload says of itself, where no release names it.

    In format 2, and of a file that was verified whole, this is signed. A format 1 stream proves
    it with its last bytes only: what it wrote before must not count until then.

    Attributes:
        metadata_sha256: SHA-256 of header and manifest, hex.
        block_size: bytes of a block.
        partitions: the images that it makes.
        proven: a signature covers all this already.
        deltas: the parts that start from the booted slot, without their operations.
        in_place: these read what they write, as deltas of format 1 do.
    """

    metadata_sha256: str
    block_size: int
    partitions: tuple[PartFacts, ...]
    proven: bool
    deltas: tuple[Part, ...] = ()
    in_place: bool = False


# Left free for the loader's own files, on each file system that boot files are on.
LOADERS_BYTES: Final = 64 * 1024
LOADERS_BLOCKS: Final = 8  # entries, their drafts, and a folder that grows

Facts: TypeAlias = "PayloadFacts | OwnFacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A payload that this node may install, and where it is said to be.

    Attributes:
        origin: who named it, and so what vouches for it.
        version: of its image; empty while only the image itself could tell.
        rollback_index: likewise, then 0.
        path: its TUF path; empty where no release names it.
        sha256: of the whole file, hex; empty when nobody said. Of an offer it is a mere hint.
        size: of the whole file, in bytes; 0 when nobody said.
        facts: what is known of its content; None until its metadata was read.
        urls: where to fetch it, best first; not trusted. Of a given payload: a path or a URL.
        running: what runs now.
        poll_secs: when the server wants to be asked again.
        kind: alone, or from the booted slot; of a payload without a release its facts tell.
        cost: bytes that are still to be fetched of it.
        left_out: why payloads that might have cost less are not taken.
        whole_on: the day (UTC) on which the limit of a day will have sufficed; empty for this one.
    """

    origin: Origin = "channel"
    version: str
    rollback_index: int = 0
    path: str = ""
    sha256: str
    size: int
    facts: Facts | None
    urls: tuple[str, ...]
    running: ImageFacts
    poll_secs: int | None = None
    kind: Kind = "full"
    cost: int = 0
    left_out: tuple[str, ...] = ()
    whole_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is written where; all facts are signed ones.

    Attributes:
        facts: of the payload.
        sha256: digest of the whole payload file, hex; empty when nobody said.
        size: bytes of the payload file.
        slot: the passive slot.
        regions: part name to the region of that slot.
        keys: keys of the payload signature; None when the settings name none.
        checkpoint_bytes: downloaded bytes between two flushes.
        booted: the running system's partitions, which must never be written.
        workers: threads that decompress; None for one a core.
        sources: part name to the region of the booted slot, which a delta reads.
        reuse: leave out what the slots hold already of a release's full payload.
        avoided: operations that are fetched all the same, by their number over all parts.
    """

    facts: Facts
    sha256: str
    size: int
    slot: Slot
    regions: Mapping[str, Region]
    keys: TrustedKeys | None
    checkpoint_bytes: int
    booted: Booted
    workers: int | None = None
    sources: Mapping[str, Region] = field(default_factory=dict)
    reuse: bool = False
    avoided: frozenset[int] = frozenset()

    @property
    def identity(self) -> str:
        """Return what a journal of this payload is known by: a signed digest, hex."""
        return self.facts.metadata_sha256 if isinstance(self.facts, OwnFacts) else self.sha256

    @property
    def resumable(self) -> bool:
        """Tell whether an install may go on in the middle.

        Only when every byte is covered by hashes that were signed before the first, and when no
        operation destroyed what another try of it would read.
        """
        facts = self.facts
        return not isinstance(facts, OwnFacts) or (facts.proven and not facts.in_place)


BROUGHT: Final = frozenset({"kernel", "pcr-policy"})
"""Parts that Flatcar's post-install program brings itself, where the payload does not."""


def parts_of(
    facts: Facts, regions: Mapping[str, Region], *, postinstall: bool
) -> dict[str, Region]:
    """Return the parts of a slot that a payload must make.

    Args:
        facts: of the payload.
        regions: all parts of the slot.
        postinstall: whether Flatcar's post-install program runs afterwards.
    """
    made = {part.name for part in facts.partitions}
    left = BROUGHT - made if postinstall else frozenset()
    return {name: region for name, region in regions.items() if name not in left}


def check_fit(facts: Facts, regions: Mapping[str, Region]) -> None:
    """Refuse, before the first byte, images that the slot cannot hold.

    Raises:
        DoesNotFitError: a part has no place here, lacks, or is larger than it; or files that share
            a file system are together larger than what is free there and what they hold already,
            less what the loader's own files need.
    """
    named = {part.name for part in facts.partitions}
    if named != set(regions):
        raise DoesNotFitError(f"the payload has parts {sorted(named)}, this node {sorted(regions)}")
    for part in facts.partitions:
        room = regions[part.name].size
        if part.size > room:
            raise DoesNotFitError(
                f"part {part.name} has {part.size} bytes, {regions[part.name].words} holds {room}"
            )
    _check_shared(facts, regions)


def _check_shared(facts: Facts, regions: Mapping[str, Region]) -> None:
    """Refuse files that fill their file system: the loader keeps files of its own beside them.

    Without room for those a trial could begin and not be confirmed.
    """
    needed: dict[int, int] = defaultdict(int)
    for part in facts.partitions:
        if (room := regions[part.name].room) is not None:
            needed[room.file_system] += room.taken_by(part.size)
    for part in facts.partitions:
        region = regions[part.name]
        if region.room is None:
            continue
        taken = needed[region.room.file_system]
        left = max(LOADERS_BYTES, LOADERS_BLOCKS * region.room.block)
        if taken + left > region.size:
            raise DoesNotFitError(
                f"the files beside {region.label} take {taken} bytes, the loader's own need "
                f"{left}, {region.size} are free or held by what they replace"
            )
