"""What the answers of other servers mean for a node. The answers are in `tests/data/omaha`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from updater.hints import NOT_YET, URLS_MAX, Hint, hint_of, is_refusal
from updater.omaha import (
    Action,
    AppResponse,
    Manifest,
    OmahaFormatError,
    Package,
    UpdateCheckResult,
    decode_response,
)
from updater.trust.view import Offer, OfferedFile

FIXTURES = Path(__file__).parents[2] / "data" / "omaha"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
OTHER = "ab" * 32


def answer(name: str) -> AppResponse:
    return decode_response((FIXTURES / f"{name}.xml").read_bytes()).apps[0]


def offered(package: Package, *actions: Action, codebases: tuple[str, ...] = ()) -> AppResponse:
    manifest = Manifest(version="2.0.0", packages=(package,), actions=actions)
    check = UpdateCheckResult(status="ok", codebases=codebases, manifests=(manifest,))
    return AppResponse(app_id="a", update_check=check)


@pytest.mark.parametrize(
    ("name", "version", "file", "size", "base"),
    [
        (
            "nebraska-update", "3975.2.1", "flatcar_production_update.gz", 465881871,
            "https://update.example/amd64-usr/3975.2.1/",
        ),
        (
            "go-omaha-update", "3975.2.1", "update.gz", 465881871,
            "http://localhost:8000/packages/",
        ),
        (
            "coreupdate-update", "1068.9.0", "update.gz", 258404018,
            "https://update.example/amd64-usr/1068.9.0/",
        ),
    ],
)  # fmt: skip
def test_an_offer_of_another_server_is_read_as_a_stock_engine_reads_it(
    name: str, version: str, file: str, size: int, base: str
) -> None:
    app = answer(name)
    assert not is_refusal(app)
    hint = hint_of(app)
    assert replace(hint, others=()) == Hint(
        offer=Offer(version=version, files=(OfferedFile(name=file, sha256=SHA256, size=size),)),
        urls=(base + file,),
        bases=(base,),
    )
    assert {other.name for other in hint.others} <= {"oem-qemu.gz"}  # of an image that has one


def test_further_files_are_told_with_their_digests_and_believed_in_nothing() -> None:
    first = Package(name="full.crau", size_bytes=9, sha256=SHA256)
    delta = Package(name="delta.crau", size_bytes=3, sha256=OTHER, required=False)
    nameless = Package(name="", size_bytes=3, sha256=OTHER)
    undigested = Package(name="extra.raw", size_bytes=3)
    manifest = Manifest(version="2.0.0", packages=(first, delta, nameless, undigested))
    check = UpdateCheckResult(
        status="ok", codebases=("http://a/x", "http://b/"), manifests=(manifest,)
    )
    hint = hint_of(AppResponse(app_id="a", status="ok", update_check=check))

    assert hint.offer is not None
    assert [file.name for file in hint.offer.files] == ["full.crau"]
    assert hint.urls_of(OTHER) == ["http://a/x/delta.crau", "http://b/delta.crau"]
    assert hint.urls_of(SHA256) == []


@pytest.mark.parametrize("name", ["nebraska-noupdate", "go-omaha-noupdate", "coreupdate-noupdate"])
def test_another_server_without_an_update_is_no_trouble(name: str) -> None:
    hint = hint_of(answer(name))
    assert (hint.offer, hint.code) == (None, "server-noupdate")
    assert hint.sentence == "the server answered noupdate"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nebraska-throttled", "server-throttled", "in one period"),
        ("nebraska-concurrent", "server-throttled", "under way"),
        ("nebraska-timed-out", "server-halted", "did not finish in time"),
        ("nebraska-disabled", "server-paused", "switched off"),
        ("nebraska-in-progress", "server-in-progress", "in the middle of an update"),
        ("nebraska-no-package", "server-no-package", "no package"),
    ],
)
def test_throttling_is_a_hold_with_a_code_and_a_sentence(name: str, code: str, words: str) -> None:
    app = answer(name)
    assert not is_refusal(app)
    hint = hint_of(app)
    assert (hint.offer, hint.code) == (None, code)
    assert words in hint.sentence


@pytest.mark.parametrize(
    "name", ["nebraska-unknown-track", "nebraska-bad-version", "go-omaha-unknown-app"]
)
def test_what_will_not_be_served_later_either_is_a_refusal(name: str) -> None:
    assert is_refusal(answer(name))


@pytest.mark.parametrize("status", sorted(NOT_YET))
def test_a_hold_keeps_the_time_to_ask_again_and_needs_no_check(status: str) -> None:
    check = UpdateCheckResult(status="error-internal", poll_interval_s=7200)
    assert hint_of(AppResponse(app_id="a", status=status, update_check=check)).poll_secs == 7200
    assert hint_of(AppResponse(app_id="a", status=status)).poll_secs is None


def test_the_digest_that_engines_verify_comes_before_the_packages_own() -> None:
    package = Package(name="p", size_bytes=1, sha256=OTHER)
    hint = hint_of(offered(package, Action(event="update"), Action(sha256=SHA256)))
    assert hint.offer is not None
    assert hint.offer.files[0].sha256 == SHA256
    without = hint_of(offered(package, Action()))
    assert without.offer is not None
    assert without.offer.files[0].sha256 == OTHER


def test_a_delta_is_told_as_one() -> None:
    package = Package(name="p", size_bytes=1)
    assert hint_of(offered(package, Action(is_delta=True))).is_delta
    assert not hint_of(offered(package, Action())).is_delta
    assert not hint_of(offered(package)).is_delta


@pytest.mark.parametrize("attribute", ["IsDeltaPayload", "IsDelta"])
def test_old_and_new_servers_say_delta_in_two_ways(attribute: str) -> None:
    text = (FIXTURES / "nebraska-update.xml").read_text()
    said = text.replace("DisablePayloadBackoff=", f'{attribute}="true" DisablePayloadBackoff=')
    assert hint_of(decode_response(said.encode()).apps[0]).is_delta


def test_all_urls_are_kept_in_order_up_to_a_bound() -> None:
    bases = tuple(f"http://mirror-{n}" for n in range(URLS_MAX + 1))
    hint = hint_of(offered(Package(name="p", size_bytes=1), codebases=bases))
    assert hint.urls == tuple(f"{base}/p" for base in bases[:URLS_MAX])


@pytest.mark.parametrize(
    "app",
    [
        AppResponse(app_id="a"),
        AppResponse(app_id="a", update_check=UpdateCheckResult(status="ok")),
        offered(Package(name="", size_bytes=1), codebases=("http://x/",)),
    ],
)
def test_an_answer_that_cannot_be_used_is_no_answer(app: AppResponse) -> None:
    with pytest.raises(OmahaFormatError):
        hint_of(app)


@pytest.mark.parametrize("status", ["error-internal", "error-hash", "error-osnotsupported"])
def test_an_error_of_the_check_alone_is_told_as_the_server_said_it(status: str) -> None:
    hint = hint_of(AppResponse(app_id="a", update_check=UpdateCheckResult(status=status)))
    assert (hint.code, hint.sentence) == ("server-error", f"the server answered {status}")


def test_an_event_is_acknowledged_or_not_and_both_are_read() -> None:
    assert answer("nebraska-event").events_ok == 1
    assert answer("coreupdate-update").events_ok == 0
    assert not answer("coreupdate-update").ping_ok


def test_a_declaration_alone_is_no_answer() -> None:
    with pytest.raises(OmahaFormatError):
        decode_response((FIXTURES / "nebraska-malformed-request.xml").read_bytes())
