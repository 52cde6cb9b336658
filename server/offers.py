"""Offers as Omaha says them: a payload becomes package and action, a hold becomes `noupdate`. Pure.

What is sent is exact, since the strictest reader takes the first of everything and nothing else:
the full payload first, a base64 SHA-256 in the postinstall action, codebases that end in a slash.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from server.rollout import NO_RELEASE, PAYLOAD_UNSUITABLE, Hold
from updater.omaha import Action, Manifest, Package, UpdateCheckResult
from updater.omaha.messages import CHECK_NO_UPDATE, CHECK_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.catalogue import Payload

FLOOR_REASON: Final = "this version may not be jumped over"


def manifest_of(version: str, payload: Payload, shortcuts: Sequence[Payload] = ()) -> Manifest:
    """Return a version with its full payload, and behind it what may be taken instead."""
    packages = (_package(payload), *(replace(_package(one), required=False) for one in shortcuts))
    action = Action(sha256=payload.sha256, disable_backoff=True)
    return Manifest(version=version, packages=packages, actions=(action,))


def _package(payload: Payload) -> Package:
    return Package(
        name=f"{payload.sha256}.crau",
        size_bytes=payload.size,
        sha1=payload.sha1,
        sha256=payload.sha256,
    )


def marked(manifests: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """Return several manifests as a following server reads them: floors, then the target."""
    *floors, target = manifests
    return (
        *(replace(floor, is_floor=True, floor_reason=FLOOR_REASON) for floor in floors),
        replace(target, is_target=True),
    )


def offer(
    manifests: tuple[Manifest, ...], urls: Sequence[str], poll_s: int | None
) -> UpdateCheckResult:
    """Return the answer that offers something."""
    return UpdateCheckResult(
        status=CHECK_OK,
        codebases=tuple(url if url.endswith("/") else f"{url}/" for url in urls),
        manifests=manifests,
        poll_interval_s=poll_s,
    )


def no_release(channel: str, board: str) -> Hold:
    """Return why a client of a board that the channel does not know gets nothing."""
    return Hold(reason=NO_RELEASE, sentence=f"channel {channel} names nothing for board {board}")


def no_payload(version: str) -> Hold:
    """Return why a client that reads none of a release's payloads gets nothing."""
    return Hold(
        reason=PAYLOAD_UNSUITABLE,
        sentence=f"release {version} has no payload that this client can read",
    )


def nothing(hold: Hold, poll_s: int | None) -> UpdateCheckResult:
    """Return the answer that offers nothing now, and why."""
    return UpdateCheckResult(
        status=CHECK_NO_UPDATE,
        poll_interval_s=hold.retry_after_s or poll_s,
        reason=hold.reason,
        sentence=hold.sentence,
    )
