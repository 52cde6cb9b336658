"""From signed bytes to a verified slot.

Types carry the state: `Plan -> WrittenSlot -> VerifiedSlot`; only `verify_slot` makes a
`VerifiedSlot`, and only that can be armed. How the bytes flow is in `pipeline`; what, when and
whether is decided elsewhere.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from images.errors import ImagesError
from images.operations import decode
from images.payload import CLEARS
from images.reader import Accept, FileSource, Metadata, Source, read_metadata
from partitions.boot_files import cut_file, has_length, remove_file
from partitions.readback import digest_of
from partitions.writer import RegionWriter
from updater.errors import RefusedError
from updater.pipeline import Pipeline, stored_output
from updater.plan import OwnFacts
from updater.proof import ReadBackError, proof_of
from updater.reuse import ask_for_metadata, find_reuse
from updater.shelf import Shelf
from updater.shell import OpenSlots, Shell
from updater.sources import copy_booted, deltas_of, images_of
from updater.sparing import sparing_of

if TYPE_CHECKING:
    from images.payload import Manifest
    from images.release import ImageFacts
    from partitions.slots import Region, Slot
    from updater.plan import Facts, Plan
    from updater.shell import PayloadBytes
    from updater.state import Journal


class FactsMismatchError(RefusedError):
    """The payload's manifest says something else than its signed facts."""

    code = "facts-mismatch"
    hint = "The release was published wrongly; publish it again with a new version."


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSlot:
    """A slot whose bytes are all written and flushed, and not all read back yet.

    Attributes:
        plan: what was written where.
        manifest: of the payload; None where nothing was read back behind the writer.
        proven_from: the number of the first operation of this attempt: those parts that are proven
            operation by operation were read back from there on.
    """

    plan: Plan
    manifest: Manifest | None = None
    proven_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSlot:
    """A slot that was read back past the page cache and equals what was signed."""

    slot: Slot
    version: str
    rollback_index: int


def write_slot(plan: Plan, download: PayloadBytes, journal: Journal, shell: Shell) -> WrittenSlot:
    """Write what the journal does not name as flushed; returns when all of it is durable.

    Args:
        plan: what goes where; the slot must be disarmed already.
        download: the payload's bytes, from any position.
        journal: of this payload and slot; its `next_operation` is where it goes on.
        shell: journal, progress and stop.

    Raises:
        PayloadError: the bytes are not what was signed (code of images).
        CopyMismatchError: the disk does not hold what a delta in place starts from.
        FactsMismatchError: the manifest differs from the signed facts.
        DownloadError: no mirror gave the bytes.
        BudgetError: it costs more bytes than may be fetched.
        DownloadStoppedError: told to stop.
        LocalMismatchError: a slot does not hold what it seemed to; go on with a new download.
        DictionaryLostError: the disk lost what was written before a restart.
        ReadBackError: the disk does not hold what was written to it: see `make_again`.
        PartitionsError: the device refuses, fails or is mounted.
    """
    metadata = _read_metadata(plan, download, shell.shelf)
    _compare(metadata, plan.facts)
    _compare_sources(metadata.manifest, plan.facts)
    if plan.keys is not None and metadata.header.major == 1:
        journal = _from_the_start(journal, plan.facts)
    shell.begin()
    if not journal.next_operation:
        _clear(plan)
    with ExitStack() as stack:
        stack.callback(shell.shelf.close)
        writers = {
            name: stack.enter_context(RegionWriter(region, booted=plan.booted))
            for name, region in _sized(plan, metadata.manifest).items()
        }
        sources = _sources(plan, metadata.manifest, writers, shell)
        images = stack.enter_context(images_of(sources))
        reuse = find_reuse(plan, metadata, download, journal, shell, stack)
        shell.shelf.close()
        if reuse is None:
            download.expect([])
        done = max(metadata.header.data_offset, download.position, journal.spared)
        shell.priced(plan.size - done if reuse is None else reuse.cost)
        workers = plan.workers or os.cpu_count() or 1
        slots = OpenSlots(
            writers=writers,
            sources=images,
            proof=stack.enter_context(proof_of(metadata.manifest, plan.regions)),
            sparing=stack.enter_context(sparing_of(metadata.manifest, plan.regions, lanes=workers)),
        )
        Pipeline(plan, metadata, download, journal, shell, slots, reuse).run()
    for part in plan.facts.partitions:
        cut_file(plan.regions[part.name], part.size)
    return WrittenSlot(plan=plan, manifest=metadata.manifest, proven_from=journal.next_operation)


