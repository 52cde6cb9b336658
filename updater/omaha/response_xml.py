"""Omaha responses as XML elements. Which fields there are: `messages`; bounds: `elements`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater.omaha.elements import (
    child,
    element,
    read_count,
    read_number,
    read_sha256,
    write_boolean,
    write_sha256,
)
from updater.omaha.messages import (
    Action,
    AppResponse,
    Manifest,
    Package,
    Response,
    UpdateCheckResult,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from xml.etree.ElementTree import Element


def write_response(response: Response) -> Element:
    """Return the `response` element.

    Raises:
        OmahaFormatError: a text holds a character XML cannot carry.
    """
    root = element("response", {"protocol": response.protocol, "server": response.server})
    child(root, "daystart", {"elapsed_seconds": str(response.elapsed_seconds)})
    for app in response.apps:
        node = child(root, "app", {"appid": app.app_id, "status": app.status})
        if app.ping_ok:
            child(node, "ping", {"status": "ok"})
        if app.update_check is not None:
            _write_check_result(node, app.update_check)
        for _ in range(app.events_ok):
            child(node, "event", {"status": "ok"})
    return root


def read_response(root: Element) -> Response:
    """Return what a server answered; whatever is missing or odd becomes the default."""
    day = root.find("daystart")
    return Response(
        protocol=root.get("protocol", ""),
        server=root.get("server", ""),
        elapsed_seconds=0 if day is None else read_number(day.get("elapsed_seconds")) or 0,
        apps=tuple(_read_app_response(app) for app in root.findall("app")),
    )


def _write_check_result(parent: Element, check: UpdateCheckResult) -> None:
    interval = check.poll_interval_s
    node = child(
        parent,
        "updatecheck",
        {
            "status": check.status,
            "PollInterval": None if interval is None else str(interval),
            "bascule_reason": check.reason or None,
            "bascule_sentence": check.sentence or None,
        },
    )
    urls = child(node, "urls", {})
    for codebase in check.codebases:
        child(urls, "url", {"codebase": codebase})
    for manifest in check.manifests:
        _write_manifest(node, manifest)


def _write_manifest(parent: Element, manifest: Manifest) -> None:
    node = child(
        parent,
        "manifest",
        {
            "version": manifest.version,
            "is_floor": "true" if manifest.is_floor else None,
            "floor_reason": manifest.floor_reason or None,
            "is_target": "true" if manifest.is_target else None,
        },
    )
    packages = child(node, "packages", {})
    for package in manifest.packages:
        child(
            packages,
            "package",
            {
                "name": package.name,
                "hash": package.sha1 or None,
                "hash_sha256": write_sha256(package.sha256),
                "size": str(package.size_bytes),
                "required": write_boolean(value=package.required),
            },
        )
    actions = child(node, "actions", {})
    for action in manifest.actions:
        failures = action.max_failures_per_url
        child(
            actions,
            "action",
            {
                "event": action.event,
                "sha256": write_sha256(action.sha256),
                "IsDeltaPayload": write_boolean(value=action.is_delta),
                "DisablePayloadBackoff": write_boolean(value=action.disable_backoff),
                "MaxFailureCountPerUrl": None if failures is None else str(failures),
            },
        )


def _read_app_response(node: Element) -> AppResponse:
    check = node.find("updatecheck")
    ping = node.find("ping")
    return AppResponse(
        app_id=node.get("appid", ""),
        status=node.get("status", ""),
        ping_ok=ping is not None and ping.get("status") == "ok",
        update_check=None if check is None else _read_check_result(check),
        events_ok=sum(event.get("status") == "ok" for event in node.findall("event")),
    )


def _read_check_result(node: Element) -> UpdateCheckResult:
    return UpdateCheckResult(
        status=node.get("status", ""),
        codebases=tuple(_texts(node.findall("urls/url"), "codebase")),
        manifests=tuple(_read_manifest(manifest) for manifest in node.findall("manifest")),
        poll_interval_s=read_count(node.get("PollInterval")),
        reason=node.get("bascule_reason", ""),
        sentence=node.get("bascule_sentence", ""),
    )


def _read_manifest(node: Element) -> Manifest:
    return Manifest(
        version=node.get("version", ""),
        packages=tuple(_read_package(package) for package in node.findall("packages/package")),
        actions=tuple(_read_action(action) for action in node.findall("actions/action")),
        is_floor=node.get("is_floor") == "true",
        floor_reason=node.get("floor_reason", ""),
        is_target=node.get("is_target") == "true",
    )


def _read_package(node: Element) -> Package:
    return Package(
        name=node.get("name", ""),
        size_bytes=read_count(node.get("size")) or 0,
        sha1=node.get("hash", ""),
        sha256=read_sha256(node.get("hash_sha256", "")),
        required=node.get("required") == "true",
    )


def _read_action(node: Element) -> Action:
    return Action(
        event=node.get("event", ""),
        sha256=read_sha256(node.get("sha256", "")),
        is_delta="true" in {node.get("IsDeltaPayload"), node.get("IsDelta")},  # old servers: latter
        disable_backoff=node.get("DisablePayloadBackoff") == "true",
        max_failures_per_url=read_count(node.get("MaxFailureCountPerUrl")),
    )


def _texts(nodes: Iterable[Element], attribute: str) -> Iterable[str]:
    return (text for node in nodes if (text := node.get(attribute)))
