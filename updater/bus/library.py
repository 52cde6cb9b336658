"""The one file that knows dbus-next 0.2.3, with its faults mended. Each mend has its own test.

1. A full socket closed the connection without a word: `_PatientSocket` waits instead.
2. A bus that hangs up during authentication made `connect` spin for ever: an error here.
3. `typing.no_type_check_decorator` is gone in Python 3.15: the library gets its own.
4. A method did not learn its caller: `Method.do` gets a `Caller`.
5. An exception reached the caller with its stack: `_answer` tells code and sentence.
6. A cancelled method never answered: it answers `org.bascule.Error.Cancelled`.
7. Descriptors leak when they are negotiated: they are not.
8. Decorated methods give None: interfaces are tables of plain functions here.
9. A call after the end hangs: every call has a time limit and looks first.
10. A call without an interface is refused; docs/d-bus.md says so.
11. Refused calls were logged with a stack on the root logger: `_NoStacks` keeps one line.
12. The bus must be made inside a coroutine: only `open_bus` makes one.
13. Its introspection parses other people's XML: it is not used.

An interface is a value (`Interface`), so that the docs can be compared with what is exported.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import socket
import struct
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from typing_extensions import override

from updater.bus.errors import (
    BusLostError,
    BusNameError,
    BusTimeoutError,
    BusUnreachableError,
    CallFailedError,
    InternalError,
)
from updater.client import reply_of
from updater.rooms import ROOM_ERRORS, AnyRoomError

if not hasattr(typing, "no_type_check_decorator"):  # Python 3.15
    typing.no_type_check_decorator = lambda decorator: decorator

import dbus_next.service
from dbus_next import introspection
from dbus_next._private.unmarshaller import MarshallerStreamEndError, Unmarshaller
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import (
    ArgDirection,
    MessageFlag,
    MessageType,
    NameFlag,
    PropertyAccess,
    RequestNameReply,
)
from dbus_next.errors import AuthError, DBusError
from dbus_next.message import Message
from dbus_next.service import ServiceInterface
from dbus_next.signature import SignatureTree, Variant

# Deprecated since 3.13, where each use of it warns.
setattr(dbus_next.service, "no_type_check_decorator", lambda decorator: decorator)  # noqa: B010  # not its export

log = logging.getLogger(__name__)

CALL_TIMEOUT_SECS: Final = 25.0  # what libdbus and GLib use
CONNECT_TIMEOUT_SECS: Final = 10.0
AUTH_LINE_MAX_BYTES: Final = 16 * 1024  # as libdbus
DRAIN_SECS: Final = 1.0
CALL_MAX_BYTES: Final = 64 * 1024  # of a call to us; no method takes more than 4096 characters
MESSAGE_MAX_BYTES: Final = 4 * 1024 * 1024  # of a reply or signal; a job's facts are 1 MiB
SIGNATURES_MAX: Final = 256  # the library keeps every one that it ever saw
TEXT_MAX_CHARS: Final = 4096  # of an error's sentence; the bus hangs up on too long a message
ANSWERS_MAX: Final = 64  # method calls that are being answered at the same time
BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
ERROR_PREFIX: Final = "org.bascule.Error."
_LIBRARY: Final = str(Path(dbus_next.service.__file__).parent)

Arguments: TypeAlias = Mapping[str, str]  # name to D-Bus signature, in order
ErrorWords: TypeAlias = tuple[str, str, list[object]]  # error name, signature and body
SignalHandler: TypeAlias = Callable[[str, list[Any]], None]  # member and body
NONE: Final[Arguments] = MappingProxyType({})  # a method without arguments


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a method.

    Attributes:
        sender: its unique name on the bus.
        interactive: its user may be asked for a password.
    """

    sender: str
    interactive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method that callers see.

    Attributes:
        name: the member.
        do: what answers; gets the caller and the arguments, gives one value per `gives`.
        takes, gives: the arguments in order.
    """

    name: str
    do: Callable[..., Awaitable[Sequence[object]]]
    takes: Arguments = field(default_factory=dict)
    gives: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface as a table.

    Attributes:
        name: of the interface.
        methods: what can be called.
        signals: what is sent: member to arguments.
        properties: what can be read: name to signature.
        error_words: how an error is told.
    """

    name: str
    methods: Sequence[Method]
    signals: Mapping[str, Arguments] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    error_words: Callable[[AnyRoomError], ErrorWords]


def error_name(code: str) -> str:
    """Return the D-Bus name of an error code: `not-authorized` is `...Error.NotAuthorized`."""
    return ERROR_PREFIX + "".join(word.capitalize() for word in code.split("-"))


def words_by_code(error: AnyRoomError) -> ErrorWords:
    """Tell an error by its code, with its sentence alone: gdbus shows no other body."""
    reply = reply_of(error)
    return error_name(reply.code), "s", [reply.sentence]


