"""`bascule-image reference`: what is refused before anything slow begins."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from images.cli import run
from images.errors import DocumentInvalidError, SourceFolderError
from images.reference import cli
from images.reference.recipe import read_facts


def test_variants_are_listed_with_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reference", "variants"]) == 0
    assert "panic-init     the first process ends" in capsys.readouterr().out


def test_a_folder_that_is_no_checkout_has_no_time_to_give(tmp_path: Path) -> None:
    with pytest.raises(SourceFolderError, match="give --built"):
        cli.built(tmp_path, epoch="")


def test_the_time_of_the_image_is_never_the_clocks(tmp_path: Path) -> None:
    assert cli.built(tmp_path, epoch="1764288000") == datetime(2025, 11, 28, tzinfo=UTC)
    checkout = Path(__file__).parents[4]
    if (checkout / ".git").exists():
        assert cli.built(checkout, epoch="") == cli.built(checkout, epoch="")


def test_a_list_of_packages_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "facts.json"
    listed.write_text(json.dumps({"version": "1.0.0"}))
    arguments = [
        "reference", "build", "--version", "1.0.0", "--output", str(tmp_path / "out"),
        "--packages", str(listed), "--built", "2026-11-28T00:00:00Z",
    ]  # fmt: skip
    assert run(arguments) == 1
    assert "code: file-unreadable" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(DocumentInvalidError, match="version"):
        read_facts(product="p", board="b", version="one", rollback_index=0, built=datetime.now(UTC))
