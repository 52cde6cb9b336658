"""docs/d-bus.md says what is exported, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from updater.bus import compatible, door
from updater.bus.library import Arguments
from updater.bus.view import PROPERTIES
from updater.lifecycle import COMPATIBLE_NAMES, State
from updater.verbs import VERBS

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/d-bus.md").read_text()
OWN, _, COMPATIBLE = TEXT.partition("\n## `com.coreos.update1`")


def table(text: str, heading: str) -> dict[str, list[str]]:
    """Return the rows below a table's head: first cell without its marks, then the others."""
    found = re.search(rf"\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    assert found, f"no table {heading!r}"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells}


def written(arguments: Arguments) -> str:
    return ", ".join(f"`{signature}` {name}" for name, signature in arguments.items())


def test_every_method_is_documented_with_its_arguments_and_right() -> None:
    rows = {name: row[:3] for name, row in table(OWN, "method").items()}
    expected = {
        member: [
            written(takes),
            "`u` job" if VERBS[verb].heavy else "`s` facts",
            VERBS[verb].right,
        ]
        for member, verb, takes in door.METHODS
    }
    perform = ["`s` verb, `s` options, `b` interactive", "`u` job, `s` reply", "the verb's"]
    assert rows == expected | {"Perform": perform}


def test_every_verb_is_a_method() -> None:
    assert {verb for _, verb, _ in door.METHODS} == set(VERBS)


def test_every_signal_is_documented() -> None:
    rows = {name: row[0] for name, row in table(OWN, "signal").items()}
    assert rows == {name: written(arguments) for name, arguments in door.SIGNALS.items()}


def test_every_property_is_documented_with_its_type() -> None:
    rows = {name: row[0].strip("`") for name, row in table(OWN, "property").items()}
    assert rows == PROPERTIES


def test_the_compatible_interface_is_documented() -> None:
    rows = {name: row[:2] for name, row in table(COMPATIBLE, "method").items()}
    assert rows == {
        "AttemptUpdate": ["", ""],
        "ResetStatus": ["", ""],
        "GetStatus": ["", written(compatible.STATUS)],
    }
    assert table(COMPATIBLE, "signal")[compatible.SIGNAL][0] == written(compatible.STATUS)


def test_every_state_has_its_compatible_name_in_the_docs() -> None:
    rows = table(COMPATIBLE, "state")
    told = {state: row[0].strip("`") for names, row in rows.items() for state in names.split(", ")}
    assert told == {state.value: COMPATIBLE_NAMES[state] for state in State}


@pytest.mark.parametrize("right", sorted({verb.right for verb in VERBS.values()} - {"read"}))
def test_every_right_is_a_polkit_action_and_documented(right: str) -> None:
    policy = ROOT / "updater/system/usr/share/polkit-1/actions/org.bascule.policy"
    actions = [a.get("id") for a in ElementTree.parse(policy).getroot().iter("action")]
    assert f"org.bascule.{right}" in actions
    assert f"org.bascule.{right}" in table(OWN, "action")
