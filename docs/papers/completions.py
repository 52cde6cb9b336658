"""Completion files for bash, zsh and fish, as click writes them, for all three programs.

They ask the program itself at each TAB, so they need not change when a command does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from docs.papers.manual import PROGRAMS

# Where each shell looks, below /usr/share.
PLACES: Final[Mapping[type[ShellComplete], str]] = {
    BashComplete: "bash-completion/completions/{name}",
    ZshComplete: "zsh/site-functions/_{name}",
    FishComplete: "fish/vendor_completions.d/{name}.fish",
}


def files() -> dict[str, str]:
    """Return every completion file by its path below /usr/share."""
    return {
        place.format(name=program.name): _source(
            shell(program.group, {}, program.name, _variable(program.name))
        )
        for shell, place in PLACES.items()
        for program in PROGRAMS
    }


def _variable(name: str) -> str:
    """Return the variable by which the program is asked; click makes the same of its name."""
    return f"_{name}_COMPLETE".replace("-", "_").upper()


def _source(shell: ShellComplete) -> str:
    """Return the script, without asking which bash runs here."""
    return shell.source_template.lstrip() % shell.source_vars()
