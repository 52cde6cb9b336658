from __future__ import annotations

from pathlib import Path

import pytest

from images.apply import apply_file
from tests.sim.samples import old_image, unpack


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of payloads that other programs made."""
    return unpack(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def new_ext2(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image that the ext2 samples make, out of a full payload."""
    path = tmp_path_factory.mktemp("new") / "new.ext2.img"
    apply_file(samples / "full-signed.crau", {"usr": path})
    return path


@pytest.fixture(scope="session")
def old_ext2(new_ext2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image that the delta among the samples starts from."""
    path = tmp_path_factory.mktemp("old") / "old.ext2.img"
    path.write_bytes(old_image(new_ext2.read_bytes()))
    return path
