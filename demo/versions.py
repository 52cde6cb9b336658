"""Real images for the demo: file systems made of this Python installation's own files."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from images.release import ImageFacts, encode_image_facts

PRODUCT: Final = "demo-os"
BOARD: Final = "model"
CONTENT_BYTES: Final = 72 * 1024 * 1024  # of real files in each image
IMAGE_SIZE: Final = "112M"
TOOL_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of the demo's OS.

    Attributes:
        name: the version.
        rollback_index: of its release.
        healthy: whether its own health check passes.
    """

    name: str
    rollback_index: int
    healthy: bool = True


def make_image(version: Version, root_json: Path, folder: Path) -> Path:
    """Make an ext4 image of `version`, the content of which no other version has.

    Args:
        version: what it is.
        root_json: the trusted TUF root that the image carries.
        folder: where it is made.
    """
    tree = folder / f"tree-{version.name}"
    _copy_real_files(tree / "usr/lib/python", version)
    own = tree / "usr/lib/bascule"
    own.mkdir(parents=True)
    facts = ImageFacts(
        product=PRODUCT,
        board=BOARD,
        version=version.name,
        rollback_index=version.rollback_index,
        built=datetime.now(UTC).replace(microsecond=0),
    )
    (own / "image.toml").write_bytes(encode_image_facts(facts))
    shutil.copyfile(root_json, own / "root.json")
    check = tree / "usr/lib/demo/healthcheck"
    check.parent.mkdir(parents=True)
    verdict = "exit 0" if version.healthy else "echo the service does not start >&2\nexit 1"
    check.write_text(f"#!/bin/sh\n# health of version {version.name}\n{verdict}\n")
    image = folder / f"{version.name}.ext4"
    tool = shutil.which("mkfs.ext4", path=TOOL_PATH)
    if tool is None:
        raise SystemExit("the demo needs mkfs.ext4: install e2fsprogs")
    owner = "root_owner=0:0"
    subprocess.run(
        [
            tool,
            "-q",
            "-F",
            "-d",
            str(tree),
            "-E",
            owner,
            "-O",
            "^has_journal",
            str(image),
            IMAGE_SIZE,
        ],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(tree)
    return image


def _copy_real_files(into: Path, version: Version) -> None:
    """Copy files of the installation until there are enough; every tenth is changed."""
    paths = sysconfig.get_paths()
    copied = 0
    for base in dict.fromkeys((paths["stdlib"], paths["purelib"], paths["platlib"])):
        for source in sorted(Path(base).rglob("*")):
            if copied >= CONTENT_BYTES:
                return
            if source.is_symlink() or not source.is_file() or "__pycache__" in source.parts:
                continue
            target = into / Path(base).name / source.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            size = source.stat().st_size
            copied += size
            if size % 10 == 0:
                with target.open("ab") as file:
                    file.write(f"\n# changed in {version.name}\n".encode())
