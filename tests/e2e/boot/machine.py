"""A virtual machine for tests: consoles that are always read, an agent, snapshots, power cuts.

A console that nobody reads fills its socket, QEMU then blocks the guest's writes, and the guest
looks hung: so a thread reads every port for as long as the machine lives. Waits end at a marker;
their limits are generous, since time in a machine without KVM depends on what else runs. What a
machine costs is told in CPU seconds of its QEMU.
"""

from __future__ import annotations

import base64
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, Any, Final, Self

QEMU: Final = "qemu-system-x86_64"
LIMIT_SECS: Final = 180.0  # 3 minutes: a boot takes 5 to 40 s of CPU, on a machine that is shared
PROBE_SECS: Final = 10.0  # a machine with usable KVM says its word within one
ACCELERATOR: Final = "BASCULE_TEST_ACCEL"  # forces `kvm` or `tcg`
WRITE_LOG_BYTES: Final = 8 << 30  # sparse; how far a log of writes may grow
EMULATED: Final = (
    "max,-avx,-avx2"  # the widest vectors are slow to emulate: hashing takes twice as long
)
OVMF: Final = Path("/usr/share/OVMF")
UBOOT: Final = Path("/usr/lib/u-boot/qemu-x86/u-boot.rom")  # 32 bits: the other build cannot zboot


class GuestError(AssertionError):
    """The machine did not do what was expected of it; the message ends with its last words."""


class Firmware(Enum):
    """What the machine begins with.

    `KERNEL` is no firmware: QEMU itself loads kernel and initrd.
    """

    KERNEL = "kernel"
    BIOS = "bios"
    EFI = "efi"
    UBOOT = "uboot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A disk of the machine.

    Attributes:
        path: the disk file.
        format: `raw` or `qcow2`; snapshots need the latter.
        write_log: where each write and flush is recorded in the format of dm-log-writes; the
            disk is raw then, and the machine takes no snapshots.
    """

    path: Path
    format: str = "raw"
    write_log: Path | None = None

    def arguments(self, name: str) -> list[str]:
        """Return what QEMU is told."""
        file = f"driver=file,filename={self.path},node-name={name}-file"
        # Writes stay in the host's page cache: killing QEMU loses none of them, and the log says
        # what was flushed.
        if self.write_log is None:
            top = f"driver={self.format},file={name}-file,node-name={name},cache.no-flush=on"
            return ["-blockdev", f"{file},cache.no-flush=on", "-blockdev", top]
        with self.write_log.open("wb") as log:
            log.truncate(WRITE_LOG_BYTES)
        # The number of entries is brought up to date with each, so that a cut leaves it right.
        recording = f"log={name}-log,log-append=off,log-sector-size=512"
        recording += ",log-super-update-interval=1"
        return [
            *("-blockdev", file),
            *("-blockdev", f"driver=file,filename={self.write_log},node-name={name}-log"),
            *("-blockdev", f"driver=blklogwrites,file={name}-file,{recording},node-name={name}"),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine before it is switched on.

    Attributes:
        drives: the first one is booted from.
        firmware: what loads the kernel.
        kernel, initrd, command_line: for `Firmware.KERNEL`.
        variables: the firmware's variable store, for `Firmware.EFI`; written to.
        variables_format: as of a drive.
        variables_log: where each write to the variables is recorded, as of a drive.
        memory_mib: of the guest.
        reboots: whether a reset begins anew, or ends the machine.
    """

    drives: tuple[Drive, ...] = ()
    firmware: Firmware = Firmware.KERNEL
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str = ""
    variables: Path | None = None
    variables_format: str = "raw"
    variables_log: Path | None = None
    memory_mib: int = 512
    reboots: bool = True

    def arguments(self, accelerator: str) -> list[str]:
        """Return QEMU's command line, but for the ports."""
        machine = "pc" if self.firmware is Firmware.UBOOT else "q35"
        machine += ",pflash0=code,pflash1=variables" if self.firmware is Firmware.EFI else ""
        line = [QEMU, "-nodefaults", "-display", "none", "-m", str(self.memory_mib)]
        line += ["-machine", f"{machine},accel={accelerator}"]
        line += ["-cpu", "host" if accelerator == "kvm" else EMULATED]
        line += [] if self.reboots else ["-no-reboot"]
        line += self._firmware()
        for number, drive in enumerate(self.drives):
            name = f"disk{number}"
            line += drive.arguments(name)
            # A kernel that QEMU loads is the first to boot, before any disk.
            place = "" if self.firmware is Firmware.KERNEL else f",bootindex={number}"
            line += ["-device", f"virtio-blk-pci,drive={name}{place}"]
        return [
            *line,
            *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="),
            *("-device", "virtio-rng-pci"),
        ]

    def _firmware(self) -> list[str]:
        match self.firmware:
            case Firmware.KERNEL:
                named = ["-kernel", str(self.kernel), "-append", self.command_line]
                return named if self.initrd is None else [*named, "-initrd", str(self.initrd)]
            case Firmware.BIOS:
                return []
            case Firmware.UBOOT:
                return ["-bios", str(UBOOT)]
            case Firmware.EFI:
                assert self.variables is not None
                code = f"driver=file,filename={OVMF / 'OVMF_CODE_4M.fd'},node-name=code"
                store = Drive(
                    path=self.variables,
                    format=self.variables_format,
                    write_log=self.variables_log,
                )
                return ["-blockdev", f"{code},read-only=on", *store.arguments("variables")]


