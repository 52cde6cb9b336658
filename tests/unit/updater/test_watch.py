"""`bascule status --watch` on a real terminal, in a pipe, and as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.sim.world import World, run_until
from updater.engine import Engine
from updater.errors import EXIT_DONE
from updater.verbs import perform

ROOT: Final = Path(__file__).parents[3]
LIMIT_SECS: Final = 60.0
UP: Final = re.compile(r"\x1b\[\d+A\r\x1b\[J")  # what draws over the lines before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world"), image_size=512 * 1024) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


class Watch:
    """A `status --watch` that runs; what it writes is read until a text comes."""

    def __init__(self, world: World, *options: str, terminal: bool) -> None:
        near, far = pty.openpty() if terminal else os.pipe()
        command = [sys.executable, "-m", "updater.cli", "--config", str(world.config), "status"]
        self.process = subprocess.Popen(
            [*command, "--watch", *options],
            stdout=far,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(far)
        self.near = near
        self.text = ""

    def until(self, wanted: str) -> str:
        deadline = time.monotonic() + LIMIT_SECS
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.near], [], [], 1.0)[0]:
                self.text += os.read(self.near, 65536).decode()
        return self.text

    def stop(self) -> int:
        """Press Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(LIMIT_SECS)
        with contextlib.suppress(OSError):  # EIO: the end of a terminal
            while piece := os.read(self.near, 65536):
                self.text += piece.decode()
        return status


@contextlib.contextmanager
def watch(world: World, *options: str, terminal: bool) -> Iterator[Watch]:
    watching = Watch(world, *options, terminal=terminal)
    try:
        yield watching
    finally:
        watching.process.kill()
        watching.process.wait()
        assert watching.process.stderr is not None
        watching.process.stderr.close()
        os.close(watching.near)


@pytest.fixture
def held(world: World) -> Iterator[None]:
    """End any hold of a test."""
    yield
    perform(world.node(), "unhold", {}, by="ada")


@pytest.mark.usefixtures("held")
class TestWatch:
    def test_draws_in_place_on_a_terminal(self, world: World) -> None:
        with watch(world, terminal=True) as watching:
            watching.until("state     idle")
            assert not UP.search(watching.text)  # nothing is above that is ours
            perform(world.node(), "hold", {"reason": "migration"}, by="ada")
            watching.until("held      by ada: migration")
            drawn = UP.split(watching.text)
            assert len(drawn) == 2
            assert all(text.lstrip("\r\x1b[J").startswith("state     idle") for text in drawn)
            assert watching.stop() == EXIT_DONE

    def test_writes_a_block_a_change_into_a_pipe(self, world: World) -> None:
        with watch(world, terminal=False) as watching:
            watching.until("state     idle")
            perform(world.node(), "hold", {}, by="bob")
            watching.until("held      by bob")
            assert "\x1b" not in watching.text
            assert watching.stop() == EXIT_DONE
            assert watching.text.count("state     idle") == 2

    def test_writes_one_json_a_line(self, world: World) -> None:
        with watch(world, "--json", terminal=True) as watching:
            watching.until('"hold": null')
            perform(world.node(), "hold", {}, by="eve")
            watching.until('"by": "eve"')
            assert watching.stop() == EXIT_DONE
            facts = [json.loads(line) for line in watching.text.splitlines() if "^C" not in line]
            assert [bool(each["hold"]) for each in facts] == [False, True]

    def test_says_nothing_on_stderr_when_it_is_ended(self, world: World) -> None:
        with watch(world, terminal=True) as watching:
            watching.until("state     idle")
            watching.stop()
            assert watching.process.stderr is not None
            assert watching.process.stderr.read() == b""

    def test_ends_when_its_reader_has_gone(self, world: World) -> None:
        command = (
            f"{sys.executable} -m updater.cli --config {world.config} status --watch | head -1"
        )
        done = subprocess.run(
            ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
            capture_output=True,
            cwd=ROOT,
            check=False,
            timeout=LIMIT_SECS,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (EXIT_DONE, "state     idle\n", "")
