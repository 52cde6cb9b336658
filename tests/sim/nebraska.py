"""A stock Nebraska in a few lines: its answers and its state machine, XML written by hand.

Source: the reference on Omaha, sections 1, 3 and 5, established by running the real server.
Nothing of our own codec is used, so that both sides cannot be wrong in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final, Self
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from tests.sim.scripted_server import ScriptedServer, Talk, reply

UNDEFINED, GRANTED, ERROR, COMPLETE, INSTALLED, DOWNLOADED, DOWNLOADING, ON_HOLD = range(1, 9)
IN_PROGRESS: Final = frozenset({GRANTED, INSTALLED, DOWNLOADED, DOWNLOADING})
BUSY: Final = frozenset({INSTALLED, DOWNLOADED, DOWNLOADING})
KNOWN: Final = frozenset({(3, 0), (3, 1), (3, 2), (13, 1), (14, 1), (800, 1)})
SEMVER: Final = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True)
class Package:
    """What a channel points to: the file at `codebase` + `name`, as an operator typed it in."""

    version: str
    codebase: str
    name: str
    data: bytes
    sha256: str | None = None  # base64, None for the true one
    delta: bool = False

    def xml(self) -> str:
        sha1 = base64.b64encode(hashlib.sha1(self.data, usedforsecurity=False).digest()).decode()
        sha256 = self.sha256 or base64.b64encode(hashlib.sha256(self.data).digest()).decode()
        delta = ' IsDeltaPayload="true"' if self.delta else ""
        return (
            f"<urls><url codebase={quoteattr(self.codebase)}></url></urls>"
            f'<manifest version="{self.version}"><packages>'
            f'<package name="{self.name}" hash="{sha1}" size="{len(self.data)}" required="true">'
            "</package></packages><actions>"
            f'<action event="postinstall" sha256="{sha256}" DisablePayloadBackoff="true"{delta}>'
            "</action></actions></manifest>"
        )


@dataclass
class Nebraska:
    """One application with one group, one channel and one instance.

    Attributes:
        flatcar: whether the application is the one whose id Nebraska treats specially.
        package: what the channel points to.
        throttle: the `app` status with which checks are put off, empty to serve them.
        state: of the instance, None before it registered.
        granted: the version handed out last.
        recorded: the version that the instance is counted as.
        events: (type, result, errorcode, previousversion) of all events, ignored ones included.
        checks: update checks so far.
    """

    flatcar: bool = False
    package: Package | None = None
    throttle: str = ""
    state: int | None = None
    granted: str = ""
    recorded: str = ""
    events: list[tuple[int, int, str | None, str | None]] = field(default_factory=list)
    checks: int = 0

    def __post_init__(self) -> None:
        self._server = ScriptedServer(script=[self._answer])

    @property
    def url(self) -> str:
        return f"{self._server.base}/v1/update/"

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    def _answer(self, talk: Talk) -> None:
        app = ET.fromstring(talk.asked.body).find("app")  # our own node's words
        assert app is not None
        parts = [self._event(event) for event in app.findall("event")]
        status, check = self._register(app)
        if app.find("ping") is not None:
            parts.insert(0, '<ping status="ok"></ping>')
        parts.append(check)
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<response protocol="3.0" server="nebraska"><daystart elapsed_seconds="0"></daystart>'
            f'<app appid="{app.get("appid")}" status="{status}">{"".join(parts)}</app></response>'
        )
        reply(200, body.encode(), **{"Content-Type": "text/xml"})(talk)

    def _event(self, event: ET.Element) -> str:
        kind = (int(event.get("eventtype", "0")), int(event.get("eventresult", "0")))
        previous = event.get("previousversion")
        self.events.append((*kind, event.get("errorcode"), previous))
        if kind in KNOWN and self.state in IN_PROGRESS:
            self.state = self._after(kind, previous)
            if self.state == COMPLETE:
                self.recorded = self.granted
        return '<event status="ok"></event>'

    def _after(self, kind: tuple[int, int], previous: str | None) -> int | None:
        if kind == (3, 2):
            reset = self.flatcar and previous in {None, "", "0.0.0.0"}  # a version
            return UNDEFINED if reset else COMPLETE
        if kind == (3, 1):
            return self.state if self.flatcar else COMPLETE
        return {(3, 0): ERROR, (13, 1): DOWNLOADING, (14, 1): DOWNLOADED, (800, 1): INSTALLED}[kind]

    def _register(self, app: ET.Element) -> tuple[str, str]:
        """Return the app's status and the answer to its check, if it asks."""
        asks = app.find("updatecheck") is not None
        if not asks and app.find("ping") is None:
            return "ok", ""
        running = app.get("version", "")
        if not SEMVER.fullmatch(running) or not 1 <= len(app.get("machineid", "")) <= 50:
            return _refused("error-instanceRegistrationFailed")
        if self.state is None:
            self.state, self.recorded = UNDEFINED, running
        if not asks:
            return "ok", ""
        self.checks += 1
        return self._check(running)

    def _check(self, running: str) -> tuple[str, str]:
        if self.state in IN_PROGRESS and _key(running) >= _key(self.granted):
            self.state, self.recorded = COMPLETE, self.granted
        if self.state in BUSY:
            return _refused("error-updateInProgressOnInstance")
        if self.package is None:
            return _refused("error-noPackageFound")
        if _key(running) >= _key(self.package.version):
            return "ok", '<updatecheck status="noupdate"><urls></urls></updatecheck>'
        if self.throttle and self.state != GRANTED:
            self.state = ON_HOLD
            return _refused(self.throttle)
        self.state, self.granted = GRANTED, self.package.version
        return "ok", f'<updatecheck status="ok">{self.package.xml()}</updatecheck>'


def _refused(status: str) -> tuple[str, str]:
    return status, '<updatecheck status="error-internal"><urls></urls></updatecheck>'


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0]))
