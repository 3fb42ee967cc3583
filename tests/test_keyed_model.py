"""The cache against a plain model of what it promises, with random operations."""

from __future__ import annotations

from math import inf
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


# One key whose source fails, is slow, or has no value: what is served meanwhile, and when the source is asked.

TRY_AGAIN = 1.0
# None ends in the very moment of another call: both orders would be right.
OUTCOMES = st.tuples(
    st.sampled_from([0.0, 0.0, 1.125, 3.125, 20.125]), st.sampled_from(["value", "value", "error", "none"])
)


class Outage:
    """The same by its rules: a script of (seconds, outcome) is asked at the instants of the calls."""

    def __init__(self, script: list[tuple[float, str]], refresh_at: float, grace: float, negative: float) -> None:
        self.script = script
        self.refresh_at = refresh_at
        self.grace = grace
        self.negative = negative
        self.answers: dict[float, tuple[float, object]] = {}
        self.starts: list[float] = []
        self.value: object = None
        self.stored = self.deadline = self.failed = -inf
        self.end = inf
        self.waiting: list[float] = []

    def call(self, now: float) -> None:
        self.settle(now)
        in_grace = self.deadline <= now < self.deadline + self.grace
        if now < self.deadline or (in_grace and self.failed >= self.deadline):
            due = now >= self.stored + (self.deadline - self.stored) * self.refresh_at
            self.answers[now] = (now, self.value)
            if due and self.end == inf and now >= self.failed + TRY_AGAIN:
                self.start(now)
        else:
            if self.end == inf:
                self.start(now)
            self.waiting.append(now)
        self.settle(now)

    def start(self, now: float) -> None:
        self.end = now + self.script[len(self.starts)][0]
        self.starts.append(now)

    def settle(self, now: float) -> None:
        if self.end > now:
            return
        number, end = len(self.starts) - 1, self.end
        outcome = self.script[number][1]
        self.end = inf
        answer: object = number if outcome == "value" else None
        if outcome != "error":
            life = TTL if outcome == "value" else self.negative
            self.value, self.stored, self.failed = answer, end, -inf
            self.deadline = end + life if life else -inf
        elif end < self.deadline + self.grace:
            answer, self.failed = self.value, end
        else:
            answer = f"down {number}"
        for caller in self.waiting:
            self.answers[caller] = (end, answer)
        self.waiting = []


@given(
    script=st.lists(OUTCOMES, min_size=40, max_size=40),
    calls=st.sets(st.integers(0, 160).map(lambda number: 0.25 + number / 2), max_size=40),
    refresh_at=st.sampled_from([1.0, 0.5]),
    grace=st.sampled_from([0.0, 5.0, 30.0]),
    negative=st.sampled_from([0.0, NEGATIVE]),
)
@settings(max_examples=300)
def test_an_outage_goes_by_the_rules(
    script: list[tuple[float, str]], calls: set[float], refresh_at: float, grace: float, negative: float
) -> None:
    model = Outage(script, refresh_at, grace, negative)
    for now in sorted(calls):
        model.call(now)
    model.settle(1e9)
    answers: dict[float, tuple[float, object]] = {}
    starts: list[float] = []

    async def resolve(key: str) -> int | None:
        number = len(starts)
        starts.append(trio.current_time())
        seconds, outcome = script[number]
        await trio.sleep(seconds)
        if outcome == "error":
            raise Down(number)
        return number if outcome == "value" else None

    async def main() -> None:
        async with (
            open_provider_cache(
                resolve, ttl=TTL, negative_ttl=negative, refresh_at=refresh_at, serve_expired_for=grace
            ) as cache,
            trio.open_nursery() as nursery,
        ):

            async def call(now: float) -> None:
                await trio.sleep_until(now)
                try:
                    answer: object = await cache.get("a")
                except Down as exc:
                    answer = f"down {exc.args[0]}"
                answers[now] = (trio.current_time(), answer)

            for now in sorted(calls):
                nursery.start_soon(call, now)
            await trio.sleep(100.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert (answers, starts) == (model.answers, model.starts)
