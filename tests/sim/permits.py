"""Builders for tests of permits: keepers of several nodes in one process, and what etcd holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final, TypedDict, Unpack

from tests.sim.etcd import EtcdServer
from updater.permit import (
    EtcdSettings,
    FileClusterMemory,
    Node,
    Pace,
    Permit,
    Waiting,
    open_permits,
)
from updater.permit.keeper import EtcdPermits
from updater.permit.opening import real_pace
from updater.permit.queue import LeaseTimes
from updater.permit.wire import Timeouts

ALL_GROUPS: Final = "/bascule/permit/"
GROUP: Final = ALL_GROUPS + "default/"
DOCUMENT: Final = GROUP + "document"
QUEUE: Final = GROUP + "queue/"
SOON: Final = Timeouts(connect_s=2.0, answer_s=2.0)  # for members that never answer
SHORT_LEASE: Final = LeaseTimes(ttl_s=2, keep_alive_s=0.6)  # the shortest that etcd grants


class Said(TypedDict, total=False):
    """Settings beyond the endpoints."""

    group: str
    initial_max: int
    ca_file: Path
    cert_file: Path
    key_file: Path
    username: str
    password_file: Path


class Nodes:
    """Makes keepers and closes them."""

    def __init__(self, folder: Path, *urls: str) -> None:
        self.folder = folder
        self._urls = urls
        self._open: list[EtcdPermits] = []

    def node(
        self,
        name: str,
        *urls: str,
        timeouts: Timeouts | None = None,
        lease_times: LeaseTimes | None = None,
        pace: Pace | None = None,
        **settings: Unpack[Said],
    ) -> EtcdPermits:
        """Return the keeper of a node; its memory of the cluster is a file of that name."""
        keeper = open_permits(
            EtcdSettings(endpoints=urls or self._urls, **settings),
            node=Node(id=name, host=f"host-{name}"),
            memory=FileClusterMemory(self.folder / f"{name}.json"),
            timeouts=timeouts,
            lease_times=lease_times,
            pace=pace,
        )
        self._open.append(keeper)
        return keeper

    def close(self) -> None:
        """Close every keeper."""
        for keeper in self._open:
            keeper.close()


def sleepless(pauses: list[float]) -> Pace:
    """Return the clocks of this machine, but write down pauses instead of sleeping."""
    return replace(real_pace(), sleep=pauses.append)


def permitted(outcome: Permit | Waiting) -> Permit:
    """Return the permit; fail with the sentence of the wait."""
    assert isinstance(outcome, Permit), outcome
    return outcome


def refused(outcome: Permit | Waiting) -> Waiting:
    """Return the wait; fail when there is a permit."""
    assert isinstance(outcome, Waiting), outcome
    return outcome


def holders_in(value: bytes | None) -> list[str]:
    """Return the ids in a document, none when there is no document."""
    return [one["id"] for one in json.loads(value)["holders"]] if value else []


def holders(etcd: EtcdServer) -> list[str]:
    """Return the ids in the document of the default group."""
    return holders_in(etcd.get(DOCUMENT))


def check_history(etcd: EtcdServer) -> list[list[str]]:
    """Replay every revision of the document and return its holders, revision by revision.

    Nobody entered beyond max, and one write moved one node at most: two writes that did not
    know of each other would show as more.
    """
    before: list[str] = []
    rows = []
    for one in etcd.history(DOCUMENT):
        now = holders_in(one.value)
        where = f"revision {one.revision}: {before} became {now}"
        assert len(set(now)) == len(now), where
        assert len(set(now) ^ set(before)) <= 1, where
        if one.value and len(now) > len(before):
            assert len(now) <= json.loads(one.value)["max"], where
        before = now
        rows.append(now)
    return rows
