"""Never run: what type checkers must make of the keyed caches and pools.

Lines with an ``ignore`` are mistakes: a checker that does not see one of them reports the ignore as unused.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import assert_type

from trio_renew import (
    AuthToken,
    CacheStatus,
    PoolStatus,
    ProviderCache,
    ProviderPool,
    RefreshingProvider,
    clear_provider_caches,
    invalidate_provider,
    open_provider,
    open_provider_cache,
    open_provider_pool,
)
from trio_renew.lowlevel import open_provider_cache_with


async def resolve(key: str) -> int | None:
    return len(key)


async def hook() -> None:
    pass


async def mint() -> AuthToken:
    return AuthToken.expiring_in("text", 60)


def open_tokens(key: str) -> AbstractAsyncContextManager[RefreshingProvider[AuthToken]]:
    return open_provider(mint, name=key)


@asynccontextmanager
async def open_generated(key: int) -> AsyncGenerator[bytes, None]:
    yield bytes(key)


async def caches() -> None:
    async with open_provider_cache(resolve, ttl=True, tags=lambda key, value: [key]) as cache:
        assert_type(cache, ProviderCache[str, int | None])
        assert_type(await cache.get("key"), int | None)
        assert_type(cache.get_nowait("key"), int | None)
        assert_type(cache.delete("key"), bool)
        assert_type(cache.clear(), int)
        assert_type(cache.invalidate_tag("tag"), int)
        assert_type(cache.status(), CacheStatus)
        assert_type("key" in cache, bool)
        cache.set_ttl(False)
        await cache.get(7)  # type: ignore[arg-type]
        cache.set_ttl(None)  # type: ignore[arg-type]
    async with open_provider_cache_with(hook, resolve) as other:
        assert_type(other, ProviderCache[str, int | None])
    assert_type(invalidate_provider(("a", 1)), bool)
    assert_type(clear_provider_caches(), int)


async def pools() -> None:
    async with open_provider_pool(open_tokens) as pool:
        assert_type(pool, ProviderPool[str, RefreshingProvider[AuthToken]])
        async with pool.borrow("key") as provider:
            assert_type(provider, RefreshingProvider[AuthToken])
            assert_type(await provider.get(), AuthToken)
        assert_type(pool.status(), PoolStatus)
        pool.borrow(7)  # type: ignore[arg-type]
    async with open_provider_pool(open_generated) as generated:
        async with generated.borrow(7) as value:
            assert_type(value, bytes)
