"""The contracts of the stores, on the oldest server that we support and on a new one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from trio_renew import RateLimitConfig
from trio_renew.stores.redis import open_redis_stores
from trio_renew.testing import (
    AdaptiveRateLimitStoreContract,
    CacheStoreContract,
    DedupeStoreContract,
    RateLimitStoreContract,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .conftest import Server


class OnServer:
    """Opens one store of a bundle, with nothing in it."""

    which: str
    url: str
    lease = 0.3
    margin = 0.15

    @pytest.fixture(autouse=True)
    def take_server(self, server: Server) -> None:
        self.url = server.url

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[Any, None]:
        config = RateLimitConfig(limit=5, window=0.3)
        async with open_redis_stores(
            self.url, prefix=f"{uuid4().hex}:", lease=self.lease, default_config=config
        ) as stores:
            yield getattr(stores, self.which)


class TestCache(OnServer, CacheStoreContract):
    which = "cache"


class TestDedupe(OnServer, DedupeStoreContract):
    which = "dedupe"


class TestRateLimit(OnServer, RateLimitStoreContract):
    which = "rate_limit"


class TestAdaptive(OnServer, AdaptiveRateLimitStoreContract):
    which = "adaptive"
