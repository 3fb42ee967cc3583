"""The cache of the SQLite engine.

Invariants:

* A value and its tags are written in one transaction, in the place of what the key held before.
* Rows are numbered in the order in which they were stored: beyond a limit the lowest numbers go, expired ones first.
* What cannot be stored leaves nothing behind under its key; what cannot be read is dropped.
* A row that seems to be stored in the future is dated now when it is looked at, and keeps the life it was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._errors import StoreError
from ._common import (
    CacheEntryInfo,
    CacheStats,
    Encoded,
    check_hash,
    check_page,
    check_scope,
    check_tags,
    check_text,
    check_ttl,
    check_value,
    encoded,
)
from ._sqlite_schema import immediate, starts_with

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._common import Options
    from ._sqlite_db import Connection, Database, Look

__all__ = ("SQLiteCacheStore",)

T = TypeVar("T")

#: How many expired rows go in one transaction: others wait for its end.
AT_ONCE = 5000

_FIND = "SELECT value, stored_at, expires_at, id FROM renew_cache WHERE ns = ? AND hash = ?"
_DROP = "DELETE FROM renew_cache WHERE ns = ? AND hash = ?"
_STORE = "INSERT INTO renew_cache (ns, hash, value, size, stored_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
_TAG = "INSERT INTO renew_tags (ns, tag, entry) VALUES (?, ?, ?)"
_WITH_TAG = "SELECT entry FROM renew_tags WHERE ns = ? AND tag = ?"
_LIVE_WITH_TAG = f"""SELECT COUNT(*) FROM renew_cache
    WHERE id IN ({_WITH_TAG}) AND (expires_at IS NULL OR expires_at > ? OR stored_at > ?)"""
_EXPIRED = "ns = ? AND expires_at IS NOT NULL AND expires_at <= ?"
_REDATE = """UPDATE renew_cache SET expires_at = expires_at - (stored_at - :now), stored_at = :now
    WHERE ns = :ns AND stored_at > :seen"""


class SQLiteCacheStore(Generic[T]):
    """A cache in a file: values outlive the process, and all processes that open the file share them.

    Belongs to the bundle of :func:`open_sqlite_stores`. Values are encoded, so what is given out is never the object
    that was put in.
    """

    __slots__ = ("_database", "_ns", "_options")

    def __init__(self, database: Database, ns: str, options: Options) -> None:
        self._database = database
        self._ns = ns
        self._options = options
        database.on_cleaning(self.clean)

    # ---------------------------------------------------------------------------------------------- the protocol

    async def get(self, hash: str) -> T | None:
        """Give the value under this key, or None when there is none or it has expired. A checkpoint.

        A row that the codec cannot decode is dropped, and absent.
        """
        key = (self._ns, check_hash(hash))

        def work(connection: Connection, look: Look) -> tuple[Encoded, int] | None:
            row = connection.execute(_FIND, key).fetchone()
            if row is None:
                return None
            data, (_, stored_at, expires_at, number) = Encoded(row[0]), row
            del row, _
            now, seen = look()
            if stored_at > seen:
                self._redate(connection, now, seen)
            elif expires_at is not None and expires_at <= seen:
                connection.execute(f"{_DROP} AND id = ?", (*key, number))
                return None
            return data, number

        found = await self._database.run(work)
        if found is None:
            return None
        try:
            value: T = self._options.codec.decode(bytes(found[0]))
        except Exception:
            await self._database.run(lambda connection, _: connection.execute(f"{_DROP} AND id = ?", (*key, found[1])))
            return None
        return value

    async def set(self, hash: str, value: T, ttl: float, *, tags: Iterable[str] = ()) -> None:
        """Store a value in the place of what the key held before, its tags included. A checkpoint, and atomic.

        Args:
          hash: The key, a non-empty text.
          value: Anything but None.
          ttl: Seconds to live; 0: for ever; less than 0: expired at once.
          tags: Non-empty texts.

        Raises:
          StoreError: It is larger than a limit, or the codec cannot encode it; what the key held before is gone then.
        """
        key = (self._ns, check_hash(hash))
        check_value(value)
        ttl = check_ttl(ttl)
        labels = check_tags(tags)
        self._database.owner.check()
        data = self._encode(hash, value)
        # Whoever gets a traceback with the locals of our frames must not get a secret.
        del value
        if isinstance(data, StoreError):
            await self._database.run(lambda connection, _: connection.execute(_DROP, key))
            raise data

        def work(connection: Connection, look: Look) -> None:
            with immediate(connection):
                now, seen = look()
                connection.execute(_DROP, key)
                if ttl < 0:
                    return
                row = (*key, data, len(data), now, now + ttl if ttl else None)
                number = connection.execute(_STORE, row).lastrowid
                if labels:
                    connection.executemany(_TAG, [(self._ns, tag, number) for tag in labels])
                self._make_room(connection, seen)

        await self._database.run(work)

    async def delete(self, hash: str) -> None:
        """Forget what the key holds. A checkpoint."""
        key = (self._ns, check_hash(hash))
        await self._database.run(lambda connection, _: connection.execute(_DROP, key))

    async def clear(self, scope: str | None = None) -> None:
        """Forget every entry, or those whose key starts with exactly ``scope``. A checkpoint, and atomic."""
        prefix = check_scope(scope)
        where, values = starts_with("hash", prefix)
        statement = f"DELETE FROM renew_cache WHERE ns = ?{where}"
        await self._database.run(lambda connection, _: connection.execute(statement, (self._ns, *values)))

    async def invalidate_tag(self, tag: str) -> int:
        """Forget the entries that carry this tag; says how many live ones there were. A checkpoint, and atomic."""
        return await self.invalidate_tags((check_text("tag", tag),))

    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        """Forget the entries that carry any of these tags; each live one counts once. A checkpoint, and atomic."""
        labels = check_tags(tags)

        def work(connection: Connection, look: Look) -> int:
            dropped = 0
            with immediate(connection):
                _, seen = look()
                for tag in labels:
                    # A row that is gone is not found under its next tag.
                    dropped += connection.execute(_LIVE_WITH_TAG, (self._ns, tag, seen, seen)).fetchone()[0]
                    connection.execute(f"DELETE FROM renew_cache WHERE id IN ({_WITH_TAG})", (self._ns, tag))
            return dropped

        return await self._database.run(work)

    # ------------------------------------------------------------------------------------------------- for people

    async def list_entries(self, offset: int = 0, limit: int = 50) -> list[CacheEntryInfo]:
        """List the live entries in the order in which they were stored. A checkpoint."""
        start, count = check_page(offset, limit)

        def work(connection: Connection, look: Look) -> list[tuple[Any, ...]]:
            seen = self._redated(connection, look)
            return connection.execute(
                """SELECT hash, expires_at, stored_at, size FROM renew_cache
                WHERE ns = ? AND (expires_at IS NULL OR expires_at > ?) ORDER BY id LIMIT ? OFFSET ?""",
                (self._ns, seen, count, start),
            ).fetchall()

        rows = await self._database.run(work)
        return [
            CacheEntryInfo(hash=key, expires_at=end or 0.0, created_at=stored, size=size)
            for key, end, stored, size in rows
        ]

    async def get_stats(self) -> CacheStats:
        """Count what is kept. A checkpoint."""

        def work(connection: Connection, look: Look) -> tuple[int, int, int]:
            seen = self._redated(connection, look)
            items, size = self._usage(connection)
            count = f"SELECT COUNT(*) FROM renew_cache WHERE {_EXPIRED}"
            return items, connection.execute(count, (self._ns, seen)).fetchone()[0], size

        items, expired, size = await self._database.run(work)
        return CacheStats(
            total_items=items,
            expired=expired,
            total_bytes=size,
            max_items=self._options.max_items,
            max_total_bytes=self._options.max_total_bytes,
        )

    async def cleanup(self) -> int:
        """Remove what has expired; says how many entries that were. A checkpoint."""
        removed = some = (await self._database.run(self.clean))[0]
        while some == AT_ONCE:
            some = (await self._database.run(self.clean))[0]
            removed += some
        return removed

    # --------------------------------------------------------------------------------------------------- our steps

    def _encode(self, hash: str, value: T) -> Encoded | StoreError:
        try:
            data = encoded(self._options.codec, hash, value)
        except StoreError as exc:
            return exc
        for name in ("max_entry_size_bytes", "max_total_bytes"):
            most = getattr(self._options, name)
            if most is not None and len(data) > most:
                return StoreError(f"the value of {hash!r} has {len(data)} bytes, more than {name}={most}")
        return data

    def _usage(self, connection: Connection) -> tuple[int, int]:
        row = connection.execute("SELECT items, bytes FROM renew_usage WHERE ns = ?", (self._ns,)).fetchone()
        return row or (0, 0)

    def _make_room(self, connection: Connection, seen: float) -> None:
        """Let go of what is beyond the limits. The newest row is within them by itself."""
        most, most_bytes = self._options.max_items, self._options.max_total_bytes

        def over(items: int, size: int) -> bool:
            return (most is not None and items > most) or (most_bytes is not None and size > most_bytes)

        if (most is None and most_bytes is None) or not over(*self._usage(connection)):
            return
        connection.execute(f"DELETE FROM renew_cache WHERE {_EXPIRED}", (self._ns, seen))
        items, size = self._usage(connection)
        last = 0
        rows = connection.execute("SELECT id, size FROM renew_cache WHERE ns = ? ORDER BY id", (self._ns,))
        while over(items, size):
            last, its_size = rows.fetchone()
            items, size = items - 1, size - its_size
        connection.execute("DELETE FROM renew_cache WHERE ns = ? AND id <= ?", (self._ns, last))

    def _redate(self, connection: Connection, now: float, seen: float) -> None:
        connection.execute(_REDATE, {"ns": self._ns, "now": now, "seen": seen})

    def _redated(self, connection: Connection, look: Look) -> float:
        now, seen = look()
        found = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM renew_cache WHERE ns = ? AND stored_at > ?)", (self._ns, seen)
        )
        if found.fetchone()[0]:
            self._redate(connection, now, seen)
        return seen

    def clean(self, connection: Connection, look: Look) -> tuple[int, float | None]:
        """Remove what has expired, or some of it, and say when something will next."""
        seen = self._redated(connection, look)
        end = "SELECT MIN(expires_at) FROM renew_cache WHERE ns = ? AND expires_at IS NOT NULL"
        due = connection.execute(end, (self._ns,)).fetchone()[0]
        if due is None or due > seen:
            return 0, due
        some = f"SELECT id FROM renew_cache WHERE {_EXPIRED} LIMIT {AT_ONCE}"
        removed = connection.execute(f"DELETE FROM renew_cache WHERE id IN ({some})", (self._ns, seen)).rowcount
        return removed, connection.execute(end, (self._ns,)).fetchone()[0]
