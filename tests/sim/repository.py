"""A TUF repository in memory, with the roles of the real one, that signs whenever a test asks.

Roles, thresholds, lifetimes and delegations are those of `reference/trust.md` 3.1. A test bends it
(edit a role, sign with other keys, replay a recording) and runs the real client against it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

import requests
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.fetcher import FetcherInterface
from typing_extensions import override

from images.release import (
    encode_channel_document,
    encode_payload_facts,
    parse_channel_document,
    parse_payload_facts,
    tuf_channel_path,
    tuf_payload_path,
)
from updater.trust.fetcher import BoundedFetcher
from updater.trust.limits import ONLINE_HORIZON
from updater.trust.refresh import TrustClient
from updater.trust.view import Identity, TrustedView

PRODUCT: Final = "acme-os"
BOARD: Final = "amd64-usr"
BASE_URL: Final = "https://repository.example/"
LIFETIMES: Final = {
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    "releases": timedelta(days=180),
    "stable": timedelta(days=90),
    "beta": timedelta(days=60),
    "alpha": timedelta(days=30),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=3),
}
KEYS: Final = {  # role: (keys, how many must sign)
    "root": (3, 2),
    "targets": (3, 2),
    "releases": (2, 1),
    "stable": (3, 2),
    "beta": (2, 1),
    "alpha": (1, 1),
    "snapshot": (1, 1),
    "timestamp": (1, 1),
}
PATHS: Final = {
    "releases": "os/*/*/*/*",
    "stable": "channels/stable/*/*",
    "beta": "channels/beta/*/*",
    "alpha": "channels/alpha/*/*",
}
ONLINE: Final = ("snapshot", "timestamp")


class JumpingClock:
    """A clock that stands still until a test moves it; it starts at the real time."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, *, days: float = 0, seconds: float = 0) -> None:
        self.now += timedelta(days=days, seconds=seconds)


