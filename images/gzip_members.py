"""Files that `gzip -9n` packed: unpacked, and packed again into the very bytes.

zlib packs as gzip does, but for one thing: gzip looks after each 4096 symbols whether to begin a
block anew. So small files are packed by zlib, in this process, and larger ones by the program,
which every system has, in one of its own. Both write the same header: no name and no time.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Final

from images.errors import CoderMissingError, OperationOutputError

MAGIC: Final = bytes.fromhex("1f8b0800000000000203")  # deflate, no name, no time, level 9, Unix
SMALL_MAX: Final = 5 * 1024  # bytes, packed: so few have no 4096 symbols, or hardly more
_WBITS: Final = 31  # a window of 32 KiB, gzip's header and trailer
_MEM_LEVEL: Final = 8  # as many hash bits as gzip has
_PATH: Final = "/usr/bin:/bin"
_TIMEOUT: Final = 60  # seconds; the largest input takes two

Bytes = bytes | bytearray | memoryview


def pack_by_zlib(data: Bytes, level: int) -> bytes:
    """Return a member as zlib makes it."""
    packer = zlib.compressobj(min(level, 9), zlib.DEFLATED, _WBITS, _MEM_LEVEL)
    return packer.compress(data) + packer.flush()


def pack_by_program(data: Bytes, level: int) -> bytes:
    """Return a member as the program makes it.

    Raises:
        CoderMissingError: the system has no gzip, or it fails.
    """
    words = [_program(), f"-{min(level, 9)}nc"]
    try:
        done = _run(words, data)
        if done.returncode == -signal.SIGINT:  # it came before the program left our group
            done = _run(words, data)
        done.check_returncode()
    except (OSError, subprocess.SubprocessError) as error:
        raise CoderMissingError(f"gzip of this system packs nothing: {error}") from error
    return done.stdout


def _run(words: Sequence[str], data: Bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # our own words, found where the system keeps programs
        words,
        input=data,
        capture_output=True,
        check=False,
        timeout=_TIMEOUT,
        env={},  # a variable GZIP would be options
        start_new_session=True,  # a Ctrl-C is for us, who stop politely
    )


def unpack(packed: Bytes, limit: int) -> bytes:
    """Return what a member unpacks to, of one that is cut off what there is of it.

    Raises:
        OperationOutputError: it is damaged, makes more than `limit` bytes, or is followed by more.
    """
    unpacker = zlib.decompressobj(_WBITS)
    try:
        made = unpacker.decompress(packed, limit + 1)
    except zlib.error as error:
        raise OperationOutputError(f"a gzip file cannot be unpacked: {error}") from error
    if len(made) > limit or unpacker.unused_data:
        raise OperationOutputError(f"a gzip file is not one that makes at most {limit} bytes")
    return made


def zlib_version() -> str:
    """Return the version of zlib, as it tells it itself."""
    return zlib.ZLIB_RUNTIME_VERSION


@cache
def program_version() -> str | None:
    """Return the version of gzip, as it tells it itself, or None without it."""
    try:
        done = _run([_program(), "--version"], b"")
        done.check_returncode()
    except (OSError, subprocess.SubprocessError, CoderMissingError):
        return None
    words = done.stdout.decode("ascii", "replace").split("\n", 1)[0].split()
    return words[-1] if words and words[0] == "gzip" else None


@cache
def _program() -> str:
    path = shutil.which("gzip", path=_PATH)
    if path is None:
        raise CoderMissingError("this system has no gzip")
    return path
