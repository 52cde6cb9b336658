"""What `make install` lays out: the units by systemd's own judgement, the program as it would run.

The image's /usr is stood for by an overlay in a mount namespace of its own: DESTDIR's /usr over
this machine's, read-only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater.engine import Engine

ROOT: Final = Path(__file__).parents[3]
TREE: Final = ROOT / "updater/system"
UNITS: Final = TREE / "usr/lib/systemd/system"
PYTHON: Final = "/usr/bin/python3"
EXPOSURE_MAX: Final = 1.8  # what it is; a unit that gives more away must say why
FLAGS_UNCHECKED_HASH: Final = 1  # PEP 552: found by hash, never checked against a source
OURS: Final = (
    "bascule.service",
    "bascule-confirm.service",
    "bascule-guard.timer",
    "bascule-guard.service",
)

pytestmark = pytest.mark.e2e
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (systemd)"
)


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]  # options are subprocess's
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@needs_systemd
def test_the_service_gives_little_away() -> None:
    outcome = run(
        "systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / "bascule.service"
    )
    found = re.search(r"Overall exposure level for bascule.service: ([0-9.]+)", outcome.stdout)
    assert found, outcome.stdout + outcome.stderr
    print(f"\nexposure of bascule.service: {found[1]} of 10 (systemd-analyze security)")
    assert float(found[1]) <= EXPOSURE_MAX


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make install` makes, once for all tests."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if run(PYTHON, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))").returncode:
        pytest.skip(f"{PYTHON} is not a Python 3.11 with venv (package python3-venv)")
    made = tmp_path_factory.mktemp("image")
    outcome = run("make", "install", f"DESTDIR={made}", f"NODE_PYTHON={PYTHON}", cwd=ROOT)
    if "NewConnectionError" in outcome.stderr or "No matching distribution" in outcome.stderr:
        pytest.skip("no package index can be reached")
    assert outcome.returncode == 0, outcome.stderr
    return made


@pytest.mark.parametrize("file", [p for p in TREE.rglob("*") if p.is_file()], ids=str)
def test_every_file_of_the_tree_is_laid_out_readable_by_all(destdir: Path, file: Path) -> None:
    name = file.relative_to(TREE)
    if name.parts[0] != "usr":
        assert not (destdir / name).exists()
        return
    laid = destdir / name
    assert laid.read_bytes() == file.read_bytes()
    is_program = name.parts[:2] == ("usr", "bin") or name.parts[-1] == "guard"
    assert laid.stat().st_mode & 0o777 == (0o755 if is_program else 0o644)


GUARDED: Final = "usr/lib/systemd/system/timers.target.wants/bascule-guard.timer"


def test_every_link_of_the_tree_is_laid_out_as_a_link(destdir: Path) -> None:
    links = {str(link.relative_to(TREE)): link.readlink() for link in linked(TREE)}
    assert GUARDED in links
    for name, target in links.items():
        assert (destdir / name).readlink() == target
        assert (destdir / name).exists()  # it leads somewhere, wherever the image is mounted


def linked(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink()]


def test_the_guard_is_on_without_a_preset_too(destdir: Path, tmp_path: Path) -> None:
    """A node whose /etc outlives its updates: a preset is for units that are new to a system."""
    if shutil.which("systemctl") is None:
        pytest.skip("systemctl is not installed (package systemd)")
    shutil.copytree(destdir / "usr/lib/systemd", tmp_path / "usr/lib/systemd", symlinks=True)
    (tmp_path / "etc").mkdir()
    outcome = run("systemctl", f"--root={tmp_path}", "is-enabled", "bascule-guard.timer")
    assert (outcome.stdout.strip(), list((tmp_path / "etc").iterdir())) == ("disabled", [])
    wanted = tmp_path / GUARDED
    assert wanted.resolve() == tmp_path / "usr/lib/systemd/system/bascule-guard.timer"


def test_nothing_names_the_place_where_it_was_made(destdir: Path) -> None:
    traces = [str(destdir).encode(), str(ROOT).encode()]
    for file in destdir.rglob("*"):
        if file.is_symlink():
            assert not str(file.readlink()).startswith(str(destdir))
        elif file.is_file():
            content = file.read_bytes()
            assert not any(trace in content for trace in traces), file


def test_no_package_notes_a_program_that_depends_on_the_place(destdir: Path) -> None:
    site = next((destdir / "usr/lib/bascule/venv/lib").glob("python3*/site-packages"))
    records = list(site.glob("*.dist-info/RECORD"))
    assert len(records) > 10
    for record in records:
        noted = [line.split(",")[0] for line in record.read_text().splitlines()]
        assert not [name for name in noted if name.startswith("../../../bin/")], record


def test_the_units_do_not_lie_in_the_virtual_environment_too(destdir: Path) -> None:
    assert not list((destdir / "usr/lib/bascule").rglob("*.service"))


def test_its_bytecode_is_all_there_and_checked_by_nobody(destdir: Path) -> None:
    site = next((destdir / "usr/lib/bascule/venv/lib").glob("python3*/site-packages"))
    modules = [file for file in site.rglob("*.py") if file.parent.name != "data"]
    compiled = list(site.rglob("*.pyc"))
    assert len(compiled) >= 0.95 * len(modules) > 100
    for file in compiled:
        assert int.from_bytes(file.read_bytes()[4:8], "little") == FLAGS_UNCHECKED_HASH, file


def in_image(
    destdir: Path, script: str, *arguments: str, below: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a shell script where /usr is the image's.

    Args:
        destdir: the image's files.
        script: for sh; `arguments` are its $1, $2 …
        below: a tree under it, for units that this machine may lack.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("namespaces need root and unshare")
    layers = ":".join([f"{destdir}/usr", *([f"{below}/usr"] if below else []), "/usr"])
    mount = f"mount -t overlay -o lowerdir={layers} overlay /usr || exit 99\n"
    outcome = run("unshare", "-m", "sh", "-c", mount + script, "sh", *arguments, cwd="/")
    if outcome.returncode == 99:
        pytest.skip(f"no overlay can be mounted here: {outcome.stderr.strip()}")
    return outcome


@pytest.mark.parametrize("program", ["bascule", "bascule-image"])
def test_its_programs_run_where_they_will_lie(destdir: Path, program: str) -> None:
    outcome = in_image(destdir, f"{program} --version")
    assert outcome.stdout.startswith(f"{program}, version "), outcome.stderr


@needs_systemd
def test_systemd_finds_no_fault_in_the_units(destdir: Path) -> None:
    outcome = in_image(destdir, 'systemd-analyze verify --man=no "$@"', *OURS)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "state"),
    [(OURS[0], "enabled"), (OURS[1], "disabled"), (OURS[2], "enabled"), (OURS[3], "static")],
)
def test_the_preset_switches_service_and_guard_on_and_the_confirming_unit_off(
    destdir: Path, tmp_path: Path, unit: str, state: str
) -> None:
    shutil.copytree(destdir / "usr/lib/systemd", tmp_path / "usr/lib/systemd", symlinks=True)
    run("systemctl", f"--root={tmp_path}", "preset", *OURS)
    assert run("systemctl", f"--root={tmp_path}", "is-enabled", unit).stdout.strip() == state


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "made", "begins"),
    [
        ("bascule-guard.timer", (), False),
        ("bascule-guard.timer", ("/var/lib/bascule/trial",), True),
        ("bascule-guard.service", ("/var/lib/bascule/trial",), True),
        (
            "bascule-guard.service",
            ("/var/lib/bascule/trial", "/run/bascule/confirmed"),
            False,
        ),
    ],
)
def test_the_guard_begins_only_where_a_trial_is_to_be_guarded(
    destdir: Path, unit: str, made: Sequence[str], begins: bool
) -> None:
    folders = "for d in /var/lib /run; do mount -t tmpfs tmpfs $d && mkdir $d/bascule; done\n"
    files = "".join(f"touch {path}\n" for path in made)
    script = f"{folders}{files}systemd-analyze condition --unit={unit}"
    outcome = in_image(destdir, script)
    assert (outcome.returncode == 0) is begins, outcome.stderr


def test_the_guard_is_a_program_that_a_bare_shell_runs(destdir: Path) -> None:
    guard = destdir / "usr/lib/bascule/guard"
    assert run("sh", "-n", guard).returncode == 0
    outcome = run(guard, destdir / "none", destdir / "none")
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == "bascule-guard: no trial is under way; nothing is done\n"


@needs_systemd
def test_systemd_confirms_no_boot_where_we_do(destdir: Path, tmp_path: Path) -> None:
    unit = tmp_path / "usr/lib/systemd/system/systemd-bless-boot.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    script = "systemd-analyze condition --unit=systemd-bless-boot.service"
    outcome = in_image(destdir, script, below=tmp_path)
    assert "ConditionPathExists=!/usr/lib/systemd/system/bascule.service failed" in outcome.stderr
    assert outcome.returncode != 0


# As the unit has it: no capability, no privilege to gain, no memory both writable and executable.
CONFINED: Final = """\
import ctypes, os, sys
PR_SET_MDWE = 65
if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
    sys.exit(98)
