"""The circuit breaker as tables: no clock, no Trio."""

from __future__ import annotations

import itertools
import math

import pytest

from trio_renew._policy.breaker import (
    BreakerPolicy,
    Closed,
    HalfOpen,
    Open,
    admit,
    record_failure,
    record_success,
    same_to_observers,
)

NOW = 1_700_000_000.0
STATES = [Closed(0), Closed(1), Closed(7), HalfOpen(), Open(NOW), Open(NOW + 30.0), Open(NOW - 1.0)]


def test_a_new_breaker_is_closed():
    assert Closed() == Closed(0)


def test_states_are_equal_only_when_they_are_the_same():
    for left, right in itertools.product(STATES, STATES):
        assert (left == right) is (left is right)
    assert len(set(STATES)) == len(STATES)


def test_states_are_told_apart_when_shown():
    assert [repr(state) for state in (Closed(2), Open(5.0), HalfOpen())] == [
        "Closed(failures=2)",
        "Open(until=5.0)",
        "HalfOpen()",
    ]
    assert repr((Closed(2), [HalfOpen()])) == "(Closed(failures=2), [HalfOpen()])"


@pytest.mark.parametrize(
    ("state", "admitted", "after"),
    [
        (Closed(0), True, Closed(0)),
        (Closed(2), True, Closed(2)),
        (HalfOpen(), True, HalfOpen()),
        (Open(NOW + 30.0), False, Open(NOW + 30.0)),
        (Open(math.nextafter(NOW, math.inf)), False, Open(math.nextafter(NOW, math.inf))),
        (Open(NOW), True, HalfOpen()),
        (Open(NOW - 1.0), True, HalfOpen()),
    ],
)
def test_admission(state, admitted, after):
    assert admit(NOW, state) == (admitted, after)


@pytest.mark.parametrize("failures", range(11))
@pytest.mark.parametrize("offset", [-1e9, -1.0, 0.0, 1.0, 1e9])
def test_a_closed_breaker_admits_at_any_time(failures, offset):
    assert admit(NOW + offset, Closed(failures)) == (True, Closed(failures))


@pytest.mark.parametrize("offset", range(-600, 601, 25))
def test_an_open_breaker_admits_from_its_instant_on(offset):
    admitted, after = admit(NOW + offset, Open(NOW))
    assert admitted is (offset >= 0)
    assert after == (HalfOpen() if offset >= 0 else Open(NOW))


@pytest.mark.parametrize("state", STATES)
def test_a_success_closes(state):
    assert record_success(state) == Closed(0)


@pytest.mark.parametrize(
    ("threshold", "cooldown", "now", "state", "after"),
    [
        (3, 30.0, NOW, Closed(0), Closed(1)),
        (3, 30.0, NOW, Closed(1), Closed(2)),
        (3, 30.0, NOW, Closed(2), Open(NOW + 30.0)),
        (3, 30.0, NOW, Closed(9), Open(NOW + 30.0)),
        (3, 30.0, NOW, HalfOpen(), Open(NOW + 30.0)),
        (3, 30.0, NOW + 100.0, Open(NOW), Open(NOW + 130.0)),
        (1, 0.0, NOW, Closed(0), Open(NOW)),
        (0, 30.0, NOW, Closed(0), Open(NOW + 30.0)),
        (-5, 30.0, NOW, Closed(0), Open(NOW + 30.0)),
    ],
)
def test_failures(threshold, cooldown, now, state, after):
    assert record_failure(threshold, cooldown, now, state) == after


@pytest.mark.parametrize("threshold", range(1, 8))
def test_as_many_failures_as_the_threshold_open_it(threshold):
    state = Closed(0)
    for count in range(1, threshold):
        state = record_failure(threshold, 30.0, NOW, state)
        assert state == Closed(count)
    assert record_failure(threshold, 30.0, NOW, state) == Open(NOW + 30.0)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (Closed(0), Closed(4), True),
        (Closed(4), Closed(0), True),
        (HalfOpen(), HalfOpen(), True),
        (Open(1.0), Open(2.0), True),
        (Closed(4), Open(1.0), False),
        (Open(1.0), HalfOpen(), False),
        (HalfOpen(), Closed(0), False),
        (HalfOpen(), Open(1.0), False),
    ],
)
def test_what_observers_can_tell_apart(old, new, same):
    assert same_to_observers(old, new) is same


def test_the_policy_has_defaults():
    assert BreakerPolicy() == BreakerPolicy(5, 60.0) == BreakerPolicy(threshold=5, cooldown=60)
    assert BreakerPolicy(1, 0.0).threshold == 1


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"threshold": 0}, ValueError, "threshold must be at least 1, not 0; breaker=None"),
        ({"threshold": -1}, ValueError, "threshold"),
        ({"threshold": 2.0}, TypeError, "threshold must be a whole number, not 2.0"),
        ({"threshold": True}, TypeError, "threshold"),
        ({"threshold": "5"}, TypeError, "threshold"),
        ({"threshold": None}, TypeError, "threshold"),
        ({"cooldown": math.nan}, ValueError, "cooldown"),
        ({"cooldown": -1.0}, ValueError, "cooldown must be at least 0"),
        ({"cooldown": math.inf}, ValueError, "cooldown"),
        ({"cooldown": "60"}, TypeError, "cooldown"),
        ({"cooldown": True}, TypeError, "cooldown"),
    ],
)
def test_the_policy_is_checked(arguments, error, reason):
    with pytest.raises(error, match=reason):
        BreakerPolicy(**arguments)
