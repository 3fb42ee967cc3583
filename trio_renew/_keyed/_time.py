"""The time of one cache or pool.

Invariants:

* What is kept (stored, deadline, due, idle, failed) is an instant of a time line of our own: the owner's clock less
  what its anchor has moved since. So when the anchor moves, what is left of each life stays, and nothing is touched.
* The time line goes back where a given clock does, and where the wall clock was ahead for a while. Then ``rewind`` is
  called with the new time before anybody gets it, so that nothing is prolonged by more than its own length.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._clock import Clock

__all__ = ("Timeline",)

# Sleeping ends at least this often where the clock may jump while we sleep.
_LONGEST_SLEEP = 20.0
# What is less than this is no going back: readings are rounded.
_TINY = 0.001


class Timeline:
    """Tell the time, and how long to sleep.

    Args:
      clock: The owner's.
      rewind: Called with the new time when it has gone back.

    Attributes:
      shift: Clock minus time line.
    """

    __slots__ = ("_anchor", "_clock", "_given", "_latest", "_rewind", "_trio_clock", "shift")

    def __init__(self, clock: Clock, rewind: Callable[[float], None]) -> None:
        self._clock = clock
        self._rewind = rewind
        self._given = not (clock.steady or clock.wall_based)
        self._latest = -inf
        self._trio_clock = trio.lowlevel.current_clock()
        self.shift = 0.0
        self._anchor = (clock.now(), trio.current_time()) if clock.steady else (0.0, 0.0)

    def now(self) -> float:
        """Read the time line; may fail where a given clock does."""
        return self._follow(self._clock.now() - self.shift)

    def last(self) -> float:
        """Read it where nothing may fail."""
        return self._follow(self._clock.last() - self.shift)

    def arrived(self) -> float:
        """A fresh value arrives: from here on the wall clock is right. Reads the time line."""
        clock = self._clock
        if not clock.wall_based:
            return self.last()
        self.shift += clock.reanchor()
        return self._follow(clock.anchor[0] - self.shift)

    def elsewhere(self) -> float:
        """Read it from any thread, as well as that can be done."""
        clock = self._clock
        if self._given:
            return clock.last()
        wall, since = clock.anchor if clock.wall_based else self._anchor
        reading = wall + (self._trio_clock.current_time() - since)
        if clock.wall_based:
            reading = max(reading, time.time())
        return reading - self.shift

    def wake_at(self, instant: float) -> float:
        """When, on Trio's clock, to look whether an instant has come."""
        seconds = max(0.0, instant - self.last())
        if not self._clock.steady:
            seconds = min(seconds, _LONGEST_SLEEP)
        return trio.current_time() + seconds

    def _follow(self, now: float) -> float:
        if now > self._latest:
            self._latest = now
        elif now < self._latest - _TINY:
            self._latest = now
            self._rewind(now)
        return now
