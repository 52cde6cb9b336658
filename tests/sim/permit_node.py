"""A process that wants permits: asks, waits, holds a moment, returns; as often as told.

`python -m tests.sim.permit_node --endpoint URL --id ID --folder DIR …` prints a line for each
step, `held` and `returned` with the machine-wide monotonic clock in nanoseconds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from updater.permit import EtcdSettings, FileClusterMemory, Node, Permit, open_permits
from updater.permit.contract import PermitKeeper
from updater.permit.errors import PermitUnavailableError
from updater.permit.queue import LeaseTimes


def main(arguments: Sequence[str]) -> int:
    """Run one node until it has had its permits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", action="append", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--group", default="default")
    parser.add_argument("--max", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hold", type=float, default=0.05)
    parser.add_argument("--ttl", type=int, default=60, help="of the place in the queue, seconds")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    keeper = open_permits(
        EtcdSettings(endpoints=tuple(given.endpoint), group=given.group, initial_max=given.max),
        node=Node(id=given.id, host=f"host-{given.id}"),
        memory=FileClusterMemory(given.folder / f"{given.id}.json"),
        lease_times=LeaseTimes(ttl_s=given.ttl, keep_alive_s=given.ttl / 3),
    )
    for _ in range(given.rounds):
        _take(keeper)
        _say(f"held {time.monotonic_ns()}")
        time.sleep(given.hold)
        _say(f"returned {time.monotonic_ns()}")
        _give_back(keeper)
    keeper.close()
    return 0


def _take(keeper: PermitKeeper) -> None:
    while not isinstance(outcome := keeper.acquire("a test", version="2.0.0"), Permit):
        _say(f"waiting {outcome.code} {outcome.sentence}")
        keeper.wait(30)


def _give_back(keeper: PermitKeeper) -> None:
    while True:
        try:
            keeper.release()
        except PermitUnavailableError as error:
            _say(f"retry {error}")
            time.sleep(0.2)
        else:
            return


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
