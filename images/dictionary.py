"""Unpacks a blob that refers to a raw dictionary: bytes both sides hold. Where they lie is unknown.

The dictionary is a prefix as zstd has it, whatever it begins with: bytes of an image that look
like a trained dictionary are no trained dictionary here.
"""

from __future__ import annotations

import sys
from typing import Final

from images.errors import OperationOutputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DICTIONARY_MAX: Final = 8 * 1024 * 1024  # bytes; more does not help: decision 0012
WINDOW_LOG_MAX: Final = 24  # zstd window of at most 16 MiB: design.md 8.9


def unpack_with_dictionary(
    blob: bytes | memoryview, dictionary: bytes | bytearray | memoryview, limit: int
) -> bytes:
    """Return what one zstd frame makes with a raw dictionary, at most `limit` bytes.

    At most one byte more than `limit` is ever unpacked. The interpreter lock is released.

    Args:
        blob: exactly one frame; its window is at most 16 MiB.
        dictionary: at least 8 bytes, which zstd asks for; it is copied once.
        limit: bytes the output may have.

    Raises:
        OperationOutputError: the frame is damaged, cut off or followed by more, wants a larger
            window, or makes more than `limit` bytes; or the dictionary is too short.
    """
    try:
        decompressor = zstd.ZstdDecompressor(
            zstd_dict=zstd.ZstdDict(dictionary, is_raw=True).as_prefix,
            options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX},
        )
        output = decompressor.decompress(blob, limit + 1)
    except (zstd.ZstdError, ValueError) as error:
        raise OperationOutputError(
            f"a blob cannot be unpacked with its dictionary: {error}"
        ) from error
    if len(output) > limit:
        raise OperationOutputError(
            f"a blob makes with its dictionary more than the {limit} bytes that fit"
        )
    if not decompressor.eof or decompressor.unused_data:
        what = "after" if decompressor.eof else "before"
        raise OperationOutputError(f"a blob with a dictionary ends {what} its frame")
    return output
