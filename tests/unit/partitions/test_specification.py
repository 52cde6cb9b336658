"""The room's README and error tree say what the code does, and nothing is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from partitions import layout
from partitions.errors import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_USAGE,
    BootFolderUnmountedError,
    CustomRefusedError,
    DeviceMountedError,
    PartitionsError,
    SlotBootedError,
)
from partitions.layout import parse_layout
from partitions.placement import guids_of, plan

README = Path(layout.__file__).with_name("README.md").read_text()


def _kinds(base: type[PartitionsError]) -> Iterator[type[PartitionsError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


KINDS = list(_kinds(PartitionsError))
CODED = [kind for kind in KINDS if "code" in vars(kind)]


def test_the_layout_in_the_readme_is_valid() -> None:
    example = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert example
    read = parse_layout(example[1].encode(), name="README.md")
    table = plan(read, confirmed_a=True, new_guid=guids_of(read))
    assert [entry.name for entry in table.entries] == ["ESP", "usr-a", "usr-b", "STATE"]


@pytest.mark.parametrize(
    "struct", [layout._LayoutAsWritten, layout._PartitionAsWritten, layout._FileAsWritten]
)
def test_each_key_of_a_layout_is_in_the_readme(struct: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(struct):
        need = "required" if field.required else r"(optional|required in slots)"
        assert re.search(rf"^\* `{field.name}` \({need}", README, re.MULTILINE), field.name


def test_each_error_has_a_code_of_its_own_and_a_hint() -> None:
    codes = [kind.code for kind in CODED]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)
    assert all("hint" in vars(kind) and kind.hint.endswith(".") for kind in CODED)


def test_each_error_ends_a_command_with_a_documented_status() -> None:
    assert {kind.exit_status for kind in CODED} == {EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED}
    refused = {kind for kind in CODED if kind.exit_status == EXIT_REFUSED}
    assert refused == {
        SlotBootedError,
        DeviceMountedError,
        BootFolderUnmountedError,
        CustomRefusedError,
    }


def test_only_errors_with_a_code_are_raised() -> None:
    raised = {
        name
        for file in Path(layout.__file__).parent.rglob("*.py")
        for name in re.findall(r"raise (\w+Error)\b", file.read_text())
    }
    without = {kind.__name__ for kind in KINDS if kind not in CODED}
    assert not raised & (without | {"PartitionsError"})
