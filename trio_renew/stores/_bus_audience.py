"""What the buses of the engines have in common: who listens to a bus object, and what it still has to send.

Invariants:

* Everything happens in the bus's own Trio run; what is published from another thread is handed over to it.
* Publishing is synchronous: siblings hear it at once, the others get it from the one task of the bus. What cannot be
  sent stays in the outbox; one that grows too long becomes shorter by dropping more at the receivers.
* An outage is told to each listener once, also to those that come during it.
* Everybody who is concerned is told, whatever the others do: one that raises is logged and changes nothing, and an
  interrupt (of the observer of a cache, say) is raised when all have been told.
* Each listener takes part once, by identity: listeners need not be hashable, nor differ from each other.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from .._events import logger
from .._raising import call_all
from ._bus_messages import item_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._errors import StoreError
    from .._owner import Owner
    from ..abc import Listener
    from ._bus_messages import Item, What

__all__ = ("Audience", "EngineBus")

#: How many messages may wait to be sent; beyond that their names say "all".
UNSENT = 10_000


class Audience:
    """The listeners of one bus object."""

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: dict[int, Listener] = {}

    def add(self, listener: Listener) -> bool:
        """Let a listener take part; False when it does already."""
        if id(listener) in self._listeners:
            return False
        self._listeners[id(listener)] = listener
        return True

    def remove(self, listener: Listener) -> None:
        """Let a listener hear nothing any more; fine when it does not take part."""
        self._listeners.pop(id(listener), None)

    def pass_on(self, name: str, what: What, key: object, *, sender: Listener | None = None) -> None:
        """Tell those of a name, but for the sender, of an invalidation."""
        concerned = [each for each in self._listeners.values() if each is not sender and each.name == name]
        self._tell(concerned, lambda each: each.invalidated(what, key))

    def missed(self) -> None:
        """Tell everybody that something may have been missed."""
        self._tell(list(self._listeners.values()), lambda each: each.missed())

    def failed(self, error: Exception, listener: Listener | None = None) -> None:
        """Tell everybody, or one, of an outage."""
        self._tell(list(self._listeners.values()) if listener is None else [listener], lambda each: each.failed(error))

    def _tell(self, listeners: Iterable[Listener], tell: Callable[[Listener], None]) -> None:
        call_all([partial(_hear, tell, listener) for listener in listeners])


def _hear(tell: Callable[[Listener], None], listener: Listener) -> None:
    try:
        tell(listener)
    except Exception:
        logger.exception("a listener of a bus raised")


class EngineBus:
    """A :class:`~trio_renew.Bus` whose one task sends the outbox and hears the other processes."""

    __slots__ = ("_audience", "_outage", "_outbox", "_owner", "_scope", "_token", "_wake")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._token = trio.lowlevel.current_trio_token()
        self._audience = Audience()
        #: In the order in which they were published; a dict, because once is enough.
        self._outbox: dict[Item, None] = {}
        self._outage: StoreError | None = None
        self._wake = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        owner.on_closing(self._scope.cancel)

    def attach(self, listener: Listener) -> None:
        """Let a listener take part from now on; it is told of an outage at once.

        Raises:
          trio.ClosedResourceError: The bus is closed.
        """
        self._owner.check()
        if self._audience.add(listener) and self._outage is not None:
            self._audience.failed(self._outage, listener)

    def detach(self, listener: Listener) -> None:
        """Let a listener hear nothing any more; no error when it does not take part."""
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
        if len(self._outbox) >= UNSENT:
            self._outbox = dict.fromkeys(item_of(each, "all", None) for each, _, _ in self._outbox)
        self._outbox[item_of(name, what, key)] = None
        self._wake.set()
        self._audience.pass_on(name, what, key, sender=sender)
