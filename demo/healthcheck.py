"""The health check of a demo node: runs the booted image's own check.

On a real node this would be a unit or a command inside the system. A model machine has no
running system, so its check is read out of the booted slot's file system and run by sh.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from partitions.slots import Slot, resolve
from updater.assembly import slot_layout
from updater.machine_model import BOOT_FILE, BootRecord
from updater.settings import load
from updater.slot_files import read_file

CHECK_PATH = "/usr/lib/demo/healthcheck"


def main(config: Path) -> int:
    """Run the check of the slot that is booted; returns its exit status."""
    import msgspec

    settings = load(config).settings
    record = Path(settings.node.run_folder) / BOOT_FILE
    booted = msgspec.json.decode(record.read_bytes(), type=BootRecord)
    regions = resolve(Path(settings.slots.disk), slot_layout(settings))[Slot(booted.slot)]
    script = read_file(regions["usr"], CHECK_PATH, max_bytes=64 * 1024)
    with tempfile.NamedTemporaryFile() as file:
        file.write(script)
        file.flush()
        return subprocess.run(["sh", file.name], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
