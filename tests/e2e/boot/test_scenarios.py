"""Updates on real boot loaders: the new version is confirmed, or the machine is back on the old.

Each begins with slot A booted and confirmed, and the engine waiting. What the loader chooses, and
what it counts, is its own doing; nothing but the update is told to the guest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.boot.bench import OLD, Bench
from tests.e2e.boot.machine import VirtualMachine
from tests.e2e.boot.node import CONFIG, SERVICE, START, put, say_go
from tests.e2e.boot.small_guest import Fault, System, build_system

pytestmark = [pytest.mark.e2e, pytest.mark.boot]

NUMBERS = itertools.count(1)
PADDING_BYTES = 1 << 20
ASK = f"cd /run; python3 -m updater.cli --direct --config {CONFIG}"

CAUSES = {
    Fault.KERNEL: "trial-boot-failed",
    Fault.PANIC: "trial-boot-failed",
    Fault.HANG: "trial-boot-failed",
    Fault.UNHEALTHY: "trial-unhealthy",
}


@pytest.fixture
def guest(bench: Bench) -> Iterator[VirtualMachine]:
    """Give a machine whose service comes up with each boot."""
    with bench.begun() as machine:
        put(machine, START, SERVICE.encode())
        machine.run("sync")
        began = machine.cpu_seconds
        yield machine
        print(f"\n{bench.loader.name}: cpu-seconds={machine.cpu_seconds - began:.1f}", end=" ")


def offer(bench: Bench, *, engine: bool = False, fault: Fault | None = None) -> System:
    """Publish a version above the running one."""
    number = next(NUMBERS)
    system = build_system(
        bench.folder,
        f"2.0.{number}",
        rollback_index=2,
        engine=engine,
        padding_bytes=PADDING_BYTES,
        fault=fault,
    )
    bench.publisher.release(system, rollback_index=2)
    return system


def status_of(guest: VirtualMachine) -> dict[str, Any]:
    """Return what `bascule status` says in the guest."""
    facts: dict[str, Any] = json.loads(guest.run(f"{ASK} status --json"))
    return facts


def history_of(guest: VirtualMachine) -> list[dict[str, Any]]:
    """Return what `bascule history` says in the guest."""
    rows: list[dict[str, Any]] = json.loads(guest.run(f"{ASK} history --json"))
    return rows


def require_back_on_a(guest: VirtualMachine, version: str) -> str:
    """Wait until the old version knows what happened, and return the cause that it tells."""
    guest.expect(f"slot=a version={OLD} root=verified")
    guest.expect("update did not hold|state changed from=rebooting to=idle")
    guest.expect_agent()
    status = status_of(guest)
    assert status["state"] in {"idle", "checking"}
    assert version in status["denied"]
    assert [row for row in history_of(guest) if row.get("version") == version]
    return str(status["last_failure"]["code"])


def test_an_update_is_booted_on_trial_and_confirmed(bench: Bench, guest: VirtualMachine) -> None:
    new = offer(bench, engine=True)
    say_go(guest)
    guest.expect(f"slot=b version={new.version} root=verified")
    guest.expect("slot confirmed slot=b")
    guest.expect("state changed from=trial to=idle")

    guest.reset()
    guest.expect(f"slot=b version={new.version} root=verified")


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_a_version_that_does_not_work_ends_on_the_old_one_which_says_why(
    bench: Bench, guest: VirtualMachine, fault: Fault
) -> None:
    bad = offer(bench, engine=fault is Fault.UNHEALTHY, fault=fault)
    if fault is Fault.UNHEALTHY:
        guest.run(f"sed -i 's/^deadline_secs.*/deadline_secs = 60/' {CONFIG}; sync")
    say_go(guest)
    guest.expect("reboot ordered")

    cause = require_back_on_a(guest, bad.version)

    assert cause == CAUSES[fault]


def test_a_bit_that_flips_in_the_armed_slot_is_caught_at_boot(
    bench: Bench, guest: VirtualMachine
) -> None:
    new = offer(bench)
    # The word comes while the reboot is held back, so that the bit flips in an armed slot.
    guest.run(f'sed -i \'s/^reboot_command.*/reboot_command = ["sleep", "1"]/\' {CONFIG}')
    say_go(guest)
    guest.expect("reboot ordered")
    device = "/dev/disk/by-partlabel/root-b"
    guest.run(
        f"byte=$(dd if={device} bs=1 skip=1024 count=1 2>/dev/null | hexdump -e '1/1 \"%d\"')\n"
        f'printf "\\\\$(printf %03o $((byte ^ 1)))" '
        f"| dd of={device} bs=1 seek=1024 conv=notrunc,fsync 2>/dev/null\n"
        f'sed -i \'s/^reboot_command.*/reboot_command = ["reboot", "-f"]/\' {CONFIG}; sync'
    )
    guest.reset()
    guest.expect("verity: .*corrupt|root cannot be mounted|refused")

    cause = require_back_on_a(guest, new.version)

    assert cause == "trial-boot-failed"


def test_a_machine_without_power_for_a_while_goes_on_with_its_update(
    bench: Bench, guest: VirtualMachine
) -> None:
    new = offer(bench)
    say_go(guest)
    guest.expect("to=verifying")
    guest.cut_power()

    with bench.switched_on() as again:
        again.expect(f"slot=a version={OLD} root=verified")
        again.expect("slot armed slot=b version=")
        again.expect(f"slot=b version={new.version} root=verified")
