"""How a run of the tests itself behaves on a machine that is not at its best."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHARED, group_of
from tests.sim.full_disk import small_disk
from tests.sim.memory import FAILED, in_memory

ROOT = Path(__file__).parents[2]
QUICK = "tests/unit/updater/test_lifecycle.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_disk_without_room_is_one_sentence_and_no_test_runs(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        done = run(f"--basetemp={disk}/tests", QUICK)
    said = done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, said
    assert "only 0 MiB are free at" in said
    assert "TMPDIR=" in said
    assert not re.search(r"\d+ passed", said)


def test_a_test_that_passed_leaves_nothing_and_one_that_failed_its_folder(tmp_path: Path) -> None:
    sample = tmp_path / "test_sample.py"
    sample.write_text(
        "def test_good(tmp_path): (tmp_path / 'good').touch()\n"
        "def test_bad(tmp_path): (tmp_path / 'bad').touch(); assert False\n"
    )
    kept = tmp_path / "kept"
    done = run(f"--config-file={ROOT}/pyproject.toml", f"--basetemp={kept}", str(sample))
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert [path.name for path in kept.rglob("*") if path.is_file()] == ["bad"]


def test_modules_that_share_something_are_in_one_group() -> None:
    assert [module for module in SHARED if not (ROOT / module).is_file()] == []
    loops = [
        f"tests/e2e/partitions/{name}.py::test_x[a@b::c]" for name in ("test_grub", "test_uboot")
    ]
    assert len({group_of(test) for test in loops}) == 1
    assert group_of("tests/unit/test_runs.py::TestIt::test_x[y]") == "tests/unit/test_runs.py"


@pytest.mark.parametrize("failed", [True, False])
def test_what_lay_in_memory_is_kept_on_the_disk_when_the_test_failed(
    request: pytest.FixtureRequest, tmp_path: Path, failed: bool
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    request.node.stash[FAILED] = failed
    with in_memory(request.node, kept) as folder:
        (folder / "state").touch()
    request.node.stash[FAILED] = False
    if folder == kept:
        pytest.skip("there is no memory for files")
    assert not folder.exists()
    assert (kept / "state").exists() is failed


def test_what_a_test_starts_can_be_interrupted() -> None:
    question = "import signal; print(signal.getsignal(signal.SIGINT))"
    said = subprocess.check_output([sys.executable, "-c", question], text=True)
    assert "default_int_handler" in said


def test_so_it_can_where_a_shell_has_started_the_run_in_the_background() -> None:
    asked = f"{__file__}::{test_what_a_test_starts_can_be_interrupted.__name__}"
    ignoring = f"trap '' INT; exec {sys.executable} -m pytest -q -p no:cacheprovider {asked}"
    done = subprocess.run(
        ["sh", "-c", ignoring], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
