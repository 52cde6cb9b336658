"""What the benchmarks work out themselves: bounds, blocks that differ, artefacts."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest

from tests.bench.__main__ import output_of, rows_of
from tests.bench.artefacts import Artefacts
from tests.bench.block_bound import BLOCK, block_bound
from tests.bench.full_installs import differing_bytes
from tests.bench.measure import GNU_TIME, CommandFailedError
from tests.bench.rounds import engine_says
from tests.bench.works import WORKS

needs_time = pytest.mark.skipif(
    not Path(GNU_TIME).exists(), reason=f"{GNU_TIME} is not installed (package time)"
)


def noise(blocks: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


def pair(folder: Path, old: bytes, new: bytes) -> tuple[Path, Path]:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    return folder / "old", folder / "new"


def test_the_bound_counts_each_missing_block_once_and_the_whole_index(tmp_path: Path) -> None:
    fresh = noise(1, 2)
    old, new = pair(tmp_path, noise(3, 1), noise(3, 1)[BLOCK:] + fresh + fresh + bytes(BLOCK))
    bound = block_bound(old, new)
    assert (bound.blocks, bound.missing) == (5, 1)
    assert bound.packed == BLOCK  # noise does not shrink
    assert bound.fetched == 5 * 32 + BLOCK


def test_blocks_differ_in_their_place(tmp_path: Path) -> None:
    same = noise(300, 1)
    old, new = pair(tmp_path, same, same[BLOCK:] + same[:BLOCK])
    assert differing_bytes(old, new) == 300 * BLOCK
    old, new = pair(tmp_path, same, same[: 260 * BLOCK] + noise(1, 3) + same[261 * BLOCK :])
    assert differing_bytes(old, new) == BLOCK


def test_a_longer_image_differs_in_what_it_has_more(tmp_path: Path) -> None:
    old, new = pair(tmp_path, noise(2, 1), noise(2, 1) + bytes(BLOCK))
    assert differing_bytes(old, new) == BLOCK


def test_the_engine_says_its_figures_in_its_last_line() -> None:
    said = engine_says('a warning\n{"wall": 1.5, "version": "2.0.0"}\n')
    assert said == {"wall": 1.5}
    assert engine_says("") == {}
    assert engine_says("killed") == {}


def test_rows_are_chosen_by_name() -> None:
    assert rows_of("install,delta") == ["install", "delta"]
    assert rows_of("") == list(WORKS)
    with pytest.raises(argparse.ArgumentTypeError, match="no such row: speed"):
        rows_of("install,speed")


def test_only_all_rows_of_given_images_replace_the_document() -> None:
    def where(rows: list[str], folder: Path | None) -> str:
        return output_of(argparse.Namespace(rows=rows, folder=folder)).parent.name

    assert where(list(WORKS), Path("images")) == "docs"
    assert where(["install"], Path("images")) == "build"
    assert where(list(WORKS), None) == "build"


class Kept:
    """A artefacts of one artefact: a copy of an image."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self.image = folder / "image"
        self.image.write_bytes(b"content")
        self.said: list[str] = []
        self.artefacts = Artefacts(folder=folder, scratch=folder, keep=keep, say=self.said.append)

    def make(self, maker: str = "1") -> tuple[bool, bool]:
        """Make it; tell whether it was made now, and whether it is stale."""
        before = len(self.said)
        command = ["cp", str(self.image), "{output}"]
        made = self.artefacts.make("copy", command, images=[self.image], maker=maker)
        assert made.path.read_bytes() == self.image.read_bytes() or made.cost is None
        return len(self.said) > before, made.stale


@needs_time
def test_an_artefact_is_made_once(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.make() == (True, False)
    assert kept.make() == (False, False)


@needs_time
def test_an_artefact_is_made_again_for_another_image_or_maker(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.make()
    kept.image.write_bytes(b"other content")
    assert kept.make() == (True, False)
    assert kept.make(maker="2") == (True, False)


@needs_time
def test_with_keep_what_an_earlier_maker_made_is_taken_and_said_to_be(tmp_path: Path) -> None:
    kept = Kept(tmp_path, keep=True)
    kept.make()
    assert kept.make(maker="2") == (False, True)
    kept.image.write_bytes(b"other content")
    assert kept.make(maker="2") == (True, False)


@needs_time
def test_what_somebody_put_there_has_no_cost(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    (tmp_path / "copy").write_bytes(b"theirs")
    assert kept.make() == (False, False)
    assert not (tmp_path / "copy.made.json").exists()


@needs_time
def test_the_cost_of_making_is_kept_beside_it(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.make()
    cost = json.loads((tmp_path / "copy.made.json").read_text())["cost"]
    assert cost["peak_mib"] > 0
    assert cost["wall_secs"] > 0


@needs_time
def test_what_fails_leaves_no_artefact(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    with pytest.raises(CommandFailedError, match="status 1"):
        kept.artefacts.make("none", "echo part > {output}; false", images=[], maker="1")
    assert not (tmp_path / "none").exists()


def test_nothing_is_made_where_nothing_shall_be(tmp_path: Path) -> None:
    artefacts = Artefacts(folder=tmp_path, scratch=tmp_path, keep=False, say=print, makes=False)
    with pytest.raises(CommandFailedError, match="none is not made yet"):
        artefacts.make("none", "touch {output}", images=[], maker="1")
    assert list(tmp_path.iterdir()) == []
