"""Chunks packed by a dictionary that others share, as the node unpacks them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from images.dictionary import unpack_with_dictionary
from images.packing import Compression, Dictionary, pack
from images.payload import OperationKind

SIZE = 64 * 1024
TRAINED = bytes.fromhex("37a430ec")  # RFC 8878, 5: how a trained dictionary begins


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("begin", [b"", TRAINED], ids=["any", "like a trained one"])
@pytest.mark.parametrize("level", [3, 12, 19])
def test_what_is_in_the_dictionary_costs_little(begin: bytes, level: int) -> None:
    content = (begin + noise(1))[:SIZE]
    chunk = content[SIZE // 2 :] + content[: SIZE // 2]
    blob = pack(chunk, [Compression.ZSTD], Dictionary(content), level=level)
    assert blob.kind is OperationKind.TARGET_ZSTD
    assert len(blob.data) < 100
    assert unpack_with_dictionary(blob.data, content, SIZE) == chunk


def test_a_dictionary_serves_threads_at_once() -> None:
    content = noise(1, 8 * SIZE)
    dictionary = Dictionary(content)
    chunks = [content[n * SIZE : (n + 1) * SIZE] + noise(n + 2, 512) for n in range(8)]

    def packed(chunk: bytes) -> bytes:
        return pack(chunk, [Compression.ZSTD], dictionary, level=19).data

    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(packed, chunks))
    assert blobs == [packed(chunk) for chunk in chunks]
    assert all(
        unpack_with_dictionary(blob, content, SIZE + 512) == chunk
        for blob, chunk in zip(blobs, chunks, strict=True)
    )


def test_what_does_not_shrink_is_stored() -> None:
    blob = pack(noise(1), [Compression.ZSTD], Dictionary(noise(2)), level=19)
    assert (blob.kind, blob.data) == (OperationKind.REPLACE, noise(1))
