"""When a value is due, and how long it is served: tables over pure functions."""

from __future__ import annotations

import logging
import math
import random

import attrs
import pytest

from trio_renew._errors import RemoteFetchError
from trio_renew._policy.backoff import Backoff
from trio_renew._policy.schedule import (
    RefreshPolicy,
    due_at,
    refresh_due_at,
    sample_jitter,
    soft_expiry,
    tiered_refresh_before,
)
from trio_renew._values import AuthToken

T0 = 1_700_000_000.0


def policy(**arguments) -> RefreshPolicy:
    return RefreshPolicy(**{"jitter": 0.0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "life", "due"),
    [
        ({}, 1000.0, 800.0),
        ({}, 100.0, 70.0),
        ({"jitter": lambda: 0.2}, 1000.0, 600.0),
        ({"refresh_at": 0}, 1000.0, 0.0),
        ({"refresh_at": 0.0, "refresh_floor": 0.0}, 1000.0, 0.0),
        ({}, 20.0, 10.0),  # the floor is at most half of the life
        ({}, 60.0, 30.0),
        ({"jitter": lambda: 0.9}, 1000.0, 0.0),
        ({"refresh_at": 1.5}, 1000.0, 970.0),
        ({"refresh_at": 1.5, "refresh_floor": 0.0}, 1000.0, 1000.0),
        ({"jitter": lambda: -0.5}, 1000.0, 800.0),
        ({"jitter": lambda: 1.7}, 1000.0, 0.0),
        ({"jitter": lambda: 1.7, "refresh_at": 1.5}, 1000.0, 500.0),
        ({"jitter": lambda: math.nan}, 1000.0, 800.0),
        ({}, -50.0, 0.0),
        ({}, 0.0, 0.0),
        ({"refresh_before": 300.0}, 1000.0, 700.0),
        ({"refresh_before": 300}, 200.0, 0.0),
        ({"refresh_before": 0.0}, 1000.0, 1000.0),
        ({"refresh_before": 300.0, "jitter": lambda: 0.1}, 1000.0, 600.0),
        ({"refresh_before": 300.0, "refresh_at": 0.1, "refresh_floor": 900.0}, 1000.0, 700.0),
        ({"refresh_before": lambda life: life / 4}, 1000.0, 750.0),
        ({"refresh_before": tiered_refresh_before}, 1000.0, 700.0),
        ({"refresh_before": 300.0}, -50.0, 0.0),
        ({"refresh_before": lambda life: 1 / 0}, 0.0, 0.0),
    ],
)
def test_when_a_value_is_due(arguments, life, due):
    assert refresh_due_at(policy(**arguments), T0, AuthToken("a", T0 + life)) == T0 + due


@pytest.mark.parametrize(("sample", "due"), [(0.0, 800.0), (0.25, 550.0), (-1.0, 800.0), (2.0, 0.0), (math.nan, 800.0)])
def test_a_given_sample(sample, due):
    assert due_at(RefreshPolicy(), T0, T0 + 1000.0, sample) == pytest.approx(T0 + due)


def test_what_never_expires_is_never_due_and_takes_no_sample():
    calls = []
    sampled = policy(jitter=lambda: calls.append(1) or 0.1)
    assert refresh_due_at(sampled, T0, AuthToken("a")) is None
    assert calls == []
    assert due_at(sampled, T0, None, 0.0) is None
    refresh_due_at(sampled, T0, AuthToken("a", T0 + 10.0))
    assert calls == [1]


@pytest.mark.parametrize(
    ("result", "error"), [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("5", TypeError)]
)
def test_a_function_for_refresh_before_that_gives_garbage_is_named(result, error):
    with pytest.raises(error, match="the result of refresh_before"):
        due_at(policy(refresh_before=lambda life: result), T0, T0 + 1000.0, 0.0)


