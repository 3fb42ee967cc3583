"""Renewable resources for Trio: one fetch for all who want it, before it is needed, and cancellation that harms nobody.

Start with :func:`open_provider` for a value that expires (a token), :func:`open_resource` for one that is renewed on
request, ``open_provider_cache`` for many by key. ``trio_renew.testing`` tests code that uses them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._budget import Budget as Budget
    from ._codecs import AuthTokenCodec as AuthTokenCodec, JsonCodec as JsonCodec, encrypted as encrypted
    from ._errors import (
        BreakerOpen as BreakerOpen,
        BudgetExhausted as BudgetExhausted,
        CredentialError as CredentialError,
        FetchTimeout as FetchTimeout,
        JobLost as JobLost,
        MintedTokenAlreadyExpired as MintedTokenAlreadyExpired,
        ReentrantFetchError as ReentrantFetchError,
        RemoteFetchError as RemoteFetchError,
        RenewError as RenewError,
        StoreError as StoreError,
        Unconfigured as Unconfigured,
    )
    from ._events import (
        BreakerChanged as BreakerChanged,
        Cleared as Cleared,
        Event as Event,
        FetchAbandoned as FetchAbandoned,
        FetchFailed as FetchFailed,
        FetchStarted as FetchStarted,
        FetchSucceeded as FetchSucceeded,
        OwnerClosed as OwnerClosed,
        Reason as Reason,
        ServedExpired as ServedExpired,
        StorageFailed as StorageFailed,
    )
    from ._held import Changes as Changes, Status as Status
    from ._keyed import (
        CacheStatus as CacheStatus,
        PoolStatus as PoolStatus,
        ProviderCache as ProviderCache,
        ProviderPool as ProviderPool,
        clear_provider_caches as clear_provider_caches,
        invalidate_provider as invalidate_provider,
        open_provider_cache as open_provider_cache,
        open_provider_pool as open_provider_pool,
    )
    from ._policy.backoff import Backoff as Backoff
    from ._policy.breaker import BreakerPolicy as BreakerPolicy, Closed as Closed, HalfOpen as HalfOpen, Open as Open
    from ._policy.capacity import AdaptiveConfig as AdaptiveConfig, RateLimitConfig as RateLimitConfig
    from ._policy.schedule import RefreshPolicy as RefreshPolicy, tiered_refresh_before as tiered_refresh_before
    from ._provider import RefreshingProvider as RefreshingProvider, open_provider as open_provider
    from ._registry import (
        Registry as Registry,
        ServiceDescriptor as ServiceDescriptor,
        StaticProvider as StaticProvider,
        describe as describe,
        static_provider as static_provider,
    )
    from ._resource import RenewableResource as RenewableResource, open_resource as open_resource
    from ._share import Share as Share
    from ._storage import FileStorage as FileStorage, MemoryStorage as MemoryStorage, StoreStorage as StoreStorage
    from ._values import AuthToken as AuthToken, Lease as Lease, Secret as Secret
    from .abc import (
        AdaptiveRateLimitStatus as AdaptiveRateLimitStatus,
        AdaptiveRateLimitStore as AdaptiveRateLimitStore,
        Bus as Bus,
        CacheStore as CacheStore,
        Codec as Codec,
        CredentialProvider as CredentialProvider,
        DedupeStore as DedupeStore,
        Listener as Listener,
        Priority as Priority,
        RateLimitStatus as RateLimitStatus,
        RateLimitStore as RateLimitStore,
        Registration as Registration,
        Renewable as Renewable,
        Storage as Storage,
    )
    from .stores._common import (
        CacheEntryInfo as CacheEntryInfo,
        CacheStats as CacheStats,
        DedupeStats as DedupeStats,
        JobInfo as JobInfo,
        RateLimitStats as RateLimitStats,
        ResourceInfo as ResourceInfo,
        Stores as Stores,
    )
    from .stores._hashing import hash_request as hash_request

# A name is imported when it is first used: `import trio_renew` itself costs next to nothing.
_HOMES = {
    "._budget": "Budget",
    "._codecs": "AuthTokenCodec JsonCodec encrypted",
    "._errors": (
        "BreakerOpen BudgetExhausted CredentialError FetchTimeout JobLost MintedTokenAlreadyExpired "
        "ReentrantFetchError RemoteFetchError RenewError StoreError Unconfigured"
    ),
    "._events": (
        "BreakerChanged Cleared Event FetchAbandoned FetchFailed FetchStarted FetchSucceeded OwnerClosed "
        "Reason ServedExpired StorageFailed"
    ),
    "._held": "Changes Status",
    "._keyed": (
        "CacheStatus PoolStatus ProviderCache ProviderPool clear_provider_caches invalidate_provider "
        "open_provider_cache open_provider_pool"
    ),
    "._policy.backoff": "Backoff",
    "._policy.breaker": "BreakerPolicy Closed HalfOpen Open",
    "._policy.capacity": "AdaptiveConfig RateLimitConfig",
    "._policy.schedule": "RefreshPolicy tiered_refresh_before",
    "._provider": "RefreshingProvider open_provider",
    "._registry": "Registry ServiceDescriptor StaticProvider describe static_provider",
    "._resource": "RenewableResource open_resource",
    "._share": "Share",
    "._storage": "FileStorage MemoryStorage StoreStorage",
    "._values": "AuthToken Lease Secret",
    ".abc": (
        "AdaptiveRateLimitStatus AdaptiveRateLimitStore Bus CacheStore Codec CredentialProvider DedupeStore "
        "Listener Priority RateLimitStatus RateLimitStore Registration Renewable Storage"
    ),
    ".stores._common": "CacheEntryInfo CacheStats DedupeStats JobInfo RateLimitStats ResourceInfo Stores",
    ".stores._hashing": "hash_request",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = (
    "AdaptiveConfig",
    "AdaptiveRateLimitStatus",
    "AdaptiveRateLimitStore",
    "AuthToken",
    "AuthTokenCodec",
    "Backoff",
    "BreakerChanged",
    "BreakerOpen",
    "BreakerPolicy",
    "Budget",
    "BudgetExhausted",
    "Bus",
    "CacheEntryInfo",
    "CacheStats",
    "CacheStatus",
    "CacheStore",
    "Changes",
    "Cleared",
    "Closed",
    "Codec",
    "CredentialError",
    "CredentialProvider",
    "DedupeStats",
    "DedupeStore",
    "Event",
    "FetchAbandoned",
    "FetchFailed",
    "FetchStarted",
    "FetchSucceeded",
    "FetchTimeout",
    "FileStorage",
    "HalfOpen",
    "JobInfo",
    "JobLost",
    "JsonCodec",
    "Lease",
    "Listener",
    "MemoryStorage",
    "MintedTokenAlreadyExpired",
    "Open",
    "OwnerClosed",
    "PoolStatus",
    "Priority",
    "ProviderCache",
    "ProviderPool",
    "RateLimitConfig",
    "RateLimitStats",
    "RateLimitStatus",
    "RateLimitStore",
    "Reason",
    "ReentrantFetchError",
    "RefreshPolicy",
    "RefreshingProvider",
    "Registration",
    "Registry",
    "RemoteFetchError",
    "RenewError",
    "Renewable",
    "RenewableResource",
    "ResourceInfo",
    "Secret",
    "ServedExpired",
    "ServiceDescriptor",
    "Share",
    "StaticProvider",
    "Status",
    "Storage",
    "StorageFailed",
    "StoreError",
    "StoreStorage",
    "Stores",
    "Unconfigured",
    "clear_provider_caches",
    "describe",
    "encrypted",
    "hash_request",
    "invalidate_provider",
    "open_provider",
    "open_provider_cache",
    "open_provider_pool",
    "open_resource",
    "static_provider",
    "tiered_refresh_before",
)


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
