"""What a delta costs beside xdelta3 and zstd: bytes, and CPU and memory to make and apply it.

`BASCULE_BENCH_OLD` and `BASCULE_BENCH_NEW` name a pair of images; else a pair of 16 MiB is made
of the standard library of the Python that runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

BLOCK = 4096  # bytes
MIB = 1024 * 1024
PAIR_SIZE = 16 * MIB
IMAGE_COMMAND = [sys.executable, "-m", "images.cli"]


@dataclass(frozen=True)
class Cost:
    cpu_secs: float
    peak_mib: float


def run(command: Sequence[str]) -> Cost:
    """Run a command and return what it cost; its peak counts mapped file pages, too."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def pair(folder: Path) -> tuple[Path, Path]:
    """Return two versions of an image."""
    if "BASCULE_BENCH_OLD" in os.environ:
        return Path(os.environ["BASCULE_BENCH_OLD"]), Path(os.environ["BASCULE_BENCH_NEW"])
    old, new = bytearray(), bytearray()
    for number, path in enumerate(sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))):
        content = path.read_bytes()
        changed = content.replace(b"self", b"itself") if number % 9 == 0 else content
        for image, data in ((old, content), (new, changed)):
            image += data + bytes(-len(data) % BLOCK)
        if len(old) > PAIR_SIZE:
            break
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    return folder / "old", folder / "new"


def test_a_delta_beside_xdelta3_and_zstd(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    out = str(tmp_path / "out")
    payload, patch, frame = (str(tmp_path / name) for name in ("delta", "patch", "frame"))
    rows = {
        "bascule": (
            [*IMAGE_COMMAND, "build", "--partition", f"usr={new}", "--source", f"usr={old}",
             "--output", payload],
            [*IMAGE_COMMAND, "apply", payload, "--source", f"usr={old}", "--output", f"usr={out}"],
            payload,
        ),
        "xdelta3 -9": (
            ["xdelta3", "-9", "-f", "-e", "-s", str(old), str(new), patch],
            ["xdelta3", "-f", "-d", "-s", str(old), patch, out],
            patch,
        ),
        "zstd -19 --patch-from": (
            ["zstd", "-q", "-f", "-19", "--long=31", f"--patch-from={old}", str(new), "-o", frame],
            ["zstd", "-q", "-f", "-d", "--long=31", f"--patch-from={old}", frame, "-o", out],
            frame,
        ),
    }  # fmt: skip
    print(f"\ndelta of {new.stat().st_size} bytes: bytes, make CPU s / MiB, apply CPU s / MiB")
    for name, (make, apply, product) in rows.items():
        if shutil.which(make[0]) is None:
            print(f"{name}: {make[0]} is not installed")
            continue
        made, applied = run(make), run(apply)
        assert Path(out).read_bytes() == new.read_bytes()
        print(
            f"{name}: {Path(product).stat().st_size},"
            f" {made.cpu_secs:.1f} / {made.peak_mib:.0f},"
            f" {applied.cpu_secs:.2f} / {applied.peak_mib:.0f}"
        )
