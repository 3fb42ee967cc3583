"""The plain rate limit of the memory engine, and what it shares with the adaptive one.

Invariants:

* Requests are in the order in which they were counted; each counts while less than the window has passed since. They
  are kept for the longest window that they were counted in, because a window that was made shorter may become longer
  again.
* Looking never makes state for a resource.
* What is kept for a resource goes when nothing of it can matter any more: its requests with their window, a cooldown
  at its end.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Generic, TypeVar

from trio.lowlevel import enable_ki_protection

from ..abc import RateLimitStatus
from ._common import (
    RateLimitStats,
    ResourceInfo,
    check_config,
    check_instant,
    check_scope,
    check_text,
)
from ._memory_life import seconds_until

if TYPE_CHECKING:
    from collections.abc import Collection

    from .._policy.capacity import RateLimitConfig
    from ._common import Options
    from ._memory_life import Life

__all__ = ("MemoryRateLimitStore", "Rates", "Requests")


def in_window(times: deque[float], now: float, window: float, keep: float) -> int:
    """Count what is in the window, and drop what has left it and is older than ``keep``, too."""
    longest = max(window, keep)
    while times and now >= times[0] + longest:
        times.popleft()
    if keep <= window:
        return len(times)
    return sum(1 for _ in takewhile(lambda at: now < at + window, reversed(times)))


class Requests:
    """The requests of one resource, the last ones of them in its window."""

    __slots__ = ("keep", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        #: The longest window before the one of now.
        self.keep = 0.0

    def prune(self, now: float, window: float) -> int:
        """Drop those that can count no more; says how many are in the window."""
        return in_window(self.times, now, window, self.keep)

    def redate(self, now: float) -> None:
        """Date now what seems to come from the future."""
        self.times = deque(min(at, now) for at in self.times)


R = TypeVar("R", bound=Requests)


class Rates(Generic[R]):
    """What both limits have: configs, cooldowns, and one record per resource."""

    __slots__ = ("_configs", "_cooldowns", "_default", "_life", "_records")

    def __init__(self, life: Life, options: Options) -> None:
        self._life = life
        self._default = options.default_config
        self._configs = dict(options.resource_configs)
        self._records: dict[str, R] = {}
        #: Until when, and when that was set.
        self._cooldowns: dict[str, tuple[float, float]] = {}

    # ------------------------------------------------------------------------------------- cooldowns and configs

    async def set_cooldown(self, resource: str, until: float) -> None:
        """Refuse everything for this resource until that instant. One checkpoint.

        Args:
          resource: Its name.
          until: POSIX seconds. The later one of two stays; one that has passed changes nothing.
        """
        check_text("resource", resource)
        until = check_instant("until", until)
        await self._life.step()
        self._set_cooldown(resource, until)

    async def get_cooldown(self, resource: str) -> float | None:
        """Give the instant until which this resource is refused; None: it is not. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        return self._cooldown(resource)

    async def clear_cooldown(self, resource: str) -> None:
        """End the cooldown of this resource, if there is one. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        self._cooldowns.pop(resource, None)

    async def set_resource_config(self, resource: str, config: RateLimitConfig) -> None:
        """Give this resource a limit of its own; what is counted stays. One checkpoint."""
        check_text("resource", resource)
        check_config(config)
        await self._life.step()
        self._set_config(resource, config)

    async def get_resource_config(self, resource: str) -> RateLimitConfig:
        """Give the limit of this resource: its own, or the default. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        return self._config(resource)

    # ------------------------------------------------------------------------------------------------- for people

    async def list_resources(self) -> list[ResourceInfo]:
        """List the resources for which something is counted or a cooldown runs, by name. One checkpoint."""
        await self._life.step()
        return self._list()

    async def get_stats(self) -> RateLimitStats:
        """Count them. One checkpoint."""
        await self._life.step()
        infos = self._list()
        return RateLimitStats(
            total_resources=len(infos),
            active_resources=sum(info.request_count > 0 for info in infos),
            rate_limited_resources=sum(
                info.request_count >= info.limit or info.cooldown_until is not None for info in infos
            ),
            total_requests=sum(info.request_count for info in infos),
        )

    async def reset(self, resource: str) -> None:
        """Forget what is counted for this resource; its config and its cooldown stay. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        self._records.pop(resource, None)

    async def cleanup(self) -> int:
        """Forget requests that have left their window and cooldowns that are over; says how many. One checkpoint."""
        await self._life.step()
        return self.sweep(self.sweepable())[0]

    async def clear(self, scope: str | None = None) -> None:
        """Forget what is counted and the cooldowns, of all or of names that start with ``scope``. One checkpoint."""
        prefix = check_scope(scope)
        await self._life.step()
        self._clear(prefix)

    # --------------------------------------------------------------------------------------------------- our steps

    def _config(self, resource: str) -> RateLimitConfig:
        return self._configs.get(resource, self._default)

    @enable_ki_protection
    def _set_config(self, resource: str, config: RateLimitConfig) -> None:
        record, before = self._records.get(resource), self._config(resource)
        self._configs[resource] = config
        if record is not None:
            record.keep = max(record.keep, before.window)
            self._config_changed(record)

    def _config_changed(self, record: R) -> None:
        """Let what was derived from the old config go."""

    @enable_ki_protection
    def _set_cooldown(self, resource: str, until: float) -> None:
        now = self._life.wall()
        if until > max(now, self._cooldown(resource) or now):
            self._cooldowns[resource] = (until, now)
            self._life.wake()

    def _cooldown(self, resource: str) -> float | None:
        if not self._cooldowns or resource not in self._cooldowns:
            return None
        now = self._life.wall()
        self._redate_cooldown(resource, now)
        until, _ = self._cooldowns[resource]
        if now >= until:
            del self._cooldowns[resource]
            return None
        return until

    def _redate_cooldown(self, resource: str, now: float) -> None:
        until, since = self._cooldowns[resource]
        if since > now:
            # The clock has gone back: a cooldown lasts no longer than it was meant to.
            self._cooldowns[resource] = (until - (since - now), now)

    def _cooldown_wait(self, resource: str) -> float:
        until = self._cooldown(resource)
        return 0.0 if until is None else seconds_until(until, self._life.wall())

    def _window_wait(
        self, times: Collection[float], count: int, most: int, config: RateLimitConfig, now: float
    ) -> float:
        """Give the seconds until fewer than ``most`` of these, of which ``count`` are in the window, are in it."""
        if count < most:
            return 0.0
        leaves = next(islice(times, len(times) - most, None))
        return seconds_until(leaves + config.window, now)

    def _reset_at(self, record: R | None, count: int, config: RateLimitConfig) -> float:
        if record is None or not count:
            return self._life.wall()
        return self._life.instant(record.times[-count] + config.window)

    def _count(self, resource: str, config: RateLimitConfig, now: float) -> int:
        record = self._records.get(resource)
        return 0 if record is None else record.prune(now, config.window)

    def _list(self) -> list[ResourceInfo]:
        now = self._life.now()
        infos: list[ResourceInfo] = []
        for resource in sorted({*self._records, *self._cooldowns}):
            config = self._config(resource)
            count, until = self._count(resource, config, now), self._cooldown(resource)
            if count or until is not None:
                infos.append(ResourceInfo(resource, count, config.limit, config.window, until))
        return infos

    @enable_ki_protection
    def _clear(self, prefix: str) -> None:
        for table in (self._records, self._cooldowns):
            for resource in [resource for resource in table if resource.startswith(prefix)]:
                del table[resource]

    def sweepable(self) -> list[str]:
        """Give the names of the resources that something is kept for."""
        return list({*self._records, *self._cooldowns})

    @enable_ki_protection
    def sweep(self, keys: list[str]) -> tuple[int, bool]:
        """Forget what has ended among these resources."""
        now = self._life.now()
        removed, more = 0, False
        for resource in keys:
            record = self._records.get(resource)
            if record is not None:
                removed += len(record.times)
                if self._is_over(resource, record, now):
                    del self._records[resource]
                removed -= len(record.times)
            cooling = resource in self._cooldowns
            if cooling and self._cooldown(resource) is None:
                removed, cooling = removed + 1, False
            more = more or cooling or resource in self._records
        return removed, more

    def _is_over(self, resource: str, record: R, now: float) -> bool:
        record.prune(now, self._config(resource).window)
        return not record.times

    def redate(self, now: float) -> None:
        """Date now what seems to come from the future."""
        for record in self._records.values():
            record.redate(now)
        # Only a given clock goes back here, and instants are on it, too.
        for resource in self._cooldowns:
            self._redate_cooldown(resource, now)

    def close(self) -> None:
        """Drop everything."""
        self._records.clear()
        self._cooldowns.clear()


class MemoryRateLimitStore(Rates[Requests]):
    """A sliding window per resource, in this process. Belongs to the bundle of :func:`open_memory_stores`."""

    __slots__ = ()

    async def acquire(self, resource: str) -> bool:
        """Count one request if it may proceed. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        return self._acquire(resource)

    async def can_proceed(self, resource: str) -> bool:
        """Say whether a request may proceed now. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        return self._may_proceed(resource, self._life.now())

    async def record(self, resource: str) -> None:
        """Count one request, whether it may proceed or not. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        self._record(resource, self._life.now())

    async def get_status(self, resource: str) -> RateLimitStatus:
        """Give what is left of the limit. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        config = self._config(resource)
        count = self._count(resource, config, self._life.now())
        return RateLimitStatus(
            remaining=max(0, config.limit - count),
            reset_at=self._reset_at(self._records.get(resource), count, config),
            limit=config.limit,
        )

    async def get_wait_time(self, resource: str) -> float:
        """Give the seconds until one request may proceed if nobody else's does. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        now, config = self._life.now(), self._config(resource)
        count = self._count(resource, config, now)
        if not config.limit:
            wait = config.window
        else:
            times = self._records[resource].times if count else ()
            wait = self._window_wait(times, count, config.limit, config, now)
        return max(wait, self._cooldown_wait(resource))

    @enable_ki_protection
    def _acquire(self, resource: str) -> bool:
        now = self._life.now()
        if not self._may_proceed(resource, now):
            return False
        self._record(resource, now)
        return True

    def _may_proceed(self, resource: str, now: float) -> bool:
        config = self._config(resource)
        return self._count(resource, config, now) < config.limit and self._cooldown(resource) is None

    @enable_ki_protection
    def _record(self, resource: str, now: float) -> None:
        record = self._records.get(resource)
        if record is None:
            record = self._records[resource] = Requests()
        record.times.append(now)
        if self._life.asleep:
            self._life.wake()
