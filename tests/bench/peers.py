"""The peers: what they are given, how they are started. Those that are not installed are named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.rounds import Competitor

TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
BUS_SECS: Final = 10.0
STEP_SECS: Final = 0.1

VERSION_COMMANDS: Final[Mapping[str, Sequence[str]]] = {
    "swupdate": ("dpkg-query", "-Wf", "${Version}", "swupdate"),  # its own says less
    "rauc": ("rauc", "--version"),
    "xdelta3": ("xdelta3", "-V"),
    "zstd": ("zstd", "--version"),
    "curl": ("curl", "--version"),
    "openssl": ("openssl", "version"),
    "nginx": ("/usr/sbin/nginx", "-v"),
}

KEYS: Final = """\
openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 3650 \
  -subj /CN=root -addext keyUsage=critical,keyCertSign,cRLSign
openssl req -newkey rsa:2048 -nodes -keyout sign.key -out sign.csr -subj /CN=signer
printf 'basicConstraints=CA:FALSE\\nkeyUsage=digitalSignature\\nextendedKeyUsage=%s\\n' \
  emailProtection,codeSigning > extensions
openssl x509 -req -in sign.csr -CA root.pem -CAkey root.key -CAcreateserial -days 3000 \
  -extfile extensions -out sign.pem
"""


def missing(*programs: str) -> str:
    """Return the programs that are not installed, with commas between; empty for none."""
    return ", ".join(name for name in programs if shutil.which(name, path=TOOLS) is None)


def versions() -> dict[str, str]:
    """Return the version of each program that is there."""
    found: dict[str, str] = {}
    for name, command in VERSION_COMMANDS.items():
        if missing(name):
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        number = re.search(r"\d+\.[\w.+~-]*\w", done.stdout + done.stderr)
        if number:
            found[name] = number[0]
    return found


def certificates(folder: Path) -> Path:
    """Return the folder of the certificates that bundles are signed with, made once."""
    if not (folder / "sign.pem").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["sh", "-ec", KEYS], cwd=folder, check=True, capture_output=True)
    return folder


def swupdate_bundle(packed: Path, device: Path, keys: Path, scratch: Path) -> str:
    """Return the line of shell that makes a signed bundle of a zstd-compressed image.

    Its device is a link, since the loop device of a later run may be another one.
    """
    folder = scratch / "swupdate-bundle"
    return f"""\
rm -rf {folder}; mkdir {folder}; cd {folder}; ln {packed} image.zst || cp {packed} image.zst
cat > sw-description <<END
software = {{
  version = "2"; hardware-compatibility: [ "1.0" ];
  images: ( {{ filename = "image.zst"; device = "{device}"; type = "raw"; compressed = "zstd";
    installed-directly = true; sha256 = "$(sha256sum < image.zst | cut -c1-64)"; }} );
}}
END
openssl cms -sign -binary -nosmimecap -outform DER -in sw-description \\
  -out sw-description.sig -signer {keys}/sign.pem -inkey {keys}/sign.key
printf '%s\\n' sw-description sw-description.sig image.zst | cpio -o -H crc > {{output}}
cd ..; rm -rf {folder}"""


def swupdate(url: str, keys: Path, scratch: Path) -> Competitor:
    """Return swupdate, which streams the bundle and writes the image as it comes."""
    settings = scratch / "swupdate.cfg"
    settings.write_text("globals: { verbose = false; loglevel = 2; };\n")
    command = f"swupdate -f {settings} -M -k {keys}/root.pem -H bench:1.0 -d '-u {url}'"
    return Competitor(
        name="swupdate",
        command=command,
        environment={"TMPDIR": str(scratch)},
        note="checks a signature, hashes what is packed; reads nothing back",
    )


def rauc_bundle(image: Path, keys: Path, scratch: Path) -> str:
    """Return the line of shell that makes a signed bundle of format plain."""
    folder = scratch / "rauc-bundle"
    return f"""\
rm -rf {folder}; mkdir {folder}; ln {image} {folder}/image.img || cp {image} {folder}/image.img
cat > {folder}/manifest.raucm <<END
[update]
compatible=bench
version=2
[bundle]
format=plain
[image.rootfs]
filename=image.img
END
rauc --cert={keys}/sign.pem --key={keys}/sign.key --keyring={keys}/root.pem \\
  --mksquashfs-args='-comp zstd -no-progress' bundle {folder} {{output}}
