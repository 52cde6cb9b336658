"""The system that all versions share: packages, modules, bascule, and what we lay over them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from images.errors import PythonDiffersError, SourceFolderError
from images.reference import tree
from images.reference.kernel import Kernel, install_modules
from images.reference.tools import run

HERE: Final = Path(__file__).parent
SHIPPED: Final = "usr/lib/systemd/system"
CHOSEN: Final = "etc/systemd/system"
NODE_PYTHON: Final = "/usr/bin/python3"  # the image's, and the builder's of the same version
# What `make install` reads of a checkout.
SOURCES: Final = (
    "Makefile", "README.md", "LICENSE", "pyproject.toml", "requirements", "docs",
    "images", "partitions", "updater", "server",
)  # fmt: skip

FOLDERS: Final = (
    "boot", "dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var",
)  # fmt: skip
LINKS: Final = {
    # Whatever changes lies in the state.
    "etc/bascule": "../var/lib/bascule-config",
    "etc/fw_env.config": "bascule/fw_env.config",
    "etc/hostname": "../var/lib/identity/hostname",
    "etc/mtab": "../proc/self/mounts",
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    "usr/bin/which": "busybox",
    # A bascule that confirms is the only one.
    f"{CHOSEN}/systemd-bless-boot.service": "/dev/null",
}
FILES: Final = {
    "etc/machine-id": "",  # the initrd puts the node's own over it
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
}
# What starts of Debian's services and of our own files; bascule's are in its own preset.
ENABLED: Final = {
    "bascule-no-state.timer": "timers.target",
    "systemd-networkd.service": "multi-user.target",
    "systemd-resolved.service": "multi-user.target",
    "systemd-timesyncd.service": "sysinit.target",
}
PRESET: Final = "usr/lib/systemd/system-preset/50-bascule.preset"
# What an image without packages, logins and /etc of its own has no use for. Each is a process
# less at boot.
MASKED: Final = (
    "dev-hugepages.mount", "dev-mqueue.mount", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "getty.target", "kmod-static-nodes.service", "ldconfig.service",
    "modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service",
    "modprobe@fuse.service", "modprobe@loop.service", "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "systemd-binfmt.service", "systemd-boot-system-token.service",
    "systemd-boot-update.service", "systemd-firstboot.service", "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service", "systemd-machine-id-commit.service",
    "systemd-pcrphase-initrd.service", "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service", "systemd-pstore.service", "systemd-remount-fs.service",
    "systemd-repart.service", "systemd-sysusers.service", "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
)  # fmt: skip
GENERATORS: Final = frozenset({"systemd-debug-generator", "systemd-fstab-generator"})


def key(source: Path, packages_key: str) -> str:
    """Return a name for the system in the cache: of the packages and of every source file."""
    digest = hashlib.sha256(packages_key.encode())
    for path in _sources(source):
        digest.update(f"\0{path.relative_to(source)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build(packages: Path, kernel: Kernel, source: Path, root: Path) -> None:
    """Make the folder `root` of the system.

    Args:
        packages: what is kept of the packages, unpacked.
        kernel: of the same packages.
        source: a checkout of bascule.
        root: the folder to make.

    Raises:
        PythonDiffersError: this machine has another Python than the packages.
        SourceFolderError: `source` is no checkout.
        KernelModuleError: the kernel lacks a module.
        ToolMissingError, ToolFailedError: a program of the recipe.
    """
    check_source(source)
    check_python(packages)
    tree.copy(packages, root)
    _arrange(root)
    install_modules(kernel, root)
    run(["make", "install", f"DESTDIR={root}", f"NODE_PYTHON={NODE_PYTHON}"], folder=source)
    tree.lay_over(HERE / "system", root)
    _enable(root)
    # Bytecode that nobody checks: times in the image are all the same.
    run([
        NODE_PYTHON, "-I", "-m", "compileall", "-q", "-j", "1", "--invalidation-mode",
        "unchecked-hash", "-s", root, "-p", "/", *sorted((root / "usr/lib").glob("python3.*")),
    ])  # fmt: skip


def check_python(packages: Path) -> None:
    """Refuse a Python that is not the image's: modules and bytecode would not fit.

    Raises:
        PythonDiffersError: they are of different versions.
        ToolMissingError: this machine has none.
    """
    ours = run([NODE_PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    theirs = [path.name.removeprefix("python") for path in (packages / "usr/bin").glob("python3.*")]
    if ours not in theirs:
        raise PythonDiffersError(f"{NODE_PYTHON} is {ours}, the image has {', '.join(theirs)}")


def check_source(source: Path) -> None:
    """Refuse a folder that is no checkout of bascule.

    Raises:
        SourceFolderError: with what it lacks.
    """
    missing = [name for name in SOURCES if not (source / name).exists()]
    if missing:
        raise SourceFolderError(f"{source} is no checkout: it lacks {', '.join(missing)}")


def _sources(source: Path) -> Iterator[Path]:
    for name in SOURCES:
        path = source / name
        if path.is_dir():
            yield from tree.files_below(path)
        elif path.is_file():
            yield path


def _arrange(root: Path) -> None:
    for name in FOLDERS:
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, text in FILES.items():
        tree.place(root, name, text.encode())
    for name, target in LINKS.items():
        tree.link(root, name, target)


def enabled_by(preset: str, units: Path) -> list[tuple[str, str]]:
    """Return the units that a preset enables, each with the target that wants it.

    Args:
        preset: lines of systemd.preset(5) with plain names.
        units: the folder of the unit files.
    """
    names = [line.split()[1] for line in preset.splitlines() if line.startswith("enable ")]
    return [
        (name, target)
        for name in names
        for line in (units / name).read_text().splitlines()
        if line.startswith("WantedBy=")
        for target in line.removeprefix("WantedBy=").split()
    ]


def _enable(root: Path) -> None:
    """Say which units start: of a package's own links nothing is left."""
    for folder in (root / CHOSEN).glob("*.wants"):
        shutil.rmtree(folder)
    chosen = [*ENABLED.items(), *enabled_by((root / PRESET).read_text(), root / SHIPPED)]
    for unit, target in chosen:
        tree.link(root, f"{CHOSEN}/{target}.wants/{unit}", f"/{SHIPPED}/{unit}")
    for unit in MASKED:
        tree.link(root, f"{CHOSEN}/{unit}", "/dev/null")
    for generator in (root / "usr/lib/systemd/system-generators").iterdir():
        if generator.name not in GENERATORS:
            generator.unlink()
