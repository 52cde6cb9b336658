"""Reading a payload, from a stream or a file, in the order that trust asks for.

In format 2 the metadata signature is verified before the manifest is parsed; a file is verified
to its last byte before anyone writes. What is written where is not known here.
"""

from __future__ import annotations

import enum
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from images.block_index import check_index_group
from images.container import HEADER_SIZE, Header, parse_header
from images.errors import (
    DeltaUnsupportedError,
    FileUnreadableError,
    MetadataMismatchError,
    MetadataSignatureError,
    PayloadSignatureError,
    PayloadUnsignedError,
    TruncatedPayloadError,
)
from images.manifest import parse_manifest
from images.operations import check_blob_digest
from images.payload import IndexGroup, Manifest, Operation
from images.rules import check_applicable
from images.signing import TrustedKeys, parse_signatures, verify_digest

CHUNK_SIZE: Final = 1024 * 1024  # bytes read at once where nothing else says how many

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Source(Protocol):
    """Where a payload's bytes come from, in order."""

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes; raise `TruncatedPayloadError` when they end early."""
        ...


class Accept(enum.Enum):
    """Which payloads a caller can deal with."""

    FULL = "full"  # for callers who hold no old image
    APPLICABLE = "applicable"  # what we apply: full payloads, and deltas by their old images
    ANY = "any"  # deltas too: to inspect and verify them


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Header and manifest as read, and as they were signed.

    Attributes:
        header: the header.
        manifest: the manifest, checked.
        raw: the bytes of header and manifest.
        sha256: SHA-256 of exactly these.
        signature_blob: the metadata signature as stored; empty in format 1 and when unsigned.
    """

    header: Header
    manifest: Manifest
    raw: bytes
    sha256: bytes
    signature_blob: bytes


class FileSource:
    """A payload in an open file, read from where it stands."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            TruncatedPayloadError: the file ends before them.
            OSError: the file cannot be read.
        """
        pieces: list[bytes] = []
        left = size
        while left and (piece := self._file.read(left)):
            pieces.append(piece)
            left -= len(piece)
        if left:
            raise TruncatedPayloadError(f"the payload ends {left} bytes too early")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_metadata(
    source: Source,
    *,
    payload_size: int,
    keys: TrustedKeys | None,
    expected_sha256: bytes | None = None,
    accept: Accept = Accept.FULL,
) -> Metadata:
    """Read a payload up to its first blob.

    1. the header, its sizes checked against `payload_size` and our limits;
    2. header and manifest have `expected_sha256`, which a signed release names;
    3. with keys, in format 2: one of them made the metadata signature;
    4. only then the manifest is parsed and checked;
    5. with keys: a payload signature is announced; with `Accept.FULL`: it is no delta; with
       `Accept.APPLICABLE`: it is a full payload, or a delta that we carry out.

    Args:
        source: stands at the first byte of the payload.
        payload_size: bytes of the whole payload; exact.
        keys: trusted keys; None to check no signature.
        expected_sha256: of header and manifest, or None where no release names it.
        accept: which payloads are acceptable.

    Raises:
        PayloadError: the payload is not sound (step 1 and 4).
        MetadataMismatchError: step 2 fails.
        MetadataSignatureError: step 3 fails.
        PayloadUnsignedError: keys are given and a signature is missing.
        DeltaUnsupportedError: it is a delta and only full payloads are acceptable, or one of a
            minor version that we do not know.
        OperationUnsupportedError: it holds an operation that we do not carry out.
    """
    start = source.read_exactly(HEADER_SIZE)
    header = parse_header(start, payload_size=payload_size)
    raw = start + source.read_exactly(max(0, header.metadata_size - HEADER_SIZE))
    raw = raw[: header.metadata_size]
    signature_blob = source.read_exactly(header.metadata_signature_size)
    sha256 = hashlib.sha256(raw).digest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise MetadataMismatchError(
            f"header and manifest have sha256 {sha256.hex()},"
            f" the release says {expected_sha256.hex()}"
        )
    if keys is not None and header.major == 2:
        verify_signatures(sha256, signature_blob, keys, major=2, error=MetadataSignatureError)
    manifest = parse_manifest(header, raw[header.header_size :], payload_size=payload_size)
    if keys is not None and manifest.signatures_size == 0:
        raise PayloadUnsignedError("the payload carries no signature")
    if accept is Accept.FULL and manifest.is_delta:
        raise DeltaUnsupportedError(
            f"the payload is a delta of {', '.join(part.name for part in manifest.parts)}"
        )
    if accept is Accept.APPLICABLE:
        check_applicable(manifest)
    return Metadata(
        header=header, manifest=manifest, raw=raw, sha256=sha256, signature_blob=signature_blob
    )


