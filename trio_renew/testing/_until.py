"""An exact instant of a value's life, without arithmetic in tests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

import trio

from .._clock import under_test_clock, wall_now

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("until",)

# For how many seconds the provider's clock may stand still while Trio's runs: under a test clock they cost nothing.
_STANDSTILL = 60.0
_STANDSTILL_UNDER_TEST = 86_400.0
# Of a clock that nobody knows: the first look at how fast it is comes after this part of what is left.
_FIRST_LOOK = 1e-6


class _HasLife(Protocol):
    @property
    def due_at(self) -> float | None: ...
    @property
    def expires_at(self) -> float | None: ...


class _HasStatus(Protocol):
    def status(self) -> _HasLife: ...


def _is_finite(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)


async def until(provider: _HasStatus, instant: Literal["due", "expiry"], offset: float = 0.0) -> None:
    """Sleep to an instant in the life of the value that a provider holds, exactly.

    It returns at the first reading of the provider's clock that is not before the instant. Waiting is on Trio's
    clock, so with an autojump clock it takes no time. A clock that was given to the provider may go faster or slower
    than Trio's, or in steps; then it is looked at again and again on the way. Always a checkpoint.

    Args:
      provider: Anything whose ``status()`` gives ``due_at`` and ``expires_at``.
      instant: ``"due"``: when its renewal is due, or ``"expiry"``: when it expires.
      offset: So many seconds later (or, negative, earlier).

    Raises:
      ValueError: The provider holds no value, or one that has no such instant.
      TypeError: It has no such ``status()``.
      RuntimeError: The provider's clock does not go on while Trio's does, so the instant would never come.

    Example::

        await until(provider, "due", -0.001)
        assert fetch.calls == 1
        await until(provider, "due")
        await provider.get()                 # served at once, and renewed in the background
    """
    if instant not in ("due", "expiry"):
        raise ValueError(f'until(instant): "due" or "expiry" is needed, not {instant!r}')
    if not _is_finite(offset):
        raise ValueError(f"until(offset): a finite number of seconds is needed, not {offset!r}")
    at = _instant_of(provider, instant) + offset
    clock: Any = getattr(provider, "_clock", None)
    now: Callable[[], float] = getattr(clock, "now", wall_now)
    # The provider's own clock goes as fast as Trio's; what a user's does is to be seen.
    known = clock is None or getattr(clock, "steady", False) or getattr(clock, "wall_based", False)
    await trio.lowlevel.checkpoint()
    pace = _Pace(now(), trio.current_time(), known=known)
    while (reading := now()) < at:  # noqa: ASYNC110 - no clock tells when it has come to an instant
        await trio.sleep_until(pace.next_look(reading, trio.current_time(), at))


def _instant_of(provider: _HasStatus, instant: str) -> float:
    look = getattr(provider, "status", None)
    status = look() if callable(look) else None
    name = "due_at" if instant == "due" else "expires_at"
    if not hasattr(status, name):
        raise TypeError(f"until(provider): something whose status() has {name} is needed, not {provider!r}")
    at: float | None = getattr(status, name)
    if at is None:
        raise ValueError(f'until(provider, "{instant}"): there is no value that is ever {_WORDS[instant]}: {status!r}')
    return at


class _Pace:
    """When to look at a clock next, so that it has come as near to an instant as it can, and is not past it.

    A clock that goes as Trio's does is looked at just where it should be there. Of any other nothing is known but what
    it has shown so far: how fast it was, and by how much it goes on at once. Each time it is let go half of the way;
    while it stands, it is looked at more and more seldom.
    """

    def __init__(self, reading: float, time: float, *, known: bool) -> None:
        self._known = known
        self._first = self._last = reading
        self._start = self._still_since = time
        self._stood = False
        self._grain = 0.0
        self._patience = _STANDSTILL_UNDER_TEST if under_test_clock() else _STANDSTILL

    def next_look(self, reading: float, time: float, at: float) -> float:
        """Say at which time of Trio's."""
        left = at - reading
        stands = reading == self._last
        if not stands:
            if self._stood:
                self._grain = max(self._grain, reading - self._last)
            self._last, self._still_since = reading, time
        elif time - self._still_since > max(self._patience, 10 * left):
            raise RuntimeError(f"until: the provider's clock stands at {reading!r} while Trio's goes on")
        self._stood = stands
        if self._known:
            # A reading is rounded to a float, by half a unit at most. Aiming a little low makes the rounding err
            # towards one more turn, never past the instant.
            nap = left - 0.3 * math.ulp(reading)
        elif stands:
            nap = max((time - self._still_since) / 16, (left * _FIRST_LOOK if time == self._start else 0.0))
        else:
            speed = (reading - self._first + max(self._grain, 2 * math.ulp(reading))) / (time - self._start)
            nap = min(left / 2 / speed, time - self._start) if speed > 0 else time - self._start
        # Each turn must move Trio's clock.
        return max(time + nap, math.nextafter(time, math.inf))


_WORDS = {"due": "due", "expiry": "expired"}