os.execv(sys.argv[1], sys.argv[1:])
"""


def confined(destdir: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (package util-linux)")
    script = 'setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"'
    words: Sequence[str] = [str(word) for word in command]
    outcome = in_image(destdir, script, PYTHON, "-c", CONFINED, *words)
    if outcome.returncode == 98:
        pytest.skip("this kernel cannot deny memory that is writable and executable (6.3)")
    return outcome


def test_it_installs_without_privileges(destdir: Path, tmp_path: Path) -> None:
    with World(tmp_path / "world", image_size=512 * 1024) as world:
        world.write_settings(poll_interval_secs="3600")
        run_until(Engine(node=world.boot()), "idle")
        world.release("2.0.0", rollback_index=2)
        due_now(world)
        outcome = confined(
            destdir, "/usr/bin/bascule", "--config", world.config, "--direct", "update", "--yes"
        )
        assert (outcome.returncode, outcome.stderr) == (5, ""), outcome.stdout
        node = world.node()
        assert node.loader.read().target is node.boot().slot.other


def test_it_writes_a_block_device_without_privileges(destdir: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices need root and losetup")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1024 * 1024))
    made = run("losetup", "--find", "--show", image)
    if made.returncode != 0:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    script = (
        "import os, sys; "
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL);"
        "os.pwrite(fd, b'bascule', 0); os.fsync(fd)"
    )
    try:
        python = "/usr/lib/bascule/venv/bin/python"
        outcome = confined(destdir, python, "-I", "-c", script, device)
        assert outcome.returncode == 0, outcome.stderr
        assert image.read_bytes().startswith(b"bascule")
    finally:
        run("losetup", "--detach", device)
