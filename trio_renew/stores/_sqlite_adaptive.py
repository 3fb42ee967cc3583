"""The adaptive rate limit of the SQLite engine.

Invariants:

* The division of a limit is a row: all processes go by the same one, and whoever finds it too old makes it anew.
* Requests are kept for the longer one of the two windows; the last user request of a resource for a day (or the
  inactivity threshold, if longer) beyond that.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from .._policy.capacity import Capacity, RateLimitConfig, capacity_of
from ..abc import AdaptiveRateLimitStatus
from ._common import check_priority
from ._sqlite_limits import Limits, Window
from ._sqlite_schema import SPLIT, immediate

if TYPE_CHECKING:
    from ..abc import Priority
    from ._common import Options
    from ._sqlite_db import Connection, Database, Look

__all__ = ("SQLiteAdaptiveRateLimitStore",)

#: For how long the last user request of a resource that is otherwise forgotten is remembered.
REMEMBER = 86_400.0

_BACKGROUND = " AND user = 0"
_SPLIT = 'FROM renew_splits WHERE ns = ? AND resource = ? AND "limit" = ?'
_FUTURE = "FROM renew_activity WHERE ns = ? AND resource = ? AND last_user > ?"
_USERS = """SELECT at FROM renew_requests
    WHERE ns = ? AND kind = ? AND resource = ? AND user = 1 AND at + ? > ? ORDER BY at"""
_ANY_BACKGROUND = """SELECT EXISTS (SELECT 1 FROM renew_requests
    WHERE ns = ? AND kind = ? AND resource = ? AND user = 0 AND at + ? > ?)"""


class SQLiteAdaptiveRateLimitStore(Limits):
    """A limit divided between users and background work, shared by all processes that open the file.

    Belongs to the bundle of :func:`open_sqlite_stores`.
    """

    __slots__ = ("_adaptive",)

    _kind = SPLIT
    _tables = (*Limits._tables, "renew_splits", "renew_activity")

    def __init__(self, database: Database, ns: str, options: Options) -> None:
        super().__init__(database, ns, options)
        self._adaptive = options.adaptive_config

    async def acquire(self, resource: str, priority: Priority = "background") -> bool:
        """Count one request if it may proceed. A checkpoint, and atomic."""
        self._key(resource)
        user = check_priority(priority) == "user"

        def work(connection: Connection, look: Look) -> bool:
            with immediate(connection):
                window = self._window(connection, resource, look)
                free = self._is_free(window, user)
                if free:
                    self._count_one(window, user)
            return free

        return await self._database.run(work)

    async def can_proceed(self, resource: str, priority: Priority = "background") -> bool:
        """Say whether a request may proceed now. A checkpoint."""
        self._key(resource)
        user = check_priority(priority) == "user"
        return await self._database.run(
            lambda connection, look: self._is_free(self._window(connection, resource, look), user)
        )

    async def record(self, resource: str, priority: Priority = "background") -> None:
        """Count one request, whether it may proceed or not. A checkpoint."""
        self._key(resource)
        user = check_priority(priority) == "user"

        def work(connection: Connection, look: Look) -> None:
            with immediate(connection):
                self._count_one(self._window(connection, resource, look), user)

        await self._database.run(work)

    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        """Give what is left of the limit, and how it is divided. A checkpoint."""
        self._key(resource)

        def work(connection: Connection, look: Look) -> AdaptiveRateLimitStatus:
            window = self._window(connection, resource, look)
            capacity, _ = self._divided(window)
            count, oldest = window.tally()
            return AdaptiveRateLimitStatus(
                remaining=max(0, window.config.limit - count),
                reset_at=window.now if oldest is None else oldest + window.config.window,
                limit=window.config.limit,
                user_reserved=capacity.user_reserved,
                background_max=capacity.background_max,
                background_paused=capacity.background_paused,
                recent_user_activity=len(self._users(window)),
                reason=capacity.reason,
            )

        return await self._database.run(work)

    async def get_wait_time(self, resource: str, priority: Priority = "background") -> float:
        """Give the seconds until one request may proceed if nobody else's does. A checkpoint."""
        self._key(resource)
        user = check_priority(priority) == "user"

        def work(connection: Connection, look: Look) -> float:
            window = self._window(connection, resource, look)
            capacity, until = self._divided(window)
            if not window.config.limit:
                wait = window.config.window
            elif not user and (capacity.background_paused or not capacity.background_max):
                wait = until - window.now
            else:
                wait = window.wait(window.config.limit)
                if not user:
                    wait = max(wait, window.wait(capacity.background_max, _BACKGROUND))
            return max(wait, self._cooldown_wait(window))

        return await self._database.run(work)

    # --------------------------------------------------------------------------------------------------- our steps

    def _keep(self, config: RateLimitConfig) -> float:
        return max(config.window, self._adaptive.monitoring_window)

    def _config_changes(self, connection: Connection, resource: str, config: RateLimitConfig) -> None:
        with immediate(connection):
            super()._config_changes(connection, resource, config)
            connection.execute("DELETE FROM renew_splits WHERE ns = ? AND resource = ?", (self._ns, resource))

    def _window(self, connection: Connection, resource: str, look: Look) -> Window:
        window = super()._window(connection, resource, look)
        values = (self._ns, resource, window.seen)
        if connection.execute(f"SELECT EXISTS (SELECT 1 {_FUTURE})", values).fetchone()[0]:
            connection.execute(
                """UPDATE renew_activity SET until = until - (last_user - ?), last_user = ?
                WHERE ns = ? AND resource = ?""",
                (window.now, window.now, self._ns, resource),
            )
        return window

    def _is_free(self, window: Window, user: bool) -> bool:
        # A user's request is not refused by the division, but it is a look: the division is made with it.
        capacity, _ = self._divided(window)
        if not self._has_room(window):
            return False
        if user:
            return True
        return not capacity.background_paused and window.tally(_BACKGROUND)[0] < capacity.background_max

    def _count_one(self, window: Window, user: bool) -> None:
        super()._count_one(window, user)
        if user:
            remembered = max(REMEMBER, self._adaptive.sustained_inactivity_threshold)
            window.connection.execute(
                """INSERT INTO renew_activity (ns, resource, last_user, until) VALUES (?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET last_user = excluded.last_user, until = excluded.until""",
                (self._ns, window.key[2], window.now, window.now + remembered),
            )

    def _users(self, window: Window) -> list[float]:
        """Give the instants of the user requests in the monitoring window."""
        values = (*window.key, self._adaptive.monitoring_window, window.seen)
        return [row[0] for row in window.connection.execute(_USERS, values)]

    def _divided(self, window: Window) -> tuple[Capacity, float]:
        """Give the division of the limit, made anew when its interval is over, and the instant when that is."""
        found = self._found(window)
        if found is not None:
            return found
        with nullcontext() if window.connection.in_transaction else immediate(window.connection):
            # Somebody may have been faster.
            return self._found(window) or self._made(window)

    def _found(self, window: Window) -> tuple[Capacity, float] | None:
        row = window.connection.execute(
            f"SELECT made_at, user_reserved, background_max, paused, reason {_SPLIT}",
            (self._ns, window.key[2], window.config.limit),
        ).fetchone()
        if row is None:
            return None
        made_at, user, background, paused, reason = row
        until = made_at + self._adaptive.recalculation_interval
        if made_at > window.seen or until <= window.seen:
            return None
        return Capacity(user, background, bool(paused), reason), until

    def _made(self, window: Window) -> tuple[Capacity, float]:
        connection, now, seen = window.connection, window.now, window.seen
        resource, limit = window.key[2], window.config.limit
        users = self._users(window)
        if not users:
            rows = connection.execute(
                "SELECT last_user FROM renew_activity WHERE ns = ? AND resource = ? AND until > ?",
                (self._ns, resource, seen),
            )
            users = [row[0] for row in rows]
        history = (*window.key, self._keep(window.config), seen)
        background = (now,) if connection.execute(_ANY_BACKGROUND, history).fetchone()[0] else ()
        capacity = capacity_of(limit, users, background, seen, self._adaptive)
        until = now + self._adaptive.recalculation_interval
        connection.execute(
            "INSERT OR REPLACE INTO renew_splits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._ns, resource, limit, now, until),
                *(capacity.user_reserved, capacity.background_max, capacity.background_paused, capacity.reason),
            ),
        )
        return capacity, until
