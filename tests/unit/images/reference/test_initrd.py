"""The initrd's shell: what can be told about it without a machine. Its busybox runs it here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.reference.initrd import INIT


@dataclass
class Check:
    """The functions that check the state, with a terminal in the place of the watchdog.

    A terminal is a device, too: whether it is fed shows at its other end, and whether somebody
    still has it open.
    """

    folder: Path
    watchdog: Path
    end: int

    def run(self, e2fsck: str, *, limit: int = 60, sleep: str = "") -> str:
        """Check with a program of ours; returns the words on the console."""
        path = self.folder / "bin/e2fsck"
        path.write_text(f"#!/bin/sh\ncd {self.folder}\n{e2fsck}\n")
        path.chmod(0o755)
        # It sleeps for a moment, and notes whether the watchdog was left open for it.
        noting = f"[ ! -e /proc/self/fd/3 ] || : >{self.folder}/inherited"
        naps = f"sleep() {{ {noting}; {sleep or 'command sleep 0.1'}; }}"
        text = INIT.read_text()
        functions = text[text.index("say() {") : text.index("mount -t proc")]
        functions = functions.replace("/dev/watchdog", str(self.watchdog))
        functions = functions.replace("/run/e2fsck.log", str(self.folder / "log"))
        outcome = subprocess.run(
            ["busybox", "sh", "-c", f"{naps}\nlimit={limit}\n{functions}\ncheck /dev/state"],
            env={"PATH": f"{self.folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return outcome.stdout + outcome.stderr

    def eaten(self) -> bytes:
        """Return all that the watchdog was given; ends once nobody has it open."""
        found = b""
        try:
            while piece := os.read(self.end, 4096):
                found += piece
        except OSError:  # EIO: the last one has closed it
            return found
        return found


@pytest.fixture
def check(tmp_path: Path) -> Iterator[Check]:
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed (package busybox-static)")
    (tmp_path / "bin").mkdir()
    end, device = os.openpty()
    tty.setraw(device)
    path = Path(os.ttyname(device))
    os.close(device)
    yield Check(tmp_path, path, end)
    os.close(end)


def test_a_long_check_is_fed_until_its_end_and_the_watchdog_is_left_counting(check: Check) -> None:
    said = check.run("busybox sleep 2")

    eaten = check.eaten()

    assert eaten.count(b".\n") >= 2
    assert b"V" not in eaten  # the word that stops it
    assert not (check.folder / "inherited").exists()
    assert (
        said == "bascule-initrd: the check of the state takes long: it may go on for 60 seconds\n"
    )


def test_a_check_that_is_over_soon_does_not_open_the_watchdog(check: Check) -> None:
    assert check.run("exit 0", sleep="exec >/dev/null 2>&1; exec sleep 1000") == ""
    assert check.eaten() == b""


def test_a_check_that_does_not_end_is_left(check: Check) -> None:
    said = check.run("while :; do busybox sleep 1; done", limit=1)
    assert "e2fsck of /dev/state ended with 143, it is mounted all the same" in said
    check.eaten()  # comes to an end: nobody feeds it any more


def test_what_a_check_could_not_repair_is_said(check: Check) -> None:
    said = check.run("echo UNEXPECTED INCONSISTENCY; exit 4")
    assert "ended with 4, it is mounted all the same: UNEXPECTED INCONSISTENCY" in said
