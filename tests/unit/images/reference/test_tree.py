"""The folder of an image: what of the packages goes in, and that trees may share files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from images.reference import tree


@pytest.mark.parametrize(
    "name",
    [
        "usr/lib/systemd/systemd", "usr/bin/python3.11", "usr/lib/python3.11/asyncio/tasks.py",
        "usr/lib/udev/rules.d/60-persistent-storage.rules", "usr/sbin/fsck.vfat", "var", "boot",
        "usr/share/zoneinfo/Europe/Berlin", "etc/passwd", "etc/shadow", "etc/pam.d/login", "dev",
        "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/share/dbus-1/system.conf", "usr/bin/fw_setenv",
    ],
)  # fmt: skip
def test_what_the_system_runs_is_kept(name: str) -> None:
    assert tree.is_kept(name)


@pytest.mark.parametrize(
    "name",
    [
        "var/lib/dpkg/status", "usr/bin/dpkg", "usr/bin/apt-get", "etc/apt/sources.list",
        "usr/share/man/man1/ls.1.gz", "usr/share/doc", "boot/vmlinuz", "dev/null", "usr/bin/perl",
        "usr/lib/python3.11/__pycache__/os.cpython-311.pyc", "usr/lib/udev/hwdb.bin",
        "kernel/package", "etc/machine-id",
        "etc/hostname", "etc/resolv.conf", "usr/share/zoneinfo/right/UTC", "etc/cron.daily/dpkg",
    ],
)  # fmt: skip
def test_what_an_image_has_no_use_for_is_dropped(name: str) -> None:
    assert not tree.is_kept(name)


def members(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind, mode in [
            ("./usr", tarfile.DIRTYPE, 0o755), ("./usr/bin", tarfile.DIRTYPE, 0o755),
            ("./usr/private", tarfile.DIRTYPE, 0o750),
            ("./usr/bin/one", tarfile.REGTYPE, 0o755), ("./usr/bin/two", tarfile.LNKTYPE, 0o755),
            ("./bin", tarfile.SYMTYPE, 0o777), ("./usr/secret", tarfile.REGTYPE, 0o640),
            ("./dev", tarfile.DIRTYPE, 0o755), ("./usr/null", tarfile.CHRTYPE, 0o666),
            ("./kernel/unpacked/boot", tarfile.DIRTYPE, 0o755),
            ("./kernel/unpacked/boot/vmlinuz", tarfile.REGTYPE, 0o644),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid = kind, mode, 1, 2
            member.linkname = {"./usr/bin/two": "./usr/bin/one", "./bin": "usr/bin"}.get(name, "")
            member.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"data"))
    return path


def test_files_links_and_modes_are_unpacked_and_devices_are_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    tree.unpack(members(tmp_path / "a.tar"), root)
    assert (root / "usr/bin/one").read_bytes() == (root / "usr/bin/two").read_bytes() == b"data"
    assert (root / "usr/bin/one").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr/secret").stat().st_mode & 0o7777 == 0o640
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "dev").is_dir()
    assert (root / "usr/private").stat().st_mode & 0o7777 == 0o750
    assert not (root / "usr/null").exists()
    assert not (root / "kernel").exists()


def test_one_folder_of_an_archive_is_unpacked_by_itself(tmp_path: Path) -> None:
    tree.unpack(members(tmp_path / "a.tar"), tmp_path / "root", below="kernel/unpacked")
    assert [path.name for path in (tmp_path / "root").rglob("*")] == ["boot", "vmlinuz"]


def test_a_change_of_a_copy_leaves_the_shared_tree_alone(tmp_path: Path) -> None:
    shared, version = tmp_path / "shared", tmp_path / "version"
    tree.place(shared, "etc/a", b"old")
    tree.link(shared, "etc/b", "a")
    tree.copy(shared, version)
    tree.place(version, "etc/a", b"new", executable=True)
    tree.link(version, "etc/b", "c")
    tree.remove(version, ["etc/none"])
    assert (shared / "etc/a").read_bytes() == b"old"
    assert (shared / "etc/a").stat().st_mode & 0o777 == 0o644
    assert (shared / "etc/b").readlink() == Path("a")
    assert (version / "etc/a").read_bytes() == b"new"


def test_files_are_laid_over_with_the_right_to_run_or_without(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    tree.place(source, "usr/bin/tool", b"#!/bin/sh\n", executable=True)
    tree.place(source, "etc/conf", b"a = 1\n")
    tree.place(root, "etc/conf", b"a = 0\n")
    tree.lay_over(source, root)
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/conf").read_bytes() == b"a = 1\n"
