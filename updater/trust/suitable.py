"""Which payloads of one version fit this node, and whether Omaha speaks of the signed ones.

Steps 9 and 10 of `policy.choose`, and as pure. What the version may follow on is `policy`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from images.version import Version, parse_version
from updater.trust.errors import (
    BelowFloorError,
    EngineTooOldError,
    FactsDisagreeError,
    NoUsablePayloadError,
    OfferMismatchError,
    PolicyError,
    RequiresFromError,
    WrongBoardError,
    WrongProductError,
    WrongVersionError,
)
from updater.trust.view import Identity, Offer, OfferedFile, PayloadTarget, TrustedView

_SHOWN_CHARACTERS: Final = 80  # of a foreign string in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One version that the channel allows, and the node that may take it.

    Attributes:
        text: the version as the channel document spells it.
        view: where its payloads are found.
        node: who asks.
        running: the node's version, to be compared.
        floor: the lowest rollback index that is accepted.
    """

    text: str
    view: TrustedView
    node: Identity
    running: Version
    floor: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The TUF paths that the channel allows for this version."""
        return self.view.channel.allowed[self.text]


def installable(candidate: Candidate) -> tuple[PayloadTarget, ...]:
    """Return the payloads that this node can install, never none.

    A payload that is for another engine, of another kind or ill described does not spoil the
    others.

    Raises:
        PolicyError: none fits; it is the refusal of the first full one, else of the first.
        FactsDisagreeError: those that fit would make different images.
    """
    passed: list[PayloadTarget] = []
    refusals: list[tuple[bool, PolicyError]] = []
    for path in candidate.paths:
        try:
            payload = candidate.view.payload(path)
            for check in _CHECKS:
                check(candidate, payload)
            passed.append(payload)
        except PolicyError as error:
            refusals.append(("/delta-from-" in path, error))
    if not passed:  # the schema of a channel document demands at least one path
        raise min(refusals, key=lambda refusal: refusal[0])[1]
    _make_one_image(candidate, passed)
    return tuple(passed)


def check_offer(offer: Offer, candidate: Candidate) -> None:
    """Compare what Omaha says of files with what was signed of these files.

    Raises:
        OfferMismatchError: another hash or size, or a file that is no payload of the version.
    """
    payloads = candidate.view.payloads
    signed = [payloads[path] for path in candidate.paths if path in payloads]
    for file in offer.files:
        named = _named(file, signed)
        if not named:
            raise OfferMismatchError(
                f"Omaha names file {shown(file.name)}, which is no usable signed payload"
                f" of {candidate.text}"
            )
        if not any(_agrees(file, payload) for payload in named):
            raise OfferMismatchError(
                f"Omaha says that {shown(file.name)} has sha256 {shown(str(file.sha256))} and"
                f" {file.size} bytes, signed are {named[0].sha256} and {named[0].size}"
            )


def shown(foreign: str) -> str:
    """Return a foreign string so that it can stand in a sentence."""
    return ascii(foreign[:_SHOWN_CHARACTERS])


def _named(file: OfferedFile, signed: list[PayloadTarget]) -> list[PayloadTarget]:
    """Return the payloads that Omaha can mean: by name, else by hash."""
    by_name = [payload for payload in signed if file.name in _names(payload)]
    return by_name or [payload for payload in signed if payload.sha256 == file.sha256]


def _names(payload: PayloadTarget) -> frozenset[str]:
    """Return what a payload may be called: content-addressed, as TUF stores it, or by its path."""
    base = payload.path.rpartition("/")[2]
    return frozenset({f"{payload.sha256}.crau", f"{payload.sha256}.{base}", base, payload.path})


def _agrees(file: OfferedFile, payload: PayloadTarget) -> bool:
    return file.sha256 in {None, payload.sha256} and file.size in {None, payload.size}


def _fits_product(candidate: Candidate, payload: PayloadTarget) -> None:
    """Path, facts and node name one product."""
    if {payload.facts.product, payload.path.split("/")[1]} != {candidate.node.product}:
        raise WrongProductError(
            f"payload {payload.path} is of product {payload.facts.product},"
            f" this node is {candidate.node.product}"
        )


def _fits_board(candidate: Candidate, payload: PayloadTarget) -> None:
    """Path, facts and node name one board."""
    if {payload.facts.board, payload.path.split("/")[2]} != {candidate.node.board}:
        raise WrongBoardError(
            f"payload {payload.path} is for board {payload.facts.board},"
            f" this node is {candidate.node.board}"
        )


def _fits_version(candidate: Candidate, payload: PayloadTarget) -> None:
    """Path, facts and channel document name one version."""
    if {payload.facts.version, payload.path.split("/")[3]} != {candidate.text}:
        raise WrongVersionError(
            f"payload {payload.path} is of version {payload.facts.version},"
            f" wanted is {candidate.text}"
        )


def _fits_source(candidate: Candidate, payload: PayloadTarget) -> None:
    """A delta starts from what runs; whether its bytes are those is seen where they are read."""
    source = payload.facts.source
    if source is not None and source.version != candidate.node.version:
        raise NoUsablePayloadError(
            f"payload {payload.path} starts from version {shown(source.version)},"
            f" this node runs {candidate.node.version}"
        )


def _fits_engine(candidate: Candidate, payload: PayloadTarget) -> None:
    needed = payload.facts.min_engine
    if parse_version(needed) > parse_version(candidate.node.engine):
        raise EngineTooOldError(
            f"payload {payload.path} needs bascule {needed}, this is {candidate.node.engine}"
        )


def _fits_running(candidate: Candidate, payload: PayloadTarget) -> None:
    needed = payload.facts.requires_from
    if needed is not None and parse_version(needed) > candidate.running:
        raise RequiresFromError(
            f"payload {payload.path} needs at least version {needed} running,"
            f" this is {candidate.running}"
        )


def _fits_floor(candidate: Candidate, payload: PayloadTarget) -> None:
    if payload.facts.rollback_index < candidate.floor:
        raise BelowFloorError(
            f"version {candidate.text} has rollback index {payload.facts.rollback_index},"
            f" this node accepts {candidate.floor} and above"
        )


def _make_one_image(candidate: Candidate, payloads: list[PayloadTarget]) -> None:
    """Refuse when it would depend on the payload what the node runs afterwards."""
    images = {(item.facts.rollback_index, frozenset(_parts(item))) for item in payloads}
    if len(images) > 1:
        raise FactsDisagreeError(
            f"the {len(payloads)} payloads of version {candidate.text}"
            f" make {len(images)} different images"
        )


def _parts(payload: PayloadTarget) -> Iterable[tuple[str, int, str]]:
    return ((part.name, part.size, part.sha256) for part in payload.facts.partitions)


_CHECKS: Final[tuple[Callable[[Candidate, PayloadTarget], None], ...]] = (
    _fits_product,
    _fits_board,
    _fits_version,
    _fits_source,
    _fits_engine,
    _fits_running,
    _fits_floor,
)
