"""What observers are told: which events, in what order, with what in them, and what an observer may do."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerChanged,
    BreakerPolicy,
    Cleared,
    Closed,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    HalfOpen,
    MintedTokenAlreadyExpired,
    Open,
    OwnerClosed,
    RefreshPolicy,
    ServedExpired,
    StorageFailed,
    StoreError,
    open_provider,
    open_resource,
)
from trio_renew._clock import wall_now
from trio_renew._events import emit
from trio_renew.lowlevel import open_provider_with
from trio_renew.testing import Block, ScriptedFetch, Sleep, Stubborn, Token, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


class Shelf:
    """A storage that can be slow or broken."""

    def __init__(self, held: Any = None) -> None:
        self.held = held
        self.delay = 0.0
        self.broken: set[str] = set()

    async def _do(self, operation: str) -> None:
        await trio.sleep(self.delay)
        if operation in self.broken:
            raise Down(operation)

    async def get(self) -> Any:
        await self._do("get")
        return self.held

    async def set(self, value: Any) -> None:
        await self._do("set")
        self.held = value

    async def clear(self) -> None:
        await self._do("clear")
        self.held = None


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def collect(call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    try:
        into.append(await call())
    except Exception as exc:
        into.append(exc)


def test_the_events_are_a_closed_union_of_frozen_classes() -> None:
    kinds = get_args(Event)
    assert {kind.__name__ for kind in kinds} == {
        "FetchStarted",
        "FetchSucceeded",
        "FetchFailed",
        "FetchAbandoned",
        "BreakerChanged",
        "ServedExpired",
        "StorageFailed",
        "Cleared",
        "OwnerClosed",
    }
    for kind in kinds:
        fields = [field.name for field in attrs.fields(kind)]
        assert {"name", "key"} <= set(fields)
        assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind)
    event = Cleared(3)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.generation = 4  # type: ignore[misc]
    assert event == Cleared(3)
    assert (event.name, event.key) == (None, None)


def test_the_positions_of_their_fields() -> None:
    error = Down()
    assert FetchSucceeded("aging", 1.0, 2.0, 3) == FetchSucceeded(
        reason="aging", duration=1.0, remaining=2.0, generation=3, name=None, key=None
    )
    assert FetchFailed("aging", 1.0, error, 2.0, 3.0) == FetchFailed(
        reason="aging", duration=1.0, error=error, remaining=2.0, next_attempt_at=3.0
    )
    assert BreakerChanged(Closed(0), Open(1.0)) == BreakerChanged(old=Closed(0), new=Open(1.0))
    assert StorageFailed("get", error) == StorageFailed(operation="get", error=error)


async def test_the_life_of_a_provider(autojump_clock: MockClock) -> None:
    down, worse = Down(1), Down(2)
    fetch = ScriptedFetch(
        Sleep(1.0, Token("a", 100.0)), Sleep(2.0, down), Sleep(3.0, worse), Sleep(4.0, Token("b", 50.0)), AuthToken("c")
    )
    events: list[Event] = []
    policy = PLAIN(serve_expired_for=50.0, retry=Backoff(initial=10.0, jitter=0.0))
    async with open_provider(
        fetch, policy=policy, breaker=BreakerPolicy(2, 60.0), observe=events.append, name="idp"
    ) as provider:
        start = wall_now()
        await trio.sleep_until(81.0)  # made at 1, due at 71
        provider.get_nowait()
        await trio.sleep_until(111.0)
        await provider.get()
        await provider.get()  # refused
        await trio.sleep_until(174.0)
        await provider.get()
        await provider.clear()
        await provider.refresh()
    assert events == [
        FetchStarted("initial", name="idp"),
        FetchSucceeded("initial", 1.0, 100.0, 1, name="idp"),
        FetchStarted("aging", name="idp"),
        FetchFailed("aging", 2.0, down, 18.0, start - 1.0 + 93.0, name="idp"),
        FetchStarted("expired", name="idp"),
        BreakerChanged(Closed(1), Open(start - 1.0 + 174.0), name="idp"),
        FetchFailed("expired", 3.0, worse, 0.0, start - 1.0 + 174.0, name="idp"),
        ServedExpired(13.0, name="idp"),
        ServedExpired(13.0, name="idp"),
        BreakerChanged(Open(start - 1.0 + 174.0), HalfOpen(), name="idp"),
        FetchStarted("expired", name="idp"),
        BreakerChanged(HalfOpen(), Closed(0), name="idp"),
        FetchSucceeded("expired", 4.0, 50.0, 2, name="idp"),
        Cleared(3, name="idp"),
        FetchStarted("forced", name="idp"),
        FetchSucceeded("forced", 0.0, None, 4, name="idp"),
        OwnerClosed(name="idp"),
    ]


async def test_a_failed_probe_opens_again(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Down(), Down())
    async with open_provider(
        fetch, policy=PLAIN(), breaker=BreakerPolicy(1, 10.0), eager=False, observe=events.append
    ) as provider:
        for _ in range(2):
            with pytest.raises(Down):
                await provider.get()
            await trio.sleep(10.0)
    assert names(events) == [
        "FetchStarted",
        "BreakerChanged",
        "FetchFailed",
        "BreakerChanged",
        "FetchStarted",
        "BreakerChanged",
        "FetchFailed",
        "OwnerClosed",
    ]
    changes = [(type(e.old), type(e.new)) for e in events if isinstance(e, BreakerChanged)]
    assert changes == [(Closed, Open), (Open, HalfOpen), (HalfOpen, Open)]


async def test_a_fenced_fetch_carries_its_generation(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Block("a"), Block(None), "c")
    async with open_resource(fetch, observe=events.append) as resource, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(collect, resource.get, [])
            await wait_all_tasks_blocked()
            await resource.clear()
        await resource.get()
        for _ in range(2):
            fetch.release()
            await wait_all_tasks_blocked()
    assert sorted(e.generation for e in events if isinstance(e, FetchSucceeded)) == [0, 1, 3]
    assert [e.generation for e in events if isinstance(e, Cleared)] == [1, 2]


async def test_none_tells_the_current_generation(autojump_clock: MockClock) -> None:
    """Also where the storage was read while the fetch ran."""
    shelf = Shelf("stored")
    shelf.delay = 1.0
    events: list[Event] = []
    fetch = ScriptedFetch(Sleep(5.0, None))
    async with open_resource(fetch, storage=shelf, observe=events.append) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        nursery.start_soon(collect, resource.refresh, got)
        await trio.sleep(10.0)
        assert got == ["stored", None]
        assert resource.get_nowait() == "stored"
    assert [(e.remaining, e.generation) for e in events if isinstance(e, FetchSucceeded)] == [(None, 1)]


async def test_a_late_value_adds_a_success(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Stubborn(8.0, Token("late", 100.0)))
    async with open_provider(
        fetch, policy=PLAIN(), eager=False, fetch_timeout=5.0, breaker=BreakerPolicy(1), observe=events.append
    ) as provider:
        with pytest.raises(FetchTimeout):
            await provider.get()
        await trio.sleep(20.0)
        assert provider.get_nowait().secret.reveal() == "late"
    assert names(events) == [
        "FetchStarted",
        "BreakerChanged",
        "FetchFailed",
        "BreakerChanged",
        "FetchSucceeded",
        "OwnerClosed",
    ]
    failed, succeeded = events[2], events[4]
    assert isinstance(failed, FetchFailed)
    assert isinstance(succeeded, FetchSucceeded)
    assert (failed.duration, succeeded.duration) == (5.0, 13.0)


async def test_an_expired_value_is_a_failure_that_says_so(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Token("a", 100.0), Token("s3cret", -5.0))
    async with open_provider(fetch, policy=PLAIN(), observe=events.append) as provider:
        await until(provider, "due")
        provider.get_nowait()
        await wait_all_tasks_blocked()
        provider.get_nowait()
    failed = next(event for event in events if isinstance(event, FetchFailed))
    assert isinstance(failed.error, MintedTokenAlreadyExpired)
    assert failed.remaining == pytest.approx(30.0)
    assert "s3cret" not in repr(events)


@pytest.mark.parametrize("eager", [True, False])
async def test_the_hook_comes_before_the_start(eager: bool, autojump_clock: MockClock) -> None:
    events: list[Any] = []

    async def hook() -> None:
        events.append("hook")
        await trio.sleep(1.0)

    fetch = ScriptedFetch(Token("a", 100.0))
    async with open_provider_with(hook, fetch, eager=eager, observe=events.append) as provider:
        await provider.get()
    assert events[0] == "hook"
    assert events[1] == FetchStarted("initial" if eager else "absent")
    assert len(events) == 4


async def test_storage_failures(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.broken = {"get", "set", "clear"}
    events: list[Event] = []
    async with open_resource(ScriptedFetch("a", "b"), storage=shelf, observe=events.append, name="r") as resource:
        await resource.get()
        await resource.clear()
        shelf.broken = set()
        shelf.delay = 100.0
        await resource.get()
    assert names(events) == [
        "StorageFailed",
        "FetchStarted",
        "StorageFailed",
        "FetchSucceeded",
        "Cleared",
        "StorageFailed",
        "FetchStarted",
        "StorageFailed",
        "FetchSucceeded",
        "OwnerClosed",
    ]
    failures = [event for event in events if isinstance(event, StorageFailed)]
    assert [event.operation for event in failures] == ["get", "set", "clear", "set"]
    assert [type(event.error) for event in failures] == [Down, Down, Down, StoreError]
    assert {event.name for event in events} == {"r"}


async def test_a_fetch_that_had_returned_when_the_owner_closed_has_succeeded(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    events: list[Event] = []
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_resource(ScriptedFetch(Sleep(1.0, "a")), storage=shelf, observe=events.append) as resource:
            nursery.start_soon(collect, resource.get, got)
            await trio.sleep(0.5)
            shelf.delay = 4.0
            await trio.sleep(1.5)
    assert [type(answer) for answer in got] == [trio.ClosedResourceError]
    assert events == [FetchStarted("absent"), FetchSucceeded("absent", 5.0, None, 1), OwnerClosed()]
    assert shelf.held == "a"
    assert not resource.status().held


async def test_a_fetch_that_is_cancelled(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Sleep(9.0, "a"))
    async with open_resource(fetch, when_abandoned="cancel", observe=events.append) as resource:
        with trio.move_on_after(1.0):
            await resource.get()
        await wait_all_tasks_blocked()
    assert events == [FetchStarted("absent"), FetchAbandoned("absent"), OwnerClosed()]


# What an observer may do


async def test_an_observer_sees_what_is_committed_and_may_ask(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, Any, bool]] = []

    def observe(event: Event) -> None:
        try:
            answer: Any = provider.get_nowait().secret.reveal()
        except (trio.WouldBlock, trio.ClosedResourceError) as exc:
            answer = type(exc)
        seen.append((type(event).__name__, answer, provider.status().fetching))

    fetch = ScriptedFetch(Token("a", 100.0), Down(), Token("b", 100.0))
    async with open_provider(fetch, policy=PLAIN(), eager=False, observe=observe) as provider:
        await provider.get()
        await until(provider, "due")
        for _ in range(2):
            provider.get_nowait()
            await wait_all_tasks_blocked()
        await provider.clear()
    assert seen == [
        ("FetchStarted", trio.WouldBlock, True),
        ("FetchSucceeded", "a", True),
        ("FetchStarted", "a", True),
        ("FetchFailed", "a", True),
        ("FetchStarted", "a", True),
        ("FetchSucceeded", "b", True),
        ("Cleared", trio.WouldBlock, False),
        ("OwnerClosed", trio.ClosedResourceError, False),
    ]


async def test_an_observer_that_always_raises_changes_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(event: Event) -> None:
        raise Down(type(event).__name__)

    fetch = ScriptedFetch(Token("s3cret", 100.0), Down(), Token("b", 100.0))
    shelf = Shelf()
    shelf.broken = {"get", "set", "clear"}
    with caplog.at_level(logging.ERROR, logger="trio_renew"):
        async with open_provider(
            fetch,
            policy=PLAIN(serve_expired_for=99.0),
            breaker=BreakerPolicy(1, 5.0),
            storage=shelf,
            observe=observe,
        ) as provider:
            await until(provider, "expiry")
            await provider.get()
            await trio.sleep(5.0)
            await provider.get()
            await provider.clear()
    for kind in get_args(Event):
        assert kind is FetchAbandoned or kind.__name__ in caplog.text
    assert {record.name for record in caplog.records} == {"trio_renew"}
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [FetchStarted, FetchSucceeded, FetchFailed, Cleared, ServedExpired, OwnerClosed])
async def test_an_observer_that_interrupts(kind: type[BaseException], at: type, autojump_clock: MockClock) -> None:
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if type(event) is at:
            raise kind

    fetch = ScriptedFetch(Token("a", 100.0), then=Down())
    with pytest.raises(kind):
        async with open_provider(
            fetch, policy=PLAIN(serve_expired_for=50.0), eager=False, breaker=None, observe=observe
        ) as provider:
            await provider.get()
            await until(provider, "expiry")
            await provider.get()
            await provider.clear()
    starts = [event for event in events if isinstance(event, FetchStarted)]
    ends = [event for event in events if isinstance(event, (FetchSucceeded, FetchFailed, FetchAbandoned))]
    assert len(starts) == len(ends)
    assert events[-1] == OwnerClosed()


async def test_an_observer_that_an_interrupt_kept_from_running_is_told_again() -> None:
    told: list[Event] = []
    scope: dict[str, Any] = {"__name__": "trio._core._ki", "told": told}
    exec("def observe(event):\n    told.append(event)\n    if len(told) == 1:\n        raise KeyboardInterrupt", scope)
    with pytest.raises(KeyboardInterrupt):
        emit(scope["observe"], Cleared(1), Cleared(2))
    assert told == [Cleared(1), Cleared(1), Cleared(2)]


async def test_a_failure_tells_the_life_of_what_is_still_held(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Down(), AuthToken("for ever"), Down(), Token("b", 10.0), Down())
    async with open_provider(fetch, policy=PLAIN(), eager=False, observe=events.append, breaker=None) as provider:
        for _ in range(5):
            await collect(provider.refresh, [])
        await trio.sleep(4.0)
        await collect(provider.refresh, [])
    assert [event.remaining for event in events if isinstance(event, FetchFailed)] == [None, None, 10.0, 6.0]


async def test_no_event_carries_a_secret(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    fetch = ScriptedFetch(Token("s3cret", 100.0), Down("nothing"), Token("s3cret", 100.0))
    async with open_provider(fetch, policy=PLAIN(), observe=events.append) as provider:
        await collect(provider.refresh, [])
        await provider.refresh(stale=await provider.get())
    for event in events:
        assert "s3cret" not in repr(event)
        for field in attrs.fields(type(event)):
            assert not isinstance(getattr(event, field.name), AuthToken)
