"""How a cache decides: what is served, what is resolved, what is kept, and what comes of it.

Invariants:

* A key has at most one flight that newcomers join; it is made for the resolution and gone with it. What is fenced goes
  on beside it, for those who had joined.
* Deciding is one step: the inbox is emptied, the clock is read, the state is read, and the claim is made, without a
  checkpoint in between. After every wait the decision is made again (:meth:`Caching._obtain`).
* A hit may skip the decision (:class:`~._cache.ProviderCache`) in the thread ``_fast_thread``, while the wall clock is
  not before ``_low`` and the entry is fresh for longer than ``_MARGIN``. ``_offset`` is what has to be added to the
  time line to get the wall clock, less that margin. As the wall clock may be stepped back or stand still, this ends
  after ``_FAST_FOR`` seconds of Trio's clock, which the margin covers, and is found right again by the next hit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import inf
from random import random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled, disable_ki_protection, enable_ki_protection

from .._errors import FetchTimeout
from .._events import FetchFailed, FetchSucceeded, ServedExpired
from .._flight import State
from .._user import call_user, check_async_function, check_function
from .._values import check_seconds
from ._entries import Entries, Entry
from ._member import Member
from ._rings import AnyFlight, Inside, Wait, inside, refuse_own
from ._sweeper import Sweeper
from ._ttl import check_count, check_fraction, read_ttl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import Literal

    from .._events import Event
    from .._owner import Alarm
    from ..abc import Bus

__all__ = ("Caching",)

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

# Seconds for which hits may go by the wall clock alone, and how long before an entry needs thought they do not.
_FAST_FOR = 1.0
_MARGIN = 2.0
# Seconds between the end of a failed background resolution and the next one.
_RETRY = 1.0


class _Answer(Generic[V]):
    """What a resolution has returned: a None in it is an answer, too."""

    __slots__ = ("arrived_at", "tags", "value")

    def __init__(self, value: V) -> None:
        self.value = value
        self.arrived_at = 0.0
        self.tags: tuple[str, ...] = ()


@disable_ki_protection
def _ask_tags(tags: Callable[[Any, Any], Iterable[str]], key: object, value: object) -> tuple[str, ...]:
    named = tags(key, value)
    if isinstance(named, str) or not isinstance(named, Iterable):
        raise TypeError(f"tags must return an iterable of str, such as a tuple, but it returned {type(named).__name__}")
    named = tuple(named)
    for tag in named:
        if not isinstance(tag, str):
            raise TypeError(f"tags must return an iterable of str, but there is a {type(tag).__name__} in it")
    return named


class Caching(Member[K], Generic[K, V]):
    """What a cache is, without what its users call."""

    __slots__ = (
        "_after_claim",
        "_entries",
        "_fast_alarm",
        "_grace",
        "_jitter",
        "_live",
        "_low",
        "_max_entries",
        "_negative_ttl",
        "_offset",
        "_resolve",
        "_sweeper",
        "_tags",
        "_touch",
        "_ttl",
    )

    def __init__(
        self,
        resolve: Callable[[K], Awaitable[V]],
        *,
        after_claim: Callable[[], Awaitable[object]] | None,
        ttl: float | bool,
        max_entries: int,
        negative_ttl: float,
        ttl_jitter: float,
        refresh_at: float | None,
        serve_expired_for: float,
        tags: Callable[[K, V], Iterable[str]] | None,
        fetch_timeout: float | None,
        when_abandoned: Literal["finish", "cancel"],
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
        bus: Bus | None,
        name: str | None,
    ) -> None:
        check_async_function("resolve", resolve, takes="the key")
        if after_claim is not None:
            check_async_function("after_claim", after_claim)
        if when_abandoned not in ("finish", "cancel"):
            raise ValueError(f'when_abandoned must be "finish" or "cancel", not {when_abandoned!r}')
        check_function("tags", tags, "a function of key and value")
        super().__init__(
            fetch_timeout=fetch_timeout,
            cancel_when_left=when_abandoned == "cancel",
            observe=observe,
            clock=clock,
            bus=bus,
            name=name,
        )
        self._ttl = read_ttl(ttl)
        self._max_entries = check_count("max_entries", max_entries)
        self._negative_ttl = check_seconds("negative_ttl", negative_ttl)
        self._jitter = check_fraction("ttl_jitter", ttl_jitter, below_one=True)
        self._grace = check_seconds("serve_expired_for", serve_expired_for, allow_inf=True)
        if refresh_at is not None:
            refresh_at = check_fraction("refresh_at", refresh_at)
        self._resolve = resolve
        self._after_claim = after_claim
        self._tags = tags
        self._entries: Entries[K, V] = Entries(self._max_entries, self._grace, refresh_at)
        self._live = self._entries.map
        self._touch = self._live.move_to_end
        self._low = inf
        self._offset = 0.0
        self._fast_alarm: Alarm | None = None
        self._sweeper = Sweeper(self._owner, self._time, self._entries)

    # Deciding

    @enable_ki_protection
    def _get_nowait(self, key: K) -> V:
        self._check()
        now = self._time.now()
        entry = self._live.get(key)
        if entry is not None and now < entry.deadline:
            return self._hit(key, entry, now)
        entry = None  # not to be kept by the error's traceback
        raise trio.WouldBlock

    async def _obtain(self, key: K, *, waited: bool) -> V:
        """Get a value, by whatever it takes.

        Its one checkpoint comes before the decision where the value is there, and is the waiting where it is not.
        """
        while True:
            self._check()
            now = self._time.now()
            entry = self._live.get(key)
            live = entry is not None and now < entry.deadline
            down = not live and entry is not None and self._is_down(key, entry, now)
            if not waited:
                if live or down:
                    await checkpoint()
                    waited = True
                    continue
                await checkpoint_if_cancelled()
            if live:
                return self._hit(key, entry, now)  # type: ignore[arg-type]  # noqa: ASYNC910 - the checkpoint was made above
            if down:
                self._renew(key, now)
                return self._served_expired(key, entry, now)  # type: ignore[arg-type]  # noqa: ASYNC910 - as above
            waited = True
            entry = None  # what it holds is not ours to keep while we wait
            flights = inside()
            flight = self._flights.get(key)
            if flight is not None and not flight.joinable:
                if not await self._outwait(key, flight, flights):
                    late = f"an earlier resolution of {key!r} did not end within {self._fetch_timeout:g} s"
                    return self._console(key, FetchTimeout(late))
                continue
            if flights or (flight is None and self._after_claim is not None):
                flight = await self._join(key, flight, flights)
            else:
                if flight is None:
                    flight = self._claim(key, "absent")
                    flight.launch()
                # What Flight.wait() does, without its frame: ten thousand callers may come this way.
                flight.waiting += 1
                try:
                    await flight.settled.wait()
                except BaseException:
                    flight.leave()
                    raise
                flight.waiting -= 1
            if self._owner.closed:
                self._owner.refuse()
            if self._inbox:
                self._empty_inbox()
            if flight.error is not None:
                return self._console(key, flight.error, flight)
            if flight.held is not None:
                return flight.held.value  # type: ignore[no-any-return]

    async def _join(self, key: K, flight: AnyFlight | None, flights: Inside) -> AnyFlight:
        """Wait on the flight of a key, claiming one where there is none: with a hook, or inside of other flights."""
        refuse_own(self, key, flights)
        claimed = flight is None
        if flight is None:
            flight = self._claim(key, "absent")
        with Wait(flights, flight):
            if claimed and self._after_claim is not None:
                await flight.pass_hook(self._after_claim)
            elif claimed:
                flight.launch()
            await flight.wait()
        return flight

    async def _outwait(self, key: K, flight: AnyFlight, flights: Inside) -> bool:
        """Wait until a flight that nobody joins any more has unwound; False: it does not."""
        refuse_own(self, key, flights)
        with Wait(flights, flight):
            freed = await flight.wait_freed()
        self._check()
        return freed

    def _hit(self, key: K, entry: Entry[V], now: float) -> V:
        self._touch(key)
        if now < entry.stored + entry.fresh:
            self._speed_up()
        else:
            self._renew(key, now)
        return entry.value

    def _held(self, key: K, now: float) -> Entry[V] | None:
        """What there is of a key, live or in its grace: whether its memory has been released makes no difference."""
        entry = self._live.get(key)
        return entry if entry is not None and now < entry.deadline + self._grace else None

    def _is_down(self, key: K, entry: Entry[V], now: float) -> bool:
        """Whether a resolution has failed since the entry expired, and the entry may still be served."""
        failed_at = self._entries.failed_at.get(key)
        return failed_at is not None and failed_at >= entry.deadline and now < entry.deadline + self._grace

    def _renew(self, key: K, now: float) -> None:
        """Start a background resolution, where none is in progress and the last failure is long enough ago."""
        failed_at = self._entries.failed_at.get(key, -inf)
        if key not in self._flights and now >= failed_at + _RETRY:
            self._claim(key, "aging", self._after_claim).launch()

    def _console(self, key: K, error: BaseException, flight: AnyFlight | None = None) -> V:
        """Serve what may be served although the source failed, or raise the error."""
        now = self._time.last()
        entry = self._held(key, now)
        if entry is not None and not (flight is not None and flight.fenced):
            if now < entry.deadline:
                return self._hit(key, entry, now)
            return self._served_expired(key, entry, now)
        entry = None  # not to be kept by the error's traceback
        if flight is not None:
            flight.raise_error()
        raise error

    def _served_expired(self, key: K, entry: Entry[V], now: float) -> V:
        self._owner.tell(ServedExpired(now - entry.deadline, name=self._owner.name, key=key))
        return entry.value

    # What flights ask

    def _life_of(self, value: V) -> float:
        """For how long to keep a value that is stored now; 0: not at all."""
        if value is None:
            return min(self._negative_ttl, self._ttl)
        return self._ttl if self._ttl == inf or not self._jitter else self._ttl * (1.0 - random() * self._jitter)

    async def _flight_fetch(self, flight: AnyFlight) -> _Answer[V]:
        return _Answer(await call_user("resolve", self._resolve, flight.key))

    def _flight_accept(self, flight: AnyFlight, answer: _Answer[V]) -> _Answer[V]:
        value = answer.value
        if value is not None:
            answer.arrived_at = self._time.arrived()
            # From here on the wall clock is right, and what it says now has come.
            self._low = self._owner.clock.anchor[0]
            self._offset = self._time.shift - _MARGIN
        elif flight.state is State.LEFT:
            raise LookupError("no value, and nobody waits to hear it")
        else:
            answer.arrived_at = self._time.last()
        if self._tags is not None and not flight.fenced and self._life_of(value):
            answer.tags = _ask_tags(self._tags, flight.key, value)
        return answer

    def _flight_succeeded(self, flight: AnyFlight, answer: _Answer[V]) -> None:
        key: K = flight.key
        if self._inbox:
            self._empty_inbox()
        life = self._life_of(answer.value)
        generation = flight.generation
        if not flight.fenced:
            if life:
                self._generation += 1
                arrived_at = answer.arrived_at
                self._entries.store(key, answer.value, arrived_at, life, answer.tags)
                if arrived_at + life + self._grace < self._sweeper.next_end:
                    self._sweeper.watch()
            else:
                self._entries.drop(key)
            generation = self._generation
        owner = self._owner
        if owner.observe is not None:
            remaining = None if life == inf or (answer.value is None and not life) else life
            owner.tell(FetchSucceeded(flight.reason, flight.duration, remaining, generation, name=owner.name, key=key))

    def _flight_failed(self, flight: AnyFlight, error: BaseException) -> None:
        key: K = flight.key
        if self._inbox:
            self._empty_inbox()
        remaining = next_attempt_at = None
        now = self._time.last()
        entry = self._held(key, now)
        if entry is not None:
            remaining = None if entry.life == inf else max(0.0, entry.deadline - now)
            if not flight.fenced:
                self._entries.failed_at[key] = now
                next_attempt_at = now + _RETRY + self._time.shift
        owner = self._owner
        if owner.observe is not None:
            owner.tell(
                FetchFailed(flight.reason, flight.duration, error, remaining, next_attempt_at, name=owner.name, key=key)
            )

    # Invalidation

    def _forget_key(self, key: K, now: float) -> tuple[bool, bool]:
        held = self._held(key, now)
        self._entries.drop(key)
        return held is not None and now < held.deadline, held is not None

    def _forget_tag(self, tag: str, now: float) -> int:
        return self._entries.drop_tag(tag, now)

    def _forget_all(self, now: float) -> int:
        count = self._entries.count(now)
        self._entries.clear()
        return count

    def _is_live_elsewhere(self, key: K, now: float) -> bool:
        entry = self._live.get(key)
        return entry is not None and now < entry.deadline

    def _live_elsewhere(self, now: float) -> list[K]:
        while True:
            try:
                return [key for key, entry in list(self._live.items()) if now < entry.deadline]
            except (RuntimeError, KeyError):
                continue  # its own thread changed it meanwhile

    def _rewind(self, now: float) -> None:
        self._entries.rewind(now)

    # The fast path

    def _speed_up(self) -> None:
        if not self._owner.clock.wall_based:
            return
        self._low = time.time()
        self._offset = self._time.shift - max(0.0, self._owner.clock.now() - self._low) - _MARGIN
        if self._fast_alarm is None:
            self._fast_alarm = self._owner.alarm(trio.current_time() + _FAST_FOR, self._slow_down)
        self._fast_thread = self._thread
        if self._inbox:
            self._shut()

    def _slow_down(self) -> None:
        self._fast_alarm = None
        self._shut()

    # The end

    def _leave(self) -> None:
        super()._leave()
        self._entries.clear()
