"""The bus of the Redis engine: invalidations by pub/sub.

Invariants:

* Everything happens in the bus's own Trio run; what is published from another thread is handed over to it.
* Either the connection stands and hears, or there is an outage: each listener has been told of it once, and is told
  that it may have missed something as soon as the connection stands again.
* What is published stays in the outbox until the server has taken it. An invalidation may be sent twice; it does no
  harm. An outbox that grows too long becomes shorter by dropping more at the receivers.
"""

from __future__ import annotations

from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING
from uuid import uuid4

import trio
from trio.lowlevel import enable_ki_protection

from .._errors import StoreError
from .._events import logger
from ._bus_audience import Audience
from ._bus_messages import item_of, read_items, write_items
from ._redis_link import Link

if TYPE_CHECKING:
    from .._owner import Owner
    from ..abc import Listener
    from ._bus_messages import Item, What
    from ._redis_address import Address

__all__ = ("RedisBus",)

# Seconds: what one try to connect may take, the shortest and the longest pause after it, and between two looks whether
# the server still answers. Another try starts at least every two seconds.
_TRY = 1.9
_SHORTEST, _LONGEST = 0.05, 1.0
_LOOK_EVERY = 2.0
# Seconds that closing waits for what is still to be sent.
_FAREWELL = 1.0
# How many items one message carries, and how many an outage may pile up.
_PACKET = 200
_MOST = 10_000


class RedisBus:
    """A :class:`~trio_renew.Bus` over a server. Made by :func:`open_redis_bus`."""

    __slots__ = (
        "_audience",
        "_channel",
        "_id",
        "_link",
        "_opened",
        "_outage",
        "_outbox",
        "_owner",
        "_scope",
        "_sending",
        "_sent",
        "_token",
        "_wake",
    )

    def __init__(self, owner: Owner, address: Address, channel: bytes) -> None:
        self._owner = owner
        self._channel = channel
        self._id = uuid4().hex
        self._token = trio.lowlevel.current_trio_token()
        self._link = Link(
            owner, address, channel, heard=self._heard, lost=self._wake_up, patience=_TRY, must_listen=True
        )
        self._audience = Audience()
        #: In the order in which they were published; a dict, because once is enough.
        self._outbox: dict[Item, None] = {}
        #: What the server has not yet taken.
        self._sending: list[Item] = []
        self._outage: StoreError | None = None
        self._opened = trio.Event()
        self._wake = trio.Event()
        self._sent = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        owner.on_closing(self._scope.cancel)

    async def open(self) -> None:
        """Start, and wait for the first connection, or for the first failure to make one."""
        self._owner.start(self._serve, "bus")
        await self._opened.wait()

    async def say_farewell(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        """Wait a little for the server to take what is still in the outbox, unless there is an outage."""
        with trio.move_on_after(_FAREWELL, shield=True):  # noqa: ASYNC912 - as above
            while (self._outbox or self._sending) and self._outage is None:
                await self._sent.wait()

    # The protocol

    def attach(self, listener: Listener) -> None:
        """Let a listener take part from now on; it is told of an outage at once.

        Raises:
          trio.ClosedResourceError: The bus is closed.
        """
        self._owner.check()
        if self._audience.add(listener) and self._outage is not None:
            self._audience.failed(self._outage, listener)

    def detach(self, listener: Listener) -> None:
        """Let a listener hear nothing any more."""
        self._audience.remove(listener)

    def publish(self, sender: Listener, what: What, key: object) -> None:
        """Tell all others of the sender's name. Neither waits nor raises; after closing it does nothing.

        May be called from any thread.
        """
        if get_ident() == self._owner.thread:
            self._publish(sender, what, key)
        else:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._publish_here, sender, what, key)

    def _publish_here(self, sender: Listener, what: What, key: object) -> None:
        try:
            self._publish(sender, what, key)
        except BaseException as exc:  # noqa: ASYNC103 - it leaves the owner
            # An interrupted observer of a sibling: raised here, it would end the run as Trio's own failure.
            self._owner.crash(exc)

    @enable_ki_protection
    def _publish(self, sender: Listener, what: What, key: object) -> None:
        if self._owner.closed:
            return
        name = sender.name
        if len(self._outbox) >= _MOST:
            self._outbox = dict.fromkeys((each, "all", "null") for each, _, _ in self._outbox)
        self._outbox[item_of(name, what, key)] = None
        self._wake_up()
        self._audience.pass_on(name, what, key, sender=sender)

    # What the listeners are told

    def _heard(self, channel: bytes, message: bytes) -> None:
        try:
            sender, items = read_items(message)
        except ValueError:
            # Whatever it was meant to say, nobody has heard it.
            logger.warning("a message on the bus channel %r cannot be read", channel)
            self._audience.missed()
            return
        if sender != self._id:
            for name, what, key in items:
                self._audience.pass_on(name, what, key)

    # The task

    def _wake_up(self) -> None:
        self._wake.set()

    async def _serve(self) -> None:
        pause = _SHORTEST
        with self._scope:
            while True:
                started = trio.current_time()
                try:
                    await self._link.connect()
                    await self._send()
                except StoreError as error:
                    if self._outage is None:
                        pause = _SHORTEST
                    self._fall(error)
                    left = started + _TRY - trio.current_time()
                    await trio.sleep(max(min(pause, left), _SHORTEST))
                    pause = min(2 * pause, _LONGEST)

    def _stand(self) -> None:
        if self._outage is not None:
            self._outage = None
            self._audience.missed()
        self._opened.set()

    def _fall(self, error: StoreError) -> None:
        self._outbox = {**dict.fromkeys(self._sending), **self._outbox}
        self._sending = []
        if self._outage is None:
            self._outage = error
            self._audience.failed(error)
        self._opened.set()
        self._all_sent()

    def _all_sent(self) -> None:
        self._sent.set()
        self._sent = trio.Event()

    async def _send(self) -> None:
        """Send what is published, as long as the connection stands.

        Raises:
          StoreError: It does not any more.
        """
        while True:
            self._wake = trio.Event()
            if not self._outbox:
                # What was lost before there was this event has woken nobody.
                await self._link.ask(b"PING")
            while self._outbox:
                self._sending = list(self._outbox)[:_PACKET]
                for item in self._sending:
                    del self._outbox[item]
                await self._link.ask(b"PUBLISH", self._channel, write_items(self._id, self._sending))
                self._sending = []
            # Only now: where we may not publish the outage goes on, however well the connection stands.
            self._stand()
            self._all_sent()
            with trio.move_on_after(_LOOK_EVERY):
                await self._wake.wait()
