"""zstd's jobs: how its threads pack a large input, one part of it at a time, bit for bit.

`zstd -T0` cuts its input into jobs of four windows, each packed alone but for the last bytes of
the job before it, which it may refer to; what they make, in a row, is the frame. A job is packed
here as that program's thread packs it, by the library's public functions: the bytes behind it are
given first and flushed, which makes them a job of their own, and what it made is dropped. Memory
does not grow with the frame (docs/payload.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

from images.errors import CoderMissingError, OperationOutputError

JOB_SIZE: Final = 16 * 1024 * 1024  # bytes; an input that has less ends the frame
FILE: Final = "libzstd.so.1"
_FIRST_HEADER: Final = 6  # bytes: magic, descriptor and window; what the first job makes first
_CONTINUE, _FLUSH, _END = 0, 1, 2  # ZSTD_EndDirective
_LEVEL, _CHECKSUM, _WORKERS = 100, 201, 400  # ZSTD_cParameter
_ROOM: Final = 256 * 1024  # bytes taken at once
_GIVEN: Final = 1024 * 1024  # bytes given at once

Bytes = bytes | bytearray | memoryview


class _Buffer(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


def packed(
    data: Bytes,
    level: int,
    *,
    behind: int,
    size: int | None,
    spent: Callable[[int], None] | None = None,
) -> bytearray:
    """Return what a job makes of `data` after its first `behind` bytes, without a frame's header.

    Args:
        data: what it sees.
        level: how hard it tries.
        behind: bytes that were packed before.
        size: bytes that it must make; None for any.
        spent: told how many bytes of `data` are not looked at again: zstd has a copy of them.

    Raises:
        CoderMissingError: the library has no threads.
        OperationOutputError: it makes more than `size` bytes.
    """
    job = _Job(level, size)
    try:
        view = memoryview(data)
        if behind:
            job.give(view[:behind], _FLUSH)
            job.made.clear()
        at, last = behind, _END if len(view) - behind < JOB_SIZE else _FLUSH
        while at + _GIVEN < len(view):
            job.give(view[at : at + _GIVEN], _CONTINUE)
            at += _GIVEN
            if spent is not None:
                spent(at)
        job.give(view[at:], last)
    finally:
        job.close()
    if not behind:
        del job.made[:_FIRST_HEADER]
    return job.made


class _Job:
    """A context that packs with one thread beside this one."""

    def __init__(self, level: int, size: int | None) -> None:
        self.made = bytearray()
        self._most = size
        self._library = _library()
        self._context = self._library.ZSTD_createCCtx()
        for name, value in ((_LEVEL, level), (_WORKERS, 1), (_CHECKSUM, 0)):
            result = self._library.ZSTD_CCtx_setParameter(self._context, name, value)
            if self._library.ZSTD_isError(result):
                raise CoderMissingError(f"{FILE} of this system packs with no threads")

    def give(self, data: memoryview, how: int) -> None:
        """Pack `data` and take all that it makes."""
        # What a node packs is writable and not copied; a builder's bytes are.
        held = bytearray(data) if data.readonly else data
        source = (ctypes.c_char * len(data)).from_buffer(held)
        given = _Buffer(ctypes.addressof(source), len(data), 0)
        room = ctypes.create_string_buffer(_ROOM)
        while True:
            taken = _Buffer(ctypes.addressof(room), _ROOM, 0)
            left = self._library.ZSTD_compressStream2(
                self._context, ctypes.byref(taken), ctypes.byref(given), how
            )
            if self._library.ZSTD_isError(left):
                raise OperationOutputError("a job of zstd cannot be packed")
            self.made += memoryview(room)[: taken.pos]
            if self._most is not None and len(self.made) > self._most + _ROOM:
                raise OperationOutputError(f"a job of zstd makes more than {self._most} bytes")
            if given.pos == given.size and (how == _CONTINUE or not left):
                return

    def close(self) -> None:
        """Give up what the context holds."""
        self._library.ZSTD_freeCCtx(self._context)


def unpack_once(blob: Bytes, dictionary: bytearray | mmap, size: int) -> mmap:
    """Return the `size` bytes that a frame makes with a raw dictionary, neither of them copied.

    They are in pages of their own, which the system has back at once when they are dropped.

    Raises:
        OperationOutputError: the frame is damaged, or makes another number of bytes.
    """
    library = _library()
    output = mmap(-1, max(1, size), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    room = (ctypes.c_char * max(1, size)).from_buffer(output)
    prefix = (ctypes.c_char * len(dictionary)).from_buffer(dictionary)
    frame = bytes(blob)
    context = library.ZSTD_createDCtx()
    try:
        result = library.ZSTD_DCtx_refPrefix(context, prefix, len(dictionary))
        if not library.ZSTD_isError(result):
            result = library.ZSTD_decompressDCtx(context, room, size, frame, len(frame))
    finally:
        library.ZSTD_freeDCtx(context)
        del room, prefix
    if library.ZSTD_isError(result) or result != size:
        raise OperationOutputError(f"a blob does not make {size} bytes with its dictionary")
    return output


def give_back() -> None:
    """Give the system what the allocator keeps of freed memory: a job needs most of it again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(FILE)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, result, arguments in (
            ("ZSTD_createCCtx", pointer, []),
            ("ZSTD_freeCCtx", size, [pointer]),
            ("ZSTD_CCtx_setParameter", size, [pointer, ctypes.c_int, ctypes.c_int]),
            ("ZSTD_compressStream2", size, [pointer, pointer, pointer, ctypes.c_int]),
            ("ZSTD_isError", ctypes.c_uint, [size]),
            ("ZSTD_createDCtx", pointer, []),
            ("ZSTD_freeDCtx", size, [pointer]),
            ("ZSTD_DCtx_refPrefix", size, [pointer, pointer, size]),
            ("ZSTD_decompressDCtx", size, [pointer, pointer, size, ctypes.c_char_p, size]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise CoderMissingError(f"this system has no usable {FILE}: {error}") from error
    return library
