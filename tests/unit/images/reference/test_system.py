"""The system that versions share: units, settings, libraries of the initrd's programs."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from images.errors import SourceFolderError, ToolFailedError, ToolMissingError
from images.reference import initrd, system, tree
from images.reference.tools import run

CHECKOUT = Path(__file__).parents[4]
SHIPPED = CHECKOUT / "updater/system"


def test_what_the_preset_enables_starts_by_the_target_that_the_unit_names() -> None:
    enabled = system.enabled_by((SHIPPED / system.PRESET).read_text(), SHIPPED / system.SHIPPED)
    assert ("bascule.service", "multi-user.target") in enabled
    assert "bascule-confirm.service" not in dict(enabled)  # off by default


def test_a_unit_that_is_masked_is_not_enabled() -> None:
    assert not set(system.MASKED) & set(system.ENABLED)


def test_the_slots_have_the_same_parts_in_different_places() -> None:
    vendor = (system.HERE / "system/usr/lib/bascule/bascule.toml").read_text()
    slots = tomllib.loads(vendor)["slots"]
    assert slots["a"].keys() == slots["b"].keys() == {"root", "kernel", "initrd"}
    assert not set(slots["a"].values()) & set(slots["b"].values())


def test_every_source_file_is_in_the_key_of_the_cache(tmp_path: Path) -> None:
    tree.place(tmp_path, "updater/daemon.py", b"one")
    first = system.key(tmp_path, "packages")
    tree.place(tmp_path, "updater/daemon.py", b"two")
    second = system.key(tmp_path, "packages")
    tree.place(tmp_path, "updater/__pycache__/daemon.pyc", b"bytecode")
    assert second == system.key(tmp_path, "packages")
    assert len({first, second, system.key(tmp_path, "others")}) == 3


def test_a_folder_without_the_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceFolderError, match="lacks Makefile"):
        system.check_source(tmp_path)


def test_this_checkout_has_all_that_make_install_reads() -> None:
    system.check_source(CHECKOUT)


def test_the_libraries_of_a_program_are_those_that_its_loader_finds() -> None:
    if not Path("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").exists():
        pytest.skip("this machine is no Debian on x86-64")
    found = initrd.libraries_of([Path(shutil.which("sh") or "/bin/sh")], Path("/"))
    assert "libc.so.6" in found
    assert "ld-linux-x86-64.so.2" not in found


def test_a_program_that_is_not_there_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ToolMissingError, match="no-such-program is not installed"):
        run(["no-such-program"])
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("images.reference.tools._ADMIN", "")
    with pytest.raises(ToolMissingError, match="package erofs-utils has it"):
        run(["mkfs.erofs"])


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(ToolFailedError, match=r"sh ended with status 3: the disk is full"):
        run(["sh", "-c", "echo the disk is full >&2; exit 3"])


def test_a_program_sees_nothing_of_the_builders_locale_and_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    said = run(["sh", "-c", 'echo "$LANG $LC_ALL $TZ"']).strip()
    assert said == "C.UTF-8 UTC0"
