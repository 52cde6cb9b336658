"""A full install of a 1 GiB ext4 image beside curl, zstd, dd and SHA-256, in interleaved runs.

Prints wall, CPU and memory of each, and the ratio of the medians. No figure is asserted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demo.programs import free_port
from images.build import build
from images.release import encode_payload_facts, facts_of
from images.signing import keygen, load_private_key
from partitions.disk_image import create_disk
from partitions.layout import read_layout

pytestmark = pytest.mark.bench

RUNS = 3
IMAGE_SIZE = "1G"
INODES = "131072"
CONTENT_BYTES = 750 * 1024 * 1024
SOURCES = (sysconfig.get_paths()["stdlib"], "/usr/lib", "/usr/share", "/usr/bin")
TOOLS = "/usr/sbin:/sbin:/usr/bin:/bin"
LAYOUT = """\
partition = [
  { label = "USR-A", role = "slot-a", part = "usr", size = "4MiB" },
  { label = "USR-B", role = "slot-b", part = "usr", size = "1100MiB" },
]
"""
NGINX = """\
user root; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{ access_log off; sendfile on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/served; }} }}
"""
PEER = "curl -sf {url}/image.zst | zstd -dcq | dd of={out} bs=1M conv=fsync,notrunc status=none"


def tool(name: str) -> str:
    found = shutil.which(name, path=TOOLS)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def make_image(folder: Path) -> Path:
    """Make an ext4 image out of this system's own files."""
    tree, copied = folder / "tree", 0
    for base in SOURCES:
        for source in sorted(Path(base).rglob("*")):
            if source.is_symlink() or not source.is_file() or not os.access(source, os.R_OK):
                continue
            if copied + source.stat().st_size > CONTENT_BYTES:
                continue
            target = tree / str(source).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += source.stat().st_size
    image = folder / "image.ext4"
    command = [tool("mkfs.ext4"), "-q", "-F", "-d", str(tree), "-O", "^has_journal"]
    subprocess.run(
        [*command, "-N", INODES, str(image), IMAGE_SIZE], check=True, capture_output=True
    )
    shutil.rmtree(tree)
    return image


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    process = subprocess.Popen([tool("nginx"), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait = ["curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1"]
        subprocess.run([*wait, url], check=True, capture_output=True)
        yield url
    finally:
        process.terminate()
        process.wait()


def measured(command: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command and all that it starts."""
    words = ["/usr/bin/time", "-f", "%e %U %S", *command]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    wall, user, system = (float(word) for word in done.stderr.split()[-3:])
    return wall, user + system


def test_full_install_of_a_1_gib_image(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    for name in ("curl", "zstd", "openssl"):
        tool(name)
    image = make_image(tmp_path)
    keygen(tmp_path / "k")
    payload = served / "p.crau"
    build([("usr", image)], payload, keys=[load_private_key(tmp_path / "k.key.pem")])
    level = ["-q", "-12", "-T0", str(image), "-o", str(served / "image.zst")]
    subprocess.run([tool("zstd"), *level], check=True)
    facts = facts_of(
        payload,
        product="bench",
        board="bench",
        version="2.0.0",
        rollback_index=1,
        min_engine="0.1.0",
        created=datetime.now(UTC),
    )
    described: dict[str, Any] = {
        "facts": encode_payload_facts(facts),
        "sha256": hashlib.sha256(payload.read_bytes()).hexdigest(),
        "size": payload.stat().st_size,
    }
    (tmp_path / "facts.json").write_text(json.dumps(described))
    (tmp_path / "layout.toml").write_text(LAYOUT)
    disk = tmp_path / "disk.img"
    create_disk(read_layout(tmp_path / "layout.toml"), disk, images={})
    raw = tmp_path / "raw.img"
    with raw.open("wb") as file:
        file.truncate(disk.stat().st_size)

    ours: list[dict[str, float]] = []
    peers: list[tuple[float, float]] = []
    with nginx(tmp_path) as url:
        for _ in range(RUNS):
            command = [sys.executable, "-m", "tests.bench.install_once", str(disk)]
            command += [str(tmp_path / "facts.json"), f"{url}/p.crau", str(tmp_path / "k.pub.pem")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ours.append(json.loads(done.stdout))
            pipe = PEER.format(url=url, out=raw) + f" && openssl dgst -sha256 {raw}"
            peers.append(measured(["sh", "-c", pipe]))

    wall = statistics.median(run["wall"] for run in ours)
    cpu = statistics.median(run["cpu"] for run in ours)
    peer_wall = statistics.median(run[0] for run in peers)
    peer_cpu = statistics.median(run[1] for run in peers)
    memory = max(run["above_idle_mib"] for run in ours)
    print(
        f"\nfull install, 1 GiB ext4, zstd, loopback, medians of {RUNS} interleaved runs\n"
        f"{'':28}{'wall s':>8}{'cpu s':>8}{'fetched MB':>12}{'MiB above idle':>16}\n"
        f"{'bascule (with read-back)':28}{wall:8.2f}{cpu:8.2f}"
        f"{ours[0]['downloaded_mb']:12.1f}{memory:16.1f}\n"
        f"{'curl|zstd -d|dd, sha256':28}{peer_wall:8.2f}{peer_cpu:8.2f}"
        f"{(served / 'image.zst').stat().st_size / 1e6:12.1f}\n"
        f"ratio of walls {wall / peer_wall:.2f} (aim: 1.3 or less), of cpu {cpu / peer_cpu:.2f}"
    )
