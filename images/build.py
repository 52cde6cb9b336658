"""Builds a full payload of format 2 out of images. Streams: memory stays small for any size.

The blobs go to a scratch file, because the manifest that names them stands before them; then
`assemble` puts the payload together and signs it. The same images, options and keys give the same
bytes, as long as the versions of the compression libraries are the same.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.ages import Earlier, ages_in
from images.assemble import Built, assemble
from images.block_index import HASH_SIZE
from images.draft import Draft, draft_of, scratch_beside
from images.errors import OperationUnsupportedError, PayloadLimitsError
from images.inputs import Image, Meter, check_names, open_image
from images.lanes import cores, in_order
from images.layout import Planned, ages_of, dictionary_of, lay_out
from images.packing import CHUNK_SIZE, ZSTD_LEVEL, Blob, Compression, Dictionary, pack
from images.payload import OperationKind
from images.proto import payload_pb2 as pb
from images.reader import PayloadFile, Progress
from images.rules import OUTPUT_MAX
from images.signing import PrivateKey
from images.survey import survey_of
from images.wire import OPERATIONS_MAX

BLOCK_SIZE: Final = 4096  # bytes; what all tools of this format write
GROUP_OPERATIONS: Final = 4  # have one dictionary, and can be unpacked at once
DICTIONARY_OPERATIONS: Final = 2  # just before the group; decision 0013 has the figures
INDEX_GROUP_SIZE: Final = 6 * 1024  # bytes from which a group of the index is full: 4 MiB of image
_ZEROS: Final = bytes(CHUNK_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How every image of this payload is packed."""

    candidates: tuple[Compression, ...]
    block_size: int
    workers: int
    level: int
    earlier: Sequence[Earlier]

    @property
    def dictionaries(self) -> bool:
        """Tell whether operations are packed by what those before them make."""
        return Compression.ZSTD in self.candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """An operation to be packed: what it makes, and what its dictionary is made of."""

    planned: Planned
    chunk: bytes
    used: range
    dictionary: Dictionary | None


def build(  # noqa: PLR0913  # each is an option of the command
    parts: Sequence[tuple[str, Path]],
    output: Path,
    *,
    compression: str | None = None,
    compat: bool = False,
    keys: Sequence[PrivateKey] = (),
    block_size: int = BLOCK_SIZE,
    workers: int | None = None,
    progress: Progress | None = None,
    after: Sequence[Path] = (),
    level: int = ZSTD_LEVEL,
) -> Built:
    """Write a full payload that makes the images; it appears whole, or not at all.

    Args:
        parts: name and image file of each part, in the order they are to be written.
        output: the payload; a regular file of that name is replaced.
        compression: a value of `Compression`; None for zstd, or with `compat` for the
            smaller of xz and bz2, chunk by chunk.
        compat: leave out what stock readers of full payloads refuse: zstd, ZERO and our fields.
        keys: each signs; none for an unsigned payload.
        block_size: bytes of a block; the images are whole blocks.
        workers: threads that compress; None for one a core.
        progress: told of image bytes packed, out of all.
        after: earlier full payloads, newest first: what they had already is laid apart, so that
            a node at one of these versions needs few operations. Not with `compat`.
        level: of zstd, 1 to 19.

    Raises:
        IndexMissingError: one of `after` has no block index.
        PartUnknownError: no part, a name that is none, or one twice.
        ImageSizeError: an image is empty or not whole blocks.
        OperationUnsupportedError: zstd is asked for together with `compat`.
        PayloadLimitsError: more operations than a node accepts.
        FileUnreadableError: an image cannot be read, or shrinks meanwhile.
        FileWriteError: the payload cannot be written.
    """
    candidates = _candidates(compression, compat=compat)
    check_names([name for name, _ in parts])
    manifest = pb.DeltaArchiveManifest(block_size=block_size, minor_version=0)
    with ExitStack() as stack:
        recipe = _Recipe(
            candidates=candidates,
            block_size=block_size,
            workers=workers or cores(),
            level=level,
            earlier=[
                Earlier(path, stack.enter_context(PayloadFile.open(path)), block_size=block_size)
                for path in after
            ],
        )
        images = [
            open_image(name, path, output, stack, block_size=block_size) for name, path in parts
        ]
        meter = Meter(images, progress)
        draft = stack.enter_context(draft_of(output))
        scratch = stack.enter_context(scratch_beside(output))
        indexes: list[bytes] = []
        for image in images:
            update = manifest.partitions.add(partition_name=image.name)
            if compat:
                _pack_plainly(image, update, scratch, recipe, meter)
            else:
                indexes.append(_pack_by_age(image, update, scratch, recipe, meter))
        for index in indexes:
            scratch.append(index)
        return assemble(manifest, scratch, draft, keys=keys)


def _candidates(compression: str | None, *, compat: bool) -> tuple[Compression, ...]:
    """Return what each chunk is tried with; stock builders take the smaller of two as well."""
    if compression is None:
        return (Compression.XZ, Compression.BZ2) if compat else (Compression.ZSTD,)
    if compat and compression == Compression.ZSTD:
        raise OperationUnsupportedError("stock readers of full payloads refuse zstd")
    return (Compression(compression),)


