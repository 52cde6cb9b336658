"""What a node decides about a release that is signed well."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.release import (
    parse_channel_document,
    parse_payload_facts,
    tuf_payload_path,
)
from tests.sim.repository import BOARD, PRODUCT, make_channel, make_facts
from updater.trust.errors import (
    BelowFloorError,
    EngineTooOldError,
    FactsDisagreeError,
    FactsInvalidError,
    NotBeforeError,
    NothingNewerError,
    NotInChannelError,
    NotNewerError,
    NotPublishedError,
    NoUsablePayloadError,
    OfferMismatchError,
    PinnedError,
    PolicyError,
    RequiresFromError,
    StopSkippedError,
    TrustError,
    VersionDeniedError,
    WithdrawnError,
    WrongBoardError,
    WrongChannelError,
    WrongProductError,
    WrongVersionError,
)
from updater.trust.policy import choose
from updater.trust.view import (
    Identity,
    Offer,
    OfferedFile,
    PayloadTarget,
    TrustedView,
    VerifiedRelease,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NODE = Identity(product=PRODUCT, board=BOARD, channel="stable", version="2.0.0", engine="1.0.0")
VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0")


def full(version: str) -> str:
    return tuf_payload_path(PRODUCT, BOARD, version, "full")


def payload(path: str, **facts: object) -> PayloadTarget:
    version = path.split("/")[3]
    return PayloadTarget(
        path=path,
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        size=len(path) * 1000,
        facts=parse_payload_facts(make_facts(**{"version": version} | facts)),
    )


def make_view(*payloads: PayloadTarget, **fields: object) -> TrustedView:
    """Return a view whose channel allows all of VERSIONS and is at 4.0.0."""
    found = {full(version): payload(full(version)) for version in VERSIONS}
    found |= {item.path: item for item in payloads}
    document = {
        "serial": 42,
        "current": "4.0.0",
        "allowed": {version: [full(version)] for version in VERSIONS},
    }
    return TrustedView(
        channel=parse_channel_document(make_channel(**document | fields)),
        payloads=found,
        defects={},
        refreshed_at=NOW,
        timestamp_expires=NOW + timedelta(days=3),
        root_version=1,
        root_expires=NOW + timedelta(days=300),
    )


def decide(
    view: TrustedView | None = None,
    identity: Identity = NODE,
    *,
    floor: int = 0,
    denied: tuple[str, ...] = (),
    offer: Offer | str | None = None,
    pinned: str | None = None,
    forced: bool = False,
) -> VerifiedRelease:
    return choose(
        view or make_view(),
        identity,
        floor=floor,
        denied=denied,
        offer=Offer(version=offer) if isinstance(offer, str) else offer,
        now=NOW,
        pinned=pinned,
        forced=forced,
    )


def test_a_node_that_is_alone_takes_current() -> None:
    release = decide()
    assert (release.version, release.rollback_index, release.channel_serial) == ("4.0.0", 1, 42)
    assert [item.path for item in release.payloads] == [full("4.0.0")]


@pytest.mark.parametrize("version", ["3.0.0", "4.0.0", "5.0.0"])
def test_omaha_picks_among_what_is_allowed(version: str) -> None:
    assert decide(offer=version).version == version


@pytest.mark.parametrize(
    "version", ["6.6.6", "4.0", "4.0.0 ", "", "../../etc", "\x1b[2J", "4" * 999]
)
def test_omaha_adds_nothing_to_what_is_allowed(version: str) -> None:
    with pytest.raises(NotInChannelError) as caught:
        decide(offer=version)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


class TestDirection:
    """Running, candidate, floor, grant."""

    def test_the_running_version_is_nothing_to_do(self) -> None:
        with pytest.raises(NothingNewerError) as caught:
            decide(offer="2.0.0")
        assert caught.value.exit_status == 4

    def test_current_below_the_running_version_is_nothing_to_do_for_a_node_alone(self) -> None:
        with pytest.raises(NothingNewerError, match=r"2\.0\.0 is running, above 1\.0\.0"):
            decide(make_view(current="1.0.0"))

    def test_another_build_of_the_running_version_is_nothing_newer(self) -> None:
        with pytest.raises(NothingNewerError):
            decide(identity=replace(NODE, version="4.0.0+rebuilt"))

    def test_an_older_version_is_refused(self) -> None:
        with pytest.raises(NotNewerError, match=r"1\.0\.0 is below the running 2\.0\.0"):
            decide(offer="1.0.0")

    def test_an_older_version_is_refused_even_when_forced(self) -> None:
        with pytest.raises(NotNewerError):
            decide(offer="1.0.0", forced=True)

    def test_the_running_version_is_installed_again_when_forced(self) -> None:
        assert decide(offer="2.0.0", forced=True).version == "2.0.0"

    @pytest.mark.parametrize("offer", ["1.0.0", None])
    def test_a_grant_opens_the_way_back(self, offer: str | None) -> None:
        grant = {"from": "2.0.0", "to": "1.0.0", "until": "2026-11-23T12:00:01Z"}
        assert decide(make_view(current="1.0.0", downgrade=[grant]), offer=offer).version == "1.0.0"

    @pytest.mark.parametrize(
        "grant",
        [
            {"from": "2.0.0", "to": "1.0.0", "until": "2026-11-23T12:00:00Z"},  # has ended
            {"from": "3.0.0", "to": "1.0.0", "until": "2027-11-23T12:00:00Z"},  # other start
            {"from": "2.0.0", "to": "1.5.0", "until": "2027-11-23T12:00:00Z"},  # other end
        ],
    )
    def test_a_grant_that_does_not_fit_opens_nothing(self, grant: dict[str, str]) -> None:
        with pytest.raises(NotNewerError):
            decide(make_view(downgrade=[grant]), offer="1.0.0")

    def test_a_grant_does_not_lower_the_floor(self) -> None:
        grant = {"from": "2.0.0", "to": "1.0.0", "until": "2027-11-23T12:00:00Z"}
        with pytest.raises(BelowFloorError):
            decide(make_view(downgrade=[grant]), offer="1.0.0", floor=2)

    @pytest.mark.parametrize(("floor", "channel_floor"), [(8, 0), (0, 8), (8, 9)])
    def test_below_any_floor_is_refused(self, floor: int, channel_floor: int) -> None:
        view = make_view(payload(full("4.0.0"), rollback_index=7), rollback_floor=channel_floor)
        with pytest.raises(BelowFloorError):
            decide(view, floor=floor)

    @pytest.mark.parametrize(("floor", "channel_floor"), [(7, 0), (0, 7), (7, 6)])
    def test_at_the_floor_is_good(self, floor: int, channel_floor: int) -> None:
        view = make_view(payload(full("4.0.0"), rollback_index=7), rollback_floor=channel_floor)
        assert decide(view, floor=floor).rollback_index == 7


class TestChannelRules:
    """Withdrawn, not before, stops."""

    @pytest.mark.parametrize("spelling", ["4.0.0", "4.0", "4.0.0+build"])
    def test_a_withdrawn_version_is_refused_however_it_is_spelled(self, spelling: str) -> None:
        with pytest.raises(WithdrawnError):
            decide(make_view(withdrawn=[spelling]))

    def test_a_withdrawn_version_is_refused_even_when_forced(self) -> None:
        with pytest.raises(WithdrawnError):
            decide(make_view(withdrawn=["4.0.0"]), forced=True)

    def test_the_running_version_may_be_withdrawn(self) -> None:
        assert decide(make_view(withdrawn=["2.0.0"])).version == "4.0.0"

    def test_before_its_time_a_document_allows_nothing(self) -> None:
        with pytest.raises(NotBeforeError, match="in force from 2026-11-23T12:00:01"):
            decide(make_view(not_before="2026-11-23T12:00:01Z"))

    def test_from_its_time_on_a_document_allows(self) -> None:
        assert decide(make_view(not_before="2026-11-23T12:00:00Z")).version == "4.0.0"

    def test_a_stop_is_not_jumped_over(self) -> None:
        with pytest.raises(StopSkippedError, match=r"from 2\.0\.0 to 4\.0\.0 must stop at 3\.0\.0"):
            decide(make_view(stops=["3.0.0"]), offer="4.0.0")

    def test_the_lowest_stop_comes_first(self) -> None:
        view = make_view(stops=["4.0.0", "3.0.0"])
        assert decide(view, offer="3.0.0").version == "3.0.0"
        with pytest.raises(StopSkippedError):
            decide(view, offer="4.0.0")

    def test_a_stop_below_the_running_version_is_behind_us(self) -> None:
        assert decide(make_view(stops=["1.0.0", "2.0.0"]), offer="5.0.0").version == "5.0.0"

    def test_the_stop_itself_and_what_lies_before_it_are_good(self) -> None:
        view = make_view(stops=["4.0.0"])
        assert decide(view, offer="3.0.0").version == "3.0.0"
        assert decide(view, offer="4.0.0").version == "4.0.0"

    @pytest.mark.parametrize("spelling", ["3.0.0", "3.0"])
    def test_a_node_that_is_alone_goes_to_the_stop(self, spelling: str) -> None:
        assert decide(make_view(stops=[spelling])).version == "3.0.0"

    def test_a_stop_that_is_not_allowed_is_named(self) -> None:
        with pytest.raises(NotInChannelError, match=r"3\.5\.0"):
            decide(make_view(stops=["3.5.0"]))

    @pytest.mark.parametrize(
        ("field", "error"),
        [
            ("channel", WrongChannelError),
            ("product", WrongProductError),
            ("board", WrongBoardError),
        ],
    )
    def test_a_document_for_others_is_refused(self, field: str, error: type[PolicyError]) -> None:
        identity = replace(NODE, **{field: "other"})
        with pytest.raises(error):
            decide(identity=identity)


class TestHistory:
    """Versions that failed here, and pins."""

    @pytest.mark.parametrize("denied", ["4.0.0", "4.0", "4.0.0+build"])
    def test_a_version_that_failed_here_is_refused(self, denied: str) -> None:
        with pytest.raises(VersionDeniedError):
            decide(denied=(denied,))

    def test_a_version_that_failed_here_is_tried_again_when_forced(self) -> None:
        assert decide(denied=("4.0.0",), forced=True).version == "4.0.0"

    def test_a_newer_version_than_the_failed_one_is_good(self) -> None:
        assert decide(denied=("4.0.0", "garbage"), offer="5.0.0").version == "5.0.0"

    def test_a_pinned_node_takes_the_pinned_version(self) -> None:
        assert decide(pinned="3.0.0").version == "3.0.0"
        assert decide(pinned="3.0.0", offer="3.0.0").version == "3.0.0"

    def test_a_pinned_node_refuses_other_offers(self) -> None:
        with pytest.raises(
            PinnedError, match=r"offers '4\.0\.0', this node is pinned to '3\.0\.0'"
        ):
            decide(pinned="3.0.0", offer="4.0.0")

    @pytest.mark.parametrize(
        ("pinned", "error"),
        [("9.9.9", NotInChannelError), ("1.0.0", NotNewerError), ("2.0.0", NothingNewerError)],
    )
    def test_a_pin_stands_under_all_other_rules(self, pinned: str, error: type[TrustError]) -> None:
        with pytest.raises(error):
            decide(pinned=pinned, forced=pinned != "2.0.0")


class TestPayloads:
    """What is signed of a payload, against path and node."""

    @pytest.mark.parametrize(
        ("facts", "error"),
        [
            ({"product": "other"}, WrongProductError),
            ({"board": "other"}, WrongBoardError),
            ({"version": "3.0.0"}, WrongVersionError),
            ({"version": "4.0"}, WrongVersionError),
            ({"min_engine": "1.0.1"}, EngineTooOldError),
            ({"requires_from": "2.0.1"}, RequiresFromError),
        ],
    )
    def test_a_payload_for_others_is_refused(
        self, facts: dict[str, object], error: type[PolicyError]
    ) -> None:
        with pytest.raises(error):
            decide(make_view(payload(full("4.0.0"), **facts)))

    @pytest.mark.parametrize("facts", [{"min_engine": "1.0.0"}, {"requires_from": "2.0.0"}])
    def test_what_is_needed_exactly_is_enough(self, facts: dict[str, object]) -> None:
        assert decide(make_view(payload(full("4.0.0"), **facts))).version == "4.0.0"

    def test_a_delta_from_the_running_version_is_one_of_the_payloads(self) -> None:
        path, delta = self.make_delta()
        view = make_view(delta, allowed={"4.0.0": [path, full("4.0.0")]})
        assert [item.path for item in decide(view).payloads] == [path, full("4.0.0")]
        alone = decide(make_view(delta, allowed={"4.0.0": [path]}))
        assert [item.path for item in alone.payloads] == [path]

    @pytest.mark.parametrize("source", ["1.0.0", "2.0.0+rebuilt", "3.0.0"])
    def test_a_delta_from_another_version_is_none(self, source: str) -> None:
        path, delta = self.make_delta(source)
        view = make_view(delta, allowed={"4.0.0": [path, full("4.0.0")]})
        assert [item.path for item in decide(view).payloads] == [full("4.0.0")]
        with pytest.raises(NoUsablePayloadError, match="this node runs"):
            decide(make_view(delta, allowed={"4.0.0": [path]}))

    def test_why_the_full_payload_is_refused_says_more_than_why_a_delta_is(self) -> None:
        path, delta = self.make_delta("1.0.0")
        whole = payload(full("4.0.0"), min_engine="9.0.0")
        view = make_view(delta, whole, allowed={"4.0.0": [path, full("4.0.0")]})
        with pytest.raises(EngineTooOldError):
            decide(view)

    def test_a_delta_that_makes_another_image_is_refused_with_the_version(self) -> None:
        path, delta = self.make_delta()
        part = {"name": "usr", "size": 4096, "sha256": "d" * 64}
        source = {"version": "2.0.0", "partitions": [part]}
        delta = payload(path, kind="delta", source=source, partitions=[part])
        with pytest.raises(FactsDisagreeError):
            decide(make_view(delta, allowed={"4.0.0": [path, full("4.0.0")]}))

    def test_a_payload_that_is_not_signed_is_refused(self) -> None:
        view = make_view()
        with pytest.raises(NotPublishedError, match=full("4.0.0")):
            decide(replace(view, payloads={}))

    def test_unusable_facts_are_named(self) -> None:
        view = replace(make_view(), payloads={}, defects={full("4.0.0"): "no kind"})
        with pytest.raises(FactsInvalidError, match="no kind"):
            decide(view)

    @pytest.mark.parametrize(
        "facts",
        [{"rollback_index": 2}, {"partitions": [{"name": "a", "size": 1, "sha256": "c" * 64}]}],
    )
    def test_payloads_that_make_different_images_are_refused(
        self, facts: dict[str, object]
    ) -> None:
        twin = payload(full("4.0.0").replace("full", "full-2"), **facts)
        view = make_view(twin)
        view.channel.allowed["4.0.0"] = (full("4.0.0"), twin.path)
        with pytest.raises(FactsDisagreeError):
            decide(view)

    def make_delta(self, source: str = "2.0.0") -> tuple[str, PayloadTarget]:
        path = tuf_payload_path(PRODUCT, BOARD, "4.0.0", f"delta-from-{source}")
        part = {"name": "usr", "size": 1, "sha256": "c" * 64}
        starts_from = {"version": source, "partitions": [part]}
        return path, payload(path, kind="delta", source=starts_from)


class TestOfferedFiles:
    """Hash and size of Omaha are compared for the file that it names, and only for that."""

    signed = make_view().payloads[full("4.0.0")]

    def offer(self, name: str, sha256: str | None = None, size: int | None = None) -> Offer:
        return Offer(version="4.0.0", files=(OfferedFile(name=name, sha256=sha256, size=size),))

    @pytest.mark.parametrize(
        "name",
        [f"{signed.sha256}.crau", f"{signed.sha256}.full.crau", "full.crau", signed.path],
    )
    def test_the_signed_file_may_be_called_by_any_of_its_names(self, name: str) -> None:
        assert decide(offer=self.offer(name)).version == "4.0.0"
        assert decide(offer=self.offer(name, self.signed.sha256, self.signed.size)).version

    def test_a_file_of_another_name_is_known_by_its_hash(self) -> None:
        offer = self.offer("update.gz", self.signed.sha256, self.signed.size)
        assert decide(offer=offer).version == "4.0.0"

    @pytest.mark.parametrize(
        ("name", "sha256", "size"),
        [
            ("full.crau", "0" * 64, None),
            ("full.crau", signed.sha256, 1),
            ("full.crau", None, signed.size + 1),
            ("full.crau", signed.sha256.upper() + "0", None),
            ("update.gz", signed.sha256, 0),
            ("update.gz", None, signed.size),
            ("update.gz", "0" * 64, signed.size),
            (f"{'0' * 64}.crau", None, None),
        ],
    )
    def test_a_file_that_was_not_signed_so_is_refused(
        self, name: str, sha256: str | None, size: int | None
    ) -> None:
        with pytest.raises(OfferMismatchError):
            decide(offer=self.offer(name, sha256, size))

    def test_one_false_file_among_true_ones_is_refused(self) -> None:
        files = (OfferedFile(name="full.crau"), OfferedFile(name="evil.crau"))
        with pytest.raises(OfferMismatchError, match=r"evil\.crau"):
            decide(offer=Offer(version="4.0.0", files=files))

    def test_a_file_of_another_version_is_refused(self) -> None:
        other = make_view().payloads[full("3.0.0")]
        with pytest.raises(OfferMismatchError):
            decide(offer=self.offer(f"{other.sha256}.crau", other.sha256, other.size))


hashes = st.sampled_from([*(payload(full(v)).sha256 for v in VERSIONS), "0" * 64]) | st.text()
offers = st.builds(
    Offer,
    version=st.sampled_from([*VERSIONS, "9.9.9"]) | st.text(),
    files=st.lists(
        st.builds(
            OfferedFile,
            name=st.sampled_from(["full.crau", "evil.crau", full("5.0.0")]) | st.text(),
            sha256=st.none() | hashes,
            size=st.none() | st.integers(),
        ),
        max_size=3,
    ).map(tuple),
)
some_versions = st.lists(st.sampled_from(VERSIONS), max_size=3, unique=True)


@given(
    offer=st.none() | offers,
    withdrawn=some_versions,
    stops=some_versions,
    denied=some_versions.map(tuple),
    floor=st.integers(min_value=0, max_value=3),
    indices=st.lists(st.integers(min_value=0, max_value=3), min_size=5, max_size=5),
    pinned=st.none() | st.sampled_from([*VERSIONS, "9.9.9"]) | st.text(),
    forced=st.booleans(),
)
def test_any_generated_offer_never_yields_a_payload_outside_the_channel_document(
    offer: Offer | None,
    withdrawn: list[str],
    stops: list[str],
    denied: tuple[str, ...],
    floor: int,
    indices: list[int],
    pinned: str | None,
    forced: bool,
) -> None:
    payloads = [
        payload(full(version), rollback_index=index)
        for version, index in zip(VERSIONS, indices, strict=True)
    ]
    allowed = {version: [full(version)] for version in VERSIONS[1:]}
    view = make_view(*payloads, allowed=allowed, withdrawn=withdrawn, stops=stops)
    try:
        release = decide(
            view, offer=offer, denied=denied, floor=floor, pinned=pinned, forced=forced
        )
    except TrustError:
        return
    assert release.version in view.channel.allowed
    assert {item.path for item in release.payloads} <= set(view.channel.allowed[release.version])
    assert all(view.payloads[item.path] == item for item in release.payloads)
    assert release.version not in withdrawn
    assert release.version >= NODE.version  # single digits: their text is their order
    assert forced or (release.version > NODE.version and release.version not in denied)
    assert release.rollback_index >= floor
    assert not any(NODE.version < stop < release.version for stop in stops)
    assert offer is None or release.version == offer.version
    assert pinned is None or release.version == pinned


def test_any_refusal_of_policy_ends_a_command_with_the_status_of_a_refusal() -> None:
    with pytest.raises(PolicyError) as caught:
        decide(offer="1.0.0")
    assert (caught.value.code, caught.value.exit_status) == ("not-newer", 3)
