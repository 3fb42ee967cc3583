"""The cache of the Redis engine.

Invariants:

* An entry and its tags change in one script: nobody sees the one without the other.
* A tag holds hashes; what counts is whether the entry itself carries the tag. So an entry that expired and was made
  anew without the tag is not found by it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Generic, TypeVar

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
    in_page,
)
from ._redis_room import batches, milliseconds
from ._redis_scripts import DELETE, DESCRIBE_ENTRIES, DROP, INVALIDATE, SET, TIDY_TAGS, WIPE_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._redis_room import Room

__all__ = ("RedisCacheStore",)

T = TypeVar("T")

# Where the value starts, but for the tags: their length, and when the entry was made.
_HEAD = 24


class RedisCacheStore(Generic[T]):
    """A cache on a server. Belongs to the bundle of :func:`open_redis_stores`.

    ``get``, ``set`` and ``delete`` are one round trip. A cancelled call happens on the server wholly or not at all;
    which of the two is not known to who was cancelled.
    """

    __slots__ = ("_entries", "_options", "_room", "_tags")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._options = room.options
        self._entries = room.key(b"c:")
        self._tags = room.key(b"t:")

    async def get(self, hash: str) -> T | None:
        """Give the value under this key, or None when there is none or it has expired.

        What the codec cannot decode is removed, and counts as absent.

        Raises:
          StoreError: The server cannot be asked.
          trio.ClosedResourceError: The stores are closed.
        """
        key = self._entries + check_hash(hash).encode()
        found: bytes | None = await self._room.link.call(b"GET", key)
        if found is None:
            return None
        data, found = Encoded(found), None
        try:
            value: T = self._options.codec.decode(data[_HEAD + int(data[:8], 16) :])
        except Exception:
            await self._room.link.run(DROP, (key, self._tags), hash.encode(), data)
            return None
        return value

    async def set(self, hash: str, value: T, ttl: float, *, tags: Iterable[str] = ()) -> None:
        """Store a value in the place of what the key held before, its tags included.

        Args:
          hash: The key, a non-empty text.
          value: Anything but None.
          ttl: Seconds to live, to the millisecond; 0: for ever; less than 0: expired at once.
          tags: Non-empty texts.

        Raises:
          TypeError: The value is None, or an argument has the wrong type.
          ValueError: ``hash`` or a tag is empty, or ``ttl`` is NaN or infinite.
          StoreError: The value is too large or cannot be encoded, and what the key held before is gone; or the server
            cannot be asked.
          trio.ClosedResourceError: The stores are closed.
        """
        check_hash(hash)
        check_value(value)
        ttl = check_ttl(ttl)
        names = [tag.encode() for tag in check_tags(tags)] if tags != () else []
        try:
            data = self._encode(hash, value)
        except StoreError:
            await self.delete(hash)  # noqa: ASYNC120 - a cancellation counts for more
            raise
        finally:
            # Whoever gets a traceback with the locals of our frames must not get a secret.
            del value
        if ttl < 0:
            await self.delete(hash)
            return
        carried = b"[" + b",".join(json.dumps(tag.decode()).encode() for tag in names) + b"]" if names else b""
        await self._room.link.run(
            SET,
            (self._entries + hash.encode(), self._tags),
            hash.encode(),
            milliseconds(ttl) if ttl else 0,
            b"%08x" % len(carried),
            carried,
            data,
            *names,
        )

    def _encode(self, hash: str, value: T) -> Encoded:
        data = encoded(self._options.codec, hash, value)
        del value
        most = self._options.max_entry_size_bytes
        if most is not None and len(data) > most:
            raise StoreError(f"the value of {hash!r} has {len(data)} bytes, more than max_entry_size_bytes={most}")
        return data

    async def delete(self, hash: str) -> None:
        """Forget what the key holds; no error when it holds nothing."""
        check_hash(hash)
        await self._room.link.run(DELETE, (self._entries + hash.encode(), self._tags), hash.encode())

    async def clear(self, scope: str | None = None) -> None:
        """Forget every entry, or those whose key starts with exactly ``scope``.

        Looks at every key of the server, in batches. Cancelled, it goes on without the caller. What is stored after it
        was called stays.
        """
        prefix = check_scope(scope)

        async def wipe() -> None:
            stamp = await self._room.stamp()
            for names in batches(await self._room.names(b"c:", prefix)):
                hashes = [name.encode() for name in names]
                keys = [self._tags, *(self._entries + hash for hash in hashes)]
                await self._room.link.run(WIPE_ENTRIES, keys, stamp, *hashes)

        await self._room.outliving(wipe, "clearing the cache")

    async def invalidate_tag(self, tag: str) -> int:
        """Forget the entries that carry this tag; says how many live ones there were. One round trip."""
        return await self.invalidate_tags((check_text("tag", tag),))

    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        """Forget the entries that carry any of these tags; each live one counts once. One round trip."""
        names = [tag.encode() for tag in check_tags(tags)]
        count: int = await self._room.link.run(INVALIDATE, (self._tags, self._entries), *names)
        return count

    # For people

    async def list_entries(self, offset: int = 0, limit: int = 50) -> list[CacheEntryInfo]:
        """List the live entries in the order in which they were stored. Looks at every key of the server."""
        page = check_page(offset, limit)
        return in_page(sorted(await self._describe(), key=lambda entry: (entry.created_at, entry.hash)), *page)

    async def get_stats(self) -> CacheStats:
        """Count what is kept. Looks at every key of the server."""
        entries = await self._describe()
        return CacheStats(total_items=len(entries), expired=0, total_bytes=sum(entry.size or 0 for entry in entries))

    async def cleanup(self) -> int:
        """Take what has expired or was evicted out of the tags; says how often. The server itself drops the entries."""
        count = 0
        for names in batches(await self._room.names(b"t:")):
            count += await self._room.link.run(
                TIDY_TAGS, [self._entries, *(self._room.key(b"t:", name) for name in names)]
            )
        return count

    async def _describe(self) -> list[CacheEntryInfo]:
        now, rows = await self._room.describe(DESCRIBE_ENTRIES, b"c:", await self._room.names(b"c:"))
        return [
            CacheEntryInfo(
                hash=name,
                expires_at=0.0 if row[1] < 0 else now + row[1] / 1000,
                created_at=int(row[0]) / 1e6,
                size=row[2],
            )
            for name, row in rows
            if row
        ]
