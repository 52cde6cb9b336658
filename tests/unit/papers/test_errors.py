"""docs/errors.md: complete, up to date, and no code means two things."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from docs.papers import errors
from server import rollout
from updater import hints
from updater.conditions import CONDITIONS, GATES, PERMITS, SERVERS, STEPS
from updater.errors import EXIT_STOPPED
from updater.permit.contract import WaitReason

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = ROOT / "docs/errors.md"
KEBAB: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

# One fault, noticed in two rooms, with one thing to do about it.
SHARED: Final = {"readback-mismatch"}
# What gives verdicts and waits, by calls that name a code.
DECIDING: Final = (
    *("agent", "engine", "recovery", "rebooting", "checking", "why", "inhibitors"),
    *(f"gates.{path.stem}" for path in sorted((ROOT / "updater/gates").glob("[a-z]*.py"))),
)


def all_rows() -> list[errors.Row]:
    return [row for room in errors.ROOMS for row in errors.rows(room)]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == errors.page(), "make papers"


def test_every_error_that_can_be_raised_has_a_meaning_and_says_what_to_do() -> None:
    for row in all_rows():
        assert KEBAB.fullmatch(row.code), row
        assert row.meaning.endswith("."), row
        assert len(row.to_do.split()) > 1, row
        assert row.exit_status in {*range(1, 7), EXIT_STOPPED}, row


def test_every_error_class_is_found() -> None:
    """Each class of the four families that a file defines is on the page, or has no code."""
    kinds = {row.kind.__qualname__ for row in all_rows()}
    defined = set()
    for room in errors.ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(each, ast.Assign)
                    and isinstance(each.targets[0], ast.Name)
                    and each.targets[0].id == "code"
                    for each in node.body
                ):
                    defined.add(node.name)
    assert defined <= kinds
    assert len(defined) > 100


def test_no_code_has_two_meanings() -> None:
    owners: dict[str, list[type[Exception]]] = defaultdict(list)
    for row in all_rows():
        owners[row.code].append(row.kind)
    twice = {
        code
        for code, kinds in owners.items()
        if not any(all(issubclass(kind, parent) for kind in kinds) for parent in kinds)
    }
    assert twice == SHARED


def _literals(module: str) -> Iterator[str]:
    """Yield what a module says as a code: `code=…`, and what `why` calls its rows and steps."""
    names = vars(importlib.import_module(f"updater.{module}"))
    path = ROOT / "updater" / f"{module.replace('.', '/')}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        place = {"_row": 1, "_step": 0}.get(name)
        named += [node.args[place]] if place is not None and len(node.args) > place else []
        for value in named:
            if isinstance(value, ast.Constant) and value.value:
                yield str(value.value)
            elif isinstance(value, ast.Name) and isinstance(names.get(value.id), str):
                yield str(names[value.id])


@pytest.mark.parametrize("module", DECIDING)
def test_every_wait_and_verdict_is_in_the_table(module: str) -> None:
    known = CONDITIONS.keys() | errors.ANSWERS.keys() | {row.code for row in all_rows()}
    assert set(_literals(module)) <= known, "name it in updater/conditions.py"


def test_the_scan_finds_codes() -> None:
    assert {"idle", "install-retry", "health-pending"} <= set(_literals("agent"))
    assert {"held", "not-held"} <= set(_literals("gates.orders"))


def test_every_wait_for_a_permit_is_in_the_table() -> None:
    assert {reason.value for reason in WaitReason} <= PERMITS.keys()


def test_every_answer_of_the_release_desk_is_in_the_table() -> None:
    said = {
        value for name, value in vars(rollout).items() if name.isupper() and isinstance(value, str)
    }
    assert said == errors.ANSWERS.keys()


def test_every_answer_of_other_servers_is_in_the_table() -> None:
    """Each literal of `hints` that looks like one of their codes."""
    tree = ast.parse(Path(hints.__file__).read_text())
    said = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"server-[a-z-]+", node.value)
    }
    assert said == SERVERS.keys()


def test_the_tables_of_conditions_share_no_code() -> None:
    codes = {row.code for row in all_rows()}
    assert len(CONDITIONS) == len(STEPS) + len(GATES) + len(PERMITS) + len(SERVERS)
    assert not codes & SERVERS.keys()  # an error of ours says what to do itself
