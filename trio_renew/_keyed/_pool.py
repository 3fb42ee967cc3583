"""Many values with a lifetime of their own, by key: opened once for all who want one, borrowed, and closed when unused.

Invariants:

* ``_open`` holds what is open and not retired, in the order of opening (so the soonest deadline comes first); ``_idle``
  those of them that nobody has or is about to get, least recently used first. ``_residents`` is everything that is
  open, retired or not, in the order of opening.
* An opening is a flight; the value lives on in a task of its own (:class:`~._resident.Resident`). A key has at most one
  flight that newcomers join.
* Finding a value and having borrowed it is one step, and so is counting in those who wait for an opening.
* Closing goes through ``_residents`` from the last to the first, one by one: what was built on another value closes
  before it.
"""

from __future__ import annotations

from collections import OrderedDict
from inspect import iscoroutinefunction
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, enable_ki_protection

from .._errors import FetchTimeout
from .._events import FetchFailed, FetchSucceeded
from .._flight import State
from .._values import check_seconds
from ._borrow import Borrow
from ._member import Member
from ._resident import Phase, Resident
from ._rings import AnyFlight, Wait, inside, refuse_own
from ._status import PoolStatus
from ._ttl import check_count, read_ttl

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractAsyncContextManager

    from .._events import Event
    from .._owner import Alarm
    from ..abc import Bus

