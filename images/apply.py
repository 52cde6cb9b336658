"""Applies a full payload to files. Slots, devices and resuming are the node's matter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from images.draft import Draft, draft_of
from images.errors import FileWriteError, PartitionMismatchError, PartUnknownError
from images.lanes import cores, in_order
from images.operations import Bytes, decode, writes
from images.payload import Manifest, Operation, Part
from images.reader import Accept, Metadata, PayloadFile, Progress
from images.signing import TrustedKeys

_Job = tuple[Part, Operation, bytes]


def apply_file(
    payload: Path,
    outputs: Mapping[str, Path],
    *,
    keys: TrustedKeys | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """Write the images of a full payload to files; return the payload's metadata.

    1. with keys: the metadata signature (format 2), before the manifest is parsed;
    2. every blob's hash and, with keys, the payload signature, over the file to its last byte;
    3. only then outputs are begun: each operation's blob is hashed again and unpacked;
    4. each image is read back and compared with its hash in the manifest;
    5. all outputs appear under their names, or none.

    Args:
        payload: a payload file.
        outputs: for each part that is wanted, its file, which is replaced.
        keys: trusted keys; None to check no signature.
        workers: threads that unpack; None for one a core.
        progress: told of bytes read in step 2, then of bytes written in step 3.

    Raises:
        PartUnknownError: the payload has no part of that name, or nothing is wanted.
        PayloadError: the payload is not sound, or a delta.
        PayloadRefusedError: it is not what a trusted key signed.
        FileUnreadableError: the payload cannot be read.
        FileWriteError: an output cannot be written.
    """
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(keys, accept=Accept.FULL)
        _check_outputs(payload, metadata.manifest, outputs)
        file.verify(metadata, keys, progress=progress)
        with ExitStack() as stack:
            drafts = {name: stack.enter_context(draft_of(path)) for name, path in outputs.items()}
            _write(file, metadata, drafts, workers=workers or cores(), progress=progress)
            for part in metadata.manifest.parts:
                if part.name in drafts:
                    _finish(part, drafts[part.name])
    return metadata


def _check_outputs(payload: Path, manifest: Manifest, outputs: Mapping[str, Path]) -> None:
    names = {part.name for part in manifest.parts}
    held = ", ".join(sorted(names))
    if not outputs:
        raise PartUnknownError(f"no output is named; the payload has {held}")
    for name, path in outputs.items():
        if name not in names:
            raise PartUnknownError(f"the payload has no part {name!r}; it has {held}")
        if path.exists() and path.samefile(payload):
            raise FileWriteError(f"{path} cannot be written: it is the payload itself")
    if len({path.resolve() for path in outputs.values()}) != len(outputs):
        raise FileWriteError("one file cannot be written as the output of two parts")


def _write(
    file: PayloadFile,
    metadata: Metadata,
    drafts: Mapping[str, Draft],
    *,
    workers: int,
    progress: Progress | None,
) -> None:
    """Unpack in threads, write in order; blocks that no operation writes stay zeros."""
    block_size = metadata.manifest.block_size
    parts = [part for part in metadata.manifest.parts if part.name in drafts]
    total = sum(part.size for part in parts)
    for part in parts:
        drafts[part.name].set_size(part.size)

    def unpack(job: _Job) -> Bytes | None:
        return decode(job[1], job[2], block_size=block_size)

    done = 0
    for (part, operation, _), output in in_order(
        unpack, _jobs(file, metadata, parts), workers=workers
    ):
        if output is not None:  # None: ZERO, and a new file is all zeros
            for offset, piece in writes(operation, output, block_size=block_size):
                drafts[part.name].write_at(offset, piece)
        done += operation.output_limit
        if progress is not None:
            progress(min(done, total), total)


def _jobs(file: PayloadFile, metadata: Metadata, parts: list[Part]) -> Iterator[_Job]:
    for part in parts:
        for operation in part.operations:
            yield part, operation, file.blob(metadata, operation)


def _finish(part: Part, draft: Draft) -> None:
    """Cut the file to the size of the image, then read it back."""
    draft.set_size(part.size)
    digest = hashlib.sha256()
    for chunk in draft.chunks():
        digest.update(chunk)
    if digest.digest() != part.sha256:
        raise PartitionMismatchError(
            f"part {part.name} has sha256 {digest.hexdigest()} after writing,"
            f" the manifest says {part.sha256.hex()}"
        )
