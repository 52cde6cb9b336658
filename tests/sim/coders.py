"""The coders of this system's libraries, for tests that pack streams again."""

from __future__ import annotations

import pytest

from images.coders import Function, coder_of
from images.errors import CoderMissingError


def need_coders() -> None:
    """Skip a test where this system has none of the libraries."""
    for function in (Function.LZ4_HC, Function.ZSTD):
        try:
            coder_of(function, 9)
        except CoderMissingError as error:
            pytest.skip(f"{error} (packages liblz4-1, libzstd1)")
