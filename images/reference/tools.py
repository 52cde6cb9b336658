"""Running the programs that the recipe needs: arguments in, output out, failures with a code."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from images.errors import ToolFailedError, ToolMissingError

# Debian's package of each program, for the hint.
PACKAGES: Final[Mapping[str, str]] = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "veritysetup": "cryptsetup-bin",
    "zstd": "zstd",
    "depmod": "kmod",
    "make": "make",
    "git": "git",
}
_ADMIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # a person's PATH often lacks them
_LAST_LINES: Final = 5  # of what a failed program said


def run(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program to its end and return what it wrote to standard output.

    Its locale and time zone are fixed: what it makes must not depend on the builder's.

    Raises:
        ToolMissingError: there is no such program.
        ToolFailedError: it ended with another status than 0.
    """
    name = Path(arguments[0]).name
    inherited = {key: os.environ[key] for key in ("HOME", "TMPDIR") if key in os.environ}
    path = f"{os.environ.get('PATH', os.defpath)}:{_ADMIN}"
    fixed = {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC0", "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**inherited, **fixed, **(environment or {})},
            cwd=folder,
        )
    except FileNotFoundError as error:
        package = PACKAGES.get(name)
        where = f" (Debian's package {package} has it)" if package else ""
        raise ToolMissingError(f"{name} is not installed{where}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-_LAST_LINES:]
        raise ToolFailedError(f"{name} ended with status {done.returncode}: {' / '.join(said)}")
    return done.stdout
