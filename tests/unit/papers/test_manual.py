"""The manual pages: nothing is missing, and `man` has nothing to complain about."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import click
import msgspec
import pytest

from docs.papers import manual
from updater import settings

PAGES: Final = manual.pages()
TOML: Final = "man5/bascule.toml.5"


def shown(name: str, folder: Path) -> str:
    """Let man show a page, as it looks on a wide terminal; it must not warn."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed (package man-db)")
    path = folder / Path(name).name
    path.write_text(PAGES[name])
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(path)],
        env=os.environ | {"MANWIDTH": "300", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@cache
def _context(name: str) -> click.Context:
    program = next(each for each in manual.PROGRAMS if each.name == name)
    return click.Context(program.group, info_name=name)


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_it_without_a_warning(name: str, tmp_path: Path) -> None:
    text = shown(name, tmp_path)
    assert text.split("\n", 1)[0].startswith(Path(name).stem.upper().split(".")[0])
    for chapter in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{chapter}\n" in text


@pytest.mark.parametrize("program", manual.PROGRAMS, ids=lambda program: program.name)
def test_every_command_and_option_is_on_it(program: manual.Program, tmp_path: Path) -> None:
    text = shown(f"man1/{program.name}.1", tmp_path)
    context = _context(program.name)
    found = list(manual.commands(program.group, context))
    assert len(found) > 5
    for path, command, _ in found:
        chapter = re.search(
            rf"\n   {re.escape(path)}(?= |\n).*?(?=\n   \S|\n[A-Z])", text, re.DOTALL
        )
        assert chapter, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(name in chapter[0] for name in parameter.opts), (path, parameter.opts)
            elif isinstance(parameter, click.Argument):
                assert parameter.make_metavar(context).strip("[].") in chapter[0], path
        assert "Example:" in chapter[0] or program.name != "bascule", path
    for status in ("0 done", "2 usage", "3 refused"):
        assert status in text


def test_every_command_of_bascule_has_its_exit_statuses() -> None:
    statuses = manual.exit_statuses(manual.OPERATING.read_text())
    program = manual.PROGRAMS[0]
    paths = {path for path, _, _ in manual.commands(program.group, _context("bascule"))}
    assert statuses.keys() == paths


def test_every_setting_is_on_its_page(tmp_path: Path) -> None:
    text = shown(TOML, tmp_path)
    for table in msgspec.structs.fields(settings.Settings):
        assert f"[{table.name}]" in text
        for field in msgspec.structs.fields(table.type):
            assert re.search(rf"\b{field.name}\b", text), f"{table.name}.{field.name}"


def test_what_roff_would_read_is_hidden() -> None:
    assert manual._text(".x") == "\\&.x"
    assert manual._text("a-b\\c 'd'") == "a\\-b\\ec \\(aqd\\(aq"
    assert manual._markdown("see `--x` and [this](y.md), **now**") == (
        "see \\fB\\-\\-x\\fR and this, now"
    )


def test_no_chapter_of_settings_is_an_error() -> None:
    with pytest.raises(ValueError, match="no chapter"):
        manual.settings_page("# nothing")
