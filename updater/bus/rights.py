"""Who may ask for what: root anything, everybody to read, others what polkit grants.

The sender is never believed: the bus says which user a connection belongs to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
from typing import TYPE_CHECKING, Final

from updater.bus.errors import BusLostError, BusTimeoutError, CallFailedError, NotAuthorizedError
from updater.bus.library import BUS, BUS_PATH, variant

if TYPE_CHECKING:
    from updater.bus.library import Bus, Caller
    from updater.verbs import Right

log = logging.getLogger(__name__)

POLKIT: Final = "org.freedesktop.PolicyKit1"
POLKIT_PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
POLKIT_INTERFACE: Final = f"{POLKIT}.Authority"
ALLOW_USER_INTERACTION: Final = 1  # polkit's CheckAuthorizationFlags
POLKIT_TIMEOUT_SECS: Final = 5.0
INTERACTIVE_TIMEOUT_SECS: Final = 120.0  # a person types a password
ACTION_PREFIX: Final = "org.bascule."
COMPATIBLE_USER: Final = "core"  # may call update_engine's interface, as its policy says


async def user_of(bus: Bus, caller: Caller) -> int:
    """Return the user id that a caller's connection belongs to.

    Raises:
        NotAuthorizedError: the bus does not know: the caller has gone.
    """
    try:
        [uid] = await bus.call(BUS, BUS_PATH, "GetConnectionUnixUser", "s", caller.sender)
    except CallFailedError as error:
        raise NotAuthorizedError(f"nobody knows who {caller.sender} is: {error}") from error
    return int(uid)


async def admit(bus: Bus, caller: Caller, right: Right, *, interactive: bool) -> str:
    """Return the name of the caller's user, when it may do what `right` says.

    Args:
        bus: the connection that the call came by.
        caller: who calls.
        right: what is asked for.
        interactive: the caller says that its user may be asked for a password.

    Raises:
        NotAuthorizedError: it may not, or nobody could be asked.
    """
    uid = await user_of(bus, caller)
    name = await asyncio.to_thread(user_name, uid)
    if right == "read" or uid == 0:
        return name
    asks = interactive or caller.interactive
    if not await _granted(bus, caller, ACTION_PREFIX + right, interactive=asks):
        raise NotAuthorizedError(f"user {name} may not {right}: {ACTION_PREFIX}{right}")
    log.info("caller authorized user=%s action=%s%s", name, ACTION_PREFIX, right)
    return name


async def admit_compatible(bus: Bus, caller: Caller) -> str:
    """Return the name of a caller that may use update_engine's interface.

    Raises:
        NotAuthorizedError: it is neither root nor user core.
    """
    uid = await user_of(bus, caller)
    name = await asyncio.to_thread(user_name, uid)
    if uid != 0 and name != COMPATIBLE_USER:
        raise NotAuthorizedError(f"user {name} is neither root nor {COMPATIBLE_USER}")
    return name


async def _granted(bus: Bus, caller: Caller, action: str, *, interactive: bool) -> bool:
    """Ask polkit. Silence, errors and no polkit at all are a no."""
    subject = ["system-bus-name", {"name": variant("s", caller.sender)}]
    flags = ALLOW_USER_INTERACTION if interactive else 0
    ticket = f"bascule-{os.urandom(8).hex()}"
    try:
        [[granted, _challenge, _details]] = await bus.call(
            POLKIT, POLKIT_PATH, "CheckAuthorization", "(sa{sv})sa{ss}us",
            subject, action, {}, flags, ticket,
            interface=POLKIT_INTERFACE,
            timeout_secs=INTERACTIVE_TIMEOUT_SECS if interactive else POLKIT_TIMEOUT_SECS,
        )  # fmt: skip
    except BusTimeoutError:
        await _give_up(bus, ticket)
        raise NotAuthorizedError(f"polkit did not answer in time whether {action}") from None
    except CallFailedError as error:
        raise NotAuthorizedError(f"polkit cannot be asked for {action}: {error}") from error
    except (ValueError, BusLostError) as error:  # ValueError: another shape than polkit's
        raise NotAuthorizedError(f"polkit's answer for {action} is none: {error}") from error
    return granted is True


async def _give_up(bus: Bus, ticket: str) -> None:
    """Take the question back, so that no dialogue stays open."""
    try:
        await bus.call(
            POLKIT, POLKIT_PATH, "CancelCheckAuthorization", "s", ticket,
            interface=POLKIT_INTERFACE, timeout_secs=1,
        )  # fmt: skip
    except (BusTimeoutError, BusLostError, CallFailedError) as error:
        log.debug("question to polkit not taken back why=%s", error)


def user_name(uid: int) -> str:
    """Return the name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name[:64]
    except (KeyError, OSError):
        return f"uid {uid}"
