"""Why trust or policy says no, as one tree by whose fault it is. Nothing is raised here.

TrustError
├── TrustUnreachableError           nothing can be said: exit 6
│   └── TrustSlowError
├── TrustRefusedError               the repository, or the clock, cannot be believed: exit 3
│   ├── TrustExpiredError, TrustRollbackError, SerialRollbackError, HorizonExceededError
│   ├── TrustSignatureError, TrustMismatchError, TrustFormatError, TrustOversizeError
│   ├── TrustRootError, TrustSourceError, ClockBehindError, ChannelUnknownError
│   └── PolicyError                 signed well, but not for this node or not now
│       ├── WrongChannelError, WrongProductError, WrongBoardError, WrongVersionError
│       ├── NotInChannelError, WithdrawnError, NotBeforeError, StopSkippedError
│       ├── NotNewerError, BelowFloorError, VersionDeniedError, PinnedError
│       ├── NotPublishedError, FactsInvalidError, FactsDisagreeError, NoUsablePayloadError
│       └── EngineTooOldError, RequiresFromError, OfferMismatchError
└── NothingNewerError               no fault at all: exit 4
"""

from __future__ import annotations

from updater.errors import EXIT_NOTHING, RefusedError, UnreachableError, UpdaterError


class TrustError(UpdaterError):
    """Anything that keeps this node from trusting a release now."""


class TrustUnreachableError(TrustError, UnreachableError):
    """The metadata could not be had."""

    code = "trust-unreachable"
    hint = "Check the network, the metadata URL in the settings and the server; retried by itself."


class TrustSlowError(TrustUnreachableError):
    """The metadata came too slowly to be waited for."""

    code = "trust-slow"
    hint = "Check the network and the mirror; a server that trickles is cut off and tried later."


class TrustRefusedError(TrustError, RefusedError):
    """The repository cannot be believed; what is installed stays as it is."""


class TrustExpiredError(TrustRefusedError):
    """Signed metadata is past its end."""

    code = "trust-expired"
    hint = "The server or a mirror is stale, or this clock is ahead: see `bascule-server metadata`."


class TrustRollbackError(TrustRefusedError):
    """The repository is older than what this node has seen."""

    code = "trust-rollback"
    hint = "A mirror is stale, or the server was restored from an old copy: publish it anew."


class SerialRollbackError(TrustRefusedError):
    """The channel document is older than one that this node has seen."""

    code = "serial-rollback"
    hint = "Promote the channel again: a document's serial must only grow."


class TrustSignatureError(TrustRefusedError):
    """Not enough trusted keys signed."""

    code = "trust-signature"
    hint = "Metadata is tampered with, or signed by keys that the root does not name."


class TrustMismatchError(TrustRefusedError):
    """A file is not the one that signed metadata names."""

    code = "trust-mismatch"
    hint = "The mirror is stale, incomplete or tampered with; take another one, or publish again."


class TrustFormatError(TrustRefusedError):
    """Metadata or a channel document breaks its format."""

    code = "trust-format"
    hint = "Check that the metadata URL leads to a bascule repository, not to another page."


class TrustOversizeError(TrustRefusedError):
    """A file does not end where it must."""

    code = "trust-oversize"
    hint = "The server sends more than any honest repository would; take another mirror."


class TrustRootError(TrustRefusedError):
    """The root of trust that came with the image cannot be used."""

    code = "trust-root"
    hint = "The image's root.json is damaged: build the image again with the repository's root."


class TrustSourceError(TrustRefusedError):
    """The metadata URL is not one that may be asked."""

    code = "trust-source"
    hint = "Give an https://, http:// or file:// URL of a folder, without user name or password."


class HorizonExceededError(TrustRefusedError):
    """A timestamp is valid for longer than any that an online server signs."""

    code = "horizon-exceeded"
    hint = "Metadata for an air gap does not count online; or this node's clock is far behind."


