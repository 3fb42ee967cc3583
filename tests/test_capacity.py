"""The division of an adaptive limit, as a pure function, and its configs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from trio_renew._policy.capacity import (
    AdaptiveConfig,
    Capacity,
    RateLimitConfig,
    Trend,
    activity_trend,
    capacity_of,
    recent_activity,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = 100_000.0


def divide(
    user_ages: Sequence[float], background_ages: Sequence[float] = (), *, limit: int = 100, **config: Any
) -> Capacity:
    """Divide by the ages of requests."""
    users = [NOW - age for age in user_ages]
    background = [NOW - age for age in background_ages]
    return capacity_of(limit, users, background, NOW, AdaptiveConfig(**config))


@pytest.mark.parametrize(
    ("users", "background", "config", "split", "reason"),
    [
        ([1] * 12, [], {}, (90, 10, True), "High user activity (12 requests/15min) - prioritizing users"),
        ([1] * 6 + [400] * 6, [], {}, (90, 10, False), "High user activity"),
        ([1] * 12, [], {"background_pause_on_increasing_trend": False}, (90, 10, False), "High user activity"),
        ([1] * 12, [], {"max_user_scaling": 1.0}, (50, 50, True), "High user activity"),
        ([1] * 3, [], {}, (62, 38, False), "Moderate user activity - dynamic scaling (1.6x user capacity)"),
        ([1, 1, 400, 400], [], {}, (56, 44, False), "Moderate user activity - dynamic scaling (1.4x"),
        ([700] * 4, [], {}, (56, 44, False), "Moderate user activity"),
        ([1] + [400] * 4, [], {}, (48, 52, False), "Moderate user activity - dynamic scaling (1.2x"),
        ([1] * 4, [], {"max_user_scaling": 0.5}, (40, 60, False), "Moderate user activity - dynamic scaling (1.0x"),
        ([1], [], {}, (30, 70, False), "Low user activity (1 requests/15min) - background scale up"),
        ([], [], {}, (30, 70, False), "Initial state - default capacity allocation"),
        ([], [], {"min_user_reserved": 40}, (40, 60, False), "Initial state"),
        ([], [1], {}, (5, 95, False), "No user activity yet - background scale up"),
        ([], [1], {"min_user_reserved": 7}, (7, 93, False), "No user activity yet"),
        ([1000], [], {}, (5, 95, False), "Recent zero activity - background scale up"),
        ([1799.999], [], {}, (5, 95, False), "Recent zero activity"),
        ([1800], [], {}, (0, 100, False), "Sustained zero activity (30+ min) - full capacity to background"),
        ([1900, 5000], [1], {}, (0, 100, False), "Sustained zero activity"),
        ([], [], {"moderate_activity_threshold": 0}, (40, 60, False), "Moderate user activity"),
    ],
)
def test_known_divisions(
    users: list[float],
    background: list[float],
    config: dict[str, Any],
    split: tuple[int, int, bool],
    reason: str,
) -> None:
    capacity = divide(users, background, **config)
    assert (capacity.user_reserved, capacity.background_max, capacity.background_paused) == split
    assert capacity.reason.startswith(reason)


@pytest.mark.parametrize(
    ("users", "limit", "config", "split"),
    [
        ([5, 5], 50, {"monitoring_window": 1, "min_user_reserved": 9}, (9, 41)),
        ([120], 50, {"monitoring_window": 120, "sustained_inactivity_threshold": 60}, (0, 50)),
        ([1], 20, {"min_user_reserved": 12}, (12, 8)),
        ([1], 3, {}, (3, 0)),
        ([], 0, {}, (0, 0)),
        ([1] * 12, 5, {}, (4, 1)),
        ([1] * 3, 1, {}, (0, 1)),
        ([1], 20, {"min_user_reserved": 2.5}, (6, 14)),
        ([], 5, {"min_user_reserved": 2.5}, (2, 3)),
    ],
)
def test_shares_are_whole_and_within_the_limit(
    users: list[float], limit: int, config: dict[str, Any], split: tuple[int, int]
) -> None:
    capacity = divide(users, limit=limit, **config)
    assert (capacity.user_reserved, capacity.background_max) == split


def test_recent_means_younger_than_the_window() -> None:
    assert recent_activity([NOW - 1001, NOW - 1000, NOW - 999, NOW - 100], NOW, 1000) == 2


@pytest.mark.parametrize(
    ("ages", "trend"),
    [
        ([], "none"),
        ([600, 700, 899], "none"),
        ([1], "increasing"),
        ([1, 1, 1, 400], "increasing"),
        ([1, 1, 1, 400, 400], "stable"),
        ([1, 1, 400, 400], "stable"),
        ([1, 400, 400], "stable"),
        ([1, 400, 400, 400], "decreasing"),
        ([300], "decreasing"),
        ([299.999], "increasing"),
        ([599.999], "decreasing"),
    ],
)
def test_the_trend_compares_thirds_of_the_window(ages: list[float], trend: Trend) -> None:
    assert activity_trend([NOW - age for age in ages], NOW, 900) == trend


ages = st.lists(st.floats(0, 4000), max_size=30)


@given(ages, ages, st.integers(0, 10_000), st.floats(0.01, 10), st.floats(0, 10_000))
def test_the_shares_always_make_up_the_limit(
    users: list[float], background: list[float], limit: int, scaling: float, least: float
) -> None:
    capacity = divide(users, background, limit=limit, max_user_scaling=scaling, min_user_reserved=least)
    assert 0 <= capacity.user_reserved <= limit
    assert capacity.user_reserved + capacity.background_max == limit
    assert capacity.reason


def test_the_defaults() -> None:
    assert RateLimitConfig() == RateLimitConfig(limit=60, window=60.0)
    config = AdaptiveConfig()
    assert (config.monitoring_window, config.recalculation_interval) == (900.0, 30.0)
    assert (config.high_activity_threshold, config.moderate_activity_threshold) == (10, 3)
    assert config.sustained_inactivity_threshold == 1800.0
    assert (config.background_pause_on_increasing_trend, config.max_user_scaling) == (True, 2.0)
    assert config.min_user_reserved == 5


@pytest.mark.parametrize("field", ["monitoring_window", "recalculation_interval", "max_user_scaling"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1", None])
def test_what_must_be_positive(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        AdaptiveConfig(**{field: value})


@pytest.mark.parametrize("field", ["min_user_reserved", "high_activity_threshold", "moderate_activity_threshold"])
@pytest.mark.parametrize("value", [-1, float("nan"), True, "1", None])
def test_what_must_not_be_negative(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        AdaptiveConfig(**{field: value})


def test_the_thresholds_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"moderate_activity_threshold must be less than high.*\(4\), not 4"):
        AdaptiveConfig(high_activity_threshold=4, moderate_activity_threshold=4)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_flag_is_a_flag(value: Any) -> None:
    with pytest.raises(TypeError, match="background_pause_on_increasing_trend must be True or False"):
        AdaptiveConfig(background_pause_on_increasing_trend=value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", None])
def test_a_limit_is_a_count(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="limit"):
        RateLimitConfig(limit=value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_window_is_positive(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="window"):
        RateLimitConfig(window=value)


def test_a_scaling_beyond_all_numbers() -> None:
    assert divide([1], high_activity_threshold=1, moderate_activity_threshold=0, max_user_scaling=1e308) == Capacity(
        90, 10, True, "High user activity (1 requests/15min) - prioritizing users"
    )


def test_the_largest_limit() -> None:
    assert RateLimitConfig(limit=2**63 - 1).limit == 2**63 - 1
    for limit in (2**63, 10**400):
        with pytest.raises(ValueError, match=r"limit must be 0 or more and less than 2\*\*63, not "):
            RateLimitConfig(limit=limit)
