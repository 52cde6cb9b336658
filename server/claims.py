"""What a node says of itself, made safe to store and to show. Pure.

Every text a stranger sends is checked against a pattern here, once. What identifies the node or
decides its answer is refused when it does not fit; what is only for people is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from images.errors import VersionInvalidError
from images.release import NAME_PATTERN
from images.version import Version, parse_version
from server.clients import group_named, is_syncer

if TYPE_CHECKING:
    from updater.omaha import AppRequest, Request

OUR_AGENT: Final = "bascule-"  # how our nodes begin their program's version

# Letters of any script, digits and a little punctuation; nothing that is markup or control.
_FREE_TEXT: Final = re.compile(r"[\w .,:;@#+/()=~-]{1,64}")
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
_MACHINE_ID: Final = re.compile(r"\{?[0-9A-Za-z][0-9A-Za-z._:-]{0,60}\}?", re.ASCII)
_CODE: Final = re.compile(r"[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*", re.ASCII)
_CODE_MAX_CHARS: Final = 64
SENTENCE_MAX_CHARS: Final = 300  # ours have under 150
_BOOT_ID: Final = re.compile(r"[0-9A-Za-z{}-]{1,64}", re.ASCII)
_SLOTS: Final = frozenset({"a", "b"})
STATES: Final = frozenset({
    "idle", "checking", "installing", "verifying", "armed", "rebooting", "trial",
})  # fmt: skip
UNDER_WAY: Final = frozenset({"installing", "verifying", "armed", "rebooting", "trial"})


class ClaimRefusedError(Exception):
    """A node said something that cannot be worked with.

    Attributes:
        status: the Omaha status of the app.
        reason: our code.
    """

    def __init__(self, status: str, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A node and what it says of itself, every text checked.

    Attributes:
        product: ours, as the desk spells it.
        machine_id: who.
        group_name: the group it wants to be in.
        board: what its images are built for.
        running: the version it runs.
        alias: a name for people; may be empty, as the rest.
        state: a lifecycle state of ours; empty from stock engines.
        slot: the booted slot.
        oem: flavour of the platform.
        agent: program and version that asks.
        boot_id: changes with each boot.
        is_ours: whether the node speaks our additions.
        is_syncer: whether it is no node but a server that follows this one.
        delta_okay: whether it takes a delta payload.
        reads_several: whether it reads more than one manifest.
    """

    product: str
    machine_id: str
    group_name: str
    board: str
    running: Version
    alias: str = ""
    state: str = ""
    slot: str = ""
    oem: str = ""
    agent: str = ""
    boot_id: str = ""
    is_ours: bool = False
    is_syncer: bool = False
    delta_okay: bool = False
    reads_several: bool = False


def normal_app_id(app_id: str) -> str:
    """Return a product or app id as ids are compared: no braces, lower case."""
    return app_id.strip().removeprefix("{").removesuffix("}").lower()


def claim_of(request: Request, app: AppRequest, *, product: str, default_board: str) -> Claim:
    """Return what the node of `app` claims.

    Args:
        request: the message around it.
        app: one product on one machine.
        product: as the desk spells it.
        default_board: for a client that names none.

    Raises:
        ClaimRefusedError: machine id, group, board or version cannot be worked with.
    """
    if not _MACHINE_ID.fullmatch(app.machine_id):
        raise ClaimRefusedError(
            "error-instanceRegistrationFailed",
            "machine-id-invalid",
            "the machine id must have 1 to 62 letters, digits and . _ : -",
        )
    return Claim(
        product=product,
        machine_id=app.machine_id.lower(),
        group_name=_named(group_named(app.track), "group-invalid", "group"),
        board=_named(app.board or default_board, "board-invalid", "board"),
        running=_version(app.version),
        alias=_text(app.machine_alias),
        state=app.state if app.state in STATES else "",
        slot=app.slot.lower() if app.slot.lower() in _SLOTS else "",
        oem=_text(app.oem),
        agent=_text(request.version),
        boot_id=app.boot_id if _BOOT_ID.fullmatch(app.boot_id) else "",
        is_ours=request.version.startswith(OUR_AGENT),
        is_syncer=is_syncer(request, app),
        delta_okay=app.delta_okay,
        reads_several=app.multi_manifest_ok,
    )


def clean_code(code: str) -> str:
    """Return a code of ours as a node sent it; empty when it is none."""
    return code if len(code) <= _CODE_MAX_CHARS and _CODE.fullmatch(code) else ""


def clean_sentence(text: str) -> str:
    """Return a sentence as a node sent it, cut and without control characters."""
    return "".join(character for character in text[:SENTENCE_MAX_CHARS] if character.isprintable())


def clean_version(text: str | None) -> str:
    """Return a version as a node sent it; empty when it is none."""
    try:
        return "" if text is None else parse_version(text).text
    except VersionInvalidError:
        return ""


def _named(text: str, reason: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise ClaimRefusedError(
            "error-internal", reason, f"the {what} must have 1 to 64 letters, digits and . _ -"
        )
    return text


def _version(text: str) -> Version:
    try:
        return parse_version(text)
    except VersionInvalidError as error:
        raise ClaimRefusedError("error-invalidVersion", "version-invalid", str(error)) from error


def _text(text: str) -> str:
    return text if _FREE_TEXT.fullmatch(text) else ""
