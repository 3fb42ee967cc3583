"""The bus of the Redis engine: invalidations by pub/sub.

Invariants:

* Either the connection stands and hears, or there is an outage: each listener has been told of it once, and is told
  that it may have missed something as soon as the connection stands again.
* What is published stays until the server has taken it. An invalidation may be sent twice; it does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import trio

from .._errors import StoreError
from .._events import logger
from ._bus_audience import EngineBus
from ._bus_messages import read_items, write_items
from ._redis_link import Link

if TYPE_CHECKING:
    from .._owner import Owner
    from ._bus_messages import Item
    from ._redis_address import Address

__all__ = ("RedisBus",)

# Seconds: what one try to connect may take, the shortest and the longest pause after it, and between two looks whether
# the server still answers. Another try starts at least every two seconds.
_TRY = 1.9
_SHORTEST, _LONGEST = 0.05, 1.0
_LOOK_EVERY = 2.0
# Seconds that closing waits for what is still to be sent.
_FAREWELL = 1.0
# How many items one message carries.
_PACKET = 200


class RedisBus(EngineBus):
    """A :class:`~trio_renew.Bus` over a server. Made by :func:`open_redis_bus`."""

    __slots__ = (
        "_channel",
        "_id",
        "_link",
        "_opened",
        "_sending",
        "_sent",
    )

    def __init__(self, owner: Owner, address: Address, channel: bytes) -> None:
        super().__init__(owner)
        self._channel = channel
        self._id = uuid4().hex
        self._link = Link(
            owner, address, channel, heard=self._heard, lost=self._wake_up, patience=_TRY, must_listen=True
        )
        #: What the server has not yet taken.
        self._sending: list[Item] = []
        self._opened = trio.Event()
        self._sent = trio.Event()

    async def open(self) -> None:
        """Start, and wait for the first connection, or for the first failure to make one."""
        self._owner.start(self._serve, "bus")
        await self._opened.wait()

    async def say_farewell(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        """Wait a little for the server to take what is still in the outbox, unless there is an outage."""
        with trio.move_on_after(_FAREWELL, shield=True):  # noqa: ASYNC912 - as above
            while (self._outbox or self._sending) and self._outage is None:
                await self._sent.wait()

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
