"""Applies a payload to files, or only sees what that makes. Slots and resuming are the node's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from images.draft import CHUNK_SIZE, Draft, draft_of, scratch_beside
from images.errors import (
    FileUnreadableError,
    FileWriteError,
    ManifestContradictionError,
    PartitionMismatchError,
    PartUnknownError,
    SourceMissingError,
)
from images.lanes import cores, in_order
from images.operations import Bytes, decode, writes
from images.payload import Manifest, Operation, Part
from images.reader import Accept, Metadata, PayloadFile, Progress, open_regular
from images.recent import Output, RecentOutputs
from images.rules import check_applicable
from images.signing import TrustedKeys
from images.source import check_source


@dataclass(frozen=True, slots=True)
class _Job:
    """An operation to carry out; `made` is the promise of its output."""

    part: Part
    operation: Operation
    blob: bytes
    dictionary: Callable[[], bytes]
    made: Output


_NO_SOURCES: Final[Mapping[str, Path]] = MappingProxyType({})


class _FileImage:
    """An old image in an open file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._descriptor = file.fileno()
        self._path = path
        self.size_bytes: Final = os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end; raise `FileUnreadableError`."""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise FileUnreadableError(f"{self._path} cannot be read: {error.strerror}") from error


def apply_file(
    payload: Path,
    outputs: Mapping[str, Path],
    *,
    sources: Mapping[str, Path] = _NO_SOURCES,
    keys: TrustedKeys | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """Write the images of a payload to files; return the payload's metadata.

    1. with keys: the metadata signature (format 2), before the manifest is parsed;
    2. every blob's hash and, with keys, the payload signature, over the file to its last byte;
    3. each old image that a delta starts from has the size and the hash in the manifest;
    4. only then outputs are begun: each operation's blob is hashed again and unpacked. A delta of
       format 1 is applied, operation by operation, to a copy of its old image;
    5. each image is read back and compared with its hash in the manifest;
    6. all outputs appear under their names, or none.

    Args:
        payload: a payload file.
        outputs: for each part that is wanted, its file, which is replaced.
        sources: for each of these that is a delta, the old image; it is only read, and may be the
            file that is replaced.
        keys: trusted keys; None to check no signature.
        workers: threads that unpack; None for one a core.
        progress: told of bytes read in step 2, then of bytes written in step 3.

    Raises:
        PartUnknownError: the payload has no part of that name, or nothing is wanted.
        PayloadError: the payload is not sound, or not one that we carry out.
        PayloadRefusedError: it is not what a trusted key signed.
        SourceMissingError: a wanted part is a delta, and its old image is not named.
        SourceMismatchError: the old image is another one.
        FileUnreadableError: the payload or an old image cannot be read.
        FileWriteError: an output cannot be written.
    """
    with PayloadFile.open(payload) as file, ExitStack() as stack:
        metadata = file.metadata(keys, accept=Accept.APPLICABLE)
        _check_outputs(payload, metadata.manifest, outputs)
        images = _open_images(sources, stack)
        _check_names(metadata.manifest, images, outputs)
        file.verify(metadata, keys, progress=progress)
        parts = [part for part in metadata.manifest.parts if part.name in outputs]
        _check_sources(metadata.manifest, parts, images)
        drafts = {name: stack.enter_context(draft_of(path)) for name, path in outputs.items()}
        work = _Work(file, metadata, drafts, images, progress=progress)
        work.write(parts, workers=workers or cores())
        for part in parts:
            _finish(part, drafts[part.name])
    return metadata


def try_images(
    file: PayloadFile,
    metadata: Metadata,
    *,
    sources: Mapping[str, Path] = _NO_SOURCES,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Make every image of a payload, compare it, and keep nothing.

    A node proves each operation by its own hash where there is one, and never sees that these
    together are not the image that the manifest names: whoever builds or publishes must. Each
    blob and each output is compared with its hash, then each image with the manifest's. The images
    lie in files without names beside the payload meanwhile; memory is bounded, as in `apply_file`.

    Args:
        file: open; what it holds beside the blobs is not looked at.
        metadata: of it.
        sources: for each part that is a delta, the old image.
        workers: threads that unpack; None for one a core.
        progress: told of bytes made, of those of all images.

    Raises:
        ManifestContradictionError: the operations make what each of them says, and not the image.
        OperationOutputError: an operation does not make what it says.
        PayloadError, BlobMismatchError: the payload is not sound, or not one that we carry out.
        SourceMissingError: a part is a delta, and its old image is not named.
        SourceMismatchError: the old image is another one.
        FileUnreadableError: the payload or an old image cannot be read.
        FileWriteError: beside the payload is no room for the images, or nobody may write.
    """
    manifest = metadata.manifest
    check_applicable(manifest)
    with ExitStack() as stack:
        images = _open_images(sources, stack)
        _check_names(manifest, images, {part.name for part in manifest.parts})
        _check_sources(manifest, manifest.parts, images)
        drafts = {p.name: stack.enter_context(scratch_beside(file.path)) for p in manifest.parts}
        work = _Work(file, metadata, drafts, images, progress=progress, verify_output=True)
        try:
            work.write(manifest.parts, workers=workers or cores())
            for part in manifest.parts:
                actual = _digest_of(part, drafts[part.name])
                if actual != part.sha256:
                    raise ManifestContradictionError(
                        f"the operations of part {part.name} make an image of sha256"
                        f" {actual.hex()}, the manifest says {part.sha256.hex()}"
                    )
        except OSError as error:
            raise FileWriteError(
                f"the images of {file.path} cannot be made beside it: {error.strerror}"
            ) from error


