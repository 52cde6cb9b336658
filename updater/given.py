"""Payloads that no release names: given by a person, or offered by a plain Omaha server.

Their own signature, by one of `trust.payload_keys`, is all that vouches for them, and what the
image in the written slot says of itself decides whether it may run here. Nothing is written and
nothing is armed in this room: `updating` does that, by the same steps as for a release.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from images.container import MANIFEST_MAX_BYTES, SIGNATURES_MAX_BYTES
from images.errors import ImagesError
from images.reader import Accept, Metadata, PayloadFile, read_metadata
from images.release import PartFacts
from images.signing import TrustedKeys, load_public_keys
from images.version import parse_version
from updater.download import Download, Patience
from updater.errors import RefusedError
from updater.machine import MachineError
from updater.plan import DoesNotFitError, Found, OwnFacts, check_fit, parts_of
from updater.sources import check_sources, deltas_of
from updater.trust.errors import (
    BelowFloorError,
    PinnedError,
    VersionDeniedError,
    WrongBoardError,
    WrongProductError,
    WrongVersionError,
)

if TYPE_CHECKING:
    from images.release import ImageFacts
    from partitions.slots import Slot
    from updater.node import Node
    from updater.state import Kind, Update

log = logging.getLogger(__name__)

PLACE_MAX_CHARS: Final = 4096  # a path's own limit, PATH_MAX
URL: Final = re.compile(r"https?://[^@\s/][^@\s]*")
# What a payload may have beside its images, however little they compress.
OVERHEAD_MAX_BYTES: Final = MANIFEST_MAX_BYTES + 2 * SIGNATURES_MAX_BYTES + 1024 * 1024


class PayloadKeysMissingError(RefusedError):
    """Nothing could vouch for a payload that no release names."""

    code = "payload-keys-missing"
    hint = "Name the PEM file of the key that signs your payloads in trust.payload_keys."


class PlaceInvalidError(RefusedError):
    """A payload is given by what is neither a path nor a URL that may be asked."""

    code = "payload-place"
    hint = "Give an absolute path, or an http or https URL without user name or password."


class ImageUnknownError(RefusedError):
    """The image that the payload makes does not say what it is."""

    code = "image-unknown"
    hint = (
        "It needs /usr/lib/bascule/image.toml, on ext2, 3, 4, squashfs or erofs; btrfs needs root."
    )


class GivenNotNewerError(RefusedError):
    """The image is not above the running version."""

    code = "given-not-newer"
    hint = "A person may insist, down to the floor: `bascule update --payload … --force`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What an image is judged by.

    Attributes:
        running: what runs now.
        floor: the lowest rollback index that is accepted.
        denied: versions that failed here or that a person rolled back from.
        claimed: the version that a server offered it as; empty for a person's own payload.
        pinned: the only version that a person wants here, empty for any.
        forced: a person insists.
    """

    running: ImageFacts
    floor: int
    denied: Collection[str]
    claimed: str
    pinned: str
    forced: bool


def judge(image: ImageFacts, case: Case) -> None:
    """Return when this node may run `image`; the signed bytes themselves say what it is.

    1. It is of the node's product and board.
    2. Its rollback index is at or above the floor, whoever insists.
    3. It is the version that was offered, and the one that the node is pinned to.
    4. It is above the running version, or a person gave it and insists.
    5. It did not fail here before, or a person insists.

    Raises:
        RefusedError: a refusal, with its code.
    """
    version = parse_version(image.version)
    if image.product != case.running.product:
        raise WrongProductError(
            f"the image is of product {image.product}, this node is {case.running.product}"
        )
    if image.board != case.running.board:
        raise WrongBoardError(
            f"the image is for board {image.board}, this node is {case.running.board}"
        )
    if image.rollback_index < case.floor:
        raise BelowFloorError(
            f"version {image.version} has rollback index {image.rollback_index},"
            f" this node accepts {case.floor} and above"
        )
    if case.claimed and version != parse_version(case.claimed):
        raise WrongVersionError(
            f"the server offered version {case.claimed}, the image is version {image.version}"
        )
    if case.pinned and version != parse_version(case.pinned):
        raise PinnedError(
            f"the image is version {image.version}, this node is pinned to {case.pinned}"
        )
    insisted = case.forced and not case.claimed
    if version <= parse_version(case.running.version) and not insisted:
        raise GivenNotNewerError(
            f"the image is version {image.version}, this node runs {case.running.version}"
        )
    if image.version in case.denied and not case.forced:
        raise VersionDeniedError(f"version {image.version} is refused by this node")


def given(node: Node, place: str) -> Found:
    """Return the payload at `place`, a path or URL that a person gave; nothing is written.

    Raises:
        PlaceInvalidError: it is neither.
        AnyRoomError: as `inspect`.
    """
    if not (URL.fullmatch(place) or place.startswith("/")) or len(place) > PLACE_MAX_CHARS:
        raise PlaceInvalidError(f"{place[:PLACE_MAX_CHARS]!r} is no absolute path and no URL")
    found = Found(
        origin="given",
        version="",
        sha256="",
        size=0,
        facts=None,
        urls=(place,),
        running=node.running(),
    )
    return inspect(node, found)


