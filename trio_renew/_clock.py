"""What time it is, for everybody in the house.

Invariants:

* All instants are POSIX seconds. Decisions read one clock; waiting is on Trio's clock.
* Under Trio's own clock the time is the later one of the wall clock and of a wall reading (the anchor) plus Trio's
  elapsed time. A suspended machine moves the first, a wall clock that is stepped back does not move the second.
* Under any other Trio clock (``MockClock``) one anchor holds for the whole run, in whole seconds, and the wall clock
  is not looked at again: ``trio.sleep(800)`` ages every value by exactly 800 seconds.
* A given clock is the only one that is read. What it raises, or a reading that is no instant, goes to whoever asked.
"""

from __future__ import annotations

import time
from math import inf, isfinite
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Clock", "under_test_clock", "wall_now")

# (wall seconds, Trio seconds) at the first use in this run.
_run_anchor: trio.lowlevel.RunVar[tuple[float, float]] = trio.lowlevel.RunVar("trio_renew.anchor")


def under_test_clock() -> bool:
    """Say whether the current run has another clock than Trio's own; False outside of a run."""
    try:
        clock = trio.lowlevel.current_clock()
    except RuntimeError:
        return False
    kind = type(clock)
    # Trio keeps its own clock's class private; a subclass of the user's counts as another clock.
    return not (kind.__name__ == "SystemClock" and kind.__module__ == "trio._core._run")


def _run_now() -> float:
    """Read the anchor of this run plus Trio's elapsed time."""
    elapsed_to = trio.current_time()
    try:
        wall, since = _run_anchor.get()
    except LookupError:
        wall, since = float(int(time.time())), elapsed_to
        _run_anchor.set((wall, since))
    return wall + (elapsed_to - since)


def wall_now() -> float:
    """Read the time for somebody who owns no clock, in POSIX seconds.

    Under a test clock this is the run's anchor plus Trio's elapsed time; otherwise, and outside of a run, it is
    ``time.time()``.
    """
    return _run_now() if under_test_clock() else time.time()


class Clock:
    """The clock of one owner. Made inside a Trio run.

    Args:
      given: The user's clock; then it is the only one that is read.
    """

    __slots__ = ("_anchor", "_given", "_last", "now", "steady", "wall_based", "went_back")

    #: Read the time, in POSIX seconds.
    now: Callable[[], float]
    #: Whether ``time.time()`` is part of the reading: then a hit may look at the wall clock alone for a while.
    wall_based: bool
    #: Whether it advances exactly with Trio's clock, so that sleeping lands on an instant.
    steady: bool
    #: Called with the new reading where that is before an earlier one: what is given seconds may have to be moved.
    went_back: Callable[[float], None] | None

    def __init__(self, given: Callable[[], float] | None = None) -> None:
        self._anchor: tuple[float, float] | None = None
        self.went_back = None
        self.wall_based = self.steady = False
        self._last = 0.0
        if given is not None:
            self._given = given
            self.now = self._read_given
        elif under_test_clock():
            self.steady = True
            self.now = _run_now
        else:
            self.wall_based = True
            self.now = self._later_of_both
            self.reanchor()

    @property
    def anchor(self) -> tuple[float, float]:
        """Where the wall clock counts: a reading of it, and Trio's time then."""
        return self._anchor or (0.0, 0.0)

    def last(self) -> float:
        """Read it where nothing may fail: a given clock that does is taken to stand still."""
        try:
            return self.now()
        except Exception:
            return self._last

    def reanchor(self) -> float:
        """Take the wall clock's word from here on, where it counts at all. Returns by how much the time moved."""
        if not self.wall_based:
            return 0.0
        wall, since = time.time(), trio.current_time()
        # The reading that this one replaces; none the first time.
        before = wall if self._anchor is None else max(wall, self._anchor[0] + (since - self._anchor[1]))
        self._anchor = wall, since
        if wall < before:
            self._tell_back(wall)
        return wall - before

    def _read_given(self) -> float:
        now = self._given()
        if isinstance(now, bool) or not isinstance(now, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"clock must return POSIX seconds, but it returned a {type(now).__name__}")
        try:
            now = float(now)
        except OverflowError:
            now = inf
        if not isfinite(now):
            raise ValueError(f"clock must return POSIX seconds, but it returned {now!r}")
        before, self._last = self._last, now
        if now < before:
            self._tell_back(now)
        return now

    def _tell_back(self, now: float) -> None:
        if self.went_back is not None:
            self.went_back(now)

    def _later_of_both(self) -> float:
        wall, since = self.anchor
        return max(time.time(), wall + (trio.current_time() - since))
