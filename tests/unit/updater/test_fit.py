"""`bascule config check` on a machine that is not what the settings say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.sim.world import World
from updater.cli import bascule
from updater.errors import MachineUnfitError
from updater.fit import look


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world"), image_size=512 * 1024) as made:
        made.boot()
        yield made


@pytest.fixture
def config(world: World) -> Path:
    world.write_settings()
    return world.config


def changed(config: Path, **changes: str) -> Path:
    """Replace the lines of `[slots]` that set these keys, or add them."""
    lines = [
        line for line in config.read_text().splitlines() if line.split(" = ")[0] not in changes
    ]
    at = lines.index("[slots]") + 1
    lines[at:at] = [f"{key} = {value}" for key, value in changes.items()]
    config.write_text("\n".join(lines) + "\n")
    return config


def check(config: Path, *options: str) -> Result:
    return CliRunner().invoke(bascule, ["--config", str(config), "config", "check", *options])


def unfit(config: Path) -> list[str]:
    """Return the lines of what does not fit."""
    result = check(config)
    assert isinstance(result.exception, MachineUnfitError), result.output
    assert "settings hold: " in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("does not fit: ")]
    assert f"in {len(lines)} ways" in str(result.exception)
    return [line.removeprefix("does not fit: ") for line in lines]


def test_a_machine_that_fits_is_no_news(config: Path) -> None:
    result = check(config)
    assert result.exception is None
    assert "does not fit" not in result.output


def test_a_disk_that_is_not_there_is_told_once(config: Path) -> None:
    (line,) = unfit(changed(config, disk='"/dev/nowhere"'))
    assert "/dev/nowhere" in line
    assert line.endswith("[device-open]")


def test_settings_of_another_machine_are_checked_alone(config: Path) -> None:
    result = check(changed(config, disk='"/dev/nowhere"'), "--settings-only")
    assert result.exception is None
    assert result.output == f"settings hold: {config}\n"


def test_each_partition_that_is_not_there_has_its_line(config: Path) -> None:
    bent = changed(config, a='{ usr = "PARTLABEL=X" }', b='{ usr = "PARTLABEL=Y" }')
    lines = unfit(bent)
    assert ["PARTLABEL=X" in lines[0], "PARTLABEL=Y" in lines[1]] == [True, True]
    assert all(line.endswith("[partition-unknown]") for line in lines[:2])


def test_one_partition_by_two_names_is_seen_on_the_disk(world: World, config: Path) -> None:
    from partitions.table import read_table

    entry = next(e for e in read_table(world.disk).entries if e.name == "USR-A")
    (line,) = unfit(changed(config, b=f'{{ usr = "PARTUUID={entry.part_guid}" }}'))
    assert line.endswith("[partition-ambiguous]")


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_program_that_cannot_be_run_is_told(
    config: Path, tmp_path: Path, mode: int | None
) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    bent = changed(config, boot_control='"custom"', custom_command=f'["{program}"]')
    (line,) = unfit(bent)
    assert f"'{program}' cannot be started" in line
    assert line.endswith("[custom-command]")


def test_a_folder_of_the_running_system_is_no_boot_folder(
    world: World, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "boot"
    folder.mkdir()
    changed(config, boot_control='"systemd-boot"', boot_folder=f'"{folder}"')
    config.write_text(config.read_text().replace('machine = "model"', 'machine = "linux"'))
    faults = look(world.settings(), root=tmp_path).faults
    assert "boot-folder-unmounted" in {fault.code for fault in faults}
    proc = look(world.settings(), root=Path("/proc")).faults
    assert "boot-folder-unmounted" not in {fault.code for fault in proc}


def test_a_boot_folder_that_is_not_there_is_told(world: World, config: Path) -> None:
    changed(config, boot_control='"systemd-boot"', boot_folder='"/nowhere"')
    config.write_text(config.read_text().replace('machine = "model"', 'machine = "linux"'))
    assert "boot-folder" in {fault.code for fault in look(world.settings()).faults}


def test_more_tries_than_the_found_loader_counts_are_noted(config: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    slots = '{"armed": true, "tries_left": 0, "confirmed": true}'
    answer = f'{{"target": "a", "max_tries": 3, "slots": {{"a": {slots}, "b": {slots}}}}}'
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    bent = changed(
        config, boot_control='"auto"', grubenv='""', custom_command=f'["{program}"]', tries="12"
    )
    result = check(bent)
    assert result.exception is None
    expected = "note: slots.tries is 12; custom counts to 3, so many boots a new slot gets"
    assert expected in result.output.splitlines()
