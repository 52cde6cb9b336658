"""Operations that others pass: written when they are made, named by the journal in their turn.

Here an operation that unpacks xz counts as one of those; nothing refers to what it makes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import pytest
from typing_extensions import override

from images.build import build
from images.errors import OperationOutputError
from images.operations import Bytes, decode
from images.payload import Operation, OperationKind
from images.signing import load_private_key
from partitions.errors import DeviceReadError
from tests.unit.updater.test_pipeline import (
    BACKGROUND,
    LIMIT_SECS,
    MIB,
    Bench,
    RecordingWriter,
    Release,
    assert_durable_before_named,
    bench,
    count_of,
    metadata_of,
    no_thread_is_left_behind,
    places_of,
    run_with,
    write_parts,
)
from updater import outputs, pipeline
from updater.download import DownloadError, DownloadStoppedError
from updater.flushing import Flusher
from updater.pipeline import POLL_SECS
from updater.written import Written

__all__ = ["bench", "no_thread_is_left_behind"]  # fixtures

LATE: Final = OperationKind.REPLACE_XZ


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Every second MiB is packed, the first and the last among them."""
    folder = tmp_path_factory.mktemp("late")
    chance = random.Random(11)
    pieces = [
        chance.randbytes(MIB) if number % 2 else (b"%d is easily packed " % number * MIB)[:MIB]
        for number in range(8)
    ]
    root, boot = b"".join(pieces[:7]), pieces[7] + pieces[0]
    write_parts(folder, root, boot)
    build(
        [("root", folder / "root"), ("boot", folder / "boot")],
        folder / "payload.crau",
        compression="xz",
        compat=True,
        keys=[load_private_key(folder / "key.key.pem")],
    )
    data = (folder / "payload.crau").read_bytes()
    return Release(folder=folder, data=data, root=root, boot=boot)


@pytest.fixture(autouse=True)
def xz_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "LATE", frozenset({LATE}))
    monkeypatch.setattr(pipeline, "LATE", frozenset({LATE}))


def late_ones(release: Release) -> list[int]:
    steps = metadata_of(release).manifest.steps()
    return [number for number, step in enumerate(steps) if step.operation.kind is LATE]


class Passing(RecordingWriter):
    """Tells when something was written that stands behind the first operation."""

    passed: threading.Event

    @override
    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        super().write_at(offset, data)
        if (self.region.label, offset) != ("root", 0):
            self.passed.set()


@pytest.fixture
def passing(bench: Bench) -> type[Passing]:
    Passing.bench, Passing.passed = bench, threading.Event()
    return Passing


def hold(
    monkeypatch: pytest.MonkeyPatch, number: int, release: Release, until: Callable[[], object]
) -> None:
    """Let a worker wait before it makes an operation."""
    hold_all(monkeypatch, release, {number: until})


def hold_all(
    monkeypatch: pytest.MonkeyPatch, release: Release, until: Mapping[int, Callable[[], object]]
) -> None:
    steps = list(metadata_of(release).manifest.steps())
    held = {steps[number].operation.data_offset: wait for number, wait in until.items()}

    def decode_later(operation: Operation, blob: bytes, **more: object) -> Bytes | None:
        if operation.kind is LATE and operation.data_offset in held:
            held[operation.data_offset]()
        return decode(operation, blob, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "decode", decode_later)


