"""What a call gets, decided from a state and an instant: no clock, no task, no waiting.

Invariants:

* State in, decision and new state out; both frozen. Only the single-flight flag and the breaker ever change here.
* The flag (``refreshing``) is claimed by the decision that asks for a fetch, and released by
  :func:`release_single_flight` alone.
* A value with deadline d is good while ``now < d``; a due instant is inclusive.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeAlias, TypeVar

import attrs

from .breaker import Breaker, BreakerPolicy, Closed, admit, record_failure, record_success

__all__ = (
    "CacheState",
    "Join",
    "MintNow",
    "ServeAction",
    "ServeAndRefresh",
    "ServeCached",
    "admit_mint",
    "decide",
    "on_mint_failure",
    "on_mint_success",
    "release_single_flight",
)


class _Expiring(Protocol):
    @property
    def expires_at(self) -> float | None: ...


V = TypeVar("V", bound=_Expiring)


def _own_expiry(state: CacheState[V]) -> float | None:
    return None if state.token is None else state.token.expires_at


@attrs.frozen
class CacheState(Generic[V]):
    """What a provider knows when somebody asks.

    Attributes:
      token: What is held (anything with ``expires_at``), or None.
      due_at: From when on it should be renewed; None: never.
      refreshing: A fetch runs: the single-flight flag.
      breaker: The breaker's state.
      good_until: Until when the token is handed out without waiting; None: it never ends. By default its
        ``expires_at``.
      retry_at: Before this instant no background refresh starts; None: no such limit.
    """

    token: V | None = None
    due_at: float | None = None
    refreshing: bool = False
    breaker: Breaker = Closed(0)
    good_until: float | None = attrs.field(default=attrs.Factory(_own_expiry, takes_self=True))
    retry_at: float | None = None


@attrs.frozen
class ServeCached(Generic[V]):
    """Serve what is held."""

    token: V


@attrs.frozen
class ServeAndRefresh(Generic[V]):
    """Serve what is held, and start the background refresh that was claimed."""

    token: V


@attrs.frozen
class MintNow:
    """Nothing good is held, and nobody fetches: the asker has claimed the fetch."""


@attrs.frozen
class Join:
    """Nothing good is held, and a fetch runs: wait for it."""


ServeAction: TypeAlias = ServeCached[V] | ServeAndRefresh[V] | MintNow | Join


def decide(state: CacheState[V], now: float) -> tuple[ServeAction[V], CacheState[V]]:
    """Decide what an asker gets at ``now``, and claim the fetch where the decision is to fetch.

    A background refresh is claimed when the token is due, no fetch runs, ``retry_at`` has come and the breaker would
    admit it. The breaker itself moves when the fetch starts (:func:`admit_mint`).
    """
    token = state.token
    if token is not None and (state.good_until is None or now < state.good_until):
        if (
            state.refreshing
            or state.due_at is None
            or now < state.due_at
            or (state.retry_at is not None and now < state.retry_at)
            or not admit(now, state.breaker)[0]
        ):
            return ServeCached(token), state
        return ServeAndRefresh(token), attrs.evolve(state, refreshing=True)
    if state.refreshing:
        return Join(), state
    return MintNow(), attrs.evolve(state, refreshing=True)


def on_mint_success(token: V, due_at: float | None, state: CacheState[V]) -> CacheState[V]:
    """Fold a success in: the new token and its due instant, and a closed breaker. The flag stays."""
    return attrs.evolve(
        state,
        token=token,
        due_at=due_at,
        breaker=record_success(state.breaker),
        good_until=token.expires_at,
        retry_at=None,
    )


def on_mint_failure(policy: BreakerPolicy, now: float, state: CacheState[V]) -> CacheState[V]:
    """Fold a failure in: only the breaker moves."""
    return attrs.evolve(state, breaker=record_failure(policy.threshold, policy.cooldown, now, state.breaker))


def admit_mint(state: CacheState[V], now: float) -> tuple[bool, CacheState[V]]:
    """Ask the breaker for leave to fetch; an open one past its cooldown becomes half-open."""
    admitted, breaker = admit(now, state.breaker)
    return admitted, attrs.evolve(state, breaker=breaker)


def release_single_flight(state: CacheState[V]) -> CacheState[V]:
    """Clear the flag; fine when it is clear."""
    return attrs.evolve(state, refreshing=False)
