"""The files of an image as a folder: what of the packages goes in, what is laid over it.

Owners are not kept: `mkfs.erofs --all-root` gives all to root, so the folder can belong to whoever
builds. Nothing here is mounted and no device node is made.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

# What an image that is replaced as a whole does not need: package management and its languages,
# papers, what lives in the state instead, and sources of hardware names. Regular expressions.
DROPPED: Final = (
    r"(boot|dev|home|kernel|media|mnt|opt|proc|root|run|srv|sys|tmp|var)/.+",
    r"etc/(alternatives|apt|cron\.[a-z]+|debconf\.conf|default|dpkg|init\.d|kernel|ld\.so\.cache|logrotate\.d|opt|"
    r"perl|profile\.d|python3.*|rc[0-9S]\.d|rmt|selinux|skel|terminfo|update-motd\.d|X11|xattr\.conf)(/.+)?",
    r"etc/(machine-id|hostname|hosts|mtab|resolv\.conf|fstab|motd|issue.*|passwd-|group-|shadow-|gshadow-|\.pwd\.lock)",
    r"usr/share/(applications|bash-completion|bug|debconf|debianutils|doc|doc-base|dpkg|gcc|gdb|info|"
    r"initramfs-tools|keyrings|libc-bin|lintian|locale|man|menu|pam-configs|perl|perl5|pixmaps|python3|tabset|"
    r"vim|zsh)(/.+)?",
    r"usr/share/zoneinfo/(posix|right)(/.+)?",
    r"usr/lib/(apt|dpkg|init|kernel|lsb|mime|pcrlock\.d|tc|valgrind)(/.+)?",
    r"usr/lib/terminfo/(?!(l/linux|v/vt100|v/vt102|v/vt220|x/xterm|x/xterm-256color|d/dumb)$).*/.+",
    r"usr/lib/x86_64-linux-gnu/(perl.*|gconv|e2fsprogs|audit|libperl.*|libdb-.*|libapt.*)(/.+)?",
    r"usr/lib/udev/(hwdb\.bin|hwdb\.d)(/.+)?",
    r"usr/lib/systemd/catalog(/.+)?",
    r"usr/s?bin/(perl.*|dpkg.*|apt.*|deb.*|update-alternatives|update-rc\.d|invoke-rc\.d|cpan.*|"
    r"prove|pod.*|corelist|enc2xs|encguess|h2ph|h2xs|instmodsh|json_pp|libnetcfg|perlbug|perlthanks|"
    r"piconv|pl2pm|ptar.*|shasum|splain|streamzip|xsubpp|zipdetails|py3.*|pdb.*|pydoc.*|pygettext.*)",
    r"usr/lib/python3\.[0-9]+/(pydoc_data|idlelib|lib2to3|test|ensurepip|distutils|tkinter|turtledemo)(/.+)?",
    r"(.+/)?__pycache__(/.+)?",
)
_DROPPED: Final = re.compile("|".join(DROPPED))


def is_kept(name: str) -> bool:
    """Tell whether a file of the packages goes into the image, by its path in it."""
    return _DROPPED.fullmatch(name) is None


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
        path.mkdir(exist_ok=True)
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
