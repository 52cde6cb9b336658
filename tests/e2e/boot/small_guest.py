"""A guest that a bare machine builds in seconds: busybox, this Python, this checkout's engine.

Its root is read-only under dm-verity, its root hash lies in the initrd of the slot, its memory on
the state partition: what a cut or a flipped bit does to it is what it does to the reference system,
which has systemd besides. `tiny` roots hold nothing but busybox: they make updates small.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from images.reference import cpio
from images.reference.verity import append_tree
from tests.e2e.boot.archive import Kernel, applets, busybox, libraries, modules, program, tool

CHECKOUT: Final = Path(__file__).parents[3]
ROOMS: Final = ("images", "partitions", "updater")
BLOCK: Final = 4096
MODULES: Final = [
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "erofs", "dm_verity",
    "vfat", "nls_cp437", "nls_ascii", "efivarfs", "watchdog",
]  # fmt: skip
LEFT_OUT: Final = re.compile(
    r"(^|/)(test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip|pydoc_data|__pycache__|"
    r"config-[^/]*|site-packages|distutils)(/|$)"
)
FACTS: Final = """\
product = "acme-os"
board = "amd64-usr"
version = "{version}"
rollback_index = {index}
built = 2026-01-01T00:00:00Z
"""

INITRD: Final = r"""#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" 2>/dev/null; done < /modules.order
for word in $(cat /proc/cmdline); do
  case $word in bascule.slot=*) slot=${word#*=};; esac
done
give_up() { echo "bascule-initrd: $*"; reboot -f; }
device() { # by the partition's label
  found=$(grep -lx "PARTNAME=$1" /sys/class/block/*/uevent) || give_up "no partition $1"
  echo "/dev/$(basename "$(dirname "$found")")"
}
insmod /modules/softdog.ko soft_margin=60 nowayout=1 && : > /dev/watchdog # whatever hangs is reset
read -r version blocks hash < /etc/bascule/verity
root=$(device "root-$slot")
echo "0 $((blocks * 8)) verity 1 $root $root 4096 4096 $blocks $((blocks + 1)) sha256 $hash -" \
  "1 panic_on_corruption" | dmsetup create --readonly --noudevsync --verifyudev root \
  || give_up "root cannot be opened"
mount -t erofs -o ro /dev/mapper/root /newroot || give_up "root cannot be mounted"
mount -t ext4 "$(device state)" /newroot/var || give_up "state cannot be mounted"
mount -t vfat -o umask=0077 "$(device esp)" /newroot/boot || give_up "boot cannot be mounted"
echo "bascule-initrd: slot=$slot version=$version root=verified"
mount --move /dev /newroot/dev; mount --move /proc /newroot/proc; mount --move /sys /newroot/sys
exec switch_root /newroot /sbin/init
"""

INIT: Final = r"""#!/bin/sh
export PATH=/usr/bin:/bin HOME=/run
export PYTHONHOME=/usr PYTHONPATH=/usr/lib/bascule/engine:/usr/lib/bascule/packages
export PYTHONDONTWRITEBYTECODE=1
(exec 3> /dev/watchdog && while :; do echo . >&3; sleep 5; done) &
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mkdir -p /run/bascule /var/lib/bascule /dev/disk/by-partlabel
mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2>/dev/null
for event in /sys/class/block/*/uevent; do # what udev does elsewhere
  label=$(sed -n 's/^PARTNAME=//p' "$event")
  [ -z "$label" ] || ln -s "/dev/$(basename "$(dirname "$event")")" "/dev/disk/by-partlabel/$label"
done
[ -s /var/lib/machine-id ] || echo 0123456789abcdef0123456789abcdef > /var/lib/machine-id
ip link set lo up; ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
echo "GUEST-UP $(cat /proc/cmdline)"
# All of a small root is read, so that dm-verity sees all of it.
[ -e /usr/bin/python3 ] || { cat /dev/mapper/root > /dev/null && echo "GUEST-WHOLE"; }
[ ! -s /var/lib/start ] || . /var/lib/start
while :; do sh /usr/lib/agent; sleep 1; done
"""

AGENT: Final = r"""# Scripts come on the second serial port, whose driver is in the kernel.
exec < /dev/ttyS1 > /dev/ttyS1
stty raw -echo
echo AGENT-READY
while read -r tag script; do
  [ -n "$tag" ] || continue
  printf %s "$script" | base64 -d > /run/agent.script
  sh /run/agent.script > /run/agent.output 2>&1 < /dev/null; status=$?
  echo "RC $tag $status $(base64 -w0 < /run/agent.output)"
done
"""


class Fault(Enum):
    """What can be wrong with a version."""

    KERNEL = "the kernel is none"
    PANIC = "init ends, and the kernel panics"
    HANG = "init hangs"
    UNHEALTHY = "a health check fails"


_INITS: Final = {
    Fault.PANIC: "#!/bin/sh\necho GUEST-PANICS\nexit 1\n",
    Fault.HANG: "#!/bin/sh\necho GUEST-HANGS\nwhile :; do sleep 60; done\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One version of an operating system as the files that a slot consists of.

    Attributes:
        version: as the image itself says it.
        parts: the file of each part: root, kernel, initrd.
        root_hash: of the verity tree behind the root.
        data_blocks: of 4096 bytes, before the tree.
    """

    version: str
    parts: dict[str, Path]
    root_hash: str
    data_blocks: int

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each part."""
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.parts.items()
        }


def build_system(
    folder: Path,
    version: str,
    *,
    rollback_index: int = 1,
    engine: bool = True,
    padding_bytes: int = 0,
    fault: Fault | None = None,
) -> System:
    """Make the files of one version.

    Args:
        folder: where they come to lie.
        version: of the image.
        rollback_index: of the image.
        engine: whether Python and the engine are in it, or busybox alone.
        padding_bytes: of a file that cannot be compressed and differs by version.
        fault: what is wrong with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / f"tree-{version}"
    shutil.rmtree(tree, ignore_errors=True)
    _plant(tree, version, rollback_index, padding_bytes)
    if engine:
        _plant_python(tree)
    if fault in _INITS:
        (tree / "sbin/init").write_text(_INITS[fault])
    (tree / "usr/lib/health").write_text(f"exit {int(fault is Fault.UNHEALTHY)}\n")
    root = folder / f"root-{version}.img"
    root.unlink(missing_ok=True)
    subprocess.run(
        [tool("mkfs.erofs"), "-zlz4hc", "-T0", "-U", "00000000-0000-4000-8000-000000000000",
         "--all-root", str(root), str(tree)],
        check=True, capture_output=True,
    )  # fmt: skip
    shutil.rmtree(tree)
    verity = append_tree(root, uuid="00000000-0000-4000-8000-000000000001")
    kernel = Kernel.fetched()
    opens = f"{version} {verity.data_blocks} {verity.root_hash}\n"
    start = kernel.image.read_bytes() if fault is not Fault.KERNEL else b"no kernel" * 100_000
    contents = {"kernel": start, "initrd": make_initrd(kernel, opens)}
    parts = {"root": root}
    for name, content in contents.items():
        parts[name] = folder / f"{name}-{version}.img"
        parts[name].write_bytes(content + bytes(-len(content) % BLOCK))  # payloads hold blocks
    return System(
        version=version, parts=parts, root_hash=verity.root_hash, data_blocks=verity.data_blocks
    )


def make_initrd(kernel: Kernel, verity: str) -> bytes:
    """Return an initrd that opens the root of the slot that the loader names, and only that."""
    *_, watchdog = kernel.load_order(["softdog"])  # /init loads it by name, with its limit
    archive = cpio.archive(
        [
            *busybox(),
            cpio.file("init", INITRD.encode(), executable=True),
            cpio.file("etc/bascule/verity", verity.encode()),
            *program("bin/dmsetup", Path(tool("dmsetup"))),
            *modules(kernel.load_order(MODULES)),
            cpio.file(f"modules/{watchdog.name}", watchdog.read_bytes()),
        ]
    )
    return subprocess.run(
        [tool("zstd"), "-q", "-9", "-c"], input=archive, capture_output=True, check=True
    ).stdout


def _plant(tree: Path, version: str, rollback_index: int, padding_bytes: int) -> None:
    """Lay out what every guest has."""
    for name in ("bin", "sbin", "usr/bin", "usr/lib/bascule", "etc", "lib64",
                 "proc", "sys", "dev", "run", "tmp", "var", "boot"):  # fmt: skip
        (tree / name).mkdir(parents=True)
    shutil.copy(tool("busybox"), tree / "bin/busybox")
    for applet in applets():
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    (tree / "usr/lib/agent").write_text(AGENT)
    facts = FACTS.format(version=version, index=rollback_index)
    (tree / "usr/lib/bascule/image.toml").write_text(facts)
    (tree / "etc/fw_env.config").write_text("/boot/uboot.env 0x0 0x200\n")
    padding = hashlib.shake_256(version.encode()).digest(padding_bytes)
    (tree / "usr/lib/padding").write_bytes(padding)


def _plant_python(tree: Path) -> None:
    """Lay out the interpreter that runs us, what a node requires, and the engine."""
    base = Path(sys.base_prefix)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sysconfig.get_config_var("BINDIR")) / name
    (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(interpreter, tree / "usr/bin/python3")
    library = Path(sysconfig.get_path("stdlib"))
    assert library.is_relative_to(base), f"{library} is not below {base}"
    _copy_tree(library, tree / "usr/lib" / name)
    packages = tree / "usr/lib/bascule/packages"
    for source, target in _files_of_packages():
        (packages / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, packages / target)
    for room in ROOMS:
        _copy_tree(CHECKOUT / room, tree / "usr/lib/bascule/engine" / room)
    binaries = [tree / "usr/bin/python3", *tree.rglob("*.so")]
    for needed in sorted({library for binary in binaries for library in libraries(binary)}):
        target = tree / str(needed).lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(needed.resolve(), target)
    stripped = [binary for binary in tree.rglob("*.so*") if not binary.is_symlink()]
    for binary in (tree / "usr/bin/python3", *stripped):
        subprocess.run([tool("strip"), "--strip-unneeded", str(binary)], check=False)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j", "1", "--invalidation-mode",
         "unchecked-hash", "-s", str(tree), "-p", "/", str(tree / "usr/lib")],
        check=False, capture_output=True,
    )  # fmt: skip


def _copy_tree(source: Path, target: Path) -> None:
    for folder, folders, files in os.walk(source):
        relative = Path(folder).relative_to(source)
        folders[:] = [name for name in folders if not LEFT_OUT.search(name)]
        (target / relative).mkdir(parents=True, exist_ok=True)
        for file in files:
            if not file.endswith(".a"):
                shutil.copy(Path(folder) / file, target / relative / file)


def _files_of_packages() -> Iterator[tuple[Path, Path]]:
    """Yield the files of what a node requires, and where each lies among its packages."""
    names = re.findall(
        r"^([a-z0-9.-]+)==", (CHECKOUT / "requirements/node.txt").read_text(), flags=re.MULTILINE
    )
    for name in names:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python than this one
        for file in files:
            if ".." not in file.parts and not LEFT_OUT.search(str(file)):
                yield Path(str(file.locate())), Path(file)