class PayloadDigests:
    """Hashes a payload as it goes by: what its signature covers, and the whole file.

    Call `metadata` once, `blob` with every byte of the data area in order (in pieces of any
    size), then `finish`.
    """

    def __init__(self) -> None:
        self._signed = hashlib.sha256()
        self._major = 2
        self._file: hashlib._Hash | None = None  # only while it differs from what is signed

    def metadata(self, metadata: Metadata) -> None:
        """Take header, manifest and metadata signature; the last is not signed again."""
        self._major = metadata.header.major
        self._signed.update(metadata.raw)
        if metadata.signature_blob:
            self._file = self._signed.copy()
            self._file.update(metadata.signature_blob)

    def blob(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the data area."""
        self._signed.update(data)
        if self._file is not None:
            self._file.update(data)

    def finish(self, signatures_blob: bytes, keys: TrustedKeys | None) -> bytes:
        """Verify the payload signature, when keys are given; return the SHA-256 of the file.

        Raises:
            PayloadUnsignedError: keys are given and there is no signature.
            PayloadSignatureError: no trusted key made one of the signatures.
        """
        if keys is not None:
            verify_signatures(
                self._signed.digest(),
                signatures_blob,
                keys,
                major=self._major,
                error=PayloadSignatureError,
            )
        whole = self._signed if self._file is None else self._file
        whole.update(signatures_blob)
        return whole.digest()


def verify_signatures(
    digest: bytes,
    blob: bytes,
    keys: TrustedKeys,
    *,
    major: int,
    error: type[MetadataSignatureError | PayloadSignatureError],
) -> None:
    """Return when a trusted key signed `digest` in the signatures message `blob` of format `major`.

    Raises:
        PayloadUnsignedError: the message is empty or holds no signature.
        MetadataSignatureError, PayloadSignatureError: as `error` says: none verifies.
    """
    if not blob:
        raise PayloadUnsignedError("the payload carries no signature")
    signatures = parse_signatures(blob, major=major, error=error)
    verify_digest(digest, signatures, keys.of_format(major), error=error)


class PayloadFile:
    """A payload in a regular file, kept open: what is verified is what is read afterwards."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path: Final = path
        self._source = FileSource(file)
        self.size_bytes: Final = os.fstat(file.fileno()).st_size

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the payload at `path`.

        Raises:
            FileUnreadableError: it is missing, not readable or no regular file.
        """
        return cls(open_regular(path), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def metadata(self, keys: TrustedKeys | None, *, accept: Accept) -> Metadata:
        """Read the metadata as `read_metadata` does, and raise what it raises."""
        try:
            self._file.seek(0)
            return read_metadata(
                self._source, payload_size=self.size_bytes, keys=keys, accept=accept
            )
        except OSError as error:
            raise self._unreadable(error) from error

    def blob(self, metadata: Metadata, operation: Operation) -> bytes:
        """Return the blob of an operation, unchecked."""
        offset = metadata.header.data_offset + (operation.data_offset or 0)
        return self._read_at(offset, operation.data_length)

    def index_group(self, metadata: Metadata, group: IndexGroup) -> bytes:
        """Return a group of a block index, compared with its hash.

        Raises:
            BlobMismatchError: it is not the one that the manifest names.
        """
        data = self._read_at(metadata.header.data_offset + group.offset, group.length)
        check_index_group(group, data)
        return data

    def signatures(self, metadata: Metadata) -> bytes:
        """Return the signatures message as stored; empty when unsigned."""
        offset = metadata.header.data_offset + metadata.manifest.data_bytes
        return self._read_at(offset, metadata.manifest.signatures_size)

    def verify(
        self, metadata: Metadata, keys: TrustedKeys | None, *, progress: Progress | None = None
    ) -> bytes:
        """Check every blob and index by its hash, and the payload signature.

        Returns the SHA-256 of the file.

        Raises:
            BlobMismatchError: a blob is not the one that the manifest names.
            PayloadUnsignedError: keys are given and there is no signature.
            PayloadSignatureError: no trusted key made one of the signatures.
            TruncatedPayloadError: the file shrank meanwhile.
        """
        digests = PayloadDigests()
        digests.metadata(metadata)
        done = metadata.header.data_offset
        for step in metadata.manifest.steps():
            blob_digest = hashlib.sha256()
            for chunk in self._blob_chunks(metadata, step.operation):
                blob_digest.update(chunk)
                digests.blob(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, self.size_bytes)
            if step.operation.data_length:
                check_blob_digest(step.operation, blob_digest.digest())
        for group in metadata.manifest.index_groups():
            data = self.index_group(metadata, group)
            digests.blob(data)
            done += len(data)
            if progress is not None:
                progress(done, self.size_bytes)
        return digests.finish(self.signatures(metadata), keys)

    def _blob_chunks(self, metadata: Metadata, operation: Operation) -> Iterator[bytes]:
        """Yield a blob in pieces, so that a delta's large one is not held whole."""
        offset = metadata.header.data_offset + (operation.data_offset or 0)
        end = offset + operation.data_length
        while offset < end:
            chunk = self._read_at(offset, min(CHUNK_SIZE, end - offset))
            yield chunk
            offset += len(chunk)

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._source.read_exactly(size)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> FileUnreadableError:
        return FileUnreadableError(f"{self.path} cannot be read: {error.strerror}")


def verify_file(
    path: Path, keys: TrustedKeys | None, *, progress: Progress | None = None
) -> Metadata:
    """Verify a payload file to its last byte and return its metadata; deltas are welcome.

    Metadata signature (format 2), manifest, exact size, each blob's hash, payload signature, in
    this order. Without keys the signatures are not looked at.

    Raises:
        FileUnreadableError: the file cannot be read.
        PayloadError: the payload is not sound.
        PayloadRefusedError: it is not what a trusted key signed.
    """
    with PayloadFile.open(path) as file:
        metadata = file.metadata(keys, accept=Accept.ANY)
        file.verify(metadata, keys, progress=progress)
        return metadata


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, never waiting for a pipe's other end.

    Raises:
        FileUnreadableError: it is missing, not readable or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileUnreadableError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileUnreadableError(f"{path} cannot be read: it is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)
