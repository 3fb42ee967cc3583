"""Many resources by key: values that are resolved once for all who want them, kept for a bounded time, and dropped.

Invariants:

* What is here is what users call, and the hits that skip the decision; the rest is :class:`~._caching.Caching`.
* A hit ends in the step in which its clock was read: nothing is awaited between the reading and the answer.
"""

from __future__ import annotations

import time
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio.lowlevel import checkpoint, enable_ki_protection

from ._caching import Caching
from ._status import CacheStatus
from ._ttl import read_ttl

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ._entries import Entry

__all__ = ("ProviderCache",)

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class ProviderCache(Caching[K, V], Generic[K, V]):
    """Values by key, each resolved once for all who want it. Made by :func:`open_provider_cache`.

    ``len(cache)`` counts the live entries, ``key in cache`` says whether there is one (which is no use of it). An
    empty cache is true. On a closed cache they are 0 and False.
    """

    __slots__ = ()

    @enable_ki_protection
    async def get(self, key: K) -> V:
        """Hand out the value of a key, resolving it first where there is none.

        Exactly one checkpoint when there is one. Cancelling it takes only this caller away: the resolution is not the
        caller's (see ``when_abandoned``).

        Returns:
          What ``resolve(key)`` returned; where ``serve_expired_for`` allows it and the source is down, what it had
          returned before.

        Raises:
          Exception: What the resolution raised, with its own type and traceback, in each caller of it.
          FetchTimeout: The resolution took longer than ``fetch_timeout`` seconds.
          ReentrantFetchError: Called from inside a resolution that this one would wait for.
          trio.ClosedResourceError: The cache is closed, or closed meanwhile.
          RuntimeError: Called from another thread or Trio run.

        Example::

            provider = await cache.get(tenant_id)
        """
        if key not in self._live or not self._fast_thread:
            return await self._obtain(key, waited=False)
        await checkpoint()
        entry = self._live.get(key)
        if (
            entry is not None
            and self._low <= (now := time.time()) < entry.stored + entry.fresh + self._offset
            and get_ident() == self._fast_thread
        ):
            self._low = now
            self._touch(key)
            return entry.value
        entry = None  # what it holds is not ours to keep while we wait
        return await self._obtain(key, waited=True)

    # Protected also for the sake of signal handlers; it costs nothing.
    @enable_ki_protection
    def get_nowait(self, key: K) -> V:
        """Hand out the value of a key if there is one, without waiting. Never a checkpoint.

        Like ``get`` it is a use, and starts the background resolution of an entry that is due.

        Raises:
          trio.WouldBlock: There is none, or it has expired.
          trio.ClosedResourceError: The cache is closed.
          RuntimeError: Called from another thread or Trio run.
        """
        entry: Entry[V] | None
        try:
            entry = self._live[key]
        except KeyError:
            entry = None
        if (
            entry is not None
            and self._low <= (now := time.time()) < entry.stored + entry.fresh + self._offset
            and get_ident() == self._fast_thread
        ):
            self._low = now
            self._touch(key)
            return entry.value
        del entry  # not to be kept by an error's traceback
        return self._get_nowait(key)

    @enable_ki_protection
    def invalidate_tag(self, tag: str) -> int:
        """Drop what carries a tag, here and wherever the bus reaches. Never a checkpoint.

        What is in progress may turn out to carry it: it answers those who wait, and is not kept.

        Returns:
          How many live entries were dropped here.

        Raises:
          trio.ClosedResourceError: The cache is closed.
          TypeError: The tag is no ``str``.
        """
        if not isinstance(tag, str):
            raise TypeError(f"tag must be a str, got {type(tag).__name__}")
        self._check()
        return self._invalidate("tag", tag)

    @enable_ki_protection
    def set_ttl(self, ttl: float | bool) -> None:
        """Change how long values are kept. Never a checkpoint.

        A shorter time holds for what is stored as well, from when it was stored; a longer one for what is stored from
        now on. Never-cached drops everything at once. Other processes are not told.

        Args:
          ttl: Seconds; True: for ever; False, 0 or less: never.

        Raises:
          trio.ClosedResourceError: The cache is closed.
          TypeError: It is neither a number nor a bool.
          ValueError: It is NaN or infinite.
        """
        seconds = read_ttl(ttl)
        self._check()
        # Nothing that is stored outlives the time that held so far.
        shorter = seconds < self._ttl
        self._ttl = seconds
        if not shorter:
            return
        if seconds:
            self._entries.limit(seconds)
        else:
            self._entries.clear()
        self._sweeper.watch()

    def status(self) -> CacheStatus:
        """Take a snapshot. Never a checkpoint; works on a closed cache."""
        return CacheStatus(
            name=self._owner.name,
            entries=len(self),
            max_entries=self._max_entries,
            resolving=len(self._flights) + len(self._fenced),
            waiting=self._callers(),
            closed=self._owner.closed,
        )

    @enable_ki_protection
    def __len__(self) -> int:
        if self._owner.closed:
            return 0
        self._check()
        return self._entries.count(self._time.now())

    @enable_ki_protection
    def __contains__(self, key: object) -> bool:
        if self._owner.closed:
            return False
        self._check()
        entries: Any = self._live
        entry: Entry[V] | None = entries.get(key)
        return entry is not None and self._time.now() < entry.deadline
