"""Fetches that spend of a limit shared with others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AdaptiveConfig,
    AuthToken,
    Backoff,
    BreakerOpen,
    BreakerPolicy,
    Budget,
    BudgetExhausted,
    Closed,
    Event,
    FetchFailed,
    RateLimitConfig,
    RefreshPolicy,
    ServedExpired,
    Share,
    StorageFailed,
    StoreError,
    open_provider,
)
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import Block, ScriptedFetch, Sleep, Token, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


class Limit:
    """An adaptive rate limit that says what it is told to."""

    def __init__(self, *, user: bool = True, background: bool = True, wait: float = 7.0) -> None:
        self.allowed = {"user": user, "background": background}
        self.wait = wait
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.delay = 0.0

    async def acquire(self, resource: str, priority: str = "background") -> bool:
        assert resource == "idp"
        self.asked.append(priority)
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return self.allowed[priority]

    async def get_wait_time(self, resource: str, priority: str = "background") -> float:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return self.wait


def budget_of(limit: Any) -> Budget:
    return Budget(limit, "idp")


def text(token: AuthToken) -> str:
    return token.secret.reveal()


async def into(results: list[Any], call: Callable[[], Awaitable[Any]]) -> None:
    try:
        results.append(await call())
    except Exception as exc:
        results.append(exc)


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def test_arguments() -> None:
    with pytest.raises(TypeError, match="adaptive_store must be an AdaptiveRateLimitStore, but int has no acquire"):
        Budget(3, "idp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="resource must be a str"):
        Budget(Limit(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resource must not be empty"):
        Budget(Limit(), "")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget must be a Budget or None, got Limit"):
        async with open_provider(ScriptedFetch(), budget=Limit()):  # type: ignore[arg-type]
            pass


async def test_who_waits_is_a_user(autojump_clock: MockClock) -> None:
    limit = Limit()
    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider(fetch, budget=budget_of(limit), policy=PLAIN()) as provider:
        await provider.refresh()
        await until(provider, "due")
        await provider.get()
        await wait_all_tasks_blocked()
        await provider.clear()
        await provider.get()
    assert limit.asked == ["user", "user", "background", "user"]
    assert fetch.calls == 4


async def test_a_refused_caller(autojump_clock: MockClock) -> None:
    limit = Limit(user=False)
    events: list[Event] = []
    fetch = ScriptedFetch(Token("a", 100.0))
    async with open_provider(
        fetch, budget=budget_of(limit), eager=False, observe=events.append, clock=lambda: 1000.0
    ) as provider:
        with pytest.raises(BudgetExhausted) as refused:
            await provider.get()
        assert refused.value.retry_at == 1007.0
        assert names(events) == ["FetchStarted", "FetchAbandoned"]
        status = provider.status()
        assert (status.failures, status.breaker, status.next_attempt_at, status.last_error) == (
            0,
            Closed(0),
            None,
            None,
        )
        limit.allowed["user"] = True
        assert text(await provider.get()) == "a"


async def test_a_refused_opening() -> None:
    with pytest.raises(BudgetExhausted):
        async with open_provider(ScriptedFetch(), budget=budget_of(Limit(user=False))):
            raise AssertionError("not reached")


async def test_a_refused_refresh(autojump_clock: MockClock) -> None:
    limit = Limit()
    async with open_provider(ScriptedFetch(Token("a", 100.0)), budget=budget_of(limit)) as provider:
        limit.allowed["user"] = False
        with pytest.raises(BudgetExhausted):
            await provider.refresh()
        assert text(await provider.get()) == "a"


async def test_what_may_still_be_served(autojump_clock: MockClock) -> None:
    limit = Limit()
    events: list[Event] = []
    policy = RefreshPolicy(jitter=0.0, leeway=10.0, serve_expired_for=50.0)
    async with open_provider(
        ScriptedFetch(Token("a", 100.0)), budget=budget_of(limit), policy=policy, observe=events.append
    ) as provider:
        limit.allowed["user"] = limit.allowed["background"] = False
        for at, age in ((95.0, 0.0), (120.0, 20.0)):
            await trio.sleep(at - trio.current_time())
            assert text(await provider.get()) == "a"
            assert events[-1] == ServedExpired(age) or events[-2] == ServedExpired(age)
        with pytest.raises(BudgetExhausted):
            await provider.refresh()
        await trio.sleep(50.0)
        with pytest.raises(BudgetExhausted):
            await provider.get()


async def test_a_refused_background_refresh_is_put_off(autojump_clock: MockClock) -> None:
    limit = Limit(background=False, wait=7.0)
    events: list[Event] = []
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider(
        fetch, budget=budget_of(limit), policy=PLAIN(retry=Backoff()), observe=events.append
    ) as provider:
        await until(provider, "due")
        due = provider.status().due_at
        assert due is not None
        for _ in range(3):
            assert text(await provider.get()) == "a"
            await wait_all_tasks_blocked()
        assert limit.asked == ["user", "background"]
        assert names(events)[-2:] == ["FetchStarted", "FetchAbandoned"]
        status = provider.status()
        assert (status.failures, status.next_attempt_at) == (0, due + 7.0)
        await trio.sleep(6.9)
        await provider.get()
        await wait_all_tasks_blocked()
        assert limit.asked == ["user", "background"]
        limit.allowed["background"] = True
        await trio.sleep(0.11)
        await provider.get()
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"
        assert provider.status().next_attempt_at is None


async def test_a_refusal_that_is_over_at_once_makes_no_loop(autojump_clock: MockClock) -> None:
    limit = Limit(background=False, wait=0.0)
    async with open_provider(
        ScriptedFetch(Token("a", 100.0)),
        budget=budget_of(limit),
        policy=PLAIN(),
        keep_warm=1000.0,
    ) as provider:
        await until(provider, "due")
        await trio.sleep(10.0)
        assert 1 <= limit.asked.count("background") <= 101


async def test_who_had_joined_decides_again_as_a_user(autojump_clock: MockClock) -> None:
    limit = Limit(background=False)
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_provider(fetch, budget=budget_of(limit), policy=PLAIN()) as provider:
        await trio.sleep(99.5)
        limit.delay = 1.0
        provider.get_nowait()
        await trio.sleep(0.6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into, results, provider.get)
            nursery.start_soon(into, results, partial(provider.refresh, stale=await provider_stale(provider)))
        assert [text(token) for token in results] == ["b", "b"]
        assert limit.asked == ["user", "background", "user"]


async def provider_stale(provider: Any) -> AuthToken:
    await trio.lowlevel.checkpoint()
    return AuthToken("a", provider.status().expires_at)


async def test_one_waits_and_is_refused(autojump_clock: MockClock) -> None:
    limit = Limit(background=False)
    async with open_provider(
        ScriptedFetch(Token("a", 100.0)), budget=budget_of(limit), policy=PLAIN(due="one_waits")
    ) as provider:
        await until(provider, "due")
        assert text(await provider.get()) == "a"


async def test_a_budget_that_is_down_lets_it_through(autojump_clock: MockClock) -> None:
    limit = Limit(user=False)
    limit.error = StoreError("down")
    events: list[Event] = []
    async with open_provider(
        ScriptedFetch(then=Token("a", 100.0)), budget=budget_of(limit), observe=events.append
    ) as provider:
        assert text(await provider.get()) == "a"
        assert [e.operation for e in events if isinstance(e, StorageFailed)] == ["acquire"]
        limit.error = None
        limit.delay = 6.0
        await provider.refresh()
        assert trio.current_time() == 5.0
        limit.delay = 0.0

        async def broken(resource: str, priority: str) -> float:
            raise StoreError("down")

        limit.get_wait_time = broken  # type: ignore[method-assign, assignment]
        await provider.refresh()
    assert [e.operation for e in events if isinstance(e, StorageFailed)] == ["acquire", "acquire", "get_wait_time"]


async def test_the_same_error_of_the_source_is_a_failure(autojump_clock: MockClock) -> None:
    """A mint that has a budget of its own inside: what it raises is no refusal here."""
    events: list[Event] = []
    async with open_provider(
        ScriptedFetch(then=BudgetExhausted(3.0)), budget=budget_of(Limit()), eager=False, observe=events.append
    ) as provider:
        with pytest.raises(BudgetExhausted):
            await provider.get()
        assert provider.status().failures == 1
        assert isinstance(events[-1], FetchFailed)


async def test_a_refused_try_through_an_open_breaker_was_none(autojump_clock: MockClock) -> None:
    limit = Limit()
    fetch = ScriptedFetch(Token("a", 1000.0), Down(), Token("b", 1000.0))
    async with open_provider(
        fetch, budget=budget_of(limit), breaker=BreakerPolicy(threshold=1, cooldown=500.0)
    ) as provider:
        a = await provider.get()
        with pytest.raises(Down):
            await provider.refresh()
        with pytest.raises(BreakerOpen):
            await provider.refresh()
        limit.allowed["user"] = False
        for _ in range(2):
            with pytest.raises(BudgetExhausted):
                await provider.refresh(stale=a)
        limit.allowed["user"] = True
        assert text(await provider.refresh(stale=a)) == "b"


async def test_cleared_while_it_was_refused(autojump_clock: MockClock) -> None:
    limit = Limit(background=False)
    async with open_provider(ScriptedFetch(then=Token("a", 100.0)), budget=budget_of(limit), policy=PLAIN()) as p:
        await until(p, "due")
        limit.delay = 1.0
        p.get_nowait()
        await wait_all_tasks_blocked()
        await p.clear()
        limit.delay = 0.0
        await p.get()
        await trio.sleep(2.0)
        assert p.status().next_attempt_at is None


# With a share


async def test_what_a_peer_fetched_costs_nothing(autojump_clock: MockClock) -> None:
    limit = Limit()
    fetch = ScriptedFetch(Sleep(1.0, Token("a", 100.0)))
    async with open_memory_stores() as stores:
        share = Share(stores.cache, stores.dedupe, "key")

        async def process() -> None:
            async with open_provider(fetch, share=share, budget=budget_of(limit)):
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(process)
    assert limit.asked == ["user"]


async def test_a_refused_owner_gives_the_job_up(autojump_clock: MockClock) -> None:
    poor, rich = Limit(user=False), Limit()
    poor.delay = 1.0
    fetch = ScriptedFetch(Token("a", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        share = Share(stores.cache, stores.dedupe, "key")
        async with (
            open_provider(fetch, share=share, budget=budget_of(poor), eager=False) as first,
            open_provider(fetch, share=share, budget=budget_of(rich), eager=False) as second,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, second.get)
            assert isinstance(results[0], BudgetExhausted)
            assert text(results[1]) == "a"
            assert trio.current_time() == 1.0
            # Now it is there for the poor one as well.
            assert text(await first.get()) == "a"


async def test_with_a_real_limit(autojump_clock: MockClock) -> None:
    """Two requests in ten seconds; no part of them for background work as long as users are active."""
    config = RateLimitConfig(limit=2, window=10.0)
    events: list[Event] = []
    block = ScriptedFetch(then=Token("a", 1000.0))
    async with open_memory_stores(default_config=config, adaptive_config=AdaptiveConfig()) as stores:
        budget = Budget(stores.adaptive, "idp")
        async with open_provider(block, budget=budget, observe=events.append) as provider:
            await provider.refresh()
            with pytest.raises(BudgetExhausted) as refused:
                await provider.refresh()
            wait = refused.value.retry_at - (provider.status().issued_at or 0.0)
            assert wait == pytest.approx(10.0)
            await trio.sleep(10.0)
            await provider.refresh()
    assert block.calls == 3
    assert names(events).count("FetchAbandoned") == 1


async def test_cancelled_while_it_asks(autojump_clock: MockClock) -> None:
    limit = Limit()
    limit.delay = 3.0
    async with open_provider(
        ScriptedFetch(Block()), budget=budget_of(limit), eager=False, when_abandoned="cancel"
    ) as provider:
        with trio.move_on_after(1.0):
            await provider.get()
        await wait_all_tasks_blocked()
        assert not provider.status().fetching
