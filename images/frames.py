"""One zstd frame into memory that the caller has, with no copy of output or dictionary.

The library's class copies the dictionary, makes the output in pieces that grow, and joins them:
for an operation of 1 MiB with a dictionary of 4 MiB some ten copies of its size, most of them with
the interpreter lock held. Here the functions of that very library are called where they are. A
build that hides them is served by the class.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache
from mmap import mmap
from typing import Any, Final

from images.dictionary import WINDOW_LOG_MAX, unpack_with_dictionary
from images.errors import OperationOutputError

if sys.version_info >= (3, 14):
    import _zstd as binding
    from compression import zstd
else:
    from backports import zstd
    from backports.zstd import _zstd as binding

_MAGIC: Final = (0xFD2FB528).to_bytes(4, "little")  # RFC 8878, 3.1.1
_TOO_MUCH: Final = "Destination buffer is too small"  # error_private.c: dstSize_tooSmall
_SINGLE_SEGMENT: Final = 0x20  # of the frame header's first byte: the window is the content
DICTIONARY_MIN: Final = 8  # bytes; zstd takes no shorter one

Buffer = bytes | bytearray | memoryview


def unpack_frame(blob: Buffer, room: memoryview, dictionary: Buffer = b"") -> int:
    """Fill `room` with what one zstd frame makes; return how many bytes that is.

    No byte is written past `room`, and no memory is taken for a window. The interpreter lock is
    released.

    Args:
        blob: exactly one frame; its window is at most 16 MiB.
        room: writable, of bytes.
        dictionary: raw, empty for none; not copied.

    Raises:
        OperationOutputError: the frame is damaged, cut off or followed by more, wants a larger
            window, or makes more than fits; or the dictionary is too short.
    """
    library = _library()
    if library is None:
        return _by_class(blob, room, dictionary)
    _check_frame(library, blob)
    if dictionary and len(dictionary) < DICTIONARY_MIN:
        raise OperationOutputError(f"a dictionary has {len(dictionary)} bytes")
    context = _context()
    prefix = pointer(dictionary) if dictionary else None  # lives until all is unpacked
    if prefix is not None:
        library.ZSTD_DCtx_refPrefix(context, prefix, len(dictionary))
    target = pointer(room) if room else None
    made: int = library.ZSTD_decompressDCtx(context, target, len(room), pointer(blob), len(blob))
    if library.ZSTD_isError(made) and _name(library, made) == _TOO_MUCH:
        raise OperationOutputError(f"a zstd frame makes more than the {len(room)} bytes that fit")
    _raise_error(library, made, "unpacked")
    return made


def _check_frame(library: ctypes.CDLL, blob: Buffer) -> None:
    """Refuse what is not one frame alone, or wants a larger window than streams may."""
    if bytes(blob[:4]) != _MAGIC or len(blob) < 6:
        raise OperationOutputError("a blob does not begin with a zstd frame")
    descriptor, window = blob[4], blob[5]
    if not descriptor & _SINGLE_SEGMENT:
        base = 1 << (10 + (window >> 3))  # RFC 8878, 3.1.1.1.2
        if base + (base >> 3) * (window & 7) > 1 << WINDOW_LOG_MAX:
            raise OperationOutputError("a blob cannot be unpacked: its window is over 16 MiB")
    size: int = library.ZSTD_findFrameCompressedSize(pointer(blob), len(blob))
    _raise_error(library, size, "read to its end")
    if size != len(blob):
        raise OperationOutputError(
            f"a blob of {len(blob)} bytes ends after its stream, which has {size}"
        )


def _raise_error(library: ctypes.CDLL, code: int, what: str) -> None:
    if library.ZSTD_isError(code):
        raise OperationOutputError(f"a zstd frame cannot be {what}: {_name(library, code)}")


def _name(library: ctypes.CDLL, code: int) -> str:
    name: bytes = library.ZSTD_getErrorName(code)
    return name.decode()


def _by_class(blob: Buffer, room: memoryview, dictionary: Buffer) -> int:
    if dictionary:
        output = unpack_with_dictionary(bytes(blob), dictionary, len(room))
    else:
        decompressor = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
        )
        try:
            output = decompressor.decompress(blob, len(room) + 1)
        except zstd.ZstdError as error:
            raise OperationOutputError(f"a zstd frame cannot be unpacked: {error}") from error
        if len(output) > len(room):
            raise OperationOutputError(
                f"a zstd frame makes more than the {len(room)} bytes that fit"
            )
        if not decompressor.eof or decompressor.unused_data:
            what = "after" if decompressor.eof else "before"
            raise OperationOutputError(f"a blob ends {what} its stream")
    room[: len(output)] = output
    return len(output)


def pointer(data: Buffer | mmap) -> object:
    """Return what ctypes takes for the address of bytes, of which there are some; no copy is made.

    A view of bytes that cannot change is: no operation of ours comes as one.
    """
    if isinstance(data, memoryview) and data.readonly:
        data = bytes(data)
    if isinstance(data, bytes):
        return data
    return ctypes.byref(ctypes.c_char.from_buffer(data))


class _Context:
    """What zstd needs to unpack, one a thread: 100 KiB that are used again."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._free = library.ZSTD_freeDCtx
        self.handle: int = library.ZSTD_createDCtx()
        if not self.handle:
            raise MemoryError("zstd has no memory for a context")

    def __del__(self) -> None:
        self._free(self.handle)


_contexts = threading.local()


def _context() -> int:
    library = _library()
    if library is None:  # a broken invariant: the caller looked
        raise AssertionError("a context of a library that is not there")
    found: _Context | None = getattr(_contexts, "one", None)
    if found is None:
        found = _contexts.one = _Context(library)
    return found.handle


@cache
def _library() -> ctypes.CDLL | None:
    """Return the zstd that the library's own class uses, or None where its functions are hidden."""
    try:
        library = ctypes.CDLL(getattr(binding, "__file__", None))
        if library.ZSTD_versionNumber() != _number(zstd.zstd_version_info):
            return None
        for name, result, arguments in _FUNCTIONS:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


def _number(version: tuple[int, int, int]) -> int:
    return version[0] * 10_000 + version[1] * 100 + version[2]


_FUNCTIONS: Final[tuple[tuple[str, Any, list[Any]], ...]] = (  # zstd.h, all of its stable part
    ("ZSTD_createDCtx", ctypes.c_void_p, []),
    ("ZSTD_freeDCtx", ctypes.c_size_t, [ctypes.c_void_p]),
    ("ZSTD_isError", ctypes.c_uint, [ctypes.c_size_t]),
    ("ZSTD_getErrorName", ctypes.c_char_p, [ctypes.c_size_t]),
    ("ZSTD_findFrameCompressedSize", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]),
    (
        "ZSTD_DCtx_refPrefix",
        ctypes.c_size_t,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t],
    ),
    (
        "ZSTD_decompressDCtx",
        ctypes.c_size_t,
        [ctypes.c_void_p, *[ctypes.c_void_p, ctypes.c_size_t] * 2],
    ),
)
