"""Which payload is fetched: the cheapest that is usable and allowed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.release import parse_payload_facts, tuf_payload_path
from tests.sim.repository import BOARD, PRODUCT, make_facts
from updater.budget import (
    Allowance,
    BudgetError,
    DayBudgetError,
    FailedBytesError,
    MeteredLinkError,
    UpdateBudgetError,
    of_failed,
    require_price,
)
from updater.payload_choice import Choice, Held, Policy, Priced, choose, sources_wanted
from updater.state import Spoiled
from updater.trust.errors import NoUsablePayloadError
from updater.trust.view import PayloadTarget

OLD = hashlib.sha256(b"old").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
HELD = {"usr": Held(sha256=OLD, size=4096)}


def payload(name: str, size: int, **facts: object) -> PayloadTarget:
    path = tuf_payload_path(PRODUCT, BOARD, "2.0.0", name)
    return PayloadTarget(
        path=path,
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        size=size,
        facts=parse_payload_facts(make_facts(**facts)),
    )


def full(cost: int) -> Priced:
    return Priced(payload=payload("full", cost), cost=cost)


def delta(
    cost: int,
    *,
    sha256: str = OLD,
    source: str = "1.0.0",
    part: str = "usr",
    **facts: object,
) -> Priced:
    start = {"version": source, "partitions": [{"name": part, "size": 4096, "sha256": sha256}]}
    made = [{"name": part, "size": 4096, "sha256": OTHER}]
    target = payload(
        f"delta-from-{source}", cost, kind="delta", source=start, partitions=made, **facts
    )
    return Priced(payload=target, cost=cost)


def left(size: int, error: type[BudgetError] = UpdateBudgetError) -> Allowance:
    return Allowance(error=error, limit=size + 5, spent=5, words="what is allowed")


def policy(*limits: Allowance, deltas: bool = True) -> Policy:
    return Policy(deltas=deltas, limits=limits)


def pick(*payloads: Priced, policy: Policy = Policy(), **more: object) -> Choice:  # noqa: B008  # frozen
    return choose(payloads, held=HELD, policy=policy, **more)  # type: ignore[arg-type]  # by name


def spoiled(priced: Priced) -> Spoiled:
    return Spoiled(sha256=priced.payload.sha256, code="blob-mismatch", sentence="a byte is wrong")


def test_the_cheaper_one_is_taken() -> None:
    assert pick(full(100), delta(10)) == Choice(best=delta(10), left_out=())


def test_a_delta_that_costs_more_than_the_full_payload_is_not_taken() -> None:
    assert pick(full(100), delta(101)).best == full(100)


class TestWhatADeltaPacksAgain:
    RULE = Policy(recode_max=40 * 2**20)

    def test_leaves_it_out_beyond_the_limit_and_is_said(self) -> None:
        choice = pick(
            full(300_000_000), delta(33_000_000, recoded_bytes=173_872_288), policy=self.RULE
        )
        assert choice.best == full(300_000_000)
        (why,) = choice.left_out
        assert why == (
            "the delta from 1.0.0 (33.0 MB): it packs 173.9 MB again, download.recode_max_mib"
            " allows 41.9 MB"
        )

    @pytest.mark.parametrize("recoded", [40 * 2**20, 0, None])
    def test_does_not_matter_within_it_or_where_old_facts_do_not_say(
        self, recoded: int | None
    ) -> None:
        found = pick(full(100), delta(10, recoded_bytes=recoded), policy=self.RULE)
        assert found.left_out == ()

    def test_does_not_matter_without_a_limit(self) -> None:
        assert pick(full(100), delta(10, recoded_bytes=2**40)).left_out == ()

    def test_is_not_taken_for_want_of_another_payload(self) -> None:
        with pytest.raises(NoUsablePayloadError, match=r"packs 173\.9 MB again"):
            pick(delta(10, recoded_bytes=173_872_288), policy=self.RULE)


def test_of_two_at_one_price_it_is_the_full_payload() -> None:
    assert pick(delta(100), full(100)).best == full(100)


def test_what_the_node_has_of_a_full_payload_makes_it_the_cheaper_one() -> None:
    cheap = Priced(payload=payload("full", 100), cost=9)
    assert pick(cheap, delta(10)).best == cheap


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({}, "has no part usr"),
        ({"usr": Held(sha256=OTHER, size=4096)}, f"was changed: it has sha256 {OTHER[:16]}…"),
        ({"usr": Held(sha256=OLD, size=8192)}, "was changed"),
        ({"usr": Held(sha256="", size=4096, why="sector 7")}, "cannot be read: sector 7"),
    ],
)
def test_a_delta_counts_only_where_the_booted_slot_is_what_it_starts_from(
    held: dict[str, Held], words: str
) -> None:
    choice = choose([full(100), delta(10)], held=held, policy=Policy())
    assert choice.best == full(100)
    (why,) = choice.left_out
    assert why.startswith("the delta from 1.0.0 (0.0 MB): ")
    assert words in why


def test_deltas_may_be_forbidden() -> None:
    choice = pick(full(100), delta(10), policy=policy(deltas=False))
    assert choice.best == full(100)
    assert choice.left_out == ("the delta from 1.0.0 (0.0 MB): download.deltas is false",)


def test_deltas_alone_that_do_not_count_are_refused_with_the_reasons() -> None:
    with pytest.raises(NoUsablePayloadError, match=r"no full payload; .*was changed"):
        pick(delta(10, sha256=OTHER))


def test_one_that_failed_here_is_left_out_with_the_reason() -> None:
    choice = pick(full(100), delta(10), spoiled=[spoiled(delta(10))])
    assert choice.best == full(100)
    assert choice.left_out == ("the delta from 1.0.0 (0.0 MB) failed here: a byte is wrong",)


def test_when_all_failed_here_they_are_tried_again() -> None:
    assert pick(delta(10), spoiled=[spoiled(delta(10))]).best == delta(10)


class TestLimits:
    @pytest.mark.parametrize("error", [UpdateBudgetError, DayBudgetError, MeteredLinkError])
    def test_the_cheapest_must_be_within_them(self, error: type[BudgetError]) -> None:
        assert pick(full(100), policy=policy(left(100, error))).best == full(100)
        with pytest.raises(error, match=r"the full payload \(0\.0 MB\) costs"):
            pick(full(101), policy=policy(left(100, error)))

    def test_the_tightest_counts(self) -> None:
        with pytest.raises(DayBudgetError):
            pick(full(100), policy=policy(left(100), left(99, DayBudgetError), left(100)))

    def test_what_is_within_is_taken_beside_what_is_beyond(self) -> None:
        assert pick(full(100), delta(10), policy=policy(left(50))).best == delta(10)

    def test_a_refusal_says_why_nothing_cheaper_is_taken(self) -> None:
        with pytest.raises(UpdateBudgetError, match="was changed"):
            pick(full(100), delta(10, sha256=OTHER), policy=policy(left(50)))


class TestWhatIsRead:
    def test_only_parts_that_deltas_start_from(self) -> None:
        assert sources_wanted([full(1).payload]) == {}
        assert sources_wanted([full(1).payload, delta(1).payload]) == {"usr": 4096}


COSTS = st.integers(0, 10**12)
DELTAS = st.lists(
    st.tuples(COSTS, st.sampled_from([OLD, OTHER]), st.booleans()), min_size=0, max_size=6
)


def made(rows: Sequence[tuple[int, str, bool]]) -> tuple[list[Priced], list[Spoiled]]:
    deltas = [
        delta(cost, sha256=sha256, source=f"1.0.{number}")
        for number, (cost, sha256, _) in enumerate(rows)
    ]
    bad = [spoiled(one) for one, row in zip(deltas, rows, strict=True) if row[2]]
    return deltas, bad


def usable(payloads: Sequence[Priced], bad: Sequence[Spoiled], *, deltas: bool) -> list[Priced]:
    """Say anew, from the words of the specification, what counts."""
    failed = {item.sha256 for item in bad}
    return [
        one
        for one in payloads
        if one.payload.sha256 not in failed
        and (
            one.payload.facts.source is None
            or (deltas and one.payload.facts.source.partitions[0].sha256 == OLD)
        )
    ]


@settings(deadline=None)
@given(COSTS, DELTAS, st.booleans(), st.lists(COSTS, max_size=3))
def test_it_is_the_cheapest_of_all_that_count_and_never_beyond_a_limit(
    whole: int, rows: list[tuple[int, str, bool]], deltas: bool, limits: list[int]
) -> None:
    several, bad = made(rows)
    payloads = [full(whole), *several]
    rule = Policy(deltas=deltas, limits=tuple(left(size) for size in limits))
    counting = usable(payloads, bad, deltas=deltas)
    cheapest = min(one.cost for one in counting)
    try:
        choice = choose(payloads, held=HELD, policy=rule, spoiled=bad)
    except BudgetError:
        assert cheapest > min(limits)
        return
    assert choice.best in counting
    assert choice.best.cost == cheapest
    assert choice.best.cost <= whole
    assert choice.best.cost <= min(limits, default=whole)


@settings(deadline=None)
@given(COSTS, DELTAS, COSTS, COSTS)
def test_more_leave_never_costs_more_and_refuses_no_more(
    whole: int, rows: list[tuple[int, str, bool]], limit: int, more: int
) -> None:
    several, bad = made(rows)
    payloads = [full(whole), *several]

    def cost(size: int, candidates: Sequence[Priced]) -> int | None:
        try:
            rule = policy(left(size))
            return choose(candidates, held=HELD, policy=rule, spoiled=bad).best.cost
        except BudgetError:
            return None

    narrow, wide = cost(limit, payloads), cost(limit + more, payloads)
    assert narrow is None or wide == narrow  # the cheapest is the cheapest, with any leave
    alone = cost(limit, payloads[:1])
    assert alone is None or (narrow is not None and narrow <= alone)  # one more to choose from


class TestWhatIsKnownLater:
    """A full payload may cost less here: metadata and block index tell."""

    def test_it_is_begun_where_nothing_is_within_the_limit_for_sure(self) -> None:
        known_later = Priced(payload=payload("full", 100), cost=100, known_after=5)
        choice = pick(known_later, delta(60), policy=policy(left(50)))
        assert choice.best == known_later
        assert pick(known_later, delta(40), policy=policy(left(50))).best == delta(40)

    def test_not_where_even_that_is_beyond_it(self) -> None:
        known_later = Priced(payload=payload("full", 100), cost=100, known_after=51)
        with pytest.raises(UpdateBudgetError, match="full payload"):
            pick(known_later, policy=policy(left(50)))

    def test_a_day_that_is_too_short_for_a_step_does_not_lead_to_what_costs_more(self) -> None:
        day = Allowance(error=DayBudgetError, limit=100, spent=95, words="a day", renewed=True)
        known_later = Priced(payload=payload("full", 100), cost=100, known_after=1, step=1)
        step = Priced(payload=delta(60).payload, cost=60, step=50)
        with pytest.raises(DayBudgetError):
            pick(known_later, step, policy=policy(day))


class TestWhatFailsCosts:
    """Whatever fails after however many bytes: never more than the full payload and 0.1 %."""

    @settings(deadline=None, max_examples=300)
    @given(
        whole=st.integers(1, 10**9),
        shares=st.lists(st.floats(0, 0.7), max_size=5),
        fails_at=st.lists(st.floats(0, 1), min_size=5, max_size=5),
        overhead=st.floats(0, 0.01),
        lacking=st.floats(0, 1),
    )
    def test_deltas_one_after_another_then_what_is_lacking_of_the_full_payload(
        self,
        whole: int,
        shares: list[float],
        fails_at: list[float],
        overhead: float,
        lacking: float,
    ) -> None:
        """The worst node: each delta fails, then the full payload costs what it costs here.

        Pairwise, then any-to-any, then full; each step as the node takes it: choice, limits,
        and for the full payload the comparison once its cost is known.
        """
        deltas = [
            delta(int(share * whole), source=f"1.0.{number}") for number, share in enumerate(shares)
        ]
        before = int(overhead * whole)  # metadata and block index
        price = before + int(lacking * (whole - before))
        bad: list[Spoiled] = []
        spent = 0
        refused = False
        for _ in range(len(deltas) + 1):
            rules = (of_failed(spent, full_size=whole),) if spent else ()
            full_one = Priced(payload=payload("full", whole), cost=whole, known_after=before)
            try:
                choice = choose(
                    [full_one, *deltas], held=HELD, policy=Policy(limits=rules), spoiled=bad
                )
            except FailedBytesError:
                refused = True
                break
            if choice.best != full_one:
                bad.append(spoiled(choice.best))
                spent += int(choice.best.cost * fails_at[len(bad) - 1])
                continue
            failed, spent = spent, spent + before  # metadata and index came, then it is compared
            try:
                rules = (of_failed(spent, full_size=whole),) if failed else ()
                require_price(rules, "it", price - before)
            except FailedBytesError:
                refused = True
                break
            spent += price - before
            break
        assert spent <= whole + whole // 1000
        if refused:  # only where it would really have been more
            assert spent + price > whole + whole // 1000 - before
