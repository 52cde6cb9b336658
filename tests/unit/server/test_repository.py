"""The TUF repository: what is signed, in which order, and what a crash leaves.

Readers are python-tuf's own client over local files; the same through HTTP is in tests/e2e.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import FetcherInterface, Updater
from typing_extensions import override

from images.release import parse_channel_document, tuf_channel_path
from server.desk import Desk
from server.durable import replace_durably
from server.errors import DeskUnwritableError, KeysMissingError, RepositoryDamagedError
from server.repository import Repository
from server.roles import POLICIES
from server.upkeep import refresh_online, renew
from tests.sim.desk import BOARD, PRODUCT, Clock, found_desk, promote, publish


class FolderFetcher(FetcherInterface):
    """Reads `folder:///…` below a folder; a missing file is HTTP's 404."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / url.removeprefix("folder:///")
        try:
            yield path.read_bytes()
        except FileNotFoundError as error:
            raise DownloadHTTPError(url, 404) from error


def reader(desk: Desk, state: Path) -> Updater:
    state.mkdir(exist_ok=True)
    return Updater(
        str(state),
        "folder:///metadata/",
        str(state),
        "folder:///targets/",
        FolderFetcher(desk.folder / "repository"),
        bootstrap=(desk.repository.metadata_folder / "1.root.json").read_bytes(),
    )


def current(desk: Desk, state: Path) -> str | None:
    """Return what a fresh or a remembering client takes from the channel."""
    client = reader(desk, state)
    client.refresh()
    target = client.get_targetinfo(tuf_channel_path("stable", PRODUCT, BOARD))
    if target is None:
        return None
    path = client.download_target(target)
    version = parse_channel_document(Path(path).read_bytes()).current
    payload = client.get_targetinfo(f"os/{PRODUCT}/{BOARD}/{version}/full.crau")
    assert payload is not None
    client.download_target(payload, str(state / "payload"))
    return version


@pytest.fixture
def now_desk(tmp_path: Path) -> Desk:
    """A desk of today: the client looks at the real clock."""
    from server.desk import now_utc

    return found_desk(tmp_path / "desk", clock=Clock(now_utc())).desk


def test_the_first_metadata_follows_the_table_of_roles(desk: Desk, clock: Clock) -> None:
    contents = desk.repository.read()
    assert contents.root.signed.consistent_snapshot
    for name, signed in contents.signed_roles().items():
        keys, threshold = contents.keys_of(name)
        policy = POLICIES[name]
        assert (len(keys), threshold) == (policy.keys, policy.threshold)
        assert signed.expires == clock.now + policy.lifetime
        assert signed.version == 1
    delegations = contents.targets.signed.delegations
    assert delegations is not None
    assert delegations.roles is not None
    assert {name: (role.paths, role.terminating) for name, role in delegations.roles.items()} == {
        "releases": (["os/*/*/*/*"], True),
        "stable": (["channels/stable/*/*"], True),
    }
    assert contents.targets.signed.targets == {}


def test_no_key_serves_two_roles(desk: Desk) -> None:
    contents = desk.repository.read()
    seen: list[str] = []
    for name in contents.signed_roles():
        seen += [key.keyid for key in contents.keys_of(name)[0]]
    assert len(seen) == len(set(seen)) == 13


def test_a_client_reads_what_was_published(now_desk: Desk, tmp_path: Path) -> None:
    publish(now_desk, "1.0.0")
    promote(now_desk, "1.0.0")
    assert current(now_desk, tmp_path / "client") == "1.0.0"
    publish(now_desk, "2.0.0")
    assert current(now_desk, tmp_path / "client") == "1.0.0"
    promote(now_desk, "2.0.0")
    assert current(now_desk, tmp_path / "client") == "2.0.0"


def test_snapshot_pins_version_length_and_hash_of_each_role(desk: Desk) -> None:
    publish(desk, "1.0.0")
    snapshot = desk.repository.read().snapshot.signed
    for name, meta in snapshot.meta.items():
        data = (desk.repository.metadata_folder / f"{meta.version}.{name}").read_bytes()
        meta.verify_length_and_hashes(data)
        assert meta.length == len(data)


class PowerCutError(BaseException):
    """No handler under test outlives it."""


