"""dbus-next with its faults mended, on a real dbus-daemon: a test for each mend."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from dbus_next.message import Message

from tests.sim.message_bus import MessageBus
from updater.bus import library
from updater.bus.errors import (
    BusLostError,
    BusNameError,
    BusTimeoutError,
    BusUnreachableError,
    CallFailedError,
    NotAuthorizedError,
)
from updater.bus.library import Bus, Caller, Interface, Method, open_bus, plain, words_by_code

pytestmark = pytest.mark.e2e

NAME = "org.bascule.Test1"
PATH = "/org/bascule/Test1"
BURST = 20_000
T = TypeVar("T")


@pytest.fixture
def bus() -> Iterator[MessageBus]:
    with MessageBus() as made:
        yield made


class Service:
    """Methods that do what services must live through."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.values = {"Size": 3}
        self.interface = Interface(
            name=NAME,
            methods=[
                Method(name="Whoami", do=self.whoami, gives={"sender": "s", "interactive": "b"}),
                Method(name="Refuse", do=self.refuse),
                Method(name="Break", do=self.fail),
                Method(name="Lie", do=self.lie, gives={"number": "u"}),
                Method(name="Sleep", do=self.sleep),
                Method(name="Echo", do=self.echo, takes={"options": "a{sv}"}, gives={"said": "s"}),
            ],
            signals={"Tick": {"number": "u", "filler": "s"}},
            properties={"Size": "u"},
            error_words=words_by_code,
        )

    async def whoami(self, caller: Caller) -> tuple[object, ...]:
        await asyncio.sleep(0.01)  # others are answered meanwhile
        return caller.sender, caller.interactive

    async def refuse(self, _caller: Caller) -> tuple[object, ...]:
        raise NotAuthorizedError("user 7 may not")

    async def fail(self, _caller: Caller) -> tuple[object, ...]:
        raise RuntimeError("secret inside")

    async def lie(self, _caller: Caller) -> tuple[object, ...]:
        return ("no number",)

    async def sleep(self, _caller: Caller) -> tuple[object, ...]:
        self.began.set()
        await asyncio.sleep(3600)
        return ()

    async def echo(self, _caller: Caller, options: dict[str, Any]) -> tuple[object, ...]:
        return (repr(plain(options)),)


def run(
    bus: MessageBus, scene: Callable[[Service, Bus, Bus], Awaitable[T]], *, limit: float = 60
) -> T:
    """Let a service and a caller meet on the bus."""

    async def play() -> T:
        ours, theirs = await open_bus(bus.address), await open_bus(bus.address)
        service = Service()
        ours.export(PATH, service.interface, service.values)
        await ours.own(NAME)
        try:
            async with asyncio.timeout(limit):
                return await scene(service, ours, theirs)
        finally:
            await theirs.close()
            await ours.close()

    return asyncio.run(play())


def test_a_burst_of_signals_is_survived_with_a_slow_reader(bus: MessageBus) -> None:
    async def scene(service: Service, ours: Bus, theirs: Bus) -> int:
        seen: list[int] = []
        full = asyncio.Event()

        def slowly(_member: str, body: list[Any]) -> None:
            seen.append(body[0])
            if len(seen) == BURST:
                full.set()

        await theirs.listen(ours.unique_name, NAME, "Tick", slowly)
        exported = ours.export(PATH + "/ticks", service.interface, service.values)
        for number in range(BURST):  # the reader's loop stands still meanwhile
            exported.emit("Tick", number, "x" * 200)
        await full.wait()
        assert seen == [*range(BURST)]
        assert await theirs.call(NAME, PATH, "Whoami")
        return len(seen)

    assert run(bus, scene, limit=240) == BURST


def test_only_signals_of_the_one_who_is_listened_to_are_believed(bus: MessageBus) -> None:
    async def scene(service: Service, ours: Bus, theirs: Bus) -> list[int]:
        seen: list[int] = []
        await theirs.listen(
            ours.unique_name, NAME, "Tick", lambda _member, body: seen.append(body[0])
        )
        stranger = await open_bus(bus.address)
        forged = Message.new_signal(PATH, NAME, "Tick", "us", [666, ""])
        forged.destination = theirs.unique_name
        await stranger._connection.send(forged)
        await stranger.call(library.BUS, library.BUS_PATH, "GetId")  # the signal has passed
        await stranger.close()
        ours.export(PATH + "/tick", service.interface, service.values).emit("Tick", 1, "")
        await ours.call(NAME, PATH, "Whoami")
        await theirs.call(NAME, PATH, "Whoami")  # and so has the other
        return seen

    assert run(bus, scene) == [1]


def test_a_bus_that_hangs_up_during_authentication_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            with listener.accept()[0] as client:
                said = b""
                while not said.endswith(b"\r\n"):
                    said += client.recv(64)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(BusUnreachableError, match="hung up during authentication"):
            asyncio.run(open_bus(f"unix:path={path}"))
        thread.join()


def test_a_bus_that_never_answers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "CONNECT_TIMEOUT_SECS", 0.05)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(BusUnreachableError, match="did not answer in time"):
            asyncio.run(open_bus(f"unix:path={path}"))


def test_a_bus_that_says_too_much_during_authentication_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def babble() -> None:
            with listener.accept()[0] as client:
                client.recv(64)
                with contextlib.suppress(OSError):  # it hangs up on us
                    client.sendall(b"x" * (library.AUTH_LINE_MAX_BYTES + 100))
                    client.recv(64)

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(BusUnreachableError, match="too much"):
            asyncio.run(open_bus(f"unix:path={path}"))
        thread.join()


