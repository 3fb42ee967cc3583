"""How a resource that knows time decides: renewed before it is needed, served while the source is down.

Invariants:

* A value is *good* until ``good_until`` (its expiry less the leeway); inside the leeway and ``serve_expired_for`` it
  is only a consolation (:meth:`Renewing._console`), and each such serving is reported.
* Background refreshes never raise into a caller. What they, and callers who need a value, have to wait for is in
  ``_caution.py``; a fenced fetch moves nothing there.
* Correctness never depends on an alarm: every call looks at the clock.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._ask import Ask
from ._budget import Budget, spend
from ._caution import Caution, Hold
from ._deciding import Deciding
from ._errors import BreakerOpen, BudgetExhausted
from ._events import Cleared, FetchFailed, FetchStarted, ServedExpired
from ._life import judge
from ._policy.breaker import BreakerPolicy, Open, admit
from ._policy.decision import CacheState, ServeAndRefresh, ServeCached, decide
from ._policy.schedule import RefreshPolicy
from ._share import Share, Sharing
from ._user import call_user, check_function
from ._values import check_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from ._events import Event, Reason
    from ._flight import Flight
    from ._held import Held
    from ._owner import Alarm
    from .abc import Storage

__all__ = ("Renewing",)

T = TypeVar("T")

# A hit may skip the decision until this long before it could come out differently; and not for less than ten times it.
_MARGIN = 0.1
# Sleeping ends at least this often where the clock may jump while we sleep.
_LONGEST_SLEEP = 60.0
# A value that is still due after an attempt is not renewed unasked again before this, whatever the policy allows.
_PAUSE = 1.0
# What is used without a refresh in sight has the share looked at this often.
_LOOK_EVERY = 60.0


class Renewing(Deciding[T]):
    """What a provider is, without what its users call."""

    __slots__ = (
        "_ask",
        "_budget",
        "_caution",
        "_fast_alarm",
        "_in_use",
        "_keep_warm",
        "_looked",
        "_overridden",
        "_pause",
        "_policy",
        "_read_expires_at",
        "_sharing",
        "_warm_alarm",
    )

    def __init__(
        self,
        mint: Callable[[], Awaitable[T | None]],
        *,
        policy: RefreshPolicy,
        breaker: BreakerPolicy | None,
        expires_at: Callable[[T], float | None] | None,
        keep_warm: float,
        after_claim: Callable[[], Awaitable[object]] | None,
        storage: Storage[Any] | None,
        share: Share | None,
        budget: Budget | None,
        fetch_timeout: float | None,
        when_abandoned: Literal["finish", "cancel"],
        observe: Callable[[Event], None] | None,
        clock: Callable[[], float] | None,
        name: str | None,
    ) -> None:
        if not isinstance(policy, RefreshPolicy):
            raise TypeError(f"policy must be a RefreshPolicy, got {type(policy).__name__}")
        if breaker is not None and not isinstance(breaker, BreakerPolicy):
            raise TypeError(f"breaker must be a BreakerPolicy or None, got {type(breaker).__name__}")
        check_function("expires_at", expires_at, "a function of the value")
        if share is not None and not isinstance(share, Share):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"share must be a Share or None, got {type(share).__name__}")
        if budget is not None and not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"budget must be a Budget or None, got {type(budget).__name__}")
        super().__init__(
            mint,
            after_claim=after_claim,
            storage=storage,
            fetch_timeout=fetch_timeout,
            when_abandoned=when_abandoned,
            observe=observe,
            clock=clock,
            name=name,
        )
        self._policy = policy
        if policy.ttl is not None:
            self._clock.went_back = self._bring_back
        self._caution = Caution(name, policy, breaker)
        self._read_expires_at = expires_at
        self._keep_warm = check_seconds("keep_warm", keep_warm, allow_inf=True)
        self._counts_uses = 0.0 < self._keep_warm < inf
        self._in_use = Hold()
        self._pause = Hold()
        self._overridden = 0
        self._fast_alarm: Alarm | None = None
        self._warm_alarm: Alarm | None = None
        self._budget = budget
        self._ask = Ask(self._storage_failed)
        self._looked = Hold()
        self._sharing: Sharing[T] | None = None
        if share is not None:
            self._sharing = Sharing(
                self._owner,
                share,
                appraise=self._appraise,
                held=lambda: self._held,
                moved=self._forget_here,
                ask=self._ask,
            )

    # Deciding

    def _serve(self, now: float, *, may_wait: bool) -> Held[T] | None:
        held, flight, caution = self._held, self._flight, self._caution
        if held is None:
            return None
        state = CacheState(
            held, held.due_at, flight is not None, caution.breaker_at(now), held.good_until, caution.not_before(now)
        )
        action, _ = decide(state, now)
        if isinstance(action, ServeAndRefresh):
            self._refresh_in_background("aging")
            return None if may_wait and self._policy.due == "one_waits" else held
        if not isinstance(action, ServeCached):
            return None
        if self._sharing is not None and flight is None:
            self._look_at_share(self._sharing, held, now)
        return held

    def _bring_back(self, now: float) -> None:
        if self._held is not None:
            self._held.bring_back(now)

    def _look_at_share(self, sharing: Sharing[T], held: Held[T], now: float) -> None:
        """Notice a ``clear()`` of another process although no refresh is in sight."""
        overlooked = held.due_at is None or now >= held.due_at or not sharing.generation.known
        if overlooked and now >= self._looked.until(now):
            self._looked.set(now, _LOOK_EVERY)
            sharing.generation.look_soon()

    def _refresh_in_background(self, reason: Reason) -> None:
        self._take(reason, background=True).launch()

    def _admit(self, now: float, rejected: Held[T] | None) -> bool:
        self._caution.raise_permanent(now)
        breaker = self._caution.breaker_at(now)
        if admit(now, breaker)[0]:
            return False
        if rejected is not None and self._overridden != rejected.generation:
            # The caller knows that what everybody uses is no good: worth one try.
            self._overridden = rejected.generation
            return True
        assert isinstance(breaker, Open)
        raise BreakerOpen(breaker.until) from self._caution.last_failure

    def _is_permanent(self, refusal: Exception) -> bool:
        return self._caution.is_permanent(refusal)

    def _console(self, now: float, *, permanent: bool = False) -> Held[T] | None:
        held = self._held
        if held is None or now < held.good_until:
            return held
        if permanent:
            return None
        assert held.expires_at is not None
        age = max(0.0, now - held.expires_at)
        if now >= held.expires_at and not age < self._policy.serve_expired_for:
            return None
        self._owner.tell(ServedExpired(age, name=self._owner.name))
        return held

    def _still_usable(self, held: Held[T], now: float) -> bool:
        return held.expires_at is None or now < held.expires_at

    def _health(self, now: float) -> dict[str, Any]:
        return {
            "breaker": self._caution.breaker(None if self._owner.closed else now),
            "failures": self._caution.failures,
            "next_attempt_at": None if self._owner.closed else self._caution.next_attempt_at(now),
        }

    # What the flight asks

    def _flight_starts(self, flight: Flight[T, Held[T]]) -> None:
        # A clock that cannot be read now is asked again when the value arrives: the start is told in any case.
        now = flight.issued_at = self._clock.last()
        changes = self._caution.starts(now, fenced=flight.fenced)
        self._owner.tell(*changes, FetchStarted(flight.reason, name=self._owner.name))

    def _flight_fetch(self, flight: Flight[T, Held[T]]) -> Awaitable[T | None]:
        if self._sharing is None:
            return self._ask_source(flight)
        self._looked.set(self._clock.now(), _LOOK_EVERY)
        return self._sharing.fetch(flight, lambda: self._ask_source(flight))

    async def _ask_source(self, flight: Flight[T, Held[T]]) -> T | None:
        if self._budget is not None:
            wait = await spend(self._budget, "background" if flight.background else "user", self._ask)
            if wait is not None:
                now = self._clock.now()
                if flight.background and not flight.fenced:
                    self._caution.put_off(now, wait)
                flight.refused = True
                raise BudgetExhausted(now + wait)
        return await call_user("mint", self._fetch)

    def _flight_accept(self, flight: Flight[T, Held[T]], value: T) -> Held[T]:
        self._reanchor()
        arrived = self._clock.now()
        return judge(self._policy, self._read_expires_at, value, min(flight.issued_at, arrived), arrived)

    async def _flight_keep(self, flight: Flight[T, Held[T]], held: Held[T]) -> None:
        try:
            if self._sharing is not None:
                await self._sharing.publish(flight, held)
        finally:
            # Also where a KeyboardInterrupt has struck in the share's stores.
            await super()._flight_keep(flight, held)  # noqa: ASYNC102 - it is shielded

    def _appraise(self, value: T, issued_at: float) -> Held[T]:
        """Read the life of a peer's value."""
        now = self._clock.now()
        return judge(self._policy, self._read_expires_at, value, min(issued_at, now), now, sample=0.0)

    def _flight_succeeded(self, flight: Flight[T, Held[T]], held: Held[T] | None) -> None:
        events: list[Event] = []
        if held is None:
            if self._sharing is not None:
                self._sharing.nothing(flight)
            if not flight.fenced:
                self._caution.set_back(self._clock.last())
        elif not flight.fenced:
            events += self._caution.succeeded()
        self._owner.tell(*events, self._succeeded(flight, held))
        self._plan()

    def _flight_failed(self, flight: Flight[T, Held[T]], error: BaseException) -> None:
        now = self._clock.last()
        held = self._held
        events: list[Event] = []
        if self._sharing is not None:
            self._sharing.failed(flight, error)
        if not flight.fenced:
            self._note_failure(flight, error)
            flight.permanent, changes = self._caution.failed(error, now)
            events += changes
        remaining = None if held is None else held.remaining(now)
        duration, next_at = flight.duration, self._caution.next_attempt_at(now)
        self._owner.tell(
            *events, FetchFailed(flight.reason, duration, error, remaining, next_at, name=self._owner.name)
        )

    def _flight_release(self, flight: Flight[T, Held[T]]) -> None:
        super()._flight_release(flight)
        if self._sharing is not None:
            self._sharing.release(flight)
        if flight.override and (flight.refused or not flight.answered):
            self._overridden = 0  # an abandoned try was none
        held, now = self._held, self._clock.last()
        if held is not None and held.due_at is not None and now >= held.due_at:
            self._pause.set(now, _PAUSE)
        self._plan()

    # The rest

    def _from_storage(self, value: T) -> Held[T]:
        now = self._clock.now()
        return judge(self._policy, self._read_expires_at, value, now, now, stored=True)

    def _drop(self) -> trio.Event | None:
        settled = self._drop_here(None)
        return settled if self._sharing is None else self._sharing.generation.clear(settled)

    @enable_ki_protection
    def _forget_here(self, sparing: Flight[T, Held[T]] | None) -> None:
        """Forget without telling the other processes. A flight that has asked nobody yet may go on afterwards."""
        self._drop_here(sparing)
        self._owner.tell(Cleared(self._generation, name=self._owner.name))

    def _drop_here(self, sparing: Flight[T, Held[T]] | None) -> trio.Event | None:
        self._caution.forget()
        spared = self._flight
        if sparing is None or spared is not sparing:
            spared = None
        else:
            self._flight = None
        settled = super()._drop()
        if spared is not None and not self._owner.closed:
            spared.generation = self._generation
            self._flight = spared
        self._plan()
        return settled

    def _closed(self) -> None:
        super()._closed()
        self._caution.close()

    def _used(self, now: float) -> None:
        if self._keep_warm:
            self._in_use.set(now, self._keep_warm)
            self._plan()

    def _speed_up(self, held: Held[T], now: float) -> None:
        if not self._clock.wall_based or self._counts_uses:
            return
        if self._fast_thread and self._fast_until > now:
            return
        until = held.good_until if held.due_at is None else min(held.due_at, held.good_until)
        if held.due_at is None and self._sharing is not None:
            until = self._looked.until(now)
        if until != inf:
            if until - now < 10 * _MARGIN:
                return
            # The wall clock may be stepped back; the alarm goes by Trio's.
            self._slow_down()
            self._fast_alarm = self._owner.alarm(trio.current_time() + (until - now) - _MARGIN, self._slow_down)
        self._fast_value = held.value
        self._fast_until = until
        self._fast_thread = self._thread

    def _slow_down(self) -> None:
        super()._slow_down()
        if self._fast_alarm is not None:
            self._fast_alarm.cancel()
            self._fast_alarm = None

    def _plan(self) -> None:
        """Set the alarm for the next renewal that nobody asks for."""
        if not self._keep_warm:
            return
        if self._warm_alarm is not None:
            self._warm_alarm.cancel()
            self._warm_alarm = None
        held = self._held
        if self._owner.closed or held is None or held.due_at is None or self._flight is not None:
            return
        now = self._clock.last()
        at = self._warm_at(held.due_at, now)
        if at < self._in_use.until(now):
            self._warm_alarm = self._owner.alarm(trio.current_time() + self._sleep_for(at - now), self._warm)

    def _warm_at(self, due_at: float, now: float) -> float:
        caution = self._caution
        return max(due_at, caution.not_before(now), caution.next_attempt_at(now) or -inf, self._pause.until(now))

    def _sleep_for(self, seconds: float) -> float:
        # A given clock, or a wall clock of a suspended machine, may come to the instant sooner than Trio's.
        return max(0.0, seconds) if self._clock.steady else max(0.0, min(seconds, _LONGEST_SLEEP))

    def _warm(self) -> None:
        self._warm_alarm = None
        held, now = self._held, self._clock.last()
        if held is None or self._flight is not None or held.due_at is None:
            return
        if now >= self._warm_at(held.due_at, now) and now < self._in_use.until(now):
            self._refresh_in_background("aging" if now < held.good_until else "expired")
        else:
            self._plan()
