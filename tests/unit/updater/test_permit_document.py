"""The document of a group: what may be written, what is refused, who may enter."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.permit.document import (
    DOCUMENT_MAX_BYTES,
    HOLDER_MAX_BYTES,
    HOST_MAX_BYTES,
    PLACES_MAX,
    REASON_MAX_BYTES,
    VERSION_MAX_BYTES,
    Holder,
    PermitDocument,
    encode_document,
    make_holder,
    parse_document,
    printable,
)
from updater.permit.errors import (
    PermitDocumentError,
    PermitFullError,
    PermitMaxError,
    PermitSettingsError,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEY = "/bascule/permit/default/document"

ids = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
texts = st.text(max_size=80).map(lambda text: printable(text, max_bytes=160))
moments = st.datetimes(timezones=st.just(UTC))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KNOWN = {"schema", "max", "holders", "id", "host", "since", "reason", "version"}
extras = st.dictionaries(
    st.text(max_size=10).filter(lambda name: name not in KNOWN), json_values, max_size=2
).map(lambda fields: tuple((name, json.dumps(value).encode()) for name, value in fields.items()))
holders = st.builds(
    Holder, id=ids, host=texts, since=moments, reason=texts, version=st.none() | texts, extra=extras
)
documents = st.builds(
    PermitDocument,
    max=st.integers(0, PLACES_MAX),
    holders=st.lists(holders, max_size=5, unique_by=lambda one: one.id).map(tuple),
    extra=extras,
)


def holder(node_id: str, *, reason: str = "update", at: datetime = NOON) -> Holder:
    return make_holder(node_id=node_id, host=f"host-{node_id}", since=at, reason=reason)


def parse(value: object) -> PermitDocument:
    return parse_document(json.dumps(value).encode(), where=KEY)


def entry(**fields: object) -> dict[str, object]:
    return {"id": "a", "host": "A", "since": "2026-11-23T12:00:00Z", "reason": "r", **fields}


@given(documents)
def test_what_is_written_is_read_back_with_every_field_of_later_versions(
    document: PermitDocument,
) -> None:
    assert parse_document(encode_document(document), where=KEY) == document


def test_the_document_has_the_form_of_the_specification() -> None:
    document = PermitDocument(max=1).with_holder(replace(holder("a"), version="2.0.0"))

    assert encode_document(document) == (
        b'{"schema":"bascule.permit/1","max":1,"holders":[{"id":"a","host":"host-a",'
        b'"since":"2026-11-23T12:00:00Z","reason":"update","version":"2.0.0"}]}'
    )


@given(documents, st.lists(st.tuples(st.sampled_from("+-="), ids, st.integers(0, 4)), max_size=20))
def test_no_row_of_edits_lets_a_node_in_beyond_max(
    document: PermitDocument, edits: list[tuple[str, str, int]]
) -> None:
    for kind, node_id, places in edits:
        before = document
        try:
            if kind == "+":
                document = document.with_holder(holder(node_id))
            elif kind == "-":
                document = document.without_holder(node_id)
            else:
                document = document.with_max(places)
        except PermitFullError:
            assert before.holder(node_id) is None
            assert not before.free
        if len(document.holders) > len(before.holders):
            assert len(document.holders) <= document.max
        assert document.free == max(0, document.max - len(document.holders))


def test_a_holder_that_asks_again_keeps_its_place_and_its_time_in_a_full_group() -> None:
    full = PermitDocument(max=1).with_holder(holder("a"))

    again = full.with_holder(holder("a", reason="another", at=NOON + timedelta(hours=1)))

    assert again.holders == (replace(holder("a"), reason="another"),)


def test_a_full_group_refuses_a_newcomer_with_the_numbers() -> None:
    full = PermitDocument(max=1).with_holder(holder("a"))

    with pytest.raises(PermitFullError, match="1 of 1 permits are taken"):
        full.with_holder(holder("b"))


def test_lowering_max_sends_nobody_away_and_lets_nobody_in_until_there_is_room() -> None:
    crowd = PermitDocument(max=2).with_holder(holder("a")).with_holder(holder("b")).with_max(1)

    assert [one.id for one in crowd.holders] == ["a", "b"]
    with pytest.raises(PermitFullError):
        crowd.without_holder("a").with_holder(holder("c"))
    assert crowd.without_holder("a").without_holder("b").with_holder(holder("c")).free == 0


def test_taking_out_a_node_that_is_not_in_changes_nothing() -> None:
    document = PermitDocument(max=2).with_holder(holder("a"))

    assert document.without_holder("b") is document


@pytest.mark.parametrize("places", [-1, PLACES_MAX + 1])
def test_a_number_of_places_out_of_range_is_refused(places: int) -> None:
    with pytest.raises(PermitMaxError, match=str(places)):
        PermitDocument(max=1).with_max(places)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no permit document"),
        (b"permits!", "no permit document"),
        (b"\xff\xfe", "no permit document"),
        (b"[]", "no permit document"),
        (b"{}", "schema"),
        (b'{"schema":"bascule.permit/2"}', "'bascule.permit/2', expected 'bascule.permit/1'"),
        (b'{"semaphore":1,"max":1,"holders":null}', "schema"),
        (b'{"schema":"bascule.permit/1","x":' + b"[" * 100_000, "no permit document"),
        (b" " * (DOCUMENT_MAX_BYTES + 1), f"{DOCUMENT_MAX_BYTES + 1} bytes"),
    ],
    ids=["empty", "text", "bytes", "list", "object", "schema", "locksmith", "deep", "long"],
)
def test_what_is_no_document_is_refused_naming_the_key(data: bytes, sentence: str) -> None:
    with pytest.raises(PermitDocumentError) as refusal:
        parse_document(data, where=KEY)

    assert KEY in str(refusal.value)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"max": -1},
        {"max": PLACES_MAX + 1},
        {"max": "1"},
        {"max": True},
        {"max": None},
        {"holders": None},
        {"holders": {}},
        {"holders": ["a"]},
        {"holders": [entry(), entry()]},
        {"holders": [entry(id="../x")]},
        {"holders": [entry(id="a\n")]},
        {"holders": [entry(id="")]},
        {"holders": [entry(host="\x1b[2J")]},
        {"holders": [entry(reason="two\nlines")]},
        {"holders": [entry(version=2)]},
        {"holders": [entry(since="2026-11-23T12:00:00")]},
        {"holders": [entry(since="yesterday")]},
        {"holders": [entry(since="0001-01-01T00:00:00+23:59")]},
    ],
    ids=str,
)
def test_a_field_of_a_wrong_kind_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(PermitDocumentError):
        parse({"schema": "bascule.permit/1", "max": 1, "holders": [], **fields})


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_strange_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(PermitDocumentError):
        parse_document(data, where=KEY)


def test_a_time_in_another_zone_is_read_as_the_same_moment() -> None:
    document = parse(
        {
            "schema": "bascule.permit/1",
            "max": 1,
            "holders": [entry(since="2026-11-23T14:00:00+02:00")],
        }
    )

    assert document.holders[0].since == NOON


def test_a_full_group_of_the_largest_size_fits_whatever_the_texts() -> None:
    worst = {"host": '"' * 500, "reason": "\\" * 500, "version": '"' * 500}
    many = tuple(
        make_holder(node_id=f"{number:064d}", since=NOON, **worst) for number in range(PLACES_MAX)
    )

    one = encode_document(PermitDocument(max=1, holders=many[:1]))
    data = encode_document(PermitDocument(max=PLACES_MAX, holders=many))

    assert len(one) <= HOLDER_MAX_BYTES
    assert len(data) <= DOCUMENT_MAX_BYTES
    assert parse_document(data, where=KEY).free == 0


def test_a_document_that_would_be_too_long_is_not_written() -> None:
    stuffed = PermitDocument(max=1, extra=(("later", b'"' + b"x" * DOCUMENT_MAX_BYTES + b'"'),))

    with pytest.raises(PermitDocumentError, match="would have"):
        encode_document(stuffed)


@given(st.text(), st.text(), st.text())
def test_whatever_a_node_calls_itself_it_can_be_read_by_the_others(
    host: str, reason: str, version: str
) -> None:
    made = make_holder(node_id="a", host=host, since=NOON, reason=reason, version=version)

    assert len(made.host.encode()) <= HOST_MAX_BYTES
    assert len(made.reason.encode()) <= REASON_MAX_BYTES
    assert made.version is not None
    assert len(made.version.encode()) <= VERSION_MAX_BYTES
    document = PermitDocument(max=1, holders=(made,))
    assert parse_document(encode_document(document), where=KEY) == document


def test_a_holders_time_is_in_whole_seconds_of_utc() -> None:
    local = datetime(2026, 11, 23, 14, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))

    assert holder("a", at=local).since == NOON


@pytest.mark.parametrize("node_id", ["", "-a", "a/b", "a b", "ä", "a" * 65, "a\n"])
def test_an_id_that_cannot_end_a_key_is_refused(node_id: str) -> None:
    with pytest.raises(PermitSettingsError, match="1 to 64 of letters"):
        holder(node_id)
