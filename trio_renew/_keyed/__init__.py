"""Many resources by key: the cache, the pool, and invalidation wherever they run."""

from __future__ import annotations

from ._cache import ProviderCache as ProviderCache
from ._open import (
    open_provider_cache as open_provider_cache,
    open_provider_cache_with as open_provider_cache_with,
    open_provider_pool as open_provider_pool,
)
from ._pool import ProviderPool as ProviderPool
from ._roster import clear_provider_caches as clear_provider_caches, invalidate_provider as invalidate_provider
from ._status import CacheStatus as CacheStatus, PoolStatus as PoolStatus
