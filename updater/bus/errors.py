"""What can go wrong between us and the bus, or the service behind it."""

from __future__ import annotations

from updater.errors import EXIT_CANNOT_TELL, EngineBusyError, RefusedError, UpdaterError


class BusError(UpdaterError):
    """The message bus cannot be used as it should be."""

    code = "bus-failed"
    hint = "Look at `systemctl status dbus` and the [bus] settings."


class BusUnreachableError(BusError):
    """Nobody listens at the bus address, or it does not let us in."""

    code = "bus-unreachable"


class BusNameError(BusError):
    """The bus does not give us our name."""

    code = "bus-name"
    hint = "Is the bus policy installed, and does another service own the name?"


class BusLostError(BusError):
    """The bus ended while we were on it: who calls us now would hang."""

    code = "bus-lost"
    hint = "The service ends and is started again by systemd; what was under way resumes."


class BusTimeoutError(BusError):
    """No answer came in time."""

    code = "bus-timeout"
    hint = "`journalctl -u bascule` shows what the service does; `--direct` works without it."
    exit_status = EXIT_CANNOT_TELL


class ServiceGoneError(BusError):
    """The service ended while we waited for it."""

    code = "service-gone"
    hint = "`bascule status` shows how far it came; what was under way resumes with the service."
    exit_status = EXIT_CANNOT_TELL


class CallFailedError(BusError):
    """A call was answered with an error.

    Attributes:
        name: the D-Bus name of the error.
    """

    code = "bus-call-failed"

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence or name)
        self.name = name


class NotAuthorizedError(RefusedError):
    """The caller may not ask for this."""

    code = "not-authorized"
    hint = "Become root, or let polkit grant the action: docs/d-bus.md lists them."


class JobRunsError(EngineBusyError):
    """The same is under way already."""

    hint = "Wait for its signal JobDone; `bascule status` shows how far it is."


class InternalError(UpdaterError):
    """Something nobody expected; the service's log has it whole."""

    code = "internal"
    hint = "`journalctl -u bascule` has the details; please report them."