class CuttingWriter:
    """Writes durably until its writes are used up; a torn draft may stay behind."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def __call__(self, path: Path, data: bytes) -> None:
        if self.left == 0:
            (path.parent / ".draft-torn").write_bytes(data[: len(data) // 2])
            raise PowerCutError
        self.left -= 1
        replace_durably(path, data)


WRITES_OF_A_PROMOTION = 4  # document, role, snapshot, timestamp


@pytest.mark.parametrize("writes", range(WRITES_OF_A_PROMOTION + 1))
def test_a_power_cut_after_any_write_of_a_promotion_leaves_a_whole_repository(
    now_desk: Desk, tmp_path: Path, writes: int
) -> None:
    publish(now_desk, "1.0.0")
    promote(now_desk, "1.0.0")
    publish(now_desk, "2.0.0")
    writer = CuttingWriter(writes)
    cut = Repository(now_desk.folder / "repository", clock=now_desk.clock, write=writer)
    broken = desk_with(now_desk, cut)
    if writes < WRITES_OF_A_PROMOTION:
        with pytest.raises(PowerCutError):
            promote(broken, "2.0.0")
        assert current(now_desk, tmp_path / "fresh") == "1.0.0"
    else:
        promote(broken, "2.0.0")
        assert writer.left == 0
    promote(now_desk, "2.0.0")
    assert current(now_desk, tmp_path / "fresh") == "2.0.0"
    assert current(now_desk, tmp_path / "other") == "2.0.0"


WRITES_OF_A_RELEASE = 3  # role, snapshot, timestamp


@pytest.mark.parametrize("writes", range(WRITES_OF_A_RELEASE))
def test_a_power_cut_after_any_write_of_a_release_is_completed_by_the_same_command(
    now_desk: Desk, tmp_path: Path, writes: int
) -> None:
    publish(now_desk, "1.0.0")
    promote(now_desk, "1.0.0")
    cut = Repository(
        now_desk.folder / "repository", clock=now_desk.clock, write=CuttingWriter(writes)
    )
    with pytest.raises(PowerCutError):
        publish(desk_with(now_desk, cut), "2.0.0")
    assert current(now_desk, tmp_path / "client") == "1.0.0"
    publish(now_desk, "2.0.0")
    promote(now_desk, "2.0.0")
    assert current(now_desk, tmp_path / "client") == "2.0.0"


def desk_with(desk: Desk, repository: Repository) -> Desk:
    from dataclasses import replace

    return replace(desk, repository=repository)


def test_a_version_that_a_crash_left_behind_is_never_written_again(now_desk: Desk) -> None:
    publish(now_desk, "1.0.0")
    cut = Repository(now_desk.folder / "repository", clock=now_desk.clock, write=CuttingWriter(2))
    with pytest.raises(PowerCutError):
        publish(desk_with(now_desk, cut), "2.0.0")  # leaves a role and a snapshot unnamed
    left = {
        file: file.read_bytes()
        for file in now_desk.repository.metadata_folder.glob("*.json")
        if file.name != "timestamp.json"
    }
    publish(now_desk, "2.0.0")
    assert all(file.read_bytes() == data for file, data in left.items())


def test_nothing_is_written_when_a_role_cannot_be_signed(desk: Desk) -> None:
    publish(desk, "1.0.0")
    before = sorted(file.name for file in desk.repository.metadata_folder.iterdir())
    for number in (1, 2):
        (desk.folder / f"keys/offline/stable-{number}.pem").unlink()
    with pytest.raises(KeysMissingError, match="role stable needs 2 signatures"):
        promote(desk, "1.0.0")
    assert sorted(file.name for file in desk.repository.metadata_folder.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.stable.json"]
)
@pytest.mark.parametrize("damage", ["missing", "torn", "bent", "foreign"])
def test_nothing_is_signed_on_top_of_damaged_metadata(desk: Desk, name: str, damage: str) -> None:
    file = desk.repository.metadata_folder / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(data[:100])
    elif damage == "bent":
        metadata = json.loads(data)
        metadata["signed"]["expires"] = "2099-01-01T00:00:00Z"
        file.write_text(json.dumps(metadata))
    else:
        file.write_bytes(Metadata(Targets()).to_bytes())
    with pytest.raises(RepositoryDamagedError):
        desk.repository.read()


def test_a_stolen_server_cannot_smuggle_a_delegation_into_the_next_signing(desk: Desk) -> None:
    file = desk.repository.metadata_folder / "1.targets.json"
    metadata = json.loads(file.read_bytes())
    metadata["signed"]["delegations"]["roles"][0]["threshold"] = 1
    metadata["signed"]["delegations"]["roles"][0]["paths"] = ["*"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(RepositoryDamagedError, match="signed by 0/2"):
        publish(desk, "1.0.0")


def test_a_read_only_repository_is_named_and_unchanged(desk: Desk) -> None:
    def refuse(path: Path, data: bytes) -> None:
        del data
        raise DeskUnwritableError(f"{path} cannot be written: Read-only file system")

    repository = Repository(desk.folder / "repository", clock=desk.clock, write=refuse)
    with pytest.raises(DeskUnwritableError, match="Read-only"):
        publish(desk_with(desk, repository), "1.0.0")
    assert desk.repository.read().timestamp.signed.version == 1


def test_the_timestamp_is_renewed_every_six_hours_and_the_snapshot_daily(
    desk: Desk, clock: Clock
) -> None:
    assert refresh_online(desk) == []
    clock.pass_(hours=6, seconds=1)
    assert refresh_online(desk) == ["timestamp"]
    assert refresh_online(desk) == []
    clock.pass_(hours=18)
    assert refresh_online(desk) == ["snapshot", "timestamp"]
    contents = desk.repository.read()
    assert contents.timestamp.signed.version == 3
    assert contents.snapshot.signed.version == 2
    assert contents.timestamp.signed.expires == clock.now + timedelta(days=3)


def test_renewing_needs_no_offline_key(desk: Desk, clock: Clock) -> None:
    for file in (desk.folder / "keys/offline").iterdir():
        file.unlink()
    clock.pass_(days=1, seconds=1)
    assert refresh_online(desk) == ["snapshot", "timestamp"]


def test_a_missing_online_key_is_named(desk: Desk) -> None:
    (desk.folder / "keys/online/timestamp-1.pem").unlink()
    with pytest.raises(KeysMissingError, match="role timestamp"):
        refresh_online(desk, force=True)


@pytest.mark.parametrize("role", ["root", "targets", "releases", "stable"])
def test_an_offline_role_is_renewed_as_it_was(desk: Desk, clock: Clock, role: str) -> None:
    before = copy.deepcopy(desk.repository.read().signed_roles()[role])
    clock.pass_(days=10)
    assert renew(desk, [role], keys=desk.offline()) == [role]
    after = desk.repository.read().signed_roles()[role]
    assert after.version == before.version + 1
    assert after.expires == before.expires + timedelta(days=10)
    after.version, after.expires = before.version, before.expires
    assert after == before


def test_what_ends_soon_is_renewed_when_asked_for(desk: Desk, clock: Clock) -> None:
    clock.pass_(days=61)
    assert renew(desk, [], keys=desk.offline()) == ["stable"]
    assert renew(desk, [], keys=desk.offline()) == []


def test_old_roots_are_never_removed_and_old_metadata_stays_a_week(
    desk: Desk, clock: Clock
) -> None:
    renew(desk, ["root", "stable"], keys=desk.offline())
    folder = desk.repository.metadata_folder
    old = {"1.stable.json", "1.snapshot.json"}
    for file in folder.iterdir():
        os.utime(file, (clock.now.timestamp(), clock.now.timestamp()))
    clock.pass_(days=6)
    assert desk.repository.prune() == 0
    clock.pass_(days=2)
    assert desk.repository.prune() == len(old)
    names = {file.name for file in folder.iterdir()}
    assert {"1.root.json", "2.root.json", "2.stable.json", "timestamp.json"} <= names
    assert not old & names
    desk.repository.read()


def test_metadata_larger_than_a_node_accepts_is_refused(desk: Desk) -> None:
    file = desk.repository.metadata_folder / "1.releases.json"
    file.write_bytes(file.read_bytes() + b" " * 4 * 1024 * 1024)
    with pytest.raises(RepositoryDamagedError, match="larger than"):
        desk.repository.read()


def test_the_root_to_ship_verifies_itself(desk: Desk) -> None:
    root = Metadata[Root].from_file(str(desk.repository.metadata_folder / "1.root.json"))
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
