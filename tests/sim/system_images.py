"""Three versions of a small operating system, as the file systems that images are made of.

The tree is this machine's own: Python's library, programs, and a packed archive as an initrd is.
v2 is v1 after an update: some files changed, some gone, the archive packed anew. v3 is v2 with
more files. No root is needed.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backports import zstd

TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
EPOCH: Final = 1_700_000_000  # seconds; the time of every file
UUID: Final = "2f6a1c7e-0d0b-4b52-9a53-7f0c5d1e8a11"
VERSIONS: Final = ("v1", "v2", "v3")
PAIRS: Final = (("v1", "v2"), ("v2", "v3"), ("v3", "v1"))
EXT4_ROOM: Final = 1.25  # of the content, and then some
EXT4_EXTRA_BYTES: Final = 3 * 1024 * 1024
SOURCES: Final = (sysconfig.get_path("stdlib"), "/usr/bin", "/usr/lib", "/usr/share")
ARCHIVED: Final = 7  # each file of such a number goes into the archive, too


def ext4(tree: Path, output: Path) -> list[str]:
    content = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    kib = (int(content * EXT4_ROOM) + EXT4_EXTRA_BYTES) // 4096 * 4
    plain = ["-q", "-F", "-b", "4096", "-m", "0", "-U", UUID, "-E", f"hash_seed={UUID}"]
    return ["mkfs.ext4", *plain, "-d", str(tree), str(output), f"{kib}k"]


def erofs(tree: Path, output: Path) -> list[str]:
    return ["mkfs.erofs", "--quiet", f"-T{EPOCH}", f"-U{UUID}", str(output), str(tree)]


def lz4_erofs(tree: Path, output: Path) -> list[str]:
    return [*erofs(tree, output)[:-2], "-zlz4hc", "-C65536", str(output), str(tree)]


def squashfs(tree: Path, output: Path) -> list[str]:
    how = ["-noappend", "-quiet", "-no-progress", "-comp", "zstd"]
    return ["mksquashfs", str(tree), str(output), *how]


FILE_SYSTEMS: Final = MappingProxyType(
    {"ext4": ext4, "erofs": erofs, "lz4.erofs": lz4_erofs, "squashfs": squashfs}
)
"""Name, as files end with, to the command that makes one out of a tree."""

Command = Callable[[Path, Path], list[str]]


def missing_program(kind: str) -> str:
    """Return the program that a file system needs and this machine has not; empty for none."""
    program = FILE_SYSTEMS[kind](Path("/nowhere"), Path("/nowhere"))[0]
    return "" if shutil.which(program, path=TOOLS) else program


def make_file_system(kind: str, tree: Path, output: Path) -> None:
    """Make a file system of `kind` out of a tree; it appears whole."""
    draft = output.with_name(output.name + ".part")
    draft.unlink(missing_ok=True)
    environment = {"PATH": TOOLS, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(EPOCH)}
    environment["E2FSPROGS_FAKE_TIME"] = str(EPOCH)
    subprocess.run(
        FILE_SYSTEMS[kind](tree, draft), check=True, capture_output=True, env=environment
    )
    draft.replace(output)


def make_images(folder: Path, *, content_bytes: int, kinds: Sequence[str]) -> None:
    """Make `v1.KIND` to `v3.KIND` in a folder; about `content_bytes` of files are in v1."""
    folder.mkdir(parents=True, exist_ok=True)
    files = list(_some(content_bytes))
    for version in VERSIONS:
        tree = folder / f"{version}.tree"
        _make_tree(tree, files, version)
        for kind in kinds:
            make_file_system(kind, tree, folder / f"{version}.{kind}")
        shutil.rmtree(tree)


def _some(limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of files of this machine, from each source a share."""
    for base in SOURCES:
        taken, share = 0, limit // len(SOURCES)
        for path in _files_below(Path(base)):
            size = path.stat().st_size
            if size > share // 3:
                continue
            if taken + size > share:
                break
            taken += size
            yield str(path).lstrip("/"), path.read_bytes()


def _files_below(base: Path) -> Iterator[Path]:
    """Yield plain files in order of their names, folder by folder, as far as somebody asks."""
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            path = Path(folder) / name
            if not path.is_symlink() and path.is_file() and os.access(path, os.R_OK):
                yield path


def _make_tree(tree: Path, files: Sequence[tuple[str, bytes]], version: str) -> None:
    archived: list[tuple[str, bytes]] = []
    for number, (name, content) in enumerate(files):
        kept = _in_version(number, content, version)
        if kept is None:
            continue
        _write(tree / name, kept)
        if number % ARCHIVED == 0:
            archived.append((name, kept))
    _write(tree / "boot/initrd.img", zstd.compress(_archive(archived), 9))


def _in_version(number: int, content: bytes, version: str) -> bytes | None:
    """Return what a file is in a version; None where it is not there."""
    added = number % 10 == 8
    if version != "v3" and added:
        return None
    if version == "v1":
        return content
    if number % 17 == 3:
        return None
    if number % 9 == 0:
        return content.replace(b"self", b"itself") + f"# {number}\n".encode()
    return content


def _archive(files: Sequence[tuple[str, bytes]]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (EPOCH, EPOCH))
