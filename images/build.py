"""Builds a full payload of format 2 out of images. Streams: memory stays small for any size.

The blobs go to a scratch file, because the manifest that names them stands before them; then
`assemble` puts the payload together and signs it. The same images, options and keys give the same
bytes, as long as the versions of the compression libraries are the same.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.assemble import Built, assemble
from images.draft import Draft, draft_of, scratch_beside
from images.errors import OperationUnsupportedError, PayloadLimitsError
from images.inputs import Image, Meter, check_names, open_image
from images.lanes import cores, in_order
from images.packing import CHUNK_SIZE, Blob, Compression, pack
from images.proto import payload_pb2 as pb
from images.reader import Progress
from images.rules import OUTPUT_MAX
from images.signing import PrivateKey
from images.wire import OPERATIONS_MAX

BLOCK_SIZE: Final = 4096  # bytes; what all tools of this format write
_ZEROS: Final = bytes(CHUNK_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How every image of this payload is packed."""

    candidates: tuple[Compression, ...]
    compat: bool
    block_size: int
    workers: int

    def pack(self, chunk: bytes) -> Blob | None:
        """Return the blob of a chunk; None where a ZERO operation says it all."""
        if not self.compat and chunk == _ZEROS[: len(chunk)]:
            return None
        return pack(chunk, self.candidates)


def build(
    parts: Sequence[tuple[str, Path]],
    output: Path,
    *,
    compression: str | None = None,
    compat: bool = False,
    keys: Sequence[PrivateKey] = (),
    block_size: int = BLOCK_SIZE,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write a full payload that makes the images; it appears whole, or not at all.

    Args:
        parts: name and image file of each part, in the order they are to be written.
        output: the payload; a regular file of that name is replaced.
        compression: a value of `Compression`; None for zstd, or with `compat` for the
            smaller of xz and bz2, chunk by chunk.
        compat: leave out what stock readers of full payloads refuse: zstd, ZERO and our field.
        keys: each signs; none for an unsigned payload.
        block_size: bytes of a block; the images are whole blocks.
        workers: threads that compress; None for one a core.
        progress: told of image bytes packed, out of all.

    Raises:
        PartUnknownError: no part, a name that is none, or one twice.
        ImageSizeError: an image is empty or not whole blocks.
        OperationUnsupportedError: zstd is asked for together with `compat`.
        PayloadLimitsError: more operations than a node accepts.
        FileUnreadableError: an image cannot be read, or shrinks meanwhile.
        FileWriteError: the payload cannot be written.
    """
    recipe = _Recipe(
        candidates=_candidates(compression, compat=compat),
        compat=compat,
        block_size=block_size,
        workers=workers or cores(),
    )
    check_names([name for name, _ in parts])
    manifest = pb.DeltaArchiveManifest(block_size=block_size, minor_version=0)
    with ExitStack() as stack:
        images = [
            open_image(name, path, output, stack, block_size=block_size) for name, path in parts
        ]
        meter = Meter(images, progress)
        draft = stack.enter_context(draft_of(output))
        scratch = stack.enter_context(scratch_beside(output))
        for image in images:
            _pack_image(image, manifest, scratch, recipe, meter)
        return assemble(manifest, scratch, draft, keys=keys)


def _candidates(compression: str | None, *, compat: bool) -> tuple[Compression, ...]:
    """Return what each chunk is tried with; stock builders take the smaller of two as well."""
    if compression is None:
        return (Compression.XZ, Compression.BZ2) if compat else (Compression.ZSTD,)
    if compat and compression == Compression.ZSTD:
        raise OperationUnsupportedError("stock readers of full payloads refuse zstd")
    return (Compression(compression),)


def _pack_image(
    image: Image,
    manifest: pb.DeltaArchiveManifest,
    scratch: Draft,
    recipe: _Recipe,
    meter: Meter,
) -> None:
    """Add one part to the manifest and its blobs to the scratch file."""
    update = manifest.partitions.add(partition_name=image.name)
    digest = hashlib.sha256()
    position = 0
    for chunk, blob in in_order(recipe.pack, image.chunks(), workers=recipe.workers):
        digest.update(chunk)
        extent = pb.Extent(
            start_block=position // recipe.block_size, num_blocks=len(chunk) // recipe.block_size
        )
        if blob is None:
            _add_zeros(update, extent, recipe.block_size)
        else:
            _add_blob(update, extent, blob, scratch, compat=recipe.compat)
        if len(update.operations) > OPERATIONS_MAX:
            raise PayloadLimitsError(
                f"image {image.path} needs more than {OPERATIONS_MAX} operations"
            )
        position += len(chunk)
        meter.add(len(chunk))
    update.new_partition_info.size = image.size
    update.new_partition_info.hash = digest.digest()


def _add_blob(
    update: pb.PartitionUpdate, extent: pb.Extent, blob: Blob, scratch: Draft, *, compat: bool
) -> None:
    update.operations.add(
        type=pb.InstallOperation.Type.ValueType(blob.kind),
        data_offset=scratch.appended_bytes,
        data_length=len(blob.data),
        dst_extents=[extent],
        data_sha256_hash=blob.data_sha256,
        dst_sha256=None if compat else blob.dst_sha256,
    )
    scratch.append(blob.data)


def _add_zeros(update: pb.PartitionUpdate, extent: pb.Extent, block_size: int) -> None:
    """Add a ZERO operation, or make the one before longer, up to what an operation may make."""
    if update.operations:
        last = update.operations[-1]
        run = last.dst_extents[0]
        blocks = run.num_blocks + extent.num_blocks
        if last.type == pb.InstallOperation.ZERO and blocks * block_size <= OUTPUT_MAX:
            run.num_blocks = blocks
            last.dst_sha256 = _zeros_sha256(blocks * block_size)
            return
    update.operations.add(
        type=pb.InstallOperation.ZERO,
        dst_extents=[extent],
        dst_sha256=_zeros_sha256(extent.num_blocks * block_size),
    )


@functools.cache  # at most one entry for each mebibyte of the longest run
def _zeros_sha256(size: int) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_SIZE):
        digest.update(_ZEROS[: min(CHUNK_SIZE, size - start)])
    return digest.digest()
