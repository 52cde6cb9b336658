"""Real image pairs: `python -m tests.bench.make_images BENCH_DIR [--kinds ext4,erofs,...]`.

Debian 12 by mmdebstrap (root, network, some minutes): v1 out of the main suite alone, v2 with the
security and update suites, v3 as v2 with more packages. Each becomes v1.ext4 and so on in
BENCH_DIR/images; trees stay in BENCH_DIR/trees, so that a run goes on where it was. The archive
moves: a later run has other packages, so quote sizes of one run only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.sim.system_images import EPOCH, FILE_SYSTEMS, VERSIONS, make_file_system

SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd-sysv,systemd-resolved,systemd-timesyncd,udev,dbus,openssh-server,python3,curl,"
    "ca-certificates,iproute2,nftables,docker.io,linux-image-cloud-amd64,initramfs-tools,zstd,"
    "sudo,less,rsync,git,gnupg,cryptsetup-bin,e2fsprogs,openssl,nginx-light,procps,bind9-dnsutils"
)
MORE: Final = "podman,redis-server,prometheus-node-exporter,python3-cryptography"
# What an image leaves out: what a machine writes for itself, and what apt keeps.
REMOVED: Final = (
    "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/log/*",
    "var/cache/ldconfig/aux-cache", "etc/ssh/ssh_host_*", "etc/machine-id", "etc/hostname",
    "etc/resolv.conf", "run/*", "tmp/*", "dev/*",
)  # fmt: skip


def mirrors() -> dict[str, str]:
    """Return the address of each suite that this machine's apt knows."""
    words = [
        "apt-get",
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^(\S+) (\S+)$", done.stdout, re.MULTILINE))


def sources(suites: Sequence[str]) -> list[str]:
    """Return apt's lines for suites, from where this machine's apt has them.

    An old suite's metadata may be past its date, which is no matter here.

    Raises:
        SystemExit: apt here knows one of them not.
    """
    known = mirrors()
    missing = ", ".join(suite for suite in suites if suite not in known)
    if missing:
        raise SystemExit(f"apt here does not know {missing}: add that to its sources")
    return [f"deb [check-valid-until=no] {known[suite]} {suite} main" for suite in suites]


UPDATED: Final = (SUITE, f"{SUITE}-security", f"{SUITE}-updates")
RECIPES: Final = {
    "v1": ((SUITE,), PACKAGES),
    "v2": (UPDATED, PACKAGES),
    "v3": (UPDATED, f"{PACKAGES},{MORE}"),
}


def make_tree(version: str, tree: Path) -> None:
    """Make the tree of a version; it appears whole."""
    suites, packages = RECIPES[version]
    draft = tree.with_name(tree.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    words += [f"--include={packages}", SUITE, str(draft), *sources(suites)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run(words, check=True, env=environment)
    for pattern in REMOVED:
        for path in draft.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (draft, *draft.rglob("*")):
        if path.lstat().st_mtime > EPOCH:
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    draft.rename(tree)


def main(folder: Path, kinds: Sequence[str]) -> None:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for version in VERSIONS:
        tree = folder / "trees" / version
        tree.parent.mkdir(exist_ok=True)
        if not tree.exists():
            print(f"making the tree of {version}", file=sys.stderr)
            make_tree(version, tree)
        for kind in kinds:
            output = images / f"{version}.{kind}"
            if not output.exists():
                print(f"making {output.name}", file=sys.stderr)
                make_file_system(kind, tree, output)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--kinds", default=",".join(FILE_SYSTEMS))
    given = arguments.parse_args()
    main(given.folder.resolve(), given.kinds.split(","))
