"""An exact instant of a value's life, without arithmetic in tests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol

import trio

from .._clock import wall_now

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("until",)

# For how long (in multiples of what is left, and in seconds) the provider's clock may stand still while Trio's runs.
_STANDSTILL = (10, 60.0)


class _HasLife(Protocol):
    @property
    def due_at(self) -> float | None: ...
    @property
    def expires_at(self) -> float | None: ...


class _HasStatus(Protocol):
    def status(self) -> _HasLife: ...


def _clock_of(provider: object) -> Callable[[], float]:
    now: Callable[[], float] | None = getattr(getattr(provider, "_clock", None), "now", None)
    return wall_now if now is None else now


def _is_finite(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)


async def until(provider: _HasStatus, instant: Literal["due", "expiry"], offset: float = 0.0) -> None:
    """Sleep to an instant in the life of the value that a provider holds, exactly.

    It returns at the first reading of the provider's clock that is not before the instant. Waiting is on Trio's
    clock, so with an autojump clock it takes no time. Always a checkpoint.

    Args:
      provider: Anything whose ``status()`` gives ``due_at`` and ``expires_at``.
      instant: ``"due"``: when its renewal is due, or ``"expiry"``: when it expires.
      offset: So many seconds later (or, negative, earlier).

    Raises:
      ValueError: The provider holds no value, or one that has no such instant.
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
    status = provider.status()
    at = status.due_at if instant == "due" else status.expires_at
    if at is None:
        raise ValueError(f'until(provider, "{instant}"): there is no value that is ever {_WORDS[instant]}: {status!r}')
    at += offset
    now = _clock_of(provider)

    await trio.lowlevel.checkpoint()
    last, still_since = now(), trio.current_time()
    while (reading := now()) < at:
        time = trio.current_time()
        left = at - reading
        if reading != last:
            last, still_since = reading, time
        elif time - still_since > max(_STANDSTILL[0] * left, _STANDSTILL[1]):
            raise RuntimeError(f"until: the provider's clock stands at {reading!r} while Trio's goes on")
        # A reading is rounded to a float, by half a unit at most. Aiming a little low makes the rounding err towards
        # one more turn, never past the instant; and each turn must move Trio's clock.
        deadline = time + left - 0.3 * math.ulp(reading)
        await trio.sleep_until(max(deadline, math.nextafter(time, math.inf)))


_WORDS = {"due": "due", "expiry": "expired"}
