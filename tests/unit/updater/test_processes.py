from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from updater.processes import ENVIRONMENT, CommandError, CommandStoppedError, run

# Long enough for any machine where the end is awaited; short where the limit itself is tried.
AMPLE_SECS = 60.0
SHORT_SECS = 0.2


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def require_end_of(child: int) -> None:
    for _ in range(1000):  # the kernel ends it in its own time
        if not is_alive(child):
            return
        time.sleep(0.01)
    raise AssertionError("the child lives on")


def test_a_program_ends_with_its_status_and_its_words() -> None:
    outcome = run(shell("echo out; echo err >&2; exit 3"), timeout_secs=AMPLE_SECS)
    assert (outcome.status, outcome.output) == (3, b"out\nerr\n")


def test_the_error_stream_is_left_out_on_wish() -> None:
    outcome = run(shell("echo out; echo err >&2"), timeout_secs=AMPLE_SECS, with_errors=False)
    assert outcome.output == b"out\n"


def test_a_program_that_dies_of_a_signal_did_not_end_well() -> None:
    outcome = run(shell("kill -SEGV $$"), timeout_secs=AMPLE_SECS)
    assert outcome.status == -signal.SIGSEGV


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET", "of the caller")
    program = (
        "import os; print(sorted(os.environ.items()), os.getcwd(), os.getsid(0) == os.getpid())"
    )
    outcome = run(
        [sys.executable, "-I", "-c", program], timeout_secs=AMPLE_SECS, extra={"BASCULE_SLOT": "a"}
    )
    expected = sorted((dict(ENVIRONMENT) | {"BASCULE_SLOT": "a"}).items())
    assert outcome.output.decode().strip() == f"{expected} / True"


def test_a_program_has_nothing_to_read() -> None:
    assert run(shell("cat"), timeout_secs=AMPLE_SECS).output == b""


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/missing/program"], "No such file or directory"),
        (["/etc"], "Permission denied"),
        (["/bin/echo", "a\0b"], "null byte"),
    ],
)
def test_a_program_that_cannot_be_started_is_named(command: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=f"{command[0]}' cannot be started: .*{why}") as caught:
        run(command, timeout_secs=AMPLE_SECS)
    assert caught.value.code == "command-failed"


def test_the_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/child; wait"
    for limit in (SHORT_SECS, 10 * SHORT_SECS, AMPLE_SECS):  # a busy machine starts slowly
        outcome = run(shell(script), timeout_secs=limit)
        assert outcome.status is None
        if (tmp_path / "child").exists():
            break
    require_end_of(int((tmp_path / "child").read_text()))


def test_the_time_limit_ends_a_program_that_ignores_every_polite_signal() -> None:
    outcome = run(shell("trap '' TERM INT HUP; while :; do :; done"), timeout_secs=SHORT_SECS)
    assert outcome.status is None


def test_the_time_limit_ends_a_program_that_closed_its_output() -> None:
    outcome = run(shell("exec >&- 2>&-; sleep 1000"), timeout_secs=SHORT_SECS)
    assert (outcome.status, outcome.output) == (None, b"")


def test_what_was_said_before_the_limit_is_kept() -> None:
    outcome = run(shell("echo begun; sleep 1000"), timeout_secs=SHORT_SECS)
    assert outcome.output in {b"begun\n", b""}  # nothing, where starting alone takes longer


@pytest.mark.parametrize("pipe", ["", ">/dev/null 2>&1"], ids=["kept", "closed"])
def test_what_a_program_leaves_running_is_not_waited_for_and_ends_with_it(
    tmp_path: Path, pipe: str
) -> None:
    script = f"trap '' HUP; sleep 1000 {pipe} & echo $! >{tmp_path}/child; echo done; exit 3"
    outcome = run(shell(script), timeout_secs=1000)
    assert (outcome.status, outcome.output) == (3, b"done\n")
    require_end_of(int((tmp_path / "child").read_text()))


def test_what_a_program_leaves_running_ends_when_its_starter_fails(tmp_path: Path) -> None:
    def beat() -> None:
        if (tmp_path / "child").exists():
            raise InterruptedError

    script = f"sleep 1000 & echo $! >{tmp_path}/draft; mv {tmp_path}/draft {tmp_path}/child; wait"
    with pytest.raises(InterruptedError):
        run(shell(script), timeout_secs=1000, beat=beat)
    require_end_of(int((tmp_path / "child").read_text()))


def test_children_that_are_spared_go_on_unless_time_was_up(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/child; exit 0"
    outcome = run(shell(script), timeout_secs=1000, spare_children=True)
    child = int((tmp_path / "child").read_text())
    assert (outcome.status, is_alive(child)) == (0, True)
    os.kill(child, signal.SIGKILL)
    outcome = run(shell("sleep 1000"), timeout_secs=SHORT_SECS, spare_children=True)
    assert outcome.status is None


def test_only_the_end_of_what_is_said_is_kept() -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' x; echo end"
    outcome = run(shell(script), timeout_secs=AMPLE_SECS, output_max_bytes=1000)
    assert outcome.status == 0
    assert outcome.output == b"x" * 996 + b"end\n"


@pytest.mark.parametrize("script", ["sleep 0.7", "exec >&- 2>&-; sleep 0.7"])
def test_who_waits_for_a_program_counts_as_alive(script: str) -> None:
    beats: list[int] = []
    run(shell(script), timeout_secs=AMPLE_SECS, beat=lambda: beats.append(1))
    assert len(beats) >= 3


def test_a_program_is_ended_with_its_group_when_its_starter_is_stopped(tmp_path: Path) -> None:
    looks: list[int] = []

    def stopped() -> bool:
        looks.append(1)
        return (tmp_path / "child").exists() and (tmp_path / "child").read_text() != ""

    script = f"sleep 1000 & echo $! >{tmp_path}/child; wait"
    with pytest.raises(CommandStoppedError, match="'sh' was stopped before it ended"):
        run(["sh", "-c", script], timeout_secs=600, stopped=stopped)
    assert looks
    require_end_of(int((tmp_path / "child").read_text()))


def test_a_program_that_ended_by_itself_was_not_stopped() -> None:
    assert run(["true"], timeout_secs=600, stopped=lambda: False).status == 0
