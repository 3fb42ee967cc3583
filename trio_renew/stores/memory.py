"""The stores of one process: nothing leaves it, and all is gone when the bundle closes.

Invariants:

* The bundle has one task, the sweeper, which never raises into its nursery unless our own machinery crashes; an
  exception of the body leaves as itself.
* Closing is one synchronous step before the sweeper is waited for.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._codecs import JsonCodec
from .._policy.capacity import AdaptiveConfig, RateLimitConfig
from ._common import Options, Stores
from ._memory_adaptive import MemoryAdaptiveRateLimitStore
from ._memory_cache import MemoryCacheStore
from ._memory_dedupe import MemoryDedupeStore
from ._memory_life import Life
from ._memory_rates import MemoryRateLimitStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from ..abc import Codec

__all__ = (
    "MemoryAdaptiveRateLimitStore",
    "MemoryCacheStore",
    "MemoryDedupeStore",
    "MemoryRateLimitStore",
    "MemoryStores",
    "open_memory_stores",
)

T = TypeVar("T")

#: What :func:`open_memory_stores` gives.
MemoryStores: TypeAlias = Stores[
    MemoryCacheStore[T], MemoryDedupeStore[T], MemoryRateLimitStore, MemoryAdaptiveRateLimitStore
]


@asynccontextmanager
@enable_ki_protection
async def open_memory_stores(
    *,
    codec: Codec[Any] = JsonCodec(),
    max_items: int | None = None,
    max_entry_size_bytes: int | None = None,
    max_total_bytes: int | None = None,
    lease: float = 10.0,
    default_config: RateLimitConfig = RateLimitConfig(limit=60, window=60.0),
    resource_configs: Mapping[str, RateLimitConfig] = {},
    adaptive_config: AdaptiveConfig = AdaptiveConfig(),
    clock: Callable[[], float] | None = None,
) -> AsyncGenerator[MemoryStores[Any], None]:
    """Open a cache, a dedupe store and two rate limits in this process.

    What they hold is shared by the tasks of this Trio run, and dropped when the bundle closes; then whoever waits in
    it gets :class:`trio.ClosedResourceError`, and so does every later call. Nothing is copied or encoded: the cache
    gives the very objects that it was given.

    Args:
      codec: Measures values where a byte limit is set, and is not used otherwise.
      max_items: How many entries the cache keeps; beyond that the least recently used go. None: no bound.
      max_entry_size_bytes: How large the encoding of one cached value may be. None: no bound.
      max_total_bytes: How large all of them together may be; beyond that the least recently used go. None: no bound.
      lease: Seconds that a dedupe job lives without being extended; finite, greater than 0.
      default_config: The limit of a resource that has none of its own.
      resource_configs: The limits of resources that have.
      adaptive_config: How the adaptive limit is divided.
      clock: Gives POSIX seconds; then everything goes by it. None: leases, windows and times to live go by Trio's
        clock.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range. Both name it.

    Example::

        async with open_memory_stores(max_items=1000) as stores:
            await stores.cache.set("item:1", {"name": "x"}, 60.0, tags=("items",))
            while not await stores.rate_limit.acquire("api.example.com"):
                await trio.sleep(await stores.rate_limit.get_wait_time("api.example.com"))
    """
    options = Options(
        codec=codec,
        max_items=max_items,
        max_entry_size_bytes=max_entry_size_bytes,
        max_total_bytes=max_total_bytes,
        lease=lease,
        default_config=default_config,
        resource_configs=resource_configs,
        adaptive_config=adaptive_config,
        clock=clock,
    )
    life = Life(clock)
    stores: MemoryStores[Any] = Stores(
        cache=MemoryCacheStore[Any](life, options),
        dedupe=MemoryDedupeStore[Any](life, options),
        rate_limit=MemoryRateLimitStore(life, options),
        adaptive=MemoryAdaptiveRateLimitStore(life, options),
    )
    life.adopt(stores.cache, stores.dedupe, stores.rate_limit, stores.adaptive)
    left_with: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.sweep_now_and_then, name="trio_renew memory stores: sweeper")
        try:
            yield stores
        except BaseException as error:  # noqa: ASYNC103 - raised below, where no group is made of it
            left_with = error
        life.close()
    if left_with is not None:
        try:
            raise left_with
        finally:
            del left_with
