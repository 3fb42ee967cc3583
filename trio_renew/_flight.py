"""One fetch, owned by a nursery, shared by many.

A :class:`Flight` is one fetch from its claim to its end. It belongs to a *home* (a resource, or a key of a cache),
which says what to fetch and what to do with what arrives.

Invariants:

* A home has at most one flight at a time. Claiming it and owning its release are one step without a checkpoint; the
  release (:meth:`Flight._free`) runs on every way out.
* The fetch runs in a task of the owner's nursery, never in a caller's. A caller only counts itself in, waits, and
  counts itself out (:meth:`Flight.wait`); it can take nobody else away.
* Two moments are kept apart. A flight *settles* when those who joined learn the outcome: a value, None, an error, or
  nothing ("decide again"). It is *free* when the fetch has unwound, or ``clear()`` has fenced it; only then the home
  may claim the next one.
* State first, then the event, then the callers: all three in one step.

The states of a flight, and what moves it::

    CLAIMED --start--> FETCHING --returned--> KEEPING --kept--> DONE
       |                  |  \\--raised / cancelled---------------^
       |                  |--timeout, or the last caller left--> LEFT --unwound--> DONE
       \\--released------------------------------------------------^

``fenced`` (by ``clear()``) is not a state: a fenced flight goes on and answers those who joined, but keeps nothing.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar
from weakref import ref

import trio
from trio.lowlevel import enable_ki_protection

from ._errors import FetchTimeout, ReentrantFetchError
from ._events import FetchAbandoned
from ._raising import raise_shared, set_traceback, without_our_frames
from ._user import call_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from ._events import Reason
    from ._owner import Alarm, Owner

__all__ = ("Flight", "Home", "State", "current_flights", "refuse_reentry")

T = TypeVar("T")
H = TypeVar("H")  # what a home keeps of a value

#: The flights in whose fetch (or child task of it) the current task runs, outermost first. A task that outlives its
#: fetch keeps this context, but not what was fetched.
_inside: ContextVar[tuple[ref[Flight[Any, Any]], ...]] = ContextVar("trio_renew.inside", default=())
current_flights = _inside.get


class State(enum.Enum):
    """Where a flight stands; see the module."""

    CLAIMED = enum.auto()
    FETCHING = enum.auto()
    KEEPING = enum.auto()
    LEFT = enum.auto()
    DONE = enum.auto()


class Home(Protocol[T, H]):
    """What a flight asks of the resource or key it flies for. All but fetching and keeping is synchronous."""

    _fetch_timeout: float
    _cancel_when_left: bool

    def _flight_starts(self, flight: Flight[T, H], /) -> None:
        """The fetch starts now: tell it, and set ``issued_at`` if that will be asked for."""

    def _flight_fetch(self, flight: Flight[T, H], /) -> Awaitable[T | None]:
        """Ask the source."""
        ...

    def _flight_accept(self, flight: Flight[T, H], value: T, /) -> H:
        """Make of a value what can be kept; what it raises makes this a failed fetch."""
        ...

    async def _flight_keep(self, flight: Flight[T, H], held: H, /) -> None:
        """Write it down where it outlives the process; must not raise an Exception."""

    def _flight_succeeded(self, flight: Flight[T, H], held: H | None, /) -> None:
        """Commit and tell; None: no value."""

    def _flight_failed(self, flight: Flight[T, H], error: BaseException, /) -> None:
        """Commit and tell."""

    def _flight_release(self, flight: Flight[T, H], /) -> None:
        """The flight no longer occupies its home."""


class Flight(Generic[T, H]):
    """One fetch.

    Attributes:
      key: Which key of a cache or pool it is for; None where there are no keys.
      background: Nobody waits for it by design; it is never cancelled for want of callers.
      reason: For events.
      generation: The generation in which it was claimed.
      waiting: How many callers wait on it.
      joinable: Whether a newcomer gets this flight's outcome.
      settled: Set when those who joined may look at the outcome.
      fenced: ``clear()`` came after the claim.
      rejected: What the caller who claimed it found stale, or None.
      stale: What that caller gave as stale, also where that is not what is held; None: nothing.
      stored: Its value was not fetched now: the processes that share it had it already.
      refused: It was not allowed to fetch: no failure of the source.
      override: It was let through an open breaker.
      permanent: It failed in a way that trying again does not mend.
      unusable: While a failure is told: the value that could not be used, or None.
      issued_at: When the fetch started, on the owner's clock, as the home says; it may say better before it returns.
      held: After settling: what arrived, or None.
      error: After settling: what was raised, or None.
      answered: After settling: whether there is an outcome at all.
      started_at: Trio time of the start of the fetch.
    """

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_context",
        "_freed",
        "_owner",
        "_scope",
        "_told_end",
        "_traceback",
        "after_claim",
        "answered",
        "background",
        "error",
        "fenced",
        "generation",
        "held",
        "home",
        "issued_at",
        "joinable",
        "key",
        "override",
        "permanent",
        "reason",
        "refused",
        "rejected",
        "settled",
        "stale",
        "started_at",
        "state",
        "stored",
        "unusable",
        "waiting",
    )

    def __init__(
        self,
        owner: Owner,
        home: Home[T, H],
        *,
        reason: Reason,
        generation: int,
        background: bool,
        after_claim: Callable[[], Awaitable[object]] | None = None,
        key: Any = None,
    ) -> None:
        self._owner = owner
        self.key: Any = key
        self.home: Home[T, H] = home
        self.reason: Reason = reason
        self.generation: int = generation
        self.background: bool = background
        self.after_claim: Callable[[], Awaitable[object]] | None = after_claim
        self.state: State = State.CLAIMED
        self.waiting: int = 0
        self.joinable: bool = True
        self.fenced: bool = False
        self.rejected: H | None = None
        self.stale: object = None
        self.stored: bool = False
        self.refused: bool = False
        self.override: bool = False
        self.permanent: bool = False
        self.unusable: T | None = None
        self.answered: bool = False
        self.held: H | None = None
        self.error: BaseException | None = None
        self.started_at: float | None = None
        self.issued_at: float = 0.0
        self._traceback: TracebackType | None = None
        self._context: BaseException | None = None
        self._told_end = False
        self._alarm: Alarm | None = None
        self.settled: trio.Event = trio.Event()
        self._freed: trio.Event | None = None
        self._scope = trio.CancelScope(shield=True)
        owner.on_closing(self._owner_closed)

    # For the home

    @property
    def duration(self) -> float:
        """Seconds since the start of the fetch."""
        return 0.0 if self.started_at is None else trio.current_time() - self.started_at

    @enable_ki_protection
    def launch(self) -> None:
        """Hand the claim to its runner. No checkpoint lies between the claim and this, but for the hook."""
        try:
            self._owner.start(self._run, "fetch")
        except BaseException:
            self._settle()
            self._free()
            raise

    @enable_ki_protection
    async def pass_hook(self, hook: Callable[[], Awaitable[object]]) -> None:
        """Await the handoff hook in the task that claimed, and launch; released if it does not return."""
        self.waiting += 1
        try:
            await call_user("after_claim", hook)
            if self._owner.closed:
                self._owner.refuse()
            self.launch()
        except BaseException:
            # Those who joined have no outcome: they decide again.
            self._settle()
            self._free()
            raise
        finally:
            self.waiting -= 1

    @enable_ki_protection
    async def wait(self) -> None:
        """Wait until the flight has settled. The last caller to leave early abandons it, where the home wants that."""
        self.waiting += 1
        try:
            await self.settled.wait()
        except BaseException:
            self.leave()
            raise
        self.waiting -= 1

    @enable_ki_protection
    def leave(self) -> None:
        """Count out a caller who does not wait for the end."""
        self.waiting -= 1
        if not self.waiting and self.home._cancel_when_left and not self.background:
            self._abandon()

    async def wait_freed(self) -> bool:
        """Wait until the next flight may be claimed; False after ``fetch_timeout`` seconds of waiting."""
        if self._freed is None:
            self._freed = trio.Event()
        with trio.move_on_after(self.home._fetch_timeout):
            await self._freed.wait()
            return True
        return False

    @enable_ki_protection
    def fence(self) -> None:
        """``clear()`` came: the flight answers those who joined, and nobody waits for it to unwind."""
        self.fenced = True
        if self._freed is not None:
            self._freed.set()

    def raise_error(self) -> NoReturn:
        """Raise the flight's error in one of its callers."""
        assert self.error is not None
        raise_shared(self.error, self._traceback, self._context)

    # The runner

    def go_inside(self) -> None:
        """Mark the current task, and what it starts from now on, as part of this fetch."""
        _inside.set((*_inside.get(), ref(self)))

    @enable_ki_protection
    async def _run(self) -> None:  # noqa: ASYNC910 - a task's own work
        outcome: tuple[T | None] | None = None
        error: Exception | None = None
        try:
            try:
                with self._scope:
                    if self.background and self.after_claim is not None:
                        await call_user("after_claim", self.after_claim)
                    if self._may_start():
                        self.go_inside()
                        outcome = (await self.home._flight_fetch(self),)
            except Exception as exc:
                error = exc
            self._disarm()
            if outcome is not None:
                await self._returned(outcome[0])
            elif error is not None:
                self._raised(error)
            elif self._out_of_time():
                self._time_out()
        finally:
            del outcome, error
            self._end()

    def _may_start(self) -> bool:
        if self._owner.closed or self.state is State.LEFT:
            return False
        self.state = State.FETCHING
        self.started_at = trio.current_time()
        timeout = self.home._fetch_timeout
        if timeout != inf:
            self._scope.deadline = self.started_at + timeout
            # The scope cancels the fetch; the alarm tells the callers, also when the fetch is slow to unwind.
            self._alarm = self._owner.alarm(self._scope.deadline, self._time_out)
        self.home._flight_starts(self)
        return True

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _out_of_time(self) -> bool:
        """At exactly its deadline a fetch is late, whatever the scheduler did first in that tick."""
        if self.state is not State.FETCHING or self._owner.closed:
            return False
        return self._scope.deadline != inf and trio.current_time() >= self._scope.deadline

    def _time_out(self) -> None:
        error = FetchTimeout(f"the fetch took longer than {self.home._fetch_timeout:g} s")
        self._leave_behind()
        self._fail(error)

    async def _returned(self, value: T | None) -> None:
        home = self.home
        if self._out_of_time():
            self._time_out()
        late = self.state is State.LEFT
        if self._owner.closed or (late and (self.fenced or value is None)):
            return  # noqa: ASYNC910 - a task's own work
        if value is None:
            self.state = State.KEEPING
            self._succeed(None)
            return  # noqa: ASYNC910 - as above
        try:
            held = home._flight_accept(self, value)
        except Exception as exc:
            # A late value that cannot be kept is no second failure.
            if not late:
                self.unusable = value
                self._fail(exc)
                self.unusable = None
            return  # noqa: ASYNC910 - as above
        self.state = State.KEEPING
        await home._flight_keep(self, held)
        self._succeed(held)

    def _raised(self, error: Exception) -> None:
        if self._out_of_time():
            self._time_out()
        elif self._owner.closed or self.state is State.LEFT:
            return
        elif self.refused:
            self._answer(error)
            self._settle()
        else:
            if self.started_at is None:
                self._may_start()  # a hook that raised: a fetch that failed at once
                self._disarm()
            self._fail(error)

    def _succeed(self, held: H | None) -> None:
        self._told_end = True
        self.held = held
        self.answered = True
        try:
            self.home._flight_succeeded(self, held)
        finally:
            self._settle()

    def _fail(self, error: BaseException) -> None:
        self._told_end = True
        self._answer(error)
        try:
            self.home._flight_failed(self, error)
        finally:
            self._settle()

    def _answer(self, error: BaseException) -> None:
        self.error = error
        self._traceback = without_our_frames(error.__traceback__)
        set_traceback(error, self._traceback)
        self._context = error.__context__
        self.answered = True

    @enable_ki_protection
    def _abandon(self) -> None:
        if self.state in (State.CLAIMED, State.FETCHING) and not self._owner.closed:
            self._leave_behind()
            self._settle()

    def _leave_behind(self) -> None:
        """Nobody waits for this fetch any more; it only has to unwind."""
        self.state = State.LEFT
        self.joinable = False
        self._disarm()
        self._scope.cancel()

    def _end(self) -> None:
        """The fetch is over, whatever became of it."""
        try:
            if self.started_at is not None and not self._told_end:
                self._told_end = True
                self._owner.tell(FetchAbandoned(self.reason, name=self._owner.name, key=self.key))
        finally:
            self._settle()
            self._free()

    def _settle(self) -> None:
        if not self.settled.is_set():
            self.settled.set()

    def _free(self) -> None:
        self.state = State.DONE
        self._disarm()
        self._owner.not_closing(self._owner_closed)
        self.home._flight_release(self)
        if self._freed is not None:
            self._freed.set()

    def _owner_closed(self) -> None:
        if self.state is not State.KEEPING:
            self._scope.cancel()
        self._settle()
        if self._freed is not None:
            self._freed.set()


def refuse_reentry(home: object, what: str) -> None:
    """Refuse a call from inside a running fetch of the same home. One that has returned is only being kept.

    Raises:
      ReentrantFetchError: It would wait for itself.
    """
    for mark in _inside.get():
        flight = mark()
        if flight is not None and flight.home is home and flight.state not in (State.KEEPING, State.DONE):
            raise ReentrantFetchError(
                f"{what} was called from inside the fetch of {home!r}: it would wait for itself. "
                "Give the fetch what it needs some other way"
            )
