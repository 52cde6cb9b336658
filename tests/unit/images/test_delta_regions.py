"""Pieces of an old image that look like new bytes."""

from __future__ import annotations

from collections.abc import Iterator

from images.delta_blocks import BLOCK_SIZE
from images.delta_regions import PIECE_SIZE, Chunk, SourceIndex
from images.payload import Extent
from tests.sim.payloads import image

BLOCKS = PIECE_SIZE // BLOCK_SIZE
OLD = image(16 * BLOCKS, seed=1)


def chunks(data: bytes, size: int = 4 * PIECE_SIZE) -> Iterator[Chunk]:
    return (Chunk(at, data[at : at + size]) for at in range(0, len(data), size))


def index(data: bytes = OLD, workers: int = 1) -> SourceIndex:
    return SourceIndex.of(chunks(data), size=len(data), workers=workers)


def piece(number: int, data: bytes = OLD) -> bytes:
    return data[number * PIECE_SIZE : (number + 1) * PIECE_SIZE]


def far_away(blocks: int) -> list[Extent]:
    return [Extent(10**6, blocks)]


def test_moved_and_shifted_content_names_the_pieces_it_came_from() -> None:
    target = b"xyz" + piece(9) + piece(3)[:20_000] + bytes(1000)

    found = index().ranked(target, far_away(15))

    assert set(found.best(2 * PIECE_SIZE, pieces_max=9, image_size=len(OLD))) == {
        Extent(3 * BLOCKS, BLOCKS),
        Extent(9 * BLOCKS, BLOCKS),
    }


def test_the_closest_come_first_and_the_extents_are_in_order_and_joined() -> None:
    target = piece(4) + piece(3) + piece(9)[:9000]
    ranked = index().ranked(target, far_away(19))

    assert ranked.best(2 * PIECE_SIZE, pieces_max=9, image_size=len(OLD)) == (
        Extent(3 * BLOCKS, 2 * BLOCKS),
    )
    more = ranked.best(10 * PIECE_SIZE, pieces_max=9, image_size=len(OLD))
    assert any(it.start_block <= 9 * BLOCKS < it.start_block + it.num_blocks for it in more)
    assert len(ranked.best(10 * PIECE_SIZE, pieces_max=1, image_size=len(OLD))) == 1


def test_a_block_has_a_vote_for_its_own_place() -> None:
    target = image(1, seed=99)

    assert index().ranked(target, [Extent(5 * BLOCKS + 2, 1)]).best(
        8 * PIECE_SIZE, pieces_max=9, image_size=len(OLD)
    ) == (Extent(5 * BLOCKS, BLOCKS),)


def test_pieces_behind_the_image_are_no_blocks_of_it() -> None:
    ranked = index().ranked(piece(9) + piece(3), far_away(16))

    found = ranked.best(8 * PIECE_SIZE, pieces_max=9, image_size=8 * PIECE_SIZE)
    assert 9 in ranked.pieces.tolist()
    assert any(it.start_block <= 3 * BLOCKS < it.start_block + it.num_blocks for it in found)
    assert all(it.start_block + it.num_blocks <= 8 * BLOCKS for it in found)


def test_noise_resembles_nothing() -> None:
    target = image(64, seed=99)

    assert (
        index().ranked(target, far_away(64)).best(8 * PIECE_SIZE, pieces_max=9, image_size=len(OLD))
        == ()
    )


def test_content_that_is_everywhere_says_nothing() -> None:
    everywhere = piece(0) * 16

    assert (
        index(everywhere)
        .ranked(piece(0), far_away(8))
        .best(PIECE_SIZE, pieces_max=9, image_size=len(OLD))
        == ()
    )


def test_the_last_piece_may_be_short() -> None:
    old = OLD[: -3 * BLOCK_SIZE]

    assert index(old).ranked(piece(15, old), far_away(5)).best(
        PIECE_SIZE, pieces_max=9, image_size=len(old)
    ) == (Extent(15 * BLOCKS, BLOCKS - 3),)


def test_an_image_without_anchors_is_no_trouble() -> None:
    zeros = bytes(BLOCK_SIZE)

    assert (
        index(zeros).ranked(zeros, far_away(1)).best(PIECE_SIZE, pieces_max=9, image_size=len(OLD))
        == ()
    )


def test_the_number_of_threads_changes_nothing() -> None:
    target = piece(2)[100:] + piece(11)
    one, four = (index(workers=count).ranked(target, far_away(16)) for count in (1, 4))

    assert one.best(8 * PIECE_SIZE, pieces_max=9, image_size=len(OLD)) == four.best(
        8 * PIECE_SIZE, pieces_max=9, image_size=len(OLD)
    )
