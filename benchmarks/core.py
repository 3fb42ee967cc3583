"""The core: hits, storms, opening, rest, import."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from trio_renew import AuthToken, open_provider

from ._measure import Figure, per_await, per_call, ratio, turns, turns_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Many short turns: whoever else uses this processor meets some of them, and no median.
HITS = 2_000
SHORT_TURNS = 50
AWAITS = 20_000


async def mint() -> AuthToken:
    await trio.lowlevel.checkpoint()
    return AuthToken.expiring_in("token", 3600.0)


class Plain:
    """What a hit cannot be faster than: a slotted object whose method returns an attribute."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = object()

    def get(self) -> object:
        return self.value


async def hits(rounds: int) -> list[Figure]:
    """A hit of ours against a method call, and against hits of the Python peers that can be asked without waiting."""
    peers: dict[str, Callable[[], object]] = {}
    try:
        import cachetools

        ttl: Any = cachetools.TTLCache(16, 3600)
        ttl["k"] = "v"
        peers["cachetools TTLCache[k]"] = partial(ttl.__getitem__, "k")
    except ImportError:
        pass
    try:
        from dogpile.cache import make_region

        region = make_region().configure("dogpile.cache.memory")
        region.set("k", "v")
        peers["dogpile memory region.get"] = partial(region.get, "k")
    except ImportError:
        pass
    async with open_provider(mint) as provider:
        provider.get_nowait()
        plain = Plain()
        measures: dict[str, Callable[[], float]] = {
            "a method call": lambda: per_call(plain.get, HITS),
            "get_nowait()": lambda: per_call(provider.get_nowait, HITS),
        }
        for name, call in peers.items():
            measures[name] = partial(per_call, call, HITS)
        seen = turns(measures, SHORT_TURNS * rounds)
        figures = [ratio("get_nowait() hit", seen, "get_nowait()", "a method call", 4.0)]
        figures += [ratio("get_nowait() hit", seen, "get_nowait()", name, 1.0) for name in peers]
        waits = await turns_async(
            {
                "a bare checkpoint": lambda: per_await(trio.lowlevel.checkpoint, HITS // 10),
                "await get()": lambda: per_await(provider.get, HITS // 10),
            },
            2 * SHORT_TURNS * rounds,
        )
        figures.append(ratio("await get() hit", waits, "await get()", "a bare checkpoint", 1.15))
    return figures


def async_lru_hit(rounds: int) -> list[Figure]:
    """A hit of async-lru is awaited on asyncio; ours without waiting, measured beside it."""
    try:
        from async_lru import alru_cache
    except ImportError:
        return []

    @alru_cache(ttl=3600)
    async def cached() -> str:
        return "v"

    def theirs() -> float:
        return asyncio.run(per_await(cached, AWAITS))

    def ours() -> float:
        async def run() -> float:
            async with open_provider(mint) as provider:
                provider.get_nowait()
                return per_call(provider.get_nowait, AWAITS)

        return trio.run(run)

    seen = turns({"get_nowait()": ours, "async-lru": theirs}, rounds)
    return [ratio("get_nowait() hit", seen, "get_nowait()", "async-lru", 1.0)]


async def storm(callers: int, failing: bool = False) -> tuple[float, int]:
    """Seconds from the first spawn to the last caller having its outcome; and the number of fetches."""
    go = trio.Event()
    fetches = served = 0

    async def slow() -> AuthToken:
        nonlocal fetches
        fetches += 1
        await go.wait()
        if failing:
            raise ConnectionError("down")
        return AuthToken.expiring_in("token", 3600.0)

    async def caller() -> None:
        nonlocal served
        try:
            await provider.get()
        except ConnectionError:
            pass
        served += 1

    gc.collect()
    gc.disable()
    try:
        async with open_provider(slow, eager=False, fetch_timeout=None) as provider:
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(caller if failing else provider.get)
                await trio.testing.wait_all_tasks_blocked()
                go.set()
            elapsed = trio.current_time() - start
    finally:
        gc.enable()
    assert not failing or served == callers
    return elapsed, fetches


async def event_storm(callers: int) -> float:
    """The same tasks on one bare event."""
    event = trio.Event()
    gc.collect()
    gc.disable()
    try:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(event.wait)
            await trio.testing.wait_all_tasks_blocked()
            event.set()
        return trio.current_time() - start
    finally:
        gc.enable()


async def storms(rounds: int) -> list[Figure]:
    """Many callers, one fetch."""
    figures = []
    for callers in (1_000, 10_000, 100_000):
        counts: set[int] = set()

        async def ours(callers: int = callers, counts: set[int] = counts) -> float:
            elapsed, fetches = await storm(callers)
            counts.add(fetches)
            return elapsed / callers * 1e9

        async def bare(callers: int = callers) -> float:
            return await event_storm(callers) / callers * 1e9

        seen = await turns_async({"ours": ours, "one bare trio.Event": bare}, max(rounds, 5))
        figures.append(ratio(f"storm of {callers:,}, per caller", seen, "ours", "one bare trio.Event", 1.25))
        figures.append(Figure(f"storm of {callers:,}: fetches", max(counts), 1, max(counts), 1, "one", unit=""))
    return figures


async def peak(failing: bool) -> int:
    tracemalloc.start()
    try:
        await storm(100_000, failing=failing)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def failing_storm() -> list[Figure]:
    """Peak memory of a storm that fails against one that succeeds. Every caller gets the error: checked in storm()."""

    async def keeping() -> int:
        # the same callers, each of which handles its outcome, for both
        return await peak(failing=False)

    good, bad = await keeping(), await peak(failing=True)
    return [Figure("failing storm of 100,000: peak memory", bad / good, 1.5, bad, good, "a succeeding one", "bytes")]


async def opening(rounds: int) -> list[Figure]:
    """Opening and closing a provider against an empty nursery with one task."""

    async def nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)

    async def lazy() -> None:
        async with open_provider(mint, eager=False):
            pass

    async def eager() -> None:
        async with open_provider(mint):
            pass

    measures: dict[str, Callable[[], Awaitable[float]]] = {
        "a nursery with one task": lambda: per_await(nursery, 1000),
        "lazy": lambda: per_await(lazy, 1000),
        "eager": lambda: per_await(eager, 1000),
    }
    seen = await turns_async(measures, rounds)
    return [
        ratio("open and close, eager=False", seen, "lazy", "a nursery with one task", 3.0),
        ratio("open and close, with its first mint", seen, "eager", "a nursery with one task", None),
    ]


class Steps(trio.abc.Instrument):
    """Counts the scheduling steps of a run."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def rest() -> list[Figure]:
    """Scheduling steps in a day of virtual time, with a provider that nobody asks."""

    async def day(with_provider: bool) -> int:
        steps = Steps()
        if with_provider:
            async with open_provider(mint) as provider:
                await provider.get()
                trio.lowlevel.add_instrument(steps)
                await trio.sleep(86_400)
                trio.lowlevel.remove_instrument(steps)
        else:
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(86_400)
            trio.lowlevel.remove_instrument(steps)
        return steps.count

    def run(with_provider: bool) -> int:
        return trio.run(day, with_provider, clock=trio.testing.MockClock(autojump_threshold=0))

    ours, bare = run(True), run(False)
    return [Figure("wake-ups of a day at rest", ours / bare, 1.0, ours, bare, "a bare sleep", "steps")]


def importing(rounds: int) -> list[Figure]:
    """Milliseconds of the processor that `import trio_renew` adds to `import trio`, and that its first use adds.

    The package imports what a name needs when the name is first used, so the first figure alone would say little.
    """
    code = (
        "import time, json; now = time.process_time; import trio; times = [now()]; "
        "import trio_renew; times.append(now()); trio_renew.open_provider; times.append(now()); "
        "print(json.dumps(times))"
    )
    added: list[float] = []
    used: list[float] = []
    for _ in range(max(rounds, 5)):
        out: Any = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        added.append((out[1] - out[0]) * 1000)
        used.append((out[2] - out[0]) * 1000)
    figures: list[Figure] = []
    for name, times, goal in (("", added, 1.0), (" and open_provider", used, None)):
        value = sorted(times)[len(times) // 2]
        name = f"import trio_renew{name}, on top of import trio"
        figures.append(Figure(name, value / 30.0, goal, value, 30.0, "30 ms", "ms"))
    return figures


def run(rounds: int) -> list[Figure]:
    """All of it."""
    figures = trio.run(hits, rounds)
    figures += async_lru_hit(rounds)
    figures += trio.run(storms, rounds)
    figures += trio.run(failing_storm)
    figures += trio.run(opening, rounds)
    figures += rest()
    figures += importing(rounds)
    return figures
