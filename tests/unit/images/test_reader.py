"""Reading in the order that trust asks for."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from typing_extensions import override

from images.errors import (
    BlobMismatchError,
    DeltaUnsupportedError,
    FileUnreadableError,
    ManifestInvalidError,
    MetadataMismatchError,
    MetadataSignatureError,
    PayloadLimitsError,
    PayloadMagicError,
    PayloadSignatureError,
    PayloadUnsignedError,
    TrailingBytesError,
    TruncatedPayloadError,
)
from images.reader import (
    Accept,
    FileSource,
    Metadata,
    PayloadDigests,
    PayloadFile,
    read_metadata,
    verify_file,
)
from images.signing import TrustedKeys
from tests.sim.payloads import Forge, forge, image, key, trusted

A, B = image(2, 1), image(3, 2)
KEYS = trusted(key())


def read(
    data: bytes, keys: TrustedKeys | None = KEYS, *, expected_sha256: bytes | None = None
) -> Metadata:
    return read_metadata(
        FileSource(io.BytesIO(data)),
        payload_size=len(data),
        keys=keys,
        expected_sha256=expected_sha256,
    )


def verified(data: bytes, folder: Path, keys: TrustedKeys | None = KEYS) -> Metadata:
    path = folder / "payload"
    path.write_bytes(data)
    return verify_file(path, keys)


def test_metadata_is_header_and_manifest_without_their_signature() -> None:
    data = forge(A).bytes()
    metadata = read(data)

    size = metadata.header.metadata_size
    assert metadata.raw == data[:size]
    assert metadata.sha256 == hashlib.sha256(data[:size]).digest()
    assert metadata.signature_blob == data[size : metadata.header.data_offset]


def test_the_source_is_left_at_the_first_blob() -> None:
    data = forge(A).bytes()
    file = io.BytesIO(data)
    read_metadata(FileSource(file), payload_size=len(data), keys=None)

    assert file.read(len(A)) == A


def test_a_source_that_gives_small_pieces_is_read_to_the_end() -> None:
    class Dripping(io.BytesIO):
        @override
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(7, size or 0))

    data = forge(A).bytes()
    metadata = read_metadata(FileSource(Dripping(data)), payload_size=len(data), keys=KEYS)

    assert metadata.raw == read(data).raw


def test_an_unverified_manifest_is_never_parsed() -> None:
    payload = forge(A)
    payload.manifest.block_size = 3
    payload.metadata_signature = bytes(267)

    with pytest.raises(MetadataSignatureError):
        read(payload.bytes())


def test_a_verified_manifest_is_parsed() -> None:
    payload = forge(A)
    payload.manifest.block_size = 3

    with pytest.raises(ManifestInvalidError):
        read(payload.bytes())


def test_the_hash_that_a_release_names_is_compared_before_anything_is_parsed() -> None:
    payload = forge(A)
    payload.manifest.block_size = 3
    payload.metadata_signature = bytes(267)

    with pytest.raises(MetadataMismatchError, match="the release says 0000"):
        read(payload.bytes(), expected_sha256=bytes(32))


def test_the_right_hash_is_taken() -> None:
    data = forge(A).bytes()

    assert read(data, expected_sha256=read(data).sha256).sha256 == read(data).sha256


def test_without_keys_no_signature_is_looked_at() -> None:
    payload = forge(A)
    payload.metadata_signature = payload.signature = b"\xff" * 267

    assert read(payload.bytes(), None).signature_blob == b"\xff" * 267


def test_an_unsigned_payload_is_refused_with_keys_and_taken_without() -> None:
    data = Forge(forge(A).manifest, A, keys=()).bytes()

    assert read(data, None).manifest.signatures_size == 0
    with pytest.raises(PayloadUnsignedError):
        read(data)


def test_a_payload_with_a_metadata_signature_alone_is_unsigned() -> None:
    payload = Forge(forge(A).manifest, A, signature=b"")
    payload.manifest.signatures_offset, payload.manifest.signatures_size = len(A), 0

    with pytest.raises(PayloadUnsignedError):
        read(payload.bytes())


def test_a_payload_with_a_payload_signature_alone_is_unsigned() -> None:
    payload = forge(A)
    whole = payload.bytes()
    payload.metadata_signature = b""
    size = len(payload.manifest.SerializeToString())
    payload.header = (b"CrAU", 2, size, 0)

    assert len(payload.bytes()) == len(whole) - 267
    with pytest.raises(PayloadUnsignedError):
        read(payload.bytes())


def test_a_delta_is_refused_unless_any_payload_is_welcome() -> None:
    payload = forge(A)
    payload.manifest.partial_update = True
    data = payload.bytes()

    with pytest.raises(DeltaUnsupportedError, match="a delta of usr"):
        read(data)
    source = FileSource(io.BytesIO(data))
    metadata = read_metadata(source, payload_size=len(data), keys=KEYS, accept=Accept.ANY)
    assert metadata.manifest.is_delta


def test_a_sound_file_verifies(tmp_path: Path) -> None:
    assert verified(forge(A, B).bytes(), tmp_path).manifest.parts[0].name == "usr"


def test_the_sha256_of_the_file_comes_with_the_verdict(tmp_path: Path) -> None:
    for keys in ((key(),), ()):
        payload = Forge(forge(A, B).manifest, A + B, keys=keys)
        path = tmp_path / "payload"
        path.write_bytes(payload.bytes())
        with PayloadFile.open(path) as file:
            metadata = file.metadata(None, accept=Accept.FULL)
            digest = file.verify(metadata, None)

        assert digest == hashlib.sha256(path.read_bytes()).digest()


def test_a_flipped_blob_is_a_blob_mismatch(tmp_path: Path) -> None:
    data = bytearray(forge(A, B).bytes())
    data[-267 - 1] ^= 1

    with pytest.raises(BlobMismatchError, match="the blob at byte 8192 of the data"):
        verified(bytes(data), tmp_path)


def test_a_wrong_payload_signature_is_noticed_though_all_hashes_are_right(tmp_path: Path) -> None:
    payload = forge(A)
    payload.signature = forge(B).bytes()[-267:]

    with pytest.raises(PayloadSignatureError):
        verified(payload.bytes(), tmp_path)


def test_swapped_blobs_are_noticed_though_the_metadata_is_right(tmp_path: Path) -> None:
    payload = forge(A, image(2, 3))
    payload.blobs = image(2, 3) + A

    with pytest.raises(BlobMismatchError):
        verified(payload.bytes(), tmp_path)


@pytest.mark.parametrize("count", [1, 100])
def test_a_byte_too_many_or_too_few_is_refused(tmp_path: Path, count: int) -> None:
    data = forge(A).bytes()

    with pytest.raises(TrailingBytesError, match=f"has {len(data) + count} bytes"):
        verified(data + bytes(count), tmp_path)
    with pytest.raises(TruncatedPayloadError):
        verified(data[:-count], tmp_path)


@pytest.mark.parametrize("size", [0, 3, 4, 23])
def test_a_file_shorter_than_a_header_is_truncated(tmp_path: Path, size: int) -> None:
    with pytest.raises(TruncatedPayloadError):
        verified(forge(A).bytes()[:size], tmp_path)


def test_another_kind_of_file_is_told_by_its_magic(tmp_path: Path) -> None:
    with pytest.raises(PayloadMagicError, match="begins with b'<htm'"):
        verified(b"<html><body>404 not found</body></html>", tmp_path)


def test_a_huge_claim_is_refused_without_reading_it(tmp_path: Path) -> None:
    payload = forge(A)
    payload.header = (b"CrAU", 2, 2**60, 0)

    with pytest.raises(PayloadLimitsError, match="1152921504606846976"):
        verified(payload.bytes(), tmp_path)


def test_a_folder_a_missing_file_and_a_pipe_are_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path, reason in (
        (tmp_path, "not a regular file"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(FileUnreadableError, match=reason):
            verify_file(path, None)


def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(forge(A, B).bytes())
    with PayloadFile.open(path) as file:
        metadata = file.metadata(KEYS, accept=Accept.FULL)
        os.truncate(path, metadata.header.data_offset + 10)

        with pytest.raises(TruncatedPayloadError):
            file.verify(metadata, KEYS)


def test_progress_ends_at_the_last_blob(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(forge(A, B).bytes())
    told: list[tuple[int, int]] = []

    verify_file(path, KEYS, progress=lambda done, total: told.append((done, total)))

    assert told[-1] == (path.stat().st_size - 267, path.stat().st_size)


def test_digests_do_not_depend_on_how_the_data_is_cut() -> None:
    data = forge(A, B).bytes()
    metadata = read(data)
    area = data[metadata.header.data_offset : -267]
    for step in (1000, 4096, len(area)):
        digests = PayloadDigests()
        digests.metadata(metadata)
        for start in range(0, len(area), step):
            digests.blob(memoryview(area)[start : start + step])

        assert digests.finish(data[-267:], KEYS) == hashlib.sha256(data).digest()
