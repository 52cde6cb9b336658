"""Makes deltas to a release out of full payloads that the desk has. Nothing is published here.

Old and new images are unpacked beside the payloads, one old one at a time; a delta that was made
or given is carried out once, so that none is published that does not make the image. All files are
in one folder that is gone in the end; what a killed command left is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from images.apply import apply_file, try_images
from images.delta import build_delta
from images.reader import Accept, PayloadFile
from server.durable import translated
from server.errors import DeltaKeyError, PayloadAbsentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from images.reader import Progress
    from images.signing import PrivateKey, TrustedKeys
    from server.desk import Desk
    from server.intake import Incoming

    Stage = Callable[[str], AbstractContextManager[Progress | None]]

FOLDER_PREFIX: Final = "making-"
_UNSIGNED: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # no bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingOrder:
    """Which deltas are to be made.

    Attributes:
        last: from how many last releases of each channel.
        channels: which channels; none for all.
        keys: private keys that sign them as the payload is signed.
    """

    last: int
    channels: tuple[str, ...] = ()
    keys: tuple[PrivateKey, ...] = ()


@dataclass(slots=True)
class Workshop:
    """Makes deltas to one payload.

    Attributes:
        folder: for images; the maker's alone.
        payload: a full one, verified.
        keys: sign the deltas.
        stage: shows how far a step is.
    """

    folder: Path
    payload: Path
    keys: Sequence[PrivateKey]
    stage: Stage
    _new: dict[str, Path] = field(default_factory=dict)

    @contextlib.contextmanager
    def made(self, source: Path, version: str) -> Iterator[Path]:
        """Give a delta from the images of a full payload; it is gone when the block ends.

        Args:
            source: a full payload file.
            version: what it makes, to be shown.

        Raises:
            PayloadAbsentError: the source is not here.
            ImagesError: a payload is damaged, or parts differ, or there is no space.
        """
        if not source.is_file():
            raise PayloadAbsentError(f"payload {source.name} of version {version} is not here")
        old: dict[str, Path] = {}
        delta = self.folder / "delta.crau"
        try:
            if not self._new:
                self._new = self._unpacked(self.payload, "new", "the new images")
            old = self._unpacked(source, "old", f"the images of {version}")
            with self.stage(f"delta from {version}") as progress:
                build_delta(list(self._new.items()), old, delta, keys=self.keys, progress=progress)
            self._try(delta, old, version)
            _remove(list(old.values()))  # before it is copied: space
            yield delta
        finally:
            _remove([delta, *old.values()])

    def try_given(self, delta: Path, source: Path, version: str) -> None:
        """Carry a delta out that was made elsewhere; nothing of it is kept.

        Args:
            delta: its file.
            source: a full payload file, of what it starts from.
            version: what that makes, to be shown.

        Raises:
            PayloadAbsentError: the source is not here.
            ManifestContradictionError, OperationOutputError: it makes something else than it says.
            ImagesError: it cannot be carried out here, or there is no space.
        """
        if not source.is_file():
            raise PayloadAbsentError(f"payload {source.name} of version {version} is not here")
        old: dict[str, Path] = {}
        try:
            old = self._unpacked(source, "old", f"the images of {version}")
            self._try(delta, old, version)
        finally:
            _remove(list(old.values()))

    def _try(self, delta: Path, old: Mapping[str, Path], version: str) -> None:
        with (
            PayloadFile.open(delta) as file,
            self.stage(f"trying the delta from {version}") as progress,
        ):
            metadata = file.metadata(None, accept=Accept.APPLICABLE)
            needed = [p.name for p in metadata.manifest.parts if p.old_size is not None]
            sources = {name: old[name] for name in needed}
            try_images(file, metadata, sources=sources, progress=progress)

    def _unpacked(self, payload: Path, kind: str, what: str) -> dict[str, Path]:
        with PayloadFile.open(payload) as file:
            metadata = file.metadata(None, accept=Accept.FULL)
            names = [part.name for part in metadata.manifest.parts]
        outputs = {name: self.folder / f"{kind}-{name}" for name in names}
        with self.stage(f"unpacking {what}") as progress:
            apply_file(payload, outputs, progress=progress)
        return outputs


@contextlib.contextmanager
def workshop(
    desk: Desk, payload: Path, *, keys: Sequence[PrivateKey], stage: Stage
) -> Iterator[Workshop]:
    """Give a workshop for deltas to `payload`; its folder is gone when the block ends.

    Raises:
        DeskUnwritableError: the desk has no room for the folder.
        DeskBusyError: another change goes on.
    """
    with desk.locked(), translated(desk.folder):
        _sweep(desk.folder)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=desk.folder))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # while it is held, somebody works in there
    try:
        yield Workshop(folder, payload, keys, stage)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def require_key(keys: Sequence[PrivateKey], *, trusted: TrustedKeys | None, full: Incoming) -> None:
    """Refuse, before the work, to make deltas that would not be signed as the payload is.

    Raises:
        DeltaKeyError: there is no key, or none that the desk's public keys belong to.
    """
    if not keys:
        if trusted is not None or full.facts.signatures_sha256 != _UNSIGNED:
            raise DeltaKeyError(
                f"release {full.facts.version} is signed, and no key is named to sign its deltas"
            )
    elif trusted is not None and not any(key.public_key() in trusted.keys for key in keys):
        raise DeltaKeyError("no key that would sign the deltas belongs to a trusted public key")


def _sweep(folder: Path) -> None:
    """Remove the folders of commands that were killed: their locks are gone with them."""
    for left in folder.glob(f"{FOLDER_PREFIX}*"):
        descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
