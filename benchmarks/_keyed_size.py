"""A cache with a million keys: bytes per key, cost per operation, and the pause when many expire at once.

Keys are put in as a finished resolution does it, but without a million resolutions: what these cost is the figure of
the storm. The keys and the one value are there before anything is measured: what counts is the store's own.
"""

from __future__ import annotations

import gc
import random
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import cachetools
import trio
import trio.testing

from trio_renew import open_provider_cache

from ._measure import Figure, per_await, per_call, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_renew import ProviderCache

__all__ = ("LIFE", "VALUE", "Plain", "growth", "memory", "over", "pauses", "resolve", "shuffled")

FEW = 1000
MANY = 1_000_000
LIFE = 3600.0
VALUE = object()


async def resolve(key: object) -> object:
    await trio.lowlevel.checkpoint()
    return VALUE


def over(keys: Sequence[str], call: Callable[[str], object]) -> float:
    """Nanoseconds per call, in the order of the keys, the loop included."""
    gc.disable()
    try:
        start = time.perf_counter_ns()
        for key in keys:
            call(key)
        return (time.perf_counter_ns() - start) / len(keys)
    finally:
        gc.enable()


def shuffled(number: int) -> list[str]:
    keys = [f"tenant:{index}" for index in range(number)]
    random.Random(number).shuffle(keys)
    return keys


class Plain:
    """A bare dict of (value, expiry) with an expiry check: what a hit is measured against."""

    __slots__ = ("entries",)

    def __init__(self, keys: Sequence[str]) -> None:
        self.entries: dict[str, tuple[object, float]] = {key: (VALUE, time.time() + LIFE) for key in keys}

    def get(self, key: str) -> object:
        value, expiry = self.entries[key]
        if time.time() < expiry:
            return value
        raise KeyError(key)


def put(cache: ProviderCache[Any, object], keys: Sequence[str]) -> float:
    """Store values as a resolution that has succeeded does, and nothing but that. Nanoseconds per key."""
    entries, now = cache._entries, cache._time.last()
    return over(keys, lambda key: entries.store(key, VALUE, now, LIFE))


def put_all(store: Any, keys: Sequence[str]) -> float:
    return over(keys, lambda key: store.__setitem__(key, VALUE))


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


async def fill(who: str) -> int:
    """Bytes that a million keys take in one store, the keys and the value themselves not counted."""
    keys = shuffled(MANY)
    gc.collect()
    gc.disable()
    before = resident()
    if who == "ours":
        async with open_provider_cache(resolve, ttl=LIFE, max_entries=MANY) as cache:
            put(cache, keys)
            return resident() - before
    if who == "ttl":
        store: Any = cachetools.TTLCache(MANY, LIFE)
        put_all(store, keys)
    else:
        store = Plain(keys)
    return resident() - before


def memory() -> list[Figure]:
    """Bytes per key, each in a process of its own."""
    per_key: dict[str, float] = {}
    for who in ("ours", "ttl", "dict"):
        command = [sys.executable, "-m", "benchmarks._keyed_size", who]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        per_key[who] = int(out) / MANY
    name = "1,000,000 keys: bytes per key"
    ours, ttl, plain = per_key["ours"], per_key["ttl"], per_key["dict"]
    return [
        Figure(name, ours / ttl, 1.0, ours, ttl, "cachetools TTLCache", "bytes"),
        Figure(name, ours / plain, None, ours, plain, "a dict of (value, expiry)", "bytes"),
    ]


