"""The document of a group: how many may be down at once, and who is. No I/O, no clock.

One small JSON value, schema `bascule.permit/1` (README.md). An editor returns a new document.
Fields that this version does not know are kept and written back, so that old and new nodes of
one fleet can share a document; a change that old nodes must not ignore needs a new schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from updater.permit.errors import (
    PermitDocumentError,
    PermitFullError,
    PermitMaxError,
    PermitSettingsError,
)

SCHEMA: Final = "bascule.permit/1"
PLACES_MAX: Final = 1000  # holders; more nodes of one group down at once is no rollout
HOLDER_MAX_BYTES: Final = 1000  # of a holder we write: the limits below, each character escaped
DOCUMENT_MAX_BYTES: Final = 1024 * 1024  # PLACES_MAX holders; etcd takes requests up to 1.5 MiB
HOST_MAX_BYTES: Final = 128
REASON_MAX_BYTES: Final = 160
VERSION_MAX_BYTES: Final = 64

ID_RULE: Final = "1 to 64 of letters, digits, '.', '_' and '-', beginning with a letter or digit"
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PRINTABLE_ONLY: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z"  # it is shown on terminals

Extra = tuple[tuple[str, bytes], ...]  # fields that a later version added: name, raw JSON

_Id = Annotated[str, msgspec.Meta(pattern=rf"^{_ID.pattern}\Z")]
_Text = Annotated[str, msgspec.Meta(pattern=_PRINTABLE_ONLY)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A node that has leave to be down.

    Attributes:
        id: the machine id; a holder is recognised by nothing else.
        host: a name people know.
        since: when the place was taken, by the holder's clock; for people, nothing expires by it.
        reason: why, for people.
        version: what the node reboots into, or None.
        extra: fields of later versions, kept as they are.
    """

    id: str
    host: str
    since: datetime
    reason: str
    version: str | None = None
    extra: Extra = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitDocument:
    """A counting semaphore with named holders.

    Attributes:
        max: places of the group, 0 to `PLACES_MAX`; 0 means that nobody may reboot.
        holders: in the order they came; more than `max` only after `max` was lowered.
        extra: fields of later versions, kept as they are.
    """

    max: int
    holders: tuple[Holder, ...] = ()
    extra: Extra = ()

    @property
    def free(self) -> int:
        """Places that nobody holds, never below 0."""
        return max(0, self.max - len(self.holders))

    def holder(self, node_id: str) -> Holder | None:
        """Return the holder with this id, or None."""
        return next((holder for holder in self.holders if holder.id == node_id), None)

    def with_holder(self, holder: Holder) -> PermitDocument:
        """Return the document with `holder` in it.

        A node that holds a place keeps it, and its `since`, whatever `max` says; only its host,
        reason and version are brought up to date.

        Raises:
            PermitFullError: the node holds none and no place is free.
        """
        held = self.holder(holder.id)
        if held is None:
            if not self.free:
                raise PermitFullError(f"{len(self.holders)} of {self.max} permits are taken")
            return replace(self, holders=(*self.holders, holder))
        fresh = replace(holder, since=held.since, extra=held.extra)
        return replace(self, holders=tuple(fresh if one is held else one for one in self.holders))

    def without_holder(self, node_id: str) -> PermitDocument:
        """Return the document without that node; the same document when it is no holder."""
        if self.holder(node_id) is None:
            return self
        return replace(self, holders=tuple(one for one in self.holders if one.id != node_id))

    def with_max(self, places: int) -> PermitDocument:
        """Return the document with another number of places; nobody is sent away by it.

        Raises:
            PermitMaxError: below 0 or above `PLACES_MAX`.
        """
        return replace(self, max=checked_max(places))


def checked_max(places: int) -> int:
    """Return `places` when a group can have that many.

    Raises:
        PermitMaxError: below 0 or above `PLACES_MAX`.
    """
    if not 0 <= places <= PLACES_MAX:
        raise PermitMaxError(f"a group has 0 to {PLACES_MAX} permits, not {places}")
    return places


def checked_id(node_id: str) -> str:
    """Return `node_id` when it can name a holder and end a key.

    Raises:
        PermitSettingsError: it breaks `ID_RULE`.
    """
    if not _ID.fullmatch(node_id):
        raise PermitSettingsError(f"{node_id!r} is no id of a node: it must be {ID_RULE}")
    return node_id


