"""What the etcd keeper must be told, checked once. Reads no file; wire.py opens them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from updater.permit.document import ID_RULE, checked_max
from updater.permit.errors import PermitInsecureError, PermitSettingsError

_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """Where the permits of a group are kept and how this node shows who it is.

    Attributes:
        endpoints: base URLs of the members, tried in this order; https, or http to loopback.
        group: nodes that share permits.
        initial_max: places of a group that does not exist yet; afterwards the document rules,
            and this number is never looked at again.
        ca_file: PEM bundle that must have signed the members; None: the usual authorities.
        cert_file: PEM certificate of this node, with `key_file`.
        key_file: its PEM key, not encrypted.
        username: etcd user, with `password_file`.
        password_file: first line is the password; read at every login.
        insecure: allow plain HTTP over a network.

    Raises:
        PermitSettingsError: no endpoint, a malformed one, half a pair, a bad group name.
        PermitMaxError: `initial_max` is no number of places.
        PermitInsecureError: http to another machine and not `insecure`.
    """

    endpoints: tuple[str, ...]
    group: str = "default"
    initial_max: int = 1
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, before the first packet."""
        if not self.endpoints:
            raise PermitSettingsError("permit.endpoints is empty: no etcd to ask")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint, insecure=self.insecure)
        if not _GROUP.fullmatch(self.group):
            raise PermitSettingsError(f"permit.group {self.group!r} must be {ID_RULE}")
        checked_max(self.initial_max)
        _check_pair("cert_file", self.cert_file, "key_file", self.key_file)
        _check_pair("username", self.username or None, "password_file", self.password_file)


def _check_pair(name: str, one: object, other_name: str, other: object) -> None:
    if (one is None) != (other is None):
        raise PermitSettingsError(f"permit.{name} and permit.{other_name} go together: set both")


def _check_endpoint(endpoint: str, *, insecure: bool) -> None:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise PermitSettingsError(f"permit.endpoints: {endpoint!r} is no URL: {error}") from error
    plain = parts.username is None and parts.path in {"", "/"} and not parts.query + parts.fragment
    if parts.scheme not in {"http", "https"} or not host or not plain or port == 0:
        raise PermitSettingsError(
            f"permit.endpoints: {endpoint!r} must be https://HOST:PORT and no more"
        )
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        raise PermitInsecureError(f"{endpoint} is plain HTTP to another machine")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
