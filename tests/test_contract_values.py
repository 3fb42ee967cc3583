"""Values: what they show, how they compare, what they refuse; and the errors of the house."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import traceback
from fractions import Fraction
from typing import Any

import attrs
import pytest
import trio
from trio.testing import assert_no_checkpoints

import trio_renew
from trio_renew import (
    AuthToken,
    BreakerOpen,
    BreakerPolicy,
    BudgetExhausted,
    CredentialError,
    FetchTimeout,
    JobLost,
    Lease,
    MintedTokenAlreadyExpired,
    ReentrantFetchError,
    RefreshPolicy,
    RemoteFetchError,
    RenewError,
    Secret,
    StoreError,
    Unconfigured,
    open_provider,
    static_provider,
)
from trio_renew.testing import ScriptedFetch

TEXT = "t0p-s3cret-text"


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        lambda value: f"{value!s:>40}",
        lambda value: f"{value!a}",
        lambda value: "%s %r" % (value, value),  # noqa: UP031
        lambda value: json.dumps({"value": value}, default=str),
        lambda value: repr([value, {1: value}]),
        lambda value: str(vars(value)) if hasattr(value, "__dict__") else "",
        lambda value: repr(attrs.asdict(value)) if attrs.has(type(value)) else "",
    ],
)
def test_no_way_of_showing_shows_it(show: Any) -> None:
    secret = Secret(TEXT)
    for value in (secret, AuthToken(secret, 5.0), Lease(secret, 1, 0.0, None), static_provider(AuthToken(TEXT))):
        assert TEXT not in show(value)


def test_a_format_of_its_own() -> None:
    assert f"{Secret(TEXT):>40}" == "Secret <REDACTED>"


def test_it_does_not_leave_by_json_or_pickle() -> None:
    for value in (Secret(TEXT), AuthToken(TEXT), Lease(AuthToken(TEXT), 1, 0.0, None)):
        with pytest.raises(TypeError):
            json.dumps(value)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(value, protocol)
        assert copy.copy(value) == value
        assert copy.deepcopy(value) == value


@pytest.mark.parametrize(
    "expires_at", [math.nan, math.inf, -math.inf, True, "soon", 1.7e12, 10**400, object(), Fraction(1)]
)
def test_a_bad_expiry_is_a_value_error_that_does_not_show_the_secret(expires_at: Any) -> None:
    with pytest.raises(ValueError, match="expires_at") as info:
        AuthToken(Secret(TEXT), expires_at)
    shown = "".join(traceback.TracebackException.from_exception(info.value, capture_locals=True).format())
    # This very frame holds what the test gave; ours show no text.
    ours = [line for line in shown.splitlines() if "TEXT" not in line]
    assert TEXT not in "\n".join(ours)


def test_the_greatest_instant() -> None:
    assert AuthToken("a", 1e11).expires_at == 1e11
    assert AuthToken("a", 0).expires_at == 0.0
    assert AuthToken("a", -5.0).expires_at == -5.0
    with pytest.raises(ValueError, match="milliseconds"):
        AuthToken("a", math.nextafter(1e11, math.inf))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, True, "60", None])
def test_expiring_in_names_its_arguments(seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seconds"):
        AuthToken.expiring_in(TEXT, seconds)
    with pytest.raises(ValueError, match="now"):
        AuthToken.expiring_in(TEXT, 60.0, now=math.nan)


async def test_a_static_provider() -> None:
    token = AuthToken(TEXT, 1.0)  # long expired: it does not look
    provider = static_provider(token)
    task = trio.lowlevel.current_task()
    for call in (provider.current_token, provider.get):
        before = (task._schedule_points, task._cancel_points)
        assert await call() is token
        assert (task._schedule_points - before[0], task._cancel_points - before[1]) == (1, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    with assert_no_checkpoints():
        assert provider.get_nowait() is token


def test_the_family_of_errors() -> None:
    family: dict[type[BaseException], type[BaseException]] = {
        CredentialError: RenewError,
        BreakerOpen: CredentialError,
        BudgetExhausted: CredentialError,
        Unconfigured: CredentialError,
        MintedTokenAlreadyExpired: CredentialError,
        FetchTimeout: RenewError,
        ReentrantFetchError: RenewError,
        StoreError: RenewError,
        JobLost: RenewError,
        RemoteFetchError: RenewError,
        RenewError: Exception,
    }
    for error, parent in family.items():
        assert issubclass(error, parent)
    assert issubclass(FetchTimeout, TimeoutError)
    assert not issubclass(JobLost, StoreError)
    assert (BreakerOpen(5.0).retry_at, BudgetExhausted(6.0).retry_at, Unconfigured("mint").field) == (5.0, 6.0, "mint")
    remote = RemoteFetchError("builtins.ValueError", "x")
    assert (remote.type_name, remote.message) == ("builtins.ValueError", "x")
    for made in (BreakerOpen(5.0), BudgetExhausted(6.0), Unconfigured("mint"), remote):
        again = pickle.loads(pickle.dumps(made))
        assert (type(again), vars(again)) == (type(made), vars(made))


async def is_one(*args: object) -> float:
    return 1.0


class AsyncCall:
    async def __call__(self, *args: object) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"refresh_at": math.nan}, ValueError),
        ({"refresh_at": True}, TypeError),
        ({"refresh_at": -0.1}, ValueError),
        ({"refresh_at": "0.8"}, TypeError),
        ({"refresh_floor": -1.0}, ValueError),
        ({"refresh_floor": math.inf}, ValueError),
        ({"refresh_before": -1.0}, ValueError),
        ({"refresh_before": "5m"}, TypeError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": math.nan}, ValueError),
        ({"jitter": False}, TypeError),
        ({"jitter": is_one}, TypeError),
        ({"refresh_before": is_one}, TypeError),
        ({"permanent": is_one}, TypeError),
        ({"permanent": AsyncCall()}, TypeError),
        ({"leeway": -1.0}, ValueError),
        ({"leeway": math.nan}, ValueError),
        ({"leeway": None}, TypeError),
        ({"ttl": 0.0}, ValueError),
        ({"ttl": True}, TypeError),
        ({"ttl": math.inf}, ValueError),
        ({"min_interval": -1.0}, ValueError),
        ({"retry": 5.0}, TypeError),
        ({"serve_expired_for": -1.0}, ValueError),
        ({"serve_expired_for": math.nan}, ValueError),
        ({"permanent": (int,)}, TypeError),
        ({"permanent": "ValueError"}, TypeError),
        ({"permanent_ttl": 5.0}, TypeError),
        ({"permanent_ttl": (5.0, 1.0)}, ValueError),
        ({"permanent_ttl": (-1.0, 1.0)}, ValueError),
        ({"due": "later"}, ValueError),
    ],
)
def test_a_bad_policy_names_the_argument(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        RefreshPolicy(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": 1.5}, TypeError),
        ({"threshold": True}, TypeError),
        ({"cooldown": -1.0}, ValueError),
        ({"cooldown": math.nan}, ValueError),
        ({"cooldown": "60"}, TypeError),
    ],
)
def test_a_bad_breaker_names_the_argument(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        BreakerPolicy(**kwargs)


def test_all_names_are_there() -> None:
    for name in trio_renew.__all__:
        assert getattr(trio_renew, name) is not None
    assert list(trio_renew.__all__) == sorted(trio_renew.__all__)


def test_outside_of_trio() -> None:
    async def main() -> None:
        async with open_provider(ScriptedFetch()):
            raise AssertionError

    with pytest.raises(RuntimeError):
        asyncio.run(main())
