"""A provider in the corners where its rules meet: leeway and None, permanent and one_waits, override and leaving."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerChanged,
    BreakerOpen,
    BreakerPolicy,
    Closed,
    CredentialError,
    Event,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    HalfOpen,
    MemoryStorage,
    MintedTokenAlreadyExpired,
    Open,
    RefreshingProvider,
    RefreshPolicy,
    ServedExpired,
    StorageFailed,
    Unconfigured,
    open_provider,
)
from trio_renew._clock import wall_now
from trio_renew.lowlevel import open_provider_with
from trio_renew.testing import Block, Handoff, ScriptedFetch, Sleep, Stubborn, Token, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


class Gone(Exception):
    """What they raise when asking again is no use."""


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def text(token: AuthToken) -> str:
    return token.secret.reveal()


async def collect(call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    try:
        into.append(await call())
    except Exception as exc:
        into.append(exc)


def started(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, FetchStarted)]


# A refusal is no failure of the source


@pytest.mark.parametrize("permanent", [(CredentialError,), lambda error: not isinstance(error, Down)])
async def test_an_open_breaker_is_no_permanent_failure(permanent: Any, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down())
    policy = PLAIN(serve_expired_for=50.0, permanent=permanent)
    async with open_provider(fetch, policy=policy, breaker=BreakerPolicy(threshold=1)) as provider:
        await until(provider, "expiry")
        for _ in range(3):
            assert text(await provider.get()) == "a"
            assert text((await provider.lease()).value) == "a"
        assert fetch.calls == 2


async def test_a_predicate_is_asked_once_per_failure(autojump_clock: MockClock) -> None:
    asked: list[BaseException] = []

    def permanent(error: BaseException) -> bool:
        asked.append(error)
        return True

    fetch = ScriptedFetch(Token("a", 100.0), Block(Gone()))
    policy = PLAIN(serve_expired_for=1000.0, permanent=permanent)
    async with open_provider(fetch, policy=policy) as provider, trio.open_nursery() as nursery:
        await until(provider, "expiry")
        got: list[Any] = []
        for _ in range(10):
            nursery.start_soon(collect, provider.get, got)
        await wait_all_tasks_blocked()
        fetch.release()
        await wait_all_tasks_blocked()
        assert [type(error) for error in got] == [Gone] * 10
        assert len(asked) == 1


async def test_a_permanent_failure_that_is_over_at_once(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Block(Gone()), Block(Gone()))
    policy = PLAIN(serve_expired_for=1000.0, permanent=(Gone,), permanent_ttl=(0.0, 0.0))
    async with open_provider(fetch, policy=policy) as provider, trio.open_nursery() as nursery:
        await until(provider, "expiry")
        got: list[Any] = []
        for n in range(2):
            nursery.start_soon(collect, provider.get, got)
            nursery.start_soon(collect, provider.get, got)
            await fetch.called(n + 2)
            await wait_all_tasks_blocked()
            fetch.release()
            await wait_all_tasks_blocked()
        assert [type(error) for error in got] == [Gone] * 4


# permanent


async def test_one_waits_and_a_permanent_failure_leaves_a_good_value(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(5.0, Gone()), Sleep(25.0, Gone()), Token("b", 100.0))
    policy = PLAIN(permanent=(Gone,), permanent_ttl=(2.0, 2.0), due="one_waits", serve_expired_for=1000.0)
    events: list[Event] = []
    async with open_provider(fetch, policy=policy, observe=events.append) as provider, trio.open_nursery() as nursery:
        await until(provider, "due")
        assert text(await provider.get()) == "a"  # it waited, and the value is good
        assert trio.current_time() == pytest.approx(75.0)
        assert provider.status().next_attempt_at == wall_now() + 2.0
        assert text(await provider.get()) == "a"
        assert fetch.calls == 2
        await trio.sleep(2.0)
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        nursery.start_soon(collect, provider.get, got)
        await wait_all_tasks_blocked()
        assert [text(token) for token in got] == ["a"]  # the other one is served meanwhile
        await trio.sleep(24.0)
        nursery.start_soon(collect, provider.get, got)
        await trio.sleep(1.5)
        # Expired meanwhile, and permanent: whatever serve_expired_for says.
        assert [type(error) for error in got[1:]] == [Gone, Gone]
        with pytest.raises(Gone):
            await provider.get()
        assert fetch.calls == 3
    assert "ServedExpired" not in names(events)


async def test_refresh_does_not_reach_the_source_while_a_permanent_failure_is_remembered(
    autojump_clock: MockClock,
) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Gone(), Token("b", 100.0))
    policy = PLAIN(permanent=(Gone,), permanent_ttl=(5.0, 5.0))
    async with open_provider(fetch, policy=policy) as provider:
        token = await provider.get()
        for _ in range(2):
            with pytest.raises(Gone):
                await provider.refresh()
            with pytest.raises(Gone):
                await provider.refresh(stale=token)
        assert await provider.get() is token
        assert fetch.calls == 2
        assert provider.status().failures == 1
        assert provider.status().breaker == Closed(0)
        await provider.clear()
        assert text(await provider.get()) == "b"


async def test_a_permanent_failure_ends_a_running_backoff(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down(), Gone(), Down())
    policy = PLAIN(permanent=(Gone,), permanent_ttl=(5.0, 5.0), retry=Backoff(initial=100.0, maximum=100.0, jitter=0.0))
    events: list[Event] = []
    async with open_provider(fetch, policy=policy, observe=events.append) as provider:
        with pytest.raises(Down):
            await provider.refresh()
        assert provider.status().next_attempt_at == wall_now() + 100.0
        with pytest.raises(Gone):
            await provider.refresh()
        assert provider.status().next_attempt_at == wall_now() + 5.0
        await trio.sleep(5.0)
        assert provider.status().next_attempt_at is None
        with pytest.raises(Down):
            await provider.refresh()
        assert provider.status().next_attempt_at == wall_now() + 100.0  # the first one again
        assert provider.status().failures == 3
    at = [event.next_attempt_at for event in events if isinstance(event, FetchFailed)]
    assert [at[1] - at[0], at[2] - at[1]] == [-95.0, 100.0]  # type: ignore[operator]


async def test_a_permanent_probe_leaves_the_breaker_half_open(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Down(), Gone(), Token("a", 100.0))
    policy = PLAIN(permanent=(Gone,), permanent_ttl=(1.0, 1.0))
    breaker = BreakerPolicy(threshold=1, cooldown=10.0)
    async with open_provider(fetch, policy=policy, breaker=breaker, eager=False) as provider:
        with pytest.raises(Down):
            await provider.get()
        await trio.sleep(10.0)
        with pytest.raises(Gone):
            await provider.get()
        assert provider.status().breaker == HalfOpen()
        await trio.sleep(1.0)
        assert text(await provider.get()) == "a"
        assert provider.status().breaker == Closed(0)


# leeway, serve_expired_for, None


async def test_leeway_and_none(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), None, None, None, Token("b", 100.0))
    events: list[Event] = []
    policy = RefreshPolicy(
        jitter=0.0, leeway=10.0, serve_expired_for=5.0, min_interval=0.0, retry=None, refresh_before=0.0
    )
    async with open_provider(fetch, policy=policy, observe=events.append) as provider:
        await until(provider, "expiry", -10.0)
        assert not provider.status().good
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert text(await provider.get()) == "a"
        assert events[-1] == ServedExpired(0.0)
        assert await provider.refresh() is None
        await until(provider, "expiry", 4.0)
        assert text(await provider.get()) == "a"
        assert events[-1] == ServedExpired(4.0)
        await until(provider, "expiry", 5.0)
        assert text(await provider.get()) == "b"
        status = provider.status()
        assert (status.failures, status.breaker) == (0, Closed(0))
    assert started(events) == ["initial", "expired", "forced", "expired", "expired"]


async def test_none_past_all_grace_is_none(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), None, None)
    async with open_provider(fetch, policy=PLAIN()) as provider:
        await until(provider, "expiry")
        assert await provider.get() is None
        lease = await provider.lease()
        assert (lease.value, lease.expires_at, lease.generation) == (None, None, 1)


async def test_one_waits_and_none_leaves_a_good_value(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(5.0, None), Token("b", 100.0))
    policy = PLAIN(due="one_waits", retry=Backoff(initial=10.0, jitter=0.0))
    async with open_provider(fetch, policy=policy) as provider:
        await until(provider, "due")
        assert text(await provider.get()) == "a"
        assert trio.current_time() == pytest.approx(75.0)
        assert provider.status().next_attempt_at == wall_now() + 10.0
        assert text(await provider.get()) == "a"
        assert fetch.calls == 2
        await trio.sleep(10.0)
        assert text(await provider.get()) == "b"


async def test_leeway_while_the_breaker_refuses(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down())
    events: list[Event] = []
    policy = RefreshPolicy(jitter=0.0, retry=None, min_interval=0.0)
    async with open_provider(fetch, policy=policy, breaker=BreakerPolicy(1, 60.0), observe=events.append) as provider:
        await until(provider, "expiry", -10.0)
        assert text(await provider.get()) == "a"
        with assert_checkpoints():
            assert text(await provider.get()) == "a"
        assert [event.age for event in events if isinstance(event, ServedExpired)] == [0.0, 0.0]
        await until(provider, "expiry")
        with pytest.raises(BreakerOpen) as info:
            await provider.get()
        assert isinstance(info.value.__cause__, Down)
        assert fetch.calls == 2


async def test_a_fetch_that_brings_a_value_inside_its_leeway_is_handed_out(autojump_clock: MockClock) -> None:
    calls = 0

    async def mint() -> AuthToken:
        nonlocal calls
        calls += 1
        token = AuthToken.expiring_in("a", 100.0)
        await trio.sleep(95.0)
        return token

    async with open_provider(mint, eager=False, fetch_timeout=None) as provider:
        assert text(await provider.get()) == "a"
        assert not provider.status().good
        assert provider.status().held
        await trio.sleep(4.0)
        assert calls == 1


async def test_the_leeway_is_at_most_a_tenth_of_the_life(autojump_clock: MockClock) -> None:
    for life, good in ((20.0, 18.0), (100.0, 90.0), (1000.0, 990.0)):
        async with open_provider(ScriptedFetch(Token("a", life)), policy=PLAIN(leeway=10.0)) as provider:
            start = trio.current_time()
            await trio.sleep_until(start + good - 0.25)
            assert provider.status().good
            await trio.sleep_until(start + good)
            assert not provider.status().good


async def test_serve_expired_for_while_a_fetch_unwinds(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Stubborn(30.0, Down()))
    events: list[Event] = []
    policy = PLAIN(serve_expired_for=100.0)
    async with open_provider(fetch, policy=policy, fetch_timeout=5.0, observe=events.append) as provider:
        await until(provider, "expiry")
        assert text(await provider.get()) == "a"  # timed out after 5 s, still unwinding
        assert text(await provider.get()) == "a"  # waited 5 s for the slot
        assert [event.age for event in events if isinstance(event, ServedExpired)] == [5.0, 10.0]
        assert provider.status().failures == 1
        assert fetch.calls == 2
        with pytest.raises(FetchTimeout):
            await provider.refresh()


async def test_serve_expired_for_infinity(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), then=Down())
    async with open_provider(fetch, policy=PLAIN(serve_expired_for=math.inf)) as provider:
        await trio.sleep(1e7)
        assert text(await provider.get()) == "a"


@pytest.mark.parametrize("late_by", [0.0, 5.0])
async def test_opening_with_an_expired_stored_value(late_by: float, autojump_clock: MockClock) -> None:
    storage: MemoryStorage[AuthToken] = MemoryStorage()
    await storage.set(AuthToken("old", wall_now() - late_by))
    events: list[Event] = []
    policy = PLAIN(serve_expired_for=5.0)
    opening = open_provider(ScriptedFetch(then=Down()), policy=policy, storage=storage, observe=events.append)
    if late_by:
        with pytest.raises(Down):
            async with opening:
                raise AssertionError
        assert names(events) == ["FetchStarted", "FetchFailed", "OwnerClosed"]
    else:
        async with opening as provider:
            assert provider.status().held
            assert not provider.status().good
        assert names(events) == ["FetchStarted", "FetchFailed", "ServedExpired", "OwnerClosed"]
    assert started(events) == ["initial"]


# The breaker and refresh(stale)


async def open_the_breaker(provider: RefreshingProvider[AuthToken]) -> None:
    with pytest.raises(Down):
        await provider.refresh()
    assert isinstance(provider.status().breaker, Open)


async def test_an_abandoned_try_through_the_open_breaker_was_none(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down(), Block("x"), Sleep(2.0, Down()), Token("b", 1000.0))
    events: list[Event] = []
    async with open_provider(
        fetch, policy=PLAIN(), breaker=BreakerPolicy(1, 60.0), when_abandoned="cancel", observe=events.append
    ) as provider:
        token = await provider.get()
        await open_the_breaker(provider)
        with pytest.raises(BreakerOpen):
            await provider.refresh()
        await trio.sleep(10.0)
        with trio.move_on_after(1.0):
            await provider.refresh(stale=token)
        assert provider.status().breaker == Open(wall_now() + 49.0)
        await wait_all_tasks_blocked()
        events.clear()
        with pytest.raises(Down):
            await provider.refresh(stale=token)
        assert provider.status().breaker == Open(wall_now() + 60.0)
        assert names(events) == ["FetchStarted", "FetchFailed"]
        with pytest.raises(BreakerOpen) as info:
            await provider.refresh(stale=await provider.lease())
        assert info.value.retry_at == wall_now() + 60.0
        await trio.sleep(60.0)
        assert text(await provider.refresh(stale=token)) == "b"
        assert names(events[2:]) == ["BreakerChanged", "FetchStarted", "BreakerChanged", "FetchSucceeded"]


async def test_a_try_that_ends_in_the_handoff_window_was_none(autojump_clock: MockClock) -> None:
    handoff = Handoff(hold={3})
    fetch = ScriptedFetch(Token("a", 1000.0), Down(), Token("b", 1000.0))
    async with open_provider_with(handoff, fetch, policy=PLAIN(), breaker=BreakerPolicy(1, 60.0)) as provider:
        token = await provider.get()
        await open_the_breaker(provider)
        with trio.move_on_after(1.0):
            await provider.refresh(stale=token)
        assert text(await provider.refresh(stale=token)) == "b"
        assert provider.status().breaker == Closed(0)


async def test_a_success_through_the_open_breaker_closes_it(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down(), Token("b", 1000.0), Down(), Token("c", 1000.0))
    events: list[Event] = []
    async with open_provider(fetch, policy=PLAIN(), breaker=BreakerPolicy(1, 60.0), observe=events.append) as provider:
        for stale in ("a", "b"):
            token = await provider.get()
            assert text(token) == stale
            await open_the_breaker(provider)
            await provider.refresh(stale=token)
        assert text(await provider.get()) == "c"
    changes = [(type(e.old), type(e.new)) for e in events if isinstance(e, BreakerChanged)]
    assert changes == [(Closed, Open), (Open, Closed)] * 2


async def test_the_rejection_of_what_is_not_held_does_not_pass_an_open_breaker(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down())
    async with open_provider(fetch, policy=PLAIN(), breaker=BreakerPolicy(1, 600.0)) as provider:
        token = await provider.get()
        await open_the_breaker(provider)
        await until(provider, "expiry")
        for stale in (AuthToken("other"), None):
            with pytest.raises(BreakerOpen):
                await provider.refresh(stale=stale)
        await provider.clear()
        with pytest.raises(BreakerOpen):
            await provider.refresh(stale=token)


async def test_clear_leaves_the_breaker_and_the_count(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down(), Down())
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0))
    async with open_provider(fetch, policy=policy, breaker=BreakerPolicy(3, 60.0)) as provider:
        for _ in range(2):
            with pytest.raises(Down):
                await provider.refresh()
        await provider.clear()
        status = provider.status()
        assert (status.failures, status.breaker, status.next_attempt_at) == (2, Closed(2), None)
        assert (status.held, status.good, status.generation) == (False, False, 2)
        assert (status.issued_at, status.expires_at, status.due_at) == (None, None, None)


async def test_a_fenced_probe_leaves_its_place_free(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Down(), Block(Down()), Token("b", 100.0))
    breaker = BreakerPolicy(1, 10.0)
    async with (
        open_provider(fetch, policy=PLAIN(), breaker=breaker, eager=False) as provider,
        trio.open_nursery() as nursery,
    ):
        with pytest.raises(Down):
            await provider.get()
        await trio.sleep(10.0)
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        await wait_all_tasks_blocked()
        assert provider.status().breaker == HalfOpen()
        await provider.clear()
        assert text(await provider.get()) == "b"
        fetch.release()
        await wait_all_tasks_blocked()
        assert [type(error) for error in got] == [Down]
        assert provider.status().breaker == Closed(0)
        assert provider.status().failures == 0


async def test_no_breaker(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Down())
    async with open_provider(fetch, eager=False, breaker=None) as provider:
        for _ in range(20):
            with pytest.raises(Down):
                await provider.get()
        status = provider.status()
        assert (status.breaker, status.failures) == (None, 20)


async def test_timeouts_count_as_failures(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Sleep(10.0, "x"))
    async with open_provider(fetch, eager=False, fetch_timeout=1.0, breaker=BreakerPolicy(2)) as provider:
        for _ in range(2):
            with pytest.raises(FetchTimeout):
                await provider.get()
        with pytest.raises(BreakerOpen) as info:
            await provider.get()
        assert isinstance(info.value.__cause__, FetchTimeout)


# Values


@pytest.mark.parametrize(
    ("expires_at", "error"),
    [
        (lambda value: math.nan, ValueError),
        (lambda value: "soon", ValueError),
        (lambda value: True, ValueError),
        (lambda value: 1.7e12, ValueError),
        (lambda value: value["exp"], TypeError),
        (lambda value: 1.0, MintedTokenAlreadyExpired),
    ],
)
async def test_an_unreadable_expiry_is_a_failed_fetch(
    expires_at: Any, error: type[Exception], autojump_clock: MockClock
) -> None:
    events: list[Event] = []
    async with open_provider(
        ScriptedFetch(then="s3cret"), expires_at=expires_at, eager=False, observe=events.append
    ) as provider:
        with pytest.raises(error):
            await provider.get()
        status = provider.status()
        assert (status.held, status.failures) == (False, 1)
        assert "s3cret" not in str(status.last_error)
    assert names(events) == ["FetchStarted", "FetchFailed", "OwnerClosed"]


async def test_an_expiry_that_turns_bad_leaves_the_good_value(autojump_clock: MockClock) -> None:
    lives = [100.0, math.nan]
    async with open_provider(
        ScriptedFetch(then="x"), expires_at=lambda value: wall_now() + lives.pop(0), policy=PLAIN()
    ) as provider:
        await until(provider, "due")
        assert await provider.get() == "x"
        await wait_all_tasks_blocked()
        assert provider.status().failures == 1
        assert provider.get_nowait() == "x"


async def test_a_value_without_expiry_is_a_type_error_that_says_so(autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match=r"(?s)expires_at.*ttl"):
        async with open_provider(ScriptedFetch("text")):
            raise AssertionError


async def test_the_jitter_is_sampled_once_per_value_and_not_without_expiry(autojump_clock: MockClock) -> None:
    samples = iter([0.1, 0.2])
    fetch = ScriptedFetch(Token("a", 1000.0), AuthToken("for ever"), Token("b", 1000.0))
    async with open_provider(fetch, policy=PLAIN(jitter=lambda: next(samples))) as provider:
        start = wall_now()
        assert provider.status().due_at == pytest.approx(start + 700.0)
        provider.get_nowait()
        await provider.refresh()
        assert provider.status().due_at is None
        await provider.refresh()
        assert provider.status().due_at == pytest.approx(start + 600.0)


async def test_a_ttl_counts_from_the_start_of_the_fetch(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(10.0, "a"), "b")
    async with open_provider(fetch, policy=PLAIN(ttl=100.0)) as provider:
        status = provider.status()
        assert status.issued_at == wall_now() - 10.0
        assert status.expires_at == wall_now() + 90.0
        lease = await provider.lease()
        assert (lease.issued_at, lease.expires_at) == (status.issued_at, status.expires_at)
        await until(provider, "expiry")
        assert await provider.get() == "b"


# Being due


async def test_one_waits_is_like_any_caller(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(5.0, Token("b", 100.0)))
    events: list[Event] = []
    policy = PLAIN(due="one_waits")
    async with open_provider(fetch, policy=policy, when_abandoned="cancel", observe=events.append) as provider:
        await until(provider, "due")
        with trio.move_on_after(1.0):
            await provider.get()
        assert text(provider.get_nowait()) == "a"
        assert provider.status().fetching
        await trio.sleep(4.1)
        assert text(provider.get_nowait()) == "b"
    assert started(events) == ["initial", "aging"]


async def test_get_nowait_never_waits_in_one_waits(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(5.0, Token("b", 100.0)))
    async with open_provider(fetch, policy=PLAIN(due="one_waits")) as provider:
        await until(provider, "due")
        assert text(provider.get_nowait()) == "a"
        assert text(await provider.get()) == "a"
        await trio.sleep(5.0)
        assert text(await provider.get()) == "b"


async def test_min_interval_counts_any_start(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 1.0))
    policy = PLAIN(min_interval=10.0, refresh_at=0.0)
    async with open_provider(fetch, policy=policy, eager=False) as provider:
        await trio.sleep(5.0)
        await provider.get()
        for _ in range(5):
            provider.get_nowait()
            await wait_all_tasks_blocked()
        assert fetch.calls == 1
        await provider.refresh()  # a caller is not held back
        assert fetch.calls == 2
        assert provider.status().next_attempt_at is None


async def test_backoff_is_counted_from_the_failure_of_any_path(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Sleep(3.0, Down()), Sleep(3.0, Down()), Sleep(3.0, Token("b", 1000.0)))
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0), refresh_at=0.0)
    async with open_provider(fetch, policy=policy) as provider:
        with pytest.raises(Down):
            await provider.refresh()
        assert provider.status().next_attempt_at == wall_now() + 10.0
        await trio.sleep(9.9)
        provider.get_nowait()
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        await trio.sleep(0.1)
        provider.get_nowait()
        await trio.sleep(3.0)
        await wait_all_tasks_blocked()
        assert fetch.calls == 3
        assert provider.status().next_attempt_at == wall_now() + 20.0
        await provider.refresh()
        status = provider.status()
        assert (status.failures, status.next_attempt_at, status.last_error) == (0, None, None)


# keep_warm


async def test_clear_ends_the_warmth_until_somebody_asks(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=math.inf) as provider:
        await trio.sleep(150.0)
        assert fetch.calls == 3
        await provider.clear()
        await trio.sleep(1000.0)
        assert fetch.calls == 3
        await provider.get()
        await trio.sleep(75.0)
        assert fetch.calls == 5


async def test_warmth_mints_no_first_value(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider(fetch, policy=PLAIN(), eager=False, keep_warm=math.inf):
        await trio.sleep(1000.0)
        assert fetch.calls == 0


@pytest.mark.parametrize("use", ["get", "joined", "get_nowait", "lease", "refresh", "refresh stale", "changes"])
async def test_what_counts_as_a_use(use: str, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 110.0), Sleep(9.0, Token("b", 100.0)), then=Token("c", 100.0))
    async with (
        open_provider(fetch, policy=PLAIN(), keep_warm=75.0) as provider,
        trio.open_nursery() as nursery,
    ):
        changes = provider.changes()
        await changes.__anext__()
        await trio.sleep(110.0)
        assert fetch.calls == 1  # due at 80, last used at 0
        nursery.start_soon(collect, provider.get, [])  # until 119; due at 189
        await trio.sleep(8.0)
        if use == "joined":
            await provider.get()
        else:
            await trio.sleep(1.0)
            await wait_all_tasks_blocked()
        if use == "get_nowait":
            provider.get_nowait()
        elif use == "changes":
            await changes.__anext__()
        elif use == "refresh stale":
            await provider.refresh(stale=AuthToken("a"))
        elif use == "refresh":
            await provider.refresh()
        elif use != "joined":
            await getattr(provider, use)()
        before = fetch.calls
        await trio.sleep(72.0)
        assert fetch.calls == before + 1


async def test_waiting_for_a_change_or_looking_is_no_use(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=60.0) as provider, trio.open_nursery() as nursery:
        changes = provider.changes()
        await changes.__anext__()
        await trio.sleep(20.0)
        nursery.start_soon(collect, changes.__anext__, [])
        await trio.sleep(20.0)
        provider.status()
        await trio.sleep(100.0)
        assert fetch.calls == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("then", [Down(), None, Gone(), Token("b", 50.0)])
async def test_warmth_does_not_spin(then: Any, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), then=then)
    policy = PLAIN(refresh_before=100.0, permanent=(Gone,), permanent_ttl=(0.0, 0.0))
    async with open_provider(fetch, policy=policy, breaker=None, keep_warm=math.inf):
        await trio.sleep(50.5)
    assert fetch.calls == 51


async def test_a_cold_value_is_renewed_at_its_next_use(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=10.0) as provider:
        await trio.sleep(90.0)
        assert fetch.calls == 1
        assert text(provider.get_nowait()) == "a"
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"


async def test_warmth_goes_on_past_the_expiry_while_the_source_is_down(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down(), Down(), Down(), Token("b", 100.0))
    events: list[Event] = []
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0, multiplier=2.0))
    async with open_provider(fetch, policy=policy, keep_warm=math.inf, observe=events.append) as provider:
        await trio.sleep(139.0)
        assert fetch.calls == 4
        await trio.sleep(1.0)
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"
    assert started(events) == ["initial", "aging", "aging", "expired", "expired"]


async def test_warmth_waits_for_the_breaker(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down(), Down(), then=Token("b", 1000.0))
    breaker = BreakerPolicy(threshold=1, cooldown=60.0)
    async with open_provider(fetch, policy=PLAIN(), breaker=breaker, keep_warm=math.inf) as provider:
        await trio.sleep(500.0)
        assert fetch.starts == [0.0, 70.0, 130.0, 190.0]
        assert provider.status().good


# Storage


async def test_a_peerless_storage_is_read_before_the_first_mint_only(autojump_clock: MockClock) -> None:
    class Log:
        def __init__(self) -> None:
            self.calls: list[str] = []

        async def get(self) -> AuthToken | None:
            self.calls.append("get")
            return None

        async def set(self, value: AuthToken) -> None:
            self.calls.append("set")

        async def clear(self) -> None:
            self.calls.append("clear")

    storage = Log()
    async with open_provider(ScriptedFetch(then=Token("a", 100.0)), policy=PLAIN(), storage=storage) as provider:
        await until(provider, "expiry")
        await provider.get()
        await provider.clear()
        await provider.get()
    assert storage.calls == ["get", "set", "set", "clear", "set"]


async def test_a_stored_value_that_cannot_be_read_is_reported_and_minted_anew(autojump_clock: MockClock) -> None:
    storage: MemoryStorage[Any] = MemoryStorage()
    await storage.set("text without a life")
    events: list[Event] = []
    async with open_provider(
        ScriptedFetch(Token("a", 100.0)), policy=PLAIN(), storage=storage, observe=events.append
    ) as provider:
        assert text(provider.get_nowait()) == "a"
    assert names(events) == ["StorageFailed", "FetchStarted", "FetchSucceeded", "OwnerClosed"]
    assert isinstance(events[0], StorageFailed)
    assert (events[0].operation, type(events[0].error)) == ("get", TypeError)


@pytest.mark.parametrize("method", ["get", "lease", "refresh"])
async def test_a_value_that_expires_while_it_is_written(method: str, autojump_clock: MockClock) -> None:
    class Slow:
        async def get(self) -> AuthToken | None:
            return None

        async def set(self, value: AuthToken) -> None:
            await trio.sleep(10.0)

        async def clear(self) -> None:
            raise AssertionError

    fetch = ScriptedFetch(Token("a", 5.0), Token("b", 50.0), then=Token("c", 5.0))
    async with open_provider(fetch, eager=False, storage=Slow()) as provider:
        await getattr(provider, method)()
        assert provider.get_nowait().secret.reveal() == "b"
        await trio.sleep(50.0)
        with pytest.raises(MintedTokenAlreadyExpired):
            await getattr(provider, method)()
        assert fetch.calls == 4


async def test_an_exhausted_iterator_at_opening_leaves_as_itself() -> None:
    async def no_tokens() -> AsyncGenerator[AuthToken, None]:
        none: list[AuthToken] = []
        for token in none:
            yield token

    caught: BaseException | None = None
    tokens = no_tokens()
    try:
        async with open_provider(tokens.__anext__):
            raise AssertionError
    except BaseException as exc:
        caught = exc
    assert type(caught) is StopAsyncIteration


async def test_a_runtime_error_at_opening_leaves_as_itself() -> None:
    error = RuntimeError("async generator raised StopAsyncIteration")
    caught: BaseException | None = None
    try:
        async with open_provider(ScriptedFetch(error)):
            raise AssertionError
    except BaseException as exc:
        caught = exc
    assert caught is error


async def test_a_background_hook_may_clear(autojump_clock: MockClock) -> None:
    async def hook() -> None:
        if fetch.calls == 1:
            await provider.clear()

    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider_with(hook, fetch, policy=PLAIN()) as provider:
        await until(provider, "due")
        provider.get_nowait()
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        assert not provider.status().held


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"policy": None}, TypeError),
        ({"policy": {}}, TypeError),
        ({"breaker": 5}, TypeError),
        ({"breaker": False}, TypeError),
        ({"expires_at": 5.0}, TypeError),
        ({"eager": "no"}, TypeError),
        ({"keep_warm": -1.0}, ValueError),
        ({"keep_warm": math.nan}, ValueError),
        ({"keep_warm": True}, TypeError),
        ({"keep_warm": None}, TypeError),
        ({"keep_warm": "60"}, TypeError),
        ({"share": "x"}, TypeError),
        ({"budget": "x"}, TypeError),
        ({"storage": MemoryStorage}, TypeError),
        ({"storage": object()}, TypeError),
        ({"fetch_timeout": 0}, ValueError),
        ({"fetch_timeout": -math.inf}, ValueError),
        ({"fetch_timeout": math.nan}, ValueError),
        ({"fetch_timeout": False}, TypeError),
        ({"fetch_timeout": "30"}, TypeError),
        ({"when_abandoned": "retry"}, ValueError),
        ({"when_abandoned": None}, ValueError),
        ({"observe": []}, TypeError),
        ({"clock": 0.0}, TypeError),
        ({"name": b"x"}, TypeError),
    ],
)
async def test_bad_arguments_name_themselves(kwargs: dict[str, Any], error: type[Exception]) -> None:
    fetch = ScriptedFetch(Token("a", 100.0))
    with pytest.raises(error, match=next(iter(kwargs))):
        async with open_provider(fetch, **kwargs):
            raise AssertionError
    assert fetch.calls == 0


@pytest.mark.parametrize("argument", ["observe", "clock", "expires_at"])
async def test_an_async_function_where_a_plain_one_is_meant(argument: str) -> None:
    async def wrong(*args: object) -> float:
        raise AssertionError

    class Wrong:
        __call__ = wrong

    for value in (wrong, partial(wrong, 1), Wrong()):
        with pytest.raises(TypeError, match=f"{argument} must be .*async"):
            async with open_provider(ScriptedFetch(), **{argument: value}):  # type: ignore[arg-type]
                raise AssertionError


@pytest.mark.parametrize("mint", [5, "mint", lambda x, y: None, object()])
async def test_what_is_no_mint(mint: Any, autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError):
        async with open_provider(mint):
            raise AssertionError


async def test_a_missing_mint() -> None:
    with pytest.raises(Unconfigured) as info:
        async with open_provider(None):  # type: ignore[arg-type]
            raise AssertionError
    assert info.value.field == "mint"


@pytest.mark.parametrize("method", ["get", "current_token", "lease", "refresh stale"])
async def test_a_hit_is_exactly_one_checkpoint(method: str) -> None:
    fetch = ScriptedFetch(then=Token("a", 1000.0))
    async with open_provider(fetch) as provider:
        for _ in range(3):
            task = trio.lowlevel.current_task()
            before = (task._schedule_points, task._cancel_points)
            if method == "refresh stale":
                await provider.refresh(stale=AuthToken("other"))
            else:
                await getattr(provider, method)()
            assert (task._schedule_points - before[0], task._cancel_points - before[1]) == (1, 1)


async def test_the_provider_is_a_success_event_with_its_life(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    async with open_provider(ScriptedFetch(Sleep(2.0, Token("a", 100.0))), observe=events.append, name="idp"):
        pass
    assert events[1] == FetchSucceeded("initial", 2.0, 100.0, 1, name="idp")
