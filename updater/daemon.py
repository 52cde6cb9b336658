"""The loop of the service: take a step, wait, until told to stop. Decides nothing itself.

Checks and installs run in a process of their own (`bascule step`), so that what they load and
need goes when they end: an idle service stays small, and outlives whatever happens to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from updater.agent import Check, Install, Wait
from updater.checking import present
from updater.download import DownloadStoppedError
from updater.engine import Engine
from updater.errors import EXIT_NOTHING, EngineBusyError, UpdaterError
from updater.notify import Notifier, Watchdog
from updater.processes import CommandStoppedError
from updater.rebooting import give_try_back
from updater.rooms import ROOM_ERRORS
from updater.service_line import service_line
from updater.steering import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.bus.service import BusService
    from updater.metrics_file import MetricsFile
    from updater.node import Node

log = logging.getLogger(__name__)

PAUSE_MIN_SECS: Final = 0.05  # a wait whose end has come already
PAUSE_MAX_SECS: Final = 5.0  # then the memory is read again: a command may have changed it
ERROR_PAUSE_SECS: Final = 1.0  # after the first error in a row, doubled with each
ERROR_PAUSE_MAX_SECS: Final = 60.0
REPORT_PAUSE_SECS: Final = 30.0
REPORT_FAREWELL_SECS: Final = 2.0
WORKER_LOOK_SECS: Final = 0.1
BUSY_LOOK_SECS: Final = 5.0  # between two looks at the metrics while a worker is busy
LOOKS_PER_STATUS: Final = 20  # a person sees progress move every two seconds
WORKER_PAUSE_SECS: Final = 0.2  # between two processes, whatever the memory says
PERMIT_PAUSE_MAX_SECS: Final = 15.0  # a watch wakes us; a command may have changed the memory
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
PERMIT_CODES: Final = "permit-"
WEAKENED: Final = (
    "trust.mode is payload-key: any newer payload that a key of trust.payload_keys signed is "
    "installed when the Omaha server says so; no channel, no withdrawal and no expiry protects it"
)
LOOP: Final = "loop"  # this loop, as the watchdog knows it
BUS: Final = "bus"


class WorkerError(UpdaterError):
    """A check or an install ended badly; its own words came before."""

    code = "step-failed"
    hint = "Look at the lines before this one; it is tried again by itself."


class Daemon:
    """One node's service.

    Args:
        node: the collaborators; its `stop` ends the loop.
        worker: the command that takes one heavy step; None to take it in this process.
        bus: makes what is on the bus, given what to call after a verb; None for no bus.
        notifier: the way to systemd; None when it did not start us.
        watchdog: what every part of the service beats; None when nobody watches.
    """

    def __init__(
        self,
        node: Node,
        worker: Sequence[str] | None = None,
        *,
        bus: Callable[[Callable[[], None]], BusService] | None = None,
        notifier: Notifier | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._node = node
        self._woken = threading.Event()
        self._bus = bus(self._woken.set) if bus is not None else None
        self._worker = worker
        self._notifier = notifier or Notifier("")
        self._watchdog = watchdog or Watchdog(
            self._notifier.alive, limit_secs=0, monotonic=time.monotonic
        )
        self._is_ready = False
        self._engine = Engine(node=node)
        self._reporter = self._make_reporter()
        self._metrics = self._make_metrics()
        self._errors = 0
        self._waits_for_verb = False

    def run(self) -> None:
        """Run until `stop` is set or a signal sets it.

        Raises:
            BusLostError: the bus went away while we were on it.
        """
        log.info("service begins state-folder=%s", self._node.store.folder)
        if self._node.settings.trust.mode == "payload-key":
            log.warning("trust is weakened code=payload-key-mode why=%s", WEAKENED)
        self._watchdog.expect(LOOP)
        self._node.beat = self._beat
        threading.Thread(target=self._wake_to_stop, name="stop", daemon=True).start()
        if self._bus is not None:
            self._watchdog.expect(BUS)
            self._bus.start(lambda: self._watchdog.beat(BUS))
        if self._reporter is not None:
            self._reporter.start()
        try:
            while not self._node.stop.is_set():
                self._round()
        finally:
            self._notifier.stopping()
            if self._bus is not None:
                self._watchdog.dismiss(BUS)
                self._bus.close()
            self._give_try_back()
            if self._reporter is not None:
                self._reporter.close(REPORT_FAREWELL_SECS)
            log.info("service ends")
        if self._bus is not None and self._bus.lost is not None:
            raise self._bus.lost

    def _wake_to_stop(self) -> None:
        """Let whoever sets `stop` end a pause too."""
        self._node.stop.wait()
        self._woken.set()

    def listen_to_signals(self) -> None:
        """End the loop on SIGTERM and SIGINT, after what is flushed is noted."""
        stop_on_signals(self._node.stop)

    def _round(self) -> None:
        self._beat()
        try:
            self._get_ready()
            wait = self._engine.step(heavy=self._worker is None)
            self._show()
            if isinstance(wait, Check | Install):
                self._work(wait)
                wait = None
            self._wake_reporter()
            self._show_metrics()
            if wait is not None:
                self._rest(wait)
        except (DownloadStoppedError, CommandStoppedError):
            return
        except EngineBusyError:  # no failure: a verb is under way, and its end wakes us
            if not self._waits_for_verb:
                log.info("waiting code=%s why=%s", EngineBusyError.code, "a verb is under way")
            self._waits_for_verb = True
            self._pause(PAUSE_MAX_SECS)
            return
        except (*ROOM_ERRORS, OSError) as error:  # OSError: the service outlives a full system
            self._errors += 1
            pause = min(ERROR_PAUSE_SECS * 2 ** min(self._errors - 1, 10), ERROR_PAUSE_MAX_SECS)
            code = getattr(error, "code", "system")
            log.warning("step failed code=%s why=%s pause=%.0f", code, error, pause)
            if self._reporter is not None:
                self._reporter.wake()
            self._show_metrics()
            self._pause(pause)
            return
        self._errors = 0
        self._waits_for_verb = False

    def _get_ready(self) -> None:
        """Say that we are ready once the memory could be read.

        Not later: a first step may run health checks that wait for us or for the whole boot.
        """
        if not self._is_ready:
            self._show()
            self._notifier.ready()
            self._is_ready = True

    def _show(self) -> None:
        """Beat, and let `systemctl status` show where the node stands."""
        self._beat()
        if self._notifier.is_heard:
            memory = self._node.store.read_state()
            self._notifier.status(service_line(memory, self._node.progress.read()))

    def _beat(self) -> None:
        self._watchdog.beat(LOOP)

    def _work(self, action: Check | Install) -> None:
        """Let a process of its own take the action; pass a stop on to it.

        Raises:
            WorkerError: it ended badly; what is due next stands in the memory.
        """
        name = "check" if isinstance(action, Check) else "install"
        with subprocess.Popen([*(self._worker or ()), "--action", name]) as process:
            for look in itertools.count():
                if process.poll() is not None:
                    break
                self._show_metrics(busy=True)
                if self._node.stop.wait(WORKER_LOOK_SECS):
                    process.terminate()
                    break
                self._watch(look)
        if process.returncode not in {0, EXIT_NOTHING} and not self._node.stop.is_set():
            raise WorkerError(f"the {name} ended with status {process.returncode}")
        self._node.stop.wait(WORKER_PAUSE_SECS)

    def _watch(self, look: int) -> None:
        """Beat for a worker that works; a memory that cannot be read now is read later."""
        self._beat()
        if look % LOOKS_PER_STATUS == 0:
            with contextlib.suppress(*ROOM_ERRORS):
                self._show()

    def _rest(self, wait: Wait) -> None:
        """Wait until the agent wants to look again, at most a few seconds."""
        pause = _pause(wait.until, self._node.clock())
        if wait.code.startswith(PERMIT_CODES) and wait.code != "permit-owed":
            limit = PERMIT_PAUSE_MAX_SECS if wait.until is None else pause
            self._node.permits().wait(limit)
        else:
            _trim_memory()
            self._pause(pause)

    def _pause(self, secs: float) -> None:
        """Wait, until a verb or a stop ends it."""
        self._woken.wait(secs)
        self._woken.clear()

    def _give_try_back(self) -> None:
        """A person's shutdown during a trial is no failed boot."""
        try:
            if self._node.machine.is_stopping():
                with self._node.locked() as memory:
                    give_try_back(self._node, memory)
        except (*ROOM_ERRORS, OSError) as error:
            log.warning("try not given back why=%s", error)

    def _wake_reporter(self) -> None:
        if self._reporter is not None and self._node.store.read_reports():
            self._reporter.wake()

    def _show_metrics(self, *, busy: bool = False) -> None:
        if self._metrics is not None:
            self._metrics.look(pause_secs=BUSY_LOOK_SECS if busy else 0.0)

    def _make_metrics(self) -> MetricsFile | None:
        """Return what writes the metrics; it is loaded only where somebody reads them."""
        textfile = self._node.settings.metrics.textfile
        if not textfile:
            return None
        from updater.metrics_file import MetricsFile

        return MetricsFile(Path(textfile), self._node)

    def _make_reporter(self) -> Reporter | None:
        node = self._node
        if node.steering is None:
            return None
        return Reporter(
            store=node.store,
            steering=node.steering,
            present=lambda: present(node, node.store.read_state()),
            pause_secs=REPORT_PAUSE_SECS,
        )


class Step:
    """One heavy action in a process of its own, which ends when the service does."""

    def __init__(self, node: Node, action: str) -> None:
        self._node = node
        self._action = Check() if action == "check" else Install()

    def run(self) -> None:
        """Take the action that the service decided.

        Raises:
            AnyRoomError: it failed; the memory says what follows.
        """
        end_with_parent()
        stop_on_signals(self._node.stop)
        with contextlib.suppress(DownloadStoppedError):
            Engine(node=self._node).take(self._action)


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` on SIGTERM and SIGINT, so that what is flushed is noted before the process ends.

    The event is set by a thread, never in the handler: that runs in the thread which may just
    hold the event's own lock, and would wait for itself for ever.
    """
    told, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(told, 1)[0] not in _ENDING:
            pass  # another signal that has a handler
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()


def end_with_parent() -> None:
    """Ask the kernel for SIGKILL when the service dies: nobody would stop this process then."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pause(until: datetime | None, now: datetime) -> float:
    if until is None:
        return PAUSE_MAX_SECS
    return min(max((until - now).total_seconds(), PAUSE_MIN_SECS), PAUSE_MAX_SECS)


def _trim_memory() -> None:
    """Give back what an install left behind: an idle service is small."""
    gc.collect(0)