class Size:
    """A number of keys, in the order in which they were made, and the orders in which they are asked for."""

    def __init__(self, number: int) -> None:
        self.keys = [f"tenant:{index}" for index in range(number)]
        self.repeat = max(1, 100_000 // number)
        asked = min(number, 100_000)
        self.at_random = random.Random(2).sample(self.keys, asked) * self.repeat
        self.in_order = self.keys[:asked] * self.repeat
        self.new = [f"new:{index}" for index in range(min(number // 2, 5000))]


async def asked(cache: ProviderCache[Any, object], keys: Sequence[str]) -> float:
    """Nanoseconds per awaited call, in the order of the keys."""
    turn = iter(keys)
    return await per_await(lambda: cache.get(next(turn)), len(keys))


async def operations(size: Size) -> dict[str, float]:
    """What the operations that wait cost at this size: a hit, and a new key with its resolution."""
    hits: list[float] = []
    new: list[float] = []
    async with open_provider_cache(resolve, ttl=LIFE, max_entries=2 * len(size.keys)) as cache:
        put(cache, size.keys)
        for _ in range(3):
            hits.append(await asked(cache, size.at_random[:20_000]))
            new.append(await asked(cache, size.new))
            for key in size.new:
                cache.delete(key)
    return {"await get, hits in random order": min(hits), "await get, new keys": min(new)}


async def costs(size: Size) -> dict[str, float]:
    """What the store's share of one key is at this size: to put in, to hit, to let expire."""
    keys = size.keys
    inserts: list[float] = []
    expiries: list[float] = []
    async with open_provider_cache(resolve, ttl=LIFE, max_entries=2 * len(keys)) as cache:
        late = cache._time.last() + 2 * LIFE

        def expire() -> None:
            while cache._entries.sweep(late):
                pass

        for _ in range(size.repeat):
            if cache._entries.map:
                expiries.append(per_call(expire, 1) / len(keys))
            inserts.append(put(cache, keys))
        cache.get_nowait(keys[0])
        seen = {
            "get_nowait, hits in random order": over(size.at_random, cache.get_nowait),
            "get_nowait, hits in order of insertion": over(size.in_order, cache.get_nowait),
        }
        expiries.append(per_call(expire, 1) / len(keys))
    return {
        "the store alone, insert": statistics.median(inserts),
        "the store alone, expire": statistics.median(expiries),
    } | seen


def costs_of_dict(size: Size) -> dict[str, float]:
    """The same with a bare dict: what the processor's caches alone make of the size."""
    keys = size.keys
    inserts: list[float] = []
    expiries: list[float] = []
    plain = Plain(())
    late = time.time() + 2 * LIFE

    def insert(key: str) -> None:
        plain.entries[key] = (VALUE, time.time() + LIFE)

    def expire(key: str) -> None:
        if plain.entries[key][1] <= late:
            del plain.entries[key]

    for _ in range(size.repeat):
        if plain.entries:
            expiries.append(over(keys, expire))
        # Empty, it would keep the room of what was in it.
        plain.entries = {}
        inserts.append(over(keys, insert))
    seen = {
        "get_nowait, hits in random order": over(size.at_random, plain.get),
        "get_nowait, hits in order of insertion": over(size.in_order, plain.get),
    }
    expiries.append(over(keys, expire))
    return {
        "the store alone, insert": statistics.median(inserts),
        "the store alone, expire": statistics.median(expiries),
    } | seen


async def growth(rounds: int) -> list[Figure]:
    """Cost per operation with a million keys against the same with a thousand: ours, and next to a dict's."""
    few, many = Size(FEW), Size(MANY)
    seen = [
        (await costs(few), await costs(many), costs_of_dict(few), costs_of_dict(many)) for _ in range(min(rounds, 3))
    ]
    waits = [(await operations(few), await operations(many)) for _ in range(min(rounds, 3))]
    figures: list[Figure] = []
    for name in waits[0][0]:
        both = {"with 1,000 keys": [one[0][name] for one in waits], "many": [one[1][name] for one in waits]}
        figures.append(ratio(f"1,000,000 keys: {name}", both, "many", "with 1,000 keys", 1.5))
    for name in seen[0][0]:
        both = {"with 1,000 keys": [one[0][name] for one in seen], "many": [one[1][name] for one in seen]}
        figures.append(ratio(f"1,000,000 keys: {name}", both, "many", "with 1,000 keys", 1.5))
        grown = {
            "ours": [one[1][name] / one[0][name] for one in seen],
            "how a bare dict's grows": [one[3][name] / one[2][name] for one in seen],
        }
        figures.append(
            ratio(f"1,000,000 keys: {name}, growth", grown, "ours", "how a bare dict's grows", 1.5, unit="times")
        )
    return figures


# ------------------------------------------------------------------------------------------------------------ pauses


async def pause(clock: trio.testing.MockClock, number: int, now: Callable[[], int]) -> float:
    """The longest time, in ms, for which the loop does not come round while so many entries expire at once."""
    longest = 0
    running = True

    async def probe() -> None:
        nonlocal longest
        last = now()
        while running:
            await trio.lowlevel.checkpoint()
            longest = max(longest, now() - last)
            last = now()

    gc.collect()
    async with open_provider_cache(resolve, ttl=LIFE, max_entries=100_000) as cache:
        if number:
            put(cache, shuffled(number))
            cache._sweeper.watch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            await trio.lowlevel.checkpoint()
            clock.jump(LIFE + 60)
            end = time.perf_counter() + 0.3
            while cache._entries.map or time.perf_counter() < end:
                await trio.lowlevel.checkpoint()
            running = False
    return longest / 1e6


def pauses(rounds: int) -> list[Figure]:
    """In real time, while a virtual clock jumps by an hour; and in processor time, in which others have no part."""
    figures: list[Figure] = []
    clocks = (("", time.perf_counter_ns), (", processor time", time.thread_time_ns))
    for which, now in clocks:
        seen: dict[int, list[float]] = {100_000: [], 0: []}
        for _ in range(min(rounds, 3)):
            for number, longest in seen.items():
                clock = trio.testing.MockClock()
                longest.append(trio.run(pause, clock, number, now, clock=clock))
        ours, idle = (statistics.median(longest) for longest in seen.values())
        name = f"100,000 entries expire: longest pause{which}"
        figures.append(Figure(name, ours / 5.0, 1.0 if which else None, ours * 1000, 5000, "5 ms", "µs"))
        figures.append(
            Figure(f"nothing expires: longest pause{which}", idle / 5.0, None, idle * 1000, 5000, "5 ms", "µs")
        )
    return figures


if __name__ == "__main__":
    print(trio.run(fill, sys.argv[1]))
