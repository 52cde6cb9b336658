"""One update on a real boot loader, and what a cut could have left of it: quick, for every day.

All loaders, all ways in which a version can fail, and the real power cuts are in `make test-boot`
and `make soak`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.boot.archive import Kernel
from tests.e2e.boot.loaders import LOADERS
from tests.e2e.boot.recording import record
from tests.e2e.boot.replay import replay
from tests.sim.gpt_tools import program

pytestmark = pytest.mark.e2e

SAMPLED = 2  # between two flushes; a minute of CPU in all


def test_a_small_update_boots_by_a_real_grub_and_no_cut_breaks_it(
    kernel: Kernel,  # noqa: ARG001  # nothing boots without
    tmp_path: Path,
) -> None:
    program("grub-mkimage")
    if not Path("/usr/lib/grub/i386-pc/boot.img").exists():
        pytest.skip("GRUB for a BIOS is not installed (package grub-pc-bin)")

    recording = record(LOADERS["grub-bios"], tmp_path, whole=False)
    tally = replay(recording, tmp_path / "scratch", sampled=SAMPLED)
    print(f"\ncpu-seconds={recording.cpu_seconds:.1f}")
    print("\n".join(tally.lines()))
    shutil.rmtree(tmp_path)

    assert tally.bricks == 0
    assert set(tally.outcomes) == {"a 1.0.0", "b 2.0.0, then a 1.0.0"}
