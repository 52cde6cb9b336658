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
PAGES = sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("*.md"))


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


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def anchor(heading: str) -> str:
    """Return the anchor that a heading has, as renderers of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_a_page_leads_to_a_heading(page: Path) -> None:
    for file, wanted in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert wanted in map(anchor, headings), f"{page.name}: {file}#{wanted}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_there(page: Path) -> None:
    """`trust.mode` and the like, wherever the first word is a table of the settings."""
    tables = {f.name: f.type for f in msgspec.structs.fields(settings.Settings)}
    for table, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`", page.read_text()):
        if table in tables:
            known = {f.name for f in msgspec.structs.fields(tables[table])}
            assert key in known, f"{page.name}: {table}.{key}"


def settings_of_loaders() -> list[tuple[str, str]]:
    """Return each whole `[slots]` that the pages of boot loaders show."""
    pages = [ROOT / "docs" / name for name in ("loaders.md", "grub.md")]
    blocks = [
        (page.name, block)
        for page in pages
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [(name, block) for name, block in blocks if "\ndisk = " in block]


@pytest.mark.parametrize(("page", "block"), settings_of_loaders())
def test_the_settings_of_every_loader_hold(page: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "bascule.toml"
    file.write_text(f'{block}\n[trust]\nmetadata_url = "https://updates.example/metadata"\n')
    assert settings.load(file).settings.slots.a, page


def test_the_settings_of_four_loaders_are_shown() -> None:
    shown = "".join(block for _, block in settings_of_loaders())
    named = re.findall(r'boot_control = "(.*)"', shown)
    assert sorted(named) == ["efi", "grubenv", "systemd-boot", "uboot"]
