"""A real systemd-journald takes our lines; journalctl finds them by id and field.

It runs in namespaces of its own, with an empty /run and /var/log: nothing of this machine's
journal is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from updater.journal import MESSAGE_IDS

JOURNALD = Path("/lib/systemd/systemd-journald")
SCRIPT = """\
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nStorage=volatile\\nAudit=no\\nReadKMsg=no\\n' \\
    >/run/systemd/journald.conf.d/test.conf
echo 0123456789abcdef0123456789abcdef >/run/machine-id
mount --bind /run/machine-id /etc/machine-id
"$JOURNALD" 2>/dev/null &
tries=0
until [ -S /run/systemd/journal/stdout ] || [ $tries = 300 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
"$PYTHON" -c "$AS_SYSTEMD"
journalctl --sync
journalctl --directory /run/log/journal --output json --no-pager "$@"
"""
# The error stream is a connection to the journal, and JOURNAL_STREAM names it.
AS_SYSTEMD = """\
import logging, os, socket, subprocess, sys
stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"bascule\\n\\n6\\n1\\n0\\n0\\n0\\n")
found = os.fstat(stream.fileno())
environment = dict(os.environ, JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}")
program = '''
import logging, os, sys
from updater.journal import start_logging
start_logging()
logging.getLogger("updater.updating").info("slot armed slot=%s version=%s", "b", "2.0.0 beta")
logging.getLogger("updater.updating").info("slot armed slot=%s version=%s", "a", "1.0.0")
os.environ["JOURNAL_STREAM"] = ""
start_logging()
logging.getLogger("updater.updating").warning("said on the stream")
'''
subprocess.run([sys.executable, "-c", program], stderr=stream, env=environment, check=True)
"""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not JOURNALD.exists(), reason="systemd-journald is not installed"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed"),
    pytest.mark.skipif(not Path("/etc/machine-id").exists(), reason="there is no machine-id"),
]


def found_by(*match: str) -> list[dict[str, str]]:
    """Log in a world with a journal of its own; return the entries that journalctl finds."""
    namespaces = ["unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc"]
    outcome = subprocess.run(
        [*namespaces, "sh", "-c", SCRIPT, "sh", *match],
        capture_output=True,
        timeout=120,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            "PYTHON": sys.executable,
            "JOURNALD": str(JOURNALD),
            "AS_SYSTEMD": AS_SYSTEMD,
        },
    )
    if outcome.returncode != 0 and b"unshare" in outcome.stderr:
        pytest.skip(f"no namespaces here: {outcome.stderr.decode().strip()}")
    assert outcome.returncode == 0, outcome.stderr.decode()
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def test_lines_are_found_by_message_id_and_field() -> None:
    (entry,) = found_by(f"MESSAGE_ID={MESSAGE_IDS['slot armed']}", "BASCULE_SLOT=b")
    assert entry["MESSAGE"] == "slot armed slot=b version=2.0.0 beta"
    assert entry["BASCULE_VERSION"] == "2.0.0 beta"
    assert entry["PRIORITY"] == "6"
    assert entry["_TRANSPORT"] == "journal"


def test_lines_on_the_stream_are_found_by_the_same_identifier_and_priority() -> None:
    entries = found_by("SYSLOG_IDENTIFIER=bascule")
    found = sorted((entry["_TRANSPORT"], entry["PRIORITY"]) for entry in entries)
    assert found == [("journal", "6"), ("journal", "6"), ("stdout", "4")]
