"""The stores: what an operation costs on top of what it cannot do without.

* memory: against caches of the same kind; the awaited call against a checkpoint and the same lookup.
* SQLite: against a bare hop to a worker thread that runs the statements which the operation itself has run (recorded,
  not copied) on a file of its own. The bare one neither encodes nor checks anything.
* Valkey: against the same request made with a bare coredis client, on a unix socket, where a round trip is shortest
  and the library's share in it largest. Round trips are counted by the server.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import cachebox
import cachetools
import coredis
import trio

from trio_renew import RateLimitConfig
from trio_renew.stores import _redis_limit_scripts as limit_scripts, _redis_scripts as scripts
from trio_renew.stores._sqlite_schema import connect
from trio_renew.stores.memory import open_memory_stores
from trio_renew.stores.redis import open_redis_stores
from trio_renew.stores.sqlite import open_sqlite_stores

from ._measure import Figure, per_await, per_call, ratio, turns, turns_async
from ._valkey import Server, open_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEYS = 10_000
VALUE = {"name": "a value", "n": 1}
LIMIT = RateLimitConfig(limit=1_000_000, window=0.5)


# ---------------------------------------------------------------------------------------------------------- memory


async def memory(rounds: int) -> list[Figure]:
    """Hits and overwrites in random order, and new keys, each over 10,000 keys."""
    keys = [f"item:{number}" for number in range(KEYS)]
    random.Random(1).shuffle(keys)
    async with open_memory_stores(max_items=10 * KEYS) as stores:
        cache = stores.cache
        ttl: Any = cachetools.TTLCache(10 * KEYS, 3600)
        box: Any = cachebox.TTLCache(10 * KEYS, 3600)

        def ours_set() -> None:
            for key in keys:
                cache.set_nowait(key, VALUE, 3600.0)

        def ours_get() -> None:
            for key in keys:
                cache.get_nowait(key)

        def their_set(other: Any) -> None:
            for key in keys:
                other[key] = VALUE

        def their_get(other: Any) -> None:
            for key in keys:
                other.get(key)

        def each(function: Callable[[], object]) -> Callable[[], float]:
            return lambda: per_call(function, 1) / KEYS

        figures = []
        others = {"cachetools TTLCache": (ttl, 1.0), "cachebox TTLCache (Rust)": (box, None)}
        for name, ours, theirs in (("set", ours_set, their_set), ("get", ours_get, their_get)):
            measures = {"ours": each(ours)} | {who: each(partial(theirs, it)) for who, (it, _) in others.items()}
            seen = turns(measures, 5 * rounds)
            for who, (_, goal) in others.items():
                figures.append(ratio(f"memory {name}_nowait", seen, "ours", who, goal))

        turn = itertools.cycle(keys)

        async def checkpoint_and(function: Callable[[str], object]) -> None:
            await trio.lowlevel.checkpoint()
            function(next(turn))

        waits = await turns_async(
            {
                "get": lambda: per_await(lambda: cache.get(next(turn)), KEYS // 10),
                "set": lambda: per_await(lambda: cache.set(next(turn), VALUE, 3600.0), KEYS // 10),
                "a checkpoint and TTLCache.get": lambda: per_await(partial(checkpoint_and, ttl.get), KEYS // 10),
                "a checkpoint and TTLCache.__setitem__": lambda: per_await(
                    partial(checkpoint_and, lambda key: ttl.__setitem__(key, VALUE)), KEYS // 10
                ),
            },
            10 * rounds,
        )
        figures.append(ratio("memory await set", waits, "set", "a checkpoint and TTLCache.__setitem__", 1.0))
        figures.append(ratio("memory await get", waits, "get", "a checkpoint and TTLCache.get", 1.0))
    return figures


# ---------------------------------------------------------------------------------------------------------- sqlite

Statement: TypeAlias = tuple[str, tuple[Any, ...]]


class Recorder:
    """A connection that writes down what is executed on it."""

    def __init__(self, connection: Any, seen: list[Statement]) -> None:
        self._connection = connection
        self._seen = seen

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        self._seen.append((statement, values))
        return self._connection.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def recorded(stores: Any, call: Callable[[], Awaitable[Any]]) -> tuple[list[Statement], Any]:
    """What one operation executes, and what it gives."""
    database = stores.cache._database
    seen: list[Statement] = []
    real, database._connection = database._connection, Recorder(database._connection, seen)
    try:
        return seen, await call()
    finally:
        database._connection = real


class Bare:
    """The same statements in a bare hop, on a file of their own."""

    def __init__(self, path: str) -> None:
        self.connection: Any = connect(path)
        self.limiter = trio.CapacityLimiter(1)

    def _execute(self, statements: list[Statement]) -> None:
        for statement, values in statements:
            self.connection.execute(statement, values).fetchone()

    async def replay(self, statements: list[Statement], at: float, swaps: list[dict[str, str]]) -> float:
        """Measure one hop per item of ``swaps``: texts to be replaced. Instants are moved to now beforehand."""
        shift = time.time() - at

        def now(old: Any, swap: dict[str, str]) -> Any:
            return old + shift if isinstance(old, float) and old > 1e9 else swap.get(old, old)

        hops = iter(
            [[(text, tuple(now(old, swap) for old in old_values)) for text, old_values in statements] for swap in swaps]
        )
        return await per_await(
            lambda: trio.to_thread.run_sync(self._execute, next(hops), limiter=self.limiter), len(swaps)
        )


async def sqlite(rounds: int) -> list[Figure]:
    """Operations on a file against the same statements in a bare hop."""
    number = 100
    same: list[dict[str, str]] = [{}] * number
    with tempfile.TemporaryDirectory() as folder:
        async with open_sqlite_stores(f"{folder}/ours.db", default_config=LIMIT) as stores:
            cache, dedupe, limits = stores.cache, stores.dedupe, stores.rate_limit
            bare = Bare(f"{folder}/bare.db")
            await cache.set("key", VALUE, 3600.0)
            at = time.time()
            for_set, _ = await recorded(stores, lambda: cache.set("key", VALUE, 3600.0))
            for_get, _ = await recorded(stores, lambda: cache.get("key"))
            for_acquire, _ = await recorded(stores, lambda: limits.acquire("api"))
            for_register, job = await recorded(stores, lambda: dedupe.register_or_join("job"))
            for_complete, _ = await recorded(stores, lambda: dedupe.complete("job", VALUE, job_id=job.job_id))

            # Every job has a key of its own, or it would be joined.
            jobs: list[tuple[str, str]] = []
            bare_jobs: list[dict[str, str]] = []

            async def register() -> None:
                key = f"job{len(jobs)}"
                jobs.append((key, (await dedupe.register_or_join(key)).job_id))

            async def complete() -> None:
                key, job_id = jobs.pop()
                await dedupe.complete(key, VALUE, job_id=job_id)

            async def bare_register() -> float:
                bare_jobs[:] = [{"job": f"job{n}", job.job_id: random.randbytes(16).hex()} for n in range(number)]
                return await bare.replay(for_register, at, bare_jobs)

            seen = await turns_async(
                {
                    "set": lambda: per_await(lambda: cache.set("key", VALUE, 3600.0), number),
                    "set: a bare hop": lambda: bare.replay(for_set, at, same),
                    "get": lambda: per_await(lambda: cache.get("key"), number),
                    "get: a bare hop": lambda: bare.replay(for_get, at, same),
                    "acquire": lambda: per_await(lambda: limits.acquire("api"), number),
                    "acquire: a bare hop": lambda: bare.replay(for_acquire, at, same),
                    "register_or_join": lambda: per_await(register, number),
                    "register_or_join: a bare hop": bare_register,
                    "complete": lambda: per_await(complete, number),
                    "complete: a bare hop": lambda: bare.replay(for_complete, at, bare_jobs),
                },
                4 * rounds,
            )
            bare.connection.close()
    names = [name for name in seen if ":" not in name]
    return [ratio(f"SQLite {name}", seen, name, f"{name}: a bare hop", 1.2) for name in names]


# ---------------------------------------------------------------------------------------------------------- valkey


async def valkey(rounds: int, server: Server) -> list[Figure]:
    """Operations on a server against the same request by a bare client; and how many round trips each takes."""
    number = 300
    data = json.dumps(VALUE).encode()
    async with (
        coredis.Redis.from_url(server.url) as client,
        open_redis_stores(server.url, default_config=LIMIT) as stores,
    ):
        cache, dedupe, limits = stores.cache, stores.dedupe, stores.rate_limit
        jobs: list[tuple[str, str]] = []
        bare_jobs: list[str] = []
        count = itertools.count()

        async def register() -> None:
            key = f"job{next(count)}"
            jobs.append((key, (await dedupe.register_or_join(key)).job_id))

        async def complete() -> None:
            key, job_id = jobs.pop()
            await dedupe.complete(key, VALUE, job_id=job_id)

        async def bare_register() -> None:
            job = f"{next(count):032}"
            bare_jobs.append(job)
            await client.evalsha(scripts.REGISTER.digest, [f"bare:j:{job}"], [job, 10_000])

        async def bare_complete() -> None:
            job = bare_jobs.pop()
            keys = [f"bare:j:{job}", f"bare:o:{job}", f"bare:d:{job}"]
            await client.evalsha(scripts.SETTLE.digest, keys, [job, b"V" + data, 10_000, 1])

        async def bare_acquire() -> None:
            args: list[str | int] = ["acquire", LIMIT.limit, int(LIMIT.window * 1e6), next(count)]
            await client.evalsha(limit_scripts.PLAIN.digest, ["bare:r", "bare:k"], args)

        pairs: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            "set": (lambda: cache.set("key", VALUE, 3600.0), lambda: client.set("bare", data, px=3_600_000)),
            "get": (lambda: cache.get("key"), lambda: client.get("bare")),
            "acquire": (lambda: limits.acquire("api"), bare_acquire),
            "register_or_join": (register, bare_register),
            "complete": (complete, bare_complete),
        }
        measures: dict[str, Callable[[], Awaitable[float]]] = {}
        trips: list[Figure] = []
        for name, (ours, theirs) in pairs.items():
            measures[name] = partial(per_await, ours, number)
            measures[f"{name}: bare coredis"] = partial(per_await, theirs, number)
            await ours()  # connects, and sends the script once
            if name == "register_or_join":
                await register()  # there will be two to complete
            idle = -server.reads() + server.reads()
            before = server.reads()
            await ours()
            reads = server.reads() - before - idle
            trips.append(Figure(f"Valkey {name}: round trips", reads, 1, reads, 1, "one", unit=""))
        jobs.clear()
        seen = await turns_async(measures, rounds)
    return trips + [ratio(f"Valkey {name}", seen, name, f"{name}: bare coredis", 1.2) for name in pairs]


def run(rounds: int) -> list[Figure]:
    """All of it."""
    figures = trio.run(memory, rounds)
    figures += trio.run(sqlite, rounds)
    with open_server() as server:
        figures += trio.run(valkey, rounds, server)
    return figures
