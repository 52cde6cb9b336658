"""What a server's answer means for this node: a hint, never an order. Pure.

Answers come from our own server, which says why, and from others, which say it in the status of
the app: throttling looks like an error there and is none. What is to be fetched is read as a
stock engine reads it: the first manifest, its first package, its postinstall action, every URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from updater.omaha.elements import OmahaFormatError
from updater.omaha.messages import APP_OK, CHECK_NO_UPDATE, CHECK_OK
from updater.trust.view import Offer, OfferedFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from updater.omaha.messages import AppResponse, Manifest, Package, UpdateCheckResult

URLS_MAX: Final = 16  # more mirrors than anyone has
FILES_MAX: Final = 64  # of one version; we look for one of them

# Codes of ours for what other servers say without one: docs/errors.md has them all.
NO_UPDATE: Final = "server-noupdate"
IN_PROGRESS: Final = "server-in-progress"  # of error-updateInProgressOnInstance
CHECK_ERROR: Final = "server-error"

# App statuses of other servers that mean "not yet", with our code and sentence.
NOT_YET: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "error-maxUpdatesPerPeriodLimitReached": (
        "server-throttled",
        "as many nodes as the server lets begin in one period have begun",
    ),
    "error-maxConcurrentUpdatesLimitReached": (
        "server-throttled",
        "as many nodes as the server lets update at once are under way",
    ),
    "error-maxTimedOutUpdatesLimitReached": (
        "server-halted",
        "the server stopped the rollout: too many nodes did not finish in time",
    ),
    "error-updatesDisabled": (
        "server-paused",
        "the server's updates are switched off, or it is outside their hours",
    ),
    "error-updateInProgressOnInstance": (
        IN_PROGRESS,
        "the server takes this node to be in the middle of an update",
    ),
    "error-noPackageFound": (
        "server-no-package",
        "the server's channel for this group has no package",
    ),
    "error-couldNotCheckUpdatesStats": (
        "server-trouble",
        "the server could not count which nodes are under way",
    ),
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What the server answered, not trusted.

    Attributes:
        offer: the version it steers to and its one file (name, size, SHA-256 as far as it said
            them), None for "nothing now".
        urls: where it says the file is, best first.
        bases: where it says that files are, best first, each with a slash at its end.
        others: what it says of further files; believed in nothing, not even that we want them.
        is_delta: whether it says that the file needs the running version as its source.
        code, sentence: why there is nothing, as far as it said.
        poll_secs: when it wants to be asked again.
    """

    offer: Offer | None
    urls: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    others: tuple[OfferedFile, ...] = ()
    is_delta: bool = False
    code: str = ""
    sentence: str = ""
    poll_secs: int | None = None

    def urls_of(self, sha256: str) -> list[str]:
        """Return where it says that a further file with this signed hash is, best first."""
        return [
            base + file.name for file in self.others if file.sha256 == sha256 for base in self.bases
        ]


def is_refusal(answer: AppResponse) -> bool:
    """Tell whether the server will not serve this node, now or later."""
    if answer.status == APP_OK or answer.status in NOT_YET:
        return False
    check = answer.update_check
    return check is None or not check.reason


def hint_of(answer: AppResponse) -> Hint:
    """Return what an answer that is no refusal means.

    Raises:
        OmahaFormatError: nothing was answered to the check, or an offer names no file.
    """
    check = answer.update_check
    if answer.status in NOT_YET:
        code, sentence = NOT_YET[answer.status]
        poll = None if check is None else check.poll_interval_s
        return Hint(offer=None, code=code, sentence=sentence, poll_secs=poll)
    if check is None:
        raise OmahaFormatError("it answered without an update check")
    if check.status != CHECK_OK:
        return _nothing(check)
    if not check.manifests or not check.manifests[0].packages:
        raise OmahaFormatError("it offers an update without naming its file")
    manifest = check.manifests[0]
    return _offer(check, manifest, manifest.packages[0])


def _nothing(check: UpdateCheckResult) -> Hint:
    other = NO_UPDATE if check.status == CHECK_NO_UPDATE else CHECK_ERROR
    return Hint(
        offer=None,
        code=check.reason or other,
        sentence=check.sentence or f"the server answered {check.status}",
        poll_secs=check.poll_interval_s,
    )


def _offer(check: UpdateCheckResult, manifest: Manifest, package: Package) -> Hint:
    if not package.name:
        raise OmahaFormatError("it offers an update without naming its file")
    action = manifest.postinstall
    # The action's is what engines verify and so what operators get right; a package's may be
    # missing, or typed into a form.
    sha256 = (action.sha256 if action else "") or package.sha256
    file = OfferedFile(name=package.name, sha256=sha256 or None, size=package.size_bytes or None)
    bases = tuple(
        base if base.endswith("/") else f"{base}/"
        for base in check.codebases[:URLS_MAX]
        if base.startswith(("http://", "https://"))
    )
    others = tuple(
        OfferedFile(name=one.name, sha256=one.sha256, size=one.size_bytes or None)
        for one in manifest.packages[1:FILES_MAX]
        if one.name and one.sha256
    )
    return Hint(
        offer=Offer(version=manifest.version, files=(file,)),
        urls=tuple(base + package.name for base in bases),
        bases=bases,
        others=others,
        is_delta=action is not None and action.is_delta,
        poll_secs=check.poll_interval_s,
    )
