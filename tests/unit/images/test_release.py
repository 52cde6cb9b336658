"""The signed release documents: strict schemas, bounded sizes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from images.errors import DeltaUnsupportedError, DocumentInvalidError
from images.release import (
    ChannelDocument,
    ImageFacts,
    PayloadFacts,
    encode_channel_document,
    encode_image_facts,
    encode_payload_facts,
    facts_of,
    parse_channel_document,
    parse_image_facts,
    parse_payload_facts,
    tuf_channel_path,
    tuf_payload_path,
)
from tests.sim.payloads import forge, image

HEX = "ab" * 32
PRODUCT = "e96281a6-d1af-4bde-9a0a-97b76e56dc57"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)

CHANNEL: dict[str, Any] = {
    "schema": "bascule.channel/1",
    "channel": "stable",
    "product": PRODUCT,
    "board": "amd64-usr",
    "serial": 42,
    "current": "4230.2.1",
    "allowed": {
        "4230.2.1": [
            f"os/{PRODUCT}/amd64-usr/4230.2.1/full.crau",
            f"os/{PRODUCT}/amd64-usr/4230.2.1/delta-from-4230.2.0.crau",
        ],
        "4230.2.0": [f"os/{PRODUCT}/amd64-usr/4230.2.0/full.crau"],
    },
    "rollback_floor": 7,
    "withdrawn": ["4230.1.9"],
    "stops": ["4081.3.0"],
    "not_before": "2026-11-21T06:00:00Z",
    "downgrade": [{"from": "4231.0.0", "to": "4230.2.1", "until": "2026-12-01T00:00:00Z"}],
}
FACTS: dict[str, Any] = {
    "schema": "bascule.payload/1",
    "kind": "full",
    "product": PRODUCT,
    "board": "amd64-usr",
    "version": "4230.2.1",
    "rollback_index": 7,
    "min_engine": "0.3.0",
    "requires_from": "4081.0.0",
    "metadata_size": 81234,
    "metadata_sha256": HEX,
    "signatures_sha256": HEX,
    "block_size": 4096,
    "created": "2026-11-20T10:00:00Z",
    "partitions": [{"name": "usr", "size": 1073741824, "sha256": HEX}],
}

Bend = Callable[[dict[str, Any]], object]


def bent(document: dict[str, Any], bend: Bend) -> bytes:
    changed = copy.deepcopy(document)
    bend(changed)
    return json.dumps(changed).encode()


def test_the_channel_document_of_the_reference_is_read() -> None:
    document = parse_channel_document(json.dumps(CHANNEL).encode())

    assert document.current == "4230.2.1"
    assert document.allowed["4230.2.0"] == (f"os/{PRODUCT}/amd64-usr/4230.2.0/full.crau",)
    assert document.downgrade[0].from_version == "4231.0.0"
    assert document.not_before == datetime(2026, 11, 21, 6, tzinfo=UTC)


def test_a_channel_document_is_written_as_it_was_read() -> None:
    document = parse_channel_document(CHANNEL)

    assert json.loads(encode_channel_document(document)) == CHANNEL
    assert parse_channel_document(encode_channel_document(document)) == document


def test_a_channel_document_may_be_short() -> None:
    required = ("channel", "product", "board", "serial", "current", "allowed")
    document = parse_channel_document({name: CHANNEL[name] for name in required})

    assert (document.rollback_floor, document.withdrawn, document.not_before) == (0, (), None)


def test_the_facts_of_the_reference_are_read_and_written() -> None:
    facts = parse_payload_facts(json.dumps(FACTS).encode())

    assert facts.partitions[0].size == 1073741824
    assert encode_payload_facts(facts) == FACTS


def test_facts_hold_nothing_that_tuf_cannot_sign() -> None:
    facts = encode_payload_facts(parse_payload_facts(FACTS))

    def plain(value: object) -> bool:
        match value:
            case dict():
                return all(isinstance(k, str) and plain(v) for k, v in value.items())
            case list():
                return all(plain(item) for item in value)
            case _:
                return isinstance(value, str | int) and not isinstance(value, float)

    assert plain(facts)


def test_a_delta_names_its_source() -> None:
    source = {"version": "4230.2.0", "partitions": [{"name": "usr", "size": 4096, "sha256": HEX}]}

    facts = parse_payload_facts(bent(FACTS, lambda d: d.update(kind="delta", source=source)))

    assert facts.source is not None
    assert facts.source.partitions[0].name == "usr"


BAD_FACTS: dict[str, Bend] = {
    "a delta without a source": lambda d: d.update(kind="delta"),
    "a full payload with a source": lambda d: d.update(
        source={"version": "1", "partitions": [{"name": "usr", "size": 4096, "sha256": HEX}]}
    ),
    "another kind": lambda d: d.update(kind="half"),
    "an unknown field": lambda d: d.update(extra=1),
    "an unknown field of a part": lambda d: d["partitions"][0].update(extra=1),
    "another schema": lambda d: d.update(schema="bascule.payload/2"),
    "no version": lambda d: d.pop("version"),
    "a version that is none": lambda d: d.update(version="v1"),
    "a version with a line end": lambda d: d.update(version="1\n"),
    "a long version": lambda d: d.update(version="1" * 65),
    "a product with a slash": lambda d: d.update(product="a/b"),
    "a product that goes up": lambda d: d.update(product=".."),
    "an empty board": lambda d: d.update(board=""),
    "a long board": lambda d: d.update(board="a" * 65),
    "no part": lambda d: d.update(partitions=[]),
    "a part twice": lambda d: d["partitions"].append(d["partitions"][0]),
    "a part of 0 bytes": lambda d: d["partitions"][0].update(size=0),
    "a part of 2^53 bytes": lambda d: d["partitions"][0].update(size=2**53),
    "an upper-case hash": lambda d: d.update(metadata_sha256="AB" * 32),
    "a short hash": lambda d: d.update(metadata_sha256="ab"),
    "a negative index": lambda d: d.update(rollback_index=-1),
    "an index in text": lambda d: d.update(rollback_index="7"),
    "a float": lambda d: d.update(rollback_index=7.5),
    "a time without zone": lambda d: d.update(created="2026-11-20T10:00:00"),
    "a time that is none": lambda d: d.update(created="yesterday"),
}


@pytest.mark.parametrize("bend", BAD_FACTS.values(), ids=BAD_FACTS.keys())
def test_facts_against_the_schema_are_refused(bend: Bend) -> None:
    with pytest.raises(DocumentInvalidError, match="payload facts is not valid"):
        parse_payload_facts(bent(FACTS, bend))


BAD_CHANNEL: dict[str, Bend] = {
    "an unknown field": lambda d: d.update(extra=1),
    "an unknown field of a grant": lambda d: d["downgrade"][0].update(extra=1),
    "another schema": lambda d: d.update(schema="bascule.payload/1"),
    "a current version that is not allowed": lambda d: d.update(current="1"),
    "nothing allowed": lambda d: d.update(allowed={}),
    "a version without paths": lambda d: d["allowed"].update({"4230.2.0": []}),
    "a path of another version": lambda d: d["allowed"].update(
        {"4230.2.0": d["allowed"]["4230.2.1"]}
    ),
    "a path of another product": lambda d: d.update(product="other"),
    "a path of another board": lambda d: d.update(board="other"),
    "a path that goes up": lambda d: d["allowed"].update({"4230.2.0": ["os/../../full.crau"]}),
    "a path of another shape": lambda d: d["allowed"].update({"4230.2.0": ["full.crau"]}),
    "serial 0": lambda d: d.update(serial=0),
    "a serial of 2^53": lambda d: d.update(serial=2**53),
    "true for a serial": lambda d: d.update(serial=True),
    "a floor below 0": lambda d: d.update(rollback_floor=-1),
    "a stop that is no version": lambda d: d.update(stops=["x"]),
    "a grant without an end": lambda d: d["downgrade"][0].pop("until"),
}


@pytest.mark.parametrize("bend", BAD_CHANNEL.values(), ids=BAD_CHANNEL.keys())
def test_a_channel_document_against_the_schema_is_refused(bend: Bend) -> None:
    with pytest.raises(DocumentInvalidError, match="channel document is not valid"):
        parse_channel_document(bent(CHANNEL, bend))


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 60000, b'{"a":1}x']
)
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    for parse in (parse_channel_document, parse_payload_facts):
        with pytest.raises(DocumentInvalidError):
            parse(data)


def test_a_document_above_64_kib_is_refused_unread() -> None:
    data = json.dumps(CHANNEL).encode()
    padded = data + b" " * (65536 - len(data))

    assert parse_channel_document(padded).serial == 42
    with pytest.raises(DocumentInvalidError, match="has 65537 bytes, at most 65536"):
        parse_channel_document(padded + b" ")


def test_a_document_that_nodes_would_refuse_is_not_written() -> None:
    document = parse_channel_document(CHANNEL)
    folder = f"os/{PRODUCT}/amd64-usr"
    allowed: dict[str, tuple[str, ...]] = {
        f"1.{n}": (f"{folder}/1.{n}/full.crau",) for n in range(1000)
    }
    large = ChannelDocument(
        channel="stable",
        product=document.product,
        board=document.board,
        serial=1,
        current="1.1",
        allowed=allowed,
    )

    with pytest.raises(DocumentInvalidError, match="at most 65536 are allowed"):
        encode_channel_document(large)


def test_image_facts_are_written_and_read() -> None:
    facts = ImageFacts(product=PRODUCT, board="b", version="1.0+x", rollback_index=3, built=NOW)

    assert parse_image_facts(encode_image_facts(facts)) == facts
    assert b"built = 2026-11-20T10:00:00Z\n" in encode_image_facts(facts)


@pytest.mark.parametrize(
    "data",
    [
        b"product = 1",
        b"product = ",
        b"\xff",
        b'product = "p"\nboard = "b"\nversion = "1"\nrollback_index = 0\nbuilt = 2026-11-20',
        b"# " + b"x" * 17000,
    ],
)
def test_bytes_that_are_no_image_facts_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentInvalidError, match=r"image\.toml"):
        parse_image_facts(data)


def test_tuf_paths_are_those_of_the_reference() -> None:
    assert tuf_payload_path("p", "b", "1.0", "full") == "os/p/b/1.0/full.crau"
    assert tuf_payload_path("p", "b", "1.0", "delta-from-0.9") == "os/p/b/1.0/delta-from-0.9.crau"
    assert tuf_channel_path("stable", "p", "b") == "channels/stable/p/b.json"


def facts(path: Path, changes: dict[str, Any] | None = None) -> PayloadFacts:
    arguments: dict[str, Any] = {
        "product": "p",
        "board": "b",
        "version": "1.0",
        "rollback_index": 0,
        "min_engine": "0.1.0",
        "created": NOW,
    }
    return facts_of(path, **(arguments | (changes or {})))


def test_facts_of_an_unsigned_payload_name_the_hash_of_no_signatures(tmp_path: Path) -> None:
    payload = forge(image(2))
    payload.keys = ()
    (tmp_path / "payload").write_bytes(payload.bytes())

    made = facts(tmp_path / "payload")

    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert made.signatures_sha256 == empty


def test_facts_of_a_delta_are_not_made(tmp_path: Path) -> None:
    payload = forge(image(2))
    payload.manifest.partial_update = True
    (tmp_path / "payload").write_bytes(payload.bytes())

    with pytest.raises(DeltaUnsupportedError):
        facts(tmp_path / "payload")


@pytest.mark.parametrize("change", [{"version": "x"}, {"product": "a b"}, {"rollback_index": -1}])
def test_facts_with_an_odd_name_are_not_made(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "payload").write_bytes(forge(image(2)).bytes())

    with pytest.raises(DocumentInvalidError):
        facts(tmp_path / "payload", change)
