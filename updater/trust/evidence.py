"""What python-tuf has just verified, read back from its files and judged by our own clock.

python-tuf takes the time from the system when it is built and accepts any expiry. Here the time is
an argument, and a timestamp that ends too late is refused. No file is fetched or written here, and
no signature is checked: the caller hands over a folder in which a refresh has succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from tuf.api.metadata import Metadata, Role, Root, Signed, Snapshot, Targets, Timestamp

from updater.trust.errors import HorizonExceededError, TrustExpiredError
from updater.trust.floors import RoleFloor, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The metadata that vouches for one channel document and its payloads.

    Attributes:
        root: the newest root.
        roots: SHA-256 of the signed part of each root from the image's to the newest, by version.
        timestamp: as signed.
        snapshot: as signed.
        targets: the top-level role.
        delegated: the roles that were asked for the paths, by name.
    """

    root: Root
    roots: Mapping[int, str]
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    delegated: Mapping[str, Targets]

    def check_expiry(self, now: datetime) -> None:
        """Refuse what has ended.

        Raises:
            TrustExpiredError: naming role, end and `now`.
        """
        for name, signed in self._all():
            if signed.is_expired(now):
                raise TrustExpiredError(
                    f"{name} version {signed.version} ended {signed.expires.isoformat()},"
                    f" now is {now.isoformat()}"
                )

    def check_horizon(self, now: datetime, horizon: timedelta) -> None:
        """Refuse a timestamp that ends more than `horizon` after `now`.

        Raises:
            HorizonExceededError: it was not made for an online node.
        """
        if self.timestamp.expires > now + horizon:
            raise HorizonExceededError(
                f"the timestamp ends {self.timestamp.expires.isoformat()}, more than"
                f" {horizon.days} days after {now.isoformat()}"
            )

    def seen(self, channel_path: str, serial: int) -> Seen:
        """Return what the floors have to know of this refresh."""
        roles = {name: _floor(signed.version, self._role(name)) for name, signed in self._all()}
        del roles[Root.type]  # roots have a memory of their own
        for name in self._asked(channel_path):
            roles[channel_path] = _floor(serial, self._role(name))
        return Seen(
            roots=self.roots,
            roles=roles,
            timestamp_expires=self.timestamp.expires,
            root_expires=self.root.expires,
        )

    def _all(self) -> Iterable[tuple[str, Signed]]:
        for signed in (self.root, self.timestamp, self.snapshot, self.targets):
            yield signed.type, signed
        yield from self.delegated.items()

    def _role(self, name: str) -> Role:
        delegator = self.targets if name in self.delegated else self.root
        return delegator.get_delegated_role(name)

    def _asked(self, path: str) -> Iterable[str]:
        return (name for name in asked_roles(self.targets, path) if name in self.delegated)


def read_evidence(folder: Path, *, paths: Iterable[str], first_root: int) -> Evidence:
    """Read back what vouches for `paths` in the folder of a refresh that has succeeded.

    Delegations below the second level are python-tuf's alone: the layout has none (trust.md 3.1).

    Args:
        folder: python-tuf's metadata folder.
        paths: TUF paths that were looked up.
        first_root: version of the root that came with the image.

    Raises:
        OSError: a file cannot be read.
    """
    targets = Metadata[Targets].from_bytes(_bytes(folder, Targets.type)).signed
    names = {name for path in paths for name in asked_roles(targets, path)}
    names = {name for name in names if _file(folder, name).exists()}  # `targets` may answer itself
    return Evidence(
        root=Metadata[Root].from_bytes(_bytes(folder, Root.type)).signed,
        roots=read_roots(folder, first=first_root),
        timestamp=Metadata[Timestamp].from_bytes(_bytes(folder, Timestamp.type)).signed,
        snapshot=Metadata[Snapshot].from_bytes(_bytes(folder, Snapshot.type)).signed,
        targets=targets,
        delegated={
            name: Metadata[Targets].from_bytes(_bytes(folder, name)).signed
            for name in sorted(names)
        },
    )


def read_roots(folder: Path, *, first: int) -> dict[int, str]:
    """Return the digests of the roots from version `first` to the one python-tuf trusts.

    Raises:
        OSError: a root cannot be read.
    """
    newest = Metadata[Root].from_bytes(_bytes(folder, Root.type)).signed.version
    history = folder / "root_history"
    return {
        version: root_digest((history / f"{version}.root.json").read_bytes())
        for version in range(first, newest + 1)
    }


def root_digest(data: bytes) -> str:
    """Return the SHA-256 of the signed part of a root: more signatures are the same root."""
    return sha256(Metadata[Root].from_bytes(data).signed_bytes).hexdigest()


def asked_roles(targets: Targets, path: str) -> list[str]:
    """Return the delegated roles that python-tuf asks for `path`, in its order."""
    names: list[str] = []
    for name, terminating in (
        targets.delegations.get_roles_for_target(path) if targets.delegations else ()
    ):
        names.append(name)
        if terminating:
            break
    return names


def _file(folder: Path, role: str) -> Path:
    return folder / f"{quote(role, '')}.json"


def _bytes(folder: Path, role: str) -> bytes:
    return _file(folder, role).read_bytes()


def _floor(version: int, role: Role) -> RoleFloor:
    return RoleFloor(version=version, keyids=tuple(sorted(role.keyids)))
