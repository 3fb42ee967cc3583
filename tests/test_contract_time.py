"""What time it is: stepped clocks, suspended machines, given clocks that go back, raise or talk nonsense."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerOpen,
    BreakerPolicy,
    Event,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    MemoryStorage,
    MintedTokenAlreadyExpired,
    RefreshPolicy,
    open_provider,
    open_resource,
)
from trio_renew._clock import under_test_clock, wall_now
from trio_renew.lowlevel import Open, open_provider_with, open_resource_with
from trio_renew.testing import ScriptedFetch, Sleep, Token, until

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


class Wall:
    """The wall clock, stepped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = time.time
        self.offset = 0.0
        self.looks = 0
        self.jump_at = 0
        self.jump = 3600.0
        monkeypatch.setattr(time, "time", self)

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == self.jump_at:
            self.offset += self.jump
        return self.real() + self.offset


class Given:
    """A clock of the user's, which only moves when it is told to, and may fail."""

    def __init__(self, now: Any = 1000.0) -> None:
        self.now = now
        self.error: Exception | None = None

    def __call__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.now


def text(token: AuthToken) -> str:
    return token.secret.reveal()


REAL = time.time


def in_an_hour(name: str) -> AuthToken:
    """What a source with a right clock gives."""
    return AuthToken(name, REAL() + 3600.0)


class Source:
    """Gives token after token, each living an hour by a clock that is right."""

    def __init__(self, clock: Callable[[], float] = REAL) -> None:
        self.calls = 0
        self.clock = clock

    async def __call__(self) -> AuthToken:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        return AuthToken(str(self.calls), self.clock() + 3600.0)


# Trio's own clock


@pytest.mark.parametrize("method", ["get", "get_nowait", "lease"])
async def test_a_suspended_machine_serves_nothing_expired(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    source = Source(wall)
    async with open_provider(source) as provider:
        for _ in range(3):
            assert text(await provider.get()) == "1"
            assert text(provider.get_nowait()) == "1"
        wall.offset = 3600.0
        if method == "get_nowait":
            with pytest.raises(trio.WouldBlock):
                provider.get_nowait()
        await getattr(provider, "get" if method == "get_nowait" else method)()
        assert source.calls == 2
        assert text(provider.get_nowait()) == "2"


async def test_a_machine_suspended_between_checkpoint_and_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    source = Source(wall)
    async with open_provider(source) as provider:
        provider.get_nowait()
        looks = wall.looks
        for _ in range(2):
            wall.jump_at = wall.looks + 2  # the first look of the hit is before its checkpoint
            assert text(await provider.get()) == str(source.calls)
        assert source.calls == 3
        assert wall.looks > looks


async def test_a_hit_whose_value_becomes_due_at_its_checkpoint_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    source = Source(wall)
    async with open_provider(source, policy=PLAIN()) as provider:
        provider.get_nowait()
        wall.jump_at = wall.looks + 2  # the first look of the hit is before its checkpoint
        wall.jump = 3000.0
        task = trio.lowlevel.current_task()
        before = (task._schedule_points, task._cancel_points)
        assert text(await provider.get()) == "1"
        assert (task._schedule_points - before[0], task._cancel_points - before[1]) == (1, 1)
        await wait_all_tasks_blocked()
        assert source.calls == 2


async def test_a_due_value_is_noticed_after_a_step_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    source = Source(wall)
    async with open_provider(source, policy=PLAIN()) as provider:
        provider.get_nowait()
        wall.offset = 2881.0
        assert text(provider.get_nowait()) == "1"
        await wait_all_tasks_blocked()
        assert text(provider.get_nowait()) == "2"


async def test_a_clock_that_is_stepped_back_prolongs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)

    async def mint() -> AuthToken:
        return AuthToken("a", wall() + 0.05)

    async with open_provider(mint, policy=PLAIN()) as provider:
        issued = (await provider.lease()).issued_at
        wall.offset = -7200.0
        assert provider.status().good
        await trio.sleep(0.06)
        assert not provider.status().good
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert (await provider.lease()).issued_at < issued  # the next value is judged by the wall clock alone


