"""Writes down what the shipped code asks the kernel for, in one order over disk, ESP and state.

It stands below every seam of ours: at the calls of `os` itself, and at the two that we make through
libc. So a new room or a new loader is recorded without knowing of it. What was overlooked shows,
since `Story.check` compares what was recorded with what lies in the files.

The same place makes faults: a call fails, or lies, before the kernel hears of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from partitions import boot_folder, zeroing

DISK: Final = "disk"  # one file or device: GPT and slots
BOOT: Final = "boot"  # the loader's partition: FAT
STATE: Final = "state"  # the state folder: a file system with a journal
LINK: Final = b"\0symbolic link to "
VARIABLES: Final = "variables"  # the firmware's: each written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that the kernel was asked for.

    Attributes:
        where: DISK, BOOT, STATE or VARIABLES; or "mark", which is a word of the test's own.
        what: write, resize, create, mkdir, remove, release, rename, sync-file, sync-folder …
            A removed file is released, and its room free, when nobody has it open any more.
        name: of the file, relative to its root; of a mark, its words.
        other: the new name of a rename.
        offset, data: of a write; the offset is the new size of a resize.
        stream: the opening that wrote; a flush of another one says nothing about it.
        files, soft: of STATE, all that the folder holds now, and what of it was never flushed.
    """

    where: str
    what: str
    name: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""
    stream: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)
    soft: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Handle:
    where: str
    name: str
    path: Path
    stream: int
    inode: int
    position: int = 0


Trap = Callable[[Event], bytes | None]
"""Called before an event: raises `OSError`, or gives what the disk takes instead of the data."""


class Recorder:
    """What happened so far; `recording` fills it.

    Attributes:
        roots: what is watched: the file of DISK, and the folders of the others.
        log: all events, in one order.
        trap: None, or what makes faults.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots
        self.log: list[Event] = []
        self.trap: Trap | None = None
        self.guard = threading.RLock()
        self._handles: dict[int, _Handle] = {}
        self._synced: dict[int, bytes] = {}  # of STATE: what each inode held when it was flushed
        self._orphans: dict[int, str] = {}
        self._streams = 0
        self.settle()

    def mark(self, words: str) -> None:
        """Put a word of the test's own into the log."""
        with self.guard:
            self.log.append(Event(where="mark", what="mark", name=words))

    def settle(self) -> None:
        """Take all that the state folder holds for flushed."""
        for path in _files(self.roots[STATE]):
            self._synced[path.lstat().st_ino] = _content(path)

    def place(self, path: Any) -> tuple[str, str] | None:  # noqa: ANN401  # whatever `os` takes
        """Return which root a path is under, and its name there."""
        if not isinstance(path, str | os.PathLike):
            return None
        text = os.path.abspath(os.fsdecode(os.fspath(path)))  # noqa: PTH100  # no link is followed
        for where, root in self.roots.items():
            if text == str(root):
                return where, ""
            if text.startswith(f"{root}/"):
                return where, text[len(str(root)) + 1 :]
        return None

    def opened(self, descriptor: int, place: tuple[str, str] | None, path: Any) -> None:  # noqa: ANN401
        """Note what a descriptor stands for."""
        with self.guard:
            self._handles.pop(descriptor, None)
            if place is not None:
                self._streams += 1
                inode = os.fstat(descriptor).st_ino
                self._handles[descriptor] = _Handle(*place, Path(path), self._streams, inode)

    def handle(self, descriptor: object) -> _Handle | None:
        """Return what a descriptor stands for."""
        if not isinstance(descriptor, int):
            return None
        found = self._handles.get(descriptor)
        try:
            if found is not None and os.fstat(descriptor).st_ino != found.inode:
                return None  # closed behind us, and its number was given anew
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None  # closed behind us, as a file object that is collected is
        return found

    def holds(self, inode: int) -> bool:
        """Tell whether somebody has this file open."""
        return any(
            one.inode == inode and self.handle(descriptor) is one
            for descriptor, one in list(self._handles.items())
        )

    def removed(self, name: str, inode: int) -> None:
        """Note that a file of BOOT has lost its name; it goes when nobody has it open."""
        self._orphans[inode] = name
        self.release()

    def release(self) -> None:
        """Note which removed files of BOOT nobody has open any more."""
        for inode, name in list(self._orphans.items()):
            if not self.holds(inode):
                del self._orphans[inode]
                self.log.append(Event(where=BOOT, what="release", name=name))

    def spring(self, event: Event) -> bytes:
        """Ask the trap, and return what the disk takes."""
        taken = self.trap(event) if self.trap else None
        return event.data if taken is None else taken

    def note(self, event: Event) -> None:
        """Write an event down; a change of the state folder as what it holds now."""
        if event.where != STATE:
            self.log.append(event)
            return
        if event.what == "sync-file":
            path = self.roots[STATE] / event.name
            if path.exists():
                self._synced[path.lstat().st_ino] = _content(path)
        self.note_state(event.what, event.name)

    def note_state(self, what: str, name: str) -> None:
        """Write down what the state folder holds now."""
        files: dict[str, bytes] = {}
        soft = set()
        root = self.roots[STATE]
        for path in _files(root):
            relative = str(path.relative_to(root))
            files[relative] = _content(path)
            if self._synced.get(path.lstat().st_ino) != files[relative]:
                soft.add(relative)
        self.log.append(Event(where=STATE, what=what, name=name, files=files, soft=frozenset(soft)))


