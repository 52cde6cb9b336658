"""Versions of releases and how they are ordered. No policy: who may go where is the node's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from typing_extensions import override

from images.errors import VersionInvalidError

VERSION_MAX_CHARACTERS: Final = 64  # it becomes part of file names, paths and tables
VERSION_PATTERN: Final = (
    r"[0-9]+(?:\.[0-9]+){0,5}"  # the core: 1 to 6 numbers
    r"(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"  # what comes before the release
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"  # the build, which orders nothing
)

_SHAPE: Final = re.compile(VERSION_PATTERN, re.ASCII)
_Identifier = tuple[int, int, str]  # (0, number, "") sorts before (1, 0, word): semver 11.4
_Key = tuple[tuple[int, ...], bool, tuple[_Identifier, ...]]


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version that has a place among all others; make it with `parse_version`.

    The core numbers are compared one by one, missing ones count as 0 (1.2 equals 1.2.0, and
    24.04 equals 24.4); `1.2.3-rc.1` comes before `1.2.3`, its identifiers are ordered as in
    semantic versioning; what follows a `+` is kept in the text and orders nothing.

    Attributes:
        key: what alone orders, equals and hashes it.
        text: the version as it was written.
    """

    key: _Key = field(repr=False)
    text: str = field(compare=False)

    @override
    def __str__(self) -> str:
        return self.text


def parse_version(text: str) -> Version:
    """Return the version that `text` spells.

    Raises:
        VersionInvalidError: it is longer than 64 characters or not of the shape
            `1.2.3[-pre.release][+build]` with 1 to 6 numbers.
    """
    if len(text) > VERSION_MAX_CHARACTERS:
        raise VersionInvalidError(
            f"a version has {len(text)} characters, at most {VERSION_MAX_CHARACTERS} are allowed"
        )
    if _SHAPE.fullmatch(text) is None:
        raise VersionInvalidError(f"{text!r} is not a version")
    return Version(_key(text), text)


def _key(text: str) -> _Key:
    """Return what orders a version; a release sorts after its pre-releases."""
    core, _, pre = text.partition("+")[0].partition("-")
    numbers = [int(part) for part in core.split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    identifiers = tuple(_identifier(part) for part in pre.split(".")) if pre else ()
    return tuple(numbers), not pre, identifiers


def _identifier(part: str) -> _Identifier:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)