async def test_a_clock_that_was_ahead_for_a_while_heals_with_the_next_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    source = Source()
    async with open_provider(source, policy=PLAIN(), breaker=None) as provider:
        wall.offset = 86400.0
        with pytest.raises(MintedTokenAlreadyExpired):
            await provider.get()
        wall.offset = 0.0
        assert text(await provider.get()) == "3"
        lease = await provider.lease()
        assert lease.expires_at is not None
        assert 0.0 <= wall() - lease.issued_at < 60.0
        assert 3500.0 < lease.expires_at - lease.issued_at <= 3600.1
        for _ in range(3):
            assert text(await provider.get()) == "3"
            assert text(provider.get_nowait()) == "3"
        assert source.calls == 3


async def test_a_value_that_arrives_after_the_clock_was_stepped_back_is_not_issued_in_the_future(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall = Wall(monkeypatch)
    wall.offset = 86400.0

    async def mint() -> AuthToken:
        wall.offset = 0.0
        return in_an_hour("a")

    async with open_provider(mint) as provider:
        status = provider.status()
        assert status.issued_at is not None
        assert status.due_at is not None
        assert status.issued_at <= wall()
        assert status.issued_at + 2700.0 < status.due_at < status.issued_at + 2881.0


async def test_the_anchor_is_not_moved_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall(monkeypatch)
    fetch = ScriptedFetch(None, None)
    async with open_provider(fetch, eager=False) as provider:
        before = (await provider.lease()).issued_at
        wall.offset = -3600.0
        after = (await provider.lease()).issued_at
        assert 0.0 <= after - before < 60.0


async def test_a_breaker_that_opened_while_the_clock_was_ahead_waits_no_longer_than_its_cooldown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall = Wall(monkeypatch)
    fetch = ScriptedFetch(Down())
    breaker = BreakerPolicy(threshold=1, cooldown=60.0)
    async with open_provider(fetch, policy=PLAIN(), breaker=breaker, eager=False) as provider:
        wall.offset = 86400.0
        with pytest.raises(Down):
            await provider.get()
        wall.offset = 0.0
        with pytest.raises(BreakerOpen) as info:
            await provider.get()
        assert 59.0 < info.value.retry_at - wall() <= 60.0
        assert isinstance(info.value.__cause__, Down)


async def test_expiring_in_reads_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5000.25)
    assert not under_test_clock()
    assert wall_now() == 5000.25
    assert AuthToken.expiring_in("a", 10).expires_at == 5010.25


def test_outside_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5000.25)
    assert not under_test_clock()
    assert AuthToken.expiring_in("a", 10).expires_at == 5010.25
    assert AuthToken.expiring_in("a", 10, now=1.0).expires_at == 11.0


# A test clock


async def test_under_a_test_clock_the_wall_clock_is_looked_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall(monkeypatch)
    fetch = ScriptedFetch(then=Token("a", 1000.0))
    async with open_provider(fetch, policy=PLAIN(), keep_warm=5.0) as provider, open_resource(fetch) as resource:
        start = wall_now()
        assert start == math.floor(start)
        looks = wall.looks
        wall.offset = 1e6
        for _ in range(3):
            await provider.get()
            provider.get_nowait()
            await provider.lease()
            await resource.get()
            resource.get_nowait()
            await trio.sleep(700.0)
            provider.status()
            resource.status()
        await provider.clear()
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert wall.looks == looks
        assert wall_now() == start + 2100.0
        assert AuthToken.expiring_in("a", 5.0).expires_at == start + 2105.0


async def test_one_anchor_for_the_whole_run(autojump_clock: MockClock) -> None:
    token = AuthToken.expiring_in("made before", 1000.0)
    await trio.sleep(200.0)

    async def mint() -> AuthToken:
        return token

    async with open_provider(mint, policy=PLAIN()) as provider:
        await trio.sleep(799.5)
        assert text(await provider.get()) == "made before"
        await trio.sleep(0.5)
        with pytest.raises(MintedTokenAlreadyExpired):
            await provider.get()


