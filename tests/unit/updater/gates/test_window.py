from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from updater.errors import WindowInvalidError
from updater.gates.window import WindowGate
from updater.settings import WindowSettings
from updater.windows import read_windows

BERLIN: Final = ZoneInfo("Europe/Berlin")
SUNDAY: Final = WindowSettings(start="Sun 02:00", length="4h", timezone="Europe/Berlin")
NOVEMBER: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
OPENS: Final = datetime(2026, 11, 29, 2, tzinfo=BERLIN)


def gate(*rows: WindowSettings) -> WindowGate:
    return WindowGate(read_windows(rows, local=UTC))


def test_closed_it_names_the_window_and_when_it_opens_on_the_clock_there() -> None:
    verdict = gate(SUNDAY).verdict(NOVEMBER)
    assert (verdict.code, verdict.is_open, verdict.opens_at) == ("window-closed", False, OPENS)
    assert verdict.sentence == (
        "outside of the windows: 'Sun 02:00' for 4h opens Sun 2026-11-29 02:00 CET"
    )


def test_closed_it_names_the_window_that_opens_first() -> None:
    daily = WindowSettings(start="03:00", length="1h")
    verdict = gate(SUNDAY, daily).verdict(NOVEMBER)
    assert verdict.opens_at == datetime(2026, 11, 26, 3, tzinfo=UTC)
    assert verdict.sentence.endswith("'03:00' for 1h opens Thu 2026-11-26 03:00 UTC")


def test_open_it_says_until_when() -> None:
    verdict = gate(SUNDAY).verdict(OPENS)
    assert (verdict.code, verdict.is_open, verdict.opens_at) == ("window-open", True, None)
    assert verdict.sentence == "window 'Sun 02:00' for 4h is open until Sun 2026-11-29 06:00 CET"


def test_open_for_good_it_says_only_that() -> None:
    verdict = gate(WindowSettings(start="daily", length="24h")).verdict(NOVEMBER)
    assert verdict.sentence == "window 'daily' for 24h is open"


def test_closed_for_good_it_points_at_the_settings() -> None:
    verdict = gate(WindowSettings(start="2020-01-01 02:00", length="4h")).verdict(NOVEMBER)
    assert (verdict.code, verdict.is_open, verdict.opens_at) == ("window-closed", False, None)
    assert "no window opens any more" in verdict.sentence


def test_that_cannot_tell_is_closed() -> None:
    verdict = WindowGate(WindowInvalidError("/etc/localtime holds no time zone")).verdict(NOVEMBER)
    assert (verdict.code, verdict.is_open, verdict.opens_at) == ("window-invalid", False, None)
    assert "/etc/localtime holds no time zone" in verdict.sentence


def test_is_a_function_of_the_time_wherever_the_clock_jumps() -> None:
    """Forward, back by years, forward again: what counts is what the clock shows now."""
    windows = gate(SUNDAY)
    for now, is_open in (
        (OPENS, True),
        (datetime(1970, 1, 1, tzinfo=UTC), False),
        (OPENS + timedelta(hours=3, minutes=59), True),
        (OPENS + timedelta(hours=4), False),
        (datetime(2198, 12, 30, 2, tzinfo=BERLIN), True),
        (OPENS + timedelta(seconds=1), True),
        (datetime(2999, 1, 1, tzinfo=UTC), False),
    ):
        assert windows.verdict(now).is_open is is_open
