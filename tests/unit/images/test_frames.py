"""A zstd frame unpacked in place: as the library's class does it, and nothing beyond the room."""

from __future__ import annotations

import random

import pytest
from backports import zstd

from images import frames
from images.errors import OperationOutputError
from images.frames import unpack_frame

MIB = 1024 * 1024
BEFORE = random.Random(3).randbytes(64 * 1024)
DATA = BEFORE[1000:9000] + b"easily packed " * 5000 + BEFORE[20_000:30_000]


def packed(data: bytes, dictionary: bytes = b"") -> bytes:
    if not dictionary:
        return zstd.compress(data, 3)
    one = zstd.ZstdCompressor(level=3, zstd_dict=zstd.ZstdDict(dictionary, is_raw=True).as_prefix)
    return one.compress(data) + one.flush()


@pytest.fixture(params=["in place", "by class"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by class":
        monkeypatch.setattr(frames, "_library", lambda: None)
    elif frames._library() is None:
        pytest.skip("this build of zstd hides its functions")


@pytest.mark.parametrize("dictionary", [b"", BEFORE, bytearray(BEFORE), memoryview(BEFORE)])
@pytest.mark.parametrize("spare", [0, 1, 5000])
def test_a_frame_fills_the_beginning_of_the_room(
    dictionary: bytes | bytearray | memoryview, spare: int
) -> None:
    room = bytearray(b"\xee" * (len(DATA) + spare))
    made = unpack_frame(packed(DATA, bytes(dictionary)), memoryview(room), dictionary)
    assert made == len(DATA)
    assert room[:made] == DATA
    assert room[made:].strip(b"\xee") == b""


@pytest.mark.parametrize("blob", [bytes, bytearray, memoryview])
def test_a_blob_may_be_any_bytes(blob: type[bytes]) -> None:
    room = bytearray(len(DATA))
    assert unpack_frame(blob(packed(DATA)), memoryview(room)) == len(DATA)
    assert room == DATA


def test_an_empty_frame_makes_nothing() -> None:
    assert unpack_frame(packed(b""), memoryview(bytearray(10))) == 0
    assert unpack_frame(packed(b""), memoryview(bytearray())) == 0


@pytest.mark.parametrize("missing", [1, 100, len(DATA) - 1, len(DATA)])
def test_not_a_byte_is_written_past_the_room(missing: int) -> None:
    room = bytearray(b"\xee" * (len(DATA) + 100))
    view = memoryview(room)[: len(DATA) - missing]
    with pytest.raises(OperationOutputError, match=f"more than the {len(view)} bytes that fit"):
        unpack_frame(packed(DATA), view)
    assert room[len(view) :].strip(b"\xee") == b""


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (packed(DATA) + b"\0", "ends after its stream"),
        (packed(DATA) + packed(DATA), "ends after its stream"),
        (packed(DATA)[:-1], ""),
        (packed(DATA)[:40], ""),
        (b"", ""),
        (b"\x28\xb5\x2f\xfd", ""),
        (b"no frame at all", ""),
        ((0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"skip", ""),
    ],
)
def test_what_is_not_one_frame_alone_is_refused(blob: bytes, words: str) -> None:
    room = memoryview(bytearray(MIB))
    try:
        made = unpack_frame(blob, room)
    except OperationOutputError as error:
        assert words in str(error)  # noqa: PT017  # the class takes a skippable frame for an empty one
    else:
        assert made == 0


@pytest.mark.parametrize("log", [25, 27])
def test_a_window_above_16_mib_is_refused(log: int) -> None:
    parameters = zstd.CompressionParameter
    one = zstd.ZstdCompressor(options={parameters.window_log: log, parameters.content_size_flag: 0})
    blob = one.compress(DATA) + one.flush()
    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_frame(blob, memoryview(bytearray(MIB)))


def test_another_dictionary_makes_no_other_bytes_unnoticed() -> None:
    """Or makes bytes that the hash of the output refuses: never more than the room."""
    room = bytearray(b"\xee" * len(DATA))
    try:
        unpack_frame(packed(DATA, BEFORE), memoryview(room), BEFORE[::-1])
    except OperationOutputError:
        return
    assert room != DATA


def test_a_dictionary_of_less_than_8_bytes_is_refused() -> None:
    with pytest.raises(OperationOutputError):
        unpack_frame(packed(DATA), memoryview(bytearray(len(DATA))), b"1234567")


def test_a_dictionary_counts_for_one_frame() -> None:
    room = bytearray(len(DATA))
    unpack_frame(packed(DATA, BEFORE), memoryview(room), BEFORE)
    other = bytes(range(256)) * 100
    assert unpack_frame(packed(other), memoryview(room)) == len(other)
    assert room[: len(other)] == other


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_frame_never_leaves_the_room(seed: int) -> None:
    chance = random.Random(seed)
    blob = bytearray(packed(DATA, BEFORE))
    for _ in range(chance.randrange(1, 4)):
        blob[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
    room = bytearray(b"\xee" * (len(DATA) + 4096))
    view = memoryview(room)[: len(DATA)]
    try:
        made = unpack_frame(bytes(blob), view, BEFORE)
    except OperationOutputError:
        made = 0
    assert made <= len(DATA)
    assert room[len(DATA) :].strip(b"\xee") == b""
