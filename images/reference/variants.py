"""Versions that fail in a known way, for tests of what comes after: a slot that must fall back.

Each is the good system with one change. All of them can be signed and installed; only the boot
shows what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from images.reference import tree

INIT: Final = "usr/sbin/init"
VENV_PYTHON: Final = "usr/lib/bascule/venv/bin/python3"
SETTINGS: Final = "usr/lib/bascule/bascule.toml.d/90-variant.toml"
_ENDS: Final = "#!/bin/sh\necho 'bascule-variant: init ends'\nexit 1\n"
_HANGS: Final = "while :; do sleep 3600; done\n"
# As if the kernel had lost the driver, which Debian's has built in. The wait for somebody who might
# look is a minute, not 15.
_WAIT: Final = "/run/systemd/system/bascule-no-state.timer.d"
_FORGETS: Final = (
    'mount() { if [ "$2" = ext4 ]; then return 1; fi; command mount "$@"; }\n'
    f"mkdir -p {_WAIT}\n"
    f"printf '[Timer]\\nOnStartupSec=\\nOnStartupSec=1min\\n' >{_WAIT}/90-variant.conf\n"
)
_UNHEALTHY: Final = (
    "[health]\ndeadline_secs = 60\n\n"
    '[[health.checks]]\nname = "never-healthy"\ncommand = ["/bin/false"]\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way in which a version differs from the good one.

    Attributes:
        summary: what happens when it boots.
        change: what to do to the files of its root.
        hooks: shell that its initrd reads before it opens the root, by file name.
        kernel: what becomes of the kernel's bytes, given these and the version.
        tiny: the root is a busybox, not the system.
    """

    summary: str
    change: Callable[[Path], None] = lambda _: None
    hooks: Mapping[str, str] = field(default_factory=dict)
    kernel: Callable[[bytes, str], bytes] = lambda data, _: data
    tiny: bool = False


def noise(size: int, seed: str) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def _init(script: str) -> Callable[[Path], None]:
    return lambda root: tree.place(root, INIT, script.encode(), executable=True)


VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType(
    {
        "good": Variant(summary="the system"),
        "panic-init": Variant(
            summary="the first process ends: the kernel panics", change=_init(_ENDS)
        ),
        "hung-init": Variant(
            summary="the first process hangs silently: the watchdog resets",
            change=_init(f"#!/bin/sh\n{_HANGS}"),
        ),
        "hung-initrd": Variant(
            summary="the initrd hangs before the root: the watchdog resets",
            hooks={"90-hang.sh": _HANGS},
        ),
        "broken-kernel": Variant(
            summary="the kernel is no kernel: the loader cannot start it",
            kernel=lambda data, version: noise(len(data), f"kernel {version}"),
        ),
        "unhealthy": Variant(
            summary="a health check fails for ever",
            change=lambda root: tree.place(root, SETTINGS, _UNHEALTHY.encode()),
        ),
        "no-daemon": Variant(
            summary="bascule.service cannot start: its Python is missing",
            change=lambda root: tree.remove(root, [VENV_PYTHON]),
        ),
        "no-state": Variant(
            summary="its kernel cannot mount the state: it reboots after a minute",
            hooks={"90-forget.sh": _FORGETS},
        ),
        "tiny": Variant(summary="a busybox that says it is up, of 4 MiB", tiny=True),
    }
)
