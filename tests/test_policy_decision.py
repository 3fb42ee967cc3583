"""The pure decisions: state and instant in, action and new state out."""

from __future__ import annotations

from functools import partial

import pytest

from trio_renew import AuthToken, BreakerPolicy, Closed, HalfOpen, Open
from trio_renew.lowlevel import (
    CacheState,
    Join,
    MintNow,
    ServeAndRefresh,
    ServeCached,
    admit_mint,
    decide,
    on_mint_failure,
    on_mint_success,
    release_single_flight,
)

TOKEN = AuthToken("a", 1000.0)
NEW = AuthToken("b", 2000.0)
STATE = partial(CacheState[AuthToken], TOKEN, 800.0)
POLICY = BreakerPolicy(threshold=3, cooldown=30.0)


def test_good_and_not_due_is_served() -> None:
    for state in (STATE(), STATE(refreshing=True), CacheState(AuthToken("for ever"))):
        assert decide(state, 799.9) == (ServeCached(state.token), state)  # type: ignore[type-var]


def test_due_is_inclusive_and_claims() -> None:
    action, after = decide(STATE(), 800.0)
    assert action == ServeAndRefresh(TOKEN)
    assert after == STATE(refreshing=True)
    assert decide(after, 800.0) == (ServeCached(TOKEN), after)


@pytest.mark.parametrize("state", [STATE(retry_at=900.5), STATE(breaker=Open(900.5))])
def test_due_but_held_back_is_served_without_a_claim(state: CacheState[AuthToken]) -> None:
    assert decide(state, 900.0) == (ServeCached(TOKEN), state)
    assert decide(state, 900.5)[0] == ServeAndRefresh(TOKEN)
    assert decide(state, 900.5)[1].breaker == state.breaker  # it moves when the fetch starts


@pytest.mark.parametrize("state", [STATE(), STATE(good_until=990.0), CacheState[AuthToken]()])
def test_not_good_is_fetched_or_joined(state: CacheState[AuthToken]) -> None:
    now = 1000.0 if state.good_until is None else state.good_until
    action, after = decide(state, now)
    assert action == MintNow()
    assert after.refreshing
    assert decide(after, now) == (Join(), after)


def test_a_success_replaces_all_in_one_step() -> None:
    after = on_mint_success(NEW, 1800.0, STATE(refreshing=True, breaker=Closed(2), retry_at=5.0))
    assert after == CacheState(NEW, 1800.0, refreshing=True, breaker=Closed(0))
    assert after.good_until == 2000.0


def test_a_failure_moves_the_breaker_only() -> None:
    for before, then in ((Closed(1), Closed(2)), (Closed(2), Open(130.0)), (HalfOpen(), Open(130.0))):
        after = on_mint_failure(POLICY, 100.0, STATE(refreshing=True, breaker=before))
        assert after == STATE(refreshing=True, breaker=then)


def test_admission() -> None:
    assert admit_mint(STATE(breaker=Open(130.0)), 100.0) == (False, STATE(breaker=Open(130.0)))
    assert admit_mint(STATE(breaker=Open(99.0)), 100.0) == (True, STATE(breaker=HalfOpen()))
    assert admit_mint(STATE(breaker=Closed(1)), 100.0) == (True, STATE(breaker=Closed(1)))


def test_the_flag_is_released_once_or_twice() -> None:
    released = release_single_flight(STATE(refreshing=True))
    assert released == STATE()
    assert release_single_flight(released) == released
