"""The cache against a plain model of what it promises, with random operations."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given, settings
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import invalidate_provider, open_provider_cache

KEYS = "abcd"
TTL, NEGATIVE, MAX = 8.0, 3.0, 3
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["get", "get", "get", "nowait", "delete", "everywhere", "in"]), st.sampled_from(KEYS)
        ),
        st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0, 2.5, 8.0, 40.0])),
        st.tuples(st.just("answers"), st.sampled_from(["value", "none", "error"])),
        st.tuples(st.just("slow"), st.sampled_from(KEYS)),
        st.tuples(st.just("ttl"), st.sampled_from([TTL, 2.0, True, False])),
        st.tuples(st.sampled_from(["clear", "tag", "finish", "cancel"]), st.sampled_from(["even", "odd"])),
    ),
    max_size=60,
)


class Down(Exception):
    """The source is down."""


class Model:
    """What the cache should hold: key -> (value, deadline, stored), least recently used first."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Any, float, float]] = {}
        self.ttl: float = TTL

    def live(self, now: float) -> dict[str, tuple[Any, float, float]]:
        return {key: entry for key, entry in self.held.items() if now < entry[1]}

    def store(self, key: str, value: Any, now: float) -> None:
        self.held.pop(key, None)
        life = min(NEGATIVE, self.ttl) if value is None else self.ttl
        if life <= 0:
            return
        self.held = self.live(now)
        while len(self.held) >= MAX:
            del self.held[next(iter(self.held))]
        self.held[key] = (value, now + life, now)

    def use(self, key: str) -> Any:
        entry = self.held[key] = self.held.pop(key)
        return entry[0]


class World:
    """A source under control, and those who wait for it."""

    def __init__(self) -> None:
        self.answers = "value"
        self.number = 0
        self.slow: dict[str, trio.Event] = {}
        self.running: dict[str, int] = {}

    def answer(self) -> Any:
        self.number += 1
        if self.answers == "error":
            raise Down(self.number)
        return None if self.answers == "none" else self.number

    async def resolve(self, key: str) -> Any:
        await trio.lowlevel.checkpoint()
        if key in self.slow:
            await self.slow[key].wait()
        return self.answer()


@given(OPERATIONS)
@settings(max_examples=250)
def test_the_cache_does_what_its_model_says(operations: list[tuple[str, Any]]) -> None:
    trio.run(run_against_model, operations, clock=MockClock(autojump_threshold=0))


async def run_against_model(operations: list[tuple[str, Any]]) -> None:
    world, model = World(), Model()
    waiting: dict[str, list[trio.CancelScope]] = {}
    results: list[tuple[str, Any]] = []

    async def wait(key: str, scope: trio.CancelScope) -> None:
        with scope:
            try:
                results.append((key, await cache.get(key)))
            except Down as exc:
                results.append((key, exc))

    async with (
        open_provider_cache(
            world.resolve, ttl=TTL, negative_ttl=NEGATIVE, max_entries=MAX, tags=lambda key, value: [parity(key)]
        ) as cache,
        trio.open_nursery() as nursery,
    ):
        for operation, argument in operations:
            now = trio.current_time()
            live = model.live(now)
            match operation:
                case "get":
                    if argument in live:
                        assert await cache.get(argument) == model.use(argument)
                    elif argument in world.slow:
                        scope = trio.CancelScope()
                        waiting.setdefault(argument, []).append(scope)
                        nursery.start_soon(wait, argument, scope)
                        await wait_all_tasks_blocked()
                    else:
                        try:
                            value = await cache.get(argument)
                        except Down:
                            assert world.answers == "error"
                        else:
                            assert value == (None if world.answers == "none" else world.number)
                            model.store(argument, value, trio.current_time())
                case "nowait" if argument in live:
                    assert cache.get_nowait(argument) == model.use(argument)
                case "nowait":
                    with pytest.raises(trio.WouldBlock):
                        cache.get_nowait(argument)
                case "delete" | "everywhere":
                    in_progress = argument in waiting
                    drop = cache.delete if operation == "delete" else invalidate_provider
                    assert drop(argument) is (argument in live or in_progress)
                    model.held.pop(argument, None)
                    if in_progress:
                        # From here on nobody new joins it; it is answered for those who wait.
                        world.slow[argument].set()
                        await wait_all_tasks_blocked()
                        waiting.pop(argument)
                        del world.slow[argument]
                case "in":
                    assert (argument in cache) is (argument in live)
                case "advance":
                    await trio.sleep(argument)
                case "answers":
                    world.answers = argument
                case "slow" if argument not in live:
                    world.slow.setdefault(argument, trio.Event())
                case "ttl":
                    cache.set_ttl(argument)
                    model.ttl = float("inf") if argument is True else float(argument)
                    model.held = {
                        key: (value, min(deadline, stored + model.ttl), stored)
                        for key, (value, deadline, stored) in model.held.items()
                        if model.ttl
                    }
                case "clear":
                    assert cache.clear() == len(live)
                    model.held.clear()
                    await settle_fenced(world, waiting)
                case "tag":
                    gone = [key for key in model.held if parity(key) == argument]
                    assert cache.invalidate_tag(argument) == sum(key in live for key in gone)
                    for key in gone:
                        del model.held[key]
                    await settle_fenced(world, waiting)
                case "finish":
                    for key in sorted(world.slow):
                        world.slow.pop(key).set()
                        results.clear()
                        await wait_all_tasks_blocked()
                        callers = waiting.pop(key, [])
                        left = [scope for scope in callers if not scope.cancel_called]
                        assert len(results) == len(left)
                        if callers and world.answers != "error":
                            value = None if world.answers == "none" else world.number
                            assert [result for _, result in results] == [value] * len(left)
                            model.store(key, value, trio.current_time())
                case "cancel":
                    for scopes in waiting.values():
                        scopes[0].cancel()
                    await wait_all_tasks_blocked()
                case _:
                    pass
            assert len(cache) == len(model.live(trio.current_time()))
            assert cache.status().waiting == sum(
                not scope.cancel_called for scopes in waiting.values() for scope in scopes
            )
        for event in world.slow.values():
            event.set()
    assert len(cache) == 0


async def settle_fenced(world: World, waiting: dict[str, list[trio.CancelScope]]) -> None:
    """What was in progress when everything was dropped: it answers, and is not kept."""
    for key in list(waiting):
        world.slow.pop(key).set()
        await wait_all_tasks_blocked()
        del waiting[key]


def parity(key: str) -> str:
    return "even" if ord(key) % 2 == 0 else "odd"
