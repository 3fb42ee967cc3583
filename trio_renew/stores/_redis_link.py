"""One connection to a Redis or Valkey server, made again when it is lost: commands, scripts and messages.

Invariants:

* The connection lives in tasks of the owner, never in a caller's: a cancelled caller leaves it as it is, and what the
  caller had sent happens on the server wholly or not at all.
* Nothing is sent twice. A call whose answer is lost is a :class:`~trio_renew.StoreError`; whether it happened is not
  known. So that this is rare, a connection that the server has closed is found out before anything is sent on it.
* No call takes longer than :data:`PATIENCE`, connecting included. A connection that does not answer is given up.
* Whoever subscribes and then looks on the same connection misses nothing: the server answers in order. When the
  connection is lost, everybody who listens is told to look again.
"""

from __future__ import annotations

import socket
from contextlib import aclosing, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import trio
from anyio.abc import SocketAttribute, TaskStatus
from coredis.connection import BaseConnection
from coredis.exceptions import AuthorizationError, ConnectionError as LostError, NoScriptError
from trio.lowlevel import enable_ki_protection

from .._errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from anyio.abc import ByteStream

    from .._owner import Owner
    from ._redis_address import Address
    from ._redis_scripts import Script

__all__ = ("PATIENCE", "Link")

#: Seconds that a call may take.
PATIENCE = 5.0


class _Connection(BaseConnection):
    """A connection over a stream that is there already: coredis leaks its buffers when it cannot connect."""

    def __init__(self, address: Address, stream: ByteStream) -> None:
        super().__init__(address.location, **address.settings)
        self._made = stream
        self._socket: socket.socket = stream.extra(SocketAttribute.raw_socket)
        #: The scripts that the server has got over this connection, so that their digests do.
        self.scripts: set[bytes] = set()
        self.channels: set[bytes] = set()

    async def _connect(self) -> ByteStream:
        return self._made  # noqa: ASYNC910 - it is connected

    def describe(self) -> str:
        """Say where it leads to, without credentials; coredis asks."""
        return f"{type(self).__name__}<{self.location}>"

    def request(self, command: Sequence[bytes | int], patience: float | None = None) -> Awaitable[Any]:
        """Send a command; awaiting what this gives is waiting for the answer."""
        name, *args = command
        assert isinstance(name, bytes)
        return self.create_request(name, *args, decode=False, timeout=patience)

    def alive(self) -> bool:
        """Say whether the server has, as far as one can know, not hung up."""
        if not self.usable:
            return False
        try:
            # Trio has made it one that does not block.
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


def was_lost(error: StoreError) -> bool:
    """Say whether the connection was lost under a call, so that nobody knows whether it was done."""
    return isinstance(error.__cause__, LostError)


def _evaluation(
    connection: _Connection, script: Script, keys: Sequence[bytes], args: Sequence[bytes | int]
) -> tuple[bytes | int, ...]:
    if script.digest in connection.scripts:
        return (b"EVALSHA", script.digest, len(keys), *keys, *args)
    connection.scripts.add(script.digest)
    return (b"EVAL", script.text, len(keys), *keys, *args)


class _Attempt(TaskStatus[None]):
    """One try to connect, shared by all who wait for it."""

    def __init__(self, ready: Callable[[_Attempt], None], patience: float) -> None:
        self._ready = ready
        self.done = trio.Event()
        self.scope = trio.CancelScope(shield=True, deadline=trio.current_time() + patience)
        self.connection: _Connection | None = None
        self.established = False
        self.error: Exception | None = None

    def started(self, value: None = None) -> None:
        """Hear from coredis that the connection is ready."""
        self._ready(self)


