"""Omaha v3 messages to XML and back: liberal in what is read, exact in what is written.

Unknown elements and attributes are skipped; a number that is none becomes the field's default.
Only what is no Omaha message at all is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from updater.omaha.elements import OmahaFormatError, document, parse
from updater.omaha.request_xml import read_request, write_request
from updater.omaha.response_xml import read_response, write_response

if TYPE_CHECKING:
    from updater.omaha.messages import Request, Response

__all__ = [
    "REQUEST_MAX_BYTES",
    "RESPONSE_MAX_BYTES",
    "OmahaFormatError",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

REQUEST_MAX_BYTES: Final = 64 * 1024  # as Nebraska; a real request has under 2 KiB
RESPONSE_MAX_BYTES: Final = 256 * 1024  # a real answer has under 4 KiB


def encode_request(request: Request) -> bytes:
    """Return `request` as UTF-8 XML with a declaration.

    Raises:
        OmahaFormatError: a text holds a character XML cannot carry.
    """
    return document(write_request(request))


def decode_request(data: bytes) -> Request:
    """Return what a client sent.

    Raises:
        OmahaFormatError: too large, too deep, not XML, a DTD, or no `request` element.
    """
    return read_request(parse(data, max_bytes=REQUEST_MAX_BYTES, root_name="request"))


def encode_response(response: Response) -> bytes:
    """Return `response` as UTF-8 XML with a declaration.

    Raises:
        OmahaFormatError: a text holds a character XML cannot carry.
    """
    return document(write_response(response))


def decode_response(data: bytes) -> Response:
    """Return what a server answered.

    Raises:
        OmahaFormatError: too large, too deep, not XML (a proxy's HTML page, an empty body), a
            DTD, or no `response` element.
    """
    return read_response(parse(data, max_bytes=RESPONSE_MAX_BYTES, root_name="response"))
