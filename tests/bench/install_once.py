"""One full install by the shipped pipeline, in a process of its own; prints what it cost.

    python -m tests.bench.install_once DISK PAYLOAD_FACTS.json URL PUBLIC_KEY

Memory is VmHWM after it was reset at the idle engine, so it is the peak of the install alone.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path

from images.release import parse_payload_facts
from images.signing import load_public_keys
from partitions.booted import Booted
from partitions.slots import PartRef, Slot, resolve
from updater.download import Download, Patience
from updater.install import verify_slot, write_slot
from updater.pipeline import Shell
from updater.plan import Plan, check_fit
from updater.state import Journal, Store
from updater.trust.fetcher import open_session

MIB = 1024 * 1024


def memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def main(disk: Path, facts_file: Path, url: str, key: Path) -> None:
    described = json.loads(facts_file.read_text())
    layout = {slot: {"usr": PartRef(label=f"USR-{slot.name}")} for slot in Slot}
    regions = resolve(disk, layout)[Slot.B]
    facts = parse_payload_facts(described["facts"])
    plan = Plan(
        facts=facts,
        sha256=described["sha256"],
        size=described["size"],
        slot=Slot.B,
        regions=regions,
        keys=load_public_keys(key),
        checkpoint_bytes=8 * MIB,
        booted=Booted.of_regions(resolve(disk, layout)[Slot.A].values()),
    )
    check_fit(facts, regions)
    store = Store(disk.parent / "bench-state")
    store.prepare()
    stop = threading.Event()
    patience = Patience(idle_timeout_secs=30, retries=0, retry_delay_secs=1)
    shell = Shell(keep_journal=store.write_journal, progress=lambda _: None, stop=stop)
    session = open_session()
    idle_kib = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, cpu = time.perf_counter(), time.process_time()
    with Download(
        [url],
        size=plan.size,
        session=session,
        patience=patience,
        monotonic=time.monotonic,
        stop=stop,
    ) as download:
        written = write_slot(plan, download, Journal(sha256=plan.sha256, slot="b"), shell)
        wrote = time.perf_counter()
        verify_slot(written)
        result = {
            "wall": time.perf_counter() - began,
            "write": wrote - began,
            "cpu": time.process_time() - cpu,
            "system": resource.getrusage(resource.RUSAGE_SELF).ru_stime,
            "idle_mib": idle_kib / 1024,
            "above_idle_mib": (memory_kib("VmHWM") - idle_kib) / 1024,
            "downloaded_mb": download.received / 1e6,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
