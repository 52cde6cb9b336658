"""A release desk for tests: a clock that jumps, forged payloads, nodes that speak Omaha."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn

from images.proto import payload_pb2 as pb
from images.release import ChannelDocument
from server.added import Added
from server.app import build_app
from server.channels import promote_channel
from server.desk import Desk
from server.foundation import Founded, found
from server.intake import ReleaseOrder
from server.omaha import OmahaDesk
from server.promotion import Promotion
from server.publish import add_release
from server.serve import listen, url_of, web_config
from server.settings import Settings
from tests.sim import payloads
from tests.sim.deltas import REPLACE, Delta
from updater.omaha import (
    AppRequest,
    AppResponse,
    Event,
    Ping,
    Request,
    UpdateCheck,
    UpdateCheckResult,
)

PRODUCT = "e96281a6-d1af-4bde-9a0a-97b76e56dc57"
BOARD = "amd64-usr"
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OURS = "bascule-0.1.0"
STOCK = "update_engine-0.4.10"


@dataclass
class Clock:
    """The present, as a test wants it."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **length: float) -> None:
        """Let time pass: `pass_(hours=6)`."""
        self.now += timedelta(**length)


class SilentTally:
    """Counts nothing."""

    def check(self, outcome: str) -> None:
        del outcome

    def event(self, event_type: int, result: int) -> None:
        del event_type, result

    def grant(self, group: str) -> None:
        del group


def found_desk(
    folder: Path, *, clock: Clock | None = None, channels: Sequence[str] = ("stable",)
) -> Founded:
    """Lay a desk for `PRODUCT` and `BOARD`."""
    settings = Settings(product=PRODUCT, board=BOARD)
    return found(folder, settings, channels=channels, passphrase=None, clock=clock or Clock())


def payload_bytes(version: str, *, container: int = 2) -> bytes:
    """Return a signed payload of one block that differs by version."""
    seed = int.from_bytes(version.encode()[:8])
    made = payloads.forge(payloads.image(1, seed=seed + container))
    if container == 2:
        return made.bytes()
    manifest = pb.DeltaArchiveManifest(block_size=payloads.BLOCK)
    update = made.manifest.partitions[0]
    manifest.partition_operations.extend(update.operations)
    manifest.new_partition_info.CopyFrom(update.new_partition_info)
    return payloads.format_1(manifest, made.blobs, keys=(payloads.key(),))


def full_bytes(image: bytes) -> bytes:
    """Return a signed full payload of `image`, whole blocks, as it is."""
    return payloads.forge(image).bytes()


def delta_bytes(old: bytes, new: bytes, *, keep: int = 1) -> bytes:
    """Return a signed delta: all but the last `keep` blocks of `new` are copied from `old`."""
    delta = Delta(old, new)
    blocks = len(new) // payloads.BLOCK
    delta.copy([(0, blocks - keep)], [(0, blocks - keep)])
    delta.replace(REPLACE, [(blocks - keep, keep)])
    return signed(delta)


def signed(delta: Delta) -> bytes:
    """Return a delta with signatures."""
    unsigned = delta.payload()
    size = int.from_bytes(unsigned[12:20])
    manifest = pb.DeltaArchiveManifest.FromString(unsigned[24 : 24 + size])
    return payloads.Forge(manifest, delta.blobs).bytes()


def publish(
    desk: Desk,
    version: str,
    *,
    rollback_index: int = 0,
    container: int = 2,
    data: bytes | None = None,
    deltas: Mapping[str, bytes] | None = None,
) -> Added:
    """Add a release to the desk; `deltas` are bytes by the names of their files."""
    file = desk.folder.parent / f"{version}-{container}.crau"
    file.write_bytes(payload_bytes(version, container=container) if data is None else data)
    files = []
    for name, content in (deltas or {}).items():
        files.append(desk.folder.parent / f"{name}.crau")
        files[-1].write_bytes(content)
    order = ReleaseOrder(
        product=PRODUCT, board=BOARD, version=version, rollback_index=rollback_index
    )
    trusted = payloads.trusted(payloads.key())
    return add_release(desk, file, order, trusted=trusted, keys=desk.offline(), deltas=files)


def order(version: str, *, channel: str = "stable") -> Promotion:
    """Return a plain promotion of `version`."""
    return Promotion(channel=channel, product=PRODUCT, board=BOARD, version=version)


def promote(desk: Desk, version: str, *, channel: str = "stable") -> ChannelDocument:
    """Make `version` current on a channel."""
    return promote_channel(desk, order(version, channel=channel), keys=desk.offline())


@dataclass
class SimNode:
    """A node as an Omaha server sees it.

    Attributes:
        version: what it runs.
        state: its lifecycle state; empty for a stock engine.
        agent: program and version that asks.
    """

    machine_id: str
    version: str = "1.0.0"
    group: str = "default"
    state: str = "idle"
    agent: str = OURS
    app_id: str = PRODUCT
    board: str = BOARD
    alias: str = ""
    delta_okay: bool = False
    said: list[AppResponse] = field(default_factory=list)

    def request(
        self, *, events: Sequence[Event] = (), check: bool = False, ping: bool = False
    ) -> Request:
        """Return what it would post."""
        app = AppRequest(
            app_id=self.app_id,
            version=self.version,
            track=self.group,
            machine_id=self.machine_id,
            machine_alias=self.alias,
            board=self.board,
            state=self.state,
            slot="a" if self.state else "",
            delta_okay=self.delta_okay,
            ping=Ping() if ping else None,
            update_check=UpdateCheck() if check else None,
            events=tuple(events),
        )
        return Request(apps=(app,), version=self.agent)

    def ask(self, omaha: OmahaDesk, *events: Event) -> UpdateCheckResult:
        """Check for an update and return the answer."""
        answer = omaha.answer(self.request(events=events, check=True, ping=True)).apps[0]
        assert answer.update_check is not None
        return answer.update_check

    def tell(self, omaha: OmahaDesk, *events: Event) -> None:
        """Report events."""
        answer = omaha.answer(self.request(events=events)).apps[0]
        assert answer.status == "ok"
        assert answer.events_ok == len(events)


def nodes(count: int, template: SimNode | None = None) -> list[SimNode]:
    """Return nodes that differ by machine id."""
    first = template or SimNode("")
    return [replace(first, machine_id=f"{n:032x}", said=[]) for n in range(count)]


def omaha_of(desk: Desk) -> OmahaDesk:
    """Return the Omaha endpoint of a desk, without HTTP."""
    return OmahaDesk(desk, "http://updates.example", SilentTally())


@contextmanager
def serving(desk: Desk) -> Iterator[str]:
    """Serve a desk on a free loopback port in a thread; give its URL."""
    sock = listen("127.0.0.1:0")
    url = url_of(sock)
    server = uvicorn.Server(web_config(build_app(desk, public_url=url, upkeep=False)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()
