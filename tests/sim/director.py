"""An Omaha server in a few lines: offers what a test sets, and keeps what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from tests.sim.scripted_server import ScriptedServer, Talk, reply
from updater.omaha import (
    AppRequest,
    AppResponse,
    Event,
    Manifest,
    Package,
    Response,
    UpdateCheckResult,
    decode_request,
    encode_response,
)


@dataclass
class Director:
    """Steers one node.

    Attributes:
        offer: the version that it steers to, empty for "nothing now".
        reason, sentence: why there is nothing.
        poll_secs: when it wants to be asked again.
        checks: who asked for an update, in order.
        events: what it was told, in order.
    """

    offer: str = ""
    reason: str = "group-paused"
    sentence: str = "the group is paused"
    poll_secs: int | None = None
    checks: list[AppRequest] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = ScriptedServer(script=[self._answer])

    @property
    def setting(self) -> str:
        """The line of the node's settings."""
        return f'omaha_url = "{self._server.base}/v1/update/"'

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    def _answer(self, talk: Talk) -> None:
        app = decode_request(talk.asked.body).apps[0]
        self.events += app.events
        check = None
        if app.update_check is not None:
            self.checks.append(app)
            check = self._check()
        answer = AppResponse(app_id=app.app_id, update_check=check)
        reply(200, encode_response(Response(apps=(answer,))))(talk)

    def _check(self) -> UpdateCheckResult:
        if not self.offer:
            return UpdateCheckResult(
                status="noupdate",
                reason=self.reason,
                sentence=self.sentence,
                poll_interval_s=self.poll_secs,
            )
        package = Package(name="full.crau", size_bytes=0)
        return UpdateCheckResult(
            status="ok",
            manifests=(Manifest(version=self.offer, packages=(package,)),),
            poll_interval_s=self.poll_secs,
        )