__all__ = ("ProviderPool",)

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class ProviderPool(Member[K], Generic[K, V]):
    """Open values by key, to be borrowed. Made by :func:`open_provider_pool`.

    ``len(pool)`` counts the open values that are not retired, ``key in pool`` says whether there is one. An empty pool
    is true. On a closed pool they are 0 and False.
    """

    __slots__ = (
        "_alarm",
        "_alarm_for",
        "_idle",
        "_idle_timeout",
        "_max_entries",
        "_open",
        "_open_value",
        "_residents",
        "_ttl",
    )

    def __init__(
        self,
        open_value: Callable[[K], AbstractAsyncContextManager[V]],
        *,
        ttl: float | bool,
        idle_timeout: float,
        max_entries: int,
        fetch_timeout: float | None,
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
        bus: Bus | None,
        name: str | None,
    ) -> None:
        if not callable(open_value):
            raise TypeError(f"open_value must be a function of the key, got {type(open_value).__name__}")
        if iscoroutinefunction(open_value):
            raise TypeError(
                "open_value must return an async context manager, but it is an async function: "
                "make it a plain one that returns open_provider(...), or decorate it with @asynccontextmanager"
            )
        super().__init__(
            fetch_timeout=fetch_timeout, cancel_when_left=True, observe=observe, clock=clock, bus=bus, name=name
        )
        self._ttl = read_ttl(ttl)
        self._idle_timeout = check_seconds("idle_timeout", idle_timeout, allow_inf=True)
        self._max_entries = check_count("max_entries", max_entries)
        self._open_value = open_value
        self._open: OrderedDict[K, Resident[K, V]] = OrderedDict()
        self._idle: OrderedDict[K, Resident[K, V]] = OrderedDict()
        self._residents: dict[Resident[K, V], None] = {}
        self._alarm: Alarm | None = None
        self._alarm_for = inf

    # What users call

    def borrow(self, key: K) -> AbstractAsyncContextManager[V]:
        """Have a value for the time of an ``async with`` block, opening it first where it is not open.

        Entering is exactly one checkpoint when it is open; leaving is none. Cancelled while entering, nothing is
        borrowed; an opening that everybody has left is cancelled. Inside the block the value stays open, also when it
        is invalidated, expires or is evicted meanwhile.

        Raises:
          Exception: On entering: what opening it raised, in each who waited for it. On leaving: what the value raised
            when it crashed while the block was running; the block has been cancelled then.
          FetchTimeout: Opening took longer than ``fetch_timeout`` seconds.
          ReentrantFetchError: Called from inside an opening that this one would wait for.
          trio.BrokenResourceError: The value ended by itself, without an error, while the block was running.
          trio.ClosedResourceError: The pool is closed, or closed meanwhile; then the block has been cancelled.
          RuntimeError: Used from another thread or Trio run, or entered twice.

        Example::

            async with pool.borrow(tenant_id) as provider:
                token = await provider.get()
        """
        return Borrow(self, key)

    def status(self) -> PoolStatus:
        """Take a snapshot. Never a checkpoint; works on a closed pool."""
        return PoolStatus(
            name=self._owner.name,
            entries=len(self),
            max_entries=self._max_entries,
            borrowed=sum(len(resident.borrows) for resident in self._residents),
            opening=len(self._flights) + len(self._fenced),
            closed=self._owner.closed,
        )

    @enable_ki_protection
    def __len__(self) -> int:
        if self._owner.closed:
            return 0
        self._check()
        self._settle(self._time.now())
        return len(self._open)

    @enable_ki_protection
    def __contains__(self, key: object) -> bool:
        if self._owner.closed:
            return False
        self._check()
        self._settle(self._time.now())
        return key in self._open

    # Borrowing

    async def _obtain(self, key: K, borrow: Borrow[K, V]) -> Resident[K, V]:
        """Borrow a value, by whatever it takes; the last step of it is the claim."""
        waited = False
        while True:
            self._check()
            self._settle(self._time.now())
            resident = self._open.get(key)
            if not waited:
                if resident is not None:
                    await checkpoint()
                    waited = True
                    continue
                await checkpoint_if_cancelled()
                waited = True
            if resident is not None:
                return self._lend(resident, borrow)  # noqa: ASYNC910 - the checkpoint was made above
            flights = inside()
            flight = self._flights.get(key)
            refuse_own(self, key, flights)
            if flight is None:
                flight = self._claim(key, "absent")
                flight.launch()
            if not flight.joinable:
                with Wait(flights, flight):
                    freed = await flight.wait_freed()
                self._check()
                if not freed:
                    raise FetchTimeout(f"an earlier opening of {key!r} did not end within {self._fetch_timeout:g} s")
                continue
            with Wait(flights, flight):
                try:
                    await flight.wait()
                except BaseException:
                    if flight.held is not None:
                        self._has_returned(flight.held)
                    raise
            # The inbox stays as it is: emptied before the claim, it could close what is about to be lent.
            if self._owner.closed:
                self._owner.refuse()
            if flight.error is not None:
                flight.raise_error()
            resident = flight.held
            # Nobody abandons a flight while we wait on it, so it has an outcome.
            assert resident is not None
            if resident.phase is Phase.OPEN:
                return self._lend(resident, borrow)
            await resident.gone.wait()
            self._check()
            resident.raise_error()

    def _lend(self, resident: Resident[K, V], borrow: Borrow[K, V]) -> Resident[K, V]:
        resident.borrows[borrow] = None
        self._idle.pop(resident.key, None)
        return resident

    # What flights ask

    async def _flight_fetch(self, flight: AnyFlight) -> Resident[K, V]:
        assert flight.started_at is not None
        resident = Resident(self, flight.key, self._open_value, flight, flight.started_at + self._fetch_timeout)
        self._owner.start(resident.run, "value")
        try:
            await resident.opened.wait()
        except BaseException:
            resident.dismiss()
            with trio.CancelScope(shield=True):
                await resident.gone.wait()
            raise
        if resident.phase is not Phase.OPEN:
            # Where there is no error it has been closed again: then we are cancelled, too, and go no further.
            await resident.gone.wait()
            resident.raise_error()
        return resident

    def _flight_accept(self, flight: AnyFlight, value: Resident[K, V]) -> Resident[K, V]:
        if flight.state is State.LEFT:
            value.dismiss()
            raise LookupError("it has opened, but everybody has left")
        value.stored = self._time.arrived()
        return value

    def _flight_failed(self, flight: AnyFlight, error: BaseException) -> None:
        owner = self._owner
        owner.tell(FetchFailed(flight.reason, flight.duration, error, None, None, name=owner.name, key=flight.key))

    def _flight_succeeded(self, flight: AnyFlight, held: Resident[K, V]) -> None:
        if self._inbox:
            self._empty_inbox()
        generation = flight.generation
        if flight.fenced or not self._ttl:
            held.retired = True
        else:
            self._generation += 1
            generation = self._generation
            self._open[flight.key] = held
            self._shrink()
            self._watch()
        owner = self._owner
        remaining = None if self._ttl == inf else self._ttl
        owner.tell(
            FetchSucceeded(flight.reason, flight.duration, remaining, generation, name=owner.name, key=flight.key)
        )

    # What residents tell

    @property
    def _is_closed(self) -> bool:
        """Whether the pool has closed."""
        return self._owner.closed

    def _has_opened(self, resident: Resident[K, V]) -> None:
        """See :class:`~._resident.Landlord`; so for the next ones."""
        self._residents[resident] = None

    def _has_crashed(self, resident: Resident[K, V]) -> None:
        self._retire(resident)

    def _has_gone(self, resident: Resident[K, V]) -> None:
        self._residents.pop(resident, None)

    def _has_returned(self, resident: Resident[K, V]) -> None:
        if resident.is_wanted:
            return
        if resident.retired:
            resident.retire()
        elif self._idle_timeout:
            resident.idle_since = self._time.last()
            self._idle[resident.key] = resident
            self._shrink()
            self._watch()
        else:
            self._retire(resident)

    # Retiring

    def _retire(self, resident: Resident[K, V]) -> None:
        if self._open.get(resident.key) is resident:
            del self._open[resident.key]
            self._idle.pop(resident.key, None)
        resident.retire()

    def _shrink(self) -> None:
        while len(self._open) > self._max_entries and self._idle:
            self._retire(next(iter(self._idle.values())))

    def _next_end(self) -> float:
        """When the next value has to be retired for its age or for want of use."""
        end = inf
        if self._idle:
            end = next(iter(self._idle.values())).idle_since + self._idle_timeout
        if self._open:
            end = min(end, next(iter(self._open.values())).stored + self._ttl)
        return end

    def _settle(self, now: float) -> None:
        """Retire what has to be."""
        while self._idle and now >= next(iter(self._idle.values())).idle_since + self._idle_timeout:
            self._retire(next(iter(self._idle.values())))
        while self._open and now >= next(iter(self._open.values())).stored + self._ttl:
            self._retire(next(iter(self._open.values())))

    def _watch(self) -> None:
        """See to it that this happens without anybody asking."""
        end = self._next_end()
        if self._owner.closed or (self._alarm is not None and end >= self._alarm_for):
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_for = end
        if end < inf:
            self._alarm = self._owner.alarm(self._time.wake_at(end), self._look)

    def _look(self) -> None:
        self._alarm = None
        self._settle(self._time.last())
        self._watch()

    # Invalidation

    def _forget_key(self, key: K, now: float) -> tuple[bool, bool]:
        self._settle(now)
        resident = self._open.get(key)
        if resident is not None:
            self._retire(resident)
        return resident is not None, resident is not None

    def _forget_tag(self, tag: str, now: float) -> int | None:
        return None

    def _forget_all(self, now: float) -> int:
        self._settle(now)
        residents = list(self._open.values())
        for resident in residents:
            self._retire(resident)
        return len(residents)

    def _is_live_elsewhere(self, key: K, now: float) -> bool:
        resident = self._open.get(key)
        return resident is not None and now < self._end_of(resident)

    def _live_elsewhere(self, now: float) -> list[K]:
        while True:
            try:
                return [key for key, resident in list(self._open.items()) if now < self._end_of(resident)]
            except (RuntimeError, KeyError):
                continue  # its own thread changed it meanwhile

    def _end_of(self, resident: Resident[K, V]) -> float:
        end = resident.stored + self._ttl
        return min(end, resident.idle_since + self._idle_timeout) if resident.key in self._idle else end

    def _rewind(self, now: float) -> None:
        for resident in self._open.values():
            resident.stored = min(resident.stored, now)
            resident.idle_since = min(resident.idle_since, now)

    # The end

    def _leave(self) -> None:
        super()._leave()
        self._open.clear()
        self._idle.clear()
        if self._residents:
            self._owner.start(self._close_all, "closing")

    async def _close_all(self) -> None:  # noqa: ASYNC910 - a task's own work
        with trio.CancelScope(shield=True):  # noqa: ASYNC912 - as above
            while self._residents:
                await next(reversed(self._residents)).close()
