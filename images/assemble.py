"""Puts a payload together: header, manifest, signatures, blobs. Packs nothing.

Sizes come first: header and manifest name how long the signatures are, and both are signed
(payload.md 7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from images.container import Header
from images.draft import Draft
from images.manifest import parse_manifest
from images.payload import SPARSE_HOLE, Manifest
from images.proto import payload_pb2 as pb
from images.signing import PrivateKey, message_size, sign_message


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build made.

    Attributes:
        manifest: of the payload.
        size_bytes: of the payload.
        sha256: of the whole payload.
    """

    manifest: Manifest
    size_bytes: int
    sha256: bytes


def assemble(
    message: pb.DeltaArchiveManifest,
    blobs: Draft,
    output: Draft,
    *,
    keys: Sequence[PrivateKey],
    major: int = 2,
) -> Built:
    """Write the payload of a manifest and its blobs to `output`, signed by each of `keys`.

    1. the place of the signatures is set, with the size they will have;
    2. header and manifest are what the node's own parser accepts;
    3. in format 2 they are signed: the metadata signature;
    4. the blobs follow; header, manifest and blobs are signed: the payload signature.

    Args:
        message: all but the signatures' place; changed by this call.
        blobs: the data area.
        output: empty.
        keys: one signature each, in this order; none for an unsigned payload.
        major: the format.

    Raises:
        PayloadError: the payload would be refused by a node; nothing was written.
        OSError: an output cannot be written.
    """
    size = message_size(keys, major=major)
    if keys:
        message.signatures_offset = blobs.appended_bytes
        message.signatures_size = size
        if major == 1:
            add_noop(message, blobs.appended_bytes, size)
    manifest = message.SerializeToString(deterministic=True)
    header = Header(
        major=major,
        manifest_size=len(manifest),
        metadata_signature_size=size if major == 2 else 0,
    )
    payload_size = header.data_offset + blobs.appended_bytes + size
    parsed = parse_manifest(header, manifest, payload_size=payload_size)

    metadata = header.encode() + manifest
    signed = hashlib.sha256(metadata)
    metadata_signature = sign_message(signed.digest(), keys, major=2) if major == 2 else b""
    whole = hashlib.sha256(metadata + metadata_signature)
    output.append(metadata + metadata_signature)
    for chunk in blobs.chunks():
        signed.update(chunk)
        whole.update(chunk)
        output.append(chunk)
    signature = sign_message(signed.digest(), keys, major=major)
    whole.update(signature)
    output.append(signature)
    return Built(manifest=parsed, size_bytes=payload_size, sha256=whole.digest())


def add_noop(
    message: pb.DeltaArchiveManifest, data_offset: int, data_length: int
) -> pb.InstallOperation:
    """Add what makes old clients of format 1 stream past bytes that are not for `usr`."""
    blocks = -(-data_length // message.block_size)
    return message.noop_operations.add(
        type=pb.InstallOperation.REPLACE,
        data_offset=data_offset,
        data_length=data_length,
        dst_extents=[pb.Extent(start_block=SPARSE_HOLE, num_blocks=blocks)],
    )