def test_no_bus_is_an_error_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(BusUnreachableError, match="nowhere"):
        asyncio.run(open_bus(f"unix:path={tmp_path}/nowhere"))


def test_the_library_loads_where_typing_has_no_such_decorator() -> None:
    program = "import typing; del typing.no_type_check_decorator; import updater.bus.library"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_method_learns_its_caller_though_calls_interleave(bus: MessageBus) -> None:
    async def scene(_service: Service, ours: Bus, theirs: Bus) -> None:
        names = [(b, b.unique_name) for b in (ours, theirs)] * 20
        calls = [b.call(NAME, PATH, "Whoami", interactive=b is ours) for b, _ in names]
        answers = await asyncio.gather(*calls)
        assert answers == [[name, b is ours] for b, name in names]

    run(bus, scene)


def test_a_refusal_is_told_by_its_code_and_sentence(bus: MessageBus) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> CallFailedError:
        with pytest.raises(CallFailedError) as raised:
            await theirs.call(NAME, PATH, "Refuse")
        return raised.value

    error = run(bus, scene)
    assert error.name == "org.bascule.Error.NotAuthorized"
    assert str(error) == "user 7 may not"


@pytest.mark.parametrize("member", ["Break", "Lie"])
def test_an_unexpected_error_is_logged_here_and_its_stack_told_to_nobody(
    bus: MessageBus, caplog: pytest.LogCaptureFixture, member: str
) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> CallFailedError:
        with pytest.raises(CallFailedError) as raised:
            await theirs.call(NAME, PATH, member)
        return raised.value

    error = run(bus, scene)
    assert error.name == "org.bascule.Error.Internal"
    assert "secret" not in str(error)
    assert "Traceback" not in str(error)
    assert [record.message for record in caplog.records if record.exc_info] == [
        f"call failed member={member}"
    ]


def test_a_call_that_is_cancelled_is_answered(bus: MessageBus) -> None:
    async def scene(service: Service, ours: Bus, theirs: Bus) -> CallFailedError:
        call = asyncio.create_task(theirs.call(NAME, PATH, "Sleep"))
        await service.began.wait()
        await ours.close()
        with pytest.raises(CallFailedError) as raised:
            await call
        return raised.value

    assert run(bus, scene).name == "org.bascule.Error.Cancelled"


def test_a_call_without_an_answer_ends(bus: MessageBus) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> None:
        with pytest.raises(BusTimeoutError, match="Sleep within 0 s"):
            await theirs.call(NAME, PATH, "Sleep", timeout_secs=0.05)

    run(bus, scene)


def test_a_call_after_the_end_of_the_bus_is_an_error(bus: MessageBus) -> None:
    async def scene(_service: Service, ours: Bus, theirs: Bus) -> None:
        bus.stop()
        await theirs.ended()
        await ours.ended()
        with pytest.raises(BusLostError):
            await theirs.call(NAME, PATH, "Whoami")

    run(bus, scene)


def test_a_call_under_way_when_the_bus_ends_is_an_error(bus: MessageBus) -> None:
    async def scene(service: Service, _ours: Bus, theirs: Bus) -> None:
        call = asyncio.create_task(theirs.call(NAME, PATH, "Sleep"))
        await service.began.wait()
        bus.stop()
        with pytest.raises(BusLostError):
            await call

    run(bus, scene)


def test_a_refused_call_leaves_no_stack_on_the_root_logger(
    bus: MessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> None:
        for member, words in (("Nothing", ()), ("Set", (NAME, "Size", library.variant("u", 4)))):
            interface = NAME if member == "Nothing" else "org.freedesktop.DBus.Properties"
            signature = "" if member == "Nothing" else "ssv"
            with pytest.raises(CallFailedError):
                await theirs.call(NAME, PATH, member, signature, *words, interface=interface)

    run(bus, scene)
    heard = [r for r in caplog.records if r.name != "asyncio"]  # of connections before
    assert [r.message for r in heard if r.levelno >= logging.WARNING] == []


def test_too_many_calls_at_once_are_refused(
    bus: MessageBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "ANSWERS_MAX", 2)

    async def scene(service: Service, _ours: Bus, theirs: Bus) -> None:
        asleep = [asyncio.create_task(theirs.call(NAME, PATH, "Sleep")) for _ in range(2)]
        await service.began.wait()
        with pytest.raises(CallFailedError, match="2 calls are being answered already"):
            await theirs.call(NAME, PATH, "Whoami")
        for task in asleep:
            task.cancel()

    run(bus, scene)


def test_options_arrive_as_plain_values(bus: MessageBus) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> list[Any]:
        nested = library.variant("a{sv}", {"deep": library.variant("as", ["x"])})
        options = {"now": library.variant("b", value=True), "nested": nested}
        return await theirs.call(NAME, PATH, "Echo", "a{sv}", options)

    assert run(bus, scene) == ["{'now': True, 'nested': {'deep': ['x']}}"]


def test_a_name_that_somebody_owns_is_an_error(bus: MessageBus) -> None:
    async def scene(_service: Service, _ours: Bus, theirs: Bus) -> None:
        with pytest.raises(BusNameError, match="owned by somebody else"):
            await theirs.own(NAME)
        with pytest.raises(BusNameError, match="not allowed to own"):
            await theirs.own("org.example.Foreign")

    run(bus, scene)


def test_only_one_file_knows_the_library() -> None:
    room = Path(library.__file__).parent
    knowing = [f.name for f in room.glob("*.py") if "import dbus_next" in f.read_text()]
    assert knowing == ["library.py"]
    assert importlib.util.find_spec("dbus_next")
