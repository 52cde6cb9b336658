"""Versions that fail: each is the good one with one change."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from images.reference import initrd, recipe, system, tree
from images.reference.variants import INIT, SETTINGS, VARIANTS, VENV_PYTHON, noise


def small(path: Path) -> Path:
    tree.place(path, INIT, b"systemd", executable=True)
    tree.place(path, VENV_PYTHON, b"python", executable=True)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def changed(name: str, tmp_path: Path) -> set[str]:
    before, root = contents(small(tmp_path / "good")), small(tmp_path / name)
    VARIANTS[name].change(root)
    after = contents(root)
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("good", set()), ("panic-init", {INIT}), ("hung-init", {INIT}), ("hung-initrd", set()),
        ("broken-kernel", set()), ("no-state", set()), ("unhealthy", {SETTINGS}),
        ("no-daemon", {VENV_PYTHON}),
    ],
)  # fmt: skip
def test_a_variant_changes_one_file_of_the_root_or_none(
    name: str, paths: set[str], tmp_path: Path
) -> None:
    assert changed(name, tmp_path) == paths


def test_the_init_that_ends_ends_with_a_failure(tmp_path: Path) -> None:
    root = small(tmp_path)
    VARIANTS["panic-init"].change(root)
    done = subprocess.run(["sh", root / INIT], check=False, capture_output=True)
    assert done.returncode == 1


def test_the_check_that_never_passes_is_one_that_settings_know(tmp_path: Path) -> None:
    VARIANTS["unhealthy"].change(tmp_path)
    health = tomllib.loads((tmp_path / SETTINGS).read_text())["health"]
    assert health["checks"] == [{"name": "never-healthy", "command": ["/bin/false"]}]


def test_a_broken_kernel_has_the_size_of_a_kernel_and_differs_between_versions() -> None:
    broken = VARIANTS["broken-kernel"].kernel
    assert len(broken(b"kernel", "1.0.0")) == 6
    assert broken(bytes(64), "1.0.0") == broken(bytes(64), "1.0.0") != broken(bytes(64), "2.0.0")
    assert VARIANTS["good"].kernel(b"kernel", "1.0.0") == b"kernel"


def test_noise_is_the_same_for_the_same_seed() -> None:
    assert noise(100, "a") == noise(100, "a") != noise(100, "b")


@pytest.mark.parametrize(
    "script",
    [
        initrd.INIT, recipe.TINY / "init", recipe.AGENT / "bascule-test-agent",
        system.HERE / "fetch-kernel",
    ],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)  # fmt: skip
def test_a_script_is_one_that_a_shell_can_read_and_may_run(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)


def test_the_pages_name_every_variant() -> None:
    page = (Path(__file__).parents[4] / "docs/reference-os.md").read_text()
    assert [name for name in VARIANTS if f"`{name}`" not in page] == []
