"""Renewable resources for Trio: one fetch for all who want it, before it is needed, and cancellation that harms nobody.

Start with :func:`open_provider` for a value that expires (a token), :func:`open_resource` for one that is renewed on
request, ``open_provider_cache`` for many by key. ``trio_renew.testing`` tests code that uses them.
"""

from __future__ import annotations

from ._budget import Budget as Budget
from ._codecs import AuthTokenCodec as AuthTokenCodec
from ._codecs import JsonCodec as JsonCodec
from ._codecs import encrypted as encrypted
from ._errors import BreakerOpen as BreakerOpen
from ._errors import BudgetExhausted as BudgetExhausted
from ._errors import CredentialError as CredentialError
from ._errors import FetchTimeout as FetchTimeout
from ._errors import JobLost as JobLost
from ._errors import MintedTokenAlreadyExpired as MintedTokenAlreadyExpired
from ._errors import ReentrantFetchError as ReentrantFetchError
from ._errors import RemoteFetchError as RemoteFetchError
from ._errors import RenewError as RenewError
from ._errors import StoreError as StoreError
from ._errors import Unconfigured as Unconfigured
from ._events import BreakerChanged as BreakerChanged
from ._events import Cleared as Cleared
from ._events import Event as Event
from ._events import FetchAbandoned as FetchAbandoned
from ._events import FetchFailed as FetchFailed
from ._events import FetchStarted as FetchStarted
from ._events import FetchSucceeded as FetchSucceeded
from ._events import OwnerClosed as OwnerClosed
from ._events import Reason as Reason
from ._events import ServedExpired as ServedExpired
from ._events import StorageFailed as StorageFailed
from ._held import Changes as Changes
from ._held import Status as Status
from ._policy.backoff import Backoff as Backoff
from ._policy.breaker import BreakerPolicy as BreakerPolicy
from ._policy.breaker import Closed as Closed
from ._policy.breaker import HalfOpen as HalfOpen
from ._policy.breaker import Open as Open
from ._policy.capacity import AdaptiveConfig as AdaptiveConfig
from ._policy.capacity import RateLimitConfig as RateLimitConfig
from ._policy.schedule import RefreshPolicy as RefreshPolicy
from ._policy.schedule import tiered_refresh_before as tiered_refresh_before
from ._provider import RefreshingProvider as RefreshingProvider
from ._provider import open_provider as open_provider
from ._registry import Registry as Registry
from ._registry import ServiceDescriptor as ServiceDescriptor
from ._registry import StaticProvider as StaticProvider
from ._registry import describe as describe
from ._registry import static_provider as static_provider
from ._resource import RenewableResource as RenewableResource
from ._resource import open_resource as open_resource
from ._share import Share as Share
from ._storage import FileStorage as FileStorage
from ._storage import MemoryStorage as MemoryStorage
from ._storage import StoreStorage as StoreStorage
from ._values import AuthToken as AuthToken
from ._values import Lease as Lease
from ._values import Secret as Secret
from .abc import AdaptiveRateLimitStatus as AdaptiveRateLimitStatus
from .abc import AdaptiveRateLimitStore as AdaptiveRateLimitStore
from .abc import Bus as Bus
from .abc import CacheStore as CacheStore
from .abc import Codec as Codec
from .abc import CredentialProvider as CredentialProvider
from .abc import DedupeStore as DedupeStore
from .abc import Listener as Listener
from .abc import Priority as Priority
from .abc import RateLimitStatus as RateLimitStatus
from .abc import RateLimitStore as RateLimitStore
from .abc import Registration as Registration
from .abc import Renewable as Renewable
from .abc import Storage as Storage
from .stores._common import CacheEntryInfo as CacheEntryInfo
from .stores._common import CacheStats as CacheStats
from .stores._common import DedupeStats as DedupeStats
from .stores._common import JobInfo as JobInfo
from .stores._common import RateLimitStats as RateLimitStats
from .stores._common import ResourceInfo as ResourceInfo
from .stores._common import Stores as Stores
from .stores._hashing import hash_request as hash_request

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
    "Priority",
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
    "describe",
    "encrypted",
    "hash_request",
    "open_provider",
    "open_resource",
    "static_provider",
    "tiered_refresh_before",
)
