"""Codes that operators grep for, and imports that an idle node can afford."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from updater.errors import RefusedError, UnreachableError
from updater.trust import errors
from updater.trust.errors import NothingNewerError, TrustError


def below(kind: type[TrustError]) -> list[type[TrustError]]:
    children = kind.__subclasses__()
    return children + [leaf for child in children for leaf in below(child)]


LEAVES = [
    kind
    for kind in below(TrustError)
    if "code" in vars(kind) and kind.__module__ == errors.__name__
]


def test_each_refusal_has_a_code_of_its_own() -> None:
    codes = [leaf.code for leaf in LEAVES]
    assert len(codes) == len(set(codes)) > 30


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_each_refusal_has_a_code_a_hint_and_an_exit_status(leaf: type[TrustError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", leaf.code)
    assert leaf.hint.endswith(".")
    expected: dict[type, int] = {RefusedError: 3, UnreachableError: 6, NothingNewerError: 4}
    assert leaf.exit_status in {
        status for family, status in expected.items() if issubclass(leaf, family)
    }


def test_the_tree_in_the_docstring_names_each_leaf() -> None:
    assert errors.__doc__ is not None
    assert {leaf.__name__ for leaf in LEAVES} <= set(re.findall(r"\w+", errors.__doc__))


@pytest.mark.parametrize(
    "module", ["errors", "floors", "holdback", "limits", "policy", "store", "suitable", "view"]
)
def test_what_an_idle_node_needs_loads_neither_tuf_nor_requests(module: str) -> None:
    code = (
        f"import sys, updater.trust.{module};"
        "print(sorted({'tuf', 'requests', 'urllib3', 'cryptography'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
