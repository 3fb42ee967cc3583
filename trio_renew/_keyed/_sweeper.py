"""Who releases what has ended, if nobody touches it.

Invariants:

* Nothing depends on it but memory: every call of the cache looks at the clock itself.
* It sets one alarm, for the next end, and works in pieces with a checkpoint after each, so nobody waits for all of it.
* It starts nothing after closing.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import checkpoint

if TYPE_CHECKING:
    from .._owner import Alarm, Owner
    from ._entries import Entries
    from ._time import Timeline

__all__ = ("Sweeper",)

# Seconds past its end after which an entry is released.
_SLACK = 15.0


class Sweeper:
    """The sweeper of one cache.

    Args:
      owner: Whose nursery it works in.
      time: The cache's time.
      entries: What is swept.

    Attributes:
      next_end: What ends at or after this instant needs no :meth:`watch`.
    """

    __slots__ = ("_alarm", "_entries", "_owner", "_sweeping", "_time", "next_end")

    def __init__(self, owner: Owner, time: Timeline, entries: Entries[Any, Any]) -> None:
        self._owner = owner
        self._time = time
        self._entries = entries
        self._alarm: Alarm | None = None
        self._sweeping = False
        self.next_end = inf

    def watch(self) -> None:
        """See to it that it starts when something ends."""
        end = self._entries.next_end()
        if self._sweeping or self._owner.closed or (self._alarm is not None and end >= self.next_end):
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self.next_end = end
        if end < inf:
            self._alarm = self._owner.alarm(self._time.wake_at(end + _SLACK), self._start)

    def _start(self) -> None:
        self._alarm = None
        if self._entries.sweep(self._time.last()):
            self._sweeping = True
            self._owner.start(self._sweep, "sweeper")
        else:
            self.watch()

    async def _sweep(self) -> None:  # noqa: ASYNC910 - a task's own work
        with trio.CancelScope(shield=True):  # noqa: ASYNC912 - as above
            while not self._owner.closed and self._entries.sweep(self._time.last()):  # noqa: ASYNC110 - a slice a turn
                await checkpoint()
        self._sweeping = False
        self.watch()