def _open_images(sources: Mapping[str, Path], stack: ExitStack) -> dict[str, _FileImage]:
    return {
        name: _FileImage(stack.enter_context(open_regular(path)), path)
        for name, path in sources.items()
    }


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


def _check_names(
    manifest: Manifest, sources: Mapping[str, _FileImage], outputs: Collection[str]
) -> None:
    names = {part.name for part in manifest.parts}
    for name in sources:
        if name not in names:
            raise PartUnknownError(f"the payload has no part {name!r} to give a source")
    for part in manifest.parts:
        if part.name in outputs and part.old_size is not None and part.name not in sources:
            raise SourceMissingError(f"part {part.name} is a delta, and no old image is named")


def _check_sources(
    manifest: Manifest, parts: Sequence[Part], sources: Mapping[str, _FileImage]
) -> None:
    for part in parts:
        if part.old_size is not None:
            image = sources[part.name]
            check_source(part, image, size=image.size_bytes, major=manifest.major)


class _Work:
    """Writes the images of one payload to drafts."""

    def __init__(
        self,
        file: PayloadFile,
        metadata: Metadata,
        drafts: Mapping[str, Draft],
        sources: Mapping[str, _FileImage],
        *,
        progress: Progress | None,
        verify_output: bool | None = None,
    ) -> None:
        self._file = file
        self._metadata = metadata
        self._manifest = metadata.manifest
        self._drafts = drafts
        self._sources = sources
        self._progress = progress
        self._verify_output = verify_output
        self._done = self._total = 0

    def write(self, parts: Sequence[Part], *, workers: int) -> None:
        """Make the images of `parts`."""
        self._total = sum(part.size for part in parts)
        for part in parts:
            self._drafts[part.name].set_size(part.size)
        self._write_apart([p for p in parts if not self._manifest.is_in_place(p)], workers)
        for part in parts:
            if self._manifest.is_in_place(part):
                self._write_in_place(part)

    def _write_apart(self, parts: list[Part], workers: int) -> None:
        """Unpack in threads, write in order; blocks that no operation writes stay zeros."""
        for job, output in in_order(self._decode, self._jobs(parts), workers=workers):
            self._put(job.part, job.operation, output)

    def _write_in_place(self, part: Part) -> None:
        """Copy the old image, then decode each operation after the one before it is written."""
        draft, source = self._drafts[part.name], self._sources[part.name]
        block_size = self._manifest.block_size
        draft.set_size(-(-max(part.size, source.size_bytes) // block_size) * block_size)
        for offset in range(0, source.size_bytes, CHUNK_SIZE):
            draft.write_at(offset, source.read_at(offset, CHUNK_SIZE))
        for operation in part.operations:
            blob = self._file.blob(self._metadata, operation)
            output = decode(
                operation,
                blob,
                block_size=block_size,
                verify_output=self._verify_output,
                source=draft,
            )
            self._put(part, operation, output)

    def _decode(self, job: _Job) -> Bytes | None:
        try:
            output = decode(
                job.operation,
                job.blob,
                block_size=self._manifest.block_size,
                verify_output=self._verify_output,
                source=self._sources.get(job.part.name),
                dictionary=job.dictionary(),
            )
        except BaseException as error:
            job.made.set_exception(error)  # whoever waits for it must not wait for ever
            raise
        job.made.set_result(output)
        return output

    def _jobs(self, parts: list[Part]) -> Iterator[_Job]:
        for part in parts:
            recent = RecentOutputs(part, _never_stored)
            for number, operation in enumerate(part.operations):
                blob = self._file.blob(self._metadata, operation)
                job = _Job(part, operation, blob, recent.dictionary(operation), Future())
                recent.add(number, job.made)
                yield job

    def _put(self, part: Part, operation: Operation, output: Bytes | None) -> None:
        if output is not None:  # None: ZERO or DISCARD, and a new file is all zeros
            block_size = self._manifest.block_size
            for offset, piece in writes(operation, output, block_size=block_size):
                self._drafts[part.name].write_at(offset, piece)
        self._done += operation.output_limit
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _never_stored(number: int) -> bytes:
    raise AssertionError(f"operation {number} was not made before one that needs its output")


def _finish(part: Part, draft: Draft) -> None:
    """Read the file back."""
    actual = _digest_of(part, draft)
    if actual != part.sha256:
        raise PartitionMismatchError(
            f"part {part.name} has sha256 {actual.hex()} after writing,"
            f" the manifest says {part.sha256.hex()}"
        )


def _digest_of(part: Part, draft: Draft) -> bytes:
    """Cut the file to the size of the image; return its SHA-256."""
    draft.set_size(part.size)
    digest = hashlib.sha256()
    for chunk in draft.chunks():
        digest.update(chunk)
    return digest.digest()
