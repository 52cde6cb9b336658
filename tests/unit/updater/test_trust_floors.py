"""The floors below which nothing is accepted, and the clock's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.trust.errors import ClockBehindError, SerialRollbackError, TrustRollbackError
from updater.trust.floors import (
    Floors,
    RoleFloor,
    Seen,
    check_clock,
    check_versions,
    load_floors,
    of_lineage,
    raised,
    save_floors,
)
from updater.trust.limits import CLOCK_FLOOR_STEP, ROLES_KEPT, ROOTS_KEPT

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CHANNEL = "channels/stable/acme/amd64.json"


def seen(
    roles: Mapping[str, int] = MappingProxyType({}),
    *,
    roots: tuple[int, ...] = (1,),
    keyids: tuple[str, ...] = ("k",),
) -> Seen:
    return Seen(
        roots={version: f"{version:064x}" for version in roots},
        roles={name: RoleFloor(version=item, keyids=keyids) for name, item in roles.items()},
        timestamp_expires=NOW + timedelta(days=3),
        root_expires=NOW + timedelta(days=300),
    )


def after(what: Seen, *, now: datetime = NOW) -> Floors:
    return raised(Floors(), what, now=now)


def test_equal_and_higher_versions_are_good() -> None:
    floors = after(seen({"timestamp": 5, CHANNEL: 5}))
    check_versions(floors, seen({"timestamp": 5, CHANNEL: 5}))
    check_versions(floors, seen({"timestamp": 6, CHANNEL: 6}, roots=(1, 2)))


def test_a_lower_version_is_refused() -> None:
    with pytest.raises(TrustRollbackError, match=r"timestamp has version 4, .* accepted 5"):
        check_versions(after(seen({"timestamp": 5})), seen({"timestamp": 4}))


def test_a_lower_serial_has_a_code_of_its_own() -> None:
    with pytest.raises(SerialRollbackError) as caught:
        check_versions(after(seen({CHANNEL: 5})), seen({CHANNEL: 4}))
    assert caught.value.code == "serial-rollback"


def test_other_keys_lift_the_floor_of_their_role() -> None:
    floors = after(seen({"timestamp": 2**31 - 1}))
    check_versions(floors, seen({"timestamp": 1}, keyids=("new",), roots=(1, 2)))


def test_other_keys_under_an_older_root_lift_nothing() -> None:
    floors = after(seen({"timestamp": 5}, roots=(1, 2)))
    with pytest.raises(TrustRollbackError, match="newest root offered is version 1"):
        check_versions(floors, seen({"timestamp": 1}, keyids=("old",), roots=(1,)))


def test_the_image_of_the_same_lineage_keeps_the_floors() -> None:
    floors = after(seen({"timestamp": 5}, roots=(1, 2, 3)))
    assert of_lineage(floors, version=2, sha256=f"{2:064x}") == floors
    assert of_lineage(floors, version=4, sha256="f" * 64) == floors  # newer than any known


def test_an_image_with_another_root_of_trust_starts_anew_but_keeps_the_time() -> None:
    floors = after(seen({"timestamp": 5}, roots=(1, 2, 3)))
    assert of_lineage(floors, version=1, sha256="f" * 64) == Floors(time_seen=NOW)


class TestClock:
    """The latest of build time and last accepted refresh has certainly passed."""

    built = NOW - timedelta(days=10)

    def test_the_present_is_itself(self) -> None:
        assert check_clock(Floors(), now=NOW, image_built=self.built) == NOW

    def test_before_the_image_was_built_is_refused(self) -> None:
        early = self.built - timedelta(seconds=301)
        with pytest.raises(ClockBehindError):
            check_clock(Floors(), now=early, image_built=self.built)

    def test_before_the_last_refresh_is_refused(self) -> None:
        with pytest.raises(ClockBehindError, match="2026-11-23T12:00:00"):
            check_clock(Floors(time_seen=NOW), now=NOW - timedelta(days=1), image_built=self.built)

    def test_a_little_before_counts_as_the_floor(self) -> None:
        now = NOW - timedelta(seconds=300)
        assert check_clock(Floors(time_seen=NOW), now=now, image_built=self.built) == NOW

    def test_the_floor_is_not_written_at_every_poll(self) -> None:
        floors = after(seen())
        soon = NOW + CLOCK_FLOOR_STEP - timedelta(seconds=1)
        assert raised(floors, seen(), now=soon).time_seen == NOW
        later = NOW + CLOCK_FLOOR_STEP
        assert raised(floors, seen(), now=later).time_seen == later

    def test_the_floor_never_sinks(self) -> None:
        floors = after(seen())
        assert raised(floors, seen(), now=NOW - timedelta(minutes=4)).time_seen == NOW


def test_floors_survive_the_disk(tmp_path: Path) -> None:
    floors = after(seen({"timestamp": 5, CHANNEL: 7}, roots=(1, 2)))
    save_floors(tmp_path / "floors.json", floors)
    assert load_floors(tmp_path / "floors.json") == floors


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"roots": {"x": 1}}', b"\xff", b"[" * 9999])
def test_a_damaged_file_is_replaced_by_its_twin(tmp_path: Path, damage: bytes) -> None:
    floors = after(seen({"timestamp": 5}))
    save_floors(tmp_path / "twin.json", floors)
    (tmp_path / "floors.json").write_bytes(damage)
    assert load_floors(tmp_path / "floors.json", tmp_path / "twin.json") == floors
    assert load_floors(tmp_path / "floors.json") == Floors()


def test_a_field_of_a_newer_bascule_is_no_damage(tmp_path: Path) -> None:
    """After a roll back to the other slot an older engine reads what a newer one wrote."""
    path = tmp_path / "floors.json"
    save_floors(path, after(seen({"timestamp": 5})))
    path.write_bytes(path.read_bytes().replace(b"{", b'{"tpm_counter": 7,', 1))
    assert load_floors(path) == after(seen({"timestamp": 5}))


def test_floors_stay_small_for_ever() -> None:
    floors = Floors()
    for number in range(1, 700):
        what = seen({"timestamp": number, f"role{number}": 1}, roots=(number,))
        floors = raised(floors, what, now=NOW)
    assert len(floors.roots) == ROOTS_KEPT
    assert len(floors.roles) <= ROLES_KEPT
    assert floors.roles["timestamp"].version == floors.root_version == 699


versions = st.dictionaries(
    st.sampled_from(["timestamp", "snapshot", "targets", CHANNEL]), st.integers(1, 9), min_size=1
)


@given(history=st.lists(versions, min_size=1, max_size=8))
def test_whatever_was_accepted_no_role_ever_goes_back(history: list[dict[str, int]]) -> None:
    floors, highest = Floors(), dict[str, int]()
    for roles in history:
        what = seen(roles)
        older = [name for name, version in roles.items() if version < highest.get(name, 0)]
        if older:
            with pytest.raises((TrustRollbackError, SerialRollbackError)):
                check_versions(floors, what)
            continue
        check_versions(floors, what)
        floors = raised(floors, what, now=NOW)
        highest |= roles
