"""Reading runs of a region past the page cache, wherever the region begins."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitions.disk import OpenDisk
from partitions.errors import DeviceReadError, DeviceTooSmallError
from partitions.readback import CHUNK_BYTES, GAP_BYTES, RegionReader
from partitions.slots import Region

SIZE = 3 * CHUNK_BYTES + 8192
DATA = random.Random(5).randbytes(SIZE)

places = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(
    lambda two: (min(two), max(two) - min(two))
)


def region(path: Path, offset: int, size: int = SIZE) -> Region:
    return Region(path=path, offset=offset, size=size, partuuid="", label="b")


@pytest.fixture(scope="module", params=[0, 512, 4096, 7 * 512])
def reader(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RegionReader:
    path = tmp_path_factory.mktemp("disk") / "disk"
    path.write_bytes(b"\xee" * request.param + DATA + b"\xee" * 512)
    return RegionReader(region(path, request.param), buffers=2)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(places, max_size=4))
def test_runs_are_hashed_in_their_order(reader: RegionReader, runs: list[tuple[int, int]]) -> None:
    expected = b"".join(DATA[offset : offset + size] for offset, size in runs)
    assert reader.digest_of(runs) == hashlib.sha256(expected).digest()


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 512, 4096, GAP_BYTES, GAP_BYTES + 1]),
            st.sampled_from([0, 1, 4096, 30_000, 700_000, CHUNK_BYTES, CHUNK_BYTES + 5]),
        ),
        max_size=9,
    )
)
def test_runs_that_follow_closely_are_hashed_like_others(
    reader: RegionReader, steps: list[tuple[int, int]]
) -> None:
    runs: list[tuple[int, int]] = []
    at = 0
    for gap, size in steps:
        if at + gap + size <= SIZE:
            runs.append((at + gap, size))
            at += gap + size
    expected = b"".join(DATA[offset : offset + size] for offset, size in runs)
    assert reader.digest_of(runs) == hashlib.sha256(expected).digest()


@pytest.mark.parametrize(
    ("gap", "requests"), [(0, 1), (GAP_BYTES, 1), (GAP_BYTES + 4096, 8), (-8192, 8)]
)
def test_runs_that_follow_closely_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: int, requests: int
) -> None:
    asked: list[int] = []
    read_into = OpenDisk.read_into

    def counted(disk: OpenDisk, buffer: memoryview, offset: int) -> int:
        asked.append(len(buffer))
        return read_into(disk, buffer, offset)

    (tmp_path / "disk").write_bytes(DATA)
    runs = [(100_000 + number * (4096 + gap), 4096) for number in range(8)]
    with RegionReader(region(tmp_path / "disk", 0), buffers=1) as reader:
        monkeypatch.setattr(OpenDisk, "read_into", counted)
        expected = b"".join(DATA[at : at + size] for at, size in runs)
        assert reader.digest_of(runs) == hashlib.sha256(expected).digest()
    assert len(asked) == requests


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    place=places,
    flips=st.sets(st.integers(0, SIZE - 1), max_size=4),
    grain=st.sampled_from([512, 4096, 65536]),
)
def test_what_differs_is_found_to_the_grain(
    reader: RegionReader, place: tuple[int, int], flips: set[int], grain: int
) -> None:
    offset, size = place
    data = bytearray(DATA[offset : offset + size])
    wrong = {flip % size for flip in flips} if size else set()
    for at in wrong:
        data[at] ^= 1
    found = {
        number
        for begin, end in reader.differing(offset, memoryview(data), grain=grain)
        for number in range(begin // grain, -(-end // grain))
    }
    assert found == {at // grain for at in wrong}


def test_several_threads_share_the_buffers(reader: RegionReader) -> None:
    runs = [(at, CHUNK_BYTES) for at in range(0, SIZE - CHUNK_BYTES, 300_000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda run: reader.digest_of([run]), runs * 4))
    expected = [hashlib.sha256(DATA[at : at + size]).digest() for at, size in runs]
    assert found == expected * 4


@pytest.mark.parametrize("at", [None, 0, 4095, CHUNK_BYTES, SIZE - 1])
def test_a_byte_that_is_not_zero_is_found(tmp_path: Path, at: int | None) -> None:
    data = bytearray(SIZE)
    if at is not None:
        data[at] = 1
    (tmp_path / "disk").write_bytes(b"x" * 512 + data)
    with RegionReader(region(tmp_path / "disk", 512), buffers=1) as reader:
        assert reader.is_zero([(0, SIZE)]) == (at is None)
        assert reader.is_zero([(5000, 100), (9000, 100)])
        assert reader.is_zero([(0, 2048), (SIZE - 4096, 4096)]) == (at not in {0, SIZE - 1})


def test_what_the_region_does_not_have_is_refused(reader: RegionReader) -> None:
    with pytest.raises(DeviceTooSmallError):
        reader.digest_of([(SIZE - 1, 2)])
    assert reader.digest_of([(0, 1)]) == hashlib.sha256(DATA[:1]).digest()


def test_a_device_that_ends_before_its_region_is_a_device_that_failed(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(8192))
    with RegionReader(region(tmp_path / "disk", 0), buffers=1) as reader:
        with pytest.raises(DeviceReadError):
            reader.digest_of([(4096, 8192)])
        assert reader.is_zero([(0, 8192)])  # its buffer was given back