def test_others_pass_it_and_the_journal_waits(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert late_ones(bench.release)[0] == 0
    assert late_ones(bench.release)[-1] == count_of(bench.release) - 1
    hold(monkeypatch, 0, bench.release, lambda: passing.passed.wait(LIMIT_SECS))
    run_with(bench, passing, bench.plan(checkpoint_bytes=256 * 1024))
    assert bench.content() == (bench.release.root, bench.release.boot)
    places = places_of(metadata_of(bench.release))
    written = [value for what, value in bench.events if what == "written"]
    assert written[0] not in places[0]
    assert_durable_before_named(bench, places)
    assert bench.noted[-1].next_operation == count_of(bench.release)


def test_a_kill_meanwhile_goes_on_with_it(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passed it is not named, and is written again: here a device that fails ends it."""
    held = late_ones(bench.release)[1]

    def fail() -> None:
        assert passing.passed.wait(LIMIT_SECS)
        raise DeviceReadError("gone")

    with monkeypatch.context() as bent:
        hold(bent, held, bench.release, fail)
        with pytest.raises(DeviceReadError, match="gone"):
            run_with(bench, passing, bench.plan(checkpoint_bytes=128 * 1024))
    assert all(journal.next_operation <= held for journal in bench.noted)
    bench.install(bench.noted[-1].next_operation if bench.noted else 0)
    assert bench.content() == (bench.release.root, bench.release.boot)


def test_one_that_fails_ends_the_install(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands before it was named meanwhile, and nothing behind it."""
    held = late_ones(bench.release)[2]

    def fail() -> None:
        wait_until(lambda: bench.noted)
        raise OperationOutputError("it makes something else")

    hold(monkeypatch, held, bench.release, fail)
    with pytest.raises(OperationOutputError, match="something else"):
        run_with(bench, passing, bench.plan(checkpoint_bytes=128 * 1024))
    assert 0 < bench.noted[-1].next_operation <= held


@pytest.mark.parametrize("how", ["lost network", "stop"])
def test_an_end_meanwhile_loses_nothing_that_came(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """All but the last operation came when it ends, and the first is still under way."""
    steps = list(metadata_of(bench.release).manifest.steps())
    ended = threading.Event()
    read = pipeline.Pipeline._read_blob

    def read_blob(run: pipeline.Pipeline, operation: Operation) -> bytes:
        if operation != steps[-1].operation:
            return read(run, operation)
        ended.set()
        if how == "stop":
            bench.stop.set()
            return read(run, operation)
        raise DownloadError("lost")

    def wait() -> None:
        assert ended.wait(LIMIT_SECS)
        time.sleep(2 * POLL_SECS)

    monkeypatch.setattr(pipeline.Pipeline, "_read_blob", read_blob)
    hold(monkeypatch, 0, bench.release, wait)
    with pytest.raises(DownloadError if how == "lost network" else DownloadStoppedError):
        run_with(bench, passing, bench.plan(checkpoint_bytes=16 * MIB))
    assert bench.noted[-1].next_operation >= len(steps) - 1


def test_others_do_not_run_far_ahead(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill costs a few checkpoints, though it takes long."""
    waiting = threading.Event()
    written: list[int] = []

    class Watched(Written):
        @override
        def wait(self, near: Callable[[int], bool]) -> None:
            if not near(self.first_left):
                waiting.set()
            super().wait(near)

    def look_around() -> None:
        assert waiting.wait(LIMIT_SECS)
        time.sleep(2 * POLL_SECS)
        written.append(bench.disk.read_bytes().count(BACKGROUND))

    monkeypatch.setattr(pipeline, "Written", Watched)
    hold(monkeypatch, 0, bench.release, look_around)
    before = bench.disk.read_bytes().count(BACKGROUND)
    run_with(bench, passing, bench.plan(checkpoint_bytes=256 * 1024))
    assert bench.content() == (bench.release.root, bench.release.boot)
    # two checkpoints of what is fetched, and one operation more; what is packed counts an eighth
    assert 0 < before - written[0] < 4 * MIB


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(int(LIMIT_SECS / POLL_SECS)):
        if condition():
            return
        time.sleep(POLL_SECS)
    raise AssertionError("it does not come")


def test_what_a_checkpoint_counts_is_what_it_flushes(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two late ones the second: what passed it counts when it is named, not before."""
    marks: list[tuple[int, int]] = []
    mark = Flusher.mark

    def marked(flusher: Flusher, left: int, cost: int) -> None:
        marks.append((left, cost))
        mark(flusher, left, cost)

    monkeypatch.setattr(Flusher, "mark", marked)
    first, second = late_ones(bench.release)[:2]
    behind = places_of(metadata_of(bench.release))[second + 1]

    def behind_is_written() -> bool:
        return any(what == "written" and value in behind for what, value in bench.events)

    hold_all(
        monkeypatch,
        bench.release,
        {
            first: lambda: wait_until(behind_is_written),
            second: lambda: wait_until(lambda: marks),
        },
    )
    run_with(bench, passing, replace(bench.plan(checkpoint_bytes=4 * MIB), workers=4))
    assert marks[0][0] == second
    costs = [
        max(
            step.operation.data_length,
            sum(extent.num_blocks for extent in step.operation.dst_extents) * 4096 // 8,
        )
        for step in metadata_of(bench.release).manifest.steps()
    ]
    done = 0
    for left, cost in marks:
        assert cost == sum(costs[done:left])
        done = left
    assert done == count_of(bench.release)


def test_an_operation_that_is_forgotten_is_not_armed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Written):
        @override
        def note(self, number: int) -> int:
            return min(1, super().note(number))

    monkeypatch.setattr(pipeline, "Written", Forgetful)
    with pytest.raises(AssertionError, match="operations from 1 on are not written"):
        bench.install()