async def test_a_clock_of_the_users_own_kind_is_a_test_clock() -> None:
    class Own(trio.abc.Clock):
        def __init__(self) -> None:
            self.inner = MockClock(autojump_threshold=0.0)

        def start_clock(self) -> None:
            pass

        def current_time(self) -> float:
            return 7.0

        def deadline_to_sleep_time(self, deadline: float) -> float:
            return 0.0

    async def main() -> tuple[bool, float]:
        return under_test_clock(), wall_now()

    def run() -> tuple[bool, float]:
        return trio.run(main, clock=Own())

    is_test, now = await trio.to_thread.run_sync(run)
    assert is_test
    assert now == math.floor(now)


# A given clock


async def test_a_given_clock_decides_and_waiting_is_trios(autojump_clock: MockClock) -> None:
    clock = Given()
    fetch = ScriptedFetch(Sleep(5.0, AuthToken("a", 1100.0)), Sleep(5.0, AuthToken("b", 1200.0)))
    events: list[Event] = []
    async with open_provider(fetch, clock=clock, policy=PLAIN(), observe=events.append) as provider:
        assert trio.current_time() == 5.0
        await trio.sleep(1e6)
        assert text(await provider.get()) == "a"
        clock.now = 1100.0
        assert text(await provider.get()) == "b"
        assert provider.status().due_at == 1170.0
    assert [e.duration for e in events if isinstance(e, FetchSucceeded)] == [5.0, 5.0]


async def test_a_given_clock_that_goes_back_makes_good_again(autojump_clock: MockClock) -> None:
    clock = Given()
    fetch = ScriptedFetch(AuthToken("a", 1100.0), Down())
    async with open_provider(fetch, clock=clock, policy=PLAIN()) as provider:
        clock.now = 1100.0
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        clock.now = 1000.0
        assert text(provider.get_nowait()) == "a"