class TufRepository:
    """Keys, roles and published files of one repository.

    Attributes:
        files: what a web server would serve, by path: `metadata/...` and `targets/...`.
        signers: the keys of each role.
        roles: the metadata that the next `publish` signs: root, targets, releases, stable, ...
    """

    def __init__(
        self, clock: Callable[[], datetime], channels: Sequence[str] = ("stable",)
    ) -> None:
        self._clock = clock
        self.files: dict[str, bytes] = {}
        self.delegated = ("releases", *channels)
        self.signers = {
            role: _new_keys(KEYS[role][0])
            for role in ("root", "targets", "snapshot", "timestamp", *self.delegated)
        }
        self.root = Root(consistent_snapshot=True)
        self.targets = Targets()
        self.targets.delegations = Delegations({}, {})
        self.roles: dict[str, Targets] = {name: Targets() for name in self.delegated}
        self.snapshot = Snapshot(meta={})
        self.timestamp = Timestamp()
        for role in ("root", "targets", "snapshot", "timestamp"):
            self._name_keys(role)
        for role in self.delegated:
            self._name_keys(role)
        self.sign_root()
        self.bootstrap = self.files["metadata/1.root.json"]
        self.publish("targets", *self.delegated)

    def publish(self, *changed: str) -> None:
        """Sign new versions of the `changed` roles, then of snapshot and timestamp."""
        for name in changed:
            self.write(name, self._targets_of(name))
        self.write("snapshot", self.snapshot)
        self.sign_timestamp()

    def sign_timestamp(self, *, lifetime: timedelta = LIFETIMES["timestamp"]) -> None:
        """Sign a new version of the timestamp, as the server does every six hours."""
        self.write("timestamp", self.timestamp, lifetime=lifetime)

    def sign_root(self, signers: Sequence[Signer] | None = None) -> None:
        """Sign a new version of the root, by default with all of its keys."""
        self.write("root", self.root, signers=signers)

    def write(
        self,
        role: str,
        signed: Signed,
        *,
        signers: Sequence[Signer] | None = None,
        lifetime: timedelta | None = None,
    ) -> bytes:
        """Give `signed` its next version and expiry, sign it and store it under its name."""
        path = self.path_of(role, signed.version)
        signed.version += path in self.files
        signed.expires = self._clock() + (lifetime or LIFETIMES[role])
        return self.store(role, signed, signers=signers)

    def store(self, role: str, signed: Signed, *, signers: Sequence[Signer] | None = None) -> bytes:
        """Sign `signed` just as it is, store it and let the role above name it."""
        metadata = Metadata(cast("Root", signed))  # of whatever role: the type is invariant
        for signer in self.signers[role] if signers is None else signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        self.files[self.path_of(role, signed.version)] = data
        described = MetaFile.from_data(signed.version, data, ["sha256"])
        if role == "snapshot":
            self.timestamp.snapshot_meta = described
        elif role not in {"root", "timestamp"}:
            self.snapshot.meta[f"{role}.json"] = described
        return data

    def path_of(self, role: str, version: int) -> str:
        """Return where a role's file lies."""
        return f"metadata/{'' if role == 'timestamp' else f'{version}.'}{role}.json"

    def rotate(self, *roles: str) -> None:
        """Replace all keys of `roles` and publish the root or `targets` that says so."""
        for role in roles:
            old_root_keys = self.signers["root"]
            self.replace_keys(role, _new_keys(KEYS[role][0]))
            if role == "root":
                self.sign_root([*old_root_keys[:2], *self.signers["root"]])
            elif role in {"targets", *ONLINE}:
                self.sign_root()
        if set(roles) & set(self.delegated):
            self.publish("targets", *(role for role in roles if role in self.delegated))

    def replace_keys(self, role: str, signers: list[Signer]) -> None:
        """Name other keys for `role`; nothing is signed yet."""
        delegator = self.targets if role in self.delegated else self.root
        for old in list(delegator.get_delegated_role(role).keyids):
            delegator.revoke_key(old, role)
        self.signers[role] = signers
        for signer in signers:
            delegator.add_key(signer.public_key, role)

    def add_release(
        self,
        version: str,
        *,
        product: str = PRODUCT,
        board: str = BOARD,
        kind: str = "full",
        path: str | None = None,
        content: bytes | None = None,
        custom: object = None,
        **facts: object,
    ) -> str:
        """List a payload in `releases` (not published yet) and return its TUF path."""
        path = path or tuf_payload_path(product, board, version, kind)
        data = content or f"payload {path}".encode()
        target = TargetFile.from_data(path, data, ["sha256"])
        target.unrecognized_fields["custom"] = custom or make_facts(
            version=version, product=product, board=board, **facts
        )
        self.roles["releases"].targets[path] = target
        return path

    def promote(
        self,
        current: str,
        *,
        channel: str = "stable",
        path: str | None = None,
        content: bytes | None = None,
        **fields: object,
    ) -> None:
        """Sign and publish a channel document; unnamed fields are plausible."""
        data = content or make_channel(
            **{"channel": channel, "serial": self.roles[channel].version, "current": current}
            | fields
        )
        path = path or tuf_channel_path(channel, PRODUCT, BOARD)
        target = TargetFile.from_data(path, data, ["sha256"])
        self.roles[channel].targets = {path: target}
        self.files[f"targets/{target.get_prefixed_paths()[0]}"] = data
        self.publish("releases", channel)

    def release(self, version: str, **facts: object) -> str:
        """Add a release and make it the current one of `stable`."""
        path = self.add_release(version, **facts)  # type: ignore[arg-type]  # facts are free
        self.promote(version)
        return path

    def record(self) -> dict[str, bytes]:
        """Return what is served now, as an attacker would keep it."""
        return dict(self.files)

    def replay(self, recording: dict[str, bytes]) -> None:
        """Serve what was served once, as an attacker in the network would."""
        self.files = dict(recording)

    def save(self, folder: Path) -> None:
        """Write all files below `folder`: a mirror on a disk."""
        for path, data in self.files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def _targets_of(self, name: str) -> Targets:
        return self.targets if name == "targets" else self.roles[name]

    def _name_keys(self, role: str) -> None:
        threshold = KEYS[role][1]
        if role in self.delegated:
            delegations = self.targets.delegations
            assert delegations is not None
            assert delegations.roles is not None
            delegations.roles[role] = DelegatedRole(
                role, [], threshold, terminating=True, paths=[PATHS[role]]
            )
            for signer in self.signers[role]:
                self.targets.add_key(signer.public_key, role)
            return
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = threshold


