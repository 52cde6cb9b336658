"""SOURCE_RECODE: bytes that are changed where they are unpacked, and packed again. And lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import bsdiff4
import pytest
from backports import zstd

from images import coders
from images.coders import Coder, Function, coder_of
from images.errors import (
    CoderMissingError,
    ManifestInvalidError,
    OperationOutputError,
    PayloadLimitsError,
    SourceMismatchError,
)
from images.operations import decode, memory_bytes, work_bytes
from images.payload import Extent, Operation, OperationKind, Part, Segment
from images.segment_rules import check_segment_sizes, check_segments
from tests.sim.payloads import image

BLOCK = 4096
MIB = 1024 * 1024
OLD_TEXT = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(9000))[:120_000]
NEW_TEXT = OLD_TEXT.replace(b"7 squared", b"seven squared")[:120_000]


class Held:
    """An old image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


@pytest.fixture(scope="module")
def coder() -> Coder:
    try:
        return coder_of(Function.ZSTD, 15)
    except CoderMissingError as error:
        pytest.skip(f"{error} (package libzstd1)")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


class Case:
    """An old image with a packed text, a new one with another, and the operation between them."""

    def __init__(self, coder: Coder, *, patch: bool = False) -> None:
        self.old = padded(image(1)[:100] + coders._zstd(OLD_TEXT, 15))
        packed = coders._zstd(NEW_TEXT, 15)
        self.new = padded(image(1)[:100] + packed)
        tail = len(self.new) - 100 - len(packed)
        old_packed = coders._zstd(OLD_TEXT, 15)
        self.sources: Sequence[Segment] = (
            Segment(coder=None, packed=100, unpacked=100, used=100),
            Segment(
                coder=coder, offset=100, packed=len(old_packed), unpacked=len(OLD_TEXT),
                used=len(OLD_TEXT),
            ),
        )  # fmt: skip
        self.outputs: Sequence[Segment] = (
            Segment(coder=None, packed=100, unpacked=100, used=100),
            Segment(coder=coder, packed=len(packed), unpacked=len(NEW_TEXT), used=len(packed)),
            Segment(coder=None, packed=tail, unpacked=tail, used=tail),
        )
        self.stream = image(1)[:100] + NEW_TEXT + bytes(tail)
        dictionary = image(1)[:100] + OLD_TEXT
        self.blob: bytes = bsdiff4.diff(dictionary, self.stream)
        if not patch:
            prefix = zstd.ZstdDict(dictionary, is_raw=True).as_prefix
            self.blob = zstd.compress(self.stream, zstd_dict=prefix)

    def operation(self, **changes: object) -> Operation:
        step = Operation(
            kind=OperationKind.SOURCE_RECODE,
            data_offset=0,
            data_length=len(self.blob),
            dst_extents=(Extent(0, len(self.new) // BLOCK),),
            dst_length=len(self.new),
            output_limit=len(self.new),
            data_sha256=hashlib.sha256(self.blob).digest(),
            dst_sha256=hashlib.sha256(self.new).digest(),
            src_extents=(Extent(0, len(self.old) // BLOCK),),
            src_length=len(self.old),
            src_sha256=hashlib.sha256(self.old).digest(),
            source_segments=tuple(self.sources),
            output_segments=tuple(self.outputs),
        )
        return replace(step, **changes)  # type: ignore[arg-type]  # of the fields above

    def made(self, **changes: object) -> bytes:
        made = decode(
            self.operation(**changes), self.blob, block_size=BLOCK, source=Held(self.old),
            verify_output=True,
        )  # fmt: skip
        assert made is not None
        return bytes(made)

    def check(self, **changes: object) -> None:
        operation = self.operation(**changes)
        part = Part(name="usr", size=len(self.new), sha256=bytes(32), operations=(operation,))
        check_segments(part, operation)
        check_segment_sizes(part, operation)


@pytest.mark.parametrize("patch", [False, True])
def test_a_changed_text_costs_little_though_it_is_packed(coder: Coder, patch: bool) -> None:
    case = Case(coder, patch=patch)

    case.check()
    assert case.made() == case.new
    assert len(case.blob) < len(case.new) / 6
    assert memory_bytes(case.operation()) > len(case.blob) + 2 * len(OLD_TEXT)


def test_a_blob_that_is_known_tells_whether_room_for_a_patch_is_needed(coder: Coder) -> None:
    frame, patch = Case(coder), Case(coder, patch=True)

    unknown = work_bytes(frame.operation()) - len(frame.blob)
    assert work_bytes(patch.operation(), patch.blob) - len(patch.blob) == unknown
    assert work_bytes(frame.operation(), frame.blob) - len(frame.blob) < unknown - 6 * MIB


def test_a_segment_may_be_cut_in_pieces_and_seen_bytes_leave_no_trace(coder: Coder) -> None:
    case = Case(coder)
    head, packed, tail = case.outputs
    case.outputs = (
        head,
        replace(packed, used=5000),
        replace(packed, unpacked=0, start=5000, used=packed.used - 5000),
        Segment(coder=None, packed=3, unpacked=3, used=0),
        tail,
    )
    stream = image(1)[:100] + NEW_TEXT + b"abc" + bytes(tail.used)
    prefix = zstd.ZstdDict(image(1)[:100] + OLD_TEXT, is_raw=True).as_prefix
    case.blob = zstd.compress(stream, zstd_dict=prefix)

    case.check()
    assert case.made() == case.new


def test_another_source_is_told_from_a_damaged_blob(coder: Coder) -> None:
    case = Case(coder)
    case.old = b"!" + case.old[1:]

    with pytest.raises(SourceMismatchError, match="SOURCE_RECODE reads bytes of sha256"):
        case.made(src_sha256=bytes(32))


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ({"unpacked": 119_999}, "zstd frame"),
        ({"unpacked": 120_001}, "unpacks to 120000 bytes, not 120001"),
        ({"packed": 500}, "zstd frame"),
    ],
)
def test_a_source_that_unpacks_otherwise_is_refused(
    coder: Coder, lie: dict[str, int], what: str
) -> None:
    case = Case(coder)
    head, packed = case.sources
    case.sources = (head, replace(packed, **lie, used=100))  # type: ignore[arg-type]  # of its fields

    with pytest.raises(OperationOutputError, match=what):
        case.made()


def test_an_output_that_is_packed_otherwise_is_refused(coder: Coder) -> None:
    case = Case(coder)
    head, packed, tail = case.outputs
    case.outputs = (head, replace(packed, packed=packed.packed - 1), tail)

    with pytest.raises(OperationOutputError, match="ZSTD_compressCCtx packs 120000 bytes into"):
        case.made()


def test_a_blob_that_makes_more_or_less_is_refused(coder: Coder) -> None:
    for made in (b"", bytes(200), bytes(10 * MIB)):
        case = Case(coder)
        case.blob = zstd.compress(made)
        with pytest.raises(OperationOutputError):
            case.made()


def test_a_patch_that_reads_outside_is_refused(coder: Coder) -> None:
    case = Case(coder, patch=True)
    case.sources = case.sources[:1]  # what it adds to is not there

    with pytest.raises(OperationOutputError, match="a patch reads"):
        case.made()


@pytest.mark.parametrize(
    ("where", "lie", "what"),
    [
        ("source", {"offset": 10**6}, "takes .* bytes at byte 1000000"),
        ("source", {"start": 1, "used": 120_000}, "uses 120000 bytes at byte 1"),
        ("output", {"start": 1}, "uses .* bytes at byte 1 of a segment"),
        ("output", {"used": 7}, "makes .* bytes, not"),
        ("output", {"ahead": 10**6}, "looks 1000000 bytes ahead of"),
        ("output", {"behind": 101}, "101 behind of 100"),
        ("output", {"unpacked": 0}, "goes on with a segment that is not there"),
        ("output", {"coder": None}, "bytes as they are, and 120000"),
    ],
)
def test_segments_outside_what_they_are_taken_from_are_refused(
    coder: Coder, where: str, lie: dict[str, int | None], what: str
) -> None:
    case = Case(coder)
    changed = [*(case.sources if where == "source" else case.outputs)]
    changed[1] = replace(changed[1], **lie)  # type: ignore[arg-type]  # of its fields

    with pytest.raises(ManifestInvalidError, match=what):
        case.check(**{f"{where}_segments": tuple(changed)})


def test_other_operations_have_no_segments(coder: Coder) -> None:
    with pytest.raises(ManifestInvalidError, match="SOURCE_ZSTD of part usr has segments"):
        Case(coder).check(kind=OperationKind.SOURCE_ZSTD)


def test_what_would_not_fit_in_memory_is_refused(coder: Coder) -> None:
    case = Case(coder)
    (_, source), (head, output, tail) = case.sources, case.outputs
    large = replace(source, unpacked=MIB + 1)
    many = tuple(replace(source, unpacked=MIB, start=9, used=1) for _ in range(513))
    filler = Segment(coder=None, packed=9 * MIB, unpacked=9 * MIB, used=0)

    for sources in ((large,), many):
        with pytest.raises(PayloadLimitsError):
            case.check(source_segments=sources)
    with pytest.raises(PayloadLimitsError, match="a stream, a dictionary and a source"):
        case.check(output_segments=(head, output, filler, tail))
    with pytest.raises(PayloadLimitsError, match="a stream, a dictionary and a source"):
        case.check(src_length=17 * MIB)
    with pytest.raises(PayloadLimitsError):
        case.check(output_segments=(head, replace(output, unpacked=MIB + 1), tail))
