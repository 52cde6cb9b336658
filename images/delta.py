"""Builds a delta of format 2: what makes new images out of old ones. Decision 0012 says how.

1. Each block of a new image is zeros, a copy of a block anywhere in the old one, or rest.
2. The rest is gathered in the order of the image into groups.
3. Each group is coded against the pieces of the old image that look most like it.

The images are read as they are needed, so that memory does not grow with them, but for the tables
of blocks and of anchors: some 100 MiB a GiB of the old image. The same images, options and keys
give the same bytes, whatever the number of threads, with the same versions of the libraries that
compress. The node knows nothing of this module.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from images.assemble import Built, assemble
from images.build import BLOCK_SIZE
from images.delta_order import ordered
from images.dictionary import DICTIONARY_MAX
from images.draft import Draft, draft_of, scratch_beside
from images.errors import LibraryMissingError, PartUnknownError, SourceMissingError
from images.inputs import Image, check_names, open_image
from images.lanes import cores, in_order
from images.payload import READS_SOURCE, Extent, OperationKind, Segment
from images.proto import payload_pb2 as pb
from images.reader import Progress
from images.rules import OUTPUT_MAX
from images.segment_rules import JOB_DICTIONARY_MAX
from images.signing import PrivateKey
from images.wire import EXTENTS_MAX, SEGMENTS_MAX

if TYPE_CHECKING:
    from images.coders import Coder
    from images.delta_blocks import BlockTable, Matched, Run
    from images.delta_recode import Recoded, Recoder
    from images.delta_regions import SourceIndex
    from images.delta_unpacked import UnpackedOld

MINOR: Final = 10  # of our own deltas: the lowest that knows REPLACE_ZSTD
COMPAT_MINOR: Final = 4  # the lowest that knows ZERO: payload.md 8
GROUP_SIZE: Final = 2 * 1024 * 1024  # bytes of the rest coded as one; larger ones do not help
COPY_SIZE: Final = 4 * 1024 * 1024  # bytes an operation copies: enough of them for all cores
ZERO_SHARE: Final = 8  # bytes that are cleared in the time in which one is copied
SIMILAR_MAX: Final = 3 * 1024 * 1024  # bytes of the old image a group is coded against: 0012
DENSE_SIMILAR_MAX: Final = 6 * 1024 * 1024  # the same of bytes that are packed: it costs little
MEMORY_MAX: Final = 1024 * 1024 * 1024  # bytes that all threads and tables may take
WORKER_BYTES: Final = 150 * 1024 * 1024  # of one thread: zstd's tables at level 19, or bsdiff's
_TABLES_BYTES: Final = 256 * 1024 * 1024
_SCAN_SIZE: Final = 4 * 1024 * 1024  # bytes hashed at once
_COPIES_MAX: Final = EXTENTS_MAX // 5  # two extents each, and as many around the rest between
_ZEROS_MAX: Final = EXTENTS_MAX // 10
_PIECES_MAX: Final = EXTENTS_MAX // 5  # extents of all dictionaries


def build_delta(
    parts: Sequence[tuple[str, Path]],
    sources: Mapping[str, Path],
    output: Path,
    *,
    compat: bool = False,
    keys: Sequence[PrivateKey] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write a delta that makes the images out of `sources`; it appears whole, or not at all.

    Args:
        parts: name and new image of each part, in the order they are to be written.
        sources: the old image of each of them.
        output: the payload; a regular file of that name is replaced.
        compat: only operations that stock readers of deltas carry out, and none of our fields.
        keys: each signs; none for an unsigned payload.
        workers: threads; None for one a core, as long as all stay within 1 GiB of memory.
        progress: told of bytes scanned, out of all of old and new images; then for each part of
            image bytes whose operation is made, out of those of the part.

    Raises:
        LibraryMissingError: numpy is not installed.
        PartUnknownError: no part, a name that is none, one twice, or a source for no part.
        SourceMissingError: a part without a source.
        ImageSizeError: an image is empty or not whole blocks.
        PayloadLimitsError: more operations than a node accepts.
        FileUnreadableError: an image cannot be read, or shrinks meanwhile.
        FileWriteError: the payload cannot be written.
    """
    _check_numpy()
    _check_sources([name for name, _ in parts], sources)
    manifest = pb.DeltaArchiveManifest(
        block_size=BLOCK_SIZE, minor_version=COMPAT_MINOR if compat else MINOR
    )
    with ExitStack() as stack:
        pairs = [
            _Pair(
                old=open_image(name, sources[name], output, stack, block_size=BLOCK_SIZE),
                new=open_image(name, path, output, stack, block_size=BLOCK_SIZE),
            )
            for name, path in parts
        ]
        draft = stack.enter_context(draft_of(output))
        scratch = stack.enter_context(scratch_beside(output))
        for pair in pairs:
            work = _Work(
                pair,
                share=len(pairs),
                compat=compat,
                workers=workers or default_workers(),
                progress=progress,
            )
            work.add_to(manifest, scratch)
        return assemble(manifest, scratch, draft, keys=keys)


