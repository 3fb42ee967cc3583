"""What the memory stores of one bundle share: a clock, a lifetime, and a sweeper.

Invariants:

* Decisions read one clock: the given one, else Trio's. Instants for people are on the clock of the whole house.
* A given clock that goes back is noticed at its next reading, before anything is decided: what then seems to come
  from the future is dated now. Trio's clock never goes back.
* The sweeper sleeps for good while nothing can expire, so that an idle bundle has no timer.
* Every method of a store is one checkpoint and after it one synchronous step, protected from KeyboardInterrupt:
  cancelled, it has happened wholly or not at all.
"""

from __future__ import annotations

import math
from threading import get_ident
from typing import TYPE_CHECKING, Protocol

import trio
from trio.lowlevel import checkpoint, enable_ki_protection

from .._clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Life", "Part", "seconds_until")

#: Seconds between two sweeps, and how much one may do between two checkpoints.
SWEEP_EVERY = 60.0
SWEEP_SLICE = 1000


class Part(Protocol):
    """A store that has things that expire."""

    def sweepable(self) -> list[str]:
        """Give the keys of what is kept."""
        ...

    def sweep(self, keys: list[str]) -> tuple[int, bool]:
        """Remove what has expired among these; say how much that was, and whether more of these can expire."""
        ...

    def redate(self, now: float) -> None:
        """Date now what seems to come from the future."""
        ...

    def close(self) -> None:
        """Drop everything and wake whoever waits."""
        ...


def seconds_until(deadline: float, now: float) -> float:
    """Give the seconds after which ``now`` has reached the deadline, whatever the rounding; at least 0."""
    wait = max(0.0, deadline - now)
    while now + wait < deadline:
        wait = math.nextafter(wait, math.inf)
    return wait


class Life:
    """The lifetime of one bundle. Made inside a Trio run."""

    __slots__ = ("_given", "_latest", "_parts", "_thread", "_wake", "asleep", "closed", "now", "scope", "wall")

    #: Read the clock that leases, windows and times to live go by.
    now: Callable[[], float]
    #: Read the clock that instants go by, in POSIX seconds.
    wall: Callable[[], float]

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._given = clock
        self._latest = -math.inf
        if clock is None:
            # The clock's own method: half the cost of trio.current_time(), which looks for the run each time.
            self.now = trio.lowlevel.current_clock().current_time
            self.wall = Clock().now
        else:
            self.now = self.wall = self._given_now
        self.closed: bool = False
        self.asleep: bool = True
        self.scope: trio.CancelScope = trio.CancelScope(shield=True)
        self._wake = trio.Event()
        self._parts: tuple[Part, ...] = ()
        self._thread = get_ident()

    @enable_ki_protection
    def _given_now(self) -> float:
        assert self._given is not None
        now = self._given()
        if now < self._latest:
            for part in self._parts:
                part.redate(now)
        self._latest = now
        return now

    def instant(self, at: float) -> float:
        """Give the POSIX instant of a reading of :attr:`now`."""
        return at if self._given is not None else self.wall() + (at - self.now())

    def check(self) -> None:
        """Refuse a call that comes too late, or from another thread."""
        if get_ident() != self._thread:
            raise RuntimeError("memory stores belong to the Trio run, and so to the thread, that opened them")
        if self.closed:
            raise trio.ClosedResourceError("the memory stores are closed")

    async def step(self) -> None:
        """Be the one checkpoint of a method."""
        if get_ident() != self._thread:
            self.check()
        await checkpoint()
        if self.closed:
            self.check()

    @enable_ki_protection
    def wake(self) -> None:
        """Tell the sweeper that there is something that can expire."""
        self.asleep = False
        self._wake.set()

    def adopt(self, *parts: Part) -> None:
        """Take the stores whose lifetime this is."""
        self._parts = parts

    @enable_ki_protection
    def close(self) -> None:
        """End it all: from here on every call is refused."""
        self.closed = True
        self.scope.cancel()
        for part in self._parts:
            part.close()

    @enable_ki_protection
    async def sweep_now_and_then(self) -> None:
        """Remove what has expired, once a minute, as long as anything can expire."""
        with self.scope:
            while True:
                await self._wake.wait()
                await trio.sleep(SWEEP_EVERY)
                # Whatever comes during the sweep wakes the sweeper again.
                self._wake = trio.Event()
                self.asleep = True
                for part in self._parts:
                    await self._sweep(part)

    async def _sweep(self, part: Part) -> None:  # noqa: ASYNC910 - where nothing is swept there is no slice
        keys = part.sweepable()
        for start in range(0, len(keys), SWEEP_SLICE):
            _, more = part.sweep(keys[start : start + SWEEP_SLICE])
            if more and self.asleep:
                self.wake()
            await checkpoint()
