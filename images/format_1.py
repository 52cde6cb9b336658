"""Builds a full payload of format 1 out of images, field by field as Flatcar's generator does.

The same images and keys give its very manifest. Format 2 is `build`'s matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.assemble import Built, add_noop, assemble
from images.draft import Draft, draft_of, scratch_beside
from images.errors import OperationUnsupportedError, PartUnknownError, PayloadLimitsError
from images.inputs import Image, Meter, check_names, open_image
from images.lanes import cores, in_order
from images.packing import CHUNK_SIZE, Blob, Compression, pack
from images.proto import payload_pb2 as pb
from images.reader import Progress
from images.signing import PrivateKey, check_format, message_size
from images.wire import OPERATIONS_MAX

BLOCK_SIZE: Final = 4096  # bytes; Flatcar's tools know no other
DATA_MAX: Final = 2**32 - 1  # bytes of blobs and signatures: offsets have 32 bits (payload.md 2)

_USR: Final = "usr"
_PROCEDURES: Final = {  # in the order of their blobs, which follow those of usr (payload.md 11)
    "kernel": pb.InstallProcedure.KERNEL,
    "pcr-policy": pb.InstallProcedure.PCR_POLICY,
}
_CANDIDATES: Final = {  # what a chunk is tried with, by --compression
    None: (Compression.BZ2,),
    Compression.BZ2: (Compression.BZ2,),
    Compression.NONE: (Compression.NONE,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What packing each image needs."""

    pack: Callable[[bytes], Blob]
    scratch: Draft
    meter: Meter
    workers: int
    room: int


def build_format_1(
    parts: Sequence[tuple[str, Path]],
    output: Path,
    *,
    compression: str | None = None,
    keys: Sequence[PrivateKey] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write a full payload of format 1; it appears whole, or not at all.

    Args:
        parts: name and file of `usr`, and of `kernel` and `pcr-policy` where there are such.
        output: the payload; a regular file of that name is replaced.
        compression: bz2, or none; None for the smaller of both, chunk by chunk.
        keys: each signs; Flatcar's engine looks at the last alone. None for an unsigned payload.
        workers: threads that compress; None for one a core.
        progress: told of image bytes packed, out of all.

    Raises:
        PartUnknownError: no `usr`, a part that format 1 has not, or one twice.
        ImageSizeError: an image is empty, or `usr` is not whole blocks.
        OperationUnsupportedError: xz or zstd is asked for.
        KeyUnsuitableError: a key is not RSA.
        PayloadLimitsError: more operations than a node accepts, or 4 GiB of data.
        FileUnreadableError: an image cannot be read, or shrinks meanwhile.
        FileWriteError: the payload cannot be written.
    """
    candidates = _CANDIDATES.get(None if compression is None else Compression(compression))
    if candidates is None:
        raise OperationUnsupportedError(f"readers of format 1 refuse {compression}")
    check_format(keys, major=1)
    paths = _checked_parts(parts)
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK_SIZE)
    with ExitStack() as stack:
        images = [
            open_image(name, path, output, stack, block_size=BLOCK_SIZE if name == _USR else 1)
            for name, path in paths
        ]
        draft = stack.enter_context(draft_of(output))
        bench = _Bench(
            pack=lambda chunk: pack(chunk, candidates),
            scratch=stack.enter_context(scratch_beside(output)),
            meter=Meter(images, progress),
            workers=workers or cores(),
            room=DATA_MAX - message_size(keys, major=1),
        )
        for image in images:
            _pack_image(image, manifest, bench)
        _add_noops(manifest)
        return assemble(manifest, bench.scratch, draft, keys=keys, major=1)


def _checked_parts(parts: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Return the parts in the order of their blobs."""
    check_names([name for name, _ in parts])
    order = (_USR, *_PROCEDURES)
    paths = dict(parts)
    for name in paths:
        if name not in order:
            raise PartUnknownError(f"format 1 has no part {name}, only {', '.join(order)}")
    if _USR not in paths:
        raise PartUnknownError("a payload of format 1 has a part usr")
    return [(name, paths[name]) for name in order if name in paths]


def _pack_image(image: Image, manifest: pb.DeltaArchiveManifest, bench: _Bench) -> None:
    """Add one part to the manifest and its blobs to the scratch file."""
    if image.name == _USR:
        operations, info = manifest.partition_operations, manifest.new_partition_info
    else:
        procedure = manifest.procedures.add(type=_PROCEDURES[image.name])
        operations, info = procedure.operations, procedure.new_info
    digest = hashlib.sha256()
    blocks = CHUNK_SIZE // BLOCK_SIZE  # claimed by a short last chunk as well: payload.md 5
    for chunk, blob in in_order(bench.pack, image.chunks(), workers=bench.workers):
        digest.update(chunk)
        if bench.scratch.appended_bytes + len(blob.data) > bench.room:
            raise PayloadLimitsError(
                f"a payload of format 1 holds at most {DATA_MAX} bytes of data"
            )
        start = len(operations) * blocks
        operations.add(
            type=pb.InstallOperation.Type.ValueType(blob.kind),
            data_offset=bench.scratch.appended_bytes,
            data_length=len(blob.data),
            dst_extents=[pb.Extent(start_block=start, num_blocks=blocks)],
            data_sha256_hash=blob.data_sha256,
        )
        bench.scratch.append(blob.data)
        bench.meter.add(len(chunk))
        if len(operations) > OPERATIONS_MAX:
            raise PayloadLimitsError(f"image {image.path} needs over {OPERATIONS_MAX} operations")
    info.size = image.size
    info.hash = digest.digest()


def _add_noops(manifest: pb.DeltaArchiveManifest) -> None:
    """Cover the procedures' blobs, which old clients stream past: payload.md 11."""
    for procedure in manifest.procedures:
        for operation in procedure.operations:
            noop = add_noop(manifest, operation.data_offset, operation.data_length)
            noop.data_sha256_hash = operation.data_sha256_hash
