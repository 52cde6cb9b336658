"""Coders that the system has: what packed a stream once packs it again, bit for bit.

A coder's output is its library's own business and changes with its version, so a payload names the
library, its version, the function and the level, and what this coder made of a sample. Who has the
very same is told before anything is fetched. lz4 and zstd are shared libraries found at run time:
no package of Python has them in these versions, and nothing but these operations needs them. zlib
is the one of Python; gzip is a program (`gzip_members`).
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

from typing_extensions import override

from images import gzip_members, zstd_jobs
from images.errors import CoderMissingError, OperationOutputError
from images.frames import pointer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

UNPACKED_MAX: Final = 8 * 1024 * 1024  # bytes of one stream; lz4's legacy frames have such blocks
ZSTD_UNPACKED_MAX: Final = 1024 * 1024  # bytes; squashfs has no larger blocks
JOB_UNPACKED_MAX: Final = 16 * 1024 * 1024  # bytes; four windows, as zstd cuts a large input
BEHIND_MAX: Final = 1024 * 1024  # bytes that a job sees of the one before it: a fourth of a window
FRAME_UNPACKED_MAX: Final = 256 * 1024 * 1024  # bytes of a frame that is unpacked in passing
FRAME_WINDOW_LOG: Final = 22  # 4 MiB: of the frames whose jobs are packed again
FRAME_BYTES: Final = 7 * 1024 * 1024  # that such a frame's reader holds: window, two pieces, tables
# Bytes that a coder holds besides in- and output. Of zstd: four tables at most of four bytes for
# each byte of its window, and 1.7 MiB; measured at every level. lz4's tables and zlib's take
# 256 KiB. A job's tables are those of a window of 4 MiB, 13 MiB at level 9; it copies its input as
# it takes it.
_ZSTD_TABLES: Final = 16  # bytes for each byte of a window
_ZSTD_BYTES: Final = 2 * 1024 * 1024
_SMALL_BYTES: Final = 512 * 1024  # lz4's tables, and zlib's
_GZIP_BYTES: Final = 4 * 1024 * 1024
_JOB_BYTES: Final = 20 * 1024 * 1024
LEVEL_MAX: Final = 22
PIECE_SIZE: Final = 1024 * 1024  # bytes unpacked at once
_PRIVATE: Final = MAP_PRIVATE | MAP_ANONYMOUS
_MAPPED_MIN: Final = 1024 * 1024  # bytes
_SAMPLE_SIZE: Final = 128 * 1024  # bytes
_WORDS: Final = 256
_VERSIONS: Final = {  # by library: the file that the system finds, and who tells its version
    "lz4": ("liblz4.so.1", "LZ4_versionString"),
    "zstd": ("libzstd.so.1", "ZSTD_versionString"),
}


Bytes = bytes | bytearray | memoryview


class Function(enum.Enum):
    """The functions of these libraries that pack; the value is the name in a payload."""

    LZ4_HC = "LZ4_compress_HC"
    LZ4_HC_FILL = "LZ4_compress_HC_destSize"  # fills the room; zeros before it make up the rest
    ZSTD = "ZSTD_compressCCtx"
    ZSTD_JOB = "ZSTD_compressStream2"  # a part of a frame, as one of zstd's threads packs it
    DEFLATE = "deflate"  # a gzip file, by zlib
    GZIP = "gzip"  # the same, by the program

    @property
    def library(self) -> str:
        """Return the library that has it; gzip is a program."""
        return _LIBRARIES[self]


_LIBRARIES: Final = {
    Function.LZ4_HC: "lz4",
    Function.LZ4_HC_FILL: "lz4",
    Function.ZSTD: "zstd",
    Function.ZSTD_JOB: "zstd",
    Function.DEFLATE: "zlib",
    Function.GZIP: "gzip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coder:
    """What packs a stream.

    Attributes:
        function: of which library, and how.
        version: of the library, as it tells it itself.
        level: 1 to `LEVEL_MAX`.
        sample_sha256: of what it makes of `sample()`: builds of one version may differ.
    """

    function: Function
    version: str
    level: int
    sample_sha256: bytes

    @override
    def __str__(self) -> str:
        return (
            f"{self.function.value} of {self.function.library} {self.version}, level {self.level}"
        )


def coder_of(function: Function, level: int) -> Coder:
    """Return the coder that this system has.

    Raises:
        CoderMissingError: the system lacks the library.
    """
    version = _version(function.library)
    if version is None:
        name, _ = _VERSIONS.get(function.library, (function.library, ""))
        raise CoderMissingError(f"this system has no {name}")
    return Coder(
        function=function,
        version=version,
        level=level,
        sample_sha256=_sample_sha256(function, level),
    )


def check_coder(coder: Coder) -> None:
    """Check that this system packs exactly as `coder` did.

    Raises:
        CoderMissingError: the library is missing, has another version, or packs otherwise.
    """
    own = coder_of(coder.function, coder.level)
    if own.version != coder.version:
        raise CoderMissingError(f"the payload wants {coder}, this system has {own.version}")
    if own.sample_sha256 != coder.sample_sha256:
        raise CoderMissingError(f"the payload wants {coder}, which packs otherwise on this system")


def pack(
    function: Function,
    level: int,
    data: Bytes,
    *,
    taken: int,
    size: int,
    behind: int = 0,
    spent: Callable[[int], None] | None = None,
) -> Bytes:
    """Return the `size` bytes that pack `taken` of `data`, those after the first `behind`.

    Args:
        function: what packs.
        level: how hard it tries.
        data: what it sees.
        taken: bytes that must be packed: all of `data`, but for `LZ4_HC_FILL`, which looks ahead.
        size: bytes that it must make.
        behind: bytes that were packed before, which `ZSTD_JOB` refers to.
        spent: told by a `ZSTD_JOB` how many bytes of `data` it does not look at again.

    Raises:
        CoderMissingError: this system lacks the library.
        OperationOutputError: it packs another number of bytes, or into another number.
    """
    made: Bytes
    if function is Function.LZ4_HC_FILL:
        made, used = _lz4_fill(data, size, level)
    elif function is Function.ZSTD_JOB:
        made = zstd_jobs.packed(data, level, behind=behind, size=size, spent=spent)
        used = len(data) - behind
    else:
        made, used = _PACKERS[function](data, level), len(data)
    if used != taken or len(made) != size:
        raise OperationOutputError(
            f"{function.value} packs {used} bytes into {len(made)}, not {taken} into {size}"
        )
    return made


def pack_bytes(function: Function, unpacked: int, packed: int) -> int:
    """Return an upper bound of what `pack` holds besides what it sees, its result included."""
    if function is Function.ZSTD_JOB:  # it has made it twice before it gives up the first
        return _JOB_BYTES + 2 * packed
    if function is Function.ZSTD:
        return _ZSTD_BYTES + (_ZSTD_TABLES << max(0, unpacked - 1).bit_length()) + packed
    if function is Function.GZIP:  # its process, what came out of it in pieces, and all of it
        return _GZIP_BYTES + 2 * packed
    return _SMALL_BYTES + packed


def unpack(function: Function, packed: Bytes, limit: int) -> bytes | bytearray:
    """Return what `packed` unpacks to; no more than `limit` bytes and one are ever made.

    Raises:
        CoderMissingError: this system lacks the library.
        OperationOutputError: it is damaged, or makes more than `limit` bytes.
    """
    if function is Function.ZSTD:
        return _unpack_zstd(packed, limit)
    if function is Function.ZSTD_JOB:
        return unpack_frame(packed, 0, limit)
    if function in {Function.DEFLATE, Function.GZIP}:
        return gzip_members.unpack(packed, limit)
    if function is Function.LZ4_HC_FILL:
        packed = bytes(packed).lstrip(b"\0")
    made = lz4_unpacked(packed, limit)
    if isinstance(made, int):
        raise OperationOutputError(f"an lz4 block cannot be unpacked: it fails at byte {made}")
    return made


class FrameReader:
    """What a zstd frame unpacks to, read forwards a piece at a time; what is skipped is dropped."""

    def __init__(self, pieces: Iterator[Bytes]) -> None:
        """Read a frame whose bytes are these pieces, taken as they are needed."""
        self._pieces = pieces
        self._decompressor = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: FRAME_WINDOW_LOG}
        )
        self._ready = memoryview(b"")
        self._at = 0  # of the first byte that is ready

    def read(self, start: int, used: int) -> bytes:
        """Return `used` bytes from byte `start` on, which stands behind all that was read.

        Raises:
            OperationOutputError: it is damaged, ends too early, or wants a window above 4 MiB.
        """
        made = bytearray(used)
        self.read_into(memoryview(made), start)
        return bytes(made)

    def read_into(self, room: memoryview, start: int) -> None:
        """Fill `room` with what `read` returns.

        Raises:
            OperationOutputError: as `read`.
        """
        made = 0
        while made < len(room):
            if not self._ready:
                self._ready = memoryview(self._unpack())
            skipped = min(max(0, start - self._at), len(self._ready))
            taken = self._ready[skipped : skipped + len(room) - made]
            room[made : made + len(taken)] = taken
            made += len(taken)
            self._at += skipped + len(taken)
            self._ready = self._ready[skipped + len(taken) :]

    def _unpack(self) -> bytes:
        piece = b""
        while not piece:
            given: Bytes = b""
            if self._decompressor.needs_input:
                given = next(self._pieces, b"")
                if not given:
                    raise OperationOutputError("a zstd frame ends too early")
            try:
                piece = self._decompressor.decompress(given, PIECE_SIZE)
            except (zstd.ZstdError, EOFError) as error:
                raise OperationOutputError(f"a zstd frame cannot be unpacked: {error}") from error
        return piece


def unpack_frame(packed: Bytes, start: int, used: int) -> bytes:
    """Return `used` bytes, from byte `start` on, of what a zstd frame unpacks to.

    Raises:
        OperationOutputError: as `FrameReader.read`.
    """
    return FrameReader(pieces_of(packed)).read(start, used)


def pieces_of(packed: Bytes) -> Iterator[memoryview]:
    """Yield bytes in pieces that a `FrameReader` takes, so that it copies none."""
    view = memoryview(packed)
    for at in range(0, len(view), PIECE_SIZE):
        yield view[at : at + PIECE_SIZE]


def lz4_unpacked(packed: Bytes, limit: int) -> bytearray | int:
    """Return what an lz4 block unpacks to, at most `limit` bytes, or the byte where it fails."""
    output = bytearray(max(1, limit))
    source = pointer(packed or b"\0")  # there is always a byte after the last of bytes
    result: int = _library("lz4").LZ4_decompress_safe(source, pointer(output), len(packed), limit)
    if result < 0:
        return -result - 1
    del output[result:]
    return output


def sample() -> bytes:
    """Return bytes that are the same everywhere, with repeats near and far as programs have."""
    noise = hashlib.shake_256(b"bascule coder sample").digest(_SAMPLE_SIZE // 2)
    words = [noise[at : at + 3 + noise[at] % 14] for at in range(0, _WORDS * 16, 16)]
    made = bytearray()
    for at in range(0, len(noise) - 1, 2):
        made += words[noise[at]] if noise[at + 1] & 3 else noise[at : at + 2]
        if len(made) >= _SAMPLE_SIZE:
            break
    return bytes(made[:_SAMPLE_SIZE])


def _unpack_zstd(packed: Bytes, limit: int) -> bytes:
    decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: ZSTD_UNPACKED_MAX.bit_length()}
    )
    try:
        output = decompressor.decompress(packed, limit + 1)
    except zstd.ZstdError as error:
        raise OperationOutputError(f"a zstd frame cannot be unpacked: {error}") from error
    if len(output) > limit or not decompressor.eof or decompressor.unused_data:
        raise OperationOutputError(f"a zstd frame is not one that makes at most {limit} bytes")
    return output


def _lz4(data: Bytes, level: int) -> Bytes:
    source, size = pointer(data or b"\0"), len(data)
    room_size = _bound(size)  # a tight room changes what coders make
    return _made(
        room_size,
        lambda room: _library("lz4").LZ4_compress_HC(source, room, size, room_size, level),
    )


def _lz4_fill(data: Bytes, size: int, level: int) -> tuple[bytes, int]:
    library = _library("lz4")
    state = ctypes.create_string_buffer(library.LZ4_sizeofStateHC())
    source, count = pointer(data or b"\0"), ctypes.c_int(len(data))
    packed = _made(
        size,
        lambda room: library.LZ4_compress_HC_destSize(
            state, source, room, ctypes.byref(count), size, level
        ),
    )
    return b"".join((bytes(size - len(packed)), packed)), count.value


def _zstd(data: Bytes, level: int) -> Bytes:
    library = _library("zstd")
    source, size = pointer(data or b"\0"), len(data)
    if size > ZSTD_UNPACKED_MAX:
        raise OperationOutputError(f"a zstd frame of {size} bytes is more than is packed again")
    room_size = _bound(size)
    context = library.ZSTD_createCCtx()  # one that was used before is no faster: measured
    try:
        return _made(
            room_size,
            lambda room: library.ZSTD_compressCCtx(context, room, room_size, source, size, level),
        )
    finally:
        library.ZSTD_freeCCtx(context)


_PACKERS: Final[dict[Function, Callable[[Bytes, int], Bytes]]] = {  # those that see all at once
    Function.LZ4_HC: _lz4,
    Function.ZSTD: _zstd,
    Function.DEFLATE: gzip_members.pack_by_zlib,
    Function.GZIP: gzip_members.pack_by_program,
}


def _bound(size: int) -> int:
    """Return enough room for bytes that do not shrink, of either library."""
    return size + size // 128 + 64


def _made(size: int, call: Callable[[object], int]) -> Bytes:
    """Return what `call` writes into `size` bytes; nothing where it tells an error.

    Of large ones only the pages that are written are ever there.
    """
    output = bytearray(max(1, size)) if size < _MAPPED_MIN else mmap(-1, size, _PRIVATE)
    result = call(pointer(output))
    return memoryview(output)[:result] if 0 < result <= size else b""


@cache
def _sample_sha256(function: Function, level: int) -> bytes:
    data = sample()
    if function is Function.LZ4_HC_FILL:
        return hashlib.sha256(_lz4_fill(data, len(data) // 4, level)[0]).digest()
    if function is Function.ZSTD_JOB:
        half = len(data) // 2
        return hashlib.sha256(zstd_jobs.packed(data, level, behind=half, size=None)).digest()
    return hashlib.sha256(_PACKERS[function](data, level)).digest()


def _version(library: str) -> str | None:
    """Return the version of a library that this system has, or None."""
    if library == "zlib":
        return gzip_members.zlib_version()
    if library == "gzip":
        return gzip_members.program_version()
    try:
        told: bytes = getattr(_library(library), _VERSIONS[library][1])()
    except CoderMissingError:
        return None
    return told.decode("ascii", "replace")


@cache
def _library(name: str) -> ctypes.CDLL:
    """Return a library; calls into it release the interpreter lock.

    Raises:
        CoderMissingError: the system has none of that name, or one without these functions.
    """
    file, version = _VERSIONS[name]
    try:
        library = ctypes.CDLL(file)
        getattr(library, version).restype = ctypes.c_char_p
        if name == "zstd":
            library.ZSTD_createCCtx.restype = ctypes.c_void_p
            library.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
            library.ZSTD_compressCCtx.restype = ctypes.c_size_t
            library.ZSTD_compressCCtx.argtypes = [
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_int,
            ]
        else:
            for function in (
                "LZ4_compress_HC",
                "LZ4_compress_HC_destSize",
                "LZ4_decompress_safe",
                "LZ4_sizeofStateHC",
            ):
                getattr(library, function).restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        raise CoderMissingError(f"this system has no usable {file}: {error}") from error
    return library