async def test_going_back_prolongs_no_backoff_beyond_its_length(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    fetch = ScriptedFetch(AuthToken("a", 9000.0), Down(), Down())
    policy = PLAIN(retry=Backoff(initial=10.0, jitter=0.0), refresh_at=0.0)
    async with open_provider(fetch, clock=clock, policy=policy) as provider:
        provider.get_nowait()
        await wait_all_tasks_blocked()
        assert (fetch.calls, provider.status().next_attempt_at) == (2, 5010.0)
        clock.now = 4000.0  # issued and due in its future now
        assert provider.status().next_attempt_at == 4010.0
        clock.now = 5000.0
        provider.get_nowait()
        await wait_all_tasks_blocked()
        assert fetch.calls == 3


async def test_going_back_prolongs_no_cooldown_beyond_its_length(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    fetch = ScriptedFetch(Down(), AuthToken("a", 9000.0))
    breaker = BreakerPolicy(threshold=1, cooldown=60.0)
    async with open_provider(fetch, clock=clock, policy=PLAIN(), breaker=breaker, eager=False) as provider:
        with pytest.raises(Down):
            await provider.get()
        clock.now = 1000.0
        with pytest.raises(BreakerOpen) as info:
            await provider.get()
        assert info.value.retry_at == 1060.0
        clock.now = 1060.0
        assert text(await provider.get()) == "a"


async def test_going_back_prolongs_no_permanent_failure_beyond_its_length(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    fetch = ScriptedFetch(Down(), AuthToken("a", 9000.0))
    policy = PLAIN(permanent=(Down,), permanent_ttl=(5.0, 5.0))
    async with open_provider(fetch, clock=clock, policy=policy, eager=False) as provider:
        for now in (5000.0, 1000.0, 1004.9):
            clock.now = now
            with pytest.raises(Down):
                await provider.get()
        assert fetch.calls == 1
        clock.now = 1005.0
        assert text(await provider.get()) == "a"


async def test_going_back_prolongs_no_ttl_beyond_its_length(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    fetch = ScriptedFetch("a", "b", "c")
    async with open_provider(fetch, clock=clock, policy=PLAIN(ttl=60.0), eager=False) as provider:
        clock.now = 4000.0
        provider.status()  # nothing is held that could be prolonged
        clock.now = 5000.0
        assert await provider.get() == "a"
        clock.now = 1000.0
        assert provider.get_nowait() == "a"
        status = provider.status()
        assert (status.issued_at, status.due_at, status.expires_at) == (1000.0, 1030.0, 1060.0)
        clock.now = 1040.0
        clock.now = 1020.0  # back, but not before its beginning
        assert provider.get_nowait() == "a"
        assert provider.status().expires_at == 1060.0
        clock.now = 1060.0
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert await provider.get() == "b"


async def test_going_back_while_the_value_is_written_prolongs_no_ttl(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)

    class Rewinding(MemoryStorage[str]):
        async def set(self, value: str) -> None:
            clock.now = 1000.0

    policy = PLAIN(ttl=60.0)
    async with open_provider(ScriptedFetch("a"), clock=clock, policy=policy, storage=Rewinding()) as provider:
        assert provider.status().expires_at == 1060.0


async def test_an_expiry_of_its_own_is_not_moved_by_a_clock_that_goes_back(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    async with open_provider(ScriptedFetch(AuthToken("a", 5060.0)), clock=clock, policy=PLAIN(ttl=60.0)) as provider:
        clock.now = 1000.0
        provider.get_nowait()
        assert provider.status().expires_at == 5060.0


async def test_a_ttl_of_while_the_clock_was_ahead_is_not_prolonged_when_it_heals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall = Wall(monkeypatch)
    wall.offset = 86_400.0
    lives: list[Any] = [None, "garbage"]

    async def mint() -> str:
        return "a"

    policy = PLAIN(ttl=60.0)
    async with open_provider(mint, policy=policy, expires_at=lambda _: lives.pop(0)) as provider:
        wall.offset = 0.0
        with pytest.raises(ValueError, match="expires_at"):
            await provider.refresh()  # a fresh value, though of no use: from here on the wall clock counts
        end = provider.status().expires_at
        assert end is not None
        assert end <= REAL() + 60.0
        assert provider.get_nowait() == "a"


async def test_a_breaker_that_is_looked_at_after_the_clock_went_back(autojump_clock: MockClock) -> None:
    clock = Given(5000.0)
    policy, breaker = PLAIN(), BreakerPolicy(threshold=1, cooldown=60.0)
    async with open_provider(
        ScriptedFetch(Down()), clock=clock, policy=policy, breaker=breaker, eager=False
    ) as provider:
        with pytest.raises(Down):
            await provider.get()
        clock.now = 1000.0
        status = provider.status()
        assert (status.breaker, status.next_attempt_at) == (Open(1060.0), 1060.0)
    assert provider.status().breaker == Open(1060.0)


async def test_a_start_is_told_also_when_the_clock_cannot_be_read(autojump_clock: MockClock) -> None:
    clock = Given()
    events: list[Event] = []

    async def hook() -> None:
        if fetch.calls:
            clock.error = OSError("the clock")
            raise Down

    fetch = ScriptedFetch(AuthToken("a", 1100.0))
    async with open_provider_with(hook, fetch, clock=clock, policy=PLAIN(), observe=events.append) as provider:
        clock.now = 1080.0
        provider.get_nowait()
        await wait_all_tasks_blocked()
        clock.error = None
        assert text(provider.get_nowait()) == "a"
        assert [type(event) for event in events[2:]] == [FetchStarted, FetchFailed]


@pytest.mark.parametrize("open_with", [open_resource_with, open_provider_with])
async def test_a_fetch_during_which_the_clock_cannot_be_read(open_with: Any, autojump_clock: MockClock) -> None:
    clock = Given()
    events: list[Event] = []

    async def hook() -> None:
        clock.error = OSError("the clock")

    kwargs: dict[str, Any] = {} if open_with is open_resource_with else {"eager": False}
    fetch = ScriptedFetch(then=AuthToken("a", 1100.0))
    async with open_with(hook, fetch, clock=clock, observe=events.append, **kwargs) as resource:
        with pytest.raises(OSError, match="the clock"):
            await resource.get()
        assert [type(event) for event in events] == [FetchStarted, FetchFailed]
        assert not resource.status().closed


async def test_going_back_keeps_nothing_warm_beyond_its_length(autojump_clock: MockClock) -> None:
    clock = Given(100_000.0)
    fetch = ScriptedFetch(AuthToken("a", 100_100.0), then=Down())
    async with open_provider(fetch, clock=clock, policy=PLAIN(refresh_at=0.1), keep_warm=50.0) as provider:
        clock.now = 1000.0
        await trio.sleep(120.0)  # it looks about once a minute
        clock.now = 100_010.0  # due again, 10 s after the last use but long after it all the same
        await trio.sleep(120.0)
        assert fetch.calls == 1
        provider.get_nowait()
        await trio.sleep(120.0)
        assert fetch.calls > 1


@pytest.mark.parametrize(
    ("reading", "error"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        ("12", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
async def test_a_given_clock_that_talks_nonsense_is_named(
    reading: Any, error: type[Exception], autojump_clock: MockClock
) -> None:
    clock = Given(reading)
    fetch = ScriptedFetch(then=AuthToken("a"))
    with pytest.raises(error, match="clock"):
        async with open_provider(fetch, clock=clock):
            pass
    clock.now = 1000.0
    async with open_provider(fetch, clock=clock) as provider:
        clock.now = reading
        for call in (provider.get, provider.lease, provider.refresh):
            with pytest.raises(error, match="clock"):
                await call()
        with pytest.raises(error, match="clock"):
            provider.get_nowait()
        provider.status()
        clock.now = 1000
        assert text(await provider.get()) == "a"
        await provider.refresh()
        assert isinstance((await provider.lease()).issued_at, float)


async def test_a_given_clock_that_raises_ends_nothing(autojump_clock: MockClock) -> None:
    clock = Given()
    broken = Down("the clock")

    async def mint() -> AuthToken:
        clock.error = broken
        return AuthToken("a", 2000.0)

    events: list[Event] = []
    async with open_provider(mint, clock=clock, policy=PLAIN(), eager=False, observe=events.append) as provider:
        with pytest.raises(Down, match="the clock"):
            await provider.get()
        clock.error = None
        clock.now = 1500.0
        assert provider.status().failures == 1
        failed = next(event for event in events if isinstance(event, FetchFailed))
        assert failed.error is broken


async def test_a_given_clock_that_raises_in_the_background_ends_nothing(autojump_clock: MockClock) -> None:
    clock = Given()
    fetch = ScriptedFetch(AuthToken("a", 1100.0), AuthToken("b", 2000.0))
    events: list[Event] = []
    async with open_provider(fetch, clock=clock, policy=PLAIN(), keep_warm=math.inf, observe=events.append) as provider:
        clock.now = 1080.0
        clock.error = Down("the clock")
        await trio.sleep(200.0)
        with pytest.raises(Down):
            await provider.get()
        clock.error = None
        await trio.sleep(61.0)
        assert text(await provider.get()) == "b"
    assert [type(event) for event in events].count(FetchStarted) == 2


async def test_the_checkpoint_of_a_hit_comes_before_the_reading(autojump_clock: MockClock) -> None:
    clock = Given()
    fetch = ScriptedFetch(AuthToken("a", 1100.0), AuthToken("b", 1200.0))
    async with open_provider(fetch, clock=clock, policy=PLAIN()) as provider, trio.open_nursery() as nursery:

        async def ask() -> None:
            got.append(text(await provider.get()))

        got: list[str] = []
        nursery.start_soon(ask)
        await trio.lowlevel.checkpoint()  # it stands at the checkpoint of its hit, or has not started
        clock.now = 1100.0
        await wait_all_tasks_blocked()
        assert got == ["b"]


async def test_boundaries(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider(fetch, policy=PLAIN(refresh_floor=0.0)) as provider:
        await until(provider, "due", -0.001)
        provider.get_nowait()
        await wait_all_tasks_blocked()
        assert fetch.calls == 1
        await until(provider, "due")
        assert text(provider.get_nowait()) == "a"
        await wait_all_tasks_blocked()
        assert fetch.calls == 2
        await until(provider, "expiry", -0.001)
        assert provider.status().good
        await until(provider, "expiry")
        assert not provider.status().good
