"""docs/operating-a-node.md, "A node in your hands": each command, typed on a real demo node.

The comment beside a command is its exit status and what it says. The world is the demo's: server,
etcd, power supply and service, with small images; 3.0.0 does not hold, as there.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import demo.__main__ as story
from demo import versions
from demo.fleet import Node, World
from demo.programs import BIN, free_port, start_etcd, start_server

pytestmark = pytest.mark.e2e

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/operating-a-node.md"
LIMIT_SECS: Final = 180.0
COMMENT: Final = re.compile(r"^(?P<command>.*?)\s+# (?P<status>\d): (?P<said>.*)$")


@dataclass(frozen=True)
class Typed:
    """One line of the page: what is typed, and how it must end."""

    command: str
    status: int = 0
    said: str = ""


def typed_lines() -> list[Typed]:
    chapter = re.search(
        r"^## A node in your hands\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert chapter, "the chapter is gone"
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", chapter[1], re.DOTALL):
        for line in block.splitlines():
            found = COMMENT.match(line)
            lines.append(
                Typed(found["command"], int(found["status"]), found["said"].rstrip())
                if found
                else Typed(line)
            )
    return lines


class Shell:
    """One bash that a person types into."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._input, self._output = self._process.stdin, self._process.stdout
        assert self._output is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)

    def type(self, command: str) -> tuple[int, str]:
        """Type a line; returns its exit status and what it said on both streams."""
        assert self._input is not None
        self._input.write(f"{command}\nprintf '\\001%d\\002' $?\n".encode())
        self._input.flush()
        text = b""
        deadline = time.monotonic() + LIMIT_SECS
        while not (ended := re.search(rb"\x01(\d+)\x02", text)):
            left = deadline - time.monotonic()
            assert left > 0, f"{command}: no end in {LIMIT_SECS} s, only {text.decode()}"
            if self._selector.select(left):
                assert self._output is not None
                text += os.read(self._output.fileno(), 65536)
        return int(ended[1]), text[: ended.start()].decode()

    def close(self) -> None:
        self._selector.close()
        for stream in (self._input, self._output):
            assert stream is not None
            stream.close()
        self._process.wait(LIMIT_SECS)


def wait_for(node: Node, at_rest: str) -> dict[str, Any]:
    """Wait until the node rests after having gone back from a version."""
    deadline = time.monotonic() + LIMIT_SECS
    while True:
        facts = node.status()
        if facts and at_rest in facts["denied"]:
            resting = (facts["state"], facts["confirmed"], facts["permit"])
            if resting == ("idle", True, "none"):
                return facts
        assert time.monotonic() < deadline, (node.folder / "console.log").read_text()[-3000:]
        time.sleep(0.5)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A demo node on 2.0.0 that has gone back from 3.0.0 once."""
    if shutil.which("mkfs.ext4", path=versions.TOOL_PATH) is None:
        pytest.skip("mkfs.ext4 is not installed (package e2fsprogs)")
    if shutil.which("pgrep") is None:
        pytest.skip("pgrep is not installed (package procps)")
    monkeypatch.setattr(versions, "CONTENT_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(versions, "IMAGE_SIZE", "64M")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with ExitStack() as stack:
        etcd, etcd_url = start_etcd(tmp_path)
        stack.callback(etcd.end)
        desk, port = tmp_path / "desk", free_port()
        images = story._publish_keys(desk, port, tmp_path)
        server, url = start_server(desk, port, tmp_path / "server.log")
        stack.callback(server.end)
        for number in (1, 2):
            story._promote(desk, tmp_path, images[number], story.VERSIONS[number])
        made = Node("node-1", f"{1:032x}", tmp_path / "node-1")
        key = tmp_path / "payload.pub.pem"
        made.build(World(server=url, etcd=etcd_url, payload_key=key, first_image=images[1]))
        made.switch_on()
        stack.callback(made.switch_off)
        wait_for(made, "3.0.0")
        yield made


def test_the_page_has_the_commands() -> None:
    words = {line.command for line in typed_lines()}
    assert len(words) > 20
    for verb in ("hold", "unhold", "pin", "unpin", "reboot", "rollback", "why"):
        assert any(f"bascule {verb}" in word for word in words)


def test_each_command_does_what_the_page_says(node: Node) -> None:
    shell = Shell(node.folder)
    try:
        for line in typed_lines():
            status, said = shell.type(line.command)
            assert (line.command, status) == (line.command, line.status), said
            assert line.said in said, f"{line.command}: {said}"
    finally:
        shell.close()
    facts = wait_for(node, "3.0.0")
    assert facts["booted"]["version"] == "2.0.0"
    tried = [entry["what"] for entry in node.history() if entry.get("version") == "3.0.0"]
    assert tried.count("trial failed") == 2  # by itself, and forced
