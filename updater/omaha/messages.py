"""What an Omaha v3 exchange says, as frozen values.

The words follow the protocol (element and attribute names are in `codec`), the meanings are in
the reference notes on Omaha v3. No XML, no socket and no policy happens in this room: nothing
here is trusted, a node only takes a response as a hint.

Attributes that are ours alone start with `bascule_` on the wire; other programs ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

PROTOCOL: Final = "3.0"

SCHEDULED: Final = "scheduler"  # installsource of a timer
ON_DEMAND: Final = "ondemandupdate"  # installsource when a person asked

APP_OK: Final = "ok"
APP_UNKNOWN: Final = "error-unknownApplication"
APP_INVALID_ID: Final = "error-invalidAppId"
APP_INVALID_VERSION: Final = "error-invalidVersion"
APP_INTERNAL: Final = "error-internal"

CHECK_OK: Final = "ok"
CHECK_NO_UPDATE: Final = "noupdate"
CHECK_UNSUPPORTED_PROTOCOL: Final = "error-unsupportedProtocol"
CHECK_INTERNAL: Final = "error-internal"

POSTINSTALL: Final = "postinstall"  # the one action an engine reads


@dataclass(frozen=True, slots=True, kw_only=True)
class OsInfo:
    """The operating system a request comes from.

    Attributes:
        platform: such as `Linux` or `CoreOS`.
        version: a constant of the program that asks.
        service_pack: `<os version>_<uname machine>`, on the wire `sp`.
        arch: Omaha's name of the architecture, such as `x64` or `arm`.
    """

    platform: str = ""
    version: str = ""
    service_pack: str = ""
    arch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """A sign of life.

    Attributes:
        active: whether the machine was in use since the last one.
    """

    active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCheck:
    """The question whether there is an update.

    Attributes:
        target_version_prefix: wish for versions that begin so; empty for any.
    """

    target_version_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of an update that a node reports.

    Attributes:
        type: a number of `codes.EventType`; others are carried as they are.
        result: a number of `codes.EventResult`; others are carried as they are.
        error_code: the engine's error number, flag bits included; None when left out.
        previous_version: what ran before the update; None when left out, which is not the
            same as empty (a stock engine sends it empty with every check).
        next_version: the version the event is about; stock engines leave it out, ours names
            the release that failed or came.
        bascule_code: our stable kebab-case code of a failure; empty from other programs.
        bascule_sentence: ours: the failure in one sentence for people.
    """

    type: int
    result: int
    error_code: int | None = None
    previous_version: str | None = None
    next_version: str | None = None
    bascule_code: str = ""
    bascule_sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRequest:
    """What one product on one machine says and asks.

    Attributes:
        app_id: the product, with or without braces.
        version: the running version.
        track: the group (of a bascule or Nebraska server) the machine belongs to.
        boot_id: changes with each boot.
        machine_id: stable identity of the machine.
        machine_alias: a name for people.
        oem: flavour of the platform.
        oem_version: version of that flavour.
        aleph_version: the first version ever installed on this disk.
        board: what the image must be built for.
        language: such as `en-US`.
        delta_okay: whether a delta payload may be offered.
        multi_manifest_ok: whether several manifests are understood (servers that sync).
        state: ours: the lifecycle state, such as `idle` or `trial`.
        slot: ours: the booted slot, `a` or `b`.
        ping: a sign of life, if sent.
        update_check: the question for an update, if asked.
        events: what happened, oldest first.
    """

    app_id: str
    version: str = ""
    track: str = ""
    boot_id: str = ""
    machine_id: str = ""
    machine_alias: str = ""
    oem: str = ""
    oem_version: str = ""
    aleph_version: str = ""
    board: str = ""
    language: str = ""
    delta_okay: bool = False
    multi_manifest_ok: bool = False
    state: str = ""
    slot: str = ""
    ping: Ping | None = None
    update_check: UpdateCheck | None = None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One POST of a client.

    Attributes:
        apps: the products, in document order.
        os: the operating system.
        protocol: `3.0`; other texts are carried as they are.
        version: program and version that asks, such as `bascule-0.1.0`.
        updater_version: usually the same again.
        install_source: `SCHEDULED` or `ON_DEMAND`.
        is_machine: whether the install is for the whole machine.
        session_id: one per process or attempt.
        request_id: one per request.
    """

    apps: tuple[AppRequest, ...]
    os: OsInfo = field(default_factory=OsInfo)
    protocol: str = PROTOCOL
    version: str = ""
    updater_version: str = ""
    install_source: str = SCHEDULED
    is_machine: bool = True
    session_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do with a package; engines read only the one for `POSTINSTALL`.

    Attributes:
        event: when it applies.
        sha256: digest of the payload, 64 lower-case hex digits; empty when missing or
            unreadable. On the wire it is base64.
        is_delta: whether the payload needs the running version as its source.
        disable_backoff: whether the engine's download back-off is switched off.
        max_failures_per_url: failures before the next URL; None for the engine's default.
    """

    event: str = POSTINSTALL
    sha256: str = ""
    is_delta: bool = False
    disable_backoff: bool = False
    max_failures_per_url: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of an update.

    Attributes:
        name: appended to each codebase.
        size_bytes: exact size; 0 when missing or unreadable.
        sha1: base64 of the SHA-1, as old clients check it; empty when left out.
        sha256: 64 lower-case hex digits; empty when missing or unreadable. Base64 on the
            wire; hex is read as well.
        required: whether the update needs it.
    """

    name: str
    size_bytes: int
    sha1: str = ""
    sha256: str = ""
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version that is offered.

    Attributes:
        version: what it will be once it runs.
        packages: the files; the first is the payload.
        actions: what to do with them.
        is_floor: whether the version may not be skipped (servers that sync).
        floor_reason: why not.
        is_target: whether it is the last of several.
    """

    version: str
    packages: tuple[Package, ...] = ()
    actions: tuple[Action, ...] = ()
    is_floor: bool = False
    floor_reason: str = ""
    is_target: bool = False

    @property
    def postinstall(self) -> Action | None:
        """The action an engine reads, if there is one."""
        return next((action for action in self.actions if action.event == POSTINSTALL), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCheckResult:
    """The answer to `UpdateCheck`.

    Attributes:
        status: `CHECK_OK`, `CHECK_NO_UPDATE` or an error text.
        codebases: base URLs, best first.
        manifests: the versions on offer; a plain client reads the first.
        poll_interval_s: when to ask again, in seconds; None when the server does not care.
        reason: ours: kebab-case code of why there is no update (or of who is waiting).
        sentence: ours: the same for people.
    """

    status: str
    codebases: tuple[str, ...] = ()
    manifests: tuple[Manifest, ...] = ()
    poll_interval_s: int | None = None
    reason: str = ""
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppResponse:
    """The answer for one product.

    Attributes:
        app_id: as it was in the request.
        status: `APP_OK` or an error text.
        ping_ok: whether a ping was acknowledged.
        update_check: the answer to the question, if one was asked.
        events_ok: how many events were acknowledged.
    """

    app_id: str
    status: str = APP_OK
    ping_ok: bool = False
    update_check: UpdateCheckResult | None = None
    events_ok: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer of a server.

    Attributes:
        apps: one for each of the request, in its order.
        protocol: `3.0`.
        server: name of the server's program.
        elapsed_seconds: seconds since the day began at the server; others send 0 always.
    """

    apps: tuple[AppResponse, ...]
    protocol: str = PROTOCOL
    server: str = "bascule"
    elapsed_seconds: int = 0
