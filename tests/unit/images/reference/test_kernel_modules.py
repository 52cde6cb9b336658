"""Modules in the order to load them, out of depmod's index."""

from __future__ import annotations

import pytest

from images.errors import KernelModuleError
from images.reference.modules import load_order, name_of, read_dependencies

# As depmod writes it: of dm-verity first what it needs directly, the deepest last.
INDEX = """\
kernel/drivers/md/dm-verity.ko: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-mod.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme.ko\n"


def order(*wanted: str) -> list[str]:
    paths = load_order(wanted, read_dependencies(INDEX), builtin=BUILTIN)
    return [name_of(path) for path in paths]


def test_a_module_comes_after_what_it_needs() -> None:
    assert order("dm_verity") == ["dm_mod", "dm_bufio", "dm_verity"]


def test_what_two_modules_need_is_loaded_once() -> None:
    assert order("dm-bufio", "dm_verity", "erofs").count("dm_mod") == 1


def test_what_is_built_in_needs_no_file() -> None:
    assert order("ext4", "nvme") == []


def test_hyphens_and_underscores_are_the_same() -> None:
    assert order("dm-verity") == order("dm_verity")


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(KernelModuleError, match="no module btrfs"):
        order("btrfs")
