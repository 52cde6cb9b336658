"""The keeper that asks an integrator's program: what it says, how it ends, and what it kept.

What every keeper promises is in `test_boot_contract.py`, with a program that does all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions import program
from partitions.boot import Places, custom, open_boot_control
from partitions.boot.custom import CustomCommand
from partitions.errors import (
    BootControlError,
    CustomCommandError,
    CustomRefusedError,
    NothingBootableError,
)
from partitions.slots import Slot

A, B = Slot.A, Slot.B
PROVEN = {"armed": True, "tries_left": 0, "confirmed": True}
NEVER = {"armed": False, "tries_left": 0, "confirmed": False}
ANSWER = {"target": "a", "max_tries": 3, "slots": {"a": PROVEN, "b": NEVER}}

Script = Callable[[str], tuple[str, ...]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return what makes a program out of shell lines."""

    def make(lines: str) -> tuple[str, ...]:
        path = tmp_path / "program"
        path.write_text("#!/bin/sh\n" + lines)
        path.chmod(0o755)
        return (str(path),)

    return make


def reads(answer: object) -> str:
    return f"[ $1 != read ] || echo '{json.dumps(answer)}'\n"


def test_what_the_program_prints_is_the_state(script: Script) -> None:
    state = CustomCommand(script(reads(ANSWER))).read()
    assert state.target is A
    assert state.slots[A].confirmed
    assert not state.slots[B].armed


def test_verb_slot_and_tries_are_arguments_behind_those_of_the_settings(
    script: Script, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    command = script(f'echo "$@" >> {asked}; shift\n' + reads(ANSWER))
    control = CustomCommand((*command, "first"))
    with pytest.raises(CustomCommandError):
        control.arm(B, tries=3)
    assert asked.read_text().splitlines() == ["first read", "first arm b 3", "first read"]


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ({**ANSWER, "target": "c"}, "c"),
        ({**ANSWER, "target": "b"}, "target is b, which is not armed"),
        ({**ANSWER, "max_tries": 0}, "max_tries"),
        ({**ANSWER, "slots": {"a": PROVEN}}, "of a and of b"),
        ({**ANSWER, "slots": {"a": PROVEN, "b": {**NEVER, "tries_left": -1}}}, "tries_left"),
        ({"target": "a", "max_tries": 3}, "slots"),
        ([], "object"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_refused(
    script: Script, answer: object, what: str
) -> None:
    with pytest.raises(CustomCommandError, match=what):
        CustomCommand(script(reads(answer))).read()


def test_no_json_is_refused(script: Script) -> None:
    with pytest.raises(CustomCommandError, match="malformed"):
        CustomCommand(script("echo armed")).read()


def test_status_3_is_a_refusal_in_the_programs_own_words(script: Script) -> None:
    with pytest.raises(CustomRefusedError, match="the flash is locked") as caught:
        CustomCommand(script("echo the flash is locked >&2; echo >&2; exit 3")).read()
    assert (caught.value.code, caught.value.exit_status) == ("custom-refused", 3)


def test_any_other_status_is_a_failure_and_its_words_are_bounded(script: Script) -> None:
    long = "x" * 1000
    with pytest.raises(CustomCommandError, match=r"exit status 7") as caught:
        CustomCommand(script(f"printf '\\033[1m{long}' >&2; exit 7")).read()
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CustomCommandError, match="cannot be started"):
        CustomCommand((str(tmp_path / "none"),)).read()


def test_no_command_is_an_error() -> None:
    with pytest.raises(BootControlError, match=r"slots\.custom_command"):
        open_boot_control("custom", Places(disk=Path("/none"), layout={}))


@pytest.mark.parametrize(
    ("verb", "slot"), [("arm", B), ("confirm", B), ("disarm", B), ("reject", B)]
)
def test_what_is_not_kept_is_an_error(script: Script, verb: str, slot: Slot) -> None:
    both = {**ANSWER, "target": "b", "slots": {"a": PROVEN, "b": {**PROVEN, "confirmed": False}}}
    control = CustomCommand(script(reads(both)))
    arguments = {"tries": 2} if verb == "arm" else {}
    with pytest.raises(CustomCommandError, match=f"after {verb} b"):
        getattr(control, verb)(slot, **arguments)


def test_a_program_that_changes_the_other_slot_is_an_error(script: Script, tmp_path: Path) -> None:
    after = {
        **ANSWER,
        "target": "b",
        "slots": {"a": NEVER, "b": {"armed": True, "tries_left": 2, "confirmed": False}},
    }
    changed = tmp_path / "changed"
    command = script(
        f"if [ $1 = arm ]; then touch {changed}; exit; fi\n"
        f"if [ -e {changed} ]; then echo '{json.dumps(after)}'; exit; fi\n" + reads(ANSWER)
    )
    with pytest.raises(CustomCommandError, match="after arm b"):
        CustomCommand(command).arm(B, tries=2)


def _wait_for_end(pid: int) -> None:
    """Return when the process is gone or a zombie; a kill is sent before it is carried out."""
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.02)


class TestHowItIsRun:
    def test_with_a_fixed_environment_in_the_root_folder(
        self, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BASCULE_SECRET", "leaked")
        answer = program.run(script("env; pwd"), timeout_secs=20)
        names = {line.partition(b"=")[0] for line in answer.output.splitlines()[:-1]}
        assert names <= {b"PATH", b"LC_ALL", b"PWD", b"_", b"OLDPWD", b"SHLVL"}
        assert answer.output.endswith(b"/\n")

    def test_without_a_shell(self, script: Script) -> None:
        answer = program.run((*script('printf "%s" "$1"'), "$(id); *"), timeout_secs=20)
        assert answer.output == b"$(id); *"

    def test_one_that_never_ends_is_killed_with_its_children(
        self, script: Script, tmp_path: Path
    ) -> None:
        pid = tmp_path / "pid"
        with pytest.raises(CustomCommandError, match="took too long"):
            program.run(script(f"sleep 600 & echo $! > {pid}; wait"), timeout_secs=1)
        _wait_for_end(int(pid.read_text()))

    def test_one_that_says_too_much_is_ended(self, script: Script) -> None:
        with pytest.raises(CustomCommandError, match="says more than 65536 bytes"):
            program.run(script("exec cat /dev/zero"), timeout_secs=60)

    def test_one_that_ends_well_leaves_no_child_behind(
        self, script: Script, tmp_path: Path
    ) -> None:
        pid = tmp_path / "pid"
        line = f"sleep 600 >/dev/null 2>&1 & echo $! > {pid}"
        assert program.run(script(line), timeout_secs=20).status == 0
        _wait_for_end(int(pid.read_text()))

    def test_what_it_leaves_running_is_not_waited_for(self, script: Script) -> None:
        answer = program.run(script("sleep 5 & echo said"), timeout_secs=4)
        assert answer.output == b"said\n"

    def test_one_that_closes_its_streams_is_waited_for(self, script: Script) -> None:
        answer = program.run(script("exec >&- 2>&-; sleep 0.2; exit 9"), timeout_secs=20)
        assert answer.status == 9


class TestTheModel:
    def test_boots_the_slot_that_it_prints(self, script: Script) -> None:
        assert custom.boot(script("echo b")) is B

    def test_a_refusal_is_nothing_bootable(self, script: Script) -> None:
        with pytest.raises(NothingBootableError, match="no slot"):
            custom.boot(script("echo no slot >&2; exit 3"))

    def test_another_word_is_an_error(self, script: Script) -> None:
        with pytest.raises(CustomCommandError, match="boot"):
            custom.boot(script("echo c"))