def default_workers() -> int:
    """Return one thread a core, as long as all stay within `MEMORY_MAX`."""
    return max(1, min(cores(), (MEMORY_MAX - _TABLES_BYTES) // WORKER_BYTES))


def _check_numpy() -> None:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise LibraryMissingError("building a delta needs numpy, which is not installed") from error
    del np


def _check_sources(names: Sequence[str], sources: Mapping[str, Path]) -> None:
    check_names(names)
    for name in names:
        if name not in sources:
            raise SourceMissingError(f"part {name} has no old image to make a delta from")
    for name in sources:
        if name not in names:
            raise PartUnknownError(f"there is a source of part {name!r}, but no new image of it")


@dataclass(frozen=True, slots=True)
class _Pair:
    """The old and the new image of one part."""

    old: Image
    new: Image


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation to be made: the blocks it writes, and for a copy those it reads."""

    kind: OperationKind | None  # None: whatever codes its bytes best
    dst: tuple[Extent, ...]
    src: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An operation, its blob, and how many bytes of the image it makes."""

    operation: pb.InstallOperation
    data: bytes
    size: int
    source_segments: tuple[Segment, ...] = ()
    output_segments: tuple[Segment, ...] = ()


class _Work:
    """Makes the operations of one part."""

    def __init__(
        self, pair: _Pair, *, share: int, compat: bool, workers: int, progress: Progress | None
    ) -> None:
        self._pair = pair
        self._share = share  # parts of the payload, which share its limits
        self._compat = compat
        self._workers = workers
        self._progress = progress
        self._done = 0
        self._index: SourceIndex | None = None
        self._old: UnpackedOld | None = None
        self._recoder: Recoder | None = None
        self._pieces = 0  # of the old image in one dictionary, at most
        self._segments = 0  # the same, where some are unpacked, in segments

    def add_to(self, manifest: pb.DeltaArchiveManifest, scratch: Draft) -> None:
        """Add the part to the manifest and its blobs to the scratch file."""
        pair = self._pair
        update = manifest.partitions.add(partition_name=pair.new.name)
        total = 2 * pair.old.size + pair.new.size
        old, new = self._tabulate(pair.old, total), self._tabulate(pair.new, total)
        _set_info(update.old_partition_info, pair.old, old.sha256)
        _set_info(update.new_partition_info, pair.new, new.sha256)
        steps = self._prepare(self._match(old, new), total)
        self._done = 0
        for _, made in in_order(self._make, steps, workers=self._workers):
            made.operation.source_segments.extend(_segments(made.source_segments, manifest))
            made.operation.output_segments.extend(_segments(made.output_segments, manifest))
            if made.data:
                made.operation.data_offset = scratch.appended_bytes
                scratch.append(made.data)
            update.operations.append(made.operation)
            self._tell(made.size, pair.new.size)

    def _prepare(self, matched: Matched, total: int) -> list[_Step]:
        """Return the steps, with what they are coded against at hand."""
        from images.delta_recode import Recoder, find_coders
        from images.delta_unpacked import UnpackedOld
        from images.packed import find_packed

        if not matched.rest:
            return _steps(matched, None)
        old, new = self._pair.old, self._pair.new
        if not self._compat:
            packed = find_packed(new.read_at, new.size)
            coders = find_coders(new.read_at, packed)
            before = find_packed(old.read_at, old.size) if coders else []
            self._recoder = Recoder(new.read_at, packed, coders)
            before = self._recoder.keep_those_of(old.read_at, before)
            self._old = UnpackedOld(old.read_at, old.size, before, coders)
        steps = _steps(matched, self._recoder)
        groups = sum(1 for step in steps if step.kind is None)
        self._pieces = max(8, _PIECES_MAX // self._share // groups)
        self._segments = max(8, SEGMENTS_MAX // 2 // self._share // groups)
        self._index = self._index_old(total)
        return steps

    def _tabulate(self, image: Image, total: int) -> BlockTable:
        from images.delta_blocks import tabulate

        return tabulate(self._scan(image, total), workers=self._workers)

    def _scan(self, image: Image, total: int) -> Iterator[bytes]:
        for offset in range(0, image.size, _SCAN_SIZE):
            chunk = image.read_at(offset, min(_SCAN_SIZE, image.size - offset))
            self._tell(len(chunk), total)
            yield chunk

    def _match(self, old: BlockTable, new: BlockTable) -> Matched:
        from images.delta_blocks import match

        return match(
            old,
            new,
            self._same_blocks,
            copies_max=_COPIES_MAX // self._share,
            zeros_max=_ZEROS_MAX // self._share,
        )

    def _same_blocks(self, source: int, at: int, count: int) -> int:
        """Return how many blocks of both images are the same, byte for byte."""
        most = _SCAN_SIZE // BLOCK_SIZE
        for done in range(0, count, most):
            size = min(most, count - done) * BLOCK_SIZE
            old = self._pair.old.read_at((source + done) * BLOCK_SIZE, size)
            new = self._pair.new.read_at((at + done) * BLOCK_SIZE, size)
            if old != new:
                return done + _equal_blocks(old, new)
        return count

    def _index_old(self, total: int) -> SourceIndex:
        from images.delta_regions import Chunk, SourceIndex

        old, unpacked = self._pair.old, self._old
        offsets = range(0, old.size, _SCAN_SIZE)
        chunks = (
            Chunk(offset, chunk)
            for offset, chunk in zip(offsets, self._scan(old, total), strict=True)
        )
        return SourceIndex.of(
            chunks if unpacked is None else chain(chunks, unpacked.chunks()),
            size=old.size if unpacked is None else unpacked.size,
            workers=self._workers,
        )

    def _make(self, step: _Step) -> _Made:
        """Return the operation of a step; runs in threads."""
        if step.kind is OperationKind.ZERO:
            size = _size(step.dst)
            return self._made(step.kind, step, b"", hashlib.sha256(bytes(size)).digest(), size)
        target = _read(self._pair.new, step.dst)
        digest = hashlib.sha256(target).digest()
        if step.kind is None:
            return self._code(step, target, digest)
        made = self._made(step.kind, step, b"", digest, len(target))
        if self._compat:  # ours says it by field 1000: the bytes are the same
            made.operation.src_sha256_hash = digest
        return made

    def _code(self, step: _Step, target: bytes, digest: bytes) -> _Made:
        """Return the operation of a group of the rest."""
        from images.delta_coding import code, code_compat, is_dense

        if self._index is None:  # a broken invariant: `add_to` makes it before the first group
            raise AssertionError("a group is coded without an index")
        recoded = None if self._recoder is None else self._recoder.recoded(step.dst)
        if recoded is not None:
            made_again = self._recode(step, recoded, target, digest)
            if made_again is not None:
                return made_again
        ranked = self._index.ranked(target, step.dst)
        similar = ranked.best(
            DENSE_SIMILAR_MAX if is_dense(target) else SIMILAR_MAX,
            pieces_max=self._pieces,
            image_size=self._pair.old.size,
        )
        coded = (code_compat if self._compat else code)(target, _read(self._pair.old, similar))
        src = similar if coded.kind in READS_SOURCE else ()
        step = _Step(coded.kind, step.dst, src)
        made = self._made(coded.kind, step, coded.data, digest, len(target))
        if src:
            made.operation.src_sha256_hash = hashlib.sha256(_read(self._pair.old, src)).digest()
        return made

    def _recode(self, step: _Step, recoded: Recoded, target: bytes, digest: bytes) -> _Made | None:
        """Return the operation of a group that is packed again, or None where it does not pay."""
        from images.delta_coding import code_stream, is_dense

        if self._index is None or self._old is None:  # a broken invariant, as above
            raise AssertionError("a group is packed again without an index")
        ranked = self._index.ranked(recoded.stream, step.dst).pieces.tolist()
        most = JOB_DICTIONARY_MAX if recoded.large else DICTIONARY_MAX
        least = DENSE_SIMILAR_MAX if is_dense(recoded.stream) else SIMILAR_MAX
        size = min(most, max(least, len(recoded.stream)))
        similar = self._old.similar(ranked, size, segments_max=self._segments, large=recoded.large)
        data = code_stream(recoded.stream, similar.data, patches=not recoded.large)
        if data is None or len(data) >= len(target):
            return None
        kind = OperationKind.SOURCE_RECODE
        made = self._made(kind, _Step(kind, step.dst, similar.extents), data, digest, len(target))
        source = _read(self._pair.old, similar.extents)
        made.operation.src_sha256_hash = hashlib.sha256(source).digest()
        return dataclasses.replace(
            made, source_segments=similar.segments, output_segments=recoded.segments
        )

    def _made(
        self, kind: OperationKind, step: _Step, data: bytes, digest: bytes, size: int
    ) -> _Made:
        operation = pb.InstallOperation(
            type=kind.name,
            dst_extents=_messages(step.dst),
            src_extents=_messages(step.src),
            dst_sha256=None if self._compat else digest,
        )
        if data:
            operation.data_length = len(data)
            operation.data_sha256_hash = hashlib.sha256(data).digest()
        return _Made(operation=operation, data=data, size=size)

    def _tell(self, count: int, total: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, total)


def _steps(matched: Matched, recoder: Recoder | None) -> list[_Step]:
    """Return what is to be made, in the order in which it shall stand."""
    groups: Iterable[tuple[Extent, ...]]
    if recoder is None:
        groups = (dst for dst, _ in _batches(matched.rest, GROUP_SIZE))
    else:
        groups = recoder.groups(matched.rest, GROUP_SIZE)
    steps = [
        *(_Step(OperationKind.SOURCE_COPY, *it) for it in _batches(matched.copies, COPY_SIZE)),
        *(_Step(OperationKind.ZERO, *it) for it in _batches(matched.zeros, OUTPUT_MAX)),
        *(_Step(None, dst) for dst in groups),
    ]
    steps.sort(key=lambda step: step.dst[0].start_block)
    efforts = {} if recoder is None else {step: recoder.effort_of(step.dst) for step in steps}
    return ordered(
        steps,
        effort={step: it for step, it in efforts.items() if step.kind is None and it is not None},
        size=lambda step: _size(step.dst) // (ZERO_SHARE if step.kind is OperationKind.ZERO else 1),
        light=lambda step: step.kind is not None,
    )


def _batches(
    runs: Iterable[Run], size: int
) -> Iterator[tuple[tuple[Extent, ...], tuple[Extent, ...]]]:
    """Yield (dst, src) extents of at most `size` bytes; a longer run is cut."""
    dst: list[Extent] = []
    src: list[Extent] = []
    left = size // BLOCK_SIZE
    for run in runs:
        done = 0
        while done < run.count:
            count = min(left, run.count - done)
            _append(dst, Extent(run.start + done, count))
            if run.source is not None:
                _append(src, Extent(run.source + done, count))
            done, left = done + count, left - count
            if not left:
                yield tuple(dst), tuple(src)
                dst, src, left = [], [], size // BLOCK_SIZE
    if dst:
        yield tuple(dst), tuple(src)


def _append(extents: list[Extent], extent: Extent) -> None:
    """Add an extent, joined to the last one where it goes on from there."""
    if extents and extents[-1].start_block + extents[-1].num_blocks == extent.start_block:
        last = extents.pop()
        extent = Extent(last.start_block, last.num_blocks + extent.num_blocks)
    extents.append(extent)


def _equal_blocks(old: bytes, new: bytes) -> int:
    """Return how many blocks of two different pieces are equal at their beginning."""
    one, other = memoryview(old), memoryview(new)
    starts = range(0, len(old), BLOCK_SIZE)
    return next(
        number
        for number, start in enumerate(starts)
        if one[start : start + BLOCK_SIZE] != other[start : start + BLOCK_SIZE]
    )


def _read(image: Image, extents: Iterable[Extent]) -> bytes:
    return b"".join(
        image.read_at(extent.start_block * BLOCK_SIZE, extent.num_blocks * BLOCK_SIZE)
        for extent in extents
    )


def _size(extents: Iterable[Extent]) -> int:
    return sum(extent.num_blocks for extent in extents) * BLOCK_SIZE


def _segments(
    segments: Iterable[Segment], manifest: pb.DeltaArchiveManifest
) -> Iterator[pb.Segment]:
    """Yield segments as messages; a coder that is new to the manifest is added to it."""
    for segment in segments:
        message = pb.Segment(
            packed=segment.packed,
            unpacked=segment.unpacked,
            used=segment.used,
        )
        for name in ("offset", "start", "ahead", "behind"):
            if getattr(segment, name):
                setattr(message, name, getattr(segment, name))
        if segment.coder is not None:
            message.coder = _number(segment.coder, manifest)
        yield message


def _number(coder: Coder, manifest: pb.DeltaArchiveManifest) -> int:
    """Return the number of a coder, from 1, which the manifest has from now on."""
    message = pb.Coder(
        function=coder.function.value,
        version=coder.version,
        level=coder.level,
        sample_sha256=coder.sample_sha256,
    )
    if message not in manifest.coders:
        manifest.coders.append(message)
    return list(manifest.coders).index(message) + 1


def _messages(extents: Iterable[Extent]) -> list[pb.Extent]:
    return [pb.Extent(start_block=e.start_block, num_blocks=e.num_blocks) for e in extents]


def _set_info(info: pb.ImageInfo, image: Image, sha256: bytes) -> None:
    info.size = image.size
    info.hash = sha256