def _from_the_start(journal: Journal, facts: Facts) -> Journal:
    """Return a journal of a payload that is signed as a whole alone, and so hashed in one run.

    Where no release vouches for it, it was verified before, or is not resumed anyway.
    """
    if isinstance(facts, OwnFacts):
        return journal
    return msgspec.structs.replace(journal, next_operation=0, spared=0)


def make_again(plan: Plan, download: PayloadBytes, number: int) -> None:
    """Tell a wrong payload from a wrong disk: make one operation again and look at it in memory.

    For one that does not read back as signed, after the pipeline ended. Nothing is written.

    Args:
        plan: as for `write_slot`.
        download: a new one.
        number: of the operation, over all parts.

    Returns:
        When it makes what is signed: the disk is to blame.

    Raises:
        ImagesError: it does not, or what it reads of the booted slot is not what was signed.
        DictionaryLostError: nor does the disk hold what it is made of.
        UpdaterError, PartitionsError: it cannot be made.
    """
    metadata = _read_metadata(plan, download, Shelf())
    manifest = metadata.manifest
    steps = list(manifest.steps())
    part, operation = steps[number].part, steps[number].operation
    if part is None or operation.kind in CLEARS:
        return
    start = metadata.header.data_offset + (operation.data_offset or 0)
    download.expect([(start, start + operation.data_length)])
    download.seek(start)
    blob = download.read_exactly(operation.data_length) if operation.data_length else b""
    region, size = plan.regions[part.name], manifest.block_size
    dictionary = b"".join(
        stored_output(part, number, region, block_size=size) for number in operation.dictionary
    )
    sources = {name: plan.sources[name] for name in [part.name] if part.old_size is not None}
    with images_of(sources) as images:
        decode(
            operation,
            blob,
            block_size=size,
            verify_output=True,
            source=images.get(part.name),
            dictionary=dictionary,
        )


def _read_metadata(plan: Plan, download: PayloadBytes, shelf: Shelf) -> Metadata:
    """Take the metadata from the shelf, or fetch it and put it there; it is proven all the same."""

    def read(source: Source) -> Metadata:
        return read_metadata(
            source,
            payload_size=plan.size,
            keys=plan.keys,
            expected_sha256=bytes.fromhex(plan.facts.metadata_sha256),
            accept=Accept.FULL if _is_full(plan.facts) else Accept.APPLICABLE,
        )

    kept = shelf.piece(0)
    if kept is not None:
        try:
            return read(FileSource(io.BytesIO(kept)))
        except ImagesError as error:
            shelf.discard(0, error)
    ask_for_metadata(plan, download)
    download.seek(0)
    metadata = read(download)
    shelf.add(0, metadata.raw + metadata.signature_blob)
    return metadata


def _clear(plan: Plan) -> None:
    """Remove all old files of the slot before a new one is made: each may need their room."""
    for region in plan.regions.values():
        if region.room is not None:
            remove_file(region, plan.booted)


def _sized(plan: Plan, manifest: Manifest) -> dict[str, Region]:
    """Return the regions with the sizes of the images.

    What is written in place begins as a copy, and in whole blocks: only such a file is cut in the
    end.
    """
    sizes = {part.name: part.size for part in plan.facts.partitions}
    for part in deltas_of(manifest):
        if manifest.is_in_place(part):
            most = max(part.size, plan.sources[part.name].readable_bytes)
            sizes[part.name] = most + -most % manifest.block_size
    return {name: plan.regions[name].sized(size) for name, size in sizes.items()}


