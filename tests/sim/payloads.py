"""Payloads forged by hand: any header, manifest and signatures, sound or not."""

from __future__ import annotations

import builtins
import functools
import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from backports import zstd
from cryptography.hazmat.primitives.asymmetric import rsa

from images.packing import Blob, Compression, Dictionary, pack
from images.proto import payload_pb2 as pb
from images.signing import PrivateKey, TrustedKeys, encode_signatures, sign_digest

BLOCK = 4096  # bytes


@functools.cache
def key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a private key; the same one for the same number, made in this process."""
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def pack_bent(bend: Callable[[Blob], Blob]) -> Callable[..., Blob]:
    """Return what a builder may take for `pack`, whose blobs a test bends."""

    def packed(
        chunk: bytes,
        candidates: Sequence[Compression],
        dictionary: Dictionary | None = None,
        *,
        level: int,
    ) -> Blob:
        return bend(pack(chunk, candidates, dictionary, level=level))

    return packed


def trusted(*keys: PrivateKey) -> TrustedKeys:
    """Return the public keys of private ones."""
    return TrustedKeys(tuple(private.public_key() for private in keys))


def replace(
    data: bytes,
    *,
    start: int,
    offset: int,
    kind: pb.InstallOperation.Type = pb.InstallOperation.REPLACE,
    blocks: int | None = None,
) -> pb.InstallOperation:
    """Return an operation whose blob is `data` at byte `offset` of the data area."""
    count = len(data) // BLOCK if blocks is None else blocks
    return pb.InstallOperation(
        type=kind,
        data_offset=offset,
        data_length=len(data),
        dst_extents=[pb.Extent(start_block=start, num_blocks=count)],
        data_sha256_hash=hashlib.sha256(data).digest(),
    )


@dataclass
class Forge:
    """A payload in pieces. As it stands it is sound: a test bends one piece, then asks `bytes`.

    Attributes:
        manifest: without the place of the signatures, which `bytes` adds when there are keys.
        blobs: the data area.
        keys: one signature each.
        header: replaces the header's fields: magic, major, manifest size, signature size.
        metadata_signature: replaces the signatures message over the metadata.
        signature: replaces the one over the payload.
    """

    manifest: pb.DeltaArchiveManifest
    blobs: bytes = b""
    keys: Sequence[rsa.RSAPrivateKey] = field(default_factory=lambda: (key(),))
    header: tuple[bytes, int, int, int] | None = None
    metadata_signature: bytes | None = None
    signature: bytes | None = None

    def bytes(self) -> bytes:
        """Return the payload of format 2, signed over whatever it is."""
        size = len(encode_signatures([bytes(private.key_size // 8) for private in self.keys]))
        if self.keys and not self.manifest.HasField("signatures_size"):
            self.manifest.signatures_offset = len(self.blobs)
            self.manifest.signatures_size = size
        raw = self.manifest.SerializePartialToString()
        magic, major, manifest_size, signature_size = self.header or (b"CrAU", 2, len(raw), size)
        metadata = struct.pack(">4sQQI", magic, major, manifest_size, signature_size) + raw
        return b"".join(
            (
                metadata,
                self._signed(metadata, self.metadata_signature),
                self.blobs,
                self._signed(metadata + self.blobs, self.signature),
            )
        )

    def _signed(self, data: builtins.bytes, given: builtins.bytes | None) -> builtins.bytes:
        if given is not None:
            return given
        digest = hashlib.sha256(data).digest()
        return encode_signatures([sign_digest(digest, private) for private in self.keys])


def image(blocks: int, seed: int = 1) -> bytes:
    """Return an image that does not compress: SHAKE-256 of the seed."""
    return hashlib.shake_256(seed.to_bytes(8, "big")).digest(blocks * BLOCK)


def forge(*datas: bytes, name: str = "usr") -> Forge:
    """Return a sound payload of one part, an uncompressed operation for each of `datas`."""
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK, minor_version=0)
    add_part(manifest, name, datas, offset=0)
    return Forge(manifest, b"".join(datas))


def add_part(
    manifest: pb.DeltaArchiveManifest, name: str, datas: Sequence[bytes], *, offset: int
) -> pb.PartitionUpdate:
    """Add a part of uncompressed operations whose blobs begin at `offset`."""
    update = manifest.partitions.add(partition_name=name)
    whole = b"".join(datas)
    position = 0
    for data in datas:
        update.operations.append(replace(data, start=position // BLOCK, offset=offset + position))
        position += len(data)
    update.new_partition_info.size = len(whole)
    update.new_partition_info.hash = hashlib.sha256(whole).digest()
    return update


def zstd_forge(data: bytes) -> Forge:
    """Return a sound payload with one REPLACE_ZSTD operation."""
    result = forge(data)
    packed = zstd.compress(data)
    operations = result.manifest.partitions[0].operations
    operation = replace(
        packed,
        start=0,
        offset=0,
        kind=pb.InstallOperation.REPLACE_ZSTD,
        blocks=len(data) // BLOCK,
    )
    operations[0].CopyFrom(operation)
    result.blobs = packed
    return result


def format_1(
    manifest: pb.DeltaArchiveManifest,
    blobs: bytes,
    *,
    keys: Sequence[rsa.RSAPrivateKey] = (),
    versions: Sequence[int] | None = None,
) -> bytes:
    """Return a payload of format 1; entries of its signatures count up to version 2."""
    numbers = versions if versions is not None else range(3 - len(keys), 3)

    def message(signatures: Iterable[bytes]) -> bytes:
        result = pb.Signatures()
        for number, data in zip(numbers, signatures, strict=True):
            result.signatures.add(version=number, data=data)
        return result.SerializeToString()

    if keys:
        manifest.signatures_offset = len(blobs)
        manifest.signatures_size = len(message(bytes(k.key_size // 8) for k in keys))
    raw = manifest.SerializePartialToString()
    signed = struct.pack(">4sQQ", b"CrAU", 1, len(raw)) + raw + blobs
    digest = hashlib.sha256(signed).digest()
    return signed + message(sign_digest(digest, k) for k in keys)