class MemoryFetcher(BoundedFetcher):
    """Brings the files of a repository without a network.

    Attributes:
        asked: the paths that were fetched, in order.
        statuses: HTTP statuses to answer with instead, by path.
    """

    def __init__(self, repository: TufRepository) -> None:
        self._repository = repository
        self.asked: list[str] = []
        self.statuses: dict[str, int] = {}

    @override
    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(BASE_URL)
        self.asked.append(path)
        data = self._repository.files.get(path)
        status = self.statuses.get(path, 404 if data is None else 200)
        if data is None or status != 200:
            raise DownloadHTTPError(f"{url}: HTTP {status}", status)
        return iter([data])


@dataclass
class TrustingNode:
    """A node as far as trust goes; each `refresh` is one of a fresh process.

    Attributes:
        version: of the running image, for `identity`.
    """

    folder: Path
    repository: TufRepository
    clock: JumpingClock
    bootstrap: bytes = b""
    built: datetime | None = None
    version: str = "1.0.0"
    fetcher: MemoryFetcher = field(init=False)

    def __post_init__(self) -> None:
        self.fetcher = MemoryFetcher(self.repository)
        self.bootstrap = self.bootstrap or self.repository.bootstrap
        self.built = self.built or self.clock() - timedelta(days=30)

    def client(
        self, *, url: str | None = None, horizon: timedelta | None = ONLINE_HORIZON
    ) -> TrustClient:
        """Return a new client: over memory, or as the URL says."""
        assert self.built is not None
        return TrustClient(
            folder=self.folder,
            bootstrap_root=self.bootstrap,
            metadata_url=url or f"{BASE_URL}metadata/",
            session_factory=requests.Session,
            clock=self.clock,
            clock_floor=self.built,
            horizon=horizon,
            open_fetcher=None if url else self._in_memory,
        )

    def refresh(self, channel: str = "stable") -> TrustedView:
        return self.client().refresh(channel, PRODUCT, BOARD)

    @property
    def identity(self) -> Identity:
        return Identity(
            product=PRODUCT, board=BOARD, channel="stable", version=self.version, engine="1.0.0"
        )

    def _in_memory(self) -> AbstractContextManager[FetcherInterface]:
        return contextlib.nullcontext(self.fetcher)


def new_node(tmp_path: Path, *channels: str) -> TrustingNode:
    """Return a node that runs 1.0.0, and a repository whose `stable` is at 2.0.0."""
    clock = JumpingClock()
    repository = TufRepository(clock, channels or ("stable",))
    repository.release("2.0.0")
    return TrustingNode(folder=tmp_path / "trust", repository=repository, clock=clock)


def make_facts(**changes: object) -> dict[str, object]:
    """Return the signed facts of a payload; unnamed ones are plausible."""
    version = str(changes.get("version", "2.0.0"))
    facts: dict[str, object] = {
        "schema": "bascule.payload/1",
        "kind": "full",
        "product": PRODUCT,
        "board": BOARD,
        "version": version,
        "rollback_index": 1,
        "min_engine": "0.1.0",
        "metadata_size": 1234,
        "metadata_sha256": "a" * 64,
        "signatures_sha256": "b" * 64,
        "block_size": 4096,
        "created": "2026-11-20T10:00:00Z",
        "partitions": [
            {"name": "usr", "size": 4096, "sha256": hashlib.sha256(version.encode()).hexdigest()}
        ],
    }
    return encode_payload_facts(parse_payload_facts(facts | changes))


def make_channel(**changes: object) -> bytes:
    """Return a channel document; unnamed fields are plausible."""
    current = str(changes.get("current", "2.0.0"))
    product = str(changes.get("product", PRODUCT))
    board = str(changes.get("board", BOARD))
    document: dict[str, object] = {
        "schema": "bascule.channel/1",
        "channel": "stable",
        "product": product,
        "board": board,
        "serial": 1,
        "current": current,
        "allowed": {current: [tuf_payload_path(product, board, current, "full")]},
    }
    return encode_channel_document(parse_channel_document(document | changes))


def _new_keys(count: int) -> list[Signer]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]
