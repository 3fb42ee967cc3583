"""Behaviour side by side: what callers live through when things go wrong, here and with the peers.

Each scenario is played with trio_renew, ``anyio.functools.lru_cache`` on Trio, a plain ``trio.Lock`` with a double
check, and async-lru on asyncio. Time is virtual on Trio, real and short on asyncio. A figure is a count of fetches or
of served callers; the goal is ours.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio
from anyio.functools import lru_cache
from async_lru import alru_cache
from trio.testing import MockClock

from trio_renew import open_resource

from ._measure import Figure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Cached = Callable[[], Awaitable[Any]]
    Fetch = Callable[[], Awaitable[Any]]
    Player = Callable[[Fetch], AbstractAsyncContextManager[tuple[Cached, Callable[[], Any]]]]

from contextlib import asynccontextmanager

CALLERS = 100


class Source:
    """A source that takes a while, reads its value at the start, and may fail."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]], seconds: float, failures: float = 0) -> None:
        self.sleep = sleep
        self.seconds = seconds
        self.failures = failures
        self.fetches = 0
        self.value = "old"
        self.asks: Cached | None = None

    async def __call__(self) -> str:
        self.fetches += 1
        value = self.value
        if self.asks is not None:
            await self.asks()
        await self.sleep(self.seconds)
        if self.fetches <= self.failures:
            raise ConnectionError("down")
        return value


@asynccontextmanager
async def ours(fetch: Fetch) -> AsyncGenerator[tuple[Cached, Callable[[], Any]], None]:
    async def call() -> Any:
        return await fetch()

    async with open_resource(call) as resource:
        yield resource.get, resource.clear


@asynccontextmanager
async def anyio_cache(fetch: Fetch) -> AsyncGenerator[tuple[Cached, Callable[[], Any]], None]:
    @lru_cache
    async def cached() -> Any:
        return await fetch()

    yield cached, cached.cache_clear


@asynccontextmanager
async def lock(fetch: Fetch) -> AsyncGenerator[tuple[Cached, Callable[[], Any]], None]:
    lock = trio.Lock()
    held: list[Any] = []

    async def cached() -> Any:
        if not held:
            async with lock:
                if not held:
                    held.append(await fetch())
        return held[0]

    yield cached, held.clear


PLAYERS: dict[str, Player] = {"trio_renew": ours, "anyio lru_cache": anyio_cache, "trio.Lock": lock}


async def outcome_of(call: Cached, outcomes: list[str], limit: float | None = None) -> None:
    """What a caller sees, in one word."""
    try:
        if limit is None:
            outcomes.append(str(await call()))
            return
        with trio.move_on_after(limit) as scope:
            outcomes.append(str(await call()))
        if scope.cancelled_caught:
            outcomes.append("too late")
    except Exception as exc:
        outcomes.append(type(exc).__name__)


async def leader_cancelled(player: Player, who: int) -> tuple[str, int]:
    source = Source(trio.sleep, 1.0)
    outcomes: list[str] = []
    async with player(source) as (get, _), trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(CALLERS)]

        async def caller(scope: trio.CancelScope) -> None:
            with scope:
                await outcome_of(get, outcomes)

        for scope in scopes:
            nursery.start_soon(caller, scope)
            await trio.sleep(0.001)
        for scope in scopes if who < 0 else [scopes[who]]:
            scope.cancel()
        if who < 0:
            await trio.sleep(2)
            await outcome_of(get, outcomes)
    return _words(outcomes), source.fetches


async def failing(player: Player, failures: float) -> tuple[str, int]:
    source = Source(trio.sleep, 0.2, failures)
    outcomes: list[str] = []
    async with player(source) as (get, _), trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(outcome_of, get, outcomes)
    return f"{_words(outcomes)}, the last after {trio.current_time():.1f} s", source.fetches


async def deadlines(player: Player) -> tuple[str, int]:
    source = Source(trio.sleep, 0.25)
    outcomes: list[str] = []
    async with player(source) as (get, _), trio.open_nursery() as nursery:
        for _ in range(400):
            nursery.start_soon(outcome_of, get, outcomes, 0.1)
            await trio.sleep(0.005)
    return f"{outcomes.count('old')} of 400 served", source.fetches


