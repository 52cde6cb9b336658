"""Who asks, and what the forms mean that clients use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.clients import architecture_of, fitting_board, group_named, is_syncer
from updater.omaha import AppRequest, OsInfo, Request

SYNCER_APP = AppRequest(app_id="a", machine_id="{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}")
SYNCER = Request(apps=(SYNCER_APP,), version="CoreOSUpdateEngine-0.1.0.0")


@pytest.mark.parametrize(
    ("track", "group"),
    [
        ("stable", "stable"),
        (" stable ", "stable"),
        ("", "default"),
        ("{}", "default"),
        ("{9a2deb70-37be-4026-853f-bfdd6b347bbe}", "stable"),
        ("9A2DEB70-37BE-4026-853F-BFDD6B347BBE", "stable"),
        ("d112ec01-ba34-4a9e-9d4b-9814a685f266", "beta"),
        ("{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}", "0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11"),
        ("Rack-7", "Rack-7"),
    ],
)
def test_a_track_names_a_group_in_any_of_its_forms(track: str, group: str) -> None:
    assert group_named(track) == group


@pytest.mark.parametrize(
    ("board", "architecture"),
    [
        ("amd64-usr", "amd64"), ("x86-64", "amd64"), ("x86_64", "amd64"), ("qemu-x86_64", "amd64"),
        ("arm64-usr", "arm64"), ("rpi4-aarch64", "arm64"), ("generic", None), ("rpi4", None),
    ],
)  # fmt: skip
def test_a_board_may_say_its_architecture(board: str, architecture: str | None) -> None:
    assert architecture_of(board) == architecture


@pytest.mark.parametrize(
    ("os", "board"),
    [
        (OsInfo(arch="x64"), "amd64-usr"),
        (OsInfo(arch="arm"), "arm64-usr"),
        (OsInfo(arch="arm64"), "arm64-usr"),
        (OsInfo(arch="riscv64"), "amd64-usr"),  # unknown: the default
        (OsInfo(service_pack="3815.2.0_x86_64"), "amd64-usr"),
        (OsInfo(service_pack="3815.2.0_aarch64"), "arm64-usr"),
        (OsInfo(arch="arm", service_pack="3815.2.0_x86_64"), "arm64-usr"),  # as a syncer asks
        (OsInfo(), "amd64-usr"),
    ],
)
def test_a_client_without_a_board_gets_what_fits_its_architecture(os: OsInfo, board: str) -> None:
    boards = {"amd64-usr", "arm64-usr"}
    assert fitting_board(os, default="amd64-usr", boards=boards) == board


@pytest.mark.parametrize("boards", [(), ("amd64-usr",), ("rpi4-arm64", "rock5-arm64")])
def test_no_client_gets_a_board_made_for_another_architecture(boards: tuple[str, ...]) -> None:
    """With none or several to choose from it is told that there is no release for it."""
    found = fitting_board(OsInfo(arch="arm"), default="amd64-usr", boards=boards)
    assert found == "arm64-usr"


def test_a_board_that_names_no_architecture_is_for_all() -> None:
    assert fitting_board(OsInfo(arch="arm"), default="generic", boards=("generic",)) == "generic"
    both = ("generic", "arm64-usr")
    assert fitting_board(OsInfo(arch="arm"), default="generic", boards=both) == "arm64-usr"


def test_a_following_server_is_known_by_what_it_says_of_itself() -> None:
    assert is_syncer(SYNCER, SYNCER_APP)


@pytest.mark.parametrize(
    ("request_changes", "app_changes"),
    [
        ({"version": "update_engine-0.4.10"}, {}),
        ({"install_source": "ondemandupdate"}, {}),
        ({}, {"machine_id": "3d1219c7c4c5404aaa1f6d2a48adfda4"}),  # an engine of that age
        ({}, {"machine_id": ""}),
    ],
)
def test_a_machine_is_no_following_server(
    request_changes: dict[str, str], app_changes: dict[str, str]
) -> None:
    app = replace(SYNCER_APP, **app_changes)  # type: ignore[arg-type]  # texts only
    assert not is_syncer(replace(SYNCER, **request_changes), app)  # type: ignore[arg-type]  # too
