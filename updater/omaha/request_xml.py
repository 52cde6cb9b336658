"""Omaha requests as XML elements. Which fields there are: `messages`; bounds: `elements`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from updater.omaha.elements import child, element, read_number, write_boolean, write_digit
from updater.omaha.messages import AppRequest, Event, OsInfo, Ping, Request, UpdateCheck

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

RESULT_UNREADABLE: Final = -1  # not 0, which would report a failure nobody reported


def write_request(request: Request) -> Element:
    """Return the `request` element.

    Raises:
        OmahaFormatError: a text holds a character XML cannot carry.
    """
    root = element(
        "request",
        {
            "protocol": request.protocol,
            "version": request.version,
            "updaterversion": request.updater_version,
            "installsource": request.install_source,
            "ismachine": write_digit(value=request.is_machine),
            "sessionid": request.session_id or None,
            "requestid": request.request_id or None,
        },
    )
    os = request.os
    child(
        root,
        "os",
        {
            "platform": os.platform,
            "version": os.version,
            "sp": os.service_pack,
            "arch": os.arch or None,
        },
    )
    for app in request.apps:
        _write_app_request(root, app)
    return root


def read_request(root: Element) -> Request:
    """Return what a client said; whatever is missing or odd becomes the default."""
    os = root.find("os")
    return Request(
        protocol=root.get("protocol", ""),
        version=root.get("version", ""),
        updater_version=root.get("updaterversion", ""),
        install_source=root.get("installsource", ""),
        is_machine=root.get("ismachine") == "1",
        session_id=root.get("sessionid", ""),
        request_id=root.get("requestid", ""),
        os=OsInfo() if os is None else _read_os(os),
        apps=tuple(_read_app_request(app) for app in root.findall("app")),
    )


def _write_app_request(parent: Element, app: AppRequest) -> None:
    node = child(
        parent,
        "app",
        {
            "appid": app.app_id,
            "version": app.version,
            "track": app.track,
            "bootid": app.boot_id,
            "machineid": app.machine_id,
            "machinealias": app.machine_alias,
            "oem": app.oem,
            "oemversion": app.oem_version,
            "alephversion": app.aleph_version,
            "board": app.board,
            "lang": app.language,
            "delta_okay": write_boolean(value=app.delta_okay),
            "multi_manifest_ok": "true" if app.multi_manifest_ok else None,
            "bascule_state": app.state or None,
            "bascule_slot": app.slot or None,
        },
    )
    if app.ping is not None:
        child(node, "ping", {"active": write_digit(value=app.ping.active)})
    if app.update_check is not None:
        prefix = app.update_check.target_version_prefix
        child(node, "updatecheck", {"targetversionprefix": prefix or None})
    for event in app.events:
        child(
            node,
            "event",
            {
                "eventtype": str(int(event.type)),
                "eventresult": str(int(event.result)),
                "errorcode": None if event.error_code is None else str(int(event.error_code)),
                "previousversion": event.previous_version,
                "nextversion": event.next_version,
                "bascule_code": event.bascule_code or None,
                "bascule_sentence": event.bascule_sentence or None,
            },
        )


def _read_os(node: Element) -> OsInfo:
    return OsInfo(
        platform=node.get("platform", ""),
        version=node.get("version", ""),
        service_pack=node.get("sp", ""),
        arch=node.get("arch", ""),
    )


def _read_app_request(node: Element) -> AppRequest:
    ping = node.find("ping")
    check = node.find("updatecheck")
    return AppRequest(
        app_id=node.get("appid", ""),
        version=node.get("version", ""),
        track=node.get("track", ""),
        boot_id=node.get("bootid", ""),
        machine_id=node.get("machineid", ""),
        machine_alias=node.get("machinealias", ""),
        oem=node.get("oem", ""),
        oem_version=node.get("oemversion", ""),
        aleph_version=node.get("alephversion", ""),
        board=node.get("board", ""),
        language=node.get("lang", ""),
        delta_okay=node.get("delta_okay") == "true",
        multi_manifest_ok=node.get("multi_manifest_ok") == "true",
        state=node.get("bascule_state", ""),
        slot=node.get("bascule_slot", ""),
        ping=None if ping is None else Ping(active=ping.get("active") == "1"),
        update_check=None if check is None else _read_check(check),
        events=tuple(_read_event(event) for event in node.findall("event")),
    )


def _read_check(node: Element) -> UpdateCheck:
    return UpdateCheck(target_version_prefix=node.get("targetversionprefix", ""))


def _read_event(node: Element) -> Event:
    result = read_number(node.get("eventresult"))
    return Event(
        type=read_number(node.get("eventtype")) or 0,
        result=RESULT_UNREADABLE if result is None else result,
        error_code=read_number(node.get("errorcode")),
        previous_version=node.get("previousversion"),
        next_version=node.get("nextversion"),
        bascule_code=node.get("bascule_code", ""),
        bascule_sentence=node.get("bascule_sentence", ""),
    )
