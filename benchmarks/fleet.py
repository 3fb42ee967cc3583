"""A fleet of real processes on this machine: a cold start that shares one fetch, and how soon a joiner hears.

* Cold start: 2, 8 and 32 processes with 50 tasks each want the same token at the same instant; the source takes 0.2 s.
  Stores, connections and provider are opened after that instant, so their cost is part of the times; interpreters and
  imports are not. Each process on its own is measured with the same processes in turns. All of them share this
  machine's processors: with more processes than processors the times are about that, too.
* Join: one process owns a job, this one waits for it. Measured from the moment at which the owner calls `complete` to
  the moment at which the waiting task here runs again, by the clock that both processes have in common (Linux).
  A round trip is a PING by a bare coredis client in this process, in turns and after as long a rest: processes that
  have slept are slower than those in a busy loop.

The source is a sleep: there is no network in it, and nobody else on it.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import coredis
import trio

from trio_renew import AuthToken, Share, open_provider
from trio_renew.stores.redis import open_redis_stores
from trio_renew.stores.sqlite import open_sqlite_stores

from ._measure import Figure, per_await, ratio
from ._valkey import open_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from contextlib import AbstractAsyncContextManager

SIZES = (2, 8, 32)
TASKS = 50
#: Seconds that the source takes.
FETCH = 0.2
JOINS = 40
#: Seconds between being told that somebody waits and completing: not in step with who looks every few milliseconds.
REST = (0.02, 0.03)


def open_stores(engine: str, where: str) -> AbstractAsyncContextManager[Any]:
    return open_redis_stores(where) if engine == "Valkey" else open_sqlite_stores(where)


# ----------------------------------------------------------------------------------------------------------- a worker


async def cold_start(engine: str, where: str, key: str, at: float) -> dict[str, float]:
    """Let 50 tasks want the token at an instant; say how often it was fetched here, and when they had it."""
    fetches = 0
    times: list[float] = []

    async def mint() -> AuthToken:
        nonlocal fetches
        fetches += 1
        await trio.sleep(FETCH)
        return AuthToken.expiring_in("token", 3600.0)

    async def task(provider: Any) -> None:
        await provider.get()
        times.append(time.monotonic() - at)

    @asynccontextmanager
    async def sharing() -> AsyncGenerator[Share | None, None]:
        if engine == "alone":
            yield None
        else:
            async with open_stores(engine, where) as stores:
                yield Share(stores.cache, stores.dedupe, key)

    await trio.sleep(max(0.0, at - time.monotonic()))
    async with sharing() as share, open_provider(mint, share=share, eager=False) as provider:
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(task, provider)
    return {"fetches": fetches, "first": min(times), "last": max(times)}


async def own(engine: str, where: str, key: str) -> dict[str, float]:
    """Own jobs, one after the other; complete each a while after being told that somebody waits."""
    async with open_stores(engine, where) as stores:
        for number in range(JOINS):
            job = await stores.dedupe.register_or_join(f"{key}{number}")
            print(json.dumps(job.job_id), flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
            await trio.sleep(random.uniform(*REST))
            await stores.dedupe.complete(f"{key}{number}", time.monotonic_ns(), job_id=job.job_id)
    return {}


async def work() -> None:
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        what, *arguments = json.loads(line)
        done = await (cold_start(*arguments) if what == "cold_start" else own(*arguments))
        print(json.dumps(done), flush=True)


class Worker:
    """A process that does what it is told."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.fleet"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def open_worker() -> Iterator[Worker]:
    worker = Worker()
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


# -------------------------------------------------------------------------------------------------------- the figures


def starts(workers: list[Worker], places: dict[str, str], rounds: int) -> list[Figure]:
    """Cold starts with each engine and without one, in turns."""
    figures: list[Figure] = []
    for size in SIZES:
        fetches: dict[str, list[float]] = {engine: [] for engine in places}
        first: dict[str, list[float]] = {engine: [] for engine in places}
        last: dict[str, list[float]] = {engine: [] for engine in places}
        for _ in range(rounds):
            for engine, where in places.items():
                at = time.monotonic() + 0.1
                for worker in workers[:size]:
                    worker.tell("cold_start", engine, where, uuid4().hex if engine == "alone" else f"k{at}", at)
                told = [worker.hear() for worker in workers[:size]]
                fetches[engine].append(sum(one["fetches"] for one in told))
                first[engine].append(statistics.median(one["first"] for one in told) * 1e3)
                last[engine].append(max(one["last"] for one in told) * 1e3)
        for engine in places:
            most = max(fetches[engine])
            name = f"{engine}: {size} processes x {TASKS} tasks"
            if engine == "alone":
                figures.append(Figure(f"{name}: fetches", most / size, None, most, size, "one per process", unit=""))
                continue
            figures.append(Figure(f"{name}: fetches", most, 1.0, most, 1, "one", unit=""))
            for what, seen in (("first value", first), ("last value", last)):
                both = {"ours": seen[engine], "each on its own": seen["alone"]}
                figures.append(ratio(f"{name}: {what}", both, "ours", "each on its own", None, unit="ms"))
    return figures


async def joins(worker: Worker, engine: str, where: str, server: str) -> list[Figure]:
    """How soon after the owner's `complete` a joiner in another process has the outcome."""
    seen: list[float] = []
    trips: list[float] = []
    key = uuid4().hex
    worker.tell("own", engine, where, key)
    async with coredis.Redis.from_url(server) as client, open_stores(engine, where) as stores:
        for number in range(JOINS):
            job_id = await trio.to_thread.run_sync(worker.hear)
            await trio.sleep(random.uniform(*REST))
            trips.append(await per_await(client.ping, 1))
            joined = await stores.dedupe.register_or_join(f"{key}{number}")
            assert joined.job_id == job_id
            assert not joined.is_owner
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, worker.tell, "joined")
                result = await stores.dedupe.wait_outcome(f"{key}{number}", job_id=job_id)
                seen.append(time.monotonic_ns() - result.unwrap())
        assert await trio.to_thread.run_sync(worker.hear) == {}
    name = f"{engine}: join across processes, p50"
    p50, p95 = statistics.median(seen) / 1e3, statistics.quantiles(seen, n=20)[-1] / 1e3
    trip = statistics.median(trips) / 1e3
    if engine == "Valkey":
        return [
            Figure(name, p50 / trip, 3.0, p50, trip, "a round trip", "µs"),
            Figure(name.replace("p50", "p95"), p95 / trip, None, p95, trip, "a round trip", "µs"),
        ]
    return [
        Figure(name, p50 / 1e4, 1.0, p50, 1e4, "10 ms", "µs"),
        Figure(name.replace("p50", "p95"), p95 / 1e4, None, p95, 1e4, "10 ms", "µs"),
    ]


def run(rounds: int) -> list[Figure]:
    """All of it."""
    with ExitStack() as stack:
        server = stack.enter_context(open_server()).url
        path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/fleet.db"
        places = {"SQLite": path, "Valkey": server, "alone": ""}
        workers = [stack.enter_context(open_worker()) for _ in range(max(SIZES))]
        for worker in workers:
            worker.tell("cold_start", "alone", "", "", 0.0)
        for worker in workers:
            worker.hear()
        figures = starts(workers, places, min(rounds, 3))
        for engine in ("SQLite", "Valkey"):
            figures += trio.run(joins, workers[0], engine, places[engine], server)
    return figures


if __name__ == "__main__":
    trio.run(work)
