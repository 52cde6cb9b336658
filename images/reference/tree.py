"""The files of an image as a folder: what of the packages goes in, what is laid over it.

Owners are not kept: `mkfs.erofs --all-root` gives all to root, so the folder can belong to whoever
builds. Nothing here is mounted and no device node is made.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

DROPPED: Final = Path(__file__).parent / "dropped.txt"


@functools.cache
def _dropped() -> re.Pattern[str]:
    lines = (line.strip() for line in DROPPED.read_text().splitlines())
    rules = [line for line in lines if line and not line.startswith("#")]
    return re.compile(f"(?:{'|'.join(rules)})(?:/.*)?")


def is_kept(name: str) -> bool:
    """Tell whether a file of the packages goes into the image, by its path in it."""
    return _dropped().fullmatch(name) is None


def unpack(archive: Path, root: Path, *, below: str = "") -> None:
    """Write files of an archive below `root`, which is made.

    Args:
        archive: of a whole system.
        root: the folder to make.
        below: all files of this folder of the archive; empty: what `is_kept`.
    """
    root.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            if below:
                if name.startswith(f"{below}/"):
                    _write(tar, member, root / name.removeprefix(f"{below}/"))
            elif name != "." and is_kept(name):
                _write(tar, member, root / name)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(member.mode | 0o700)  # whoever builds must be able to write into it
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.isreg() or member.islnk():
        source = tar.extractfile(member)  # of a hard link: of the file that it names
        if source is not None:
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(member.mode)


def lay_over(source: Path, root: Path) -> None:
    """Copy the files of `source` over `root`, at their paths; 0755 where they run, else 0644."""
    for path in files_below(source):
        place(root, str(path.relative_to(source)), path.read_bytes(), executable=_runs(path))


def place(root: Path, name: str, data: bytes, *, executable: bool = False) -> None:
    """Put a file into the image, in the place of what is there."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # never through a link of it: trees share their files
    path.write_bytes(data)
    path.chmod(0o755 if executable else 0o644)


def link(root: Path, name: str, target: str) -> None:
    """Put a symbolic link into the image, in the place of what is there."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def remove(root: Path, names: Iterable[str]) -> None:
    """Take files out of the image; what is not there counts as removed."""
    for name in names:
        (root / name).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Make a second folder of the same files, which are shared: only `place` may change them."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, in order; bytecode, which is nobody's source, is left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _runs(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o100)
