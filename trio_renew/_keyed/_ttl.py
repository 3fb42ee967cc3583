"""How lifetimes are given: seconds, True for ever, False or nothing at all for never."""

from __future__ import annotations

from math import inf, isfinite

from .._values import check_seconds

__all__ = ("check_count", "check_fraction", "read_ttl")


def read_ttl(ttl: object) -> float:
    """Give a lifetime in seconds: infinity for ever, 0 for never.

    Raises:
      TypeError: It is neither a number nor a bool.
      ValueError: It is NaN or infinite.
    """
    if ttl is True:
        return inf
    if ttl is False:
        return 0.0
    seconds = check_seconds("ttl", ttl, minimum=-inf, allow_inf=True)
    if not isfinite(seconds):
        raise ValueError(f"ttl must be finite, not {seconds!r}; True stands for ever")
    return max(0.0, seconds)


def check_count(name: str, value: object) -> int:
    """Check a bound on a number of things.

    Raises:
      TypeError: It is no whole number.
      ValueError: It is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def check_fraction(name: str, value: object, *, below_one: bool = False) -> float:
    """Check a fraction: a number from 0 to 1.

    Raises:
      TypeError: It is no number.
      ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name} must be at least 0 and {'less than' if below_one else 'at most'} 1, not {value!r}")
    return float(value)
