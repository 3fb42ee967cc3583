"""The adaptive rate limit of the memory engine.

Invariants:

* ``times`` of a record are all requests, ``background_times`` those of them that are the background's.
* A division holds for its interval, or until the config of its resource changes; looking makes it.
* User requests are kept for the monitoring window. The last one of each kind is remembered for longer: the background's
  for the longer one of the two windows, the user's for a day (or the inactivity threshold, if longer).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from .._policy.capacity import Capacity, RateLimitConfig, capacity_of
from ..abc import AdaptiveRateLimitStatus
from ._common import check_priority, check_text
from ._memory_life import seconds_until
from ._memory_rates import Rates, Requests, in_window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..abc import Priority
    from ._common import Options
    from ._memory_life import Life

__all__ = ("MemoryAdaptiveRateLimitStore",)

#: For how long the last user request of a resource that is otherwise forgotten is remembered.
REMEMBER = 86_400.0


class _Activity(Requests):
    """The requests of one adaptive resource, and the division of its limit."""

    __slots__ = ("background_times", "capacity", "computed_at", "last_background", "last_user", "users")

    def __init__(self) -> None:
        super().__init__()
        #: Of the requests, those of the background.
        self.background_times: deque[float] = deque()
        #: User requests in the monitoring window.
        self.users: deque[float] = deque()
        self.last_user: float | None = None
        self.last_background: float | None = None
        self.capacity: Capacity | None = None
        self.computed_at = 0.0

    def prune(self, now: float, window: float) -> int:
        """Drop the requests of either kind that can count no more; says how many are in the window."""
        self.prune_background(now, window)
        return super().prune(now, window)

    def prune_background(self, now: float, window: float) -> int:
        """Drop the background's requests that can count no more; says how many are in the window."""
        return in_window(self.background_times, now, window, self.keep)

    def prune_users(self, now: float, window: float) -> int:
        """Drop the user requests that have left the monitoring window; says how many are left."""
        users = self.users
        while users and now >= users[0] + window:
            users.popleft()
        return len(users)

    def redate(self, now: float) -> None:
        """Date what seems to come from the future now."""
        super().redate(now)
        self.background_times = deque(min(at, now) for at in self.background_times)
        self.users = deque(min(at, now) for at in self.users)
        self.last_user = None if self.last_user is None else min(self.last_user, now)
        self.last_background = None if self.last_background is None else min(self.last_background, now)
        self.computed_at = min(self.computed_at, now)


