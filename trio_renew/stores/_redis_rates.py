"""The rate limits of the Redis engine.

Invariants:

* Whether a request may proceed is decided and counted in one script, on the server's clock: never more than the limit.
* A request has an id of its own, so a script that were repeated would not count it twice.
* Configs belong to the store object; what is counted, cooldowns and the division of an adaptive limit belong to the
  server and are shared by all.
"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ..abc import AdaptiveRateLimitStatus, RateLimitStatus
from ._common import (
    RateLimitStats,
    ResourceInfo,
    check_config,
    check_instant,
    check_priority,
    check_scope,
    check_text,
)
from ._redis_limit_scripts import ADAPTIVE, COOL, COOLDOWN, COOLDOWNS, COUNT, KEEP, PLAIN, TIDY, WIPE
from ._redis_room import batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._policy.capacity import RateLimitConfig
    from ..abc import Priority
    from ._redis_room import Room

__all__ = ("RedisAdaptiveRateLimitStore", "RedisRateLimitStore")

# 25 years: the longest window whose length still differs from an instant.
_LONGEST = 8 * 10**14


def _microseconds(seconds: float) -> int:
    return max(round(min(seconds, _LONGEST / 1_000_000) * 1_000_000), 1)


class _Rates:
    """What both limits have: configs, cooldowns, and looking after what is counted."""

    __slots__ = (
        "_configs",
        "_cooldown_kind",
        "_default",
        "_least",
        "_numbers",
        "_others",
        "_room",
        "_session",
        "_windows",
    )

    def __init__(
        self, room: Room, cooldown: bytes, windows: Sequence[bytes], others: Sequence[bytes], least: int = 0
    ) -> None:
        self._room = room
        self._default = room.options.default_config
        self._configs = dict(room.options.resource_configs)
        self._cooldown_kind = cooldown
        self._windows = windows
        self._others = others
        #: Microseconds for which requests are kept at least, however short their window is.
        self._least = least
        self._session = os.urandom(8).hex()
        self._numbers = count()

    def _id(self) -> bytes:
        return b"%s-%x" % (self._session.encode(), next(self._numbers))

    def _config(self, resource: str) -> RateLimitConfig:
        return self._configs.get(check_text("resource", resource), self._default)

    async def reset(self, resource: str) -> None:
        """Forget what is counted for this resource; its config and its cooldown stay. One round trip."""
        check_text("resource", resource)
        await self._room.link.call(
            b"DEL", *(self._room.key(kind, resource) for kind in (*self._windows, *self._others))
        )

    async def set_cooldown(self, resource: str, until: float) -> None:
        """Refuse everything for this resource until that instant. One round trip.

        Args:
          resource: Its name.
          until: POSIX seconds on the server's clock. The later one of two stays; one that has passed changes nothing.
        """
        check_text("resource", resource)
        until = check_instant("until", until)
        key = self._room.key(self._cooldown_kind, resource)
        await self._room.link.run(COOL, (key,), round(until * 1_000_000), repr(until).encode())

    async def get_cooldown(self, resource: str) -> float | None:
        """Give the instant until which this resource is refused; None: it is not. One round trip."""
        check_text("resource", resource)
        until = float(await self._room.link.run(COOLDOWN, (self._room.key(self._cooldown_kind, resource),)))
        return until or None

    async def clear_cooldown(self, resource: str) -> None:
        """End the cooldown of this resource, if there is one. One round trip."""
        check_text("resource", resource)
        await self._room.link.call(b"DEL", self._room.key(self._cooldown_kind, resource))

    async def set_resource_config(self, resource: str, config: RateLimitConfig) -> None:
        """Give this resource a limit of its own, in this store object; what is counted stays. One round trip.

        Raises:
          StoreError: The server cannot be asked; then nothing has changed.
          trio.ClosedResourceError: The stores are closed.
        """
        check_text("resource", resource)
        check_config(config)
        keys = [self._room.key(kind, resource) for kind in (*self._windows, *self._others)]
        await self._room.link.run(KEEP, keys, max(_microseconds(config.window), self._least), len(self._windows))
        self._configs[resource] = config

    async def get_resource_config(self, resource: str) -> RateLimitConfig:
        """Give the limit of this resource in this store object: its own, or the default. One checkpoint."""
        config = self._config(resource)
        self._room.owner.check()
        await trio.lowlevel.checkpoint()
        return config

    # For people

    async def list_resources(self) -> list[ResourceInfo]:
        """List the resources for which something is counted or a cooldown runs, by name.

        Looks at every key of the server.
        """
        room = self._room
        counts: dict[str, int] = {}
        for kind in self._windows:
            for names in batches(await room.names(kind)):
                spans = [_microseconds(self._config(name).window) for name in names]
                _, *found = await room.link.run(COUNT, [room.key(kind, name) for name in names], *spans)
                for name, number in zip(names, found, strict=True):
                    counts[name] = counts.get(name, 0) + number
        cooldowns = await room.names(self._cooldown_kind)
        _, rows = await room.describe(COOLDOWNS, self._cooldown_kind, cooldowns)
        ends = {name: float(end) for name, end in rows if float(end)}
        return [
            ResourceInfo(name, counts.get(name, 0), config.limit, config.window, ends.get(name))
            for name in sorted({*counts, *ends})
            for config in (self._config(name),)
            if counts.get(name) or name in ends
        ]

    async def get_stats(self) -> RateLimitStats:
        """Count them. Looks at every key of the server."""
        infos = await self.list_resources()
        return RateLimitStats(
            total_resources=len(infos),
            active_resources=sum(info.request_count > 0 for info in infos),
            rate_limited_resources=sum(
                info.request_count >= info.limit or info.cooldown_until is not None for info in infos
            ),
            total_requests=sum(info.request_count for info in infos),
        )

    async def cleanup(self) -> int:
        """Forget requests that have left every window; says how many. The server itself drops the rest."""
        removed = 0
        for kind in self._windows:
            for names in batches(await self._room.names(kind)):
                removed += await self._room.link.run(TIDY, [self._room.key(kind, name) for name in names])
        return removed  # noqa: ASYNC910 - asking for the names is one

    async def clear(self, scope: str | None = None) -> None:
        """Forget what is counted and the cooldowns, of all or of names that start with exactly ``scope``.

        Looks at every key of the server, in batches. Cancelled, it goes on without the caller. What is counted or set
        after it was called stays.
        """
        prefix = check_scope(scope)

        async def wipe() -> None:
            stamp = await self._room.stamp()
            for kind in (*self._windows, *self._others, self._cooldown_kind):
                for names in batches(await self._room.names(kind, prefix)):
                    await self._room.link.run(WIPE, [self._room.key(kind, name) for name in names], stamp)

        await self._room.outliving(wipe, "clearing a rate limit")


class RedisRateLimitStore(_Rates):
    """A sliding window per resource, on a server. Belongs to the bundle of :func:`open_redis_stores`.

    Every method of the protocol is one round trip. A cancelled ``acquire`` or ``record`` may have been counted.
    """

    __slots__ = ()

    def __init__(self, room: Room) -> None:
        super().__init__(room, b"rc:", (b"r:",), ())

    async def _run(self, what: bytes, resource: str) -> Any:
        config = self._config(resource)
        keys = (self._room.key(b"r:", resource), self._room.key(b"rc:", resource))
        return await self._room.link.run(PLAIN, keys, what, config.limit, _microseconds(config.window), self._id())

    async def acquire(self, resource: str) -> bool:
        """Count one request if it may proceed.

        Raises:
          StoreError: The server cannot be asked; it may have been counted if the answer was lost.
          trio.ClosedResourceError: The stores are closed.
        """
        return bool(await self._run(b"acquire", resource))

    async def can_proceed(self, resource: str) -> bool:
        """Say whether a request may proceed now."""
        return bool(await self._run(b"can", resource))

    async def record(self, resource: str) -> None:
        """Count one request, whether it may proceed or not."""
        await self._run(b"record", resource)

    async def get_status(self, resource: str) -> RateLimitStatus:
        """Give what is left of the limit; ``reset_at`` is on the server's clock."""
        limit = self._config(resource).limit
        counted, reset = await self._run(b"status", resource)
        return RateLimitStatus(remaining=max(0, limit - counted), reset_at=int(reset) / 1e6, limit=limit)

    async def get_wait_time(self, resource: str) -> float:
        """Give the seconds until one request may proceed if nobody else's does."""
        return int(await self._run(b"wait", resource)) / 1e6