status=$?; rm -rf {folder}; exit $status"""


@dataclass(frozen=True, kw_only=True)
class Rauc:
    """RAUC's service on a message bus of its own, with two slots.

    Attributes:
        folder: for its files.
        keys: the certificates.
        booted, target: the devices of the slots.
    """

    folder: Path
    keys: Path
    booted: Path
    target: Path

    @property
    def environment(self) -> dict[str, str]:
        """What service and command must know."""
        return {
            "DBUS_STARTER_BUS_TYPE": "session",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.folder}/bus",
            "TMPDIR": str(self.folder),
        }

    def configure(self) -> Path:
        """Write its settings."""
        (self.folder / "mnt").mkdir(parents=True, exist_ok=True)
        settings = self.folder / "system.conf"
        settings.write_text(
            "[system]\ncompatible=bench\nbootloader=noop\nbundle-formats=plain\n"
            f"mountprefix={self.folder}/mnt\nstatusfile={self.folder}/status\n"
            f"max-bundle-download-size={2**33}\n"
            f"[keyring]\npath={self.keys}/root.pem\n"
            f"[slot.rootfs.0]\ndevice={self.booted}\ntype=raw\nbootname=A\n"
            f"[slot.rootfs.1]\ndevice={self.target}\ntype=raw\nbootname=B\n"
        )
        return settings

    @contextlib.contextmanager
    def service(self) -> Iterator[int | None]:
        """Start bus and service; give the service's process id."""
        settings = self.configure()
        bus_file = self.folder / "bus"
        for old in (bus_file, self.folder / "status"):
            old.unlink(missing_ok=True)
        address = f"--address=unix:path={bus_file}"
        with contextlib.ExitStack() as stack:
            bus = _start(["dbus-daemon", "--session", "--nofork", "--nopidfile", address])
            stack.callback(_end, bus)
            _until(bus_file.exists)
            command = ["rauc", f"--conf={settings}", "--override-boot-slot=A", "service"]
            service = _start(command, self.environment)
            stack.callback(_end, service)
            _until(self._answers)
            yield service.pid

    def _answers(self) -> bool:
        done = subprocess.run(
            ["rauc", "status"],
            env={**os.environ, **self.environment},
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def competitor(self, url: str) -> Competitor:
        """Return it as it installs a bundle from a server."""
        return Competitor(
            name="rauc",
            command=["rauc", "install", url],
            environment=self.environment,
            service=self.service,
            note="downloads the bundle to a file, checks its signature and every byte of it, then "
            "mounts it and copies; its peak counts mapped pages of that file; reads nothing back",
        )


def _start(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def _until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BUS_SECS
    while not there():
        if time.monotonic() > deadline:
            raise RuntimeError("a peer's service did not start")
        time.sleep(STEP_SECS)


def threads(url: str, target: Path, sha256: str) -> Competitor:
    """Return plain Python with a thread for each stage."""
    words = [sys.executable, "-m", "tests.bench.threads_peer", url, str(target), sha256]
    return Competitor(
        name="Python threads, O_DIRECT",
        command=words,
        note="no signature, no journal, reads nothing back",
    )


def pipe(url: str, target: Path) -> Competitor:
    """Return the pipeline of a shell."""
    return Competitor(
        name="curl, zstd -d, tee to sha256, dd",
        # A pipe with a name, and not bash's own: its CPU must be waited for to be counted.
        command=f"pipe=$(mktemp -u) && mkfifo $pipe; openssl dgst -sha256 < $pipe >&2 &"
        f" curl -sf {url} | zstd -qdc | tee $pipe"
        f" | dd of={target} bs=4M iflag=fullblock oflag=direct conv=fsync,notrunc status=none;"
        " status=$?; wait; rm $pipe; exit $status",
        note="no signature, reads nothing back",
    )


def alone(url: str, packed: Path, image: Path, target: Path) -> list[Competitor]:
    """Return the parts of an install, each by itself: what no install can be below."""
    return [
        Competitor(name="download alone (curl)", command=f"curl -sf {url} > /dev/null",
                   installs=False),
        Competitor(name="decompress alone (zstd -d)", command=f"zstd -qdc {packed} > /dev/null",
                   installs=False),
        Competitor(name="SHA-256 alone (openssl)", command=["openssl", "dgst", "-sha256",
                   str(image)], installs=False),
        Competitor(name="write alone (dd, direct)",
                   command=f"dd if={image} of={target} bs=4M oflag=direct conv=fsync,notrunc"
                   " status=none"),
    ]  # fmt: skip
