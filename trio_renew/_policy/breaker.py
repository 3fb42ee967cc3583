"""The circuit breaker: when a source that fails is left alone.

Invariants:

* State in, decision and new state out; no clock. An instant is compared as everywhere: open while ``now < until``.
* The breaker admits; that there is one probe only is the business of the single flight around it.
* Counting up within :class:`Closed` is nothing that an observer sees.
"""

from __future__ import annotations

from typing import Any, TypeAlias, final

import attrs

from .._values import check_seconds

__all__ = (
    "Breaker",
    "BreakerPolicy",
    "Closed",
    "HalfOpen",
    "Open",
    "admit",
    "record_failure",
    "record_success",
    "same_to_observers",
)


@final
@attrs.frozen
class Closed:
    """The source is used.

    Attributes:
      failures: How many fetches in a row have failed.
    """

    failures: int = 0


@final
@attrs.frozen
class Open:
    """The source is left alone.

    Attributes:
      until: The instant (POSIX seconds) from which on a probe is admitted.
    """

    until: float


@final
@attrs.frozen
class HalfOpen:
    """The cooldown is over: a probe decides."""


Breaker: TypeAlias = Closed | Open | HalfOpen


def admit(now: float, breaker: Breaker) -> tuple[bool, Breaker]:
    """Say whether a fetch may start at ``now``, and the state it starts in: an open breaker becomes half-open."""
    if isinstance(breaker, Open):
        return (True, HalfOpen()) if now >= breaker.until else (False, breaker)
    return True, breaker


def record_success(breaker: Breaker) -> Breaker:
    """Fold a success in: closed, whatever it was."""
    return Closed(0)


def record_failure(threshold: int, cooldown: float, now: float, breaker: Breaker) -> Breaker:
    """Fold a failure in.

    Args:
      threshold: How many failures in a row open it; less than 1 counts as 1.
      cooldown: Seconds for which it stays open.
      now: The instant of the failure.
      breaker: The state before.
    """
    if isinstance(breaker, Closed) and breaker.failures + 1 < threshold:
        return Closed(breaker.failures + 1)
    return Open(now + cooldown)


def same_to_observers(old: Breaker, new: Breaker) -> bool:
    """Say whether two states are the same for an observer: it sees closed, half-open and open, and nothing within."""
    return type(old) is type(new)


def _check_threshold(_: object, attribute: attrs.Attribute[int], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}; breaker=None turns the breaker off")


def _check_cooldown(_: object, attribute: attrs.Attribute[float], value: Any) -> None:
    check_seconds(attribute.name, value)


@final
@attrs.frozen
class BreakerPolicy:
    """When a source that fails is left alone, and for how long.

    Args:
      threshold: How many fetches in a row must fail; at least 1.
      cooldown: Seconds until one fetch may probe the source again; at least 0.

    Raises:
      TypeError: An argument is no number, or ``threshold`` no whole one.
      ValueError: An argument is out of range; NaN and infinity are.

    Example::

        open_provider(mint, breaker=BreakerPolicy(threshold=3, cooldown=30.0))
    """

    threshold: int = attrs.field(default=5, validator=_check_threshold)
    cooldown: float = attrs.field(default=60.0, validator=_check_cooldown)
