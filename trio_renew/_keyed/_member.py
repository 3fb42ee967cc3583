"""What caches and pools have in common: invalidation, from here, from other threads, and from other processes.

Invariants:

* A member is touched in its own Trio run only. From elsewhere an invalidation is put into its inbox and its fast path
  is shut, in this order. Each use empties the inbox first, and opens the fast path before it looks into the inbox: so
  nothing invalidated is served from the next use on. The run is woken as well, to do it without being used.
* Forgetting, publishing and telling are one step, in this order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._events import Cleared, FetchStarted, StorageFailed, logger
from .._flight import Flight
from .._owner import Owner, hosting, owning
from .._raising import call_all
from .._values import check_seconds
from ._ear import Ear
from ._roster import Message, roster
from ._time import Timeline

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable

    from .._events import Event, Reason
    from ..abc import Bus
    from ._rings import AnyFlight
    from ._roster import News, What

__all__ = ("Member", "hosting_member")

K = TypeVar("K", bound="Hashable")


@owning
async def hosting_member(member: Member[Any]) -> AsyncGenerator[None, None]:
    """Keep a member open around a body, reachable for everybody who invalidates."""
    async with hosting(member._owner):
        member._enlist()
        yield


class Member(ABC, Generic[K]):
    """A cache or a pool.

    Attributes:
      fetch_timeout: Seconds that one flight may take.
      cancel_when_left: Whether a flight is cancelled when its last caller leaves.
    """

    __slots__ = (
        "__weakref__",
        "_bus",
        "_cancel_when_left",
        "_ear",
        "_fast_thread",
        "_fenced",
        "_fetch_timeout",
        "_flights",
        "_generation",
        "_inbox",
        "_owner",
        "_thread",
        "_time",
        "_token",
    )

    def __init__(
        self,
        *,
        fetch_timeout: float | None,
        cancel_when_left: bool,
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
        bus: Bus | None,
        name: str | None,
    ) -> None:
        self._fetch_timeout: float = (
            float("inf")
            if fetch_timeout is None
            else check_seconds("fetch_timeout", fetch_timeout, above=True, allow_inf=True)
        )
        self._cancel_when_left: bool = cancel_when_left
        for method in ("attach", "detach", "publish"):
            if bus is not None and not callable(getattr(bus, method, None)):
                raise TypeError(f"bus must have attach, detach and publish, but {type(bus).__name__} has no {method}")
        if bus is not None and not name:
            raise ValueError(f"a bus needs a name: it is what the caches and pools on it share; name is {name!r}")
        self._owner = owner = Owner(name, observe, clock)
        self._time = Timeline(owner.clock, self._rewind)
        self._thread = owner.thread
        self._token = trio.lowlevel.current_trio_token()
        #: The thread in which a hit may be served without any further check; 0: in none.
        self._fast_thread = 0
        self._inbox: deque[Message] = deque()
        self._bus = bus
        self._ear = Ear(self)
        self._generation: int = 0
        self._flights: dict[K, AnyFlight] = {}
        #: Flights that were invalidated and go on for those who joined them.
        self._fenced: set[AnyFlight] = set()

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        name = "" if self._owner.name is None else f" {self._owner.name!r}"
        return f"<{type(self).__name__}{name}{' (closed)' if self._owner.closed else ''}>"

    # What users call

    @enable_ki_protection
    def delete(self, key: K) -> bool:
        """Drop a key, here and wherever the bus reaches. Never a checkpoint.

        What is in progress for it answers those who wait, and is not kept.

        Returns:
          Whether a live entry, or something in progress, was affected here.

        Raises:
          trio.ClosedResourceError: It is closed.
          RuntimeError: Called from another thread or Trio run; there :func:`invalidate_provider` works.
        """
        self._check()
        return self._invalidate("key", key) > 0

    @enable_ki_protection
    def clear(self) -> int:
        """Drop everything, here and wherever the bus reaches. Never a checkpoint.

        What is in progress answers those who wait, and is not kept.

        Returns:
          How many live entries that were.

        Raises:
          trio.ClosedResourceError: It is closed.
          RuntimeError: Called from another thread or Trio run; there :func:`clear_provider_caches` works.
        """
        self._check()
        return self._invalidate("all", None)

    # For our own kind

    @enable_ki_protection
    def _enlist(self) -> None:
        """Take part from here on, until the owner closes."""
        self._owner.on_closing(self._leave)
        self._owner.on_disowned(self._shut)
        roster.add(self)
        if self._bus is not None:
            self._bus.attach(self._ear)

    def _take_up(self, message: Message, news: list[News], *, at_rest: bool = True) -> int:
        """Forget something, from any thread, and add what is to be said of it.

        Returns:
          How much was, or will be, dropped.
        """
        if not (at_rest and self._is_here()):
            return self._post(message)
        if self._owner.closed:
            return 0
        news += self._forget_inbox()
        count, more = self._forget(message)
        news.append(more)
        return count

    @enable_ki_protection
    def _hear(self, message: Message) -> None:
        """Take up what the bus says, from any thread."""
        news: list[News] = []
        self._take_up(message, news)
        call_all(news)

    @enable_ki_protection
    def _bus_failed(self, error: BaseException) -> None:
        """Tell that the bus failed, from any thread."""
        if self._is_here():
            self._tell_bus_failed(error)
        else:
            self._soon(lambda: self._tell_bus_failed(error))

    # How it is done

    @abstractmethod
    def _rewind(self, now: float) -> None:
        """The clock went back to this time."""
        ...

    @abstractmethod
    def _forget_key(self, key: K, now: float) -> tuple[bool, bool]:
        """Forget a key: whether a live entry was affected, and whether anything was."""
        ...

    @abstractmethod
    def _forget_tag(self, tag: str, now: float) -> int | None:
        """Forget what carries a tag; how many live entries that were. None: nothing here ever carries one."""
        ...

    @abstractmethod
    def _forget_all(self, now: float) -> int:
        """Forget everything; how many live entries that were."""
        ...

    @abstractmethod
    def _is_live_elsewhere(self, key: K, now: float) -> bool:
        """Whether a key is live; asked from another thread."""
        ...

    @abstractmethod
    def _live_elsewhere(self, now: float) -> list[K]:
        """The keys that are live; asked from another thread."""
        ...

    def _is_here(self) -> bool:
        if get_ident() != self._thread:
            return False
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def _shut(self) -> None:
        """Let no use skip the checks."""
        self._fast_thread = 0

    def _check(self) -> None:
        """Refuse a call that comes too late or from elsewhere; catch up with what happened elsewhere."""
        self._owner.check()
        if self._inbox:
            self._empty_inbox()

    def _invalidate(self, what: What, key: Any) -> int:
        count, news = self._forget(Message(what, key, True))
        news()
        return count

    def _forget(self, message: Message) -> tuple[int, News]:
        """Forget something: how much that was, and what is to be said of it."""
        now = self._time.last()
        what, key, _ = message
        if what == "key":
            live, dropped = self._forget_key(key, now)
            flight = self._flights.pop(key, None)
            flights = [] if flight is None else [flight]
            count = int(live or flight is not None)
            dropped = dropped or count > 0
        else:
            forgotten = self._forget_tag(key, now) if what == "tag" else self._forget_all(now)
            count, dropped = forgotten or 0, forgotten is not None
            flights = list(self._flights.values()) if dropped else []
            if dropped:
                self._flights.clear()
        for flight in flights:
            self._fenced.add(flight)
            flight.fence()
        self._generation += dropped
        cleared = None
        if dropped:
            cleared = Cleared(self._generation, name=self._owner.name, key=key if what == "key" else None)
        return count, lambda: self._announce(message, cleared)

    def _announce(self, message: Message, cleared: Cleared | None) -> None:
        try:
            if message.publish and self._bus is not None:
                self._bus.publish(self._ear, message.what, message.key)
        except Exception as exc:
            self._tell_bus_failed(exc)
        finally:
            # Also when it was an observer of a sibling that was interrupted.
            if cleared is not None:
                self._owner.tell(cleared)

    def _claim(
        self, key: K, reason: Reason, background_hook: Callable[[], Awaitable[object]] | None = None
    ) -> AnyFlight:
        """Claim the flight of a key, which has none: for a caller, or ("aging") for the background, with its hook."""
        flight: AnyFlight = Flight(
            self._owner,
            self,
            reason=reason,
            generation=self._generation,
            background=reason == "aging",
            after_claim=background_hook,
            key=key,
        )
        self._flights[key] = flight
        return flight

    # What flights ask: see :class:`~trio_renew._flight.Home`

    def _flight_starts(self, flight: AnyFlight) -> None:
        if self._owner.observe is not None:
            self._owner.tell(FetchStarted(flight.reason, name=self._owner.name, key=flight.key))

    @abstractmethod
    def _flight_fetch(self, flight: AnyFlight) -> Awaitable[Any]: ...

    @abstractmethod
    def _flight_accept(self, flight: AnyFlight, value: Any, /) -> Any: ...

    async def _flight_keep(self, flight: AnyFlight, held: Any) -> None:
        """Nothing outlives the process."""

    @abstractmethod
    def _flight_succeeded(self, flight: AnyFlight, held: Any, /) -> None: ...

    @abstractmethod
    def _flight_failed(self, flight: AnyFlight, error: BaseException) -> None: ...

    def _flight_release(self, flight: AnyFlight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        self._fenced.discard(flight)

    def _callers(self) -> int:
        """How many wait on a flight."""
        return sum(flight.waiting for flight in (*self._flights.values(), *self._fenced))

    # From elsewhere

    def _post(self, message: Message) -> int:
        what, key, _ = message
        with roster.lock:
            if self._owner.closed:
                return 0
            waiting = list(self._inbox)
            now = self._time.elsewhere()
            gone = {each.key for each in waiting if each.what == "key"}
            if any(each.what == "all" for each in waiting):
                count = 0
            elif what == "key":
                count = int(key not in gone and (key in self._flights or self._is_live_elsewhere(key, now)))
            else:
                count = len(set(self._live_elsewhere(now)) - gone)
            self._inbox.append(message)
            self._shut()
        self._soon(self._empty_inbox)
        return count

    def _soon(self, step: Callable[[], None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take_step, step, idempotent=True)

    @enable_ki_protection
    def _take_step(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as exc:  # noqa: ASYNC103 - it leaves the owner
            # An interrupted observer: raised here, it would end the run as Trio's own failure.
            self._owner.crash(exc)

    def _empty_inbox(self) -> None:
        call_all(self._forget_inbox())

    def _forget_inbox(self) -> list[News]:
        news: list[News] = []
        while self._inbox:
            message = self._inbox.popleft()
            if not self._owner.closed:
                news.append(self._forget(message)[1])
        return news

    def _pass_inbox_on(self) -> None:
        for message in self._inbox:
            self._announce(message, None)

    def _tell_bus_failed(self, error: BaseException) -> None:
        if not self._owner.closed:
            self._owner.tell(StorageFailed("bus", error, name=self._owner.name))

    # The end

    def _leave(self) -> None:
        """Close: in the step that closes the owner."""
        self._shut()
        roster.remove(self)
        if self._bus is not None:
            # What came from elsewhere just before is of no use here any more; others are still to hear it.
            self._take_step(self._pass_inbox_on)
            try:
                self._bus.detach(self._ear)
            except Exception:
                logger.exception("the bus of %r did not let it go", self)
        self._inbox.clear()
        self._flights.clear()
        self._fenced.clear()