class MemoryAdaptiveRateLimitStore(Rates[_Activity]):
    """A limit divided between users and background work, in this process.

    Belongs to the bundle of :func:`open_memory_stores`.
    """

    __slots__ = ("_adaptive",)

    def __init__(self, life: Life, options: Options) -> None:
        super().__init__(life, options)
        self._adaptive = options.adaptive_config

    async def acquire(self, resource: str, priority: Priority = "background") -> bool:
        """Count one request if it may proceed. One checkpoint."""
        check_text("resource", resource)
        check_priority(priority)
        await self._life.step()
        return self._acquire(resource, priority)

    async def can_proceed(self, resource: str, priority: Priority = "background") -> bool:
        """Say whether a request may proceed now. One checkpoint."""
        check_text("resource", resource)
        check_priority(priority)
        await self._life.step()
        return self._may_proceed(resource, priority, self._life.now())

    async def record(self, resource: str, priority: Priority = "background") -> None:
        """Count one request, whether it may proceed or not. One checkpoint."""
        check_text("resource", resource)
        check_priority(priority)
        await self._life.step()
        self._record(resource, priority, self._life.now())

    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        """Give what is left of the limit, and how it is divided. One checkpoint."""
        check_text("resource", resource)
        await self._life.step()
        now, config = self._life.now(), self._config(resource)
        record, capacity = self._divided(resource, config, now)
        count = record.prune(now, config.window)
        return AdaptiveRateLimitStatus(
            remaining=max(0, config.limit - count),
            reset_at=self._reset_at(record, count, config),
            limit=config.limit,
            user_reserved=capacity.user_reserved,
            background_max=capacity.background_max,
            background_paused=capacity.background_paused,
            recent_user_activity=record.prune_users(now, self._adaptive.monitoring_window),
            reason=capacity.reason,
        )

    async def get_wait_time(self, resource: str, priority: Priority = "background") -> float:
        """Give the seconds until one request may proceed if nobody else's does. One checkpoint."""
        check_text("resource", resource)
        check_priority(priority)
        await self._life.step()
        now, config = self._life.now(), self._config(resource)
        record, capacity = self._divided(resource, config, now)
        count = record.prune(now, config.window)
        if not config.limit:
            wait = config.window
        elif priority == "background" and (capacity.background_paused or not capacity.background_max):
            wait = seconds_until(record.computed_at + self._adaptive.recalculation_interval, now)
        else:
            wait = self._window_wait(record.times, count, config.limit, config, now)
            if priority == "background":
                mine = record.prune_background(now, config.window)
                times, most = record.background_times, capacity.background_max
                wait = max(wait, self._window_wait(times, mine, most, config, now))
        return max(wait, self._cooldown_wait(resource))

    @enable_ki_protection
    def _acquire(self, resource: str, priority: Priority) -> bool:
        now = self._life.now()
        if not self._may_proceed(resource, priority, now):
            return False
        self._record(resource, priority, now)
        return True

    def _may_proceed(self, resource: str, priority: Priority, now: float) -> bool:
        config = self._config(resource)
        # A user's request is not refused by the division, but it is a look: the division is made with it.
        record, capacity = self._divided(resource, config, now)
        if record.prune(now, config.window) >= config.limit or self._cooldown(resource) is not None:
            return False
        if priority == "user":
            return True
        mine = record.prune_background(now, config.window)
        return not capacity.background_paused and mine < capacity.background_max

    @enable_ki_protection
    def _record(self, resource: str, priority: Priority, now: float) -> None:
        record = self._kept(resource)
        record.times.append(now)
        if priority == "user":
            record.users.append(now)
            record.last_user = now
        else:
            record.background_times.append(now)
            record.last_background = now

    def _kept(self, resource: str) -> _Activity:
        record = self._records.get(resource)
        if record is None:
            record = self._records[resource] = _Activity()
            self._life.wake()
        return record

    @enable_ki_protection
    def _divided(self, resource: str, config: RateLimitConfig, now: float) -> tuple[_Activity, Capacity]:
        """Give the division of the limit, made anew when its interval is over."""
        record, adaptive = self._kept(resource), self._adaptive
        capacity = record.capacity
        if capacity is None or now >= record.computed_at + adaptive.recalculation_interval:
            record.prune_users(now, adaptive.monitoring_window)
            users: Iterable[float] = record.users
            if not record.users and record.last_user is not None:
                users = (record.last_user,)
            background = self._background_known(record, config, now)
            capacity = capacity_of(config.limit, users, background, now, adaptive)
            record.capacity, record.computed_at = capacity, now
        return record, capacity

    def _background_known(self, record: _Activity, config: RateLimitConfig, now: float) -> tuple[float, ...]:
        # History is kept for the longer one of the two windows.
        history = max(self._adaptive.monitoring_window, config.window)
        last = record.last_background
        return () if last is None or now >= last + history else (last,)

    def _config_changed(self, record: _Activity) -> None:
        record.capacity = None

    def _is_over(self, resource: str, record: _Activity, now: float) -> bool:
        config, adaptive = self._config(resource), self._adaptive
        remembered = max(REMEMBER, adaptive.sustained_inactivity_threshold)
        record.prune(now, config.window)
        return not (
            record.times
            or record.prune_users(now, adaptive.monitoring_window)
            or self._background_known(record, config, now)
            or (record.last_user is not None and now < record.last_user + remembered)
            or (record.capacity is not None and now < record.computed_at + adaptive.recalculation_interval)
        )
