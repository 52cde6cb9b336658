"""The TUF repository as static files: read and checked, edited as values, published in order.

    metadata/1.root.json … <N>.releases.json … timestamp.json
    targets/channels/<channel>/<product>/<sha256>.<board>.json
    targets/os/<product>/<board>/<version>/<sha256>.full.crau

Rules, for any reader at any instant and after any crash (trust.md 3.2):

1. What a signature names is on disk before the signature is: target files, role metadata,
   snapshot, and the timestamp last. Each file is flushed before the next begins.
2. No versioned file is ever written twice: a new version is above all on disk, also above those
   that a crash left unreferenced.
3. Nothing is signed on top of metadata that does not verify up to the root.
4. Root metadata is never removed; other old metadata stays for a week.

Only `tuf.api.metadata` is used: the repository side of python-tuf is marked unstable.
"""

from __future__ import annotations

import copy
import hashlib
import re
from typing import TYPE_CHECKING, Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from server.contents import Contents, TargetContent, delegated_roles
from server.durable import make_folder, replace_durably
from server.errors import RepositoryDamagedError
from server.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner

    from server.keys import KeyFolder

METADATA_FILE_MAX_BYTES: Final = 4 * 1024 * 1024  # what a node accepts of one role
OLD_METADATA_KEPT_S: Final = 7 * 86400  # a reader that began before may still come for it

_VERSIONED: Final = re.compile(r"([1-9][0-9]{0,9})\.([a-z][a-z0-9-]{0,31})\.json", re.ASCII)

SignedT = TypeVar("SignedT", Root, Targets, Snapshot, Timestamp)


