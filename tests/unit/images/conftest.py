from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.samples import unpack


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of payloads that other programs made."""
    return unpack(tmp_path_factory.mktemp("samples"))
