"""One resource that knows time: due, expiry, leeway, backoff, breaker, permanent failures, keep_warm, opening."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerChanged,
    BreakerOpen,
    BreakerPolicy,
    Closed,
    Event,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    HalfOpen,
    MintedTokenAlreadyExpired,
    Open,
    RefreshPolicy,
    ServedExpired,
    Unconfigured,
    open_provider,
)
from trio_renew.lowlevel import open_provider_with
from trio_renew.testing import Block, Handoff, ScriptedFetch, Sleep, Stubborn, Token, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Down(Exception):
    """What the scripted sources raise."""


class Gone(Exception):
    """What they raise when asking again is no use."""


# The catalogue's numbers: no jitter, no leeway, no backoff.
PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def text(token: AuthToken) -> str:
    return token.secret.reveal()


async def collect(call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    try:
        into.append(await call())
    except Exception as exc:
        into.append(exc)


# Opening


async def test_opening_mints_once_with_events_and_handoff(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    handoff = Handoff(hold=set())
    fetch = ScriptedFetch(Token("a", 3600.0))
    async with open_provider_with(handoff, fetch, observe=events.append) as provider:
        assert handoff.claims == 1
        for _ in range(3):
            assert text(await provider.current_token()) == "a"
        assert fetch.calls == 1
    assert [e.reason for e in events if isinstance(e, FetchStarted)] == ["initial"]
    assert [e.remaining for e in events if isinstance(e, FetchSucceeded)] == [3600.0]


async def test_a_failure_at_opening_leaves_as_itself(autojump_clock: MockClock) -> None:
    with pytest.raises(Down):
        async with open_provider(ScriptedFetch(Down("x"))):
            raise AssertionError("not reached")
    with pytest.raises(MintedTokenAlreadyExpired):
        async with open_provider(ScriptedFetch(Token("a", 0.0))):
            raise AssertionError("not reached")
    with pytest.raises(Unconfigured, match="mint"):
        async with open_provider(None):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match="mint"):
        async with open_provider(lambda: 3):  # type: ignore[arg-type,return-value]
            pass


async def test_opening_without_a_value(autojump_clock: MockClock) -> None:
    async with open_provider(ScriptedFetch(None, Token("a", 60.0))) as provider:
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert text(await provider.get()) == "a"


async def test_cancelled_while_opening(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Block(Token("a", 60.0)))
    with trio.move_on_after(1) as scope:
        async with open_provider(fetch):
            raise AssertionError("not reached")
    assert scope.cancelled_caught
    assert fetch.cancelled == 1
    assert trio.current_time() == 1.0


async def test_lazy(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 60.0))
    async with open_provider(fetch, eager=False, observe=(events := []).append) as provider:
        await trio.sleep(100)
        assert fetch.calls == 0
        await provider.get()
    assert events[0] == FetchStarted("absent")


# Due and expiry


async def test_due_is_served_and_renewed_in_the_background(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Sleep(3.0, Token("b", 1000.0)))
    async with open_provider(fetch, policy=PLAIN()) as provider:
        await trio.sleep(799.5)
        assert text(await provider.get()) == "a"
        await wait_all_tasks_blocked()
        assert fetch.calls == 1
        await until(provider, "due")
        assert trio.current_time() == pytest.approx(800.0, abs=1e-6)
        for _ in range(5):
            assert text(provider.get_nowait()) == "a"
            assert text(await provider.get()) == "a"
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        await trio.sleep(3.5)
        assert text(provider.get_nowait()) == "b"
        status = provider.status()
        assert (status.generation, status.good) == (2, True)
        # issued at the start of the fetch, 3 s before the token was made
        assert status.due_at == pytest.approx(status.issued_at + 0.8 * 1003.0)


async def test_expiry_is_exclusive_and_callers_wait(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(2.0, Token("b", 100.0)))
    async with open_provider(fetch, policy=PLAIN(refresh_before=0.0)) as provider:
        await until(provider, "expiry")
        assert trio.current_time() == pytest.approx(100.0, abs=1e-6)
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        started = trio.current_time()
        assert text(await provider.get()) == "b"
        assert trio.current_time() == started + 2.0


async def test_no_expiry_is_for_ever(autojump_clock: MockClock) -> None:
    async with open_provider(ScriptedFetch(AuthToken("a"))) as provider:
        await trio.sleep(1e6)
        assert text(await provider.get()) == "a"
        status = provider.status()
        assert (status.expires_at, status.due_at) == (None, None)


async def test_joins_a_background_refresh_when_the_value_expires_meanwhile(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Block(Token("b", 100.0)))
    async with open_provider(fetch, policy=PLAIN(), fetch_timeout=None) as provider, trio.open_nursery() as nursery:
        await trio.sleep(90)
        assert text(await provider.get()) == "a"
        await trio.sleep(20)
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        fetch.release()
        await wait_all_tasks_blocked()
        assert text(got[0]) == "b"


async def test_a_background_failure_is_nobodys_error(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), then=Down("x"))
    events: list[Event] = []
    async with open_provider(fetch, policy=PLAIN(), observe=events.append) as provider:
        await trio.sleep(850)
        for _ in range(8):
            assert text(await provider.get()) == "a"
            await trio.sleep(1)
        assert fetch.calls == 6  # five failures open the breaker
    failed = [e for e in events if isinstance(e, FetchFailed)]
    assert [e.remaining for e in failed] == [150.0, 149.0, 148.0, 147.0, 146.0]
    assert [e.reason for e in failed] == ["aging"] * 5


async def test_an_already_expired_value_is_a_failed_fetch(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("old", -1.0), Token("b", 100.0))
    async with open_provider(fetch, policy=PLAIN()) as provider:
        await trio.sleep(90)
        await provider.get()
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "a"
        assert provider.status().failures == 1
        await trio.sleep(20)
        assert text(await provider.get()) == "b"
        assert provider.status().failures == 0


async def test_leeway(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down("x"), Token("b", 100.0))
    events: list[Event] = []
    policy = RefreshPolicy(jitter=0.0, refresh_before=0.0, retry=None)
    async with open_provider(fetch, policy=policy, observe=events.append) as provider:
        await trio.sleep(89.5)
        assert text(provider.get_nowait()) == "a"
        await trio.sleep(0.5)
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert text(await provider.get()) == "a"  # a token with seconds to live beats an error
        assert events[-1] == ServedExpired(0.0)
        assert text(await provider.get()) == "b"


async def test_serve_expired_for(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), then=Down("x"))
    events: list[Event] = []
    async with open_provider(
        fetch, policy=PLAIN(serve_expired_for=50.0), observe=events.append, breaker=BreakerPolicy(2, 60.0)
    ) as provider:
        await trio.sleep(120)
        assert text(await provider.get()) == "a"
        assert text(await provider.get()) == "a"
        assert text(await provider.get()) == "a"  # the breaker refuses
        assert fetch.calls == 3
        assert [e.age for e in events if isinstance(e, ServedExpired)] == [20.0, 20.0, 20.0]
        with pytest.raises(BreakerOpen):
            await provider.refresh()
        await trio.sleep(30)
        with pytest.raises(BreakerOpen):
            await provider.get()


async def test_none_is_no_failure_but_backs_off(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), None, Token("b", 1000.0))
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0))
    async with open_provider(fetch, policy=policy, observe=(events := []).append) as provider:
        await trio.sleep(800)
        await provider.get()
        await wait_all_tasks_blocked()
        assert provider.status().breaker == Closed(0)
        assert provider.status().next_attempt_at == provider.status().issued_at + 810.0  # type: ignore[operator]
        await trio.sleep(9.5)
        await provider.get()
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        await trio.sleep(0.5)
        await provider.get()
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"
    none = [e for e in events if isinstance(e, FetchSucceeded)][1]
    assert (none.remaining, none.generation) == (None, 1)


# Backoff, breaker, permanent


async def test_backoff_of_background_refreshes(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 10_000.0), then=Down("x"))
    policy = PLAIN(retry=Backoff(initial=1.0, multiplier=2.0, maximum=8.0, jitter=0.0))
    async with open_provider(fetch, policy=policy, breaker=None) as provider:
        await trio.sleep(8000)
        for _ in range(400):
            await provider.get()
            await trio.sleep(0.125)
    starts = [start - 8000 for start in fetch.starts[1:]]
    assert starts[:7] == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0]


async def test_min_interval_stops_a_short_life_from_spinning(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 2.0))
    policy = RefreshPolicy(refresh_at=0.0, jitter=0.0, leeway=0.0, min_interval=1.0)
    async with open_provider(fetch, policy=policy) as provider:
        for _ in range(80):
            await provider.get()
            await trio.sleep(0.125)
    assert fetch.calls <= 11


async def test_the_breaker_opens_probes_and_recovers(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 10.0), Down("1"), Down("2"), Down("3"), Down("4"), Token("b", 1000.0))
    events: list[Event] = []
    async with open_provider(
        fetch, policy=PLAIN(), breaker=BreakerPolicy(threshold=3, cooldown=30.0), observe=events.append
    ) as provider:
        await trio.sleep(20)
        for _ in range(3):
            with pytest.raises(Down):
                await provider.get()
        with pytest.raises(BreakerOpen) as caught:
            await provider.get()
        assert isinstance(caught.value.__cause__, Down)
        assert caught.value.retry_at == provider.status().issued_at + 50.0  # type: ignore[operator]
        await trio.sleep(29.5)
        with pytest.raises(BreakerOpen):
            await provider.get()
        await trio.sleep(0.5)
        with pytest.raises(Down, match="4"):
            await provider.get()
        with pytest.raises(BreakerOpen):
            await provider.get()
        await trio.sleep(30)
        assert text(await provider.get()) == "b"
        assert provider.status().breaker == Closed(0)
    moves = [(type(e.old), type(e.new)) for e in events if isinstance(e, BreakerChanged)]
    assert moves == [(Closed, Open), (Open, HalfOpen), (HalfOpen, Open), (Open, HalfOpen), (HalfOpen, Closed)]
    kinds = names(events)
    first = kinds.index("BreakerChanged")
    assert kinds[first - 1 : first + 2] == ["FetchStarted", "BreakerChanged", "FetchFailed"]
    half = kinds.index("BreakerChanged", first + 1)
    assert kinds[half : half + 2] == ["BreakerChanged", "FetchStarted"]


async def test_an_abandoned_probe_leaves_its_place_free(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Down("x"), Block(Token("a", 10.0)), Token("b", 100.0))
    async with open_provider(
        fetch, eager=False, when_abandoned="cancel", breaker=BreakerPolicy(1, 30.0), policy=PLAIN()
    ) as provider:
        with pytest.raises(Down):
            await provider.get()
        await trio.sleep(30)
        with trio.move_on_after(1):
            await provider.get()
        await wait_all_tasks_blocked()
        assert provider.status().breaker == HalfOpen()
        assert text(await provider.get()) == "b"


async def test_a_rejected_value_may_try_through_an_open_breaker_once(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down("1"), Down("2"), Token("b", 1000.0))
    events: list[Event] = []
    async with open_provider(fetch, breaker=BreakerPolicy(1, 30.0), policy=PLAIN(), observe=events.append) as provider:
        lease = await provider.lease()
        with pytest.raises(Down):
            await provider.refresh()
        with pytest.raises(BreakerOpen):
            await provider.refresh()
        await trio.sleep(10)
        before = len(events)
        with pytest.raises(Down, match="2"):
            await provider.refresh(stale=lease)
        assert names(events[before:]) == ["FetchStarted", "FetchFailed"]
        assert provider.status().breaker == Open(provider.status().issued_at + 40.0)  # type: ignore[operator]
        with pytest.raises(BreakerOpen):
            await provider.refresh(stale=lease)
        assert text(await provider.get()) == "a"
        await trio.sleep(30)
        assert text(await provider.refresh(stale=lease)) == "b"


async def test_an_abandoned_try_through_an_open_breaker_was_none(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down("1"), Block(Token("x", 1.0)), Token("b", 1000.0))
    async with open_provider(
        fetch, breaker=BreakerPolicy(1, 300.0), policy=PLAIN(), when_abandoned="cancel"
    ) as provider:
        lease = await provider.lease()
        with pytest.raises(Down):
            await provider.refresh()
        with trio.move_on_after(1):
            await provider.refresh(stale=lease)
        assert isinstance(provider.status().breaker, Open)
        await wait_all_tasks_blocked()
        assert text(await provider.refresh(stale=lease)) == "b"
        assert provider.status().breaker == Closed(0)


async def test_a_background_refresh_has_no_callers_to_lose(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(20.0, Token("b", 100.0)))
    async with open_provider(fetch, policy=PLAIN(), when_abandoned="cancel") as provider:
        await trio.sleep(90)
        await provider.get()
        await trio.sleep(15)
        with trio.move_on_after(1) as scope:
            await provider.get()  # joins it
        assert scope.cancelled_caught
        assert text(await provider.get()) == "b"
        assert fetch.cancelled == 0


async def test_permanent_failures(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Down("x"), Gone("no"), Token("b", 100.0), Gone("no"), Token("c", 50.0))
    policy = RefreshPolicy(
        jitter=0.0, leeway=0.0, serve_expired_for=1000.0, permanent=(Gone,), permanent_ttl=(4.0, 4.0), min_interval=0.0
    )
    async with open_provider(fetch, policy=policy) as provider:
        await trio.sleep(90)
        await provider.get()
        await wait_all_tasks_blocked()
        assert provider.status().next_attempt_at is not None
        await trio.sleep(20)
        with pytest.raises(Gone) as first:
            await provider.get()
        for _ in range(3):
            with pytest.raises(Gone) as again:
                await provider.get()
        assert fetch.calls == 3
        assert again.value.args == first.value.args
        status = provider.status()
        assert status.breaker == Closed(1)  # not counted
        assert status.next_attempt_at == status.issued_at + 114.0  # type: ignore[operator]
        await trio.sleep(4)
        assert text(await provider.get()) == "b"
        with pytest.raises(Gone):
            await provider.refresh()
        assert text(await provider.get()) == "b"  # a good value is not touched by it
        await provider.clear()
        assert text(await provider.get()) == "c"


async def test_one_waits(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(3.0, Token("b", 100.0)), Sleep(1.0, Down("x")))
    async with (
        open_provider(fetch, policy=PLAIN(due="one_waits")) as provider,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(80)
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        await fetch.called(2)
        assert text(await provider.get()) == "a"
        await trio.sleep(3.5)
        assert [text(token) for token in got] == ["b"]
        await trio.sleep(80)
        assert text(await provider.get()) == "b"  # failed: the old one is still good


# clear and refresh


async def test_clear_forgets_backoff_but_not_the_breaker(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down("x"), Token("b", 1000.0))
    async with open_provider(fetch, policy=PLAIN(retry=Backoff(initial=60.0))) as provider:
        with pytest.raises(Down):
            await provider.refresh()
        assert provider.status().next_attempt_at is not None
        await provider.clear()
        status = provider.status()
        assert (status.next_attempt_at, status.breaker, status.failures) == (None, Closed(1), 1)
        assert text(await provider.get()) == "b"


async def test_a_fenced_flight_moves_nothing(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Block(Down("x")), Token("b", 1000.0))
    async with (
        open_provider(fetch, policy=PLAIN(serve_expired_for=100.0), breaker=BreakerPolicy(1, 30.0)) as provider,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(1050)
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        await fetch.called(2)
        await provider.clear()
        assert text(await provider.get()) == "b"
        fetch.fail(Down("y"))
        await wait_all_tasks_blocked()
        assert isinstance(got[0], Down)
        assert provider.status().breaker == Closed(0)
        assert provider.status().failures == 0


# keep_warm


async def test_keep_warm_renews_without_being_asked(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 1000.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=float("inf")):
        await trio.sleep(4000.5)
    assert fetch.starts == [0.0, 800.0, 1600.0, 2400.0, 3200.0, 4000.0]


async def test_keep_warm_ends_with_the_use(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Token("a", 1000.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=900.0) as provider:
        await trio.sleep(1500)
        assert fetch.starts == [0.0, 800.0]
        provider.get_nowait()
        await trio.sleep(3000)
        assert fetch.starts == [0.0, 800.0, 1600.0]
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()  # a use, too: what is held is renewed
        await wait_all_tasks_blocked()
        assert fetch.starts[3:] == [4500.0]
        await provider.clear()
        await trio.sleep(3000)
        assert fetch.calls == 4


async def test_keep_warm_respects_the_backoff(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Down("x"), Down("y"), Token("b", 1000.0))
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0))
    async with open_provider(fetch, policy=policy, keep_warm=float("inf")):
        await trio.sleep(900)
    assert fetch.starts == [0.0, 800.0, 810.0, 830.0]


# Values


async def test_how_the_expiry_is_read(autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match="ttl"):
        async with open_provider(ScriptedFetch("bare")):
            pass
    async with open_provider(ScriptedFetch("bare"), policy=PLAIN(ttl=100.0)) as provider:
        status = provider.status()
        assert status.expires_at == status.issued_at + 100.0  # type: ignore[operator]
    for garbage in (float("nan"), "soon", 1.7e12, True):
        with pytest.raises((TypeError, ValueError), match="expires_at"):
            async with open_provider(ScriptedFetch("bare"), expires_at=lambda _, g=garbage: g):  # type: ignore[misc]
                pass
    async with open_provider(ScriptedFetch("bare"), expires_at=lambda _: None) as provider:
        assert provider.status().expires_at is None


async def test_a_given_clock_is_the_only_one_for_decisions(autojump_clock: MockClock) -> None:
    now = 1000.0
    fetch = ScriptedFetch(AuthToken("a", 1100.0), AuthToken("b", 1200.0))
    async with open_provider(fetch, policy=PLAIN(), clock=lambda: now) as provider:
        await trio.sleep(1e6)
        assert text(await provider.get()) == "a"
        now = 1100.0
        assert text(await provider.get()) == "b"


async def test_last_error_is_redacted() -> None:
    async def mint() -> AuthToken:
        await trio.lowlevel.checkpoint()
        if held:
            raise Down("rejected s3cret-token-text")
        held.append(1)
        return AuthToken("s3cret-token-text")

    held: list[int] = []
    async with open_provider(mint) as provider:
        with pytest.raises(Down):
            await provider.refresh()
        error = provider.status().last_error
        assert error is not None
        assert "s3cret" not in error
        assert error.startswith("Down")


# Hooks, timeouts


async def test_the_hook_of_a_background_refresh_runs_in_the_background(autojump_clock: MockClock) -> None:
    handoff = Handoff(hold={2})
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider_with(handoff, fetch, policy=PLAIN()) as provider:
        await trio.sleep(90)
        assert text(await provider.get()) == "a"
        await handoff.reached(2)
        assert fetch.calls == 1
        assert provider.status().fetching
        handoff.release()
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"


async def test_a_hook_that_raises_in_the_background_is_a_failed_fetch(autojump_clock: MockClock) -> None:
    calls = 0

    async def hook() -> None:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        if calls == 2:
            raise Down("hook")

    events: list[Event] = []
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider_with(hook, fetch, policy=PLAIN(), observe=events.append) as provider:
        await trio.sleep(90)
        assert text(await provider.get()) == "a"
        await wait_all_tasks_blocked()
        assert names(events)[2:] == ["FetchStarted", "FetchFailed"]
        assert provider.status().failures == 1
        await provider.get()
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "b"


async def test_a_late_value_closes_the_breaker(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(10.0, Token("a", 1000.0)))
    events: list[Event] = []
    async with open_provider(
        fetch, eager=False, fetch_timeout=3.0, breaker=BreakerPolicy(1, 60.0), observe=events.append
    ) as provider:
        with pytest.raises(TimeoutError):
            await provider.get()
        assert isinstance(provider.status().breaker, Open)
        await trio.sleep(20)
        assert text(provider.get_nowait()) == "a"
        assert provider.status().breaker == Closed(0)
    assert names(events) == [
        "FetchStarted",
        "BreakerChanged",
        "FetchFailed",
        "BreakerChanged",
        "FetchSucceeded",
        "OwnerClosed",
    ]
