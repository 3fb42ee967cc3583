"""What a resource holds, and what it says about itself.

Invariants:

* A :class:`Held` is made when a value arrives. It gets its generation when it is kept. Its instants change only where
  its life is one that we gave it, and the clock goes back before its beginning (:meth:`Held.bring_back`).
* Instants are on the owner's clock. ``good_until`` and ``due_at`` are infinity where the value never ends.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
from trio.lowlevel import checkpoint, enable_ki_protection

from ._values import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from ._owner import Owner
    from ._policy.breaker import Closed, HalfOpen, Open

__all__ = ("Changes", "Held", "Status")

T = TypeVar("T")


class Held(Generic[T]):
    """A value and its life.

    Attributes:
      value: The value.
      issued_at: When its fetch started.
      expires_at: Its true end, or None.
      due_at: From when on it should be renewed, or None.
      good_until: Until when it is handed out without waiting for a better one; infinity: always.
      by_ttl: Its life is so many seconds because we said so: it has no expiry of its own.
      generation: The owner's generation that it began; 0 until it is kept.
    """

    __slots__ = ("by_ttl", "due_at", "expires_at", "generation", "good_until", "issued_at", "value")

    def __init__(
        self,
        value: T,
        issued_at: float,
        *,
        expires_at: float | None = None,
        due_at: float | None = None,
        good_until: float | None = None,
        by_ttl: bool = False,
    ) -> None:
        self.value: T = value
        self.issued_at: float = issued_at
        self.expires_at: float | None = expires_at
        self.due_at: float | None = due_at
        self.good_until: float = inf if good_until is None else good_until
        self.by_ttl: bool = by_ttl
        self.generation: int = 0

    def bring_back(self, now: float) -> None:
        """The clock went back to this: seconds that we gave it are no more than they were."""
        if self.by_ttl and now < self.issued_at:
            by = self.issued_at - now
            self.issued_at = now
            self.expires_at = None if self.expires_at is None else self.expires_at - by
            self.due_at = None if self.due_at is None else self.due_at - by
            self.good_until -= by

    def lease(self) -> Lease[T]:
        """Give it to a user."""
        return Lease(self.value, self.generation, self.issued_at, self.expires_at)

    def remaining(self, now: float) -> float | None:
        """Seconds of true life left, never negative; None: it does not end."""
        return None if self.expires_at is None else max(0.0, self.expires_at - now)


@attrs.frozen
class Status:
    """A snapshot of a resource for people and dashboards. It holds no value and no secret.

    Attributes:
      name: The owner's name.
      generation: The current one: it grows with each value kept and with each ``clear()``.
      held: Whether a value is held, good or not.
      good: Whether a call would be served at once.
      issued_at: When the held value's fetch started.
      expires_at: The held value's true end; None: nothing held, or it never ends.
      due_at: From when on the held value is renewed.
      fetching: Whether a fetch runs or has been claimed.
      waiting: How many callers wait on it.
      breaker: The breaker's state; None where there is none.
      failures: Failed fetches in a row; None where they are not counted.
      next_attempt_at: When a background refresh may be tried again; None: at once.
      last_error: Type name and bounded, redacted text of the last failure since the last success.
      closed: Whether the owner has closed.
    """

    name: str | None
    generation: int
    held: bool
    good: bool
    issued_at: float | None
    expires_at: float | None
    due_at: float | None
    fetching: bool
    waiting: int
    breaker: Closed | Open | HalfOpen | None
    failures: int | None
    next_attempt_at: float | None
    last_error: str | None
    closed: bool


class Changes(Generic[T]):
    """The values of a resource as they come: ``async for value in resource.changes()``.

    Hands out the value that is good now, then each new one; a slow reader misses values, never the latest. It never
    fetches. Each step is a checkpoint; cancelling or interrupting it loses nothing. The loop ends when the owner
    closes.
    """

    __slots__ = ("_look", "_owner", "_seen", "_wait")

    def __init__(self, owner: Owner, look: Callable[[int], Held[T] | None], wait: Callable[[], trio.Event]) -> None:
        self._owner = owner
        self._look = look
        self._wait = wait
        self._seen = 0

    def __aiter__(self) -> Changes[T]:
        return self

    @enable_ki_protection
    async def __anext__(self) -> T:
        """Wait for a value that was not handed out yet.

        Raises:
          StopAsyncIteration: The owner has closed.
        """
        await checkpoint()
        while not self._owner.closed:
            self._owner.check()
            held = self._look(self._seen)
            if held is not None:
                self._seen = held.generation
                return held.value
            await self._wait().wait()
        raise StopAsyncIteration
