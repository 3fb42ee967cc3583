"""The stores of one machine: a file that all of its processes share, by the standard library's SQLite alone.

Invariants:

* Opening touches no file; the first call does. Closing waits for the work that is being done, never for a lock.
* One connection per bundle, closed after its last task and its last user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .._owner import Owner, hosting, owning
from .._policy.capacity import AdaptiveConfig, RateLimitConfig
from .._storage import JsonCodec
from ._common import Options, Stores, check_text
from ._sqlite_adaptive import SQLiteAdaptiveRateLimitStore
from ._sqlite_bus import SQLiteBus
from ._sqlite_cache import SQLiteCacheStore
from ._sqlite_db import Database, check_path
from ._sqlite_dedupe import SQLiteDedupeStore
from ._sqlite_limits import SQLiteRateLimitStore

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Mapping

    from ..abc import Codec

__all__ = (
    "SQLiteAdaptiveRateLimitStore",
    "SQLiteBus",
    "SQLiteCacheStore",
    "SQLiteDedupeStore",
    "SQLiteRateLimitStore",
    "SQLiteStores",
    "open_sqlite_bus",
    "open_sqlite_stores",
)

T = TypeVar("T")

#: What :func:`open_sqlite_stores` gives.
SQLiteStores: TypeAlias = Stores[
    SQLiteCacheStore[T], SQLiteDedupeStore[T], SQLiteRateLimitStore, SQLiteAdaptiveRateLimitStore
]


@owning
async def open_sqlite_stores(
    path: str | os.PathLike[str],
    *,
    prefix: str = "",
    codec: Codec[Any] = JsonCodec(),
    max_items: int | None = None,
    max_entry_size_bytes: int | None = None,
    max_total_bytes: int | None = None,
    lease: float = 10.0,
    default_config: RateLimitConfig = RateLimitConfig(limit=60, window=60.0),
    resource_configs: Mapping[str, RateLimitConfig] = {},
    adaptive_config: AdaptiveConfig = AdaptiveConfig(),
    clock: Callable[[], float] | None = None,
) -> AsyncGenerator[SQLiteStores[Any], None]:
    """Open a cache, a dedupe store and two rate limits in a file that the processes of one machine share.

    The file is made at the first call, with mode 0600, and brought up to date where an older release has written it.
    Each call is one transaction in a worker thread (in Trio's own thread under a test clock): it has happened wholly
    or not at all, whoever is cancelled or killed. A file that is locked for 5 s, of a newer release, damaged, or on a
    full or read-only disk is a :class:`~trio_renew.StoreError` of that call, and the next call tries again. When the
    bundle closes, whoever waits in it gets :class:`trio.ClosedResourceError`, and so does every later call.

    What is stored is encoded by ``codec`` and not encrypted, unless the codec does it. The file must not lie on a
    network share: SQLite's write-ahead log does not work there.

    Args:
      path: The file; its folder must exist. ``":memory:"`` is a database of this bundle alone.
      prefix: What keeps apart those who share a file: bundles of different prefixes see nothing of each other.
      codec: Makes bytes of values, and values of bytes.
      max_items: How many entries the cache keeps; beyond that the longest stored go. None: no bound.
      max_entry_size_bytes: How large the encoding of one cached value may be. None: no bound.
      max_total_bytes: How large all of them together may be; beyond that the longest stored go. None: no bound.
      lease: Seconds that a dedupe job lives without being extended; finite, greater than 0.
      default_config: The limit of a resource that has none of its own.
      resource_configs: The limits of resources that have.
      adaptive_config: How the adaptive limit is divided.
      clock: Gives POSIX seconds. None: ``time.time()``, under a test clock Trio's.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range. Both name it.

    Example::

        async with open_sqlite_stores("/var/lib/app/renew.db", prefix="app:") as stores:
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
    if prefix != "":
        check_text("prefix", prefix)
    owner = Owner("sqlite stores", None, None)
    database = Database(owner, check_path(path), clock)
    try:
        async with hosting(owner):
            stores: SQLiteStores[Any] = Stores(
                cache=SQLiteCacheStore[Any](database, prefix, options),
                dedupe=SQLiteDedupeStore[Any](database, prefix, options),
                rate_limit=SQLiteRateLimitStore(database, prefix, options),
                adaptive=SQLiteAdaptiveRateLimitStore(database, prefix, options),
            )
            owner.start(database.keep_clean, "cleaner")
            yield stores  # noqa: ASYNC119 - owning makes a context manager of it
    finally:
        await database.aclose()


@owning
async def open_sqlite_bus(path: str | os.PathLike[str]) -> AsyncGenerator[SQLiteBus, None]:
    """Open a bus that carries invalidations between the caches and pools of one machine, through a file.

    It may be the file of the stores. A message arrives within a second. A file that cannot be used is reported to the
    caches and pools (``StorageFailed("bus", error)``), never raised, and tried again every second: what was sent
    meanwhile is sent then, and what may have been missed is replayed, or everything is dropped. Opening waits for the
    first use of the file, at most 5 s. A message carries keys, never values.

    Args:
      path: The file; its folder must exist.

    Raises:
      TypeError: The path is no path.
      ValueError: It is empty.

    Example::

        async with open_sqlite_bus("/var/lib/app/bus.db") as bus:
            async with open_provider_cache(resolve, name="tenants", bus=bus) as cache:
                cache.delete("acme")  # in every process
    """
    owner = Owner("sqlite bus", None, None)
    database = Database(owner, check_path(path))
    try:
        async with hosting(owner):
            bus = SQLiteBus(owner, database)
            owner.start(bus.take_part, "bus")
            await bus.opened()
            try:
                yield bus  # noqa: ASYNC119 - owning makes a context manager of it
            finally:
                await bus.flush()  # noqa: ASYNC102 - it shields itself, for a second at most
    finally:
        await database.aclose()
