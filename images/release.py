"""The signed release documents: payload facts, channel document, the facts an image carries.

Only their shape is checked here (`reference/trust.md` 3.3). Who signs them is the release desk's
matter, what a node makes of them is the node's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from images.errors import DeltaUnsupportedError, DocumentInvalidError
from images.version import VERSION_PATTERN

if TYPE_CHECKING:
    from pathlib import Path

    from images.payload import Manifest

PAYLOAD_SCHEMA: Final = "bascule.payload/1"
CHANNEL_SCHEMA: Final = "bascule.channel/1"

CHANNEL_DOCUMENT_MAX_BYTES: Final = 64 * 1024  # a node holds it in memory: trust.md 3.3
PAYLOAD_FACTS_MAX_BYTES: Final = 64 * 1024  # 64 parts with a delta's source stay below 32 KiB
IMAGE_FACTS_MAX_BYTES: Final = 16 * 1024  # six short lines; the rest is room for comments
_INTEGER_MAX: Final = 2**53 - 1  # what every JSON reader keeps exactly

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # product, board, channel, part
PAYLOAD_PATH_PATTERN: Final = (
    rf"os/{NAME_PATTERN}/{NAME_PATTERN}/{VERSION_PATTERN}"
    rf"/(?:full|delta-from-{VERSION_PATTERN})\.crau"
)

Name = Annotated[str, Meta(pattern=rf"^{NAME_PATTERN}\Z")]
Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
VersionText = Annotated[str, Meta(max_length=64, pattern=rf"^{VERSION_PATTERN}\Z")]
PayloadPath = Annotated[str, Meta(max_length=512, pattern=rf"^{PAYLOAD_PATH_PATTERN}\Z")]
PayloadPaths = Annotated[tuple[PayloadPath, ...], Meta(min_length=1, max_length=64)]
Instant = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0, le=_INTEGER_MAX)]
PositiveCount = Annotated[int, Meta(ge=1, le=_INTEGER_MAX)]

PayloadKind = Literal["full", "delta"]


class PartFacts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image of a payload: `size` in bytes, and the SHA-256 of exactly these bytes."""

    name: Name
    size: PositiveCount
    sha256: Sha256Hex


