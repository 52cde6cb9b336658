"""The room's specification names what the room has."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import server
from server import choice, errors, rollout
from server.settings import Settings
from updater.omaha.codes import BLAMELESS_TRIALS

README = (Path(server.__file__).parent / "README.md").read_text()


def leaves(kind: type[errors.ServerError]) -> list[type[errors.ServerError]]:
    found = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return found or [kind]


@pytest.mark.parametrize("kind", leaves(errors.ServerError), ids=lambda kind: str(kind.code))
def test_every_error_stands_in_the_table_with_its_exit_status(
    kind: type[errors.ServerError],
) -> None:
    assert f"| `{kind.code}` | {kind.exit_status} |" in README


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_stands_in_the_table_with_its_default(name: str) -> None:
    default = getattr(Settings(), name)
    shown = "empty" if default == "" else re.escape(msgspec.json.encode(default).decode())
    assert re.search(rf"\| `{name}` \| `?{shown.strip(chr(34))}`? \|", README)


def test_every_reason_to_wait_stands_in_the_table() -> None:
    reasons = {
        value
        for module in (rollout, choice)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    assert len(reasons) == 12
    for reason in reasons:
        assert f"| `{reason}` |" in README


def test_every_trial_that_stops_nothing_is_documented() -> None:
    operators = (Path(server.__file__).parents[1] / "docs/running-a-server.md").read_text()
    for code in BLAMELESS_TRIALS:
        assert f"`{code}`" in README
        assert f"| `{code}`" in operators
