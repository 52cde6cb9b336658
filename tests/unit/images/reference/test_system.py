"""The system that versions share: units, settings, libraries of the initrd's programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from images.errors import SourceFolderError, ToolFailedError, ToolMissingError
from images.reference import initrd, system, tree
from images.reference.recipe import server_settings
from images.reference.tools import run
from partitions.slots import Slot
from updater.assembly import slot_layout
from updater.settings import load

CHECKOUT = Path(__file__).parents[4]
SHIPPED = CHECKOUT / "updater/system"


def test_what_the_preset_enables_starts_by_the_target_that_the_unit_names() -> None:
    enabled = system.enabled_by((SHIPPED / system.PRESET).read_text(), SHIPPED / system.SHIPPED)
    assert ("bascule.service", "multi-user.target") in enabled
    assert "bascule-confirm.service" not in dict(enabled)  # off by default


OURS = system.HERE / "system"


def lines(unit: str) -> list[str]:
    return (OURS / system.SHIPPED / unit).read_text().splitlines()


def test_what_is_enabled_of_our_own_units_is_there() -> None:
    ours = {name for name in system.ENABLED if name.startswith("bascule")}
    assert ours == {"bascule-no-state.timer"}
    assert all((OURS / system.SHIPPED / name).is_file() for name in ours)


@pytest.mark.parametrize("unit", ["bascule.service", "bascule-confirm.service"])
def test_without_its_state_nothing_of_ours_starts_that_could_confirm(unit: str) -> None:
    note = "/run/bascule-no-state"
    assert f": >{note}" in initrd.INIT.read_text()
    assert f"ConditionPathExists=!{note}" in lines(f"{unit}.d/60-state.conf")
    for other in ("bascule-no-state.timer", "bascule-no-state.service"):
        assert f"ConditionPathExists={note}" in lines(other)


def test_every_program_that_a_unit_of_ours_starts_is_there_and_runs() -> None:
    script = OURS / "usr/lib/bascule/no-state"
    assert f"ExecStart=/{script.relative_to(OURS)}" in lines("bascule-no-state.service")
    assert script.stat().st_mode & 0o111


def test_systemd_takes_the_watchdog_over_and_emergency_mode_waits_for_nobody() -> None:
    manager = (OURS / "usr/lib/systemd/system.conf.d/50-watchdog.conf").read_text()
    assert "RuntimeWatchdogSec=60s" in manager
    emergency = lines("emergency.service.d/50-reboot.conf")
    assert emergency[-2:] == ["ExecStart=", "ExecStart=/usr/bin/systemctl --force reboot"]


def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    for source in (SHIPPED, OURS):
        shutil.copytree(source / system.SHIPPED, tmp_path, symlinks=True, dirs_exist_ok=True)
    for unit in ("bascule-no-state.service", "bascule-guard.service"):  # programs lie elsewhere
        text = (tmp_path / unit).read_text()
        (tmp_path / unit).write_text(re.sub("ExecStart=.*", "ExecStart=/bin/true", text))
    done = subprocess.run(
        [
            "systemd-analyze", "verify", "--man=no", "bascule-no-state.timer",
            "bascule-no-state.service", "bascule-guard.timer",
        ],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_node_accepts_the_settings_with_those_of_a_server(tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    shutil.copytree(OURS / "usr/lib/bascule", vendor)
    (vendor / "bascule.toml.d").mkdir()
    (vendor / "bascule.toml.d/10-server.toml").write_text(server_settings("https://desk.example"))

    loaded = load(folders=[vendor, tmp_path / "admin"])

    assert [file.name for file in loaded.files] == ["bascule.toml", "10-server.toml"]
    assert loaded.settings.server.omaha_url == "https://desk.example/v1/update/"
    assert loaded.settings.slots.disk == "/dev/bascule/disk"
    assert slot_layout(loaded.settings)[Slot.B]["kernel"].file == Path("/boot/bascule/b/linux")


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
