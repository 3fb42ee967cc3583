"""Delays that grow with each failure."""

from __future__ import annotations

import math

import pytest

from trio_renew._policy.backoff import Backoff


@pytest.mark.parametrize(
    ("backoff", "n", "u", "delay"),
    [
        (Backoff(), 1, 0.0, 1.0),
        (Backoff(), 2, 0.0, 2.0),
        (Backoff(), 6, 0.0, 32.0),
        (Backoff(), 7, 0.0, 60.0),
        (Backoff(), 1, 0.5, 0.75),
        (Backoff(), 7, 0.5, 45.0),
        (Backoff(), 0, 0.0, 1.0),
        (Backoff(), -3, 0.0, 1.0),
        (Backoff(initial=0.0), 1, 0.0, 0.0),
        (Backoff(initial=0.0), 10**400, 0.0, 0.0),
        (Backoff(initial=90.0), 1, 0.0, 60.0),
        (Backoff(multiplier=1.0), 10**400, 0.0, 1.0),
        (Backoff(multiplier=1), 50, 0.0, 1.0),
        (Backoff(), 1024, 0.0, 60.0),
        (Backoff(), 1025, 0.0, 60.0),
        (Backoff(), 10**400, 0.0, 60.0),
        (Backoff(initial=3, multiplier=10, maximum=10**6, jitter=0), 4, 0.9, 3000.0),
        (Backoff(initial=1e300, multiplier=1e300), 2, 0.0, 60.0),
        (Backoff(jitter=1.0), 1, 0.25, 0.75),
    ],
)
def test_delays(backoff, n, u, delay):
    assert backoff.delay(n, u) == delay


@pytest.mark.parametrize("name", ["initial", "multiplier", "maximum", "jitter"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-0.5, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_every_argument_is_checked(name, value, error):
    with pytest.raises(error, match=name):
        Backoff(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"multiplier": 0.9}, "multiplier must be a number of at least 1, not 0.9"),
        ({"jitter": 1.1}, "jitter must be a number from 0 to 1, not 1.1"),
    ],
)
def test_ranges(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Backoff(**arguments)
