"""Who listens to a bus object.

Invariants:

* Everybody who is concerned is told, whatever the others do: one that raises is logged and changes nothing, and an
  interrupt (of the observer of a cache, say) is raised when all have been told.
* Each listener takes part once, by identity: listeners need not be hashable, nor differ from each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .._events import logger
from .._raising import call_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..abc import Listener
    from ._bus_messages import What

__all__ = ("Audience",)


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
