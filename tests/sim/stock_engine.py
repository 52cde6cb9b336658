"""A machine with a stock update_engine, as a server sees it: requests to the byte, answers as read.

The requests are written here and the answers are read here, without the code under test: what
the engine takes is the first match of each path, as its own reader does. Payloads are verified
and applied with the images room, in the engine's order of checks. What goes wrong is a setting.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import requests

from images.apply import apply_file
from images.errors import (
    BlobMismatchError,
    ImagesError,
    ManifestInvalidError,
    PartitionMismatchError,
    PayloadMagicError,
    PayloadSignatureError,
    PayloadUnsignedError,
    PayloadVersionError,
)
from images.reader import verify_file
from images.signing import load_public_keys

T = TypeVar("T")

AGENT: Final = "update_engine-0.4.10"
APP_ID: Final = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"

PING: Final = '<ping active="1"></ping>'
CHECK: Final = "<updatecheck></updatecheck>"

OTHER_SERVER: Final = 1 << 28  # flag of every error on a server that is not the built-in one
RESUMED: Final = 1 << 30
ROLLBACK: Final = 44  # sent without flags

CUTS_MAX: Final = 20  # how often a transfer that was cut short is continued
EXT_MAGIC_OFFSET: Final = 1080  # of the magic number in an ext2 file system
V1_HEADER_BYTES: Final = 20

# What the images room refuses, as the engine's number; the nearest kind counts.
CODES: Final[Mapping[type, int]] = MappingProxyType({
    PayloadMagicError: 21,
    PayloadVersionError: 23,
    ManifestInvalidError: 23,
    BlobMismatchError: 29,
    PayloadUnsignedError: 17,
    PayloadSignatureError: 18,
    PartitionMismatchError: 15,
    ImagesError: 28,
})  # fmt: skip


class EngineFailureError(Exception):
    """The attempt failed with a number."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class EngineDiedError(Exception):
    """The machine lost its power in the middle of a download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the engine takes from an answer."""

    urls: tuple[str, ...]
    version: str
    size: int
    sha256: str  # base64, as it is compared
    is_delta: bool
    disable_backoff: bool
    max_failures_per_url: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A readable answer to a check; no offer means no update."""

    offer: Offer | None
    poll_interval_s: int


@dataclass
class StockEngine:
    """One machine.

    Attributes:
        url: `SERVER` of its update.conf.
        folder: its disk: `running/` and `passive/` hold the parts of the slots.
        version: what it runs.
        key: the payload public key in its image; None leaves signatures unchecked.
        alias, track, board, machine_id, aleph: what it says of itself.
        cuts: after how many bytes a transfer breaks, one each; it is continued by range.
        dies_after: after how many bytes of a download the power goes, once.
        backs_off: whether it defers an offer, as after failures of the URLs.
        postinst_fails: whether the program of the new image exits with an error.
        said: every event it sent: type, result, errorcode.
        fetched: every answer to a payload request: status and `Content-Range`.
    """

    url: str
    folder: Path
    version: str
    key: Path | None = None
    alias: str = ""
    track: str = "stable"
    board: str = "amd64-usr"
    machine_id: str = "3d1219c7c4c5404aaa1f6d2a48adfda4"
    oem: str = "qemu"
    aleph: str = ""
    cuts: list[int] = field(default_factory=list)
    dies_after: int | None = None
    backs_off: bool = False
    postinst_fails: bool = False
    said: list[tuple[int, int, int | None]] = field(default_factory=list)
    fetched: list[tuple[int, str]] = field(default_factory=list)
    boot_id: str = "8da4b84f-2864-447d-84b7-c2d9b72924e7"
    previous_version: str | None = None  # the preference; None: absent
    needs_reboot: bool = False
    poll_interval_s: int = 0
    _waiting: str = ""  # version in the passive slot, boot target switched
    _partial: str = ""  # sha256 of the payload that a broken download was of

    def tick(self, *, by_person: bool = False) -> str:
        """Do what the timer (or a person) starts; return how it ended, in a word."""
        if self.needs_reboot:
            if not by_person:
                self._post([PING])
            return "need-reboot"
        try:
            return self._attempt(by_person=by_person)
        except EngineFailureError as failure:
            deferred = failure.code in {35, 36, 40}
            flags = OTHER_SERVER | (RESUMED if self._partial else 0)
            self._event(3, 9 if deferred else 0, failure.code | flags)
            return f"failed {failure.code}"

    def reboot(self, *, comes_up: bool = True) -> None:
        """Boot the target; a new version that does not come up leaves the old one running."""
        self.boot_id = str(uuid.UUID(hashlib.md5(self.boot_id.encode()).hexdigest()))
        if self._waiting and comes_up:
            self.version = self._waiting
            (self.folder / "running").rename(self.folder / "old")
            (self.folder / "passive").rename(self.folder / "running")
        self._waiting = ""
        self.needs_reboot = False

    def request(self, body: list[str], *, by_person: bool = False) -> bytes:
        """Return the bytes that this engine posts around `body`."""
        source = "ondemandupdate" if by_person else "scheduler"
        said = {
            "appid": APP_ID,
            "version": self.version,
            "track": self.track,
            "bootid": f"{{{self.boot_id}}}",
            "oem": self.oem,
            "oemversion": "",
            "alephversion": self.aleph or self.version,
            "machineid": self.machine_id,
            "machinealias": self.alias,
            "lang": "en-US",
            "board": self.board,
            "hardware_class": "",
            "delta_okay": "false",
        }
        app = "".join(f'{name}="{_escaped(text)}" ' for name, text in said.items())
        program = f'version="{AGENT}" updaterversion="{AGENT}"'
        lines = [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<request protocol="3.0" {program} installsource="{source}" ismachine="1">',
            f'    <os version="Chateau" platform="CoreOS" sp="{self.version}_x86_64"></os>',
            f"    <app {app}>",
            *(f"        {line}" for line in body),
            "    </app>",
            "</request>",
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    def check_body(self) -> list[str]:
        """Return what a check says, and forget what ran before the last update."""
        previous = "0.0.0.0" if self.previous_version is None else self.previous_version
        self.previous_version = ""
        if previous == self.version:
            self.said.append((3, 0, ROLLBACK))
            return [PING, CHECK, _event_xml(3, 0, f' errorcode="{ROLLBACK}"')]
        self.said.append((3, 2, None))
        return [PING, CHECK, _event_xml(3, 2, f' previousversion="{previous}"')]

    def part(self, name: str) -> bytes:
        """Return an image of the running slot."""
        return (self.folder / "running" / name).read_bytes()

    def _attempt(self, *, by_person: bool) -> str:
        answer = read_answer(self._post(self.check_body(), by_person=by_person))
        self.poll_interval_s = answer.poll_interval_s
        offer = answer.offer
        if offer is None:
            return "no update"
        if self.backs_off:
            raise EngineFailureError(40)
        if self._partial != offer.sha256:
            self._file().unlink(missing_ok=True)
            self._partial = ""
        self._event(13, 1)
        self._download(offer)
        self._verify(offer)
        self._event(14, 1)
        self._install()
        self._event(3, 1)
        self._partial = ""
        self.previous_version, self._waiting = self.version, offer.version
        self.needs_reboot = True
        return "need-reboot"

    def _post(self, body: list[str], *, by_person: bool = False) -> bytes:
        """Exchange a request; on a failure of the transfer the code is 2000 and the status."""
        try:
            answer = requests.post(
                self.url,
                data=self.request(body, by_person=by_person),
                headers={"Content-Type": "text/xml", "User-Agent": None},  # none is sent
                timeout=60,
            )
        except requests.ConnectionError as error:
            raise EngineFailureError(2000) from error
        if answer.status_code != 200:
            raise EngineFailureError(2000 + answer.status_code)
        return answer.content

    def _event(self, kind: int, result: int, code: int | None = None) -> None:
        """Send an event; whatever becomes of it changes nothing."""
        self.said.append((kind, result, code))
        extra = "" if code is None else f' errorcode="{code}"'
        try:
            self._post([_event_xml(kind, result, extra)])
        except EngineFailureError:
            return

    def _file(self) -> Path:
        return self.folder / "payload"

    def _download(self, offer: Offer) -> None:
        url = offer.urls[0]
        file = self._file()
        got = file.stat().st_size if self._partial else 0
        if got:  # the manifest is read again first, then what is missing
            size = V1_HEADER_BYTES + int.from_bytes(file.read_bytes()[12:20])
            assert b"".join(self._pieces(url, 0, size)) == file.read_bytes()[:size]
        for _ in range(CUTS_MAX + 1):
            cut = self.cuts.pop(0) if self.cuts else None
            with file.open("ab") as partly:
                for piece in self._pieces(url, got, None):
                    taken = piece if cut is None else piece[: cut - got]
                    partly.write(taken)
                    got += len(taken)
                    self._maybe_die(got, offer)
                    if cut is not None and got >= cut:
                        break
            if got >= offer.size or cut is None:
                return
        raise EngineFailureError(9)

    def _maybe_die(self, got: int, offer: Offer) -> None:
        if self.dies_after is not None and got >= self.dies_after:
            self.dies_after = None
            self._partial = offer.sha256
            raise EngineDiedError

    def _pieces(self, url: str, start: int, end: int | None) -> Iterator[bytes]:
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        headers = {"Range": wanted} if start or end else {}
        with requests.get(url, headers=headers, timeout=60, stream=True) as answer:
            self.fetched.append((answer.status_code, answer.headers.get("Content-Range", "")))
            if answer.status_code not in {200, 206}:
                raise EngineFailureError(9)
            # The real one does not notice a 200 here and takes the bytes for those it asked for.
            assert not headers or answer.status_code == 206
            yield from answer.iter_content(256 * 1024)

    def _verify(self, offer: Offer) -> None:
        """Check in the engine's order: operations, size, hash, signature."""
        file = self._file()
        if file.read_bytes()[4:12] != (1).to_bytes(8):
            raise EngineFailureError(23)
        size = file.stat().st_size
        if size != offer.size:
            raise EngineFailureError(11)
        self._checked(lambda: verify_file(file, None))
        digest = hashlib.sha256(file.read_bytes()).digest()
        if base64.b64encode(digest).decode() != offer.sha256:
            raise EngineFailureError(10)
        if self.key is not None:
            keys = load_public_keys(self.key)
            self._checked(lambda: verify_file(file, keys))

    def _install(self) -> None:
        passive = self.folder / "passive"
        passive.mkdir(exist_ok=True)
        metadata = self._checked(lambda: verify_file(self._file(), None))
        outputs = {part.name: passive / part.name for part in metadata.manifest.parts}
        keys = None if self.key is None else load_public_keys(self.key)
        self._checked(lambda: apply_file(self._file(), outputs, keys=keys))
        image = outputs["usr"].read_bytes()
        mounts = image[EXT_MAGIC_OFFSET : EXT_MAGIC_OFFSET + 2] == b"\x53\xef"
        if self.postinst_fails or not mounts:  # only ext2, ext3 and btrfs are tried
            raise EngineFailureError(5)

    def _checked(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except ImagesError as error:
            code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
            raise EngineFailureError(code) from error


def read_answer(data: bytes) -> Answer:
    """Read an answer to a check as the engine does: the first match of each path.

    Raises:
        EngineFailureError: 30 nothing, 31 no XML, 34 something that is needed is missing.
    """
    if not data:
        raise EngineFailureError(30)
    try:
        tree = ET.fromstring(data)  # our own server's
    except ET.ParseError as error:
        raise EngineFailureError(31) from error
    check = _first(tree, "app/updatecheck")
    poll_interval_s = _integer(check.get("PollInterval", ""), 0)
    if check.get("status") == "noupdate":
        return Answer(offer=None, poll_interval_s=poll_interval_s)
    if check.get("status") != "ok":
        raise EngineFailureError(34)
    return Answer(offer=_read_offer(tree), poll_interval_s=poll_interval_s)


def _read_offer(tree: ET.Element) -> Offer:
    manifest = _first(tree, "app/updatecheck/manifest")
    _first(tree, "app/updatecheck/urls/url")
    bases = [url.get("codebase", "") for url in _all(tree, "app/updatecheck/urls/url")]
    package = _first(tree, "app/updatecheck/manifest/packages/package")
    name, size = package.get("name", ""), _integer(package.get("size", ""), 0)
    actions = _all(tree, "app/updatecheck/manifest/actions/action")
    action = next((one for one in actions if one.get("event") == "postinstall"), None)
    if not all(bases) or not name or size <= 0 or action is None or not action.get("sha256"):
        raise EngineFailureError(34)
    return Offer(
        urls=tuple(base + ("" if base.endswith("/") else "/") + name for base in bases),
        version=manifest.get("version", ""),
        size=size,
        sha256=action.get("sha256", ""),
        is_delta=action.get("IsDeltaPayload") == "true",
        disable_backoff=action.get("DisablePayloadBackoff") == "true",
        max_failures_per_url=_integer(action.get("MaxFailureCountPerUrl", ""), 10),
    )


def _all(tree: ET.Element, path: str) -> list[ET.Element]:
    return tree.findall(path) if tree.tag == "response" else []


def _first(tree: ET.Element, path: str) -> ET.Element:
    found = _all(tree, path)
    if not found:
        raise EngineFailureError(34)
    return found[0]


def _integer(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() else default


def _event_xml(kind: int, result: int, extra: str) -> str:
    return f'<event eventtype="{kind}" eventresult="{result}"{extra}></event>'


def _escaped(text: str) -> str:
    return escape(text, {'"': "&quot;"})