def _sources(
    plan: Plan, manifest: Manifest, writers: Mapping[str, RegionWriter], shell: Shell
) -> dict[str, Region]:
    """Return what each delta reads; one that works in place gets its copy first."""
    sources: dict[str, Region] = {}
    for part in deltas_of(manifest):
        if manifest.is_in_place(part):
            copy_booted(part, plan.sources[part.name], writers[part.name], look=shell.look)
            sources[part.name] = plan.regions[part.name]
        else:
            sources[part.name] = plan.sources[part.name]
    return sources


def verify_slot(
    written: WrittenSlot, judged: Callable[[], ImageFacts] | None = None
) -> VerifiedSlot:
    """Read back through fresh descriptors what was not read behind the writer, and compare it.

    That is what earlier attempts wrote, and every part without a signed hash of each operation.

    Args:
        written: the slot.
        judged: called last; reads what the image in the slot says of itself and refuses what
            may not run here. Not needed where a release says it.

    Raises:
        ReadBackError: a part differs.
        PartitionsError: the device cannot be read.
        AnyRoomError: as `judged`.
    """
    plan = written.plan
    proven = _prove_earlier(written)
    for part in plan.facts.partitions:
        if not has_length(plan.regions[part.name], part.size):
            raise ReadBackError(f"part {part.name} has not the {part.size} bytes that are signed")
        if part.name in proven:
            continue
        actual = digest_of(plan.regions[part.name], part.size).hex()
        if actual != part.sha256:
            raise ReadBackError(f"part {part.name} reads back as {actual}, signed is {part.sha256}")
    facts = plan.facts
    if isinstance(facts, OwnFacts):
        if judged is None:  # a broken invariant: nobody would have looked at what it is
            raise AssertionError("a payload without a release is not armed unjudged")
        image = judged()
        return VerifiedSlot(
            slot=plan.slot, version=image.version, rollback_index=image.rollback_index
        )
    return VerifiedSlot(slot=plan.slot, version=facts.version, rollback_index=facts.rollback_index)


def _prove_earlier(written: WrittenSlot) -> frozenset[str]:
    """Read back the operations of earlier attempts; return the parts that are proven by that.

    Between attempts nobody held the slot: it may have been mounted, or lost what it had.
    """
    if written.manifest is None:
        return frozenset()
    steps = list(written.manifest.steps())[: written.proven_from]
    with proof_of(written.manifest, written.plan.regions) as proof:
        proof.check(
            [
                (number, step.part.name, step.operation)
                for number, step in enumerate(steps)
                if step.part is not None
            ]
        )
        return frozenset(p.name for p in written.manifest.parts if proof.covers(p.name))


def _is_full(facts: Facts) -> bool:
    """Tell whether a release says that its payload needs no old image."""
    return not isinstance(facts, OwnFacts) and facts.source is None


def _compare_sources(manifest: Manifest, facts: Facts) -> None:
    """Refuse a release's delta that starts from another image than its facts say, or in place.

    What works in place cannot be resumed: an install of a release always can.
    """
    if isinstance(facts, OwnFacts):
        return
    parts = {part.name: (part.old_size, part.old_sha256) for part in deltas_of(manifest)}
    source = facts.source.partitions if facts.source else ()
    signed = {part.name: (part.size, bytes.fromhex(part.sha256)) for part in source}
    if parts != signed or any(map(manifest.is_in_place, manifest.parts)):
        raise FactsMismatchError(
            f"the manifest of format {manifest.major} starts from the images of {sorted(parts)},"
            f" the signed facts from others, of {sorted(signed)}"
        )


def _compare(metadata: Metadata, facts: Facts) -> None:
    parts = {part.name: (part.size, part.sha256.hex()) for part in metadata.manifest.parts}
    signed = {part.name: (part.size, part.sha256) for part in facts.partitions}
    if parts != signed:
        raise FactsMismatchError(f"the manifest makes {parts}, the signed facts say {signed}")
    if metadata.manifest.block_size != facts.block_size:
        raise FactsMismatchError(
            f"the manifest's blocks have {metadata.manifest.block_size} bytes, "
            f"the signed facts say {facts.block_size}"
        )