def test_jitter_is_spread_below_its_bound():
    random.seed(1)
    samples = [sample_jitter(RefreshPolicy(jitter=0.1)) for _ in range(1000)]
    assert 0.0 <= min(samples) < 0.01
    assert 0.09 < max(samples) < 0.1
    assert sample_jitter(RefreshPolicy(jitter=0)) == 0.0


@pytest.mark.parametrize(
    ("leeway", "life", "before"),
    [
        (10.0, 1000.0, 10.0),
        (10.0, 100.0, 10.0),
        (10.0, 50.0, 5.0),
        (10.0, 0.0, 0.0),
        (10.0, -50.0, 0.0),
        (0.0, 1000.0, 0.0),
        (1e9, 1000.0, 100.0),
    ],
)
def test_the_leeway_is_at_most_a_tenth_of_the_life(leeway, life, before):
    assert soft_expiry(RefreshPolicy(leeway=leeway), T0, T0 + life) == T0 + life - before


def test_what_never_expires_has_no_leeway():
    assert soft_expiry(RefreshPolicy(), T0, None) is None


@pytest.mark.parametrize(
    ("minutes", "before"), [(0, 5), (5, 5), (20, 5), (20.01, 15), (60, 15), (89.99, 15), (90, 60), (1440, 60)]
)
def test_tiers(minutes, before):
    assert tiered_refresh_before(minutes * 60.0) == before * 60.0


def test_the_defaults():
    assert attrs.asdict(RefreshPolicy(), recurse=False) == {
        "refresh_at": 0.8,
        "refresh_floor": 30.0,
        "refresh_before": None,
        "jitter": 0.05,
        "leeway": 10.0,
        "ttl": None,
        "min_interval": 1.0,
        "retry": Backoff(initial=1.0, multiplier=2.0, maximum=60.0, jitter=0.5),
        "serve_expired_for": 0.0,
        "permanent": (),
        "permanent_ttl": (1.0, 5.0),
        "due": "background",
    }
    assert RefreshPolicy(retry=None).retry is None
    assert RefreshPolicy(ttl=5).ttl == 5
    assert RefreshPolicy(serve_expired_for=math.inf).serve_expired_for == math.inf
    assert RefreshPolicy(due="one_waits").due == "one_waits"
    assert RefreshPolicy(permanent_ttl=(2, 2)).permanent_ttl == (2, 2)


SECONDS = ["refresh_floor", "refresh_before", "leeway", "ttl", "min_interval", "serve_expired_for"]


@pytest.mark.parametrize("name", ["refresh_at", "jitter", *SECONDS])
@pytest.mark.parametrize(
    ("value", "error"),
    [(math.nan, ValueError), (-0.5, ValueError), ("1", TypeError), ([], TypeError), (True, TypeError)],
)
def test_numbers_are_checked(name, value, error):
    with pytest.raises(error, match=name):
        RefreshPolicy(**{name: value})


@pytest.mark.parametrize(
    "name", ["refresh_at", "jitter", "refresh_floor", "refresh_before", "leeway", "ttl", "min_interval"]
)
def test_infinity_is_refused(name):
    with pytest.raises(ValueError, match=name):
        RefreshPolicy(**{name: math.inf})


@pytest.mark.parametrize(
    "name", ["refresh_at", "jitter", "refresh_floor", "leeway", "min_interval", "serve_expired_for"]
)
def test_none_is_refused_where_it_means_nothing(name):
    with pytest.raises(TypeError, match=name):
        RefreshPolicy(**{name: None})


