"""The SQLite engine keeps the contracts: in Trio's thread under a test clock, and in a worker on the real one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from trio_renew._policy.capacity import RateLimitConfig
from trio_renew.stores.sqlite import open_sqlite_stores
from trio_renew.testing import (
    AdaptiveRateLimitStoreContract,
    CacheStoreContract,
    DedupeStoreContract,
    RateLimitStoreContract,
    check_contract,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio_renew.testing._contracts import Contract

LIMIT = RateLimitConfig(limit=5, window=0.4)


def engine(kind: type[Contract], store: str, *, is_virtual: bool) -> type[Contract]:
    class Engine(kind):  # type: ignore[misc, valid-type]
        virtual = is_virtual
        lease = 10.0 if is_virtual else 0.4

        @asynccontextmanager
        async def open_store(self) -> AsyncGenerator[Any, None]:
            config = RateLimitConfig(limit=5, window=60.0) if is_virtual else LIMIT
            with TemporaryDirectory() as folder:
                async with open_sqlite_stores(
                    f"{folder}/stores.db", prefix="p:", lease=self.lease, default_config=config
                ) as stores:
                    yield getattr(stores, store)

    Engine.__qualname__ = f"SQLite{kind.__name__}"
    return Engine


@pytest.mark.parametrize("is_virtual", [True, False], ids=["test clock", "real clock"])
@pytest.mark.parametrize(
    ("kind", "store"),
    [
        (CacheStoreContract, "cache"),
        (DedupeStoreContract, "dedupe"),
        (RateLimitStoreContract, "rate_limit"),
        (AdaptiveRateLimitStoreContract, "adaptive"),
    ],
    ids=["cache", "dedupe", "rate_limit", "adaptive"],
)
def test_contract(kind: type[Contract], store: str, is_virtual: bool) -> None:
    """Everything that the contract suites promise to users of the protocol."""
    check_contract(engine(kind, store, is_virtual=is_virtual))
