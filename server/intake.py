"""A payload file comes in: copied, hashed, verified, carried out. Nothing is published here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from images.apply import try_images
from images.reader import Accept, PayloadFile, open_regular
from images.release import facts_of
from images.version import parse_version
from server.deltas import source_of
from server.durable import DRAFT_PREFIX, PUBLIC_MODE, sync_folder, translated
from server.reflection import published_payloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from datetime import datetime
    from typing import BinaryIO

    from images.payload import Manifest
    from images.release import PayloadFacts
    from images.signing import TrustedKeys
    from server.desk import Desk
    from server.making import Stage

CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOrder:
    """What a person says about a payload.

    Attributes:
        product: which product.
        board: which board.
        version: which version it makes.
        rollback_index: what nodes compare with their floor.
        min_engine: the oldest bascule that may install it.
        requires_from: the oldest version that may go to it directly; None for any.
    """

    product: str
    board: str
    version: str
    rollback_index: int = 0
    min_engine: str = "0.1.0"
    requires_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A verified, durable copy of a payload that has no name anyone knows.

    Attributes:
        path: the copy; it is gone when the block that gave it ends.
        sha256: of the whole file, 64 hex digits.
        size: its bytes.
        format: major version of its container.
        facts: what is to be signed.
    """

    path: Path
    sha256: str
    size: int
    format: int
    facts: PayloadFacts

    def keep_as(self, path: Path) -> None:
        """Give the copy a durable name; the same bytes may have it already.

        Raises:
            DeskUnwritableError: the file system refuses.
        """
        with translated(path):
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(self.path)
            sync_folder(path.parent)


@contextlib.contextmanager
def take_in(
    payload: Path,
    folder: Path,
    order: ReleaseOrder,
    *,
    trusted: TrustedKeys | None,
    created: datetime,
    stage: Stage,
    source_of: Callable[[Manifest], str] | None = None,
) -> Iterator[Incoming]:
    """Copy a payload into `folder` and verify the copy, so that what is verified is what is kept.

    `source_of` tells the version that a delta starts from, or raises; None for a full payload. Its
    images are made to be compared, and not kept: its operations' hashes, by which nodes prove what
    they write, may be those of another image (decision 0015).

    Raises:
        ImagesError: it cannot be read, does not verify, makes something else than it says, or a
            name or version has a wrong shape.
        DeskUnwritableError: no space or no permission in `folder`.
    """
    parse_version(order.version)  # before the work, not after it
    with open_regular(payload) as source, _draft_in(folder) as (path, file):
        with translated(folder):
            sha256, size = _copy(source, file)
        with PayloadFile.open(path) as copy:
            with stage("verifying") as progress:
                metadata = copy.metadata(trusted, accept=Accept.ANY)
                copy.verify(metadata, trusted, progress=progress)
            facts = facts_of(
                path,
                product=order.product,
                board=order.board,
                version=order.version,
                rollback_index=order.rollback_index,
                min_engine=order.min_engine,
                requires_from=order.requires_from,
                source_version=None if source_of is None else source_of(metadata.manifest),
                created=created,
            )
            if source_of is None:
                with stage("making the images") as progress:
                    try_images(copy, metadata, progress=progress)
        yield Incoming(
            path=path, sha256=sha256, size=size, format=metadata.header.major, facts=facts
        )


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes files of one release in; what comes in is gone when `stack` ends."""

    desk: Desk
    order: ReleaseOrder
    trusted: TrustedKeys | None
    created: datetime
    stage: Stage
    stack: ExitStack

    def full(self, file: Path) -> Incoming:
        """Return a full payload; raise as `take_in`."""
        return self._taken(file, None)

    def delta(self, file: Path, full: PayloadFacts) -> Incoming:
        """Return a delta to the release of `full`; raise as `take_in` and `source_of`."""
        known = published_payloads(self.desk.repository.read()).values()
        others = [facts for _, facts in known if facts.kind == "full"]
        return self._taken(file, partial(source_of, full=full, others=others))

    def _taken(self, file: Path, source: Callable[[Manifest], str] | None) -> Incoming:
        return self.stack.enter_context(
            take_in(
                file,
                self.desk.payloads,
                self.order,
                trusted=self.trusted,
                created=self.created,
                stage=self.stage,
                source_of=source,
            )
        )


@contextlib.contextmanager
def _draft_in(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    with translated(folder):
        descriptor, name = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), PUBLIC_MODE)
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _copy(source: BinaryIO, file: BinaryIO) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size += file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest(), size
