"""Which etcd this node trusts with its permits. Knows no HTTP.

An etcd that was wiped, restored from an old copy or replaced would call every place free while
nodes are down. Its cluster id and the highest revision seen are therefore remembered; another
id or a revision that went back means stop, not "free". (A member that is wiped and started
with the same settings gets the same cluster id: only the revision tells.)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec
from typing_extensions import override

from updater.durable import replace_durably
from updater.errors import StateError
from updater.permit.errors import PermitClusterChangedError

log = logging.getLogger(__name__)

MARK_MAX_BYTES: Final = 4096  # a page: the file has some 90 bytes
_SCHEMA: Final = "bascule.permit-cluster/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMark:
    """What an etcd was recognised by.

    Attributes:
        cluster_id: 16 hex digits, as etcdctl prints it.
        revision: the highest that was seen.
    """

    cluster_id: str
    revision: int


class ClusterMemory(Protocol):
    """Remembers one mark across reboots; `where` tells people what to remove to forget it."""

    where: str

    def get(self) -> ClusterMark | None:
        """Return the mark, None when there is none yet."""

    def set(self, mark: ClusterMark) -> None:
        """Remember the mark; durable on return. Raises `StateError` when it cannot."""


class _MarkFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's JSON."""

    schema: str
    cluster_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    revision: Annotated[int, msgspec.Meta(ge=0)]


class FileClusterMemory(ClusterMemory):
    """A mark in a small file of the node's state folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    @override
    def get(self) -> ClusterMark | None:
        """Read the file.

        Raises:
            StateError: the file cannot be read.
            PermitClusterChangedError: the file is damaged, so that nothing can be compared.
        """
        try:
            with self._path.open("rb") as file:
                data = file.read(MARK_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self._path} cannot be read: {error.strerror}") from error
        try:
            fields = msgspec.json.decode(data, type=_MarkFields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PermitClusterChangedError(
                f"{self._path} is damaged, so whether etcd is still the same is unknown: {error}"
            ) from error
        return ClusterMark(cluster_id=fields.cluster_id, revision=fields.revision)

    @override
    def set(self, mark: ClusterMark) -> None:
        """Replace the file durably; raises `StateError` when that fails."""
        fields = _MarkFields(schema=_SCHEMA, cluster_id=mark.cluster_id, revision=mark.revision)
        try:
            replace_durably(self._path, msgspec.json.encode(fields) + b"\n")
        except OSError as error:
            raise StateError(f"{self._path} cannot be written: {error.strerror}") from error


class ClusterGuard:
    """Compares every answer of etcd with what is remembered.

    Reading never writes the memory; `remember` is called after each write to etcd.
    """

    def __init__(self, memory: ClusterMemory) -> None:
        self._memory = memory
        self._stored = memory.get()
        self._seen = self._stored

    def check(self, cluster_id: int, *, revision: int | None) -> None:
        """Check one answer.

        Args:
            cluster_id: from its header.
            revision: from its header when the answer was linearizable, else None.

        Raises:
            PermitClusterChangedError: another cluster, or one whose revision went back.
        """
        found = ClusterMark(cluster_id=f"{cluster_id:016x}", revision=revision or 0)
        problem = self._problem(found, linearizable=revision is not None)
        if problem is not None and self._was_forgotten():
            problem = self._problem(found, linearizable=revision is not None)
        if problem is not None:
            self._seen = self._stored  # what was never made durable binds nobody
            raise PermitClusterChangedError(f"{problem} ({self._memory.where})")
        floor = self._seen.revision if self._seen else 0
        self._seen = replace(found, revision=max(found.revision, floor))

    def _problem(self, found: ClusterMark, *, linearizable: bool) -> str | None:
        seen = self._seen
        if seen is None:
            return None
        if found.cluster_id != seen.cluster_id:
            return f"etcd has cluster id {found.cluster_id}, expected {seen.cluster_id}"
        if linearizable and found.revision < seen.revision:
            return (
                f"etcd is at revision {found.revision} but was at {seen.revision} before: its "
                "data were wiped or restored"
            )
        return None

    def _was_forgotten(self) -> bool:
        """Look whether an operator removed the memory while this process ran; then begin anew."""
        if self._stored is None or self._memory.get() is not None:
            return False
        log.warning("etcd is trusted anew memory=%s", self._memory.where)
        self._stored = self._seen = None
        return True

    def remember(self) -> None:
        """Make what was seen durable; raises `StateError` when that fails."""
        if self._seen is not None and self._seen != self._stored:
            self._memory.set(self._seen)
            self._stored = self._seen
