"""The pure pieces and the handoff hook, public without a promise of stability.

What decides when to renew is state in, decision and new state out (:func:`decide` and its kin): test your policy with
it, draw its timelines, or build something else on it. ``open_resource_with``, ``open_provider_with`` and
``open_provider_cache_with`` open what their namesakes open, with a hook in the window between the claim of a fetch and
the start of its task, so that a test can stop and cancel exactly there.
"""

from __future__ import annotations

from ._keyed import open_provider_cache_with as open_provider_cache_with
from ._policy.backoff import Backoff as Backoff
from ._policy.breaker import (
    Closed as Closed,
    HalfOpen as HalfOpen,
    Open as Open,
    admit as admit,
    record_failure as record_failure,
    record_success as record_success,
)
from ._policy.decision import (
    CacheState as CacheState,
    Join as Join,
    MintNow as MintNow,
    ServeAction as ServeAction,
    ServeAndRefresh as ServeAndRefresh,
    ServeCached as ServeCached,
    admit_mint as admit_mint,
    decide as decide,
    on_mint_failure as on_mint_failure,
    on_mint_success as on_mint_success,
    release_single_flight as release_single_flight,
)
from ._policy.schedule import refresh_due_at as refresh_due_at
from ._provider import open_provider_with as open_provider_with
from ._resource import open_resource_with as open_resource_with

__all__ = (
    "Backoff",
    "CacheState",
    "Closed",
    "HalfOpen",
    "Join",
    "MintNow",
    "Open",
    "ServeAction",
    "ServeAndRefresh",
    "ServeCached",
    "admit",
    "admit_mint",
    "decide",
    "on_mint_failure",
    "on_mint_success",
    "open_provider_cache_with",
    "open_provider_with",
    "open_resource_with",
    "record_failure",
    "record_success",
    "refresh_due_at",
    "release_single_flight",
)
