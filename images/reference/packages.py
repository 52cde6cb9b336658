"""Debian's packages as one archive, and which versions they are.

mmdebstrap makes it without root. Fetching is the slow part of the recipe, so the archive is kept
in the cache, under a name that is the hash of what was asked for.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.errors import FileUnreadableError, PackagesDifferError
from images.reference.tools import run

SUITE: Final = "bookworm"  # Debian 12
INCLUDED: Final = (
    "busybox-static", "dbus", "dmsetup", "dosfstools", "e2fsprogs", "iproute2", "kmod",
    "libubootenv-tool", "python3", "systemd", "systemd-resolved", "systemd-sysv",
    "systemd-timesyncd", "tzdata", "udev",
)  # fmt: skip
KERNEL: Final = "linux-image-cloud-amd64"
KERNEL_HOOK: Final = Path(__file__).parent / "fetch-kernel"
PIN_HOOK: Final = (
    'mkdir -p "$1/etc/apt/preferences.d" && cp "$PINS" "$1/etc/apt/preferences.d/exact"'
)
NOT_UNPACKED: Final = ("doc", "info", "locale", "man")
# Of the archive's own stamps, which the image does not keep; it also dates /etc/shadow.
EPOCH: Final = "1735689600"  # 2025-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which packages to fetch.

    Attributes:
        mirror: where from; empty: mmdebstrap's own choice.
        versions: the only version of each package that is right; empty: the newest.
    """

    mirror: str
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        """A name for the archive in the cache."""
        how = (SUITE, *INCLUDED, KERNEL, KERNEL_HOOK.read_text(), EPOCH, *NOT_UNPACKED)
        parts = (*how, self.mirror, preferences(self.versions))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def fetch(wanted: Wanted, cache: Path) -> tuple[Path, dict[str, str]]:
    """Return the archive of the packages, from the cache or made now, and their versions.

    Raises:
        PackagesDifferError: the mirror has other versions than those wanted.
        ToolMissingError, ToolFailedError: mmdebstrap.
    """
    archive = cache / f"packages-{wanted.key}.tar"
    if not archive.exists():
        draft = archive.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        pins = cache / f"packages-{wanted.key}.pref"
        pins.write_text(preferences(wanted.versions))
        given = {"SOURCE_DATE_EPOCH": EPOCH, "METAPACKAGE": KERNEL, "PINS": str(pins)}
        run(_arguments(wanted, draft), environment=given)
        draft.replace(archive)
    versions = versions_in(archive)
    if wanted.versions:
        check_versions(versions, wanted.versions)
    return archive, versions


def _arguments(wanted: Wanted, output: Path) -> list[str | Path]:
    return [
        "mmdebstrap", "--quiet", "--mode=unshare", "--variant=essential", "--format=tar",
        "--architectures=amd64", f"--include={','.join(INCLUDED)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in NOT_UNPACKED),
        f"--setup-hook={PIN_HOOK}", f"--customize-hook={KERNEL_HOOK}",
        SUITE, output, *([wanted.mirror] if wanted.mirror else []),
    ]  # fmt: skip


def preferences(versions: Mapping[str, str]) -> str:
    """Return the apt_preferences(5) by which exactly these versions are installed."""
    return "\n".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n"
        for name, version in sorted(versions.items())
    )


def versions_in(archive: Path) -> dict[str, str]:
    """Return the version of each package in an archive, the kernel's among them.

    Raises:
        FileUnreadableError: the archive names no packages.
    """
    with tarfile.open(archive) as tar:
        try:
            status = tar.extractfile("./var/lib/dpkg/status")
            kernel = tar.extractfile("./kernel/package")
        except KeyError as error:
            raise FileUnreadableError(f"{archive} names no packages: {error}") from error
        if status is None or kernel is None:
            raise FileUnreadableError(f"{archive} names no packages")
        return {**read_status(status.read().decode()), **read_list(kernel.read().decode())}


def read_status(text: str) -> dict[str, str]:
    """Return the version of each package in dpkg's status file."""
    versions: dict[str, str] = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if _is_field(line))
        if "Package" in fields:
            versions[fields["Package"]] = fields["Version"]
    return versions


def read_list(text: str) -> dict[str, str]:
    """Return the packages of a list: a name and a version on each line; `#` begins a comment."""
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


def check_versions(actual: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse other packages than those wanted.

    Raises:
        PackagesDifferError: with the first that differ.
    """
    differing = [
        f"{name} is {actual.get(name, 'absent')}, wanted {wanted.get(name, 'absent')}"
        for name in sorted(actual.keys() | wanted.keys())
        if actual.get(name) != wanted.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise PackagesDifferError(f"{'; '.join(differing[:3])}{more}")


def _is_field(line: str) -> bool:
    return line.startswith(("Package: ", "Version: "))