def printable(text: str, *, max_bytes: int) -> str:
    """Return `text` fit for one line of a terminal, cut to `max_bytes` of UTF-8."""
    line = _UNPRINTABLE.sub(" ", text)
    return line.encode()[:max_bytes].decode(errors="ignore")


def make_holder(
    *, node_id: str, host: str, since: datetime, reason: str, version: str | None = None
) -> Holder:
    """Return a holder whose texts are printable and bounded, its time in whole seconds of UTC.

    Raises:
        PermitSettingsError: `node_id` breaks `ID_RULE`.
    """
    return Holder(
        id=checked_id(node_id),
        host=printable(host, max_bytes=HOST_MAX_BYTES),
        since=since.astimezone(UTC).replace(microsecond=0),
        reason=printable(reason, max_bytes=REASON_MAX_BYTES),
        version=None if version is None else printable(version, max_bytes=VERSION_MAX_BYTES),
    )


class _HolderFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """A holder as JSON holds it, known fields only."""

    id: _Id
    host: _Text
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    reason: _Text
    version: _Text | None = None


class _DocumentFields(msgspec.Struct, frozen=True):
    """The document as JSON holds it, known fields only."""

    schema: str
    max: Annotated[int, msgspec.Meta(ge=0, le=PLACES_MAX)]
    holders: list[msgspec.Raw]


class _SchemaField(msgspec.Struct, frozen=True):
    """What is read first, to give a schema we do not know its own sentence."""

    schema: str


def parse_document(data: bytes, *, where: str) -> PermitDocument:
    """Read a document.

    Args:
        data: what etcd holds.
        where: the key's name, for the sentence.

    Raises:
        PermitDocumentError: too long, not JSON, another schema, a field of a wrong kind, an id
            twice.
    """
    if len(data) > DOCUMENT_MAX_BYTES:
        raise PermitDocumentError(
            f"{where} holds {len(data)} bytes, a document has at most {DOCUMENT_MAX_BYTES}"
        )
    try:
        schema = msgspec.json.decode(data, type=_SchemaField).schema
        if schema != SCHEMA:
            raise PermitDocumentError(f"{where} has schema {schema!r}, expected {SCHEMA!r}")
        document = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise PermitDocumentError(f"{where} holds no permit document: {error}") from error
    _check_once_each(document, where)
    return document


def encode_document(document: PermitDocument) -> bytes:
    """Write a document as compact JSON.

    Raises:
        PermitDocumentError: longer than `DOCUMENT_MAX_BYTES`.
    """
    known: dict[str, object] = {
        "schema": SCHEMA,
        "max": document.max,
        "holders": [_with_extra(_fields_of(one), one.extra) for one in document.holders],
    }
    data = msgspec.json.encode(_with_extra(known, document.extra))
    if len(data) > DOCUMENT_MAX_BYTES:
        raise PermitDocumentError(
            f"the permit document would have {len(data)} bytes, more than {DOCUMENT_MAX_BYTES}"
        )
    return data


def _decode(data: bytes) -> PermitDocument:
    fields = msgspec.json.decode(data, type=_DocumentFields)
    return PermitDocument(
        max=fields.max,
        holders=tuple(_decode_holder(bytes(raw)) for raw in fields.holders),
        extra=_extra(data, _DocumentFields.__struct_fields__),
    )


def _check_once_each(document: PermitDocument, where: str) -> None:
    seen: set[str] = set()
    for holder in document.holders:
        if holder.id in seen:
            raise PermitDocumentError(f"{where} names holder {holder.id} twice")
        seen.add(holder.id)


def _decode_holder(raw: bytes) -> Holder:
    fields = msgspec.json.decode(raw, type=_HolderFields)
    return Holder(
        id=fields.id,
        host=fields.host,
        since=fields.since.astimezone(UTC),
        reason=fields.reason,
        version=fields.version,
        extra=_extra(raw, _HolderFields.__struct_fields__),
    )


def _extra(data: bytes, known: Iterable[str]) -> Extra:
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return tuple((name, bytes(raw)) for name, raw in fields.items() if name not in set(known))


def _fields_of(holder: Holder) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": holder.id,
        "host": holder.host,
        "since": holder.since,
        "reason": holder.reason,
    }
    return fields if holder.version is None else {**fields, "version": holder.version}


def _with_extra(fields: dict[str, object], extra: Extra) -> dict[str, object]:
    return {**fields, **{name: msgspec.Raw(raw) for name, raw in extra}}
