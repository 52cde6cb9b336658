"""What plain Python can do: HTTP, zstd, SHA-256 and O_DIRECT, a thread for each.

    python -m tests.bench.threads_peer URL TARGET SHA256

It trusts what it fetches until the end, checks no signature, keeps no journal, reads nothing back.
"""

from __future__ import annotations

import hashlib
import http.client
import mmap
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future
from queue import Queue
from typing import Final, cast

from backports import zstd

PIECE_BYTES: Final = 1024 * 1024  # whole pieces are whole blocks, as O_DIRECT wants
FETCH_BYTES: Final = 256 * 1024
BUFFERS: Final = 8

Piece = tuple[mmap.mmap, int, "Future[None]"]


def fetch(url: str, to: Queue[bytes | None]) -> None:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(cast("str", parts.hostname), parts.port)
    connection.request("GET", parts.path)
    answer = connection.getresponse()
    while data := answer.read(FETCH_BYTES):
        to.put(data)
    to.put(None)


def hash_pieces(pieces: Queue[Piece | None], sha256: hashlib._Hash) -> None:
    while (piece := pieces.get()) is not None:
        buffer, size, hashed = piece
        with memoryview(buffer) as view:
            sha256.update(view[:size])
        hashed.set_result(None)


def write_pieces(pieces: Queue[Piece | None], descriptor: int, free: Queue[mmap.mmap]) -> None:
    offset = 0
    while (piece := pieces.get()) is not None:
        buffer, size, hashed = piece
        with memoryview(buffer) as view:
            written = os.pwrite(descriptor, view[:size], offset)
        if written != size:
            raise OSError(f"{written} bytes of {size} were written")
        offset += size
        hashed.result()
        free.put(buffer)


def main(url: str, target: str, expected: str) -> None:
    fetched: Queue[bytes | None] = Queue(BUFFERS)
    to_hash: Queue[Piece | None] = Queue(BUFFERS)
    to_write: Queue[Piece | None] = Queue(BUFFERS)
    free: Queue[mmap.mmap] = Queue()
    for _ in range(BUFFERS):
        free.put(mmap.mmap(-1, PIECE_BYTES))
    sha256 = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_DIRECT)
    threads = [
        threading.Thread(target=fetch, args=(url, fetched)),
        threading.Thread(target=hash_pieces, args=(to_hash, sha256)),
        threading.Thread(target=write_pieces, args=(to_write, descriptor, free)),
    ]
    for thread in threads:
        thread.start()
    for buffer, size in unpacked(fetched, free):
        piece: Piece = (buffer, size, Future())
        to_hash.put(piece)
        to_write.put(piece)
    to_hash.put(None)
    to_write.put(None)
    for thread in threads:
        thread.join()
    os.fsync(descriptor)
    os.close(descriptor)
    if sha256.hexdigest() != expected:
        sys.exit(f"the image has sha256 {sha256.hexdigest()}, expected is {expected}")


def unpacked(
    fetched: Queue[bytes | None], free: Queue[mmap.mmap]
) -> Iterator[tuple[mmap.mmap, int]]:
    """Yield the image of one zstd frame in whole pieces, the last one apart."""
    unpacker = zstd.ZstdDecompressor()
    buffer, filled = free.get(), 0
    while (data := fetched.get()) is not None:
        more = True
        while more:
            made = unpacker.decompress(data, PIECE_BYTES - filled)
            data = b""
            buffer[filled : filled + len(made)] = made
            filled += len(made)
            if filled == PIECE_BYTES:
                yield buffer, filled
                buffer, filled = free.get(), 0
            more = not (unpacker.needs_input or unpacker.eof)
    if filled:
        yield buffer, filled


if __name__ == "__main__":
    main(*sys.argv[1:4])
