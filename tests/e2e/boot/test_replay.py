"""What a disk may hold when the power fails: judged for every write of a whole, recorded update.

Kill -9 of QEMU is a crash of the guest, and loses nothing that the host has: it cannot show a flush
that is missing. The disk's own log of writes can.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.boot.archive import Kernel
from tests.e2e.boot.loaders import LOADERS, Loader
from tests.e2e.boot.recording import record
from tests.e2e.boot.replay import flushes, replay

pytestmark = [pytest.mark.e2e, pytest.mark.boot]

STATES_MIN = 10_000
SAMPLED = 30  # between two flushes


def test_no_state_that_a_cut_can_leave_is_a_brick(loader: Loader, tmp_path: Path) -> None:
    recording = record(loader, tmp_path)
    tally = replay(recording, tmp_path / "scratch", sampled=SAMPLED)
    print(
        f"\n{loader.name}: recorded cpu-seconds={recording.cpu_seconds:.1f} "
        f"writes-and-flushes={len(recording.steps)} flushes={flushes(recording)}"
    )
    print("\n".join(tally.lines()))
    shutil.rmtree(tmp_path)  # a gigabyte

    assert tally.bricks == 0
    assert tally.states >= STATES_MIN
    assert {outcome.partition(",")[0] for outcome in tally.outcomes} == {"a 1.0.0", "b 2.0.0"}


@pytest.mark.parametrize(
    ("name", "fault"),
    [("grub-bios", "arm-before-data"), ("gptprio", "both-tables-at-once")],
)
def test_a_wrong_order_of_two_writes_is_caught(
    name: str,
    fault: str,
    kernel: Kernel,  # noqa: ARG001  # nothing boots without
    tmp_path: Path,
) -> None:
    tally = replay(
        record(LOADERS[name], tmp_path, whole=False, faults=[fault]), tmp_path / "scratch"
    )
    print(f"\n{name}, {fault}")
    print("\n".join(tally.lines()))
    shutil.rmtree(tmp_path)

    assert tally.bricks > 0
    assert "a 1.0.0" in tally.outcomes  # and not because everything is taken for one