class _Port:
    """One end of a serial port, and all that came from it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.here, self.there = socket.socketpair()
        self.received = bytearray()
        self.seen = 0  # what waits have consumed

    def arguments(self) -> list[str]:
        """Return what makes QEMU take the other end for a character device of that name."""
        return ["-chardev", f"socket,id={self.name},fd={self.there.fileno()}"]


class VirtualMachine:
    """A QEMU process that we started; leaving it kills it.

    Attributes:
        hardware: what it consists of.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        snapshot: str | None = None,
        accelerator: str | None = None,
    ) -> None:
        """Name the parts; `with` switches the machine on.

        Args:
            hardware: what it consists of.
            snapshot: to begin from, instead of from the firmware.
            accelerator: `kvm` or `tcg`; by default what works here.
        """
        self.hardware = hardware
        self._snapshot = snapshot
        self._accelerator = accelerator or best_accelerator()
        self._console = _Port("console")
        self._agent = _Port("agent")
        self._control = _Port("control")
        self._ports = (self._console, self._agent, self._control)
        self._changed = threading.Condition()
        self._open = True
        self._commands = 0
        self._tally = 0.0

    def __enter__(self) -> Self:
        line = self.hardware.arguments(self._accelerator)
        for port in self._ports:
            line += port.arguments()
        line += ["-serial", "chardev:console", "-serial", "chardev:agent"]
        line += ["-mon", "chardev=control,mode=control"]
        if self._snapshot is not None:
            line += ["-loadvm", self._snapshot]
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            line,
            pass_fds=[port.there.fileno() for port in self._ports],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        for port in self._ports:
            port.there.close()
        self._reader = threading.Thread(target=self._read, name="consoles")
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut_power()
        self._errors.close()

    @property
    def console(self) -> str:
        """All that came on the console so far."""
        with self._changed:
            return self._console.received.decode(errors="replace")

    @property
    def cpu_seconds(self) -> float:
        """What QEMU has used; other load on the machine does not blur it much."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self._tally
        ticks = int(stat[11]) + int(stat[12])
        self._tally = max(self._tally, ticks / os.sysconf("SC_CLK_TCK"))
        return self._tally

    def expect(self, pattern: str, *, limit_secs: float = LIMIT_SECS) -> re.Match[str]:
        """Wait until the console shows `pattern` after all that was expected before.

        Raises:
            GuestError: it does not, or QEMU ended.
        """
        return self._await(self._console, pattern, limit_secs)

    def expect_agent(self, *, limit_secs: float = LIMIT_SECS) -> None:
        """Wait for the agent of this boot; again after each reboot.

        Raises:
            GuestError: it does not answer, or QEMU ended.
        """
        self._await(self._agent, "AGENT-READY", limit_secs)

    def forget_agent(self) -> None:
        """Pass over what the agents of earlier boots said: the next one is yet to come."""
        with self._changed:
            self._agent.seen = len(self._agent.received)

    def run(self, script: str, *, limit_secs: float = LIMIT_SECS) -> str:
        """Run a shell script in the guest and return what it printed.

        Raises:
            GuestError: its status is not 0, or nothing answers.
        """
        status, output = self.try_run(script, limit_secs=limit_secs)
        if status != 0:
            raise GuestError(f"status {status} of {script!r}:\n{output}\n{self._last_words()}")
        return output

    def try_run(self, script: str, *, limit_secs: float = LIMIT_SECS) -> tuple[int, str]:
        """Run a shell script in the guest and return its status and what it printed.

        Raises:
            GuestError: nothing answers.
        """
        self._commands += 1
        tag = f"c{os.getpid()}-{self._commands}"
        self._agent.here.sendall(f"{tag} {base64.b64encode(script.encode()).decode()}\n".encode())
        found = self._await(self._agent, rf"RC {tag} (\d+) ?(\S*)\r?\n", limit_secs)
        return int(found[1]), base64.b64decode(found[2]).decode(errors="replace")

    def monitor(self, line: str) -> str:
        """Give a command to QEMU's own monitor and return its answer.

        Raises:
            GuestError: it fails.
        """
        self._ask("qmp_capabilities", {})
        reply = self._ask("human-monitor-command", {"command-line": line})
        answer = str(reply.get("return", reply))
        if "return" not in reply or answer.startswith("Error"):
            raise GuestError(f"{line}: {answer}")
        return answer

    def save(self, name: str) -> None:
        """Keep the running machine under a name in its disk files."""
        self.monitor(f"savevm {name}")

    def reset(self) -> None:
        """Press the button."""
        self.monitor("system_reset")

    def cut_power(self) -> None:
        """Kill QEMU: no flush, no shutdown. Only ever the process that we started."""
        _ = self.cpu_seconds
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for port in self._ports:
            port.here.close()

    def await_end(self, *, limit_secs: float = LIMIT_SECS) -> None:
        """Wait until QEMU ends by itself.

        Raises:
            GuestError: it does not.
        """
        try:
            self._process.wait(limit_secs)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"still on after {limit_secs} s: {self._last_words()}") from error

    def _ask(self, command: str, arguments: dict[str, str]) -> dict[str, Any]:
        text = json.dumps({"execute": command, "arguments": arguments, "id": command})
        self._control.here.sendall(text.encode() + b"\n")
        pattern = rf'(\{{[^\n]*"id": "{command}"[^\n]*\}})\r?\n'
        reply: dict[str, Any] = json.loads(self._await(self._control, pattern, LIMIT_SECS)[1])
        return reply

    def _read(self) -> None:
        """Read all ports until QEMU closes them."""
        with selectors.DefaultSelector() as selector:
            for port in self._ports:
                selector.register(port.here, selectors.EVENT_READ, port)
            while selector.get_map():
                for key, _ in selector.select():
                    port = key.data
                    try:
                        data = port.here.recv(1 << 16)
                    except ConnectionResetError:
                        data = b""
                    with self._changed:
                        port.received += data
                        self._changed.notify_all()
                    if not data:
                        selector.unregister(port.here)
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _await(self, port: _Port, pattern: str, limit_secs: float) -> re.Match[str]:
        wanted = re.compile(pattern)
        end = time.monotonic() + limit_secs
        with self._changed:
            while True:
                text = port.received[port.seen :].decode("latin-1")
                found = wanted.search(text)
                if found:
                    port.seen += found.end()
                    return found
                left = end - time.monotonic()
                if left <= 0 or not self._open:
                    why = f"not within {limit_secs} s" if self._open else "QEMU ended"
                    raise GuestError(f"{pattern!r} did not come, {why}: {self._last_words()}")
                self._changed.wait(min(left, 1.0))

    def _last_words(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")[-500:]
        return f"{said}\nconsole: {self._console.received[-1500:].decode(errors='replace')}"


def is_installed() -> bool:
    """Tell whether there is a QEMU."""
    return shutil.which(QEMU) is not None


@cache
def best_accelerator() -> str:
    """Return `kvm` where a machine really boots with it, else `tcg`.

    That the device opens proves nothing: under some hypervisors a machine starts and never gets
    anywhere. The variable `BASCULE_TEST_ACCEL` forces the answer.
    """
    forced = os.environ.get(ACCELERATOR, "")
    if forced:
        return forced
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots_with_kvm() else "tcg"


def _boots_with_kvm() -> bool:
    from tests.e2e.boot.archive import Kernel, hello_initrd

    kernel = Kernel.found()
    if kernel is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(hello_initrd())
        hardware = Hardware(
            kernel=kernel.image,
            initrd=initrd,
            command_line="console=ttyS0 quiet panic=-1",
            reboots=False,
        )
        try:
            with VirtualMachine(hardware, accelerator="kvm") as machine:
                machine.expect("HELLO-FROM-INIT", limit_secs=PROBE_SECS)
        except GuestError:
            return False
    return True
