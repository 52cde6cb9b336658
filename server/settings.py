"""server.toml: what an operator decides about a desk. Read, checked, frozen."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from images.release import NAME_PATTERN
from server.deltas import DELTAS_MAX
from server.errors import DeskMissingError, DeskSettingsError

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "server.toml"
SETTINGS_MAX_BYTES: Final = 64 * 1024  # a person writes a dozen lines

HttpUrl = Annotated[str, msgspec.Meta(max_length=512, pattern=r"^(https?://[^\s@?#]+)?\Z")]
Name = Annotated[str, msgspec.Meta(pattern=rf"^{NAME_PATTERN}\Z")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of server.toml; server/README.md describes each.

    Attributes:
        public_url: how nodes reach this server; empty for the address it listens on.
        product: the product that commands mean when none is given.
        board: the board that commands mean when none is given.
        payload_keys: public keys of payload signatures, relative to the desk's folder.
        deltas_from: from how many last releases of each channel `release add` makes deltas, when
            it is not told.
        poll_interval_secs: what nodes are told to wait between checks, unless a group says else;
            0 tells them nothing. It can only slow a node down.
        grant_timeout_secs: a grant without a sign of progress for so long frees its place.
        events_kept: how many events stay in the database.
        nodes_kept_days: a node that was silent for longer is forgotten.
        nodes_max: how many nodes are remembered; more are refused, so that a flood of made-up
            identities cannot fill the disk.
    """

    public_url: HttpUrl = ""
    product: Name = "bascule"
    board: Name = "generic"
    payload_keys: list[str] = []
    deltas_from: Annotated[int, msgspec.Meta(ge=0, le=DELTAS_MAX)] = 0
    poll_interval_secs: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 0
    grant_timeout_secs: Annotated[int, msgspec.Meta(ge=1, le=30 * 86400)] = 3600  # 1 hour
    events_kept: Annotated[int, msgspec.Meta(ge=100, le=10_000_000)] = 100_000
    nodes_kept_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 180
    nodes_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 1_000_000


def load_settings(folder: Path) -> Settings:
    """Return the settings of the desk in `folder`.

    Raises:
        DeskMissingError: there is no server.toml.
        DeskSettingsError: it is unreadable, not TOML, or breaks the schema.
    """
    file = folder / FILE_NAME
    try:
        with file.open("rb") as stream:
            data = stream.read(SETTINGS_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise DeskMissingError(f"{folder} is no release desk: it has no {FILE_NAME}") from None
    except OSError as error:
        raise DeskSettingsError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > SETTINGS_MAX_BYTES:
        raise DeskSettingsError(f"{file} is larger than {SETTINGS_MAX_BYTES} bytes")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), Settings)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeskSettingsError(f"{file} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise DeskSettingsError(f"{file}: {error}") from error


def checked_settings(*, product: str, board: str, public_url: str) -> Settings:
    """Return the settings of a new desk.

    Raises:
        DeskSettingsError: a value has a wrong shape.
    """
    values = {"product": product, "board": board, "public_url": public_url}
    try:
        return msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise DeskSettingsError(f"{error}") from error


def encode_settings(settings: Settings) -> bytes:
    """Return server.toml with every key, as `init` writes it."""
    lines = ["# Every key is described in server/README.md. Restart `serve` after a change."]
    for name, value in msgspec.structs.asdict(settings).items():
        lines.append(f"{name} = {msgspec.json.encode(value).decode()}")  # also TOML for these kinds
    return ("\n".join(lines) + "\n").encode()
