from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.memory import in_memory


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Every world of a simulated test lies in memory."""
    with in_memory(request.node, tmp_path) as folder:
        yield folder