class Link:
    """The connection of a bundle of stores, or of a bus.

    Args:
      owner: Whose tasks it runs in.
      address: Where the server is.
      home: A channel that every connection subscribes to; it shows whether the server lets us.
      heard: Called with channel and message for each message of a channel that is subscribed to.
      lost: Called when an open connection has ended, for whatever reason.
      patience: Seconds that connecting may take.
      must_listen: Whether a connection that may not subscribe is none.
    """

    __slots__ = (
        "_address",
        "_attempt",
        "_connection",
        "_heard",
        "_home",
        "_lost",
        "_must_listen",
        "_owner",
        "_patience",
        "may_listen",
    )

    def __init__(
        self,
        owner: Owner,
        address: Address,
        home: bytes,
        *,
        heard: Callable[[bytes, bytes], None],
        lost: Callable[[], None],
        patience: float = PATIENCE,
        must_listen: bool = False,
    ) -> None:
        self._owner = owner
        self._address = address
        self._home = home
        self._heard = heard
        self._lost = lost
        self._patience = patience
        self._must_listen = must_listen
        self._connection: _Connection | None = None
        self._attempt: _Attempt | None = None
        #: Whether the server lets us subscribe; if it does not, whoever waits has to look every now and then.
        self.may_listen: bool = True
        owner.on_closing(self._close)

    def __repr__(self) -> str:
        return f"redis at {self._address.location}"

    def _close(self) -> None:
        if self._attempt is not None:
            self._attempt.scope.cancel()
        if self._connection is not None:
            self._connection.invalidate("closed")

    # Calls

    async def call(self, *command: bytes | int) -> Any:
        """Send one command and wait for the answer: one round trip, and at least one checkpoint.

        Raises:
          StoreError: No connection, no answer in time, or the server refuses.
          trio.ClosedResourceError: The owner is closed, or closes meanwhile.
        """
        connection, patience = await self._ready()
        return await self._ask(connection, patience, command)

    async def ask(self, *command: bytes | int) -> Any:
        """Do what :meth:`call` does over the open connection only: without one it is a StoreError."""
        self._owner.check()
        connection = self._connection
        if connection is None:
            await trio.lowlevel.checkpoint()
            raise StoreError(f"{self!r}: the connection is lost")
        return await self._ask(connection, PATIENCE, command)

    async def run(self, script: Script, keys: Sequence[bytes], *args: bytes | int, channel: bytes | None = None) -> Any:
        """Run a script: one round trip, and at least one checkpoint.

        Args:
          script: What is run.
          keys: Its KEYS.
          *args: Its ARGV.
          channel: Subscribe to this first, where that is allowed.

        Raises:
          StoreError: As for :meth:`call`.
          trio.ClosedResourceError: As for :meth:`call`.
        """
        connection, patience = await self._ready()
        if channel is not None and self.may_listen and channel not in connection.channels:
            connection.channels.add(channel)
            connection.send_command(b"SUBSCRIBE", channel)
        try:
            return await self._ask(connection, patience, _evaluation(connection, script, keys, args))
        except NoScriptError:
            # Somebody has made the server forget its scripts.
            connection.scripts.clear()
        return await self._ask(connection, patience, _evaluation(connection, script, keys, args))

    async def _ask(self, connection: _Connection, patience: float, command: tuple[bytes | int, ...]) -> Any:
        try:
            return await connection.request(command, patience)
        except NoScriptError:
            raise
        except Exception as error:
            if self._owner.closed:
                self._owner.refuse()
            if isinstance(error, TimeoutError):
                # Whatever is wrong with it, the next call shall not wait for it.
                self._drop(connection)
                raise StoreError(f"{self!r}: no answer within {PATIENCE:g} s") from error
            raise StoreError(f"{self!r}: {error}") from error

    def mention(self, script: Script, keys: Sequence[bytes], *args: bytes | int) -> None:
        """Run a script over the open connection, if there is one, without waiting for the answer."""
        connection = self._connection
        if connection is not None and connection.usable:
            connection.request(_evaluation(connection, script, keys, args))

    def unsubscribe(self, channel: bytes) -> None:
        """Hear nothing more of a channel."""
        connection = self._connection
        if connection is not None and channel in connection.channels:
            connection.channels.discard(channel)
            if connection.usable:
                connection.send_command(b"UNSUBSCRIBE", channel)

    # The connection

    async def _ready(self) -> tuple[_Connection, float]:
        self._owner.check()
        await trio.lowlevel.checkpoint_if_cancelled()
        until = trio.current_time() + PATIENCE
        connection = self._connection or await self._connect()
        while not connection.alive():
            # The server has hung up, perhaps before we had our turn; the connection's own task may not know yet.
            self._drop(connection)
            if trio.current_time() >= until:
                raise StoreError(f"{self!r}: each connection was lost at once, for {PATIENCE:g} s")
            connection = self._connection or await self._connect()
        return connection, max(until - trio.current_time(), 0.001)

    def _drop(self, connection: _Connection) -> None:
        connection.invalidate("given up")
        if self._connection is connection:
            self._connection = None

    async def connect(self) -> None:
        """Wait until there is a connection, making one if there is none.

        Raises:
          StoreError: It cannot be made.
          trio.ClosedResourceError: The owner is closed, or closes meanwhile.
        """
        self._owner.check()
        await trio.lowlevel.checkpoint()
        if self._connection is None:
            await self._connect()

    async def _connect(self) -> _Connection:
        attempt = self._begin()
        await attempt.done.wait()
        if self._owner.closed:
            self._owner.refuse()
        if attempt.connection is None or not attempt.established:
            raise StoreError(f"{self!r}: {self._reason(attempt)}") from attempt.error
        return attempt.connection

    @enable_ki_protection
    def _begin(self) -> _Attempt:
        if self._attempt is None:
            self._attempt = _Attempt(self._established, self._patience)
            self._owner.start(partial(self._live, self._attempt), f"connection to {self._address.location}")
        return self._attempt

    def _reason(self, attempt: _Attempt) -> str:
        if attempt.error is None:
            return f"no answer within {self._patience:g} s"
        return str(attempt.error) or type(attempt.error).__name__

    async def _live(self, attempt: _Attempt) -> None:  # noqa: ASYNC910 - a task's own work
        with attempt.scope:
            may_listen = self.may_listen
            try:
                try:
                    await self._hold(attempt)
                except AuthorizationError:
                    if self.may_listen == may_listen:
                        raise
                    await self._hold(attempt)
            except Exception as error:
                # One that had to end is told of as such, whatever it has ended with.
                attempt.error = None if attempt.scope.cancel_called else error
        if attempt.established:
            if self._connection is attempt.connection:
                self._connection = None
            self._lost()
        else:
            self._attempt = None
            attempt.done.set()

    async def _hold(self, attempt: _Attempt) -> None:
        """Make a connection, and stay until it ends."""
        attempt.connection = _Connection(self._address, await self._address.connect())
        attempt.connection.register_connect_callback(self._settle_in)
        await attempt.connection.run(task_status=attempt)

    async def _settle_in(self, connection: BaseConnection) -> None:  # noqa: ASYNC910 - it may have nothing to say
        if self.may_listen:
            connection.send_command(b"SUBSCRIBE", self._home)
            try:
                # Subscribing is answered by a message, refusing it by an error: in the place of the next answer. That
                # must not be one that somebody waits for.
                await connection.create_request(b"PING", decode=False)
            except AuthorizationError:
                self.may_listen = self._must_listen
                raise

    def _established(self, attempt: _Attempt) -> None:
        assert attempt.connection is not None
        attempt.scope.deadline = inf
        attempt.established = True
        self._connection = attempt.connection
        self._attempt = None
        attempt.done.set()
        self._owner.start(partial(self._listen, attempt.connection), f"messages from {self._address.location}")

    async def _listen(self, connection: _Connection) -> None:  # noqa: ASYNC910 - a task's own work
        with trio.CancelScope(shield=True), suppress(LostError):
            pushed: AsyncGenerator[list[Any], None] = connection.push_messages
            async with aclosing(pushed) as messages:
                async for message in messages:
                    if message[0] == b"message":
                        self._heard(message[1], message[2])
