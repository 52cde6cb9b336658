"""Clients made with go-omaha, as a server sees them: the general client, and a Nebraska that syncs.

Requests are written as Go's XML encoder writes them, answers are read as strictly as its decoder
reads them: a number or a boolean that is none is an error, and so is another content type or
protocol.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree as ET

import requests

RESPONSE_MAX_BYTES: Final = 1024 * 1024
CONTENT_TYPES: Final = {"text/xml; charset=utf-8", "text/xml", "application/xml"}
APP_ID: Final = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"
SYNCER: Final = "CoreOSUpdateEngine-0.1.0.0"

_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("", "0", "f", "F", "false", "FALSE", "False"), False),
}


class GoOmahaError(Exception):
    """The client gives up; the text is its status or why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package as the client checks it: names and texts as they stood in the answer."""

    url: str
    size: int
    sha1: str
    sha256: str

    def verify(self, data: bytes) -> None:
        """Raise when `data` is not this package."""
        if len(data) != self.size:
            raise GoOmahaError("size")
        if _digest("sha1", data) != self.sha1:
            raise GoOmahaError("sha1")
        if self.sha256 and _digest("sha256", data) != self.sha256:
            raise GoOmahaError("sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One manifest with its first package and its first action."""

    version: str
    package: Package
    action: Mapping[str, str]
    is_floor: bool
    is_target: bool


@dataclass
class GoOmahaClient:
    """The general client: one app, its user id is its machine id."""

    url: str
    version: str
    track: str = "stable"
    app_id: str = APP_ID
    user_id: str = "deadbeef-0000-4000-8000-000000000001"
    session_id: str = "b8f0c5a2-24b8-4d3e-8f4e-0b6b0c5f1f0a"
    statuses: list[int] = field(default_factory=list)

    def check(self) -> Update:
        """Ask for an update.

        Raises:
            GoOmahaError: the status, when there is none or it went wrong.
        """
        app = self._exchange(self.request(CHECK_BODY))
        check = app.find("updatecheck")
        if check is None:
            raise GoOmahaError("update check missing")
        if check.get("status") != "ok":
            raise GoOmahaError(check.get("status", ""))
        return read_updates(check)[0]

    def ping(self) -> None:
        """Say that it lives."""
        self._exchange(self.request('<ping active="1"></ping>'))

    def event(self, kind: int, result: int, code: int = 0) -> None:
        """Report a step; unlike the real one it insists on the acknowledgement."""
        extra = f' errorcode="{code}"' if code else ""
        body = f'<event eventtype="{kind}" eventresult="{result}"{extra}></event>'
        acknowledged = self._exchange(self.request(body)).findall("event")
        if [event.get("status") for event in acknowledged] != ["ok"]:
            raise GoOmahaError("event status")

    def request(self, body: str) -> bytes:
        """Return the bytes that it posts."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<request protocol="3.0" sessionid="{self.session_id}" userid="{self.user_id}"'
            ' version="go-omaha"><os platform="linux" arch="x64"></os>'
            f'<app appid="{self.app_id}" version="{self.version}" track="{self.track}"'
            f' bootid="{self.session_id}" machineid="{self.user_id}">{body}</app></request>'
        ).encode()

    def _exchange(self, body: bytes) -> ET.Element:
        answer = requests.post(
            self.url, data=body, headers={"Content-Type": "text/xml; charset=utf-8"}, timeout=60
        )
        self.statuses.append(answer.status_code)
        root = read_response(answer.headers.get("Content-Type", ""), answer.content)
        if answer.status_code != 200:
            raise GoOmahaError(f"HTTP {answer.status_code}")
        apps = [app for app in root.findall("app") if app.get("appid") == self.app_id]
        if not apps:
            raise GoOmahaError("app missing")
        if apps[0].get("status") != "ok":
            raise GoOmahaError(apps[0].get("status", ""))
        return apps[0]


CHECK_BODY: Final = (
    '<ping active="1"></ping><updatecheck></updatecheck>'
    '<event eventtype="3" eventresult="2"></event>'
)


def sync_request(version: str, track: str = "stable") -> bytes:
    """Return what a Nebraska posts that follows another server: no declaration, no board."""
    return (
        '<request protocol="3.0" installsource="scheduler" ismachine="1"'
        f' version="{SYNCER}" updaterversion="{SYNCER}"><os platform="CoreOS" version="Chateau"'
        f' sp="{version}_x86_64" arch="x64"></os><app appid="{APP_ID}" version="{version}"'
        f' track="{track}" bootid="{{1b7b0c5f-5e8a-4d0e-9d0a-2f6f3f0c7b61}}"'
        ' machineid="{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}" multi_manifest_ok="true">'
        "<updatecheck></updatecheck></app></request>"
    ).encode()


def sync(url: str, version: str, track: str = "stable") -> list[Update]:
    """Ask as a following Nebraska does; it takes the first app and reads all manifests.

    Raises:
        GoOmahaError: the status, when there is nothing new.
    """
    answer = requests.post(
        url, data=sync_request(version, track), headers={"Content-Type": "text/xml"}, timeout=60
    )
    check = ET.fromstring(answer.content).findall("app")[0].find("updatecheck")  # ours
    assert check is not None  # the real one crashes
    if check.get("status") != "ok":
        raise GoOmahaError(check.get("status", ""))
    return read_updates(check)


def read_response(content_type: str, data: bytes) -> ET.Element:
    """Return the root of an answer that the client accepts."""
    if content_type.lower() not in CONTENT_TYPES | {""}:
        raise GoOmahaError(f"content type {content_type}")
    if not data or len(data) > RESPONSE_MAX_BYTES:
        raise GoOmahaError(f"{len(data)} bytes")
    root = ET.fromstring(data)  # our own server's
    if (root.tag, root.get("protocol")) != ("response", "3.0"):
        raise GoOmahaError(f"{root.tag} {root.get('protocol')}")
    return root


def read_updates(check: ET.Element) -> list[Update]:
    """Return every manifest of an answer, read strictly."""
    base = check.findall("urls/url")[0].get("codebase", "")
    return [_update(manifest, base) for manifest in check.findall("manifest")]


def _update(manifest: ET.Element, base: str) -> Update:
    package = manifest.findall("packages/package")[0]
    action = manifest.findall("actions/action")[0].attrib
    for name in ("needsadmin", "IsDeltaPayload", "DisablePayloadBackoff", "Prompt"):
        _boolean(action.get(name, ""))
    _unsigned(action.get("MaxFailureCountPerUrl", "0"))
    _boolean(package.get("required", ""))
    return Update(
        version=manifest.get("version", ""),
        package=Package(
            url=base + package.get("name", ""),  # it adds no slash
            size=_unsigned(package.get("size", "0")),
            sha1=package.get("hash", ""),
            sha256=package.get("hash_sha256", ""),
        ),
        action=action,
        is_floor=_boolean(manifest.get("is_floor", "")),
        is_target=_boolean(manifest.get("is_target", "")),
    )


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise GoOmahaError(f"no boolean: {text}")
    return _BOOLEANS[text]


def _unsigned(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise GoOmahaError(f"no number: {text}")
    return int(text)


def _digest(algorithm: str, data: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
