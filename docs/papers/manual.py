"""Manual pages, in roff (man(7)), from the commands and from the settings in the docs.

One page a program, as its verbs are few and short; `bascule.toml(5)` has the settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from images.cli import cli as image
from server.cli import cli as server
from updater import ENGINE_VERSION
from updater.cli import bascule

ROOT: Final = Path(__file__).parents[2]
OPERATING: Final = ROOT / "docs/operating-a-node.md"
EXAMPLE: Final = "Example: "
BOLD: Final = "\\fB"
PLAIN: Final = "\\fR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program and what its page says beyond its own help.

    Attributes:
        name: as it is typed.
        group: its commands.
        see: other pages.
    """

    name: str
    group: click.Group
    see: tuple[str, ...]


PROGRAMS: Final = (
    Program(
        name="bascule",
        group=bascule,
        see=("bascule.toml(5)", "bascule-image(1)", "bascule-server(1)", "systemd(1)"),
    ),
    Program(name="bascule-image", group=image, see=("bascule(1)", "bascule-server(1)")),
    Program(name="bascule-server", group=server, see=("bascule(1)", "bascule-image(1)")),
)


def pages() -> dict[str, str]:
    """Return every page by its path under a `man` folder: `man1/bascule.1`."""
    made = {f"man1/{program.name}.1": page(program) for program in PROGRAMS}
    return made | {"man5/bascule.toml.5": settings_page(OPERATING.read_text())}


def page(program: Program) -> str:
    """Return the page of one program."""
    name, group = program.name, program.group
    context = click.Context(group, info_name=name)
    purpose = (group.help or "").split("\n", 1)[0].rstrip(".")
    lines = [
        _title(name, 1),
        ".SH NAME",
        f"{_text(name)} \\- {_text(purpose[:1].lower() + purpose[1:])}",
        ".SH SYNOPSIS",
        f"{BOLD}{_text(name)}{PLAIN} {_text(' '.join(group.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *_paragraphs(group.help or ""),
        ".SH OPTIONS",
        *_options(group, context),
        ".SH COMMANDS",
    ]
    statuses = exit_statuses(OPERATING.read_text())
    for path, command, inner in commands(group, context):
        lines += _command(path, command, inner, statuses.get(path, ""))
    lines += [".SH EXIT STATUS", *_paragraphs(_plain_epilog(group))]
    return "\n".join([*lines, ".SH SEE ALSO", _see(program.see), ""])


def settings_page(document: str) -> str:
    """Return bascule.toml(5): the chapter "Settings" of docs/operating-a-node.md."""
    chapter = re.search(r"^## Settings\n(.*?)(?=^## |\Z)", document, re.DOTALL | re.MULTILINE)
    if chapter is None:
        raise ValueError("docs/operating-a-node.md has no chapter `Settings`")
    lead, *tables = re.split(r"^### ", chapter[1], flags=re.MULTILINE)
    lines = [
        _title("bascule.toml", 5),
        ".SH NAME",
        "bascule.toml \\- settings of a node",
        ".SH SYNOPSIS",
        "/usr/lib/bascule/bascule.toml, /etc/bascule/bascule.toml, /run/bascule/bascule.toml",
        ".SH DESCRIPTION",
        *_paragraphs(lead),
    ]
    for table in tables:
        title, _, body = table.partition("\n")
        lines.append(f".SH {_quoted(_text(title.strip().strip('`')))}")
        lines += _settings(body)
    return "\n".join([*lines, ".SH SEE ALSO", _see(("bascule(1)",)), ""])


def commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield every command that people see: how it is typed, the command, its context."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            yield from commands(command, inner)
        else:
            yield inner.command_path, command, inner


def exit_statuses(document: str) -> Mapping[str, str]:
    """Return what the table "Commands" of docs/operating-a-node.md says of each command."""
    found: dict[str, str] = {}
    for line in document.partition("\n## Commands\n")[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 3 or not cells[0].startswith("`bascule "):
            continue
        for typed in re.findall(r"`([^`]+)`", cells[0]):
            words = [word for word in typed.split() if re.fullmatch(r"[a-z-]+", word)]
            found[" ".join(words)] = cells[2].rstrip(" |")
    return found


def _command(
    path: str, command: click.Command, context: click.Context, statuses: str
) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_quoted(_text(f'{path} {usage}'.strip()))}"
    text, _, example = f"{command.help or ''}\n\n{command.epilog or ''}".partition(EXAMPLE)
    yield from _paragraphs(text)
    yield from _options(command, context)
    if statuses:
        yield from _paragraphs(f"Exit status: {statuses}.")
    if example:
        yield from (".PP", "Example:", ".PP", ".nf", ".RS 4")
        yield _text(" ".join(example.split()))
        yield from (".RE", ".fi")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield what a command takes; `--help` only once, where the program's own options are."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or not record[1] or (parameter.name == "help" and context.parent):
            continue
        yield ".TP"
        yield f"{BOLD}{_text(record[0])}{PLAIN}"
        yield _text(" ".join(record[1].split()))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        flat = " ".join(paragraph.replace("\b", "").split())
        if flat:
            yield ".PP"
            yield _markdown(flat)


def _plain_epilog(group: click.Group) -> str:
    return re.sub(r"^Exit status(es)?: ", "", " ".join((group.epilog or "").split()))


def _settings(body: str) -> Iterator[str]:
    for line in body.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if len(cells) == 3 and cells[0].startswith("`"):
            yield ".TP"
            yield _markdown(cells[0])
            required = cells[1] == "required"
            default = "Required" if required else f"Default: {_markdown(cells[1])}"
            yield f"{_markdown(cells[2])}. {default}."
        elif line and not line.startswith("|"):
            yield ".PP"
            yield _markdown(line)


def _title(name: str, section: int) -> str:
    version = f"bascule {ENGINE_VERSION}"
    return f'.TH {_text(name.upper())} {section} "" "{version}" "bascule"'


def _see(names: tuple[str, ...]) -> str:
    return ",\n".join(f"{BOLD}{_text(name[:-3])}{PLAIN}{name[-3:]}" for name in names)


def _markdown(text: str) -> str:
    """Return a line of Markdown as roff: code is bold, a link is its words."""
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text)
    pieces = re.split(r"`([^`]*)`", text)
    return _guarded(
        "".join(
            f"{BOLD}{_escaped(piece)}{PLAIN}" if number % 2 else _escaped(piece.replace("**", ""))
            for number, piece in enumerate(pieces)
        )
    )


def _text(text: str) -> str:
    return _guarded(_escaped(text))


def _escaped(text: str) -> str:
    """Hide what roff reads: backslashes, and hyphens that would not be found or copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return text.replace('"', "\\(dq").replace("'", "\\(aq")


def _guarded(line: str) -> str:
    """Hide a point at the beginning, which would be a request."""
    return f"\\&{line}" if line.startswith(".") else line


def _quoted(text: str) -> str:
    return f'"{text}"'
