"""The stores and the bus of all processes that use one Redis or Valkey server.

Needs the extra ``redis`` (coredis). Works with Redis from 6.2 on and with Valkey; one server, no cluster.

Invariants:

* A bundle, and a bus, has one connection of its own, made when it is first needed and made again when it is lost.
* Opening needs no server. No call takes longer than 5 seconds, and what goes wrong is a
  :class:`~trio_renew.StoreError`.
* An exception of the body leaves as itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .._owner import Owner, hosting, owning
from .._policy.capacity import AdaptiveConfig, RateLimitConfig
from .._storage import JsonCodec
from ._common import Options, Stores, check_text
from ._redis_address import address_of
from ._redis_bus import RedisBus
from ._redis_cache import RedisCacheStore
from ._redis_dedupe import RedisDedupeStore
from ._redis_link import Link
from ._redis_rates import RedisAdaptiveRateLimitStore, RedisRateLimitStore
from ._redis_room import Room

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from coredis import Redis

    from ..abc import Bus, Codec

__all__ = (
    "RedisAdaptiveRateLimitStore",
    "RedisCacheStore",
    "RedisDedupeStore",
    "RedisRateLimitStore",
    "RedisStores",
    "open_redis_bus",
    "open_redis_stores",
)

T = TypeVar("T")

#: What :func:`open_redis_stores` gives.
RedisStores: TypeAlias = Stores[
    RedisCacheStore[T], RedisDedupeStore[T], RedisRateLimitStore, RedisAdaptiveRateLimitStore
]


@owning
async def open_redis_stores(
    url_or_client: str | Redis[Any],
    *,
    prefix: str = "trio_renew:",
    codec: Codec[Any] = JsonCodec(),
    max_entry_size_bytes: int | None = None,
    lease: float = 10.0,
    default_config: RateLimitConfig = RateLimitConfig(limit=60, window=60.0),
    resource_configs: Mapping[str, RateLimitConfig] = {},
    adaptive_config: AdaptiveConfig = AdaptiveConfig(),
) -> AsyncGenerator[RedisStores[Any], None]:
    """Open a cache, a dedupe store and two rate limits on a server.

    Everybody with the same server, database and prefix shares what they hold; the clock is the server's. Opening does
    not connect: the first call does. A call that finds no server, loses its connection, or gets no answer within 5
    seconds raises :class:`~trio_renew.StoreError`; the next one connects again. When the bundle closes, whoever waits
    in it gets :class:`trio.ClosedResourceError`, and so does every later call; what it held stays on the server until
    it expires.

    A real server takes real time: in tests give ``MockClock`` an ``autojump_threshold`` of 0.01 or more, or these 5
    seconds are over at once.

    Args:
      url_or_client: ``redis://user:password@host:6379/0``, ``rediss://`` for TLS (with ``?ssl_ca_certs=`` for an
        authority of your own; the host is checked unless ``ssl_check_hostname=false``), or
        ``unix:///path/to/socket``; parts with special characters are percent-encoded. Or a ``coredis.Redis`` client:
        its address, credentials, database and TLS settings are taken, for a connection of the bundle's own; the
        client itself is neither used nor closed.
      prefix: What the keys of these stores start with.
      codec: Encodes the values of the cache and of jobs. Values lie on the server as it encodes them: encrypt secrets.
      max_entry_size_bytes: How large the encoding of one cached value may be. None: no bound.
      lease: Seconds that a dedupe job lives without being extended; finite, greater than 0.
      default_config: The limit of a resource that has none of its own.
      resource_configs: The limits of resources that have.
      adaptive_config: How the adaptive limit is divided.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range. Both name it.

    Example::

        async with open_redis_stores("redis://localhost:6379/0", prefix="shop:") as stores:
            await stores.cache.set("item:1", {"name": "x"}, 60.0, tags=("items",))
            while not await stores.rate_limit.acquire("api.example.com"):
                await trio.sleep(await stores.rate_limit.get_wait_time("api.example.com"))
    """
    options = Options(
        codec=codec,
        max_entry_size_bytes=max_entry_size_bytes,
        lease=lease,
        default_config=default_config,
        resource_configs=resource_configs,
        adaptive_config=adaptive_config,
    )
    address = address_of(url_or_client)
    home = (check_text("prefix", prefix) if prefix != "" else prefix).encode() + b"d:"
    owner = Owner("redis stores", None, None)

    def heard(channel: bytes, message: bytes) -> None:
        dedupe.heard(channel, message)

    def lost() -> None:
        dedupe.look_again()

    room = Room(owner, Link(owner, address, home, heard=heard, lost=lost), prefix, options)
    cache: RedisCacheStore[Any] = RedisCacheStore(room)
    dedupe: RedisDedupeStore[Any] = RedisDedupeStore(room)
    stores = Stores(
        cache=cache,
        dedupe=dedupe,
        rate_limit=RedisRateLimitStore(room),
        adaptive=RedisAdaptiveRateLimitStore(room),
    )
    async with hosting(owner):
        yield stores  # noqa: ASYNC119 - @owning makes a context manager of it


@owning
async def open_redis_bus(url_or_client: str | Redis[Any], *, channel: str = "trio_renew") -> AsyncGenerator[Bus, None]:
    """Open a bus for the invalidations of caches and pools in all processes that use one server.

    Once it is open, it hears: what is published afterwards arrives. Opening waits at most 5 seconds for a first
    connection and needs no server. A connection that cannot be made or is lost is tried again at least every two
    seconds; meanwhile the listeners are told once (``failed``), what they publish is kept, and when the connection is
    back they are told that they may have missed something (``missed``). Messages travel by pub/sub: nothing stays on
    the server.

    Args:
      url_or_client: As for :func:`open_redis_stores`.
      channel: The channel that the messages go through; buses with the same one belong together.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: The URL is none for a server, or ``channel`` is empty.

    Example::

        async with open_redis_bus("redis://localhost:6379/0") as bus:
            async with open_provider_cache(resolve, bus=bus, name="tenants") as cache:
                ...
    """
    address = address_of(url_or_client)
    check_text("channel", channel)
    owner = Owner("redis bus", None, None)
    bus = RedisBus(owner, address, channel.encode())
    async with hosting(owner):
        await bus.open()
        try:
            yield bus  # noqa: ASYNC119 - as above
        finally:
            await bus.say_farewell()  # noqa: ASYNC102 - shields itself
