"""Single functions that an install or a check calls often: pytest-benchmark's table.

make bench-functions
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from images.block_index import HASH_SIZE, short_hashes
from images.build import build
from images.delta import build_delta
from images.operations import decode, writes
from images.payload import Operation, OperationKind
from images.reader import Accept, PayloadFile
from tests.unit.updater.test_payload_choice import HELD, delta, full
from updater.payload_choice import Policy, choose

pytestmark = pytest.mark.bench

BLOCK = 4096
MIB = 1024 * 1024


def text(size: int, seed: int) -> bytes:
    """Return bytes that shrink about as programs do."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(2, 12)) for _ in range(4000)]
    made = b"".join(chance.choices(words, k=size // 6))
    return made[:size].ljust(size, b"\0")


class Image:
    """An old image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def operation_of(payload: Path, kind: OperationKind) -> tuple[Operation, bytes]:
    """Return the largest operation of a kind, and its blob."""
    with PayloadFile.open(payload) as file:
        metadata = file.metadata(None, accept=Accept.APPLICABLE)
        found = [step.operation for step in metadata.manifest.steps()]
        best = max((one for one in found if one.kind is kind), key=lambda one: one.output_limit)
        start = metadata.header.data_offset + (best.data_offset or 0)
    return best, payload.read_bytes()[start : start + best.data_length]


def test_unpacking_an_operation_of_a_full_payload(
    benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    data = text(MIB, 1)
    (tmp_path / "image").write_bytes(data)
    build([("usr", tmp_path / "image")], tmp_path / "p.crau")
    operation, blob = operation_of(tmp_path / "p.crau", OperationKind.REPLACE_ZSTD)
    output = benchmark(decode, operation, blob, block_size=BLOCK)
    assert output == data


def test_making_an_operation_of_a_delta(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    old = text(2 * MIB, 1)
    new = old[100:MIB] + text(100, 2) + old[MIB:]
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(data)
    sources = {"usr": tmp_path / "old"}
    build_delta([("usr", tmp_path / "new")], sources, tmp_path / "p.crau")
    operation, blob = operation_of(tmp_path / "p.crau", OperationKind.SOURCE_ZSTD)
    output = benchmark(decode, operation, blob, block_size=BLOCK, source=Image(old))
    assert output is not None
    for offset, piece in writes(operation, output, block_size=BLOCK):
        assert new[offset : offset + len(piece)] == piece


def test_short_hashes_of_a_mebibyte(benchmark: BenchmarkFixture) -> None:
    data = text(MIB, 1)
    hashes = benchmark(short_hashes, data, block_size=BLOCK, hash_size=HASH_SIZE)
    assert len(hashes) == MIB // BLOCK * HASH_SIZE


def test_choosing_among_64_payloads(benchmark: BenchmarkFixture) -> None:
    payloads = [full(300_000_000), *(delta(10_000_000 + n, source=f"1.0.{n}") for n in range(63))]
    choice = benchmark(choose, payloads, held=HELD, policy=Policy())
    assert choice.best == delta(10_000_000, source="1.0.0")
