"""The smallest blob for some new bytes, and that it is what the node makes of it."""

from __future__ import annotations

import bz2
import lzma
import struct
from pathlib import Path

import bsdiff4
import pytest
from backports import zstd
from bsdiff4 import core

from images import delta_coding
from images.bsdiff import HeldSource, apply_patch
from images.delta_coding import Coded, code, code_compat
from images.dictionary import unpack_with_dictionary
from images.payload import OperationKind
from tests.sim.payloads import image

SIMILAR = image(16)
PROSE = Path(__file__).read_bytes() * 3
# A program whose addresses moved: each entry is 12 bytes, of which 4 differ from the old one.
OLD_TABLE = b"".join(
    struct.pack("<I8s", 0x1000 + 48 * number, image(1, seed=number)[:8]) for number in range(3000)
)
NEW_TABLE = b"".join(
    struct.pack("<I8s", 0x1010 + 48 * number, image(1, seed=number)[:8]) for number in range(3000)
)


def test_bytes_like_the_old_ones_become_a_frame_with_a_dictionary() -> None:
    target = SIMILAR[100:9000] + b"new" + SIMILAR[20_000:]
    coded = code(target, SIMILAR)

    assert coded.kind is OperationKind.SOURCE_ZSTD
    assert len(coded.data) < 100
    assert unpack_with_dictionary(coded.data, SIMILAR, len(target)) == target


def test_a_program_whose_addresses_moved_becomes_a_patch() -> None:
    coded = code(NEW_TABLE, OLD_TABLE)

    output = bytearray(len(NEW_TABLE))
    apply_patch(coded.data, HeldSource(OLD_TABLE), memoryview(output))

    assert coded.kind is OperationKind.SOURCE_BSDIFF
    assert output == NEW_TABLE


def test_without_anything_similar_it_is_packed_alone_or_stored() -> None:
    coded = code(PROSE, b"")

    assert coded.kind is OperationKind.REPLACE_ZSTD
    assert zstd.decompress(coded.data) == PROSE
    assert code(SIMILAR, b"") == Coded(kind=OperationKind.REPLACE, data=SIMILAR)


def test_a_dictionary_that_does_not_help_is_not_named() -> None:
    assert code(image(4, seed=9), SIMILAR).kind is OperationKind.REPLACE


def test_stock_readers_get_xz_bzip2_or_a_patch() -> None:
    assert bsdiff4.patch(OLD_TABLE, code_compat(NEW_TABLE, OLD_TABLE).data) == NEW_TABLE
    plain = code_compat(PROSE, image(1))

    assert plain.kind in {OperationKind.REPLACE_XZ, OperationKind.REPLACE_BZ}
    unpack = lzma.decompress if plain.kind is OperationKind.REPLACE_XZ else bz2.decompress
    assert unpack(plain.data) == PROSE
    assert code_compat(SIMILAR, b"").kind is OperationKind.REPLACE


def test_what_a_coder_made_wrongly_never_leaves_the_builder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = delta_coding._frame
    monkeypatch.setattr(
        delta_coding, "_frame", lambda target, *rest: real(b"!" + target[1:], *rest)
    )
    with pytest.raises(AssertionError, match="zstd does not unpack what it packed"):
        code(SIMILAR[:5000], SIMILAR)

    monkeypatch.undo()
    streams = core.diff
    monkeypatch.setattr(core, "diff", lambda old, new: streams(old, b"!" + new[1:]))
    with pytest.raises(AssertionError, match="bsdiff does not apply the patch it made"):
        code(NEW_TABLE, OLD_TABLE)
    monkeypatch.undo()
    diff = bsdiff4.diff
    monkeypatch.setattr(bsdiff4, "diff", lambda old, new: diff(old, b"!" + new[1:]))
    with pytest.raises(AssertionError, match="bsdiff does not apply the patch it made"):
        code_compat(NEW_TABLE, OLD_TABLE)
