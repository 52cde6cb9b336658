"""`bascule-image reference`: what is refused before anything slow begins."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from images.cli import PLUGIN_GROUP
from images.errors import DocumentInvalidError, FileUnreadableError, SourceFolderError
from images.reference import cli
from images.reference.recipe import read_facts

CHECKOUT = Path(__file__).parents[4]


def test_the_group_joins_the_command_by_entry_point() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    named = project["entry-points"][PLUGIN_GROUP]["reference"]
    assert EntryPoint("reference", named, PLUGIN_GROUP).load() is cli.reference


def test_variants_are_listed_with_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    cli.reference.main(["variants"], standalone_mode=False)
    assert "panic-init     the first process ends" in capsys.readouterr().out


def test_a_folder_that_is_no_checkout_has_no_time_to_give(tmp_path: Path) -> None:
    with pytest.raises(SourceFolderError, match="give --built"):
        cli.built(tmp_path, epoch="")


def test_the_time_of_the_image_is_never_the_clocks(tmp_path: Path) -> None:
    assert cli.built(tmp_path, epoch="1764288000") == datetime(2025, 11, 28, tzinfo=UTC)
    if (CHECKOUT / ".git").exists():
        assert cli.built(CHECKOUT, epoch="") == cli.built(CHECKOUT, epoch="")


def test_a_list_of_packages_that_is_none_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "facts.json"
    listed.write_text(json.dumps({"version": "1.0.0"}))
    arguments = [
        "build", "--version", "1.0.0", "--output", str(tmp_path / "out"),
        "--packages", str(listed), "--built", "2026-11-28T00:00:00Z",
    ]  # fmt: skip
    with pytest.raises(FileUnreadableError, match=r"facts\.json is no facts\.json of a build"):
        cli.reference.main(arguments, standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(DocumentInvalidError, match="version"):
        read_facts(product="p", board="b", version="one", rollback_index=0, built=datetime.now(UTC))