async def invalidated(player: Player) -> tuple[str, int]:
    source = Source(trio.sleep, 1.0)
    outcomes: list[str] = []
    async with player(source) as (get, clear):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, get, outcomes)
            await trio.sleep(0.5)
            source.value = "new"
            done = clear()
            if done is not None:
                await done
        await outcome_of(get, outcomes)
    return f"in flight: {outcomes[0]}, after: {outcomes[1]}", source.fetches


async def asks_itself(player: Player) -> tuple[str, int]:
    source = Source(trio.sleep, 0.1)
    outcomes: list[str] = []
    async with player(source) as (get, _):
        source.asks = get
        with trio.move_on_after(2):
            await outcome_of(get, outcomes)
    return outcomes[0] if outcomes else "deadlock", source.fetches


SCENARIOS: dict[str, Callable[[Player], Awaitable[tuple[str, int]]]] = {
    "the first of 100 callers is cancelled": lambda player: leader_cancelled(player, 0),
    "another of 100 callers is cancelled": lambda player: leader_cancelled(player, 50),
    "all leave, then one comes": lambda player: leader_cancelled(player, -1),
    "the fetch always fails, 100 callers": lambda player: failing(player, float("inf")),
    "only the first fetch fails, 100 callers": lambda player: failing(player, 1),
    "400 callers with 0.1 s, a fetch of 0.25 s": deadlines,
    "invalidated during the fetch": invalidated,
    "a fetch that asks itself": asks_itself,
}


def _words(outcomes: list[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(outcomes).items()))


async def on_asyncio() -> dict[str, tuple[str, int]]:
    """The same with async-lru, in real time, ten times as fast."""
    seen: dict[str, tuple[str, int]] = {}

    async def play(name: str, *, cancel: int | None = None, failures: float = 0, seconds: float = 0.1) -> None:
        source = Source(asyncio.sleep, seconds, failures)

        @alru_cache
        async def cached() -> Any:
            return await source()

        outcomes: list[str] = []

        async def caller() -> None:
            try:
                outcomes.append(str(await cached()))
            except Exception as exc:
                outcomes.append(type(exc).__name__)

        tasks = []
        for _ in range(CALLERS):
            tasks.append(asyncio.create_task(caller()))
            await asyncio.sleep(0)
        for task in [] if cancel is None else tasks if cancel < 0 else [tasks[cancel]]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if cancel is not None and cancel < 0:
            await caller()
        seen[name] = _words(outcomes), source.fetches

    names = list(SCENARIOS)
    await play(names[0], cancel=0)
    await play(names[1], cancel=50)
    await play(names[2], cancel=-1)
    await play(names[3], failures=float("inf"))
    await play(names[4], failures=1)

    source = Source(asyncio.sleep, 0.1)

    @alru_cache
    async def cached() -> Any:
        return await source()

    first = asyncio.create_task(cached())
    await asyncio.sleep(0.05)
    source.value = "new"
    cached.cache_clear()
    seen[names[6]] = f"in flight: {await first}, after: {await cached()}", source.fetches

    source = Source(asyncio.sleep, 0.01)
    source.asks = cached
    cached.cache_clear()
    try:
        await asyncio.wait_for(cached(), 0.5)
    except TimeoutError:
        seen[names[7]] = "deadlock", source.fetches
    return seen


def run(rounds: int) -> list[Figure]:
    """Play all scenarios; prints who lived through what, and gives the number of fetches as figures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio_seen = asyncio.run(on_asyncio())
    figures = []
    for name, scenario in SCENARIOS.items():
        print(f"   {name}")
        counts: dict[str, int] = {}
        for who, player in PLAYERS.items():
            what, counts[who] = trio.run(scenario, player, clock=MockClock(autojump_threshold=0))
            print(f"      {who:<16} {counts[who]:>4} fetches  {what}")
        if name in asyncio_seen:
            what, count = asyncio_seen[name]
            print(f"      {'async-lru':<16} {count:>4} fetches  {what}")
        due = 2 if name == "invalidated during the fetch" else 1
        mine = counts.pop("trio_renew")
        other = min(counts.values())
        figures.append(Figure(name, mine / due, 1.0, mine, other, "the best peer on Trio", "fetches"))
    return figures
