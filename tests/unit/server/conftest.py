"""A fresh desk for each test that asks for one: a copy of one that was founded once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.desk import Desk, open_desk
from tests.sim.desk import Clock, found_desk


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a desk founded at the clock's start; never to be changed."""
    folder = tmp_path_factory.mktemp("founded") / "desk"
    found_desk(folder).desk.store.close()
    return folder


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(founded: Path, tmp_path: Path, clock: Clock) -> Iterator[Desk]:
    folder = shutil.copytree(founded, tmp_path / "desk")
    opened = open_desk(folder, clock=clock)
    yield opened
    opened.store.close()