async def predicate(error: BaseException) -> bool:
    raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"jitter": 1.01}, ValueError, "jitter must be a share of the lifetime from 0 to 1"),
        ({"ttl": 0}, ValueError, "ttl must be more than 0"),
        ({"retry": 5}, TypeError, "retry must be a Backoff or None, not 5"),
        ({"retry": Backoff}, TypeError, "retry"),
        ({"permanent": "ValueError"}, TypeError, "permanent"),
        ({"permanent": (ValueError, 5)}, TypeError, "permanent.*5 is no exception type"),
        ({"permanent": (ValueError("x"),)}, TypeError, "permanent"),
        ({"permanent": (KeyboardInterrupt,)}, TypeError, "permanent"),
        ({"permanent": int}, TypeError, "permanent"),
        ({"permanent": [ValueError]}, TypeError, "permanent"),
        ({"permanent": None}, TypeError, "permanent"),
        ({"permanent": predicate}, TypeError, "permanent"),
        ({"permanent_ttl": 5.0}, TypeError, "permanent_ttl must be a pair of seconds"),
        ({"permanent_ttl": (1.0,)}, TypeError, "permanent_ttl"),
        ({"permanent_ttl": (1.0, "5")}, TypeError, "permanent_ttl"),
        ({"permanent_ttl": (-1.0, 5.0)}, ValueError, "permanent_ttl"),
        ({"permanent_ttl": (1.0, math.inf)}, ValueError, "permanent_ttl"),
        ({"permanent_ttl": (5.0, 1.0)}, ValueError, "permanent_ttl"),
        ({"due": "foreground"}, ValueError, "due must be"),
        ({"due": None}, ValueError, "due must be"),
        ({"due": []}, ValueError, "due must be"),
    ],
)
def test_the_rest_is_checked(arguments, error, reason):
    with pytest.raises(error, match=reason):
        RefreshPolicy(**arguments)


class Gone(Exception):
    pass


class GoneForGood(Gone):
    pass


@pytest.mark.parametrize(
    ("permanent", "error", "answer"),
    [
        ((), ValueError(), False),
        ((ValueError,), ValueError(), True),
        ((KeyError, ValueError), ValueError(), True),
        ((LookupError,), KeyError(), True),
        ((ValueError,), KeyError(), False),
        (ValueError, ValueError(), True),
        (ValueError, KeyError(), False),
        ((ValueError,), RemoteFetchError("builtins.ValueError", "x"), True),
        ((ValueError,), RemoteFetchError("other.ValueError", "x"), False),
        ((Gone,), RemoteFetchError(f"{__name__}.Gone", "x"), True),
        ((Gone,), RemoteFetchError(f"{__name__}.GoneForGood", "x"), False),
        ((RemoteFetchError,), RemoteFetchError("a.B", "x"), True),
        (lambda error: isinstance(error, KeyError), KeyError(), True),
        (lambda error: isinstance(error, KeyError), ValueError(), False),
        (lambda error: error.type_name == "a.B", RemoteFetchError("a.B", "x"), True),
        (lambda error: 1, ValueError(), True),
        (lambda error: None, ValueError(), False),
    ],
)
def test_which_failures_are_permanent(permanent, error, answer):
    assert RefreshPolicy(permanent=permanent).is_permanent(error) is answer


def test_a_predicate_that_raises_is_logged_without_its_text(caplog):
    def broken(error: BaseException) -> bool:
        raise RuntimeError("opaque")

    with caplog.at_level(logging.ERROR, "trio_renew"):
        assert RefreshPolicy(permanent=broken).is_permanent(KeyError("secret")) is False
    (record,) = caplog.records
    assert record.getMessage() == (
        "the predicate of RefreshPolicy(permanent=...) raised RuntimeError for KeyError; taken as a no"
    )
    assert "opaque" not in caplog.text


def test_a_refresh_at_of_any_size_counts_as_one():
    assert due_at(RefreshPolicy(refresh_at=10**400, refresh_floor=0.0), 0.0, 1000.0, 0.0) == 1000.0
    assert due_at(RefreshPolicy(refresh_at=10**400, refresh_floor=0.0), 0.0, 1000.0, 1.0) == 1000.0


@pytest.mark.parametrize("share", [None, "0.1", True])
def test_a_function_for_jitter_that_gives_garbage_is_named(share):
    with pytest.raises(TypeError, match="jitter"):
        sample_jitter(RefreshPolicy(jitter=lambda: share))
