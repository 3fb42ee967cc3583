"""What the failures of a source, and limits, forbid; and until when.

Invariants:

* Nothing here waits, tells or fetches: it is asked whether something may be done at an instant, and told what has
  happened. What observers are to hear is returned.
* Background refreshes wait for ``min_interval``, the backoff, a refused budget, a remembered permanent failure and the
  breaker; a caller who needs a value waits for the last two only.
* The breaker half-opens when its probe starts, not when it is claimed; single flight makes it one probe.
* A clock that goes back prolongs nothing beyond its own length.
"""

from __future__ import annotations

from math import inf
from random import random
from typing import TYPE_CHECKING

from ._events import BreakerChanged
from ._policy.breaker import Closed, HalfOpen, Open, admit, record_failure, record_success, same_to_observers
from ._raising import raise_shared

if TYPE_CHECKING:
    from types import TracebackType

    from ._policy.breaker import BreakerPolicy
    from ._policy.schedule import RefreshPolicy

__all__ = ("Caution", "Hold")


class Hold:
    """Something that is not allowed before an instant. A clock that goes back does not prolong it beyond its length."""

    __slots__ = ("_length", "_until")

    def __init__(self) -> None:
        self.lift()

    def lift(self) -> None:
        """Allow it."""
        self._until = -inf
        self._length = 0.0

    def set(self, now: float, length: float) -> None:
        """Forbid it for so many seconds from now."""
        self._until = now + length
        self._length = length

    def until(self, now: float) -> float:
        """The instant, whether it has come or not."""
        if self._until - now > self._length:
            self._until = now + self._length
        return self._until


class Caution:
    """How much the source of one provider is to be spared.

    Args:
      name: The owner's, for events.
      policy: Of the provider.
      breaker_policy: Of the provider; None: no breaker.

    Attributes:
      failures: Failed fetches in a row.
      last_failure: The last of them, while there is a breaker: the cause of ``BreakerOpen``.
    """

    __slots__ = (
        "_backoff",
        "_breaker",
        "_breaker_policy",
        "_interval",
        "_name",
        "_permanent",
        "_permanent_hold",
        "_policy",
        "_put_off",
        "_setbacks",
        "failures",
        "last_failure",
    )

    def __init__(self, name: str | None, policy: RefreshPolicy, breaker_policy: BreakerPolicy | None) -> None:
        self._name = name
        self._policy = policy
        self._breaker_policy = breaker_policy
        self._breaker: Closed | Open | HalfOpen = Closed(0)
        self._setbacks = 0
        self._backoff = Hold()
        self._put_off = Hold()
        self._interval = Hold()
        self._permanent: tuple[BaseException, TracebackType | None, BaseException | None] | None = None
        self._permanent_hold = Hold()
        self.failures = 0
        self.last_failure: BaseException | None = None

    # What may be done

    def raise_permanent(self, now: float) -> None:
        """Raise a permanent failure that is still remembered."""
        if self._permanent is not None:
            if now < self._permanent_hold.until(now):
                raise_shared(*self._permanent)
            self._permanent = None

    def is_permanent(self, refusal: Exception) -> bool:
        """Whether :meth:`raise_permanent` has raised this."""
        return self._permanent is not None and refusal is self._permanent[0]

    def breaker_at(self, now: float) -> Closed | Open | HalfOpen:
        """The breaker's state."""
        policy = self._breaker_policy
        if policy is not None and isinstance(self._breaker, Open) and self._breaker.until - now > policy.cooldown:
            self._breaker = Open(now + policy.cooldown)
        return self._breaker

    def breaker(self, now: float | None) -> Closed | Open | HalfOpen | None:
        """The breaker's state, for people; None: there is none. Without a clock, as it was left."""
        if self._breaker_policy is None:
            return None
        return self._breaker if now is None else self.breaker_at(now)

    def not_before(self, now: float) -> float:
        """Before this instant no background refresh starts, whatever the breaker says."""
        holds = (self._backoff, self._put_off, self._interval, self._permanent_hold)
        return max(hold.until(now) for hold in holds)

    def next_attempt_at(self, now: float) -> float | None:
        """When a background refresh may be tried again; None: at once."""
        holds = (self._backoff, self._put_off, self._permanent_hold)
        at = max(hold.until(now) for hold in holds)
        breaker = self.breaker_at(now)
        if isinstance(breaker, Open):
            at = max(at, breaker.until)
        return at if at > now else None

    # What has happened

    def starts(self, now: float, *, fenced: bool) -> tuple[BreakerChanged, ...]:
        """A fetch starts."""
        self._interval.set(now, self._policy.min_interval)
        if not fenced:
            admitted, breaker = admit(now, self.breaker_at(now))
            if admitted:
                return self._move_breaker(breaker)
        return ()

    def succeeded(self) -> tuple[BreakerChanged, ...]:
        """A fetch has brought a value."""
        self.failures = self._setbacks = 0
        self._backoff.lift()
        self._put_off.lift()
        self._forget_permanent()
        self.last_failure = None
        return self._move_breaker(record_success(self._breaker))

    def failed(self, error: BaseException, now: float) -> tuple[bool, tuple[BreakerChanged, ...]]:
        """A fetch has failed. Says whether trying again does not mend that, and what observers are to hear."""
        self.failures += 1
        if self._breaker_policy is not None:
            self.last_failure = error
        if self._policy.is_permanent(error):
            low, high = self._policy.permanent_ttl
            self._permanent = (error, error.__traceback__, error.__context__)
            self._permanent_hold.set(now, low + (high - low) * random())
            self._setbacks = 0
            self._backoff.lift()
            return True, ()
        self.set_back(now)
        policy = self._breaker_policy
        if policy is None:
            return False, ()
        return False, self._move_breaker(record_failure(policy.threshold, policy.cooldown, now, self._breaker))

    def set_back(self, now: float) -> None:
        """A fetch has brought nothing: the next background refresh waits."""
        self._setbacks += 1
        if self._policy.retry is not None:
            self._backoff.set(now, self._policy.retry.delay(self._setbacks, random()))

    def put_off(self, now: float, wait: float) -> None:
        """A background refresh was refused, and may be allowed after so many seconds."""
        self._put_off.set(now, wait)

    def forget(self) -> None:
        """``clear()`` came: what belongs to the old value is forgotten. The breaker is the source's."""
        self._forget_permanent()
        self._setbacks = 0
        self._backoff.lift()

    def close(self) -> None:
        """Keep no error alive."""
        self._permanent = self.last_failure = None

    def _move_breaker(self, new: Closed | Open | HalfOpen) -> tuple[BreakerChanged, ...]:
        old, self._breaker = self._breaker, new
        if same_to_observers(old, new):
            return ()
        return (BreakerChanged(old, new, name=self._name),)

    def _forget_permanent(self) -> None:
        self._permanent = None
        self._permanent_hold.lift()
