"""Many processes that do what they like, in many orders, and what must hold nevertheless."""

from __future__ import annotations

import random
from contextvars import ContextVar
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from trio_renew import AuthToken, Budget, Event, FetchStarted, RefreshPolicy, RenewError, Share, open_provider
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import under_schedules


class Down(Exception):
    """What stores and sources raise now and then."""


# The state in which the flight began that runs in this task.
_started: ContextVar[tuple[int, int]] = ContextVar("started")


@attrs.define
class Source:
    """Counts who asks, and knows for each token how many clears had begun when it was asked for."""

    failing: float
    begun: int = 0
    done: int = 0
    made: int = 0
    running: list[tuple[int, int]] = attrs.field(factory=list[tuple[int, int]])
    most_at_once: int = 0
    begun_before: dict[str, int] = attrs.field(factory=dict[str, int])

    def state(self) -> tuple[int, int]:
        return self.begun, self.done

    def observe(self, event: Event) -> None:
        if isinstance(event, FetchStarted):
            _started.set(self.state())

    async def __call__(self) -> AuthToken | None:
        mine = self.state()
        # Two fetches between the same two clears must not overlap; one that a clear has overtaken may go on beside.
        undisturbed = mine[0] == mine[1] and _started.get() == mine
        if undisturbed:
            self.running.append(mine)
            self.most_at_once = max(self.most_at_once, self.running.count(mine))
        try:
            await trio.sleep(random.choice([0.0, 0.3, 2.0]))
            if random.random() < self.failing:
                raise Down
            if random.random() < self.failing / 2:
                return None
        finally:
            if undisturbed:
                self.running.remove(mine)
        self.made += 1
        text = f"{self.made}"
        self.begun_before[text] = mine[0]
        return AuthToken.expiring_in(text, random.choice([3.0, 20.0, 600.0]))


async def process(source: Source, share: Share, until: float, *, reliable: bool) -> None:
    policy = RefreshPolicy(min_interval=0.0, serve_expired_for=random.choice([0.0, 5.0]))
    while trio.current_time() < until:
        with trio.move_on_after(random.choice([1.0, 5.0, 50.0])):
            lower = source.done if reliable else 0
            async with open_provider(
                source,
                share=share,
                observe=source.observe,
                eager=False,
                policy=policy,
                breaker=None,
                when_abandoned=random.choice(["finish", "cancel"]),
            ) as provider:
                while trio.current_time() < until:
                    token: AuthToken | None = None
                    try:
                        what = random.random()
                        with trio.move_on_after(random.choice([0.5, 10.0, 100.0])):
                            if what < 0.6:
                                token = await provider.get()
                            elif what < 0.7:
                                token = await provider.refresh()
                            elif what < 0.9:
                                stale = provider.get_nowait()
                                token = await provider.refresh(stale=stale)
                                assert token is None or token != stale
                            else:
                                with trio.CancelScope(shield=True):
                                    source.begun += 1
                                    lower = source.begun
                                    await provider.clear()
                                    source.done += 1
                    except (Down, RenewError, trio.WouldBlock):
                        pass
                    # Nothing from before a clear of our own, or from before we opened.
                    assert token is None or source.begun_before[token.secret.reveal()] >= lower
                    await trio.sleep(random.choice([0.0, 0.1, 1.0]))


async def fleet(failing: float, store_failing: float, between: Any) -> Source:
    source = Source(failing)

    async def now_and_then(*_: Any) -> None:
        if random.random() < store_failing:
            if random.random() < 0.2:
                await trio.sleep(random.choice([1.0, 7.0]))
            raise Down

    async with open_memory_stores(lease=2.0) as stores:
        cache, dedupe = between(stores.cache), between(stores.dedupe)
        if store_failing:
            for name in ("get", "set", "delete"):
                cache.trouble[name] = now_and_then
            for name in ("register_or_join", "wait_outcome", "complete", "fail", "extend"):
                dedupe.trouble[name] = now_and_then
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                share = Share(cache, dedupe, "key")
                nursery.start_soon(partial(process, source, share, 60.0, reliable=not store_failing))
        assert (await stores.dedupe.get_stats()).active_jobs == 0 or store_failing
    return source


@pytest.mark.parametrize("failing", [0.0, 0.3])
def test_stores_that_work(between: Any, failing: float) -> None:
    most: list[int] = []

    async def scenario() -> None:
        source = await fleet(failing, 0.0, between)
        assert source.made
        most.append(source.most_at_once)

    under_schedules(scenario, seeds=8)
    assert max(most) == 1


def test_stores_that_fail_now_and_then(between: Any) -> None:
    async def scenario() -> None:
        source = await fleet(0.2, 0.2, between)
        assert source.made

    under_schedules(scenario, seeds=8)


@attrs.define
class Moody:
    """A store that does not answer, or fails, or takes its time, now and then."""

    dice: random.Random

    async def __call__(self, *_: Any) -> None:
        what = self.dice.random()
        if what < 0.15:
            await trio.sleep(self.dice.choice([0.5, 1.0, 4.9, 7.0, 100.0]))
        elif what < 0.25:
            raise Down


@pytest.mark.parametrize("fetch_timeout", [1.0, 4.0, 12.0])
def test_stores_that_hang_let_a_quick_source_answer_in_time(between: Any, fetch_timeout: float) -> None:
    async def scenario() -> None:
        dice = random.Random(random.random())
        moody = Moody(dice)

        async def mint() -> AuthToken:
            await trio.sleep(0.01)
            return AuthToken.expiring_in(f"{dice.random()}", dice.choice([20.0, 60.0]))

        async with open_memory_stores(lease=dice.choice([0.5, 2.0, 10.0])) as stores:
            cache, dedupe, limit = between(stores.cache), between(stores.dedupe), between(stores.adaptive)
            cache.trouble.update(dict.fromkeys(("get", "set", "delete"), moody))
            dedupe.trouble.update(dict.fromkeys(("register_or_join", "complete", "fail", "extend"), moody))
            limit.trouble["acquire"] = moody
            async with open_provider(
                mint,
                share=Share(cache, dedupe, "key"),
                budget=Budget(limit, "source"),
                fetch_timeout=fetch_timeout,
                eager=False,
                policy=RefreshPolicy(min_interval=0.0, retry=None),
            ) as provider:
                for _ in range(12):
                    await dice.choice([provider.get, provider.get, provider.refresh, provider.clear])()
                    await trio.sleep(dice.choice([0.0, 0.1, 3.0, 30.0]))

    under_schedules(scenario, seeds=20)
