"""The completion files work in the real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from docs.papers import completions
from docs.papers.__main__ import main

FILES: Final = completions.files()
SHELLS: Final = {"bash-completion": "bash", "zsh": "zsh", "fish": "fish"}
BIN: Final = Path(sys.executable).parent


def shell_of(name: str) -> str:
    """Return the shell that a file is for."""
    shell = SHELLS[name.split("/", 1)[0]]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return shell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main("completions", tmp_path) == 0
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if not (BIN / "bascule").exists():
        pytest.skip("bascule is not installed beside this Python")
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("name", FILES)
def test_the_shell_can_read_it(name: str, folder: Path) -> None:
    done = run(folder, shell_of(name), "-n", str(folder / name))
    assert done.stderr == ""


def test_each_program_has_a_file_for_each_shell() -> None:
    assert len(FILES) == 9


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["bascule", "per"], ["permit"]),
        (["bascule", "permit", ""], ["return", "set-max", "status"]),
        (["bascule", "update", "--"], ["--force", "--version", "--payload", "--yes", "--help"]),
        (["bascule-image", "bu"], ["build"]),
        (["bascule-image", "disk", "cr"], ["create"]),
        (["bascule-server", "group", "pa"], ["pause"]),
    ],
    ids=" ".join,
)
class TestCompletes:
    def test_in_bash(self, folder: Path, typed: list[str], offered: list[str]) -> None:
        words = " ".join(f"'{word}'" for word in typed)
        program = typed[0]
        function = f"_{program.replace('-', '_')}_completion"
        script = (
            f"source bash-completion/completions/{program}\n"
            f"COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}\n"
            f"{function} {program}\n"
            'printf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        assert sorted(run(folder, "bash", "-c", script).stdout.split()) == sorted(offered)

    def test_in_fish(self, folder: Path, typed: list[str], offered: list[str]) -> None:
        script = (
            f"source fish/vendor_completions.d/{typed[0]}.fish; complete -C '{' '.join(typed)}'"
        )
        lines = run(folder, "fish", "--no-config", "-c", script).stdout.splitlines()
        assert sorted(line.split("\t")[0] for line in lines) == sorted(offered)


def test_zsh_finds_it_by_its_name(folder: Path) -> None:
    script = (
        f"fpath=({folder}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D;"
        "print $_comps[bascule] $_comps[bascule-image] $_comps[bascule-server]"
    )
    done = run(folder, "zsh", "-f", "-c", script)
    assert done.stdout.split() == [
        "_bascule_completion",
        "_bascule_image_completion",
        "_bascule_server_completion",
    ] or done.stdout.split() == ["_bascule", "_bascule-image", "_bascule-server"]
