"""What strangers may say of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.claims import (
    SENTENCE_MAX_CHARS,
    Claim,
    ClaimRefusedError,
    claim_of,
    clean_code,
    clean_sentence,
    clean_version,
    normal_app_id,
)
from updater.omaha import AppRequest, Request

APP = AppRequest(
    app_id="{E96281A6-D1AF-4BDE-9A0A-97B76E56DC57}",
    version="1.0.0",
    track="stable",
    machine_id="3d1219c7c4c5404aaa1f6d2a48adfda4",
    board="amd64-usr",
)
MARKUP = "\"><img src=x onerror=alert('x')>"


def claim(app: AppRequest, version: str = "bascule-0.1.0") -> Claim:
    request = Request(apps=(app,), version=version)
    return claim_of(request, app, product="os", default_board="generic")


def test_a_product_is_the_same_with_and_without_braces_and_in_any_case() -> None:
    plain = "e96281a6-d1af-4bde-9a0a-97b76e56dc57"
    assert normal_app_id(APP.app_id) == normal_app_id(plain) == plain


def test_our_nodes_are_known_by_the_program_that_asks() -> None:
    assert claim(APP).is_ours
    assert not claim(APP, "update_engine-0.4.10").is_ours


def test_a_client_without_a_track_or_a_board_gets_the_defaults() -> None:
    found = claim(replace(APP, track="", board=""))
    assert (found.group_name, found.board) == ("default", "generic")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine_id": ""}, "machine-id-invalid"),
        ({"machine_id": "a" * 63}, "machine-id-invalid"),
        ({"machine_id": MARKUP}, "machine-id-invalid"),
        ({"machine_id": "a b"}, "machine-id-invalid"),
        ({"machine_id": "abc\n"}, "machine-id-invalid"),
        ({"track": MARKUP}, "group-invalid"),
        ({"track": "x" * 65}, "group-invalid"),
        ({"board": "../.."}, "board-invalid"),
        ({"version": ""}, "version-invalid"),
        ({"version": "1.x"}, "version-invalid"),
        ({"version": MARKUP}, "version-invalid"),
    ],
)
def test_what_identifies_a_node_must_have_a_shape(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ClaimRefusedError) as caught:
        claim(replace(APP, **changes))  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert caught.value.status.startswith("error-")
    assert MARKUP not in caught.value.status


@pytest.mark.parametrize("text", [MARKUP, "a\x00b", "tab\there", "x" * 65, "\u202eevil"])
def test_what_is_for_people_is_dropped_when_it_does_not_fit(text: str) -> None:
    app = replace(APP, machine_alias=text, oem=text, boot_id=text, state=text, slot=text)
    found = claim(app)
    assert (found.alias, found.oem, found.boot_id, found.state, found.slot) == ("",) * 5


def test_ordinary_names_are_kept() -> None:
    app = replace(
        APP, machine_alias="Küche 3 (links)", oem="qemu", state="trial", slot="B", boot_id="{0f6e}"
    )
    found = claim(app)
    assert (found.alias, found.oem, found.state, found.slot) == (
        "Küche 3 (links)", "qemu", "trial", "b",
    )  # fmt: skip


@given(st.text())
def test_nothing_that_a_node_can_send_brings_markup_or_control_characters(text: str) -> None:
    app = replace(APP, machine_alias=text, oem=text, state=text, slot=text, boot_id=text)
    found = claim(app, f"bascule-{text}")
    kept = f"{found.alias}{found.oem}{found.state}{found.slot}{found.boot_id}{found.agent}"
    assert not set(kept) & set("<>\"'&`")
    assert kept.isprintable()


@given(st.text())
def test_a_sentence_is_printable_and_short(text: str) -> None:
    cleaned = clean_sentence(text)
    assert cleaned.isprintable()
    assert len(cleaned) <= SENTENCE_MAX_CHARS


@pytest.mark.parametrize("code", ["trial-unhealthy", "trust.expired", "a", "x1-y2"])
def test_our_codes_are_kept(code: str) -> None:
    assert clean_code(code) == code


@pytest.mark.parametrize("code", ["", "Trial", "-a", "a-", "a--b", "a b", "<a>", "a" * 65])
def test_what_is_no_code_is_dropped(code: str) -> None:
    assert clean_code(code) == ""


def test_what_is_no_version_is_dropped() -> None:
    assert (clean_version("2.0.0"), clean_version("two"), clean_version(None)) == ("2.0.0", "", "")
