"""What a cache holds: a lean store with expiry, a bound, and tags. No clock and no task: the instants are handed in.

Invariants:

* ``map`` is in order of use: the first is the least recently used. An entry is *live* while ``now < stored + life``;
  past that it may be kept for a grace, and then it is dropped by :meth:`Entries.sweep`.
* Each entry that ends belongs to one *chunk*: a list of at most ``SIZE`` keys with a bound below and above their
  deadlines. The chunks stand in a heap by the lower bound. So an expired entry is found without a heap of entries,
  and work comes in pieces of at most ``SIZE``. Chunks hold keys, never values.
* A chunk's list may name keys that have left it (deleted, stored anew); a full chunk that has lost three quarters of
  them is dissolved into the open one, so that the lists never grow far beyond the entries. An empty chunk lists none.
* A heap item counts while its ticket is the chunk's and the chunk has entries. The others are purged as soon as there
  are many, however they came about.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ("Entries", "Entry")

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")

#: How many keys a chunk takes.
SIZE = 256
_SPARSE = SIZE // 4


class Entry(Generic[V]):
    """A value and its life. It is kept small: there may be millions.

    Attributes:
      value: The value.
      stored: When it was stored.
      fresh: For how many seconds after that a hit needs no further thought.
      chunk: Where its key is listed; None when it never ends.
    """

    __slots__ = ("chunk", "fresh", "stored", "value")

    def __init__(self, value: V, stored: float, life: float, refresh_at: float | None) -> None:
        self.value = value
        self.stored = stored
        self.chunk: _Chunk | None = None
        self.live_for(life, refresh_at)

    @property
    def life(self) -> float:
        """Seconds from ``stored`` to the deadline."""
        return self.fresh

    @property
    def deadline(self) -> float:
        """From here on it is absent."""
        return self.stored + self.life

    def live_for(self, life: float, refresh_at: float | None) -> None:
        """Set its life."""
        self.fresh = life


class AgingEntry(Entry[V]):
    """An entry that is due for renewal before it ends."""

    __slots__ = ("_life",)

    @property
    def life(self) -> float:
        """Seconds from ``stored`` to the deadline."""
        return self._life

    def live_for(self, life: float, refresh_at: float | None) -> None:
        """Set its life."""
        assert refresh_at is not None
        self._life = life
        # Without an end there is nothing to be a fraction of.
        self.fresh = life if life == inf else life * refresh_at


class _Chunk:
    __slots__ = ("keys", "latest", "live", "soonest", "ticket")

    def __init__(self) -> None:
        self.keys: list[Any] = []
        #: How many entries belong to it.
        self.live = 0
        #: No deadline of its entries is before the one, or after the other.
        self.soonest = inf
        self.latest = -inf
        self.ticket = 0

    def empty(self) -> None:
        """All have left it: what it lists is of no use, and nor is its item in the heap."""
        self.keys = []
        self.live = 0
        self.soonest, self.latest = inf, -inf


class Entries(Generic[K, V]):
    """The entries of one cache.

    Args:
      max_entries: How many there may be, those in their grace included.
      grace: For how many seconds past its deadline an entry is kept.
      refresh_at: After which fraction of its life an entry is due; None: never.

    Attributes:
      map: By key, least recently used first. Only ``move_to_end`` may be called on it from outside.
      failed_at: When the last resolution of a key that is held failed, since the last one that did not.
    """

    __slots__ = (
        "_grace",
        "_heap",
        "_kind",
        "_max",
        "_open",
        "_refresh_at",
        "_tagged",
        "_tags_of",
        "_tickets",
        "failed_at",
        "map",
    )

    def __init__(self, max_entries: int, grace: float = 0.0, refresh_at: float | None = None) -> None:
        self.map: OrderedDict[K, Entry[V]] = OrderedDict()
        self.failed_at: dict[K, float] = {}
        self._max = max_entries
        self._grace = grace
        self._refresh_at = refresh_at
        self._kind: type[Entry[V]] = Entry if refresh_at is None else AgingEntry
        self._open = _Chunk()
        self._heap: list[tuple[float, int, _Chunk]] = []
        self._tickets = count(1)
        self._tags_of: dict[K, tuple[str, ...]] = {}
        self._tagged: dict[str, dict[K, None]] = {}

    # One entry

    def store(self, key: K, value: V, now: float, life: float, tags: tuple[str, ...] = ()) -> None:
        """Put an entry in the place of what the key held, making room for it."""
        self.drop(key)
        while len(self.map) >= self._max:
            self._evict(now)
        entry = self.map[key] = self._kind(value, now, life, self._refresh_at)
        if life < inf:
            self._place(key, entry, now + life)
        if tags:
            self._tags_of[key] = names = tuple(dict.fromkeys(tags))
            for tag in names:
                self._tagged.setdefault(tag, {})[key] = None

    def drop(self, key: K) -> Entry[V] | None:
        """Forget what a key holds, live or not, and all that belongs to it."""
        entry = self.map.pop(key, None)
        if entry is not None:
            self._forget(key, entry)
        return entry

    def _forget(self, key: K, entry: Entry[V]) -> None:
        chunk, entry.chunk = entry.chunk, None
        if chunk is not None:
            chunk.live -= 1
            if not chunk.live:
                chunk.empty()
            elif chunk.live < _SPARSE and chunk is not self._open:
                self._dissolve(chunk)
        self.failed_at.pop(key, None)
        for tag in self._tags_of.pop(key, ()):
            keys = self._tagged[tag]
            del keys[key]
            if not keys:
                del self._tagged[tag]
        if not self.map:
            # The table of a million entries is given back.
            self.map.clear()

    def _evict(self, now: float) -> None:
        chunk = self._due(now)
        if chunk is None:
            # Not by its key, which may be found no more: somebody has changed what it hashes to.
            self._forget(*self.map.popitem(last=False))
        elif self._grace:
            # One is enough: the others may still be wanted while the source is down.
            ended = {key: entry.deadline for key, entry in self._entries_of(chunk).items() if entry.deadline <= now}
            if ended:
                self.drop(min(ended, key=ended.__getitem__))
            if chunk.live:
                self._visit(chunk, -inf)
        else:
            self._visit(chunk, now)

    # Many entries

    def drop_tag(self, tag: str, now: float) -> int:
        """Forget what carries a tag; says how many live ones there were."""
        dropped = [self.drop(key) for key in list(self._tagged.get(tag, ()))]
        return sum(entry is not None and now < entry.deadline for entry in dropped)

    def clear(self) -> None:
        """Forget everything."""
        self.map.clear()
        self.failed_at.clear()
        self._tags_of.clear()
        self._tagged.clear()
        self._heap.clear()
        self._open = _Chunk()

    def count(self, now: float) -> int:
        """How many are live. Costs something for each chunk in which something has expired, and nothing else."""
        expired, heap, stack = 0, self._heap, [0]
        while stack:
            index = stack.pop()
            if index < len(heap) and heap[index][0] <= now:
                _, ticket, chunk = heap[index]
                stack += (2 * index + 1, 2 * index + 2)
                if ticket != chunk.ticket:
                    continue
                if chunk.latest <= now:
                    expired += chunk.live
                else:
                    expired += sum(entry.deadline <= now for entry in self._entries_of(chunk).values())
        return len(self.map) - expired

    def limit(self, life: float) -> None:
        """Let nothing live for longer than this after it was stored."""
        for entry in self.map.values():
            if entry.life > life:
                entry.live_for(life, self._refresh_at)
        self._chunk_anew()

    def rewind(self, now: float) -> None:
        """The clock went back: nothing was stored, and nothing failed, after now."""
        for key, failed_at in self.failed_at.items():
            self.failed_at[key] = min(failed_at, now)
        later = [entry for entry in self.map.values() if entry.stored > now]
        for entry in later:
            entry.stored = now
        if later:
            self._chunk_anew()

    # Expiry

    def next_end(self) -> float:
        """No entry has to be released before this instant; infinity: none ends."""
        self._drop_stale()
        return self._heap[0][0] + self._grace if self._heap else inf

    def sweep(self, now: float) -> bool:
        """Release what has ended in one chunk; False: there is none in which something may have."""
        horizon = now - self._grace
        chunk = self._due(horizon)
        if chunk is None:
            return False
        self._visit(chunk, horizon)
        return True

    def _due(self, now: float) -> _Chunk | None:
        """The chunk with the soonest deadline, if that has come."""
        self._drop_stale()
        return self._heap[0][2] if self._heap and self._heap[0][0] <= now else None

    def _drop_stale(self) -> None:
        heap = self._heap
        while heap and (heap[0][1] != heap[0][2].ticket or not heap[0][2].live):
            heappop(heap)

    def _visit(self, chunk: _Chunk, horizon: float) -> None:
        """Drop what has ended by ``horizon``, and look anew at what is left."""
        left: list[K] = []
        soonest, latest = inf, -inf
        for key, entry in self._entries_of(chunk).items():
            deadline = entry.deadline
            if deadline <= horizon:
                # Not by drop()'s book-keeping, which might dissolve the chunk under our hands.
                entry.chunk = None
                self.drop(key)
            else:
                left.append(key)
                soonest = min(soonest, deadline)
                latest = max(latest, deadline)
        chunk.keys, chunk.live, chunk.soonest, chunk.latest = left, len(left), inf, latest
        if len(left) < _SPARSE and chunk is not self._open:
            self._dissolve(chunk)
        elif left:
            self._announce(chunk, soonest)

    def _entries_of(self, chunk: _Chunk) -> dict[K, Entry[V]]:
        entries: dict[K, Entry[V]] = {}
        for key in chunk.keys:
            entry = self.map.get(key)
            if entry is not None and entry.chunk is chunk:
                entries[key] = entry
        return entries

    # Chunks

    def _place(self, key: K, entry: Entry[V], deadline: float) -> None:
        chunk = self._open
        if len(chunk.keys) >= SIZE:
            full, chunk = chunk, _Chunk()
            self._open = chunk
            if full.live < _SPARSE:
                self._dissolve(full)
        chunk.keys.append(key)
        chunk.live += 1
        entry.chunk = chunk
        if deadline > chunk.latest:
            chunk.latest = deadline
        if deadline < chunk.soonest:
            self._announce(chunk, deadline)

    def _announce(self, chunk: _Chunk, soonest: float) -> None:
        chunk.soonest = soonest
        chunk.ticket = next(self._tickets)
        heappush(self._heap, (soonest, chunk.ticket, chunk))
        self._purge()

    def _dissolve(self, chunk: _Chunk) -> None:
        """Let the few that are left move into the open chunk."""
        entries = self._entries_of(chunk)
        chunk.empty()
        for key, entry in entries.items():
            self._place(key, entry, entry.deadline)

    def _purge(self) -> None:
        """Full chunks hold at least ``_SPARSE`` entries: a heap with many more items is full of stale ones."""
        heap = self._heap
        if len(heap) > _SPARSE + 2 * len(self.map) // _SPARSE:
            heap[:] = [item for item in heap if item[1] == item[2].ticket and item[2].live]
            heapify(heap)

    def _chunk_anew(self) -> None:
        self._heap.clear()
        self._open = _Chunk()
        for key, entry in self.map.items():
            entry.chunk = None
            if entry.life < inf:
                self._place(key, entry, entry.deadline)
