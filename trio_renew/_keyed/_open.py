"""How caches and pools are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .._owner import owning
from ._cache import ProviderCache
from ._member import hosting_member
from ._pool import ProviderPool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable
    from contextlib import AbstractAsyncContextManager
    from typing import Literal

    from .._events import Event
    from ..abc import Bus

__all__ = ("open_provider_cache", "open_provider_cache_with", "open_provider_pool")

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


@owning
async def open_provider_cache_with(
    after_claim: Callable[[], Awaitable[object]] | None,
    resolve: Callable[[K], Awaitable[V]],
    *,
    ttl: float | bool = 300.0,
    max_entries: int = 1024,
    negative_ttl: float = 0.0,
    ttl_jitter: float = 0.0,
    refresh_at: float | None = None,
    serve_expired_for: float = 0.0,
    tags: Callable[[K, V], Iterable[str]] | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    bus: Bus | None = None,
    name: str | None = None,
) -> AsyncGenerator[ProviderCache[K, V], None]:
    """Open a cache as :func:`trio_renew.open_provider_cache` does, with a hook between claim and runner.

    Args:
      after_claim: Awaited between the claim of a resolution and the start of its task: the window that production code
        crosses without a checkpoint. In the serving task when a caller needs the value, in the background task
        otherwise. A cancellation there releases the claim, and those who had joined decide again; so does an
        exception, which is the serving task's, or makes a background resolution a failed one.
      resolve: As for ``open_provider_cache``, like all that follow.
      ttl: See there.
      max_entries: See there.
      negative_ttl: See there.
      ttl_jitter: See there.
      refresh_at: See there.
      serve_expired_for: See there.
      tags: See there.
      fetch_timeout: See there; counts from after the hook.
      when_abandoned: See there.
      observe: See there.
      clock: See there.
      bus: See there.
      name: See there.
    """
    cache: ProviderCache[K, V] = ProviderCache(
        resolve,
        after_claim=after_claim,
        ttl=ttl,
        max_entries=max_entries,
        negative_ttl=negative_ttl,
        ttl_jitter=ttl_jitter,
        refresh_at=refresh_at,
        serve_expired_for=serve_expired_for,
        tags=tags,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        bus=bus,
        name=name,
    )
    async with hosting_member(cache):
        yield cache  # noqa: ASYNC119 - @owning makes a context manager of it


@owning
async def open_provider_cache(
    resolve: Callable[[K], Awaitable[V]],
    *,
    ttl: float | bool = 300.0,
    max_entries: int = 1024,
    negative_ttl: float = 0.0,
    ttl_jitter: float = 0.0,
    refresh_at: float | None = None,
    serve_expired_for: float = 0.0,
    tags: Callable[[K, V], Iterable[str]] | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    bus: Bus | None = None,
    name: str | None = None,
) -> AsyncGenerator[ProviderCache[K, V], None]:
    """Keep a cache open around a body: values by key, each resolved once for all who want it, for a bounded time.

    Entering resolves nothing. Leaving is not a cancellation point: it cancels what is in progress and waits for it to
    unwind; callers elsewhere get ``trio.ClosedResourceError`` at once, and all values are dropped. The body can still
    use the cache in its ``finally`` blocks. What the body raises leaves as itself, not in a group.

    The cache does not look at a value's own expiry: for tokens, pool an ``open_provider`` (:func:`open_provider_pool`).

    Args:
      resolve: An async function of the key that returns the value. What it raises goes to every caller of that
        resolution and is not remembered. It runs in a task of the cache's own nursery.
      ttl: Seconds for which a value is kept, from when it was stored. True: for ever; False, 0 or less: never (one
        resolution is still shared by those who ask meanwhile). The default is bounded on purpose: where no
        invalidation arrives, what was disabled or rotated is served for 300 seconds at most.
      max_entries: How many entries there may be. Expired ones make room first, then the least recently used.
      negative_ttl: Seconds for which a None is remembered, at most ``ttl``; 0: it is not.
      ttl_jitter: Shortens each value's time by a random part of up to this fraction (0 up to, but not including, 1).
      refresh_at: The fraction of its life from which on a hit starts one background resolution, and is served the old
        value; None: never. One that fails is tried again at most once a second.
      serve_expired_for: Seconds past its end for which a value is kept for a source that is down. The first caller
        waits for a resolution; when that fails, the expired value is served, at once from then on, until one succeeds.
        Each serving is told (:class:`ServedExpired`).
      tags: A function of key and value that returns the tags (``str``) by which :meth:`ProviderCache.invalidate_tag`
        finds the entry; asked when a value is to be stored, a remembered None too. What it raises makes that a
        failed resolution, and so does anything else it returns.
      fetch_timeout: Seconds that one resolution may take; None or infinity: no limit.
      when_abandoned: What becomes of a resolution when its last caller leaves: ``"finish"`` keeps its value,
        ``"cancel"`` cancels it. Background resolutions have no callers to lose.
      observe: Told every :data:`Event`, with its key, synchronously; must be quick. What it raises is logged.
      clock: Returns the time in POSIX seconds. None: the wall clock, or the test clock's under ``MockClock``.
      bus: Carries invalidations to and from the caches and pools of the same name elsewhere; it needs ``name``.
      name: For events, logs, task names and the bus.

    Yields:
      The :class:`ProviderCache`.

    Raises:
      TypeError: An argument has the wrong type; it is named.
      ValueError: An argument is out of range; it is named. Or there is a bus, but no name.

    Example::

        async def resolve(tenant_id: str) -> IdentityProvider | None:
            row = await database.fetch_one("SELECT * FROM tenants WHERE id = ?", tenant_id)
            return None if row is None else IdentityProvider(**row)

        async with open_provider_cache(resolve, negative_ttl=5.0) as cache:
            provider = await cache.get("acme")
    """
    async with open_provider_cache_with(
        None,
        resolve,
        ttl=ttl,
        max_entries=max_entries,
        negative_ttl=negative_ttl,
        ttl_jitter=ttl_jitter,
        refresh_at=refresh_at,
        serve_expired_for=serve_expired_for,
        tags=tags,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        bus=bus,
        name=name,
    ) as cache:
        yield cache  # noqa: ASYNC119 - as above


@owning
async def open_provider_pool(
    open_value: Callable[[K], AbstractAsyncContextManager[V]],
    *,
    ttl: float | bool = True,
    idle_timeout: float = 300.0,
    max_entries: int = 100,
    fetch_timeout: float | None = 30.0,
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    bus: Bus | None = None,
    name: str | None = None,
) -> AsyncGenerator[ProviderPool[K, V], None]:
    """Keep a pool open around a body: values with a lifetime of their own, by key, opened once for all who want one.

    Each value lives in a task of the pool's nursery, where its context manager is entered and left. Eviction, expiry
    and invalidation retire a value: its key is free at once, and it closes when its last borrower is gone.

    Leaving is not a cancellation point: it cancels what is opening; then the values close one by one, in reverse order
    of opening, so that a value may be built on another; borrowers elsewhere are cancelled and get
    ``trio.ClosedResourceError``. What the body raises leaves as itself, not in a group.

    Args:
      open_value: A function of the key that returns an async context manager, such as ``open_provider(...)``.
      ttl: Seconds after which a value is retired, from when it was opened. True: never; False, 0 or less: each value
        serves only those who wait while it opens.
      idle_timeout: Seconds after the last return for which a value stays open; 0: it closes at once, infinity: always.
      max_entries: How many values there may be. Only idle ones are evicted, the least recently used first; what is
        borrowed may exceed it.
      fetch_timeout: Seconds that opening may take; None or infinity: no limit.
      observe: Told every :data:`Event`, with its key, synchronously; must be quick. What it raises is logged.
      clock: Returns the time in POSIX seconds. None: the wall clock, or the test clock's under ``MockClock``.
      bus: Carries invalidations to and from the caches and pools of the same name elsewhere; it needs ``name``.
      name: For events, logs, task names and the bus.

    Yields:
      The :class:`ProviderPool`.

    Raises:
      TypeError: An argument has the wrong type; it is named.
      ValueError: An argument is out of range; it is named. Or there is a bus, but no name.

    Example::

        def open_tenant(tenant_id: str):
            return open_provider(lambda: mint(tenant_id), name=tenant_id)

        async with open_provider_pool(open_tenant) as pool:
            async with pool.borrow("acme") as provider:
                token = await provider.get()
    """
    pool: ProviderPool[K, V] = ProviderPool(
        open_value,
        ttl=ttl,
        idle_timeout=idle_timeout,
        max_entries=max_entries,
        fetch_timeout=fetch_timeout,
        observe=observe,
        clock=clock,
        bus=bus,
        name=name,
    )
    async with hosting_member(pool):
        yield pool  # noqa: ASYNC119 - as above
