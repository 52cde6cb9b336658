"""The signed metadata as values: what is published, and what is to be published with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from server.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The published metadata, verified from the root down.

    Attributes:
        root: who may sign what.
        targets: the delegations; lists no files itself.
        delegated: `releases` and the channels by role name.
        snapshot: which version of each is meant.
        timestamp: which snapshot is meant.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    delegated: Mapping[str, Metadata[Targets]]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def keys_of(self, role: str) -> tuple[list[Key], int]:
        """Return the public keys of a role and how many of them must sign."""
        delegator: Root | Targets = self.root.signed
        if role not in self.root.signed.roles:
            delegator = self.targets.signed
        entry = delegator.get_delegated_role(role)
        return [delegator.get_key(keyid) for keyid in entry.keyids], entry.threshold

    def signed_roles(self) -> dict[str, Root | Targets | Snapshot | Timestamp]:
        """Return the signed part of every role by its name."""
        roles: dict[str, Root | Targets | Snapshot | Timestamp] = {
            ROOT: self.root.signed,
            TARGETS: self.targets.signed,
            SNAPSHOT: self.snapshot.signed,
            TIMESTAMP: self.timestamp.signed,
        }
        roles.update({name: metadata.signed for name, metadata in self.delegated.items()})
        return roles


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetContent:
    """A small target file to be published with its signature.

    Attributes:
        path: its TUF path; the file's name is prefixed with its hash.
        data: all of it.
    """

    path: str
    data: bytes

    def target_file(self) -> TargetFile:
        """Return what the signing role says about it."""
        return TargetFile.from_data(self.path, self.data, ["sha256"])


def delegated_roles(targets: Targets) -> list[str]:
    """Return the names of the roles that `targets` delegates to, in its order."""
    return list(targets.delegations.roles or {}) if targets.delegations else []