class SourcePart(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image that a delta needs in the booted slot: the SHA-256 of its first `size` bytes."""

    name: Name
    size: PositiveCount
    sha256: Sha256Hex


class SourceFacts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a delta starts from."""

    version: VersionText
    partitions: Annotated[tuple[SourcePart, ...], Meta(min_length=1, max_length=64)]


class PayloadFacts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node knows of a payload before it downloads it (`custom` of its TUF target).

    Attributes:
        rollback_index: compared with the node's floor; grows when old builds must not return.
        min_engine: the oldest bascule that may install it.
        requires_from: the oldest version that may go to it directly, or None for any.
        metadata_size: bytes of header and manifest.
        metadata_sha256: SHA-256 of exactly these.
        signatures_sha256: SHA-256 of the payload's last message, its signatures; lets an install
            that was interrupted check the tail. That of no bytes when the payload is unsigned.
        block_size: bytes of a block.
        partitions: the images that it makes, each once.
        source: for a delta only.
        recoded_bytes: bytes that a delta packs again (SOURCE_RECODE), which takes a node's CPU: as
            many as are packed, not as they are in the image. None where that is not said.
    """

    schema: Literal["bascule.payload/1"] = PAYLOAD_SCHEMA
    kind: PayloadKind
    product: Name
    board: Name
    version: VersionText
    rollback_index: Count
    min_engine: VersionText
    requires_from: VersionText | None = None
    metadata_size: PositiveCount
    metadata_sha256: Sha256Hex
    signatures_sha256: Sha256Hex
    block_size: Annotated[int, Meta(ge=512, le=1024 * 1024)]
    created: Instant
    partitions: Annotated[tuple[PartFacts, ...], Meta(min_length=1, max_length=64)]
    source: SourceFacts | None = None
    recoded_bytes: Count | None = None

    def __post_init__(self) -> None:
        if (self.kind == "delta") != (self.source is not None):
            verb = "lacks" if self.source is None else "has"
            raise ValueError(f"a {self.kind} payload {verb} a source")
        names = [part.name for part in self.partitions]
        if len(set(names)) != len(names):
            raise ValueError(f"a part is named twice: {', '.join(sorted(names))}")
        sources = [part.name for part in self.source.partitions] if self.source else []
        if len(set(sources)) != len(sources) or not set(sources) <= set(names):
            raise ValueError(f"parts {sorted(sources)} of the source are not those that are made")


class DowngradeGrant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Leave to go from one named version to one older named version, until an instant."""

    from_version: VersionText = msgspec.field(name="from")
    to_version: VersionText = msgspec.field(name="to")
    until: Instant


class ChannelDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which releases a node of this channel, product and board may run.

    Attributes:
        serial: only grows; a node keeps the highest it saw.
        current: the version that a node takes when it is alone; always a key of `allowed`.
        allowed: for each version that may be asked for, the TUF paths of its payloads.
        rollback_floor: no release with a lower rollback index is accepted.
        withdrawn: versions not to be installed any more, even where `allowed` names them.
        stops: versions that may not be jumped over.
        not_before: nothing of this document is installed earlier, or None.
        downgrade: leave to go back, each for one pair of versions.
    """

    schema: Literal["bascule.channel/1"] = CHANNEL_SCHEMA
    channel: Name
    product: Name
    board: Name
    serial: PositiveCount
    current: VersionText
    allowed: dict[VersionText, PayloadPaths]
    rollback_floor: Count = 0
    withdrawn: tuple[VersionText, ...] = ()
    stops: tuple[VersionText, ...] = ()
    not_before: Instant | None = None
    downgrade: tuple[DowngradeGrant, ...] = ()

    def __post_init__(self) -> None:
        if self.current not in self.allowed:
            raise ValueError(f"current version {self.current} is not allowed")
        for version, paths in self.allowed.items():
            folder = f"os/{self.product}/{self.board}/{version}/"
            for path in paths:
                if not path.startswith(folder):
                    raise ValueError(f"path {path} of version {version} is not under {folder}")


class ImageFacts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an image says of itself in `/usr/lib/bascule/image.toml`."""

    product: Name
    board: Name
    version: VersionText
    rollback_index: Count
    built: Instant


Document = TypeVar("Document", PayloadFacts, ChannelDocument, ImageFacts)


def parse_payload_facts(data: bytes | Mapping[str, object]) -> PayloadFacts:
    """Return the facts in JSON bytes, or in the `custom` map of a TUF target.

    Raises:
        DocumentInvalidError: too large, not JSON, or against the schema.
    """
    return _parse(data, PayloadFacts, limit=PAYLOAD_FACTS_MAX_BYTES, what="payload facts")


def parse_channel_document(data: bytes | Mapping[str, object]) -> ChannelDocument:
    """Return the channel document in JSON bytes or in a map.

    Raises:
        DocumentInvalidError: larger than 64 KiB, not JSON, or against the schema.
    """
    return _parse(data, ChannelDocument, limit=CHANNEL_DOCUMENT_MAX_BYTES, what="channel document")


def parse_image_facts(data: bytes | Mapping[str, object]) -> ImageFacts:
    """Return the facts in the TOML bytes of `image.toml`, or in a map.

    Raises:
        DocumentInvalidError: too large, not TOML, or against the schema.
    """
    return _parse(data, ImageFacts, limit=IMAGE_FACTS_MAX_BYTES, what="image.toml")


def encode_payload_facts(facts: PayloadFacts) -> dict[str, Any]:
    """Return `facts` as plain integers, strings, lists and maps, so that TUF can sign them."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(facts))
    return {key: value for key, value in plain.items() if value is not None}


def encode_channel_document(document: ChannelDocument) -> bytes:
    """Return `document` as JSON that a person can read; the same value gives the same bytes.

    Raises:
        DocumentInvalidError: it is larger than a node accepts.
    """
    compact = msgspec.json.encode(document, order="deterministic")
    data = msgspec.json.format(compact, indent=1) + b"\n"
    if len(data) > CHANNEL_DOCUMENT_MAX_BYTES:
        raise DocumentInvalidError(
            f"the channel document has {len(data)} bytes,"
            f" at most {CHANNEL_DOCUMENT_MAX_BYTES} are allowed"
        )
    return data


def encode_image_facts(facts: ImageFacts) -> bytes:
    """Return the TOML bytes of `image.toml`."""
    lines = [
        f'product = "{facts.product}"',
        f'board = "{facts.board}"',
        f'version = "{facts.version}"',
        f"rollback_index = {facts.rollback_index}",
        f"built = {facts.built.astimezone(UTC).isoformat().replace('+00:00', 'Z')}",
    ]
    return ("\n".join(lines) + "\n").encode()


def tuf_payload_path(product: str, board: str, version: str, kind: str) -> str:
    """Return the TUF path of a payload; `kind` is `full` or `delta-from-VERSION`."""
    return f"os/{product}/{board}/{version}/{kind}.crau"


def tuf_channel_path(channel: str, product: str, board: str) -> str:
    """Return the TUF path of a channel's document for one product and board."""
    return f"channels/{channel}/{product}/{board}.json"


def facts_of(  # noqa: PLR0913  # as many as a release has facts
    payload: Path,
    *,
    product: str,
    board: str,
    version: str,
    rollback_index: int,
    min_engine: str,
    created: datetime,
    requires_from: str | None = None,
    source_version: str | None = None,
) -> PayloadFacts:
    """Return the facts of a payload file, read from its metadata; signatures are not checked.

    `source_version` is the version that a delta starts from, None for a full payload. A delta must
    be of format 2: one that works in place could not be resumed.

    Raises:
        DocumentInvalidError: a name or version is not of the right shape.
        DeltaUnsupportedError: the payload is a delta and no source is named, or the other way
            round, or it is a delta of format 1.
        PayloadError: the file is no sound payload.
        FileUnreadableError: the file cannot be read.
    """
    from images.reader import Accept, PayloadFile

    is_delta = source_version is not None
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.APPLICABLE if is_delta else Accept.FULL)
        signatures_sha256 = hashlib.sha256(file.signatures(metadata)).hexdigest()
    if is_delta and not (metadata.manifest.is_delta and metadata.header.major == 2):
        raise DeltaUnsupportedError(f"{payload} is no delta of format 2")
    raw: dict[str, object] = {
        "schema": PAYLOAD_SCHEMA,
        "kind": "delta" if is_delta else "full",
        "product": product,
        "board": board,
        "version": version,
        "rollback_index": rollback_index,
        "min_engine": min_engine,
        "requires_from": requires_from,
        "metadata_size": metadata.header.metadata_size,
        "metadata_sha256": metadata.sha256.hex(),
        "signatures_sha256": signatures_sha256,
        "block_size": metadata.manifest.block_size,
        "created": created.astimezone(UTC),
        "partitions": [
            {"name": part.name, "size": part.size, "sha256": part.sha256.hex()}
            for part in metadata.manifest.parts
        ],
    }
    if is_delta:
        raw["source"] = {"version": source_version, "partitions": sources_of(metadata.manifest)}
        raw["recoded_bytes"] = recoded_bytes(metadata.manifest) or None  # old nodes read the rest
    return parse_payload_facts(raw)


def sources_of(manifest: Manifest) -> list[dict[str, object]]:
    """Return the images that the parts of a delta start from, as `SourcePart` has them."""
    return [
        {"name": part.name, "size": part.old_size, "sha256": part.old_sha256.hex()}
        for part in manifest.parts
        if part.old_size and part.old_sha256 is not None
    ]


def recoded_bytes(manifest: Manifest) -> int:
    """Return how many bytes the operations of a payload pack again."""
    return sum(
        segment.unpacked
        for part in manifest.parts
        for operation in part.operations
        for segment in operation.output_segments
        if segment.coder is not None
    )


def _parse(
    data: bytes | Mapping[str, object], kind: type[Document], *, limit: int, what: str
) -> Document:
    """Check size first, then shape; every refusal names the document."""
    if isinstance(data, bytes | bytearray | memoryview) and len(data) > limit:
        raise DocumentInvalidError(f"{what} has {len(data)} bytes, at most {limit} are allowed")
    try:
        if isinstance(data, Mapping):
            return msgspec.convert(data, kind)
        if kind is ImageFacts:
            return msgspec.toml.decode(data, type=kind)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DocumentInvalidError(f"{what} is not valid: {error}") from error