class ClockBehindError(TrustRefusedError):
    """The clock is behind a time that has certainly passed."""

    code = "clock-behind"
    hint = "Set the clock (NTP): with a clock in the past nothing would ever expire."


class ChannelUnknownError(TrustRefusedError):
    """The repository has no document for this channel, product and board."""

    code = "channel-unknown"
    hint = "Check channel, product and board in the settings, or create the channel on the server."


class PolicyError(TrustRefusedError):
    """The release is signed, but it is not for this node, or not now."""


class WrongChannelError(PolicyError):
    """The document is of another channel."""

    code = "wrong-channel"
    hint = "Promote the channel again: its document names another channel than its path."


class WrongProductError(PolicyError):
    """Document or payload is of another product."""

    code = "wrong-product"
    hint = "Publish a release of this node's product; image.toml of the node names it."


class WrongBoardError(PolicyError):
    """Document or payload is for another board."""

    code = "wrong-board"
    hint = "Publish a release for this node's board; image.toml of the node names it."


class WrongVersionError(PolicyError):
    """The payload is of another version than its path says."""

    code = "wrong-version"
    hint = "Publish the release again: its facts contradict its path."


class NotInChannelError(PolicyError):
    """The version is not one that the channel allows."""

    code = "not-in-channel"
    hint = "Promote the version on the channel; Omaha and people choose only what it allows."


class NotPublishedError(PolicyError):
    """The channel allows a payload that no release key has signed."""

    code = "not-published"
    hint = "Add the release with `bascule-server release add`, then promote the channel again."


class FactsInvalidError(PolicyError):
    """The signed facts of a payload break their schema."""

    code = "facts-invalid"
    hint = "This engine is older than the release desk, or the release must be published again."


class FactsDisagreeError(PolicyError):
    """Two payloads of one version would make different images."""

    code = "facts-disagree"
    hint = "Withdraw the version and publish it again: all its payloads must make one image."


class NoUsablePayloadError(PolicyError):
    """The version has no payload of a kind that this node can install."""

    code = "no-usable-payload"
    hint = "Publish a full payload of the version too."


class WithdrawnError(PolicyError):
    """The version was taken back."""

    code = "withdrawn"
    hint = "The release desk took it back; wait for another version."


class NotBeforeError(PolicyError):
    """The channel document is not in force yet."""

    code = "not-before"
    hint = "Wait until then; `bascule status` shows the time."


class StopSkippedError(PolicyError):
    """A version that may not be jumped over lies in between."""

    code = "stop-skipped"
    hint = "Install the stop first."


class NotNewerError(PolicyError):
    """The version is not above the running one, and nothing grants the way back."""

    code = "not-newer"
    hint = "To go back, let the channel grant it: one grant names both versions and an end."


class BelowFloorError(PolicyError):
    """The release's rollback index is below this node's floor."""

    code = "below-floor"
    hint = "Builds this old must not return; publish a newer one."


class VersionDeniedError(PolicyError):
    """The version failed here before, or a person rolled back from it."""

    code = "version-denied"
    hint = "Wait for a newer version, or insist with `bascule update --force`."


class PinnedError(PolicyError):
    """The node is pinned to another version."""

    code = "pinned"
    hint = "Name no version, and the node follows its channel again."


class EngineTooOldError(PolicyError):
    """The payload needs a newer bascule."""

    code = "engine-too-old"
    hint = "Install an older release first that brings a newer bascule."


class RequiresFromError(PolicyError):
    """The payload cannot follow directly on the running version."""

    code = "requires-from"
    hint = "Install a release in between first."


class OfferMismatchError(PolicyError):
    """Omaha's hash, size or file is not the signed one."""

    code = "offer-mismatch"
    hint = "The update server steers to a file that was never signed; check its packages."


class NothingNewerError(TrustError):
    """The node runs what it shall run."""

    code = "nothing-newer"
    hint = "Nothing to do."
    exit_status = EXIT_NOTHING