def plain(value: object) -> object:
    """Return a received value without variants; arrays and dictionaries likewise."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def variant(signature: str, value: object) -> object:
    """Return a value as it goes into a variant."""
    return Variant(signature, value)


@dataclass(slots=True)
class Exported:
    """An interface at a path of a bus."""

    bus: Bus
    path: str
    interface: Interface
    _service: Any

    def emit(self, signal: str, *values: object) -> None:
        """Send a signal to whoever listens; nothing happens when the bus has gone."""
        signature = "".join(self.interface.signals[signal].values())
        self.bus.send_signal(self.path, self.interface.name, signal, signature, list(values))

    def changed(self, values: Mapping[str, object]) -> None:
        """Tell that properties have new values."""
        if values and self.bus.connected:
            self._service.emit_properties_changed(dict(values))


class Bus:
    """One connection to a bus, used only in the loop that it was opened in."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._handlers: dict[tuple[str, str, str], SignalHandler] = {}
        connection.add_message_handler(self._on_message)

    @property
    def connected(self) -> bool:
        """Tell whether messages can be sent."""
        return bool(self._connection.connected)

    async def call(
        self,
        destination: str,
        path: str,
        member: str,
        signature: str = "",
        *body: object,
        interface: str = "",
        timeout_secs: float = CALL_TIMEOUT_SECS,
        interactive: bool = False,
    ) -> list[Any]:
        """Call a method and return the values of its reply.

        Args:
            destination: a bus name; also the interface, unless `interface` is given.
            path: the object.
            member: the method.
            signature: of the arguments.
            body: the arguments.
            interface: the interface, when it is not called as the destination.
            timeout_secs: how long an answer is waited for.
            interactive: our user may be asked for a password.

        Raises:
            CallFailedError: it was answered with an error.
            BusTimeoutError: no answer came in time.
            BusLostError: the bus has gone.
        """
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        message = Message(
            destination=destination,
            path=path,
            interface=interface or destination,
            member=member,
            signature=signature,
            body=list(body),
            flags=flags,
        )
        if not self.connected:
            raise BusLostError("the bus has gone")
        try:
            async with asyncio.timeout(timeout_secs):
                reply = await self._connection.call(message)
        except TimeoutError:
            raise BusTimeoutError(
                f"{destination} did not answer {member} within {timeout_secs:.0f} s"
            ) from None
        except (OSError, EOFError) as error:
            raise BusLostError(f"the bus has gone: {error}") from error
        return _values(reply)

    async def own(self, name: str) -> None:
        """Become the owner of a bus name.

        Raises:
            BusNameError: the policy forbids it, or somebody else has it.
        """
        try:
            [answer] = await self.call(
                BUS, BUS_PATH, "RequestName", "su", name, NameFlag.DO_NOT_QUEUE.value
            )
        except CallFailedError as error:
            raise BusNameError(f"{name}: {error}") from error
        owned = {RequestNameReply.PRIMARY_OWNER.value, RequestNameReply.ALREADY_OWNER.value}
        if answer not in owned:
            raise BusNameError(f"{name} is owned by somebody else")

    @property
    def unique_name(self) -> str:
        """Our own name on the bus."""
        return str(self._connection.unique_name)

    async def listen(
        self, sender: str, interface: str, member: str, handler: SignalHandler, *, arg0: str = ""
    ) -> None:
        """Call `handler` for each such signal.

        Args:
            sender: the unique name, or the bus itself. Anybody may send us a signal with any
                interface, past all rules: only what comes from here is believed.
            interface: of the signal.
            member: the signal.
            handler: gets member and body.
            arg0: the first argument, when only some are wanted.
        """
        self._handlers[sender, interface, member] = handler
        words = {"sender": sender, "interface": interface, "member": member}
        words |= {"arg0": arg0} if arg0 else {}
        rule = ",".join(["type='signal'", *(f"{key}='{word}'" for key, word in words.items())])
        await self.call(BUS, BUS_PATH, "AddMatch", "s", rule)

    def export(
        self, path: str, interface: Interface, values: Mapping[str, object] = MappingProxyType({})
    ) -> Exported:
        """Offer an interface at a path; `values` is where its properties are read from."""
        service = _service(interface, values)
        self._connection.interfaces[service] = interface
        self._connection.export(path, service)
        return Exported(self, path, interface, service)

    def send_signal(
        self, path: str, interface: str, member: str, signature: str, body: list[object]
    ) -> None:
        """Send a signal; nothing happens when the bus has gone."""
        if self.connected:
            message = Message.new_signal(path, interface, member, signature, body)
            _forget(self._connection.send(message))

    async def ended(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        with contextlib.suppress(Exception):
            await self._connection.wait_for_disconnect()  # type: ignore[no-untyped-call]  # the library

    async def close(self) -> None:
        """End the connection; what is being answered answers that it was cancelled."""
        answering = [*self._connection.answering]
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await self._drain()
        self._connection.give_up()

    async def _drain(self) -> None:
        """Let the last answers out; a bus that does not take them is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECS):
                while self.connected and self._connection.is_writing():  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.01)

    def _on_message(self, message: Message) -> bool:
        if message.message_type is not MessageType.SIGNAL:
            return False
        named = (message.sender or "", message.interface or "", message.member or "")
        handler = self._handlers.get(named)
        if handler is not None:
            handler(message.member, message.body)
        return False


async def open_bus(address: str) -> Bus:
    """Connect to the bus at a D-Bus address.

    Raises:
        BusUnreachableError: nobody is there, or it does not let us in.
    """
    _quiet_the_library()
    connection = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECS):
            connection = _Connection(address)
            await connection.connect()
    except (OSError, EOFError, AuthError, DBusError, ValueError, TypeError) as error:
        if connection is not None:
            connection.give_up()
        words = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
        raise BusUnreachableError(f"bus {address} cannot be used: {words}") from error
    return Bus(connection)


class _PatientSocket:
    """A socket whose `send` says that it sent nothing when the other side is slow."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0


class _BoundedUnmarshaller(Unmarshaller):
    """Reads past messages that are too large, without keeping them."""

    _left = 0  # bytes of such a message still to come

    @override
    def _unmarshall(self) -> None:
        while True:
            self._read_past()
            self.offset = 0
            self.read(16, prefetch=True)  # type: ignore[no-untyped-call]  # the library's
            order = "<" if self.buf[0] == ord("l") else ">"
            body, _serial, fields = struct.unpack_from(f"{order}III", self.buf, 4)
            size = 16 + fields + -fields % 8 + body
            is_call = self.buf[1] == MessageType.METHOD_CALL.value
            if size <= (CALL_MAX_BYTES if is_call else MESSAGE_MAX_BYTES):
                super()._unmarshall()  # type: ignore[no-untyped-call]  # the library's
                return
            self._left, self.buf = size - len(self.buf), bytearray()

    def _read_past(self) -> None:
        while self._left:
            data = self.stream.read(min(self._left, 64 * 1024))
            if data == b"":
                raise EOFError
            if data is None:
                raise MarshallerStreamEndError
            self._left -= len(data)


class _Connection(MessageBus):
    """The library's bus with its faults mended.

    Attributes:
        interfaces: the table behind each exported service.
        answering: the calls that are being answered.
    """

    def __init__(self, address: str) -> None:
        try:
            super().__init__(bus_address=address)
        except BaseException:
            self._close_socket()
            raise
        self._writer.sock = _PatientSocket(self._sock)
        self.interfaces: dict[ServiceInterface, Interface] = {}
        self.answering: set[asyncio.Task[None]] = set()

    def give_up(self) -> None:
        """End it now."""
        self._user_disconnect = True
        self._finalize(None)  # type: ignore[no-untyped-call]  # the library's
        self._close_socket()

    def is_writing(self) -> bool:
        """Tell whether something waits to be sent."""
        return self._writer.buf is not None or not self._writer.messages.empty()

    def _close_socket(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._sock.close()  # not flushed: nothing is ever written through the stream alone
            self._stream.close()

    @override
    def _create_unmarshaller(self) -> Unmarshaller:
        return _BoundedUnmarshaller(self._stream)  # type: ignore[no-untyped-call]  # the library's

    @override
    def _on_message(self, msg: Message) -> None:
        if len(SignatureTree._cache) > SIGNATURES_MAX:  # noqa: SLF001
            SignatureTree._cache.clear()  # noqa: SLF001
        super()._on_message(msg)  # type: ignore[no-untyped-call]  # the library's

    @override
    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            piece = await self._loop.sock_recv(self._sock, 1)
            if not piece:
                raise AuthError("the bus hung up during authentication")
            line += piece
            if len(line) > AUTH_LINE_MAX_BYTES:
                raise AuthError("the bus said too much during authentication")
        return line[:-2].decode(errors="replace")

    @override
    def _make_method_handler(self, interface: ServiceInterface, method: Any) -> Any:
        def handler(message: Message, _send_reply: object) -> None:
            words = self.interfaces[interface].error_words
            if len(self.answering) >= ANSWERS_MAX:
                busy = InternalError(f"{ANSWERS_MAX} calls are being answered already")
                self._reply(message, _error(message, words(busy)))
                return
            task = self._loop.create_task(self._answer(message, method, words))
            self.answering.add(task)
            task.add_done_callback(self.answering.discard)

        return handler

    async def _answer(
        self,
        message: Message,
        method: Any,  # noqa: ANN401  # the library's
        words: Callable[[AnyRoomError], ErrorWords],
    ) -> None:
        """Run a method and send what it gives, or its error in words; never a stack."""
        asked = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        try:
            values = await method.fn(Caller(message.sender, asked), *message.body)
            answer = Message.new_method_return(message, method.out_signature, list(values))
            # A value of another type is told, not lost.
            answer._marshall(negotiate_unix_fd=False)  # type: ignore[no-untyped-call]  # noqa: SLF001
        except ROOM_ERRORS as error:
            answer = _error(message, words(error))
        except asyncio.CancelledError:
            text = "the service ends"
            self._reply(message, _error(message, (error_name("cancelled"), "s", [text])))
            raise
        except Exception:
            log.exception("call failed member=%s", message.member)
            internal = InternalError(f"{message.member} failed in a way that nobody expected")
            answer = _error(message, words(internal))
        self._reply(message, answer)

    def _reply(self, message: Message, answer: Message) -> None:
        if self.connected and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            _forget(self.send(answer))


def _error(message: Message, words: ErrorWords) -> Message:
    name, signature, body = words
    body = [_sendable(value) for value in body]
    return Message(
        message_type=MessageType.ERROR,
        reply_serial=message.serial,
        destination=message.sender,
        error_name=name,
        signature=signature,
        body=body,
    )


def _sendable(value: object) -> object:
    """Return a text as the bus takes it: bounded, and without NUL."""
    return value[:TEXT_MAX_CHARS].replace("\0", "\ufffd") if isinstance(value, str) else value


def _values(reply: Message | None) -> list[Any]:
    if reply is None:  # never: we always ask for one
        return []
    if reply.message_type is MessageType.ERROR:
        sentence = reply.body[0] if reply.body else ""
        raise CallFailedError(str(reply.error_name), str(sentence))
    return list(reply.body)


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody waits for a message to be out; the end of the bus is seen elsewhere."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


def _service(interface: Interface, values: Mapping[str, object]) -> ServiceInterface:
    """Return what the library exports for an interface."""
    members: dict[str, object] = {}
    for method in interface.methods:
        members[method.name] = _method(method)
    for name, signature in interface.properties.items():
        members[name] = _property(name, signature, values)
    for name, arguments in interface.signals.items():
        members[name] = _signal(name, arguments)
    service: ServiceInterface = type("Service", (ServiceInterface,), members)(interface.name)
    return service


def _method(method: Method) -> object:
    async def answer(_service: object, caller: Caller, *arguments: object) -> Sequence[object]:
        return await method.do(caller, *arguments)

    _sign(answer, method.name, method.takes, "".join(method.gives.values()))
    wrapped = dbus_next.service.method()(answer)
    told = wrapped.__dict__["__DBUS_METHOD"]
    # The library's handler is replaced, which gives the caller as one argument more.
    told.fn = lambda caller, *arguments: answer(None, caller, *arguments)
    outs = [_argument(name, kind) for name, kind in method.gives.items()]
    told.introspection = introspection.Method(method.name, told.introspection.in_args, outs)
    return wrapped


def _property(name: str, signature: str, values: Mapping[str, object]) -> object:
    def read(_service: object) -> object:
        return values[name]

    _sign(read, name, NONE, signature)
    return dbus_next.service.dbus_property(access=PropertyAccess.READ)(read)


def _signal(name: str, arguments: Arguments) -> object:
    def send(_service: object) -> None:
        """Never called: `Exported.emit` sends."""

    _sign(send, name, NONE, "".join(arguments.values()))
    wrapped = dbus_next.service.signal()(send)
    told = wrapped.__dict__["__DBUS_SIGNAL"]
    named = [_argument(argument, kind) for argument, kind in arguments.items()]
    told.introspection = introspection.Signal(name, named)
    return wrapped


def _argument(name: str, signature: str) -> introspection.Arg:
    return introspection.Arg(signature, ArgDirection.OUT, name)  # type: ignore[arg-type]  # its own hint is wrong


def _sign(function: Any, name: str, takes: Arguments, gives: str) -> None:  # noqa: ANN401  # a function
    """Give a function the name and annotations from which the library reads D-Bus types."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", positional)]
    parameters += [inspect.Parameter(a, positional, annotation=s) for a, s in takes.items()]
    returns = gives or inspect.Signature.empty
    function.__signature__ = inspect.Signature(parameters, return_annotation=returns)
    function.__name__ = name


class _NoStacks(logging.Filter):
    """Keeps the library's words off the root logger: one line at DEBUG is enough."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if not record.pathname.startswith(_LIBRARY):
            return True
        log.debug("library says: %s", record.getMessage().partition("\n")[0])
        return False


_FILTER: Final = _NoStacks()


def _quiet_the_library() -> None:
    root = logging.getLogger()
    if _FILTER not in root.filters:
        root.addFilter(_FILTER)
