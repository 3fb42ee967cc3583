"""The rate limits of the SQLite engine.

Invariants:

* Asking and counting is one transaction: never more than the limit proceed, in all processes together.
* A request is kept as long as the window of the store that counted it; it counts while less than the window of the
  store that asks has passed. One that seems to come from the future is dated now when it is looked at.
* The two kinds of limits (``_kind``) share no rows. Configs are this store object's.
* What is kept for a resource goes when nothing of it can matter any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..abc import RateLimitStatus
from ._common import RateLimitStats, ResourceInfo, check_config, check_instant, check_scope, check_text
from ._sqlite_schema import PLAIN, immediate, starts_with

if TYPE_CHECKING:
    from .._policy.capacity import RateLimitConfig
    from ._common import Options
    from ._sqlite_db import Connection, Database, Look

__all__ = ("Limits", "SQLiteRateLimitStore", "Window")

_OF = "ns = ? AND kind = ? AND resource = ?"
# The first condition finds the place in the index, the second one is exact.
_IN_WINDOW = f"{_OF} AND at > ? AND at + ? > ?"
_LEFT = f"DELETE FROM renew_requests WHERE {_OF} AND at < ? AND until <= ?"
_COUNT_ONE = "INSERT INTO renew_requests (ns, kind, resource, at, until, user) VALUES (?, ?, ?, ?, ?, ?)"
_COOL = """INSERT INTO renew_cooldowns (ns, kind, resource, set_at, until) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET set_at = excluded.set_at, until = excluded.until WHERE excluded.until > until"""
# Wider than any rounding of an instant.
_MARGIN = 0.001


class Window(NamedTuple):
    """The requests of one resource that count at one moment."""

    connection: Connection
    key: tuple[str, int, str]
    config: RateLimitConfig
    now: float
    seen: float

    @property
    def bounds(self) -> tuple[str | int | float, ...]:
        """The values of the condition for what is in the window."""
        return (*self.key, self.now - self.config.window - _MARGIN, self.config.window, self.seen)

    def tally(self, only: str = "") -> tuple[int, float | None]:
        """Count the requests, and give the instant of the oldest one."""
        question = f"SELECT COUNT(*), MIN(at) FROM renew_requests WHERE {_IN_WINDOW}{only}"
        found: tuple[int, float | None] = self.connection.execute(question, self.bounds).fetchone()
        return found

    def wait(self, most: int, only: str = "") -> float:
        """Give the seconds until fewer than ``most`` of them are left."""
        count = self.tally(only)[0]
        if count < most:
            return 0.0
        question = f"SELECT at FROM renew_requests WHERE {_IN_WINDOW}{only} ORDER BY at LIMIT 1 OFFSET ?"
        leaves: float = self.connection.execute(question, (*self.bounds, count - most)).fetchone()[0]
        return leaves + self.config.window - self.now


def _redate(connection: Connection, where: str, values: tuple[str | int, ...], now: float, seen: float) -> None:
    """Date now what seems to come from the future."""
    question = f"SELECT EXISTS (SELECT 1 FROM renew_requests WHERE {where} AND at > ?)"
    if connection.execute(question, (*values, seen)).fetchone()[0]:
        statement = f"UPDATE renew_requests SET until = until - (at - ?), at = ? WHERE {where} AND at > ?"
        connection.execute(statement, (now, now, *values, seen))


class Limits:
    """What both kinds of limits have: configs, cooldowns, listings, and requests in a window."""

    __slots__ = ("_configs", "_database", "_default", "_ns")

    _kind: ClassVar[int]
    #: The tables that have rows for a resource; the first two have those of both kinds.
    _tables: ClassVar[tuple[str, ...]] = ("renew_requests", "renew_cooldowns")

    def __init__(self, database: Database, ns: str, options: Options) -> None:
        self._database = database
        self._ns = ns
        self._default = options.default_config
        self._configs = dict(options.resource_configs)
        database.on_cleaning(self.clean)

    # ------------------------------------------------------------------------------------- cooldowns and configs

    async def set_cooldown(self, resource: str, until: float) -> None:
        """Refuse everything for this resource until that instant. A checkpoint.

        Args:
          resource: Its name.
          until: POSIX seconds. The later one of two stays; one that has passed changes nothing.
        """
        key = self._key(resource)
        until = check_instant("until", until)

        def work(connection: Connection, look: Look) -> None:
            with immediate(connection):
                now, seen = look()
                self._cooldown(connection, resource, now, seen)
                if until > seen:
                    connection.execute(_COOL, (*key, now, until))

        await self._database.run(work)

    async def get_cooldown(self, resource: str) -> float | None:
        """Give the instant until which this resource is refused; None: it is not. A checkpoint."""
        self._key(resource)
        return await self._database.run(lambda connection, look: self._cooldown(connection, resource, *look()))

    async def clear_cooldown(self, resource: str) -> None:
        """End the cooldown of this resource, if there is one. A checkpoint."""
        key = self._key(resource)
        statement = f"DELETE FROM renew_cooldowns WHERE {_OF}"
        await self._database.run(lambda connection, _: connection.execute(statement, key))

    async def set_resource_config(self, resource: str, config: RateLimitConfig) -> None:
        """Give this resource a limit of its own in this store object; what is counted stays. A checkpoint."""
        self._key(resource)
        check_config(config)
        await self._database.run(lambda connection, _: self._config_changes(connection, resource, config))
        self._configs[resource] = config

    async def get_resource_config(self, resource: str) -> RateLimitConfig:
        """Give the limit of this resource: its own, or the default. A checkpoint."""
        self._key(resource)
        await self._database.step()
        return self._config(resource)

    # ------------------------------------------------------------------------------------------------- for people

    async def list_resources(self) -> list[ResourceInfo]:
        """List the resources for which something is counted or a cooldown runs, by name. A checkpoint."""
        return await self._database.run(self._list)

    async def get_stats(self) -> RateLimitStats:
        """Count them. A checkpoint."""
        infos = await self._database.run(self._list)
        return RateLimitStats(
            total_resources=len(infos),
            active_resources=sum(info.request_count > 0 for info in infos),
            rate_limited_resources=sum(
                info.request_count >= info.limit or info.cooldown_until is not None for info in infos
            ),
            total_requests=sum(info.request_count for info in infos),
        )

    async def reset(self, resource: str) -> None:
        """Forget what is counted for this resource; its config and its cooldown stay. A checkpoint, and atomic."""
        self._key(resource)
        await self._database.run(
            lambda connection, _: self._forget(connection, " AND resource = ?", (resource,), cooldowns=False)
        )

    async def cleanup(self) -> int:
        """Forget what has left its window; says for how many resources nothing is kept any more. A checkpoint."""
        return (await self._database.run(self.clean))[0]

    async def clear(self, scope: str | None = None) -> None:
        """Forget what is counted and the cooldowns, of all or of names that start with ``scope``. A checkpoint."""
        where, values = starts_with("resource", check_scope(scope))
        await self._database.run(lambda connection, _: self._forget(connection, where, values, cooldowns=True))

    # --------------------------------------------------------------------------------------------------- our steps

    def _key(self, resource: str) -> tuple[str, int, str]:
        return self._ns, self._kind, check_text("resource", resource)

    def _config(self, resource: str) -> RateLimitConfig:
        return self._configs.get(resource, self._default)

    def _keep(self, config: RateLimitConfig) -> float:
        """Give the seconds for which a request is kept."""
        return config.window

    def _config_changes(self, connection: Connection, resource: str, config: RateLimitConfig) -> None:
        keep = self._keep(config)
        statement = f"UPDATE renew_requests SET until = at + ? WHERE {_OF} AND until < at + ?"
        connection.execute(statement, (keep, *self._key(resource), keep))

    def _window(self, connection: Connection, resource: str, look: Look) -> Window:
        """Look at the window of a resource, having dated now what seems to come from the future."""
        now, seen = look()
        window = Window(connection, self._key(resource), self._config(resource), now, seen)
        _redate(connection, _OF, window.key, now, seen)
        return window

    def _cooldown(self, connection: Connection, resource: str, now: float, seen: float) -> float | None:
        key = self._key(resource)
        row = connection.execute(f"SELECT set_at, until FROM renew_cooldowns WHERE {_OF}", key).fetchone()
        if row is None:
            return None
        set_at, until = row
        if set_at > seen:
            # The clock has gone back: a cooldown lasts no longer than it was meant to.
            until -= set_at - now
            statement = f"UPDATE renew_cooldowns SET set_at = ?, until = ? WHERE {_OF}"
            connection.execute(statement, (now, until, *key))
        return until if until > seen else None

    def _cooldown_wait(self, window: Window) -> float:
        until = self._cooldown(window.connection, window.key[2], window.now, window.seen)
        return 0.0 if until is None else until - window.now

    def _has_room(self, window: Window) -> bool:
        # The cooldown first: a look dates it where the clock has gone back, also while the window is full.
        cooling = self._cooldown(window.connection, window.key[2], window.now, window.seen) is not None
        return not cooling and window.tally()[0] < window.config.limit

    def _count_one(self, window: Window, user: bool) -> None:
        config, now = window.config, window.now
        window.connection.execute(_LEFT, (*window.key, now - config.window + _MARGIN, window.seen))
        window.connection.execute(_COUNT_ONE, (*window.key, now, now + self._keep(config), user))

    def _list(self, connection: Connection, look: Look) -> list[ResourceInfo]:
        names: set[str] = set()
        for table in self._tables[:2]:
            rows = connection.execute(
                f"SELECT DISTINCT resource FROM {table} WHERE ns = ? AND kind = ?", (self._ns, self._kind)
            )
            names.update(row[0] for row in rows)
        infos: list[ResourceInfo] = []
        for resource in sorted(names):
            window = self._window(connection, resource, look)
            count = window.tally()[0]
            until = self._cooldown(connection, resource, window.now, window.seen)
            if count or until is not None:
                infos.append(ResourceInfo(resource, count, window.config.limit, window.config.window, until))
        return infos

    def _of_kind(self, table: str) -> str:
        return f"{table} WHERE ns = ?" + (f" AND kind = {self._kind}" if table in Limits._tables else "")

    def _forget(self, connection: Connection, where: str, values: tuple[str, ...], *, cooldowns: bool) -> None:
        with immediate(connection):
            for table in self._tables:
                if cooldowns or table != "renew_cooldowns":
                    connection.execute(f"DELETE FROM {self._of_kind(table)}{where}", (self._ns, *values))

    def clean(self, connection: Connection, look: Look) -> tuple[int, float | None]:
        """Forget what is over, and say when something will be next."""
        now, seen = look()
        _redate(connection, "ns = ? AND kind = ?", (self._ns, self._kind), now, seen)
        over: set[str] = set()
        for table in self._tables:
            which = f"{self._of_kind(table)} AND until <= ?"
            rows = connection.execute(f"SELECT DISTINCT resource FROM {which}", (self._ns, seen)).fetchall()
            if rows:
                over.update(row[0] for row in rows)
                connection.execute(f"DELETE FROM {which}", (self._ns, seen))
        ends: list[float] = []
        for table in self._tables:
            which = self._of_kind(table)
            found = connection.execute(f"SELECT MIN(until) FROM {which}", (self._ns,)).fetchone()[0]
            if found is not None:
                ends.append(found)
            for resource in list(over):
                question = f"SELECT EXISTS (SELECT 1 FROM {which} AND resource = ?)"
                if connection.execute(question, (self._ns, resource)).fetchone()[0]:
                    over.discard(resource)
        return len(over), min(ends, default=None)


class SQLiteRateLimitStore(Limits):
    """A sliding window per resource, shared by all processes that open the file.

    Belongs to the bundle of :func:`open_sqlite_stores`.
    """

    __slots__ = ()

    _kind = PLAIN

    async def acquire(self, resource: str) -> bool:
        """Count one request if it may proceed. A checkpoint, and atomic."""
        self._key(resource)

        def work(connection: Connection, look: Look) -> bool:
            with immediate(connection):
                window = self._window(connection, resource, look)
                free = self._has_room(window)
                if free:
                    self._count_one(window, user=False)
            return free

        return await self._database.run(work)

    async def can_proceed(self, resource: str) -> bool:
        """Say whether a request may proceed now. A checkpoint."""
        self._key(resource)
        return await self._database.run(
            lambda connection, look: self._has_room(self._window(connection, resource, look))
        )

    async def record(self, resource: str) -> None:
        """Count one request, whether it may proceed or not. A checkpoint."""
        self._key(resource)

        def work(connection: Connection, look: Look) -> None:
            with immediate(connection):
                self._count_one(self._window(connection, resource, look), user=False)

        await self._database.run(work)

    async def get_status(self, resource: str) -> RateLimitStatus:
        """Give what is left of the limit. A checkpoint."""
        self._key(resource)

        def work(connection: Connection, look: Look) -> RateLimitStatus:
            window = self._window(connection, resource, look)
            count, oldest = window.tally()
            limit = window.config.limit
            reset_at = window.now if oldest is None else oldest + window.config.window
            return RateLimitStatus(remaining=max(0, limit - count), reset_at=reset_at, limit=limit)

        return await self._database.run(work)

    async def get_wait_time(self, resource: str) -> float:
        """Give the seconds until one request may proceed if nobody else's does. A checkpoint."""
        self._key(resource)

        def work(connection: Connection, look: Look) -> float:
            window = self._window(connection, resource, look)
            limit = window.config.limit
            wait = window.wait(limit) if limit else window.config.window
            return max(wait, self._cooldown_wait(window))

        return await self._database.run(work)
