"""The Omaha endpoint's judgement: what a request says is kept, what it asks is answered.

One request is one writing transaction: the events, the registration, the counting of places and
the grant happen as a whole, with the database's write lock held from the start. Two nodes that
ask at the same instant are answered one after the other. Nothing is written for a product that is
not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from server import grants, nodes, reports
from server.activity import SERVER, record
from server.catalogue import (
    base_urls,
    find_document,
    known_boards,
    known_products,
    payloads_of,
    shortcuts,
    suitable,
)
from server.choice import choose
from server.claims import Claim, ClaimRefusedError, claim_of, normal_app_id
from server.clients import fitting_board
from server.groups import find_group
from server.offers import manifest_of, no_payload, no_release, nothing, offer
from server.rollout import (
    Hold,
    Situation,
    decide,
    place_of,
)
from server.stops import RolloutKey
from server.syncing import follow
from updater.omaha import AppResponse, Response, UpdateCheckResult
from updater.omaha.messages import (
    APP_UNKNOWN,
    CHECK_INTERNAL,
    CHECK_OK,
    CHECK_UNSUPPORTED_PROTOCOL,
    PROTOCOL,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection

    from server.desk import Desk
    from server.groups import Group
    from updater.omaha import AppRequest, Manifest, Request

GROUP_UNKNOWN: Final = "error-unknownApplicationOrGroup"  # as Nebraska names it
OFFERED: Final = "offered"  # the outcome of a check that got something


class Tally(Protocol):
    """Counts what happens, for whoever watches."""

    def check(self, outcome: str) -> None:
        """Count a check by its reason, or `OFFERED`."""

    def event(self, event_type: int, result: int) -> None:
        """Count an event of a node."""

    def grant(self, group: str) -> None:
        """Count a new grant."""


@dataclass(frozen=True, slots=True)
class OmahaDesk:
    """Answers Omaha requests for one desk.

    Attributes:
        desk: the desk.
        public_url: how nodes reach this server, without a slash at the end.
        tally: what counts.
    """

    desk: Desk
    public_url: str
    tally: Tally

    def answer(self, request: Request) -> Response:
        """Return the answer to a request that could be read.

        Raises:
            DatabaseError: the database cannot be used.
        """
        store, settings = self.desk.store, self.desk.settings
        with store.reading() as connection:
            products = known_products(connection, settings.product)
        if not any(normal_app_id(app.app_id) in products for app in request.apps):
            return Response(apps=tuple(_unknown(app) for app in request.apps))
        with store.writing() as connection:
            answers = tuple(
                self._answer_app(connection, request, app, products) for app in request.apps
            )
        self._count(request, answers)
        return Response(apps=answers)

    def _answer_app(
        self,
        connection: Connection,
        request: Request,
        app: AppRequest,
        products: Mapping[str, str],
    ) -> AppResponse:
        product = products.get(normal_app_id(app.app_id))
        if product is None:
            return _unknown(app)
        try:
            board = self._default_board(connection, request, product)
            claim = claim_of(request, app, product=product, default_board=board)
            if not claim.is_syncer:
                self._take(connection, claim, app)
            group = _group_of(connection, claim)
        except ClaimRefusedError as refused:
            return _refused(app, refused)
        check = None
        if app.update_check is not None:
            check = self._check(connection, claim, group, request.protocol)
        return AppResponse(
            app_id=app.app_id,
            ping_ok=app.ping is not None,
            update_check=check,
            events_ok=len(app.events),
        )

    def _default_board(self, connection: Connection, request: Request, product: str) -> str:
        if all(app.board for app in request.apps):
            return self.desk.settings.board
        boards = known_boards(connection, product)
        return fitting_board(request.os, default=self.desk.settings.board, boards=boards)

    def _take(self, connection: Connection, claim: Claim, app: AppRequest) -> None:
        """Keep what the node says: who it is, its events, how far it is."""
        now_s = self.desk.now_s()
        nodes.register(connection, claim, now_s=now_s, nodes_max=self.desk.settings.nodes_max)
        if app.update_check is not None:
            nodes.note_state(connection, claim, "idle")  # a stock engine asks in no other state
        reports.take_reports(connection, claim, app.events, now_s=now_s)
        reports.settle(connection, claim, now_s=now_s)
        if app.ping is not None and app.update_check is None:
            reports.keep_alive(connection, claim, now_s=now_s)

    def _check(
        self, connection: Connection, claim: Claim, group: Group, protocol: str
    ) -> UpdateCheckResult:
        if protocol != PROTOCOL:
            return UpdateCheckResult(status=CHECK_UNSUPPORTED_PROTOCOL)
        poll_s = group.poll_s(self.desk.settings)
        if claim.is_syncer:
            found = follow(connection, claim, group, self.desk.clock())
        else:
            found = self._decide(connection, claim, group)
            nodes.note_wait(connection, claim, found.reason if isinstance(found, Hold) else "")
        if isinstance(found, Hold):
            return nothing(found, poll_s)
        urls = base_urls(connection, group.channel) or (f"{self.public_url}/payloads/",)
        return offer(found, urls, poll_s)

    def _decide(
        self, connection: Connection, claim: Claim, group: Group
    ) -> Hold | tuple[Manifest, ...]:
        """Choose a release and payload; then, last, see whether there is a place for it."""
        document = find_document(connection, group.channel, claim.product, claim.board)
        if document is None:
            return no_release(group.channel, claim.board)
        choice = choose(document, claim.running, self.desk.clock())
        if isinstance(choice, Hold):
            return choice
        version = choice.version
        payloads = payloads_of(connection, claim.product, claim.board, version)
        payload = suitable(payloads, claim, document.allowed[version])
        if payload is None:
            return no_payload(version)
        held = self._take_place(connection, claim, group, version)
        others = shortcuts(payloads, claim, document.allowed[version])
        return held or (manifest_of(version, payload, others),)

    def _take_place(
        self, connection: Connection, claim: Claim, group: Group, version: str
    ) -> Hold | None:
        """Give the node a place for `version`, or say why it must wait."""
        now_s, settings = self.desk.now_s(), self.desk.settings
        grants.expire(connection, group.name, timeout_s=group.timeout_s(settings), now_s=now_s)
        own = grants.newest(connection, claim)
        wanted = (version, group.name)
        if own is not None and own.active and (own.version, own.group_name) != wanted:
            grants.end(connection, own, phase=grants.SUPERSEDED, code="", now_s=now_s)
            own = None
        rollout = RolloutKey(
            group_name=group.name, product=claim.product, board=claim.board, version=version
        )
        holds_grant = own is not None and own.active
        situation = Situation(
            place=place_of(version, claim.machine_id),
            holds_grant=holds_grant,
            failed_here=grants.failed_trial_of(connection, claim, version),
            under_way=grants.count_active(connection, group.name) - holds_grant,
            stopped=rollout.stopped_because(connection),
        )
        decision = decide(group.policy(), situation)
        if isinstance(decision, Hold):
            return decision
        if not holds_grant:
            grants.give(connection, claim, version, now_s=now_s)
            self.tally.grant(group.name)
            if rollout.begin(connection, now_s=now_s):
                sentence = f"the first node of group {group.name} may have release {version}"
                record(connection, now_s, "rollout begin", group.name, sentence, actor=SERVER)
        return None

    def _count(self, request: Request, answers: tuple[AppResponse, ...]) -> None:
        for app, answer in zip(request.apps, answers, strict=True):
            for event in app.events:
                self.tally.event(event.type, event.result)
            check = answer.update_check
            if check is not None:
                self.tally.check(OFFERED if check.status == CHECK_OK else check.reason)


def _group_of(connection: Connection, claim: Claim) -> Group:
    group = find_group(connection, claim.group_name)
    if group is None:
        raise ClaimRefusedError(
            GROUP_UNKNOWN, "group-unknown", f"there is no group {claim.group_name} here"
        )
    return group


def _unknown(app: AppRequest) -> AppResponse:
    refused = ClaimRefusedError(APP_UNKNOWN, "product-unknown", "this product is not served here")
    return _refused(app, refused)


def _refused(app: AppRequest, refused: ClaimRefusedError) -> AppResponse:
    check = None
    if app.update_check is not None:
        check = UpdateCheckResult(
            status=CHECK_INTERNAL, reason=refused.reason, sentence=str(refused)
        )
    return AppResponse(app_id=app.app_id, status=refused.status, update_check=check)
