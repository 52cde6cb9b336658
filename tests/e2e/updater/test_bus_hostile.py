"""What an unprivileged program may send does not end the service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim import raw_messages
from tests.sim.bus_node import BusNode, bus_node
from tests.sim.message_bus import NOBODY

pytestmark = pytest.mark.e2e

IDLE_MIB = 45
PYTHON = "/usr/bin/python3"  # one that everybody may run


@pytest.fixture(scope="module")
def node() -> Iterator[BusNode]:
    if shutil.which(PYTHON) is None:
        pytest.skip(f"{PYTHON} is not installed (package python3)")
    with bus_node() as made:
        program = made.bus.folder / "raw_messages.py"
        program.write_bytes(Path(raw_messages.__file__).read_bytes())
        made.start()
        made.wait_on_bus()
        yield made


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.parametrize("kind", raw_messages.MESSAGES)
def test_an_odd_message_does_not_end_the_service(node: BusNode, kind: str) -> None:
    program = str(node.bus.folder / "raw_messages.py")
    sent = node.bus.run(PYTHON, program, str(node.bus.socket), kind, user=NOBODY)
    assert sent.returncode == 0, sent.stderr
    assert node.property("State") == "idle"
    assert node.process is not None
    assert node.process.poll() is None
    assert "Traceback" not in node.log
    assert resident_mib(node.process.pid) < IDLE_MIB + 64
