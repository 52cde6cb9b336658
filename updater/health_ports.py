"""Whether something listens: an address of the settings, and one connection to it.

An address is `127.0.0.1:22`, `[::1]:80` or `unix:/run/x.sock`. No names: looking one up can take
longer than any limit of ours, and says nothing about this machine's health.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_INTERNET: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>\d+)\Z")
_UNIX: Final = re.compile(r"unix:(?P<path>/[^\n]+)\Z")
PORT_MAX: Final = 65535
UNIX_PATH_MAX_BYTES: Final = 107  # sun_path of unix(7), without its end


class AddressError(ValueError):
    """A text is no address that can be connected to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where something should listen.

    Attributes:
        family: AF_INET, AF_INET6 or AF_UNIX.
        host: the address, or the path of a Unix socket.
        port: 0 for a Unix socket.
    """

    family: socket.AddressFamily
    host: str
    port: int = 0

    @property
    def target(self) -> tuple[str, int] | str:
        """What `connect` takes."""
        return self.host if self.family is socket.AF_UNIX else (self.host, self.port)


def read_address(text: str) -> Address:
    """Return the address that a setting names.

    Raises:
        AddressError: it names none.
    """
    if unix := _UNIX.match(text):
        if len(unix["path"].encode()) > UNIX_PATH_MAX_BYTES:
            raise AddressError(f"the path is longer than {UNIX_PATH_MAX_BYTES} bytes")
        return Address(family=socket.AF_UNIX, host=str(Path(unix["path"])))
    found = _INTERNET.match(text)
    if found is None:
        raise AddressError("it must be 127.0.0.1:22, [::1]:80 or unix:/run/x.sock")
    host, port = found["six"] or found["four"], int(found["port"])
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise AddressError(str(error)) from error
    if (address.version == 6) != bool(found["six"]):  # [1.2.3.4]:80
        raise AddressError("brackets are for IPv6 addresses")
    if not 1 <= port <= PORT_MAX:
        raise AddressError(f"port {port} is not in 1 to {PORT_MAX}")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    return Address(family=family, host=str(address), port=port)


def why_closed(address: Address, *, timeout_secs: float) -> str:
    """Connect once and hang up; returns why that was not possible, empty when it was."""
    try:
        with socket.socket(address.family, socket.SOCK_STREAM) as end:
            end.settimeout(timeout_secs)
            end.connect(address.target)
    except TimeoutError:
        return f"does not accept a connection within {timeout_secs:g} s"
    except PermissionError:
        # The service is root without CAP_DAC_OVERRIDE, so modes count for it, too.
        return "accepts no connection: the service may not connect to it; look at its mode"
    except OSError as error:
        return f"accepts no connection: {error.strerror or error}"
    return ""