class RedisAdaptiveRateLimitStore(_Rates):
    """A limit divided between users and background work, on a server; all who share the server share the division.

    Belongs to the bundle of :func:`open_redis_stores`. Every method of the protocol is one round trip. A cancelled
    ``acquire`` or ``record`` may have been counted.
    """

    __slots__ = ("_arguments",)

    def __init__(self, room: Room) -> None:
        config = room.options.adaptive_config
        super().__init__(room, b"ac:", (b"au:", b"ab:"), (b"as:",), _microseconds(config.monitoring_window))
        self._arguments: tuple[bytes | int, ...] = (
            repr(attrs.astuple(config)).encode(),
            _microseconds(config.monitoring_window),
            repr(config.high_activity_threshold).encode(),
            repr(config.moderate_activity_threshold).encode(),
            _microseconds(config.recalculation_interval),
            _microseconds(config.sustained_inactivity_threshold),
            int(config.background_pause_on_increasing_trend),
            repr(config.max_user_scaling).encode(),
            repr(config.min_user_reserved).encode(),
            f"{config.monitoring_window / 60:g}min".encode(),
            f"{config.sustained_inactivity_threshold / 60:g}+ min".encode(),
        )

    async def _run(self, what: bytes, resource: str, priority: Priority) -> Any:
        check_priority(priority)
        config = self._config(resource)
        keys = [self._room.key(kind, resource) for kind in (b"au:", b"ab:", b"as:", b"ac:")]
        return await self._room.link.run(
            ADAPTIVE,
            keys,
            what,
            config.limit,
            _microseconds(config.window),
            self._id(),
            priority.encode(),
            *self._arguments,
        )

    async def acquire(self, resource: str, priority: Priority = "background") -> bool:
        """Count one request if it may proceed.

        Raises:
          StoreError: The server cannot be asked; it may have been counted if the answer was lost.
          trio.ClosedResourceError: The stores are closed.
        """
        return bool(await self._run(b"acquire", resource, priority))

    async def can_proceed(self, resource: str, priority: Priority = "background") -> bool:
        """Say whether a request may proceed now."""
        return bool(await self._run(b"can", resource, priority))

    async def record(self, resource: str, priority: Priority = "background") -> None:
        """Count one request, whether it may proceed or not."""
        await self._run(b"record", resource, priority)

    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        """Give what is left of the limit, and how it is divided; ``reset_at`` is on the server's clock."""
        limit = self._config(resource).limit
        counted, reset, users, paused, activity, reason = await self._run(b"status", resource, "background")
        return AdaptiveRateLimitStatus(
            remaining=max(0, limit - counted),
            reset_at=int(reset) / 1e6,
            limit=limit,
            user_reserved=int(users),
            background_max=limit - int(users),
            background_paused=bool(paused),
            recent_user_activity=activity,
            reason=reason.decode(),
        )

    async def get_wait_time(self, resource: str, priority: Priority = "background") -> float:
        """Give the seconds until one request may proceed if nobody else's does."""
        return int(await self._run(b"wait", resource, priority)) / 1e6
