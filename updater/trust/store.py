"""The folder that keeps TUF's files, so that a power cut leaves the old generation or the new.

python-tuf writes without fsync, file by file. So a refresh works on a draft; the draft becomes
current by one rename of a link, after all its bytes are on the disk::

    trust/
    ├── lock                    one process at a time
    ├── floors.json             see floors.py; its twin lies in each generation
    ├── current -> generations/00000007
    └── generations/00000007/   metadata, root_history/, targets/ (the channel document)

Unchanged files are hard links to those of the last generation: python-tuf replaces files, it never
writes into one. Whatever a crash left behind is removed by the next `begin`. What the files mean
is not known here. Loss of all of it costs a download, never safety.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from updater.durable import sync_folder
from updater.errors import EngineBusyError
from updater.trust.floors import FLOORS_NAME

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_GENERATION: Final = re.compile(r"[0-9]{8,}", re.ASCII)
_ROOT_NAMES: Final = ("root.json", "root_history")  # as python-tuf calls them


class TrustStore:
    """Generations of trusted metadata below one folder.

    All methods raise `OSError` when the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._generations = folder / "generations"
        self._link = folder / "current"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes out, without waiting.

        Raises:
            EngineBusyError: another process is at work here.
            OSError: the folder cannot be made or written.
        """
        self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._generations.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        with (self.folder / "lock").open("ab") as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EngineBusyError(
                    f"another process refreshes the trust folder {self.folder}"
                ) from error
            yield

    @property
    def floors_files(self) -> tuple[Path, Path]:
        """Where the floors are kept: the file itself, then its twin in the current generation."""
        return self.folder / FLOORS_NAME, self._link / FLOORS_NAME

    @property
    def current(self) -> Path | None:
        """The current generation, or None when there is none that can be used."""
        try:
            target = self._link.readlink()
        except OSError:
            return None
        generation = self._generations / target.name
        whole = target.parent == Path(self._generations.name) and _is_generation(generation)
        return generation if whole else None

    def begin(self) -> Path:
        """Return a new draft that starts as the current generation; remove all older leftovers."""
        self._clean()
        current = self.current
        number = 1 if current is None else int(current.name) + 1
        draft = self._generations / f"{number:08d}"
        if current is None:
            draft.mkdir(mode=_FOLDER_MODE)
        else:
            shutil.copytree(current, draft, symlinks=True, copy_function=os.link)
        return draft

    def keep_only_roots(self, draft: Path) -> None:
        """Take back all of `draft` but the roots: after a refusal these alone still count."""
        current = self.current
        for entry in draft.iterdir():
            if entry.name not in _ROOT_NAMES:
                _remove(entry)
        for entry in () if current is None else current.iterdir():
            if entry.name not in _ROOT_NAMES:
                copy = shutil.copytree if entry.is_dir() else os.link
                copy(entry, draft / entry.name)

    def differs(self, draft: Path) -> bool:
        """Tell whether `draft` holds other bytes than the current generation."""
        current = self.current
        return current is None or _content(draft) != _content(current)

    def commit(self, draft: Path) -> None:
        """Make `draft` the current generation; on return that is durable."""
        _sync_tree(draft)
        sync_folder(self._generations)
        _remove(self._next_link)
        self._next_link.symlink_to(Path(self._generations.name) / draft.name)
        if self._link.is_dir() and not self._link.is_symlink():
            _remove(self._link)
        self._next_link.replace(self._link)
        sync_folder(self.folder)
        self._clean()

    def discard(self, draft: Path) -> None:
        """Remove `draft`."""
        _remove(draft)

    @property
    def _next_link(self) -> Path:
        return self._link.with_name(self._link.name + ".draft")

    def _clean(self) -> None:
        """Remove what is neither current nor ours to keep: drafts, old generations, garbage."""
        current = self.current
        for entry in self._generations.iterdir():
            if entry != current:
                _remove(entry)
        _remove(self._next_link)


def _is_generation(path: Path) -> bool:
    named = _GENERATION.fullmatch(path.name) is not None
    return named and path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove `path`, whatever it is, if it is there; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _content(folder: Path) -> dict[str, bytes | None]:
    """Return what is in `folder`: digests of files, targets of links, None for folders."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
        else:
            found[name] = None if path.is_dir() else sha256(path.read_bytes()).digest()
    return found


def _sync_tree(folder: Path) -> None:
    """Flush each file below `folder`, then each folder; modes are made private on the way."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(_FOLDER_MODE)
            sync_folder(path)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, _FILE_MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
