"""One install by the engine's own path, in a process of its own; prints what it cost.

    python -m tests.bench.install_once URL TARGET [--booted DEVICE] [--state FOLDER] [--no-reuse]
    python -m tests.bench.install_once --forks

`URL.facts.json` is what `tests.bench.facts` wrote beside the payload: on a node TUF vouches for it.
TARGET and the booted image are block devices or files. From the reading of the booted slot,
which a planner does once in a boot, to reading back, what runs is what the service runs after it
disarmed the passive slot; the state folder remembers, so that the same command goes on after a
kill.

With `--forks` it reads such arguments, a JSON list a line, and forks for each: prints the child's
process id at once, then what the child prints, then its exit status (negative: the signal).

Memory is VmHWM after it was reset at the idle engine, so it is the peak of the install alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from typing_extensions import override

from images.release import PayloadFacts, parse_payload_facts
from images.signing import TrustedKeys, load_public_keys
from partitions.booted import Booted
from partitions.slots import Region, Slot
from updater.install import verify_slot
from updater.machine import Boot
from updater.node import Node
from updater.plan import Plan, check_fit
from updater.planning import require_source
from updater.progress import ProgressFile
from updater.settings import DownloadSettings, NodeSettings, Settings
from updater.state import Store
from updater.trust.fetcher import open_session
from updater.writing import write

FACTS_MAX_BYTES = 256 * 1024


class TwoRegions(Node):
    """A node without a loader whose slots are two devices or files: what a write needs of one."""

    slots: Mapping[Slot, Mapping[str, Region]]

    @override
    def boot(self) -> Boot:
        return Boot(slot=Slot.A, boot_id="bench")

    @override
    def regions(self, slot: Slot) -> dict[str, Region]:
        return dict(self.slots[slot])


def memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def described(url: str) -> dict[str, Any]:
    """Return what stands beside the payload; as much as facts may be, no more."""
    with open_session() as session, session.get(url + ".facts.json", timeout=30) as answer:
        answer.raise_for_status()
        return cast("dict[str, Any]", json.loads(answer.content[:FACTS_MAX_BYTES]))


def region(path: Path, label: str) -> Region:
    with path.open("rb") as file:
        size = os.lseek(file.fileno(), 0, os.SEEK_END)
    return Region(path=path.resolve(), offset=0, size=size, partuuid=label, label=label)


def trusted(pem: str, folder: Path) -> TrustedKeys | None:
    if not pem:
        return None
    (folder / "payload.pub.pem").write_text(pem)
    return load_public_keys(folder / "payload.pub.pem")


def node_of(state: Path, slots: Mapping[Slot, Mapping[str, Region]]) -> TwoRegions:
    store = Store(state)
    store.prepare()
    nowhere = cast("Any", None)
    node = TwoRegions(
        settings=Settings(node=NodeSettings(run_folder=str(state / "run"))),
        layout={},
        machine=nowhere,
        loader=nowhere,
        loader_choice=nowhere,
        store=store,
        clock=lambda: datetime.now(UTC),
        chance=lambda: 0.5,
        trust=nowhere,
        permits=nowhere,
        http=open_session,
        director=None,
        progress=ProgressFile(state / "run", time.monotonic),
        stop=threading.Event(),
    )
    node.slots = slots
    return node


def plan_of(
    node: TwoRegions,
    facts: PayloadFacts,
    about: Mapping[str, Any],
    booted: Booted,
    keys: TrustedKeys | None,
    *,
    reuse: bool,
    checkpoint_bytes: int,
) -> Plan:
    return Plan(
        facts=facts,
        sha256=about["sha256"],
        size=about["size"],
        slot=Slot.B,
        regions=node.regions(Slot.B),
        keys=keys,
        checkpoint_bytes=checkpoint_bytes,
        booted=booted,
        workers=node.settings.download.workers,
        sources=node.regions(Slot.A),
        reuse=reuse,
    )


def install(arguments: argparse.Namespace, state: Path) -> dict[str, float | str]:
    about = described(arguments.url)
    facts = parse_payload_facts(about["facts"])
    name = facts.partitions[0].name
    slots = {Slot.B: {name: region(arguments.target, "target")}, Slot.A: {}}
    if arguments.booted:
        slots[Slot.A] = {name: region(arguments.booted, "booted")}
    node = node_of(state, slots)
    booted = Booted.of_regions(slots[Slot.A].values())
    plan = plan_of(
        node, facts, about, booted, trusted(about["key"], state),
        reuse=arguments.reuse, checkpoint_bytes=arguments.checkpoint_kib * 1024,
    )  # fmt: skip
    check_fit(facts, plan.regions)
    idle_kib = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    began, cpu = time.perf_counter(), time.process_time()
    require_source(node, facts)
    written = write(node, plan, [arguments.url], version="2", counted_as="2")
    wrote = time.perf_counter()
    verified = verify_slot(written)
    journal = node.store.read_journal()
    return {
        "version": verified.version,
        "wall": time.perf_counter() - began,
        "write": wrote - began,
        "cpu": time.process_time() - cpu,
        "idle_mib": idle_kib / 1024,
        "above_idle_mib": (memory_kib("VmHWM") - idle_kib) / 1024,
        "downloaded": journal.downloaded if journal is not None else 0,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("url")
    made.add_argument("target", type=Path)
    made.add_argument("--booted", type=Path, help="the image of the running system")
    made.add_argument("--state", type=Path, help="kept from one try to the next")
    made.add_argument("--no-reuse", dest="reuse", action="store_false", help="fetch all of it")
    made.add_argument(
        "--checkpoint-kib", type=int, default=DownloadSettings().checkpoint_mib * 1024,
        help="what is fetched between two flushes",
    )  # fmt: skip
    return made


def main(words: list[str]) -> None:
    logging.basicConfig(level=logging.WARNING)
    arguments = parser().parse_args(words)
    if arguments.state is not None:
        print(json.dumps(install(arguments, arguments.state)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="bascule-bench-") as folder:
        print(json.dumps(install(arguments, Path(folder))), flush=True)


def serve_forks() -> None:
    """Fork for each line: a new process of the engine, without loading Python anew."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                main(json.loads(line))
                status = 0
            except BaseException:  # noqa: BLE001  # a child never returns into the loop
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--forks"]:
        serve_forks()
    else:
        main(sys.argv[1:])
