"""How long a background refresh is put off after failures.

Invariants: pure; the same arguments give the same delay; a delay is finite and never more than ``maximum``.
"""

from __future__ import annotations

from typing import Any, final

import attrs

from .._values import check_seconds

__all__ = ("Backoff",)

#: From here on a power of anything above 1 is out of reach, or not worth telling apart.
_MANY = 2**40


def _check_seconds(_: object, attribute: attrs.Attribute[float], value: Any) -> None:
    check_seconds(attribute.name, value)


def _check_multiplier(_: object, attribute: attrs.Attribute[float], value: Any) -> None:
    _check_number(attribute.name, value, 1.0, None)


def _check_jitter(_: object, attribute: attrs.Attribute[float], value: Any) -> None:
    _check_number(attribute.name, value, 0.0, 1.0)


def _check_number(name: str, value: Any, least: float, most: float | None) -> None:
    bounds = f"a number of at least {least:g}" if most is None else f"a number from {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {bounds}, not an object of type {type(value).__name__}")
    if not least <= value < float("inf") or (most is not None and value > most):
        raise ValueError(f"{name} must be {bounds}, not {value!r}")


@final
@attrs.frozen
class Backoff:
    """Delays that grow with each failure in a row.

    The n-th one is ``min(maximum, initial * multiplier ** (n - 1))`` seconds, less a random share of up to
    ``jitter``, so that many processes do not come back at the same moment.

    Args:
      initial: Seconds after the first failure; at least 0.
      multiplier: How it grows; at least 1.
      maximum: The longest delay in seconds; at least 0.
      jitter: The largest share of the delay that is taken off; from 0 to 1.

    Raises:
      TypeError: An argument is no number.
      ValueError: An argument is out of range; NaN and infinity are.

    Example::

        RefreshPolicy(retry=Backoff(initial=0.5, maximum=30.0))
    """

    initial: float = attrs.field(default=1.0, validator=_check_seconds)
    multiplier: float = attrs.field(default=2.0, validator=_check_multiplier)
    maximum: float = attrs.field(default=60.0, validator=_check_seconds)
    jitter: float = attrs.field(default=0.5, validator=_check_jitter)

    def delay(self, n: int, u: float) -> float:
        """Give the delay in seconds after the n-th failure in a row.

        Args:
          n: How many failures there were, from 1.
          u: The random share of the jitter, in [0, 1).
        """
        exponent = min(max(n, 1) - 1, _MANY)
        try:
            delay = self.initial * float(self.multiplier) ** exponent
        except OverflowError:
            delay = self.maximum if self.initial else 0.0
        return min(self.maximum, delay) * (1.0 - self.jitter * u)
