"""docs/quick-start.md, typed as it stands, ends with a confirmed 2.0.0."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sim.etcd import free_port

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs/quick-start.md"
LIMIT_SECS = 120.0


def status(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = ["bascule", "--config", "node.toml", "status", "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    facts: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return facts


def test_the_quick_start_does_what_it_says(tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip("mkfs.ext4 is not installed (package e2fsprogs)")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    script = "set -e\n" + "\n".join(blocks) + "wait\n"
    script = script.replace("127.0.0.1:8000", f"127.0.0.1:{free_port()}")
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}:/usr/sbin:/sbin:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + LIMIT_SECS
            facts: dict[str, Any] = {}
            while facts.get("state") != "idle" or facts["booted"]["version"] != "2.0.0":
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                assert shell.poll() is None, (tmp_path / "log").read_text()
                time.sleep(1)
                facts = status(tmp_path, environment)
            assert facts["booted"]["slot"] == "b"
            assert facts["confirmed"]
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait()
            time.sleep(0.5)  # the node's processes have a session of their own and end with it