def _files(root: Path) -> Iterator[Path]:
    """Yield files and links below a folder; links are not followed."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        yield from (here / name for name in sorted(names))
        yield from (here / name for name in sorted(folders) if (here / name).is_symlink())


def _content(path: Path) -> bytes:
    """Return a file's content, or where a link leads, told apart by `LINK` in front."""
    if path.is_symlink():
        return LINK + os.fsencode(path.readlink())
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Send the calls of `os` past the recorder, for the block."""
    kept = {name: getattr(os, name) for name in _WATCHED}
    libc, punch = boot_folder._LIBC, zeroing._punch
    try:
        for name, maker in _WATCHED.items():
            setattr(os, name, maker(recorder, kept[name]))
        boot_folder._LIBC = _libc(recorder, libc)
        zeroing._punch = _punching(recorder, punch)  # type: ignore[assignment]  # names apart
        yield
    finally:
        for name, real in kept.items():
            setattr(os, name, real)
        boot_folder._LIBC, zeroing._punch = libc, punch


def _open(recorder: Recorder, real: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # noqa: ANN401
        place = recorder.place(path) if dir_fd is None else None
        if place is None or not flags & (os.O_CREAT | os.O_TRUNC):
            if place is not None:
                recorder.spring(Event(where=place[0], what="open", name=place[1]))
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            recorder.opened(descriptor, place, path)
            return descriptor
        where, name = place
        with recorder.guard:
            fresh = not os.path.lexists(path)
            event = Event(where=where, what="create", name=name)
            if not fresh:
                event = Event(where=where, what="resize", name=name)
            if fresh or flags & os.O_TRUNC:
                recorder.spring(event)
            descriptor = real(path, flags, mode)
            recorder.opened(descriptor, place, path)
            if (fresh or flags & os.O_TRUNC) and where in {BOOT, VARIABLES}:
                recorder.note(event)
            return descriptor

    return call


def _close(recorder: Recorder, real: Callable[[int], None]) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        with recorder.guard:
            recorder.opened(descriptor, None, "")
            real(descriptor)
            recorder.release()

    return call


def _write(recorder: Recorder, real: Callable[..., int]) -> Callable[..., int]:
    def call(descriptor: int, data: Any) -> int:  # noqa: ANN401
        handle = recorder.handle(descriptor)
        if handle is None:
            return real(descriptor, data)
        with recorder.guard:
            event = Event(
                where=handle.where,
                what="write",
                name=handle.name,
                offset=handle.position,
                data=bytes(data),
                stream=handle.stream,
            )
            taken = recorder.spring(event)
            if taken:
                real(descriptor, taken)
            else:  # lost: the file's end moves all the same
                os.lseek(descriptor, len(event.data), os.SEEK_CUR)
            handle.position += len(event.data)
            recorder.note(event)
            return len(event.data)

    return call


def _pwrite(recorder: Recorder, real: Callable[..., int]) -> Callable[..., int]:
    def call(descriptor: int, data: Any, offset: int) -> int:  # noqa: ANN401
        handle = recorder.handle(descriptor)
        if handle is None:
            return real(descriptor, data, offset)
        with recorder.guard:
            event = Event(
                where=handle.where,
                what="write",
                name=handle.name,
                offset=offset,
                data=bytes(data),
                stream=handle.stream,
            )
            taken = recorder.spring(event)
            if taken:
                real(descriptor, taken, offset)
            recorder.note(event)
            return len(event.data)

    return call


def _reading(recorder: Recorder, real: Callable[..., int]) -> Callable[..., int]:
    """Watch `preadv`: nothing is written down, but a disk that is gone cannot be read."""

    def call(descriptor: int, *rest: Any) -> int:  # noqa: ANN401
        handle = recorder.handle(descriptor)
        if handle is not None:
            try:
                recorder.spring(Event(where=handle.where, what="read", name=handle.name))
            except OSError:
                del rest  # the real call would leave no frame behind that holds the buffers
                raise
        return real(descriptor, *rest)

    return call


def _syncing(recorder: Recorder, real: Callable[[int], None]) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        handle = recorder.handle(descriptor)
        if handle is None:
            return real(descriptor)
        with recorder.guard:
            what = "sync-folder" if handle.path.is_dir() else "sync-file"
            event = Event(where=handle.where, what=what, name=handle.name, stream=handle.stream)
            recorder.spring(event)
            real(descriptor)
            return recorder.note(event)

    return call


def _naming(what: str) -> Callable[[Recorder, Callable[..., None]], Callable[..., None]]:
    """Make the watcher of a call that changes names."""

    def maker(recorder: Recorder, real: Callable[..., None]) -> Callable[..., None]:
        def call(*paths: Any, **options: Any) -> None:  # noqa: ANN401
            by_folder = any(options.get(key) is not None for key in ("dir_fd", "src_dir_fd"))
            place = None if by_folder else recorder.place(paths[-1 if what == "link" else 0])
            if place is None and not by_folder:
                return real(*paths, **options)
            with recorder.guard:
                where, name = place or (STATE, "")  # by a folder only state is taken down
                other = (recorder.place(paths[-1]) or ("", ""))[1] if what == "rename" else ""
                event = Event(where=where, what=what, name=name, other=other)
                recorder.spring(event)
                lost = _loses(event, paths)
                real(*paths, **options)
                recorder.note(event)
                if lost:
                    recorder.removed(other or name, lost)
                return None

        return call

    return maker


def _loses(event: Event, paths: tuple[Any, ...]) -> int:
    """Return the inode of the file of BOOT that an event leaves without a name; 0 for none."""
    if event.where != BOOT or event.what not in {"remove", "rename"}:
        return 0
    return os.lstat(paths[-1]).st_ino if os.path.lexists(paths[-1]) else 0


def _symlink(recorder: Recorder, real: Callable[..., None]) -> Callable[..., None]:
    def call(source: Any, target: Any, *rest: Any, **options: Any) -> None:  # noqa: ANN401
        real(source, target, *rest, **options)
        place = recorder.place(target)
        if place is not None:
            with recorder.guard:
                path = Path(target)
                recorder._synced[path.lstat().st_ino] = _content(path)  # a link is all metadata
                recorder.note(Event(where=place[0], what="link", name=place[1]))

    return call


def _resizing(recorder: Recorder, real: Callable[..., None]) -> Callable[..., None]:
    """Watch `ftruncate` and `posix_fallocate`: the file's end is what counts."""

    def call(descriptor: int, *numbers: int) -> None:
        handle = recorder.handle(descriptor)
        if handle is None:
            return real(descriptor, *numbers)
        with recorder.guard:
            event = Event(where=handle.where, what="resize", name=handle.name, offset=sum(numbers))
            recorder.spring(event)
            real(descriptor, *numbers)
            return recorder.note(event)

    return call


