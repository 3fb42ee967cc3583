"""Many resources by key: hits, a million keys, expiry, storms.

What is not the same: a hit of ours also checks the thread, looks whether the wall clock was stepped back, and moves
the key to the end of the order of use. A dict does none of this, and TTLCache has no order of use: it drops the oldest.
"""

from __future__ import annotations

import gc
import itertools
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import cachetools
import trio
import trio.testing

from trio_renew import open_provider_cache

from ._keyed_size import LIFE, VALUE, Plain, growth, memory, over, pauses, resolve, shuffled
from ._measure import Figure, per_await, ratio, turns_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEYS = 1000
STORM = 10_000


async def hits(rounds: int) -> list[Figure]:
    """Hits over 1,000 keys in random order."""
    keys = shuffled(KEYS)
    plain = Plain(keys)
    ttl: Any = cachetools.TTLCache(2 * KEYS, LIFE)
    for key in keys:
        ttl[key] = VALUE
    async with open_provider_cache(resolve, ttl=LIFE, max_entries=2 * KEYS) as cache:
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(cache.get, key)

        async def walk(call: Callable[[str], object]) -> float:
            await trio.lowlevel.checkpoint()
            return over(keys, call)

        # Many short turns: whoever else uses this processor meets some of them, and no median.
        seen = await turns_async(
            {
                "a dict with an expiry check": lambda: walk(plain.get),
                "get_nowait": lambda: walk(cache.get_nowait),
                "cachetools TTLCache": lambda: walk(ttl.__getitem__),
            },
            50 * rounds,
        )
        turn = itertools.cycle(keys)
        waits = await turns_async(
            {
                "a bare checkpoint": lambda: per_await(trio.lowlevel.checkpoint, 200),
                "await get": lambda: per_await(lambda: cache.get(next(turn)), 200),
            },
            100 * rounds,
        )
    return [
        ratio("get_nowait(key) hit", seen, "get_nowait", "a dict with an expiry check", 2.5),
        ratio("get_nowait(key) hit", seen, "get_nowait", "cachetools TTLCache", 1.0),
        ratio("await get(key) hit", waits, "await get", "a bare checkpoint", 1.2),
    ]


async def storm(get: Callable[[str], Awaitable[object]], go: trio.Event) -> float:
    """Nanoseconds of the processor per key, from the first spawn to the last outcome, with one caller per key."""
    keys = [f"tenant:{index}" for index in range(STORM)]
    gc.collect()
    gc.disable()
    try:
        start = time.process_time_ns()
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(get, key)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        return (time.process_time_ns() - start) / STORM
    finally:
        gc.enable()


class Storms:
    """The same fetches in three ways. Each has a gate, which opens when all have come.

    Args:
      fetch: What is done for a key when the gate is open.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[object]]) -> None:
        self.gate = trio.Event()
        self.rest = fetch

    async def fetch(self, key: str) -> object:
        await self.gate.wait()
        return await self.rest(key)

    async def ours(self) -> float:
        self.gate = trio.Event()
        async with open_provider_cache(self.fetch, ttl=LIFE, max_entries=STORM) as cache:
            return await storm(cache.get, self.gate)

    async def bare(self) -> float:
        self.gate = trio.Event()
        return await storm(self.fetch, self.gate)

    async def bare_with_callers(self) -> float:
        """What no cache can do without: a task per fetch, with a timeout that is its own, and one per caller."""
        self.gate = trio.Event()
        async with trio.open_nursery() as nursery:

            async def caller(key: str) -> object:
                done = trio.Event()
                values: list[object] = []

                async def task() -> None:
                    with trio.move_on_after(30, shield=True):
                        values.append(await self.fetch(key))
                    done.set()

                nursery.start_soon(task)
                await done.wait()
                return values[0]

            return await storm(caller, self.gate)


async def nothing(key: str) -> object:
    return VALUE


async def storms(rounds: int) -> list[Figure]:
    """10,000 distinct keys at once, against the same fetches in a bare nursery.

    A fetch that does nothing shows what our book-keeping costs: no fetch outlives its caller in a bare nursery unless
    it has a task and a timeout of its own, which is the second comparison. A fetch that does the least that a real one
    may do, one row by its key from SQLite in a worker thread, shows what is left of that.
    """
    rows = sqlite3.connect(":memory:", check_same_thread=False)
    rows.execute("CREATE TABLE tenants (id TEXT PRIMARY KEY, secret TEXT)")
    rows.executemany("INSERT INTO tenants VALUES (?, 's')", [(f"tenant:{index}",) for index in range(STORM)])

    def row(key: str) -> object:
        return rows.execute("SELECT secret FROM tenants WHERE id = ?", (key,)).fetchone()

    async def from_row(key: str) -> object:
        return await trio.to_thread.run_sync(row, key)

    trivial, real = Storms(nothing), Storms(from_row)
    alone, with_callers = "the fetches in a bare nursery", "the same with a task and a timeout each, and a caller"
    seen = await turns_async(
        {"ours": trivial.ours, alone: trivial.bare, with_callers: trivial.bare_with_callers}, rounds
    )
    name = "storm over 10,000 keys, empty fetch"
    figures = [ratio(name, seen, "ours", alone, 1.5), ratio(name, seen, "ours", with_callers, 1.5)]
    seen = await turns_async({"ours": real.ours, alone: real.bare}, rounds)
    rows.close()
    return [*figures, ratio("storm over 10,000 keys, a row from SQLite", seen, "ours", alone, 1.5)]


def run(rounds: int) -> list[Figure]:
    """All of it."""
    figures = trio.run(hits, rounds)
    figures += memory()
    figures += trio.run(growth, rounds)
    figures += pauses(rounds)
    figures += trio.run(storms, min(rounds, 3))
    return figures
