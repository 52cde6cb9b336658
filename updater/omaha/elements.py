"""The XML that Omaha messages are made of: bounded reading, exact writing, no expansion.

Knows elements and attributes, not what they mean. What a stranger sent is bounded before and
while it is parsed (bytes, depth, elements, attribute length), never expanded (no DTD, no
entities) and read as UTF-8 whatever it claims to be.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from xml.etree.ElementTree import Element, ParseError, SubElement, TreeBuilder, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from updater.errors import EXIT_CANNOT_TELL, UpdaterError

DEPTH_MAX: Final = 16  # the deepest message of the protocol has 8 levels
ELEMENTS_MAX: Final = 256  # a request with 40 apps, or an answer with 40 manifests
ATTRIBUTE_MAX_CHARS: Final = 4096  # the longest real ones are URLs and an RSA signature
DECLARATION: Final = b'<?xml version="1.0" encoding="UTF-8"?>\n'
NUMBER_MAX: Final = 2**63 - 1  # sizes are signed 64-bit numbers in every known server

_SHA256_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class OmahaFormatError(UpdaterError):
    """What arrived, or what should be sent, is no Omaha v3 message."""

    code = "omaha-format"
    hint = "Something other than an Omaha server may answer at this URL; check the address."
    exit_status = EXIT_CANNOT_TELL


def parse(data: bytes, *, max_bytes: int, root_name: str) -> Element:
    """Return the root element of a stranger's message.

    Raises:
        OmahaFormatError: too large, too deep, too wide, not XML (an HTML page, nothing), a DTD,
            an encoding other than UTF-8, or another root element.
    """
    if len(data) > max_bytes:
        raise OmahaFormatError(f"the message has {len(data)} bytes, at most {max_bytes} are read")
    # The encoding is ours, not the sender's. The parser alone would still believe a byte order
    # mark or guess UTF-16 from NUL bytes, so both are refused before it looks.
    parser = DefusedXMLParser(target=_BoundedBuilder(), encoding="utf-8", forbid_dtd=True)
    try:
        if "\0" in data.decode("utf-8"):
            raise OmahaFormatError("the message holds a NUL byte")
        parser.feed(data)
        root: Element = parser.close()
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise OmahaFormatError(f"the message is not XML we read: {error}") from error
    if root.tag != root_name:
        raise OmahaFormatError(f"the message has the root element {root.tag!a}, not {root_name}")
    return root


def element(name: str, attributes: dict[str, str | None]) -> Element:
    """Return a new root element; attributes that are None are left out.

    Raises:
        OmahaFormatError: a value holds a character XML cannot carry.
    """
    return Element(name, _carried(name, attributes))


def child(parent: Element, name: str, attributes: dict[str, str | None]) -> Element:
    """Append an element to `parent` and return it; as `element` otherwise.

    Raises:
        OmahaFormatError: a value holds a character XML cannot carry.
    """
    return SubElement(parent, name, _carried(name, attributes))


def document(root: Element) -> bytes:
    """Return the message as UTF-8, with the declaration that all other programs send."""
    data: bytes = tostring(root, encoding="utf-8")
    return DECLARATION + data


def read_number(text: str | None) -> int | None:
    """Return a signed 64-bit number, or None when `text` is none."""
    if text is None or _NUMBER.fullmatch(text) is None:
        return None
    number = int(text)
    return number if abs(number) <= NUMBER_MAX else None


def read_count(text: str | None) -> int | None:
    """Return a number that is not negative, or None when `text` is none."""
    number = read_number(text)
    return None if number is None or number < 0 else number


def read_sha256(text: str) -> str:
    """Return hex of a SHA-256 in either encoding in the wild; empty when it is neither."""
    text = text.strip()  # some servers send what a person typed into a form
    if _SHA256_HEX.fullmatch(text.lower()):
        return text.lower()
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 32 else ""


def write_sha256(sha256: str) -> str | None:
    """Return base64 of a digest in hex; None, so left out, when it is empty."""
    return base64.b64encode(bytes.fromhex(sha256)).decode("ascii") or None


def write_digit(*, value: bool) -> str:
    """Return Omaha's boolean of `ismachine` and `active`."""
    return "1" if value else "0"


def write_boolean(*, value: bool) -> str:
    """Return Omaha's boolean of all other attributes."""
    return "true" if value else "false"


def _carried(name: str, attributes: dict[str, str | None]) -> dict[str, str]:
    kept = {key: value for key, value in attributes.items() if value is not None}
    for key, value in kept.items():
        if _NOT_XML.search(value):
            raise OmahaFormatError(f"{name}@{key} holds a character XML cannot carry: {value!a}")
    return kept


class _BoundedBuilder:
    """Builds the tree and gives up at the first thing that is too much."""

    def __init__(self) -> None:
        self._builder = TreeBuilder()
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > DEPTH_MAX:
            raise OmahaFormatError(f"the message is nested deeper than {DEPTH_MAX} elements")
        if self._elements > ELEMENTS_MAX:
            raise OmahaFormatError(f"the message has more than {ELEMENTS_MAX} elements")
        longest = max(map(len, attributes.values()), default=0)
        if longest > ATTRIBUTE_MAX_CHARS:
            raise OmahaFormatError(
                f"an attribute has {longest} characters, at most {ATTRIBUTE_MAX_CHARS} are read"
            )
        self._builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._builder.end(tag)

    def data(self, data: str) -> None:
        self._builder.data(data)

    def close(self) -> Element:
        return self._builder.close()