class Repository:
    """The repository of one desk.

    Attributes:
        metadata_folder: signed files, served as they are.
        targets_folder: what they name, served as it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], datetime],
        write: Callable[[Path, bytes], None] = replace_durably,
    ) -> None:
        """Keep the paths; nothing is read or made yet.

        Args:
            folder: holds `metadata/` and `targets/`.
            clock: the present, with a zone.
            write: durable replacement of one file; tests let it fail.
        """
        self.metadata_folder = folder / "metadata"
        self.targets_folder = folder / "targets"
        self._clock = clock
        self._write = write

    def create(self, root: Root, targets: Targets, *, keys: KeyFolder, online: KeyFolder) -> None:
        """Publish the first version of every role, from nothing.

        Raises:
            KeysMissingError: a role cannot be signed.
            DeskUnwritableError: a file cannot be written.
        """
        make_folder(self.metadata_folder)
        make_folder(self.targets_folder)
        empty = Contents(
            root=Metadata(root),
            targets=Metadata(targets),
            delegated={},
            snapshot=Metadata(Snapshot(meta={})),
            timestamp=Metadata(Timestamp()),
        )
        names = delegated_roles(targets)
        self._write_role(empty, ROOT, root, keys)
        edits: dict[str, Targets] = {TARGETS: targets, **{name: Targets() for name in names}}
        self.publish(empty, edits, keys=keys, online=online)

    def read(self) -> Contents:
        """Return what is published, verified from the root down; expiry is not looked at.

        Raises:
            RepositoryDamagedError: a file is missing, damaged or not signed as it must be.
        """
        try:
            return self._read()
        except (RepositoryError, DeserializationError, ValueError, KeyError) as error:
            raise RepositoryDamagedError(f"{self.metadata_folder}: {error}") from error
        except OSError as error:
            raise RepositoryDamagedError(
                f"{error.filename} cannot be read: {error.strerror}"
            ) from error

    def changed_ns(self) -> int:
        """Return a number that changes whenever something is published.

        Raises:
            RepositoryDamagedError: the folder is away.
        """
        try:
            return self.metadata_folder.stat().st_mtime_ns
        except OSError as error:
            raise RepositoryDamagedError(
                f"{self.metadata_folder} cannot be read: {error.strerror}"
            ) from error

    def publish(
        self,
        contents: Contents,
        edits: Mapping[str, Targets],
        *,
        keys: KeyFolder | None,
        online: KeyFolder,
        files: Sequence[TargetContent] = (),
    ) -> None:
        """Sign `edits` and make them what readers see, in the order of rule 1.

        Args:
            contents: what is published now; the edits grew from it.
            edits: the new `targets` or delegated roles by name; version and expiry are set here.
            keys: where the keys of the edited roles are; None when there is nothing to edit.
            online: where the keys of snapshot and timestamp are.
            files: small targets that the edits name.

        Raises:
            KeysMissingError: a role cannot be signed; nothing was written then.
            DeskUnwritableError: a file cannot be written; readers see the old state.
        """
        signers = {role: self._signers(contents, role, keys or online, edits) for role in edits}
        for role in (SNAPSHOT, TIMESTAMP):
            signers[role] = self._signers(contents, role, online, edits)
        for file in files:
            self._write_target(file)
        meta = dict(contents.snapshot.signed.meta)
        for role, signed in edits.items():
            meta[f"{role}.json"] = self._write_signed(role, signed, signers[role])
        snapshot_meta = self._write_signed(SNAPSHOT, Snapshot(meta=meta), signers[SNAPSHOT])
        self._write_timestamp(snapshot_meta, signers[TIMESTAMP])

    def refresh_timestamp(self, contents: Contents, *, online: KeyFolder) -> None:
        """Sign the timestamp again, for the same snapshot.

        Raises:
            KeysMissingError: its key is not here.
            DeskUnwritableError: the file cannot be written.
        """
        signers = self._signers(contents, TIMESTAMP, online, {})
        self._write_timestamp(contents.timestamp.signed.snapshot_meta, signers)

    def renew_root(self, contents: Contents, *, keys: KeyFolder) -> None:
        """Sign the same root again with a later expiry, as the next version.

        Raises:
            KeysMissingError: too few root keys are here.
            DeskUnwritableError: the file cannot be written.
        """
        root = copy.deepcopy(contents.root.signed)
        self._write_role(contents, ROOT, root, keys)

    def prune(self) -> int:
        """Remove old metadata that nothing names any more and return how many files went.

        Raises:
            RepositoryDamagedError: what is published cannot be read, so nothing is removed.
            OSError: a file cannot be removed.
        """
        named = {
            f"{signed.version}.{role}.json" for role, signed in self.read().signed_roles().items()
        }
        oldest = self._clock().timestamp() - OLD_METADATA_KEPT_S
        removed = 0
        for file in self.metadata_folder.iterdir():
            match = _VERSIONED.fullmatch(file.name)
            if match is None or match.group(2) == ROOT or file.name in named:
                continue
            if file.stat().st_mtime < oldest:
                file.unlink()
                removed += 1
        return removed

    def target_data(self, target: TargetFile) -> bytes:
        """Return the bytes of a small target that is published here.

        Raises:
            RepositoryDamagedError: the file is missing or has other bytes.
        """
        path = self._target_path(target)
        try:
            data = path.read_bytes()
            target.verify_length_and_hashes(data)
        except OSError as error:
            raise RepositoryDamagedError(f"{path} cannot be read: {error.strerror}") from error
        except RepositoryError as error:
            raise RepositoryDamagedError(f"{path}: {error}") from error
        return data

    def target_path(self, path: str, sha256: str) -> Path:
        """Return where the file of a TUF path lies, its name prefixed with its hash."""
        folder, _, name = path.rpartition("/")
        return self.targets_folder / folder / f"{sha256}.{name}"

    def _target_path(self, target: TargetFile) -> Path:
        return self.target_path(target.path, target.hashes["sha256"])

    def _read(self) -> Contents:
        root = self._load(f"{self._highest_on_disk(ROOT)}.root.json", Root)
        root.signed.verify_delegate(ROOT, root.signed_bytes, root.signatures)
        timestamp = self._verified(root.signed, TIMESTAMP, "timestamp.json", Timestamp)
        version = timestamp.signed.snapshot_meta.version
        snapshot = self._verified(root.signed, SNAPSHOT, f"{version}.snapshot.json", Snapshot)
        meta = {name: entry.version for name, entry in snapshot.signed.meta.items()}
        version = meta["targets.json"]
        targets = self._verified(root.signed, TARGETS, f"{version}.targets.json", Targets)
        delegated = {
            name: self._verified(
                targets.signed, name, f"{meta[f'{name}.json']}.{name}.json", Targets
            )
            for name in delegated_roles(targets.signed)
        }
        return Contents(
            root=root, targets=targets, delegated=delegated, snapshot=snapshot, timestamp=timestamp
        )

    def _verified(
        self, delegator: Root | Targets, role: str, name: str, kind: type[SignedT]
    ) -> Metadata[SignedT]:
        metadata = self._load(name, kind)
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        return metadata

    def _load(self, name: str, kind: type[SignedT]) -> Metadata[SignedT]:
        with (self.metadata_folder / name).open("rb") as file:
            data = file.read(METADATA_FILE_MAX_BYTES + 1)
        if len(data) > METADATA_FILE_MAX_BYTES:
            raise ValueError(f"{name} is larger than {METADATA_FILE_MAX_BYTES} bytes")
        metadata = Metadata[SignedT].from_bytes(data)
        if metadata.signed.type != kind.type:
            raise ValueError(f"{name} holds metadata of type {metadata.signed.type}")
        return metadata

    def _highest_on_disk(self, role: str) -> int:
        matches = map(_VERSIONED.fullmatch, (file.name for file in self.metadata_folder.iterdir()))
        return max((int(match[1]) for match in matches if match and match[2] == role), default=0)

    def _signers(
        self,
        contents: Contents,
        role: str,
        keys: KeyFolder,
        edits: Mapping[str, Targets],
    ) -> Sequence[CryptoSigner]:
        """Delegations of edited targets count already, for the roles they bring."""
        edited = edits.get(TARGETS)
        if edited is not None and role not in contents.root.signed.roles:
            entry = edited.get_delegated_role(role)
            publics = [edited.get_key(keyid) for keyid in entry.keyids]
            return keys.signers(role, publics, entry.threshold)
        publics, threshold = contents.keys_of(role)
        return keys.signers(role, publics, threshold)

    def _write_role(self, contents: Contents, role: str, signed: Root, keys: KeyFolder) -> None:
        self._write_signed(role, signed, self._signers(contents, role, keys, {}))

    def _write_signed(
        self, role: str, signed: SignedT, signers: Sequence[CryptoSigner]
    ) -> MetaFile:
        """Sign as the version above all on disk; return what the role above says about it."""
        signed.version = self._highest_on_disk(role) + 1
        data = self._sign(role, signed, signers)
        self._write(self.metadata_folder / f"{signed.version}.{role}.json", data)
        return MetaFile(
            version=signed.version,
            length=len(data),
            hashes={"sha256": hashlib.sha256(data).hexdigest()},
        )

    def _write_timestamp(self, snapshot_meta: MetaFile, signers: Sequence[CryptoSigner]) -> None:
        path = self.metadata_folder / "timestamp.json"
        version = self._load(path.name, Timestamp).signed.version if path.exists() else 0
        timestamp = Timestamp(version=version + 1, snapshot_meta=snapshot_meta)
        self._write(path, self._sign(TIMESTAMP, timestamp, signers))

    def _sign(self, role: str, signed: SignedT, signers: Sequence[CryptoSigner]) -> bytes:
        now = self._clock().replace(microsecond=0)
        signed.expires = now + policy_of(role).lifetime
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _write_target(self, file: TargetContent) -> None:
        path = self._target_path(file.target_file())
        make_folder(path.parent)
        self._write(path, file.data)
