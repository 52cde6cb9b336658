"""What every run of the tests needs of the machine, and how tests share it between workers."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.sim.memory import FAILED, open_memory

MIB: Final = 1024 * 1024
START_BYTES: Final = 2048 * MIB  # three times what two workers hold at a time
LEAST_BYTES: Final = 256 * MIB  # below that even a single test may find no room for its disk
HINT: Final = (
    "Each test's folder goes when it has passed; make room there, or choose another place:"
    " TMPDIR=/roomy make test"
)

SHARED: Final = MappingProxyType(
    {
        f"tests/{module}.py": thing
        for thing, modules in {
            "the kernel that is fetched once": ("e2e/boot/test_first_boot", "e2e/boot/test_quick"),
            "loop devices": (
                "e2e/partitions/test_boot_files_on_fat",
                "e2e/partitions/test_efi_variables",
                "e2e/partitions/test_grub",
                "e2e/partitions/test_loop_devices",
                "e2e/partitions/test_other_peoples_tools",
                "e2e/partitions/test_uboot",
                "e2e/updater/test_boot_folder",
                "e2e/updater/test_postinstall",
                "e2e/updater/test_system_files",
            ),
        }.items()
        for module in modules
    }
)
"""What of the machine modules have in common: these run in one worker, one after the other."""


def temporary_root(config: pytest.Config) -> Path:
    """Return the folder on whose file system tests put their files."""
    chosen = config.option.basetemp or os.environ.get("PYTEST_DEBUG_TEMPROOT")
    folder = Path(chosen or tempfile.gettempdir()).absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def refuse_a_full_disk(config: pytest.Config, least_bytes: int) -> None:
    """End the run with one sentence where thousands of tests would each fail in its own way."""
    folder = temporary_root(config)
    free = shutil.disk_usage(folder).free
    if free < least_bytes:
        pytest.exit(
            f"only {free // MIB} MiB are free at {folder}, the tests need"
            f" {least_bytes // MIB} MiB there. {HINT}",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def is_worker(config: pytest.Config) -> bool:
    """Tell whether this is a process that another one gives tests to (pytest-xdist)."""
    return hasattr(config, "workerinput")


class DiskWatch:
    """Looks at the free space before the first test, and after each."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_sessionstart(self) -> None:
        refuse_a_full_disk(self._config, START_BYTES)

    def pytest_runtest_logfinish(self) -> None:
        refuse_a_full_disk(self._config, LEAST_BYTES)


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has SIGINT ignored, and so would be every process
    # that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not is_worker(config):
        config.pluginmanager.register(DiskWatch(config))
        memory = open_memory()
        if memory is not None:
            config.add_cleanup(lambda: shutil.rmtree(memory, ignore_errors=True))


def group_of(nodeid: str) -> str:
    """Return what a test runs in one worker with: its module, or all that share something."""
    module = nodeid.partition("::")[0]
    return SHARED.get(module, module)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give groups to workers: a module's fixtures are made once, its tests keep their order."""
    if config.getoption("dist") != "loadfile":
        return None  # another way was asked for
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = group_of  # --dist loadgroup does nothing with this pytest
    return scheduler


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note for what a test has in memory whether it is to be kept."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report
