from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from updater.errors import WindowInvalidError
from updater.zones import ZonesMissingError, local_zone, open_zone

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def no_database(tmp_path: Path) -> Iterator[None]:
    """A system without tzdata, as far as `zoneinfo` can tell."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    zoneinfo.ZoneInfo.clear_cache()
    yield
    zoneinfo.reset_tzpath(before)
    zoneinfo.ZoneInfo.clear_cache()


def test_a_zone_has_its_name_and_its_offset() -> None:
    assert open_zone("Asia/Kathmandu").utcoffset(NOON) == timedelta(hours=5, minutes=45)


@pytest.mark.parametrize("name", ["Mars/Olympus", "Europe", "../UTC", "/etc/localtime", "", "CEST"])
def test_an_unknown_zone_is_refused_by_name(name: str) -> None:
    with pytest.raises(WindowInvalidError, match="is not known here") as caught:
        open_zone(name)
    assert repr(name) in str(caught.value)


@pytest.mark.usefixtures("no_database")
def test_an_image_without_zones_is_told_from_a_name_that_is_wrong() -> None:
    with pytest.raises(ZonesMissingError, match="package tzdata") as caught:
        open_zone("Europe/Berlin")
    assert caught.value.code == "window-invalid"


@pytest.mark.usefixtures("no_database")
@pytest.mark.parametrize("name", ["UTC", "utc"])
def test_utc_needs_no_database(name: str) -> None:
    assert open_zone(name) is UTC


def test_the_local_zone_is_the_file_that_localtime_leads_to(tmp_path: Path) -> None:
    file = tmp_path / "localtime"
    file.symlink_to("/usr/share/zoneinfo/Australia/Lord_Howe")
    assert local_zone(file).utcoffset(NOON) == timedelta(hours=10, minutes=30)


def test_the_local_zone_is_utc_where_none_is_set(tmp_path: Path) -> None:
    assert local_zone(tmp_path / "localtime") is UTC


def test_a_local_zone_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "localtime"
    file.write_text("Europe/Berlin\n")
    with pytest.raises(WindowInvalidError, match="localtime holds no time zone"):
        local_zone(file)


def test_the_local_zone_is_the_same_for_every_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_zone(tmp_path / "localtime") is UTC


def test_a_torn_local_zone_is_named_and_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "localtime"
    whole = Path("/usr/share/zoneinfo/Europe/Berlin")
    if not whole.exists():
        pytest.skip("there are no time zones (package tzdata)")
    for length in (0, 4, 20, 44, 60, 200):
        file.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(WindowInvalidError):
            local_zone(file)
