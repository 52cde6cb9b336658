"""What there is to give: look-ups in the reflection of the signed files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from images.release import ChannelDocument, parse_channel_document
from server.claims import normal_app_id
from server.schema import CHANNEL_DOCUMENTS, CHANNELS, PAYLOADS, RELEASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from server.claims import Claim

STOCK_FORMAT: Final = 1  # the only one that Flatcar's engine reads

_DELTA: Final = "delta-from-"  # how `images.release.tuf_payload_path` begins a delta's file name


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A payload file as an answer names it.

    Attributes:
        sha256: 64 hex digits; also its name.
        size: bytes.
        sha1: base64, for old clients; may be empty.
        format: major version of its container.
        tuf_path: its name in `releases`; empty when it only serves stock clients.
    """

    sha256: str
    size: int
    sha1: str
    format: int
    tuf_path: str

    @property
    def delta_from(self) -> str:
        """The version that a delta starts from; empty for a full payload."""
        return delta_source(self.tuf_path)


def delta_source(tuf_path: str) -> str:
    """Return the version that the payload of a TUF path starts from; empty for a full one."""
    name = tuf_path.rpartition("/")[2]
    return name.removeprefix(_DELTA).removesuffix(".crau") if name.startswith(_DELTA) else ""


# Made once: they run with every check.
_PRODUCTS: Final = sa.select(RELEASES.c.product).distinct()
_BOARDS: Final = (
    sa.select(RELEASES.c.board).where(RELEASES.c.product == sa.bindparam("this_product")).distinct()
)
_DOCUMENT: Final = sa.select(CHANNEL_DOCUMENTS.c.document).where(
    CHANNEL_DOCUMENTS.c.channel == sa.bindparam("this_channel"),
    CHANNEL_DOCUMENTS.c.product == sa.bindparam("this_product"),
    CHANNEL_DOCUMENTS.c.board == sa.bindparam("this_board"),
)


def known_products(connection: Connection, default: str) -> dict[str, str]:
    """Return the products by their normal id; `default` counts before its first release."""
    names = connection.execute(_PRODUCTS).scalars()
    return {normal_app_id(name): name for name in (default, *names)}


def known_boards(connection: Connection, product: str) -> set[str]:
    """Return the boards that a product has releases for."""
    return set(connection.execute(_BOARDS, {"this_product": product}).scalars())


def find_document(
    connection: Connection, channel: str, product: str, board: str
) -> ChannelDocument | None:
    """Return what a channel says for a product and board, or None."""
    key = {"this_channel": channel, "this_product": product, "this_board": board}
    text = connection.execute(_DOCUMENT, key).scalar()
    return None if text is None else parse_channel_document(text.encode())


def payloads_of(connection: Connection, product: str, board: str, version: str) -> list[Payload]:
    """Return the payloads of a release, highest format first."""
    query = (
        sa.select(PAYLOADS)
        .join(RELEASES)
        .where(
            RELEASES.c.product == product,
            RELEASES.c.board == board,
            RELEASES.c.version == version,
        )
        .order_by(PAYLOADS.c.format.desc(), PAYLOADS.c.sha256)
    )
    return [
        Payload(
            sha256=row["sha256"],
            size=row["size"],
            sha1=row["sha1"],
            format=row["format"],
            tuf_path=row["tuf_path"],
        )
        for row in connection.execute(query).mappings()
    ]


def suitable(payloads: Sequence[Payload], claim: Claim, allowed: Sequence[str]) -> Payload | None:
    """Return the smallest full payload that a client reads, or None.

    For our nodes it is one of the `allowed` TUF paths. Others know no TUF path and read only
    format 1.
    """
    readable = [
        payload
        for payload in payloads
        if not payload.delta_from
        and (payload.tuf_path in allowed if claim.is_ours else payload.format == STOCK_FORMAT)
    ]
    return min(readable, key=lambda payload: payload.size, default=None)


def shortcuts(
    payloads: Sequence[Payload], claim: Claim, allowed: Sequence[str]
) -> tuple[Payload, ...]:
    """Return the deltas that a client may take instead, smallest first.

    They are for our nodes alone: those that say they take one and run what it starts from. A stock
    client is never told of one.
    """
    found = [
        payload
        for payload in payloads
        if payload.delta_from
        and payload.tuf_path in allowed
        and claim.is_ours
        and claim.delta_okay
        and payload.delta_from == claim.running.text
    ]
    return tuple(sorted(found, key=lambda payload: payload.size))


def base_urls(connection: Connection, channel: str) -> tuple[str, ...]:
    """Return where else the payloads of a channel lie, best first; empty for only here."""
    query = sa.select(CHANNELS.c.base_urls).where(CHANNELS.c.name == channel)
    return tuple((connection.execute(query).scalar() or "").split())
