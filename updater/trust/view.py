"""What a refresh yields, and what policy compares: plain frozen values.

No signature is checked here and nothing is decided: `refresh` makes the view, `policy` judges it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from images.release import ChannelDocument, PayloadFacts
from updater.trust.errors import FactsInvalidError, NotPublishedError


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadTarget:
    """A payload as the signed metadata names it.

    Attributes:
        path: its TUF path, `os/<product>/<board>/<version>/<file>`.
        sha256: of the whole file, 64 lower-case hex digits.
        size: of the whole file, in bytes.
        facts: what was signed about its content.
    """

    path: str
    sha256: str
    size: int
    facts: PayloadFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedView:
    """One consistent, fresh state of the repository, as far as this node's channel goes.

    Attributes:
        channel: what the node's channel allows.
        payloads: by TUF path, each payload that the channel allows and a release key signed.
        defects: by TUF path, why the signed facts of a payload cannot be used.
        refreshed_at: when it was fetched.
        timestamp_expires: from then on nothing new is installed without another refresh.
        root_version: of the root that vouches for all this.
        root_expires: warn well before.
    """

    channel: ChannelDocument
    payloads: Mapping[str, PayloadTarget]
    defects: Mapping[str, str]
    refreshed_at: datetime
    timestamp_expires: datetime
    root_version: int
    root_expires: datetime

    def payload(self, path: str) -> PayloadTarget:
        """Return the payload of this TUF path.

        Raises:
            FactsInvalidError: it is signed, but its facts are not usable.
            NotPublishedError: the channel does not allow it, or no release key signed it.
        """
        if path in self.payloads:
            return self.payloads[path]
        if path in self.defects:
            raise FactsInvalidError(f"the signed facts of {path} are invalid: {self.defects[path]}")
        raise NotPublishedError(f"no release key has signed {path} for this channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks: local facts that nothing remote can change.

    Attributes:
        product: as the running image names it.
        board: as the running image names it.
        channel: from the settings.
        version: of the running image.
        engine: the version of bascule itself.
    """

    product: str
    board: str
    channel: str
    version: str
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedFile:
    """A file that Omaha names, not trusted.

    Attributes:
        name: as the package is called.
        sha256: 64 lower-case hex digits, or None when Omaha did not say.
        size: in bytes, or None when Omaha did not say.
    """

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What Omaha answered: a hint, nothing in it is trusted.

    Attributes:
        version: the one version it steers to.
        files: what it says about single files; may be empty.
    """

    version: str
    files: tuple[OfferedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRelease:
    """A release that trust and policy let this node install now.

    Attributes:
        version: as the channel document spells it.
        rollback_index: that all its payloads share.
        payloads: those that this node can install, never none.
        channel_serial: of the document that allowed it.
    """

    version: str
    rollback_index: int
    payloads: tuple[PayloadTarget, ...]
    channel_serial: int
