"""Omaha messages: round trips, the reference's sample exchanges, and what strangers may send."""

from __future__ import annotations

import string
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updater.omaha import (
    Action,
    AppRequest,
    AppResponse,
    Event,
    Manifest,
    OmahaFormatError,
    OsInfo,
    Package,
    Ping,
    Request,
    Response,
    UpdateCheck,
    UpdateCheckResult,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from updater.omaha.codec import REQUEST_MAX_BYTES, RESPONSE_MAX_BYTES
from updater.omaha.elements import ATTRIBUTE_MAX_CHARS, DEPTH_MAX, ELEMENTS_MAX, NUMBER_MAX

# What XML 1.0 can carry, surrogates and other control characters left out.
TEXTS: Final = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r"),
    max_size=30,
)
WORDS: Final = st.text(string.ascii_letters + string.digits + "-.", min_size=1, max_size=20)
NUMBERS: Final = st.integers(min_value=-NUMBER_MAX, max_value=NUMBER_MAX)
COUNTS: Final = st.integers(min_value=0, max_value=NUMBER_MAX)
DIGESTS: Final = st.binary(min_size=32, max_size=32).map(bytes.hex) | st.just("")

EVENTS: Final = st.builds(
    Event,
    type=NUMBERS,
    result=NUMBERS,
    error_code=st.none() | NUMBERS,
    previous_version=st.none() | TEXTS,
    next_version=st.none() | TEXTS,
    bascule_code=TEXTS,
    bascule_sentence=TEXTS,
)
APP_REQUESTS: Final = st.builds(
    AppRequest,
    app_id=TEXTS,
    version=TEXTS,
    track=TEXTS,
    boot_id=TEXTS,
    machine_id=TEXTS,
    machine_alias=TEXTS,
    oem=TEXTS,
    oem_version=TEXTS,
    aleph_version=TEXTS,
    board=TEXTS,
    language=TEXTS,
    delta_okay=st.booleans(),
    multi_manifest_ok=st.booleans(),
    state=TEXTS,
    slot=TEXTS,
    ping=st.none() | st.builds(Ping, active=st.booleans()),
    update_check=st.none() | st.builds(UpdateCheck, target_version_prefix=TEXTS),
    events=st.lists(EVENTS, max_size=3).map(tuple),
)
REQUESTS: Final = st.builds(
    Request,
    apps=st.lists(APP_REQUESTS, max_size=3).map(tuple),
    os=st.builds(OsInfo, platform=TEXTS, version=TEXTS, service_pack=TEXTS, arch=TEXTS),
    protocol=TEXTS,
    version=TEXTS,
    updater_version=TEXTS,
    install_source=TEXTS,
    is_machine=st.booleans(),
    session_id=TEXTS,
    request_id=TEXTS,
)
MANIFESTS: Final = st.builds(
    Manifest,
    version=TEXTS,
    packages=st.lists(
        st.builds(
            Package,
            name=TEXTS,
            size_bytes=COUNTS,
            sha1=TEXTS,
            sha256=DIGESTS,
            required=st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    actions=st.lists(
        st.builds(
            Action,
            event=TEXTS,
            sha256=DIGESTS,
            is_delta=st.booleans(),
            disable_backoff=st.booleans(),
            max_failures_per_url=st.none() | COUNTS,
        ),
        max_size=2,
    ).map(tuple),
    is_floor=st.booleans(),
    floor_reason=TEXTS,
    is_target=st.booleans(),
)
CHECK_RESULTS: Final = st.builds(
    UpdateCheckResult,
    status=TEXTS,
    codebases=st.lists(WORDS, max_size=3).map(tuple),
    manifests=st.lists(MANIFESTS, max_size=2).map(tuple),
    poll_interval_s=st.none() | COUNTS,
    reason=TEXTS,
    sentence=TEXTS,
)
RESPONSES: Final = st.builds(
    Response,
    apps=st.lists(
        st.builds(
            AppResponse,
            app_id=TEXTS,
            status=TEXTS,
            ping_ok=st.booleans(),
            update_check=st.none() | CHECK_RESULTS,
            events_ok=st.integers(min_value=0, max_value=3),
        ),
        max_size=3,
    ).map(tuple),
    protocol=TEXTS,
    server=TEXTS,
    elapsed_seconds=COUNTS,
)

SAMPLE_CHECK: Final = b"""<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="bascule-0.1.0" updaterversion="bascule-0.1.0"
         installsource="scheduler" ismachine="1">
  <os platform="Linux" version="bascule" sp="1.0.0_x86_64" arch="x64"/>
  <app appid="{11111111-2222-3333-4444-555555555555}" version="1.0.0" track="stable"
       bootid="{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}" machineid="3d1219c7c4c5404aaa1f6d2a48adfda4"
       machinealias="rack1-node7" oem="qemu" board="amd64-usr" lang="en-US" delta_okay="false">
    <ping active="1"/>
    <updatecheck/>
  </app>
</request>
"""
SAMPLE_ANSWER: Final = b"""<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="nebraska"><daystart elapsed_seconds="0"></daystart>
 <app appid="11111111-2222-3333-4444-555555555555" status="ok"><ping status="ok"></ping>
  <updatecheck status="ok">
   <urls><url codebase="http://updates.example/pkg/"></url></urls>
   <manifest version="2.0.0">
    <packages>
     <package name="image.bin" hash="wnK2ZZ0ZJsr0p3LvCZ0Ao5bl2i0=" size="1234" required="true">
     </package>
     <package name="tools.raw" hash="aGFzaA=="
      hash_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" size="77"
      required="false"></package>
    </packages>
    <actions><action event="postinstall" sha256="n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="
     DisablePayloadBackoff="true"></action></actions>
   </manifest></updatecheck></app></response>
"""
TEST_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@given(REQUESTS)
def test_a_request_survives_the_wire(request_sent: Request) -> None:
    assert decode_request(encode_request(request_sent)) == request_sent


@given(RESPONSES)
def test_a_response_survives_the_wire(response: Response) -> None:
    assert decode_response(encode_response(response)) == response


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8")))
def test_noise_is_refused_and_never_crashes_the_reader(noise: bytes) -> None:
    for decode in (decode_request, decode_response):
        with pytest.raises(OmahaFormatError):
            decode(noise)


def test_the_sample_check_says_who_asks_and_what_runs() -> None:
    read = decode_request(SAMPLE_CHECK)
    assert read == Request(
        version="bascule-0.1.0",
        updater_version="bascule-0.1.0",
        os=OsInfo(platform="Linux", version="bascule", service_pack="1.0.0_x86_64", arch="x64"),
        apps=(
            AppRequest(
                app_id="{11111111-2222-3333-4444-555555555555}",
                version="1.0.0",
                track="stable",
                boot_id="{0f6e2c52-8f0e-4a51-9f0f-3d3f1d0a8c11}",
                machine_id="3d1219c7c4c5404aaa1f6d2a48adfda4",
                machine_alias="rack1-node7",
                oem="qemu",
                board="amd64-usr",
                language="en-US",
                ping=Ping(active=True),
                update_check=UpdateCheck(),
            ),
        ),
    )


def test_the_sample_answer_is_read_with_both_encodings_of_a_sha256() -> None:
    app = decode_response(SAMPLE_ANSWER).apps[0]
    assert app.update_check is not None
    assert app.ping_ok
    assert app.update_check.codebases == ("http://updates.example/pkg/",)
    manifest = app.update_check.manifests[0]
    assert [package.sha256 for package in manifest.packages] == ["", TEST_SHA256]
    assert [package.size_bytes for package in manifest.packages] == [1234, 77]
    assert manifest.postinstall == Action(sha256=TEST_SHA256, disable_backoff=True)


def test_a_throttled_answer_keeps_its_reason_in_the_app_status() -> None:
    app = decode_response(
        b'<response protocol="3.0"><app appid="x" '
        b'status="error-maxUpdatesPerPeriodLimitReached"><ping status="ok"></ping>'
        b'<updatecheck status="error-internal"><urls></urls></updatecheck></app></response>'
    ).apps[0]
    assert app.status == "error-maxUpdatesPerPeriodLimitReached"
    assert app.update_check == UpdateCheckResult(status="error-internal")


@pytest.mark.parametrize(
    ("attributes", "event"),
    [
        ('eventtype="13" eventresult="1"', Event(type=13, result=1)),
        (
            'eventtype="3" eventresult="2" previousversion="1.0.0"',
            Event(type=3, result=2, previous_version="1.0.0"),
        ),
        (
            'eventtype="3" eventresult="2" previousversion=""',
            Event(type=3, result=2, previous_version=""),
        ),
        (
            'eventtype="3" eventresult="0" errorcode="268435490"',
            Event(type=3, result=0, error_code=268435490),
        ),
        ('eventtype="x" eventresult="" errorcode="1e3"', Event(type=0, result=-1)),
    ],
)
def test_events_are_read_as_engines_send_them(attributes: str, event: Event) -> None:
    document = f'<request protocol="3.0"><app appid="a"><event {attributes}/></app></request>'
    assert decode_request(document.encode()).apps[0].events == (event,)


def test_what_we_write_is_what_a_stock_engine_reads() -> None:
    written = encode_response(
        Response(
            apps=(
                AppResponse(
                    app_id="{a}",
                    ping_ok=True,
                    events_ok=1,
                    update_check=UpdateCheckResult(
                        status="ok",
                        codebases=("http://h/payloads/",),
                        poll_interval_s=2700,
                        manifests=(
                            Manifest(
                                version="2.0.0",
                                packages=(
                                    Package(name="p.crau", size_bytes=9, sha256=TEST_SHA256),
                                ),
                                actions=(Action(sha256=TEST_SHA256, disable_backoff=True),),
                            ),
                        ),
                    ),
                ),
            )
        )
    ).decode()
    encoded = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="
    assert written == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<response protocol="3.0" server="bascule"><daystart elapsed_seconds="0" />'
        '<app appid="{a}" status="ok"><ping status="ok" />'
        '<updatecheck status="ok" PollInterval="2700">'
        '<urls><url codebase="http://h/payloads/" /></urls>'
        '<manifest version="2.0.0"><packages>'
        f'<package name="p.crau" hash_sha256="{encoded}" size="9" required="true" />'
        "</packages><actions>"
        f'<action event="postinstall" sha256="{encoded}" IsDeltaPayload="false" '
        'DisablePayloadBackoff="true" /></actions></manifest></updatecheck>'
        '<event status="ok" /></app></response>'
    )


def test_quotes_in_an_alias_are_escaped() -> None:
    alias = "\"><img src=x onerror='alert(1)'>&"
    request = Request(apps=(AppRequest(app_id="a", machine_alias=alias),))
    assert decode_request(encode_request(request)).apps[0].machine_alias == alias


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ud800", "\uffff"])
def test_a_character_xml_cannot_carry_is_not_sent(character: str) -> None:
    request = Request(apps=(AppRequest(app_id="a", machine_alias=f"x{character}"),))
    with pytest.raises(OmahaFormatError, match="app@machinealias"):
        encode_request(request)


BOMB: Final = (
    b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><request version="&c;"/>'
)
EXTERNAL: Final = (
    b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><request><app>&x;</app></request>'
)
PARAMETER: Final = b'<!DOCTYPE r [<!ENTITY % p SYSTEM "http://127.0.0.1/x"> %p;]><request/>'
DOCTYPE_ONLY: Final = b"<!DOCTYPE request><request/>"


@pytest.mark.parametrize("attack", [BOMB, EXTERNAL, PARAMETER, DOCTYPE_ONLY])
def test_a_document_type_is_refused_whatever_it_declares(attack: bytes) -> None:
    with pytest.raises(OmahaFormatError, match="not XML we read"):
        decode_request(attack)


@pytest.mark.parametrize(
    "attack",
    [
        '<?xml version="1.0" encoding="UTF-16"?><request/>'.encode("utf-16"),
        "<request/>".encode("utf-16-le"),
        '<?xml version="1.0" encoding="UTF-7"?><request a="é"/>'.encode("latin-1"),
        "<request/>".encode("utf-32"),
        b"+ADw-request/+AD4-",
    ],
)
def test_only_utf_8_is_read(attack: bytes) -> None:
    with pytest.raises(OmahaFormatError):
        decode_request(attack)


def test_a_message_nested_too_deep_is_refused() -> None:
    inner = b"<a>" * DEPTH_MAX + b"</a>" * DEPTH_MAX
    with pytest.raises(OmahaFormatError, match=f"deeper than {DEPTH_MAX}"):
        decode_request(b"<request>" + inner + b"</request>")


def test_a_message_with_too_many_elements_is_refused() -> None:
    with pytest.raises(OmahaFormatError, match=f"more than {ELEMENTS_MAX}"):
        decode_request(b"<request>" + b"<app/>" * ELEMENTS_MAX + b"</request>")


def test_an_attribute_that_is_too_long_is_refused() -> None:
    long = b"x" * (ATTRIBUTE_MAX_CHARS + 1)
    with pytest.raises(OmahaFormatError, match=str(ATTRIBUTE_MAX_CHARS + 1)):
        decode_request(b'<request version="' + long + b'"/>')


def test_size_is_checked_before_the_parser_sees_a_byte() -> None:
    with pytest.raises(OmahaFormatError, match=f"{REQUEST_MAX_BYTES + 1} bytes"):
        decode_request(b"<" * (REQUEST_MAX_BYTES + 1))
    with pytest.raises(OmahaFormatError, match=f"{RESPONSE_MAX_BYTES + 1} bytes"):
        decode_response(b"<" * (RESPONSE_MAX_BYTES + 1))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b'<?xml version="1.0" encoding="UTF-8"?>\n',
        b"<!doctype html><html><body>Please log in</body></html>",
        b"<html><body>502 Bad Gateway</body></html>",
        b"<response>",
    ],
)
def test_what_is_no_answer_is_an_error_with_a_code(answer: bytes) -> None:
    with pytest.raises(OmahaFormatError) as caught:
        decode_response(answer)
    assert caught.value.code == "omaha-format"
    assert caught.value.exit_status == 6


def test_unknown_elements_and_attributes_are_skipped() -> None:
    read = decode_request(
        b'<request protocol="3.0" future="1"><hw/><app appid="a" x="y"><data/></app></request>'
    )
    assert read.apps == (AppRequest(app_id="a"),)


@pytest.mark.parametrize("size", ["-1", "1e9", "0x10", "", "99999999999999999999", "١"])  # noqa: RUF001 - an Arabic digit is a digit to int()
def test_a_size_that_is_no_number_reads_as_zero(size: str) -> None:
    answer = (
        f'<response><app appid="a"><updatecheck status="ok"><manifest version="1"><packages>'
        f'<package name="p" size="{size}"/></packages></manifest></updatecheck></app></response>'
    )
    check = decode_response(answer.encode()).apps[0].update_check
    assert check is not None
    assert check.manifests[0].packages[0].size_bytes == 0