def again(node: Node, update: Update) -> Found:
    """Return what the memory says of a payload that an interrupted install was about.

    The server is not asked anew: it counts an install under way as its answer.
    """
    return Found(
        origin=update.origin,
        version=update.version,
        sha256=update.sha256,
        size=update.size,
        facts=None,
        urls=update.places,
        running=node.running(),
    )


def inspect(node: Node, found: Found) -> Found:
    """Read a payload's metadata and return what it says of itself; nothing is written.

    A file is verified to its last byte. Of a URL only header and manifest are read: in format 2
    their signature is verified; a format 1 stream proves itself at its end, and counts until then
    as unproven. Mirrors that have something else are left out.

    Raises:
        PayloadKeysMissingError: no key could vouch for it.
        DoesNotFitError: parts or sizes are not those of the slot.
        SourceMismatchError: it is a delta, and the booted slot holds another image.
        PayloadError, PayloadRefusedError: it is not sound, or not signed by a trusted key.
        FileUnreadableError, DownloadError: it cannot be had.
    """
    keys = load_keys(node.settings.trust.payload_keys)
    if keys is None:
        raise PayloadKeysMissingError("trust.payload_keys names no key")
    slot = node.boot().slot.other
    is_file = found.urls[0].startswith("/")
    if is_file:
        known = _inspect_file(Path(found.urls[0]), keys)
        checked = dataclasses.replace(found, size=known[0], facts=known[1])
    else:
        checked = _inspect_mirrors(node, found, keys, room_bytes=_room(node, slot))
    facts = checked.facts
    if isinstance(facts, OwnFacts):
        regions = parts_of(
            facts, node.regions(slot), postinstall=node.settings.updates.postinstall != "none"
        )
        check_fit(facts, regions)
        check_sources(facts, node.regions(slot.other), regions)
        kind: Kind = "delta" if facts.deltas else "full"
        return dataclasses.replace(checked, kind=kind, cost=0 if is_file else checked.size)
    return checked


def load_keys(files: Sequence[str]) -> TrustedKeys | None:
    """Return the keys that payload signatures are checked with; None when none are named.

    Raises:
        ImagesError: a key cannot be read or is none.
    """
    return load_public_keys(*(Path(file) for file in files)) if files else None


def image_in(node: Node, slot: Slot) -> ImageFacts:
    """Read what the image in a written slot says of itself.

    Raises:
        ImageUnknownError: it says nothing that we can read.
    """
    try:
        return node.machine.image_facts(slot)
    except (MachineError, ImagesError) as error:
        raise ImageUnknownError(f"the image in slot {slot.value} is unknown: {error}") from error


def patience(node: Node) -> Patience:
    """Return how long a download tries, as the settings say."""
    settings = node.settings.download
    return Patience(
        idle_timeout_secs=settings.idle_timeout_secs,
        retries=settings.retries,
        retry_delay_secs=settings.retry_delay_secs,
    )


def _room(node: Node, slot: Slot) -> int:
    return sum(region.size for region in node.regions(slot).values())


def _inspect_file(path: Path, keys: TrustedKeys) -> tuple[int, OwnFacts]:
    with PayloadFile.open(path) as file:
        metadata = file.metadata(keys, accept=Accept.APPLICABLE)
        file.verify(metadata, keys)
        return file.size_bytes, own_facts(metadata, proven=True)


def _inspect_mirrors(node: Node, found: Found, keys: TrustedKeys, *, room_bytes: int) -> Found:
    """Take the metadata from the first mirror whose bytes make sense."""
    left = list(found.urls)
    while True:
        with Download(
            left,
            size=found.size or None,
            session=node.http(),
            patience=patience(node),
            monotonic=time.monotonic,
            stop=node.stop,
        ) as download:
            try:
                size = download.learn_size()
                if size > room_bytes + OVERHEAD_MAX_BYTES:
                    raise DoesNotFitError(
                        f"the payload has {size} bytes, the slot it is for {room_bytes}"
                    )
                metadata = read_metadata(
                    download, payload_size=size, keys=keys, accept=Accept.APPLICABLE
                )
            except (ImagesError, DoesNotFitError) as error:
                left.remove(download.mirror)
                log.warning("mirror has wrong bytes url=%s code=%s", download.mirror, error.code)
                if not left:
                    raise
                continue
            facts = own_facts(metadata, proven=metadata.header.major == 2)
            return dataclasses.replace(found, size=size, facts=facts, urls=tuple(left))


def own_facts(metadata: Metadata, *, proven: bool) -> OwnFacts:
    """Return what a payload's metadata says of it; `proven`: a signature covers it already."""
    return OwnFacts(
        metadata_sha256=metadata.sha256.hex(),
        block_size=metadata.manifest.block_size,
        partitions=tuple(
            PartFacts(name=part.name, size=part.size, sha256=part.sha256.hex())
            for part in metadata.manifest.parts
        ),
        proven=proven,
        deltas=(deltas := deltas_of(metadata.manifest)),
        in_place=bool(deltas) and metadata.header.major == 1,
    )


FAULTS: Final = frozenset(
    kind.code
    for kind in (
        ImageUnknownError,
        GivenNotNewerError,
        WrongProductError,
        WrongBoardError,
        WrongVersionError,
        BelowFloorError,
    )
)
"""Codes of refusals that are the payload's own fault, however often it is tried."""
