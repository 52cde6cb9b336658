"""What can go wrong on a node, as a tree drawn by whose fault it is.

Each class owns a stable code, a hint for a person and an exit status. The
trees of images and partitions have the same three attributes, so a caller treats all alike.
Broken invariants are not here: they crash, loudly.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_NOTHING = 4
EXIT_ARMED = 5
EXIT_CANNOT_TELL = 6
EXIT_STOPPED = 130  # 128 and the number of SIGINT, as shells have it


class UpdaterError(Exception):
    """Anything that stops a node's work with a code, a sentence and a hint.

    Attributes:
        code: kebab-case, stable and never reused; operators grep and alert on it.
        hint: what a person should look at or do next.
        exit_status: what a command ends with.
    """

    code: ClassVar[str] = "updater"
    hint: ClassVar[str] = "This is a bug: every error should have a code of its own."
    exit_status: ClassVar[int] = EXIT_FAILED


class SettingsError(UpdaterError):
    """A settings file cannot be read, or holds what it must not."""

    code = "settings-invalid"
    hint = "Correct it and run `bascule config check`; docs/operating-a-node.md has every setting."
    exit_status = EXIT_USAGE


class SettingsMissingError(SettingsError):
    """The settings file that was named is not there."""

    code = "settings-missing"
    hint = "Correct the path after `--config`, or leave it out to read the system's settings."


class MachineUnfitError(UpdaterError):
    """The settings hold, and name what this machine does not have."""

    code = "machine-unfit"
    hint = (
        "Correct settings or machine; `bascule config check --settings-only` looks at no machine."
    )


class WindowInvalidError(SettingsError):
    """A window's calendar expression, length or time zone does not hold."""

    code = "window-invalid"
    hint = "`systemd-analyze calendar` explains expressions; docs/operating-a-node.md has examples."


class StateError(UpdaterError):
    """The state folder cannot be read or written."""

    code = "state-folder"
    hint = "Check that the state folder exists, is writable by this user and has space."


class EngineBusyError(UpdaterError):
    """Another process works on this node at the moment."""

    code = "engine-busy"
    hint = "Wait for it to end; `bascule status` shows what it does."
    exit_status = EXIT_CANNOT_TELL


class IllegalTransitionError(UpdaterError):
    """The lifecycle has no such move."""

    code = "illegal-transition"
    hint = "`bascule status` shows the state; docs/lifecycle.md shows the moves it allows."
    exit_status = EXIT_REFUSED


class RefusedError(UpdaterError):
    """Trust or policy says no; nothing was changed."""

    code = "refused"
    hint = "`bascule status` shows the reason."
    exit_status = EXIT_REFUSED


class UnreachableError(UpdaterError):
    """A server could not be asked, so nothing can be said."""

    code = "unreachable"
    hint = "Check the network, the URL in the settings and the server; it is tried again by itself."
    exit_status = EXIT_CANNOT_TELL