def _libc(recorder: Recorder, libc: Any) -> Any:  # noqa: ANN401  # a ctypes library
    def syncfs(descriptor: int) -> int:
        handle = recorder.handle(descriptor)
        if handle is None:
            return int(libc.syncfs(descriptor))
        with recorder.guard:
            event = Event(where=handle.where, what="sync-all", name=handle.name)
            try:
                recorder.spring(event)
            except OSError as error:
                ctypes.set_errno(error.errno or errno.EIO)
                return -1
            recorder.note(event)  # the host's own disk is of no interest
            return 0

    return SimpleNamespace(syncfs=syncfs)


def _punching(
    recorder: Recorder, real: Callable[[int, int, int], None]
) -> Callable[[int, int, int], None]:
    def call(descriptor: int, offset: int, length: int) -> None:
        handle = recorder.handle(descriptor)
        if handle is None:
            return real(descriptor, offset, length)
        with recorder.guard:
            event = Event(
                where=handle.where,
                what="write",
                name=handle.name,
                offset=offset,
                data=bytes(length),
                stream=handle.stream,
            )
            if recorder.spring(event):
                real(descriptor, offset, length)
            return recorder.note(event)

    return call


_WATCHED: Final[Mapping[str, Callable[[Recorder, Any], Any]]] = {
    "open": _open,
    "close": _close,
    "write": _write,
    "pwrite": _pwrite,
    "preadv": _reading,
    "fsync": _syncing,
    "fdatasync": _syncing,
    "ftruncate": _resizing,
    "posix_fallocate": _resizing,
    "mkdir": _naming("mkdir"),
    "rmdir": _naming("remove-folder"),
    "unlink": _naming("remove"),
    "remove": _naming("remove"),
    "rename": _naming("rename"),
    "replace": _naming("rename"),
    "link": _naming("link"),
    "symlink": _symlink,
}
