"""Power cuts without end: kill a machine while it updates, see that it comes up, count.

    python -m tests.e2e.boot.soak --loader all --cuts 1000 [--seed 1] [--results FILE]

Of each loader a machine is kept as it was when the engine in it waited for a word: to update, to
write, to reboot. Each cut begins there, says the word, kills QEMU at a seeded random moment
of writing, arming or the trial, or when the guest says one of a few words, and boots the disk as it
was left, by the real loader, until the initrd has verified a root. Every other time this boot is
cut too, at any moment of it: the power that came back goes again. Moments are drawn in CPU seconds
of QEMU: other load moves them little.

A disk file of kind qcow2 forgets what was not flushed when its QEMU is killed (its tables are
written at a flush), so a cut loses what a disk's own cache would. What else a disk may do is shown
by the replay of a recorded update; both figures stand in the last table. Results are written as
they come: a soak that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.e2e.boot.archive import CACHE
from tests.e2e.boot.bench import ARMED, BEGUN, OLD, UP, WAITING, Bench
from tests.e2e.boot.loaders import LOADERS, Loader
from tests.e2e.boot.machine import LIMIT_SECS, GuestError, VirtualMachine
from tests.e2e.boot.node import say_reboot, say_update, say_write
from tests.e2e.boot.recording import NEW, record
from tests.e2e.boot.replay import replay
from tests.e2e.boot.small_guest import build_system

ROWS_PER_LINE: Final = 20
KINDS: Final = ("write", "write", "arm", "trial", "word")
WORDS: Final = (  # of engine, kernel and initrd, at which the power goes
    (WAITING, "install begins"),
    (BEGUN, "to=verifying"),
    (BEGUN, "slot armed"),
    (BEGUN, "ENGINE-ARMED"),
    (ARMED, "reboot ordered"),
    (ARMED, "bascule-initrd: slot=b"),
)
SNAPSHOTS: Final = {"write": BEGUN, "arm": BEGUN, "trial": ARMED}
SAY: Final = {WAITING: say_update, BEGUN: say_write, ARMED: say_reboot}
REACHED: Final = {WAITING: "before", BEGUN: "install begins", ARMED: "ENGINE-ARMED"}
AGAIN_SHARE: Final = 0.5  # of the boots after a cut, how many are cut themselves
LOOK_SECS: Final = 0.005
STATES_SAMPLED: Final = 30  # between two flushes: what makes 10,000 states of an update


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When what happens in an update that is not cut, in CPU seconds.

    Attributes:
        written, armed: after the word to write.
        tried: after the word to reboot, when the new version is up.
        boot: after the machine is switched on, when a version is up.
    """

    written: float
    armed: float
    tried: float
    boot: float

    def draw(self, kind: str, chance: random.Random) -> float:
        """Return a moment of that kind."""
        spans = {
            "write": (0.0, self.written),
            "arm": (self.written - 0.1, self.armed + 0.1),
            "trial": (0.0, self.tried + 0.3),
            "again": (0.0, self.boot),
        }
        return chance.uniform(*spans[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One power cut and what came after.

    Attributes:
        loader, number, seed: which one it is.
        kind, moment: when; the moment in CPU seconds after the word.
        reached: how far the update was: the last word of it on the console.
        again: when the boot after it was cut too, in CPU seconds after it began; else None.
        slot, version: what booted; empty for a brick.
        why: of a brick.
        cpu_seconds: of both machines.
    """

    loader: str
    number: int
    seed: int
    kind: str
    moment: float
    reached: str
    again: float | None
    slot: str
    version: str
    why: str
    cpu_seconds: float


def calibrate(bench: Bench) -> Moments:
    """Let one update happen, and a boot, and take the times."""
    seen = {}
    with bench.begun(BEGUN) as guest:
        start = guest.cpu_seconds
        say_write(guest)
        for name, pattern in (("written", "to=verifying"), ("armed", "ENGINE-ARMED")):
            guest.expect(pattern)
            seen[name] = guest.cpu_seconds - start
        say_reboot(guest)
        start = guest.cpu_seconds
        guest.expect(UP)
        seen["tried"] = guest.cpu_seconds - start
    with bench.switched_on() as guest:
        guest.expect(UP)
        seen["boot"] = guest.cpu_seconds
    return Moments(**seen)


def cut_once(bench: Bench, number: int, seed: int, moments: Moments) -> Cut:
    """Cut once, and boot what is left."""
    chance = random.Random(f"{bench.loader.name} {seed} {number}")
    kind = chance.choice(KINDS)
    snapshot, word = chance.choice(WORDS)
    snapshot = SNAPSHOTS.get(kind, snapshot)
    with bench.begun(snapshot) as guest:
        start = guest.cpu_seconds
        SAY[snapshot](guest)
        if kind == "word":
            with contextlib.suppress(GuestError):  # then it is cut wherever it is
                guest.expect(word)
        else:
            _let_it_run(guest, moments.draw(kind, chance))
        guest.cut_power()
        moment = guest.cpu_seconds - start
        reached = _last_word(guest.console, REACHED[snapshot])
        spent = guest.cpu_seconds
    again = None
    if chance.random() < AGAIN_SHARE:
        with bench.switched_on() as guest:
            _let_it_run(guest, moments.draw("again", chance))
            guest.cut_power()
            again = round(guest.cpu_seconds, 2)
            spent += again
    slot, version, why = "", "", ""
    with bench.switched_on() as guest:
        try:
            _, slot, version = guest.expect(UP).group(0, 1, 2)
            if slot == "b":
                guest.expect("GUEST-WHOLE")
        except GuestError as error:
            why = str(error)
        spent += guest.cpu_seconds
    return Cut(
        loader=bench.loader.name,
        number=number,
        seed=seed,
        kind=kind,
        moment=round(moment, 2),
        reached=reached,
        again=again,
        slot=slot,
        version=version,
        why=why or _wrong(slot, version),
        cpu_seconds=round(spent, 1),
    )


def _let_it_run(guest: VirtualMachine, cpu_seconds: float) -> None:
    """Wait until QEMU has used so much more; a machine that idles uses hardly any."""
    wanted = guest.cpu_seconds + cpu_seconds
    end = time.monotonic() + LIMIT_SECS
    while guest.cpu_seconds < wanted and time.monotonic() < end:
        time.sleep(LOOK_SECS)


def _last_word(console: str, nothing: str) -> str:
    words = ["install begins", "to=verifying", "slot armed", "reboot ordered", "bascule-initrd:"]
    return next((word for word in reversed(words) if word in console), nothing)


def _wrong(slot: str, version: str) -> str:
    """Return why this slot must not hold that version; empty when it may."""
    expected = {"a": OLD, "b": NEW}.get(slot)
    return "" if version == expected else f"slot {slot} boots version {version}"


class Results:
    """What was found so far, in a file of a line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.rows: list[dict[str, Any]] = [
            json.loads(line) for line in path.read_text().splitlines()
        ]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def cuts(self, loader: str) -> list[dict[str, Any]]:
        """Return the cuts of a loader."""
        return [row for row in self.rows if row["loader"] == loader and "kind" in row]

    def replayed(self, loader: str) -> dict[str, Any] | None:
        """Return what the replay of a loader's update found, the last one."""
        found = [row for row in self.rows if row["loader"] == loader and "states" in row]
        return found[-1] if found else None


def soak(loader: Loader, wanted: int, seed: int, results: Results, folder: Path) -> None:
    """Cut until there are as many cuts of this loader as wanted."""
    if _count(results.cuts(loader.name)) >= wanted:
        return
    with Bench(loader, folder / loader.name).ready() as bench:
        new = build_system(bench.folder, NEW, rollback_index=2, engine=False)
        bench.publisher.release(new, rollback_index=2)
        bench.update()
        moments = calibrate(bench)
        print(f"{loader.name}: an update takes {moments}", flush=True)
        while _count(rows := results.cuts(loader.name)) < wanted:
            number = len(rows)
            cut = cut_once(bench, number, seed, moments)
            results.add(asdict(cut))
            if cut.why:
                print(f"{loader.name}: BRICK at cut {number}, seed {seed}: {cut.why}", flush=True)
            if number % ROWS_PER_LINE == 0:
                print(_line(loader.name, results.cuts(loader.name)), flush=True)
    print(_line(loader.name, results.cuts(loader.name)), flush=True)
    if not any(row["why"] for row in results.cuts(loader.name)):  # a brick is to be looked at
        shutil.rmtree(folder / loader.name)


def _count(rows: Sequence[dict[str, Any]]) -> int:
    """Return how often the power was cut."""
    return len(rows) + sum(row["again"] is not None for row in rows)


def examine(loader: Loader, results: Results, folder: Path) -> None:
    """Record an update of this loader and judge every state that a cut can leave of it."""
    if results.replayed(loader.name) is not None:
        return
    recorded, scratch = (folder / f"{loader.name}-{what}" for what in ("recorded", "scratch"))
    recording = record(loader, recorded)
    tally = replay(recording, scratch, sampled=STATES_SAMPLED)
    print("\n".join([f"{loader.name}: replay", *tally.lines()]), flush=True)
    results.add(
        {
            "loader": loader.name,
            "states": tally.states,
            "distinct": tally.distinct,
            "bricks": tally.bricks,
            "reasons": tally.reasons,
        }
    )
    if not tally.bricks:
        shutil.rmtree(recorded)
        shutil.rmtree(scratch)


def _line(loader: str, cuts: Sequence[dict[str, Any]]) -> str:
    slots = Counter(cut["slot"] for cut in cuts if not cut["why"])
    bricks = sum(bool(cut["why"]) for cut in cuts)
    cpu = sum(cut["cpu_seconds"] for cut in cuts) / _count(cuts)
    return (
        f"{loader}: cuts={_count(cuts)} boots={len(cuts) - bricks} "
        f"(A {slots['a']}, B {slots['b']}) bricks={bricks} cpu-seconds-per-cut={cpu:.1f}"
    )


def table(results: Results, loaders: Sequence[Loader]) -> list[str]:
    """Return both figures of each loader, for a person."""
    head = f"{'loader':14} {'cuts':>5} {'write':>5} {'arm':>5} {'trial':>5} {'word':>5} "
    head += f"{'again':>5} {'boots A':>8} "
    lines = [f"{head}{'boots B':>8} {'bricks':>7} {'states':>8} {'distinct':>9} {'bricks':>7}"]
    for loader in loaders:
        cuts = results.cuts(loader.name)
        kinds = Counter(cut["kind"] for cut in cuts)
        slots = Counter(cut["slot"] for cut in cuts if not cut["why"])
        states = results.replayed(loader.name) or {"states": 0, "distinct": 0, "bricks": 0}
        lines.append(
            f"{loader.name:14} {_count(cuts):5} {kinds['write']:5} {kinds['arm']:5} "
            f"{kinds['trial']:5} {kinds['word']:5} {_count(cuts) - len(cuts):5} "
            f"{slots['a']:8} {slots['b']:8} "
            f"{sum(bool(cut['why']) for cut in cuts):7} {states['states']:8} "
            f"{states['distinct']:9} {states['bricks']:7}"
        )
    return lines


def main() -> int:
    """Soak, examine, print; returns how many bricks there are, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loader", default="all", choices=["all", *LOADERS])
    parser.add_argument("--cuts", type=int, default=1000, help="over all loaders together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-replay", action="store_true", help="only cut")
    parser.add_argument("--results", type=Path, default=CACHE / "soak.jsonl")
    parser.add_argument("--folder", type=Path, default=CACHE / "soak")
    given = parser.parse_args()
    loaders = list(LOADERS.values()) if given.loader == "all" else [LOADERS[given.loader]]
    results = Results(given.results)
    logging.getLogger("partitions").setLevel(logging.ERROR)  # models mend a thousand tables
    print(f"seed {given.seed}, results in {given.results}", flush=True)
    for loader in loaders:
        if not given.no_replay:
            examine(loader, results, given.folder)
        soak(loader, -(-given.cuts // len(loaders)), given.seed, results, given.folder)
    print("\n".join(table(results, loaders)))
    bricks = sum(bool(row.get("why") or row.get("bricks")) for row in results.rows)
    return min(bricks, 1)


if __name__ == "__main__":
    sys.exit(main())
