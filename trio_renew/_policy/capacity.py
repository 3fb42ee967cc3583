"""How a rate limit is divided between users and background work: configs and a pure formula.

Invariants:

* No clock, no task: instants come in as numbers of one and the same clock.
* A thing with deadline d is good while ``now < d``: a request of age a counts in a window w while ``a < w``, and from
  exactly ``sustained_inactivity_threshold`` on it is quiet.
* Shares are whole: ``0 <= user_reserved <= limit`` and ``user_reserved + background_max == limit``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = (
    "AdaptiveConfig",
    "Capacity",
    "RateLimitConfig",
    "Trend",
    "activity_trend",
    "capacity_of",
    "recent_activity",
)

# The largest number that every engine can store; ``sys.maxsize`` says "no limit".
_MOST = 2**63 - 1

Trend = Literal["increasing", "stable", "decreasing", "none"]


def _number(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number, not {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        raise ValueError(f"{attribute.name} must be a number that a float can be; this one is too large") from None
    if not finite:
        raise ValueError(f"{attribute.name} must be finite, not {value!r}")


def _positive(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _number(instance, attribute, value)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{attribute.name} must be greater than 0, not {value!r}")


def _count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
    if not 0 <= value <= _MOST:
        raise ValueError(f"{attribute.name} must be 0 or more and less than 2**63, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    _number(instance, attribute, value)
    if value < 0:  # type: ignore[operator]
        raise ValueError(f"{attribute.name} must be 0 or more, not {value!r}")


def _below_high(instance: AdaptiveConfig, attribute: attrs.Attribute[Any], value: float) -> None:
    high = instance.high_activity_threshold
    if not value < high:
        raise ValueError(f"{attribute.name} must be less than high_activity_threshold ({high!r}), not {value!r}")


def _flag(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


@attrs.frozen
class RateLimitConfig:
    """How often something may happen.

    Args:
      limit: How many requests fit into the window, less than 2**63; 0: none ever.
      window: Its length in seconds, greater than 0.

    Raises:
      TypeError: A field has the wrong type.
      ValueError: A field is out of range. Both name the field.
    """

    limit: int = attrs.field(default=60, validator=_count)
    window: float = attrs.field(default=60.0, validator=_positive)


@attrs.frozen(kw_only=True)
class AdaptiveConfig:
    """How the division of an adaptive limit follows the users' activity.

    Args:
      monitoring_window: Seconds for which a user request counts as activity.
      high_activity_threshold: From this many user requests on, activity is high.
      moderate_activity_threshold: From this many on it is moderate; less than ``high_activity_threshold``.
      recalculation_interval: Seconds for which a division holds before it is made anew.
      sustained_inactivity_threshold: Seconds after the last user request from which on background work gets all.
      background_pause_on_increasing_trend: Whether background work pauses while activity is high and increasing.
      max_user_scaling: By how much activity may multiply the users' share, greater than 0.
      min_user_reserved: The users' share when there is little activity; at most the limit is reserved.

    Raises:
      TypeError: A field has the wrong type.
      ValueError: A field is out of range. Both name the field.
    """

    monitoring_window: float = attrs.field(default=900.0, validator=_positive)
    high_activity_threshold: float = attrs.field(default=10, validator=_not_negative)
    moderate_activity_threshold: float = attrs.field(default=3, validator=(_not_negative, _below_high))
    recalculation_interval: float = attrs.field(default=30.0, validator=_positive)
    sustained_inactivity_threshold: float = attrs.field(default=1800.0, validator=_positive)
    background_pause_on_increasing_trend: bool = attrs.field(default=True, validator=_flag)
    max_user_scaling: float = attrs.field(default=2.0, validator=_positive)
    min_user_reserved: float = attrs.field(default=5, validator=_not_negative)


@attrs.frozen
class Capacity:
    """A division of a limit.

    Attributes:
      user_reserved: The users' share, a whole number within [0, limit].
      background_max: The rest.
      background_paused: Whether background work is refused altogether.
      reason: Why, for people.
    """

    user_reserved: int
    background_max: int
    background_paused: bool
    reason: str


def recent_activity(requests: Iterable[float], now: float, window: float) -> int:
    """Count the requests that are less than ``window`` seconds old."""
    return sum(now - at < window for at in requests)


def activity_trend(requests: Iterable[float], now: float, window: float) -> Trend:
    """Compare the last third of the window with the one before it."""
    third = window / 3
    recent = previous = 0
    for at in requests:
        age = now - at
        if age < third:
            recent += 1
        elif age < 2 * third:
            previous += 1
    if not recent and not previous:
        return "none"
    if recent > 1.5 * previous:
        return "increasing"
    if recent < 0.5 * previous:
        return "decreasing"
    return "stable"


def capacity_of(
    limit: int, user_requests: Iterable[float], background_requests: Iterable[float], now: float, config: AdaptiveConfig
) -> Capacity:
    """Divide a limit.

    Args:
      limit: The whole limit.
      user_requests: The instants of the users' requests that are still known, the last one among them.
      background_requests: The instants of the background requests that are still known.
      now: The instant to decide for.
      config: The thresholds.
    """
    users = tuple(user_requests)
    window = config.monitoring_window
    active = recent_activity(users, now, window)
    minutes = f"{window / 60:g}min"
    least = max(_whole(0.3 * limit), config.min_user_reserved)
    paused = False
    if active >= config.high_activity_threshold:
        share = min(0.9 * limit, _whole(min(0.5 * limit * config.max_user_scaling, limit)))
        increasing = activity_trend(users, now, window) == "increasing"
        paused = increasing and config.background_pause_on_increasing_trend
        reason = f"High user activity ({active} requests/{minutes}) - prioritizing users"
    elif active >= config.moderate_activity_threshold:
        scale = _scaling(active, activity_trend(users, now, window), config)
        share = min(0.7 * limit, _whole(0.4 * limit) * scale)
        reason = f"Moderate user activity - dynamic scaling ({scale:.1f}x user capacity)"
    elif active:
        share = least
        reason = f"Low user activity ({active} requests/{minutes}) - background scale up"
    elif users and now - max(users) >= config.sustained_inactivity_threshold:
        share = 0.0
        quiet = f"{config.sustained_inactivity_threshold / 60:g}+ min"
        reason = f"Sustained zero activity ({quiet}) - full capacity to background"
    elif users:
        share = config.min_user_reserved
        reason = "Recent zero activity - background scale up with a minimal user reserve"
    elif any(True for _ in background_requests):
        share = config.min_user_reserved
        reason = "No user activity yet - background scale up with a minimal user reserve"
    else:
        share = least
        reason = "Initial state - default capacity allocation"
    reserved = min(limit, max(0, _whole(share)))
    return Capacity(reserved, limit - reserved, paused, reason)


def _scaling(active: int, trend: Trend, config: AdaptiveConfig) -> float:
    scale = min(config.max_user_scaling, 1 + active / config.high_activity_threshold)
    if trend == "increasing":
        scale *= 1.2
    elif trend == "decreasing":
        scale *= 0.8
    return max(1.0, scale)


def _whole(share: float) -> int:
    # 40 * 1.4 must be 56 also where the product comes out a hair below it.
    return math.floor(round(share, 6))
