"""Puts the parts of the etcd keeper together. The only place that builds clocks and sockets.

requests is imported here, inside the function: a command that opens no keeper never loads it.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from updater.permit.cluster import ClusterGuard, ClusterMemory
from updater.permit.contract import Node, Pace
from updater.permit.queue import LeaseTimes
from updater.permit.settings import EtcdSettings

if TYPE_CHECKING:
    from updater.permit.keeper import EtcdPermits
    from updater.permit.wire import Timeouts


def real_pace() -> Pace:
    """Return the clocks of this machine and chance of the kernel's.

    Nodes that boot one image must not share a seed, or their jitter would be the same.
    """
    return Pace(
        now=lambda: datetime.now(UTC),
        monotonic=time.monotonic,
        sleep=time.sleep,
        chance=random.SystemRandom(),
    )


def open_permits(
    settings: EtcdSettings,
    *,
    node: Node,
    memory: ClusterMemory,
    pace: Pace | None = None,
    timeouts: Timeouts | None = None,
    lease_times: LeaseTimes | None = None,
) -> EtcdPermits:
    """Return the keeper of a group; nothing is sent before it is asked for something.

    Args:
        settings: where etcd is.
        node: who asks.
        memory: what etcd is recognised by; `FileClusterMemory` in a node's state folder.
        pace: clocks and chance, the machine's by default.
        timeouts: for each member; the defaults fit etcd.
        lease_times: of the place in the queue.

    Raises:
        PermitSettingsError: a file cannot be used, or the node's id cannot be a holder's.
        PermitClusterChangedError: the memory is damaged.
        StateError: the memory cannot be read.
    """
    from updater.permit.etcd import Etcd
    from updater.permit.keeper import EtcdPermits
    from updater.permit.store import GroupStore
    from updater.permit.wire import Wire

    chosen = pace or real_pace()
    guard = ClusterGuard(memory)
    wire = Wire(settings, monotonic=chosen.monotonic, timeouts=timeouts)
    store = GroupStore(
        etcd=Etcd(wire, guard),
        guard=guard,
        group=settings.group,
        node_id=node.id,
        pace=chosen,
        lease_times=lease_times or LeaseTimes(),
    )
    return EtcdPermits(
        store=store,
        group=settings.group,
        node=node,
        initial_max=settings.initial_max,
        pace=chosen,
        on_close=wire.close,
    )
