"""Operations that others pass: written when they are made, named by the journal in their turn.

Here an operation that unpacks xz counts as one of those; nothing refers to what it makes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import pytest
from typing_extensions import override

from images.build import build
from images.errors import OperationOutputError
from images.operations import Bytes, decode
from images.payload import Operation, OperationKind
from images.signing import keygen, load_private_key
from tests.unit.updater.test_pipeline import (
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
)
from updater import outputs, pipeline
from updater.download import DownloadStoppedError
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
    (folder / "root").write_bytes(root)
    (folder / "boot").write_bytes(boot)
    keygen(folder / "key")
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
    held = [step.operation for step in metadata_of(release).manifest.steps()][number]

    def decode_later(operation: Operation, blob: bytes, **more: object) -> Bytes | None:
        if operation == held:
            until()
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


def test_an_install_that_ends_meanwhile_goes_on_with_it(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passed it is not named, and is written again."""
    held = late_ones(bench.release)[1]

    def stop() -> None:
        assert passing.passed.wait(LIMIT_SECS)
        bench.stop.set()

    with monkeypatch.context() as bent:
        hold(bent, held, bench.release, stop)
        with pytest.raises(DownloadStoppedError):
            run_with(bench, passing, bench.plan(checkpoint_bytes=256 * 1024))
    assert_named_before(bench, held)
    bench.stop.clear()
    bench.install(bench.noted[-1].next_operation if bench.noted else 0)
    assert bench.content() == (bench.release.root, bench.release.boot)


def test_one_that_fails_ends_the_install(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = late_ones(bench.release)[1]

    def fail() -> None:
        raise OperationOutputError("it makes something else")

    hold(monkeypatch, held, bench.release, fail)
    with pytest.raises(OperationOutputError, match="something else"):
        run_with(bench, passing)
    assert_named_before(bench, held)


def assert_named_before(bench: Bench, number: int) -> None:
    assert all(journal.next_operation <= number for journal in bench.noted)


def test_others_do_not_run_far_ahead(
    bench: Bench, passing: type[Passing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill costs a few checkpoints, though it takes long."""
    waiting = threading.Event()

    class Watched(Written):
        @override
        def wait(self, near: Callable[[int], bool]) -> None:
            if not near(self.first_left):
                waiting.set()
            super().wait(near)

    def hold_back() -> None:
        assert waiting.wait(LIMIT_SECS)

    monkeypatch.setattr(pipeline, "Written", Watched)
    hold(monkeypatch, 0, bench.release, hold_back)
    run_with(bench, passing, bench.plan(checkpoint_bytes=256 * 1024))
    assert waiting.is_set()
    assert bench.content() == (bench.release.root, bench.release.boot)
