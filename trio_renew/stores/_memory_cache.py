"""The cache of the memory engine.

Invariants:

* ``_entries`` is in order of use, the least recently used first; entries beyond a limit go from that end.
* ``_bytes`` is the sum of the entries' sizes (0 where nothing is measured) and never exceeds ``max_total_bytes``.
* ``_tags`` holds exactly the tags of the entries that are kept: no empty set, no key without an entry.
* Entries are the objects themselves, never copies; the codec only measures them.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from trio.lowlevel import enable_ki_protection

from .._errors import StoreError
from ._common import (
    CacheEntryInfo,
    CacheStats,
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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._common import Options
    from ._memory_life import Life

__all__ = ("MemoryCacheStore",)

T = TypeVar("T")


class _Entry(Generic[T]):
    __slots__ = ("accessed", "created", "deadline", "number", "size", "tags", "value")

    value: T
    tags: tuple[str, ...]
    size: int
    number: int
    created: float
    accessed: float
    deadline: float


class MemoryCacheStore(Generic[T]):
    """A cache in this process: exact least-recently-used order, tags, limits that always hold.

    It keeps the objects that it is given, so whoever changes one changes it for everybody. Belongs to the bundle of
    :func:`open_memory_stores`. ``get_nowait`` and ``set_nowait`` are the same without a checkpoint.
    """

    __slots__ = ("_bounded", "_bytes", "_entries", "_life", "_measured", "_number", "_options", "_tags")

    def __init__(self, life: Life, options: Options) -> None:
        self._life = life
        self._options = options
        self._measured = options.max_entry_size_bytes is not None or options.max_total_bytes is not None
        self._bounded = self._measured or options.max_items is not None
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._tags: dict[str, set[str]] = {}
        self._bytes = 0
        self._number = 0

    # ---------------------------------------------------------------------------------------------- the protocol

    @enable_ki_protection
    def get_nowait(self, hash: str) -> T | None:
        """Do what :meth:`get` does, without a checkpoint."""
        try:
            entry = self._entries.get(hash)
        except TypeError:
            # It cannot be hashed.
            entry = None
        if entry is None:
            check_hash(hash)
            if self._life.closed:
                self._life.check()
            return None
        now = self._life.now()
        if now >= entry.deadline:
            self._drop(hash)
            return None
        entry.accessed = now
        self._entries.move_to_end(hash)
        return entry.value

    async def get(self, hash: str) -> T | None:
        """Give the value under this key, or None when there is none or it has expired. One checkpoint."""
        await self._life.step()
        return self.get_nowait(hash)

    @enable_ki_protection
    def set_nowait(self, hash: str, value: T, ttl: float, *, tags: Iterable[str] = ()) -> None:
        """Do what :meth:`set` does, without a checkpoint."""
        # What is right in the common case is not worth a call.
        if type(hash) is not str or not hash or not hash.isascii():
            check_hash(hash)
        if value is None:
            check_value(value)
        if type(ttl) is not float or not -inf < ttl < inf:
            ttl = check_ttl(ttl)
        labels = check_tags(tags) if tags != () else ()
        life = self._life
        if life.closed:
            life.check()
        size = 0
        if self._measured:
            try:
                size = self._measure(hash, value)
            except StoreError:
                # A traceback may show the locals of this frame, and the value may be a secret.
                del value
                raise
        now = life.now()
        entry = self._entries.get(hash)
        if ttl < 0:
            if entry is not None:
                self._drop(hash)
            return
        if entry is None:
            entry = self._entries[hash] = _Entry()
        else:
            self._entries.move_to_end(hash)
            self._bytes -= entry.size
            if entry.tags:
                self._untag(hash, entry)
        entry.value = value
        entry.tags = labels
        entry.size = size
        entry.number = self._number = self._number + 1
        entry.created = entry.accessed = now
        if ttl:
            entry.deadline = now + ttl
            if life.asleep:
                life.wake()
        else:
            entry.deadline = inf
        if labels:
            for tag in labels:
                self._tags.setdefault(tag, set()).add(hash)
        if self._bounded:
            self._bytes += size
            self._make_room()

    async def set(self, hash: str, value: T, ttl: float, *, tags: Iterable[str] = ()) -> None:
        """Store a value in the place of what the key held before, its tags included. One checkpoint.

        Args:
          hash: The key, a non-empty text.
          value: Anything but None.
          ttl: Seconds to live; 0: for ever; less than 0: expired at once.
          tags: Non-empty texts.

        Raises:
          StoreError: It is larger than a limit, or a limit is set and the codec cannot encode it; what the key held
            before is gone then.
        """
        await self._life.step()
        try:
            self.set_nowait(hash, value, ttl, tags=tags)
        except StoreError:
            del value
            raise

    async def delete(self, hash: str) -> None:
        """Forget what the key holds. One checkpoint."""
        check_hash(hash)
        await self._life.step()
        self._forget((hash,) if hash in self._entries else ())

    async def clear(self, scope: str | None = None) -> None:
        """Forget every entry, or those whose key starts with exactly ``scope``. One checkpoint."""
        prefix = check_scope(scope)
        await self._life.step()
        self._forget([key for key in self._entries if key.startswith(prefix)])

    async def invalidate_tag(self, tag: str) -> int:
        """Forget the entries that carry this tag; says how many live ones there were. One checkpoint."""
        return await self.invalidate_tags((check_text("tag", tag),))

    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        """Forget the entries that carry any of these tags; each live one counts once. One checkpoint."""
        wanted = check_tags(tags)
        await self._life.step()
        return self._forget({key for tag in wanted for key in self._tags.get(tag, ())})

    # ------------------------------------------------------------------------------------------------- for people

    async def list_entries(self, offset: int = 0, limit: int = 50) -> list[CacheEntryInfo]:
        """List the live entries in the order in which they were stored. One checkpoint."""
        page = check_page(offset, limit)
        await self._life.step()
        now = self._life.now()
        live = [item for item in self._entries.items() if now < item[1].deadline]
        live.sort(key=lambda item: item[1].number)
        return [self._info(key, entry) for key, entry in in_page(live, *page)]

    async def get_lru_items(self, limit: int = 10) -> list[CacheEntryInfo]:
        """List the live entries that would be dropped first, in that order. One checkpoint."""
        page = check_page(0, limit)
        await self._life.step()
        now = self._life.now()
        live = [item for item in self._entries.items() if now < item[1].deadline]
        return [self._info(key, entry) for key, entry in in_page(live, *page)]

    async def get_stats(self) -> CacheStats:
        """Count what is kept. One checkpoint."""
        await self._life.step()
        now = self._life.now()
        return CacheStats(
            total_items=len(self._entries),
            expired=sum(now >= entry.deadline for entry in self._entries.values()),
            total_bytes=self._bytes if self._measured else None,
            max_items=self._options.max_items,
            max_total_bytes=self._options.max_total_bytes,
        )

    async def cleanup(self) -> int:
        """Remove what has expired; says how many entries that were. One checkpoint."""
        await self._life.step()
        return self.sweep(self.sweepable())[0]

    def _info(self, key: str, entry: _Entry[T]) -> CacheEntryInfo:
        instant = self._life.instant
        return CacheEntryInfo(
            hash=key,
            expires_at=0.0 if entry.deadline == inf else instant(entry.deadline),
            created_at=instant(entry.created),
            last_accessed=instant(entry.accessed),
            size=entry.size if self._measured else None,
        )

    # --------------------------------------------------------------------------------------------------- our steps

    def _measure(self, hash: str, value: T) -> int:
        options = self._options
        try:
            size = len(encoded(options.codec, hash, value))
        except StoreError:
            self._forget((hash,) if hash in self._entries else ())
            del value
            raise
        del value
        for name in ("max_entry_size_bytes", "max_total_bytes"):
            most = getattr(options, name)
            if most is not None and size > most:
                self._forget((hash,) if hash in self._entries else ())
                raise StoreError(f"the value of {hash!r} has {size} bytes, more than {name}={most}")
        return size

    def _make_room(self) -> None:
        most, most_bytes = self._options.max_items, self._options.max_total_bytes
        while (most is not None and len(self._entries) > most) or (most_bytes is not None and self._bytes > most_bytes):
            self._drop(next(iter(self._entries)))

    def _drop(self, hash: str) -> _Entry[T]:
        entry = self._entries.pop(hash)
        self._bytes -= entry.size
        if entry.tags:
            self._untag(hash, entry)
        return entry

    def _untag(self, hash: str, entry: _Entry[T]) -> None:
        for tag in entry.tags:
            keys = self._tags[tag]
            keys.discard(hash)
            if not keys:
                del self._tags[tag]

    @enable_ki_protection
    def _forget(self, keys: Iterable[str]) -> int:
        now = self._life.now()
        return sum(now < self._drop(key).deadline for key in keys)

    def sweepable(self) -> list[str]:
        """Give the keys of what is kept."""
        return list(self._entries)

    @enable_ki_protection
    def sweep(self, keys: list[str]) -> tuple[int, bool]:
        """Remove what has expired among these keys."""
        now = self._life.now()
        removed, more = 0, False
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and now >= entry.deadline:
                self._drop(key)
                removed += 1
            elif entry is not None and entry.deadline != inf:
                more = True
        return removed, more

    def redate(self, now: float) -> None:
        """Date now what seems to come from the future."""
        for entry in self._entries.values():
            if entry.created > now:
                entry.deadline -= entry.created - now
                entry.created = now
            entry.accessed = min(entry.accessed, now)

    def close(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._tags.clear()
        self._bytes = 0
