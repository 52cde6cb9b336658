from __future__ import annotations

from datetime import UTC, datetime

import pytest

from images.release import ImageFacts
from updater.errors import RefusedError
from updater.given import Case, judge


def image(
    version: str = "2.0.0",
    *,
    product: str = "acme-os",
    board: str = "amd64-usr",
    rollback_index: int = 3,
) -> ImageFacts:
    return ImageFacts(
        product=product,
        board=board,
        version=version,
        rollback_index=rollback_index,
        built=datetime(2026, 1, 1, tzinfo=UTC),
    )


def case(
    *,
    floor: int = 3,
    denied: frozenset[str] = frozenset(),
    claimed: str = "",
    pinned: str = "",
    forced: bool = False,
) -> Case:
    return Case(
        running=image("1.0.0"),
        floor=floor,
        denied=denied,
        claimed=claimed,
        pinned=pinned,
        forced=forced,
    )


@pytest.mark.parametrize(
    ("what", "by"),
    [
        (image(), case()),
        (image(), case(claimed="2.0")),  # the same version, spelled otherwise
        (image(), case(pinned="2.0.0")),
        (image("0.9.0"), case(forced=True)),
        (image("1.0.0"), case(forced=True)),
        (image(), case(denied=frozenset({"2.0.0"}), forced=True)),
    ],
)
def test_what_may_run_here(what: ImageFacts, by: Case) -> None:
    judge(what, by)


@pytest.mark.parametrize(
    ("what", "by", "code"),
    [
        (image(product="other"), case(), "wrong-product"),
        (image(board="arm64-usr"), case(), "wrong-board"),
        (image(rollback_index=2), case(), "below-floor"),
        (image(), case(claimed="2.0.1"), "wrong-version"),
        (image(), case(pinned="2.0.1"), "pinned"),
        (image("1.0.0"), case(), "given-not-newer"),
        (image("0.9.0"), case(), "given-not-newer"),
        (image(), case(denied=frozenset({"2.0.0"})), "version-denied"),
    ],
)
def test_what_may_not(what: ImageFacts, by: Case, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        judge(what, by)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "what", [image(product="other"), image(board="x"), image(rollback_index=2)]
)
def test_insisting_does_not_help_against_another_machine_or_the_floor(what: ImageFacts) -> None:
    with pytest.raises(RefusedError):
        judge(what, case(forced=True))


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0"])
def test_insisting_does_not_make_a_server_go_back(version: str) -> None:
    with pytest.raises(RefusedError, match=r"this node runs 1\.0\.0"):
        judge(image(version), case(claimed=version, forced=True))
