from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Return the path of a program, or skip the test that needs it."""

    def find(name: str) -> str:
        path = shutil.which(name, path=FOLDERS)
        if path is None:
            pytest.skip(f"{name} is not installed")
        return path

    return find
