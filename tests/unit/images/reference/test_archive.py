"""The initrd's archive: what cpio(1) reads, and the same bytes for the same nodes."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from images.reference import cpio

NODES = (
    cpio.file("init", b"#!/bin/sh\n", executable=True),
    cpio.file("etc/bascule/verity", b"data_blocks=1\n"),
    cpio.link("bin/sh", "busybox"),
    cpio.folder("proc"),
    cpio.character_device("dev/console", 5, 1),
)


def listed(archive: bytes, *arguments: str) -> str:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (package cpio)")
    done = subprocess.run(["cpio", *arguments], input=archive, capture_output=True, check=True)
    return done.stdout.decode()


def test_cpio_lists_every_node_and_the_folders_they_need_before_them() -> None:
    names = listed(cpio.archive(NODES), "-t", "--quiet").split()
    assert names == [
        "bin", "bin/sh", "dev", "dev/console", "etc", "etc/bascule", "etc/bascule/verity", "init",
        "proc",
    ]  # fmt: skip


def test_cpio_sees_kinds_modes_devices_and_root_as_owner() -> None:
    lines = listed(cpio.archive(NODES), "-tvn", "--quiet").splitlines()
    seen = {line.split()[-1]: line.split() for line in lines if "->" not in line}
    assert seen["init"][0] == "-rwxr-xr-x"
    assert seen["etc/bascule/verity"][0] == "-rw-r--r--"
    assert seen["dev/console"][0] == "crw-------"
    assert [part.rstrip(",") for part in seen["dev/console"][4:6]] == ["5", "1"]
    assert all(line[2:4] == ["0", "0"] for line in seen.values())


def test_what_cpio_unpacks_is_what_went_in(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (package cpio)")
    plain = [node for node in NODES if not stat.S_ISCHR(node.mode)]  # devices need privilege
    subprocess.run(
        ["cpio", "-i", "--quiet"], input=cpio.archive(plain), cwd=tmp_path, check=True
    )  # fmt: skip
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "etc/bascule/verity").read_bytes() == b"data_blocks=1\n"
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")


def test_the_order_of_the_nodes_does_not_matter() -> None:
    assert cpio.archive(NODES) == cpio.archive(reversed(NODES))


def test_two_archives_one_after_the_other_are_read_by_linux_only_when_blocks_are_whole() -> None:
    assert len(cpio.archive(NODES)) % cpio.BLOCK == 0


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="init is in the archive twice"):
        cpio.archive([*NODES, cpio.file("init", b"other")])
