"""The docs keep up: every setting, command and link of the project stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from updater import settings
from updater.cli import bascule

ROOT = Path(__file__).parents[2]
OPERATING = (ROOT / "docs/operating-a-node.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"### `\[{title}\]`\n(.*?)(?=\n##|\Z)", OPERATING, re.DOTALL)
    assert found, f"docs/operating-a-node.md has no section [{title}]"
    return found[1]


@pytest.mark.parametrize("table", [f.name for f in msgspec.structs.fields(settings.Settings)])
def test_every_setting_is_documented(table: str) -> None:
    kinds = {f.name: f.type for f in msgspec.structs.fields(settings.Settings)}
    text = section(table)
    for field in msgspec.structs.fields(kinds[table]):
        assert f"`{field.name}`" in text, f"{table}.{field.name} is not documented"


def test_the_order_of_folders_is_documented_as_it_is() -> None:
    assert ", ".join(f"`{folder}/`" for folder in settings.FOLDERS) in OPERATING


def commands(group: click.Group, prefix: str) -> list[str]:
    found = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, f"{prefix} {name}")
        elif not command.hidden:
            found.append(f"{prefix} {name}")
    return found


@pytest.mark.parametrize("command", commands(bascule, "bascule"))
def test_every_command_is_documented(command: str) -> None:
    assert f"`{command}" in OPERATING


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("*.md")))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