def _pack_plainly(
    image: Image, update: pb.PartitionUpdate, scratch: Draft, recipe: _Recipe, meter: Meter
) -> None:
    """Add one part as stock readers take it: chunks of 1 MiB, one after the other."""
    digest = hashlib.sha256()
    position = 0

    def packed(chunk: bytes) -> Blob:
        return pack(chunk, recipe.candidates)

    for chunk, blob in in_order(packed, image.chunks(), workers=recipe.workers):
        digest.update(chunk)
        operation = _add_blob(update, blob, scratch)
        operation.dst_extents.add(
            start_block=position // recipe.block_size, num_blocks=len(chunk) // recipe.block_size
        )
        position += len(chunk)
        meter.add(len(chunk))
    _check_count(update, image)
    update.new_partition_info.size = image.size
    update.new_partition_info.hash = digest.digest()


def _pack_by_age(
    image: Image, update: pb.PartitionUpdate, scratch: Draft, recipe: _Recipe, meter: Meter
) -> bytes:
    """Add one part in our own layout; return the bytes of its block index."""
    survey = survey_of(image, block_size=recipe.block_size)
    planned = lay_out(
        ages_in(image.name, survey.hashes, recipe.earlier),
        survey.zeros,
        blocks_each=max(1, CHUNK_SIZE // recipe.block_size),
        cleared_each=max(1, OUTPUT_MAX // recipe.block_size),
    )
    cleared = [operation for operation in planned if operation.age is None]
    for zeros in cleared:
        _add_zeros(update, zeros, recipe.block_size)
        meter.add(zeros.blocks * recipe.block_size)

    def packed(job: _Job) -> Blob:
        return pack(job.chunk, recipe.candidates, job.dictionary, level=recipe.level)

    jobs = _jobs(image, planned, len(cleared), recipe)
    for job, blob in in_order(packed, jobs, workers=recipe.workers):
        operation = _add_blob(update, blob, scratch)
        operation.dst_extents.extend(_extents(job.planned))
        operation.dst_sha256 = blob.dst_sha256
        if blob.kind is OperationKind.TARGET_ZSTD:
            operation.dictionary_first = job.used.start
            operation.dictionary_count = len(job.used)
        meter.add(len(job.chunk))
    _check_count(update, image)
    image.check_unchanged()
    update.new_partition_info.size = image.size
    update.new_partition_info.hash = survey.sha256
    update.age_operations.extend(ages_of(planned))
    return _add_index(update, planned, survey.hashes)


def _jobs(image: Image, planned: Sequence[Planned], first: int, recipe: _Recipe) -> Iterator[_Job]:
    """Yield the operations that make something, each group with its dictionary."""
    recent: dict[int, bytes] = {}
    used, dictionary = range(0), None
    for number in range(first, len(planned)):
        chunk = image.gather(planned[number].runs, block_size=recipe.block_size)
        wanted = dictionary_of(number, first, group=GROUP_OPERATIONS, count=DICTIONARY_OPERATIONS)
        if recipe.dictionaries and wanted and wanted != used:
            used, dictionary = wanted, Dictionary(b"".join(recent[one] for one in wanted))
        yield _Job(planned=planned[number], chunk=chunk, used=used, dictionary=dictionary)
        recent[number] = chunk
        recent.pop(number - GROUP_OPERATIONS - DICTIONARY_OPERATIONS, None)


def _add_blob(update: pb.PartitionUpdate, blob: Blob, scratch: Draft) -> pb.InstallOperation:
    operation = update.operations.add(
        type=pb.InstallOperation.Type.ValueType(blob.kind),
        data_offset=scratch.appended_bytes,
        data_length=len(blob.data),
        data_sha256_hash=blob.data_sha256,
    )
    scratch.append(blob.data)
    return operation


def _add_zeros(update: pb.PartitionUpdate, planned: Planned, block_size: int) -> None:
    update.operations.add(
        type=pb.InstallOperation.ZERO,
        dst_extents=_extents(planned),
        dst_sha256=_zeros_sha256(planned.blocks * block_size),
    )


def _extents(planned: Planned) -> list[pb.Extent]:
    return [pb.Extent(start_block=start, num_blocks=count) for start, count in planned.runs]


def _add_index(update: pb.PartitionUpdate, planned: Sequence[Planned], hashes: bytes) -> bytes:
    """Name the groups of the block index; return its bytes."""
    update.index_hash_size = HASH_SIZE
    whole: list[bytes] = []
    group: list[bytes] = []
    held = 0
    for number, operation in enumerate(planned, start=1):
        held += 1
        if operation.age is not None:
            group += [
                hashes[start * HASH_SIZE : (start + count) * HASH_SIZE]
                for start, count in operation.runs
            ]
        size = sum(map(len, group))
        if size >= INDEX_GROUP_SIZE or number == len(planned):
            data = b"".join(group)
            update.index_groups.add(operations=held, sha256=hashlib.sha256(data).digest())
            whole.append(data)
            group, held = [], 0
    return b"".join(whole)


def _check_count(update: pb.PartitionUpdate, image: Image) -> None:
    if len(update.operations) > OPERATIONS_MAX:
        raise PayloadLimitsError(f"image {image.path} needs more than {OPERATIONS_MAX} operations")


@functools.cache  # at most one entry for each number of blocks that an operation clears
def _zeros_sha256(size: int) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_SIZE):
        digest.update(_ZEROS[: min(CHUNK_SIZE, size - start)])
    return digest.digest()
