"""The flight: who shares what, who is taken away by whom, what leaves an owner, and what is left behind."""

from __future__ import annotations

import contextvars
import dataclasses
import gc
import signal
import traceback
import weakref
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    BreakerOpen,
    BreakerPolicy,
    Event,
    FetchTimeout,
    ReentrantFetchError,
    RefreshPolicy,
    ServedExpired,
    _raising,
    open_provider,
    open_resource,
)
from trio_renew._owner import Owner, hosting, owning
from trio_renew.lowlevel import open_provider_with, open_resource_with
from trio_renew.testing import Block, Handoff, ScriptedFetch, Sleep, Stubborn, Token, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


class Wild(BaseException):
    """What a user may raise that is no Exception."""


class Value:
    """Something that can be watched."""

    expires_at = None


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def collect(call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    try:
        into.append(await call())
    except Exception as exc:
        into.append(exc)


def opened(kind: str, fetch: Any, **kwargs: Any) -> Any:
    """A resource or a lazy provider, on which most of section holds alike."""
    if kind == "resource":
        return open_resource(fetch, **kwargs)
    return open_provider(fetch, eager=False, policy=PLAIN(ttl=1000.0), breaker=None, **kwargs)


both = pytest.mark.parametrize("kind", ["resource", "provider"])


# clear() and those who had joined


@both
@pytest.mark.parametrize("real_clock", [True, False])
@pytest.mark.parametrize("method", ["get", "lease", "refresh"])
@pytest.mark.parametrize("outcome", ["old", Down("old"), None])
async def test_who_joined_before_a_clear_gets_that_outcome(
    kind: str, real_clock: bool, method: str, outcome: Any
) -> None:
    async def main() -> None:
        fetch = ScriptedFetch(Block(outcome), "new")
        async with opened(kind, fetch) as resource, trio.open_nursery() as nursery:
            got: list[Any] = []
            for _ in range(5):
                nursery.start_soon(collect, getattr(resource, method), got)
            await wait_all_tasks_blocked()
            assert resource.status().waiting == 5
            await resource.clear()
            assert resource.status().waiting == 0
            for _ in range(3):
                assert await resource.get() == "new"
                assert resource.get_nowait() == "new"
            fetch.release()
            await wait_all_tasks_blocked()
            got = [getattr(answer, "value", answer) for answer in got]
            assert got == [outcome] * 5
            assert resource.get_nowait() == "new"
            assert (await resource.lease()).generation == 2

    if real_clock:
        await main()
    else:
        await trio.to_thread.run_sync(partial(trio.run, main, clock=MockClock(autojump_threshold=0)))


async def test_a_fenced_failure_is_not_consoled(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Block(Down()), Token("b", 10.0))
    events: list[Event] = []
    policy = PLAIN(serve_expired_for=1000.0)
    async with open_provider(fetch, policy=policy, observe=events.append) as provider, trio.open_nursery() as nursery:
        await until(provider, "expiry")
        got: list[Any] = []
        nursery.start_soon(collect, provider.get, got)
        nursery.start_soon(collect, provider.get, got)
        await wait_all_tasks_blocked()
        await provider.clear()
        await provider.get()
        await trio.sleep(20.0)
        fetch.release()
        await wait_all_tasks_blocked()
        assert [type(error) for error in got] == [Down, Down]
        assert provider.status().failures == 0
        assert provider.status().last_error is None
    assert "ServedExpired" not in names(events)


@both
async def test_two_clears_leave_three_fetches_beside_each_other(kind: str) -> None:
    fetch = ScriptedFetch(Block("a"), Block("b"), Block("c"))
    async with opened(kind, fetch) as resource, trio.open_nursery() as nursery:
        answers: list[list[Any]] = [[], [], []]
        for n, got in enumerate(answers):
            if n:
                await resource.clear()
            for _ in range(3):
                nursery.start_soon(collect, resource.get, got)
            await wait_all_tasks_blocked()
        assert fetch.running == 3
        for _ in range(3):
            fetch.release()
        await wait_all_tasks_blocked()
        assert answers == [["a"] * 3, ["b"] * 3, ["c"] * 3]
        assert resource.get_nowait() == "c"
        assert resource.status().generation == 3


async def test_fenced_and_timed_out(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, "late"), "new")
    events: list[Event] = []
    async with open_resource(fetch, fetch_timeout=5.0, observe=events.append) as resource:
        async with trio.open_nursery() as nursery:
            got: list[Any] = []
            nursery.start_soon(collect, resource.get, got)
            await trio.sleep(1.0)
            await resource.clear()
            assert await resource.get() == "new"
            await trio.sleep(4.0)
            await wait_all_tasks_blocked()
            assert [type(error) for error in got] == [FetchTimeout]
        await trio.sleep(30.0)
        assert fetch.running == 0
        assert resource.get_nowait() == "new"
        assert resource.status().generation == 2
    assert names(events) == [
        "FetchStarted",
        "Cleared",
        "FetchStarted",
        "FetchSucceeded",
        "FetchFailed",
        "OwnerClosed",
    ]


async def test_abandoned_then_fenced_then_closing(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, "late"), Stubborn(5.0, "later"))
    events: list[Event] = []
    start = trio.current_time()
    async with open_resource(fetch, when_abandoned="cancel", observe=events.append) as resource:
        with trio.move_on_after(1.0):
            await resource.get()
        await resource.clear()
        with trio.move_on_after(1.0):
            await resource.get()
        assert fetch.running == 2
        assert resource.status().fetching
    assert trio.current_time() == start + 7.0
    assert names(events) == [
        "FetchStarted",
        "Cleared",
        "FetchStarted",
        "FetchAbandoned",
        "FetchAbandoned",
        "OwnerClosed",
    ]


async def test_clear_frees_those_who_wait_for_an_unwinding_fetch(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, "late"), "new")
    async with open_resource(fetch, when_abandoned="cancel") as resource, trio.open_nursery() as nursery:
        with trio.move_on_after(1.0):
            await resource.get()
        got: list[Any] = []
        for call in (resource.get, resource.lease, resource.refresh):
            nursery.start_soon(collect, call, got)
        await wait_all_tasks_blocked()
        await resource.clear()
        await wait_all_tasks_blocked()
        assert trio.current_time() == 1.0
        assert len(got) == 3
        assert fetch.calls == 2


async def test_who_waits_for_an_unwinding_fetch_is_told_of_closing_at_once(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, "late"))
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_resource(fetch, when_abandoned="cancel") as resource:
            with trio.move_on_after(1.0):
                await resource.get()
            nursery.start_soon(collect, resource.get, got)
            nursery.start_soon(collect, resource.refresh, got)
            await wait_all_tasks_blocked()
            nursery.start_soon(at, 1.0, lambda: [type(error) for error in got], [trio.ClosedResourceError] * 2)
    assert trio.current_time() == 21.0


async def at(seconds: float, look: Callable[[], object], expected: object) -> None:
    await wait_all_tasks_blocked()
    assert trio.current_time() == seconds
    assert look() == expected


async def test_who_waits_for_the_slot_too_long_gets_the_expired_value_where_that_is_allowed(
    autojump_clock: MockClock,
) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Stubborn(50.0, Down()))
    events: list[Event] = []
    policy = PLAIN(serve_expired_for=20.0, permanent=lambda error: True)
    async with open_provider(
        fetch, policy=policy, fetch_timeout=10.0, when_abandoned="cancel", observe=events.append
    ) as provider:
        await until(provider, "expiry")
        with trio.move_on_after(5.0):
            await provider.get()
        assert (await provider.get()).secret.reveal() == "a"
        assert events[-1] == ServedExpired(15.0)
        with pytest.raises(FetchTimeout):
            await provider.refresh()
        with pytest.raises(FetchTimeout):
            await provider.get()
        assert provider.status().failures == 0
        assert provider.status().last_error is None


# Values that come late


@pytest.mark.parametrize("late", [None, AuthToken("old", 1.0)])
async def test_a_late_value_that_cannot_be_kept_is_no_second_failure(late: Any, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, late))
    events: list[Event] = []
    async with open_provider(fetch, eager=False, fetch_timeout=5.0, observe=events.append) as provider:
        with pytest.raises(FetchTimeout):
            await provider.get()
        await trio.sleep(30.0)
        assert provider.status().failures == 1
    assert names(events) == ["FetchStarted", "FetchFailed", "OwnerClosed"]


@pytest.mark.parametrize("late", [None, AuthToken("old", 1.0), Down()])
async def test_an_abandoned_fetch_that_brings_nothing_is_no_failure(late: Any, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, late))
    events: list[Event] = []
    async with open_provider(fetch, eager=False, when_abandoned="cancel", observe=events.append) as provider:
        with trio.move_on_after(5.0):
            await provider.get()
        await trio.sleep(30.0)
        assert provider.status().failures == 0
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]


async def test_an_abandoned_fetch_unwinding_past_its_timeout_is_still_abandoned(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(20.0, Down()))
    events: list[Event] = []
    async with open_resource(fetch, fetch_timeout=5.0, when_abandoned="cancel", observe=events.append) as resource:
        with trio.move_on_after(4.0):
            await resource.get()
        await trio.sleep(30.0)
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]


async def test_what_a_fetch_raises_at_exactly_its_deadline_is_a_timeout(autojump_clock: MockClock) -> None:
    async def fetch() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5.0)
        raise Down

    async with open_resource(fetch, fetch_timeout=5.0) as resource:
        with pytest.raises(FetchTimeout, match="5 s") as info:
            await resource.get()
        assert isinstance(info.value, TimeoutError)
        assert trio.current_time() == 5.0


# What leaves


def crashes() -> list[BaseException]:
    return [
        KeyboardInterrupt("x"),
        SystemExit(3),
        Wild("x"),
        GeneratorExit("x"),
        BaseExceptionGroup("g", [SystemExit(3), ValueError("x")]),
        BaseExceptionGroup("g", [BaseExceptionGroup("h", [Wild("x")])]),
    ]


@both
@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("body", ["waits", "raises", "returns", "swallows"])
async def test_what_is_no_exception_leaves_as_itself(kind: str, n: int, body: str) -> None:
    error = crashes()[n]
    mine = Down("of the body")
    got: list[Any] = []
    events: list[Event] = []

    async def fetch() -> Any:
        await trio.lowlevel.checkpoint()
        raise error

    caught: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            async with opened(kind, fetch, observe=events.append) as resource:
                nursery.start_soon(collect, resource.get, got)
                nursery.start_soon(collect, resource.get, got)
                if body == "waits":
                    await trio.sleep_forever()
                elif body == "raises":
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise mine
                elif body == "swallows":
                    with trio.CancelScope(), pytest.raises(trio.ClosedResourceError):
                        await resource.get()
                else:
                    await wait_all_tasks_blocked()
        except BaseException as exc:
            caught = exc
    assert caught is error
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__context__
    assert (mine in chain) == (body == "raises")
    assert not any(isinstance(link, trio.Cancelled) for link in chain if body != "raises")
    assert [type(answer) for answer in got] == [trio.ClosedResourceError] * 2
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]
    assert resource.status().closed


@pytest.mark.parametrize("n", range(6))
async def test_a_crash_at_opening_leaves_as_itself(n: int) -> None:
    error = crashes()[n]

    async def mint() -> AuthToken:
        raise error

    caught: BaseException | None = None
    try:
        async with open_provider(mint):
            raise AssertionError
    except BaseException as exc:
        caught = exc
    assert caught is error


@pytest.mark.parametrize("n", range(6))
async def test_a_crash_in_the_background_ends_the_body(n: int, autojump_clock: MockClock) -> None:
    error = crashes()[n]
    calls = 0

    async def mint() -> AuthToken:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return AuthToken.expiring_in("a", 100.0)

    caught: BaseException | None = None
    try:
        async with open_provider(mint, policy=PLAIN()) as provider:
            await trio.sleep(90.0)
            assert provider.get_nowait().secret.reveal() == "a"
            await trio.sleep_forever()
    except BaseException as exc:
        caught = exc
    assert caught is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Wild])
async def test_a_hook_that_raises_no_exception(kind: type[BaseException], autojump_clock: MockClock) -> None:
    calls = 0

    async def hook() -> None:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        if calls == 2:
            raise kind

    # In the background it is like a fetch that does.
    with pytest.raises(kind):
        async with open_provider_with(hook, ScriptedFetch(then=Token("a", 100.0)), policy=PLAIN()) as provider:
            await until(provider, "due")
            provider.get_nowait()
            await trio.sleep_forever()
    # In the foreground it is the caller's.
    calls = 0
    async with open_resource_with(hook, ScriptedFetch("a", "b", "c")) as resource:
        assert await resource.get() == "a"
        with pytest.raises(kind):
            await resource.refresh()
        assert await resource.refresh() == "b"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Wild()])
async def test_two_crashes_and_an_exception_of_the_body(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    second = SystemExit()
    calls = 0

    async def fetch() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            try:
                await trio.sleep_forever()
            finally:
                raise second
        raise error

    mine = Down()
    caught: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            async with open_resource(fetch) as resource:
                nursery.start_soon(collect, resource.get, [])
                await wait_all_tasks_blocked()
                await resource.clear()
                nursery.start_soon(collect, resource.get, [])
                try:
                    await trio.sleep_forever()
                finally:
                    raise mine
        except BaseException as exc:
            caught = exc
    assert caught is error
    assert error.__context__ is mine
    assert "crashed again" in caplog.text


@pytest.mark.parametrize("error", [StopIteration(1), StopAsyncIteration(1), ExceptionGroup("g", [Down()]), Wild()])
@both
async def test_what_the_body_raises_leaves_as_itself_and_keeps_its_context(kind: str, error: BaseException) -> None:
    before = LookupError()
    caught: BaseException | None = None
    try:
        async with opened(kind, ScriptedFetch("a")):
            try:
                raise before
            except LookupError:
                raise error from None
    except BaseException as exc:
        caught = exc
    assert caught is error
    assert error.__context__ is before
    assert error.__cause__ is None


async def test_an_owner_inside_a_handler_adds_nothing_to_what_leaves() -> None:
    mine = Down()
    with pytest.raises(Down) as info:
        try:
            raise LookupError
        except LookupError:
            try:
                async with open_resource(ScriptedFetch("a")):
                    raise mine
            finally:
                pass
    assert info.value is mine


async def test_cancelled_around_an_owner_that_crashed() -> None:
    async def fetch() -> str:
        raise Wild

    with trio.CancelScope() as scope:
        with pytest.raises(Wild):
            async with open_resource(fetch) as resource:
                scope.cancel()
                with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                    await resource.get()
                await trio.sleep_forever()


async def test_an_exception_of_the_body_while_cancelled(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, "a"))
    with trio.CancelScope() as scope:
        with pytest.raises(Down):
            async with open_resource(fetch) as resource:
                with trio.move_on_after(1.0):
                    await resource.get()
                scope.cancel()
                raise Down
    assert trio.current_time() == 6.0


# Groups and exceptions of a fetch


@both
async def test_a_group_of_the_fetchs_own_nursery_is_its_error(kind: str) -> None:
    async def fails() -> None:
        raise Down

    async def fetch() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError

    async with opened(kind, fetch) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        for _ in range(3):
            nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        for error in got:
            assert isinstance(error, ExceptionGroup)
            assert [type(inner) for inner in error.exceptions] == [Down]


async def test_a_group_that_a_timeout_made_is_a_timeout(autojump_clock: MockClock) -> None:
    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Down

    async def fetch() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            await trio.sleep_forever()
        raise AssertionError

    events: list[Event] = []
    async with open_resource(fetch, fetch_timeout=3.0, observe=events.append) as resource:
        with pytest.raises(FetchTimeout):
            await resource.get()
    assert names(events) == ["FetchStarted", "FetchFailed", "OwnerClosed"]


@pytest.mark.parametrize(
    "error", [StopAsyncIteration("x"), trio.WouldBlock(), trio.ClosedResourceError(), TimeoutError()]
)
@both
async def test_every_caller_gets_the_original_exception(kind: str, error: Exception) -> None:
    error.flavour = "sour"  # type: ignore[attr-defined]

    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        raise error

    async with opened(kind, fetch) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        for call in (resource.get, resource.get, resource.lease, resource.refresh):
            nursery.start_soon(collect, call, got)
        await wait_all_tasks_blocked()
        assert [(type(e), e.args, e.flavour) for e in got] == [(type(error), error.args, "sour")] * 4
        assert not resource.status().closed


async def test_the_shared_error_does_not_tell_one_caller_what_another_was_doing() -> None:
    fetch = ScriptedFetch(Sleep(1.0, Down("gone")))
    contexts: dict[str, BaseException | None] = {}

    async with open_resource(fetch) as resource:

        async def busy() -> None:
            try:
                raise KeyError("of the first caller")
            except KeyError:
                await plain("busy")

        async def plain(name: str) -> None:
            try:
                await resource.get()
            except Down as error:
                contexts[name] = error.__context__

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            await wait_all_tasks_blocked()
            for number in range(3):
                nursery.start_soon(plain, f"plain {number}")
    assert isinstance(contexts.pop("busy"), KeyError)
    assert contexts == {"plain 0": None, "plain 1": None, "plain 2": None}


@both
async def test_a_hundred_tracebacks_do_not_pile_up(kind: str) -> None:
    before = LookupError("why")

    async def deep() -> None:
        try:
            raise before
        except LookupError:
            raise Down  # noqa: B904 - the context is what is looked at

    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        await deep()
        raise AssertionError

    async with opened(kind, fetch) as resource, trio.open_nursery() as nursery:
        frames: list[list[str]] = []

        async def ask() -> None:
            try:
                raise ValueError("a caller who is handling something")
            except ValueError:
                try:
                    await resource.get()
                except Down as exc:
                    frames.append([frame.name for frame in traceback.extract_tb(exc.__traceback__)])
                    contexts.append(exc.__context__)

        contexts: list[BaseException | None] = []
        for _ in range(100):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert len(frames) == 100
        assert len({len(seen) for seen in frames}) <= 2  # who claimed it, and who joined
        for seen in frames:
            assert seen[0] == "ask"
            assert seen[-2:] == ["fetch", "deep"]
            assert len(seen) < 10


# Who is inside


@pytest.mark.parametrize("method", ["get", "lease", "refresh", "clear", "current_token"])
@pytest.mark.parametrize("how", ["itself", "child", "thread", "nested"])
async def test_a_fetch_that_asks_itself(method: str, how: str) -> None:
    async def ask() -> None:
        await getattr(provider, method)()

    async def mint() -> AuthToken:
        if how == "itself":
            await ask()
        elif how == "child":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
        elif how == "thread":
            await trio.to_thread.run_sync(lambda: trio.from_thread.run(ask))
        else:
            async with open_resource(ask_for_resource) as inner:
                await inner.get()
        raise AssertionError

    async def ask_for_resource() -> str:
        await ask()
        raise AssertionError

    async with open_provider(mint, eager=False, name="me") as provider:
        with trio.fail_after(2.0):
            try:
                await provider.get()
            except ExceptionGroup as group:
                assert how == "child"
                error: BaseException = group.exceptions[0]
            except ReentrantFetchError as exc:
                error = exc
        assert isinstance(error, ReentrantFetchError)
        assert "'me'" in str(error)


async def test_what_is_never_refused_inside() -> None:
    async def fetch() -> str:
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        assert resource.status().fetching
        assert await other.get() == "other"
        with trio.move_on_after(0.0):
            async for _ in resource.changes():
                raise AssertionError
        return "a"

    async with open_resource(ScriptedFetch("other")) as other, open_resource(fetch) as resource:
        assert await resource.get() == "a"


async def test_a_fenced_or_timed_out_fetch_may_not_ask_either(autojump_clock: MockClock) -> None:
    async def fetch() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(10.0)
            with pytest.raises(ReentrantFetchError):
                await resource.get()
        seen.append(trio.current_time())
        return "a"

    seen: list[float] = []
    async with open_resource(fetch, fetch_timeout=5.0) as resource:
        with pytest.raises(FetchTimeout):
            await resource.get()
        await trio.sleep(20.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, resource.refresh, [])
            await trio.sleep(1.0)
            await resource.clear()
        await trio.sleep(20.0)
    assert seen == [10.0, 35.0]


async def test_what_outlives_the_fetch_may_ask_while_its_value_is_written(autojump_clock: MockClock) -> None:
    class Slow:
        async def get(self) -> None:
            return None

        async def set(self, value: str) -> None:
            await trio.sleep(5.0)

        async def clear(self) -> None:
            raise AssertionError

    async def later() -> None:
        await trio.sleep(1.0)
        await collect(resource.get, got)

    async def fetch() -> str:
        nursery.start_soon(later)
        return "a"

    got: list[Any] = []
    async with trio.open_nursery() as nursery, open_resource(fetch, storage=Slow()) as resource:
        assert await resource.get() == "a"
        await wait_all_tasks_blocked()
        assert got == ["a"]


async def test_what_outlives_the_fetch_keeps_no_value_alive() -> None:
    async def fetch() -> Value:
        nursery.start_soon(trio.sleep_forever)
        value = Value()
        watch.append(weakref.ref(value))
        return value

    watch: list[weakref.ref[Value]] = []
    async with trio.open_nursery() as nursery:
        async with open_resource(fetch) as resource:
            await resource.get()
            await resource.refresh()
            await wait_all_tasks_blocked()
            gc.collect()
            assert [ref() is None for ref in watch] == [True, False]
        await wait_all_tasks_blocked()
        gc.collect()
        assert [ref() is None for ref in watch] == [True, True]
        nursery.cancel_scope.cancel()


# Memory


@both
@pytest.mark.parametrize("end", ["refresh", "clear", "close"])
async def test_a_dropped_value_is_gone_without_the_collector(kind: str, end: str) -> None:
    watch: list[weakref.ref[Value]] = []

    async def fetch() -> Value:
        value = Value()
        watch.append(weakref.ref(value))
        return value

    gc.collect()
    gc.disable()
    try:
        async with opened(kind, fetch) as resource:
            for call in (resource.get, resource.lease, resource.get):
                await call()
            resource.get_nowait()
            if end == "refresh":
                await resource.refresh()
            elif end == "clear":
                await resource.clear()
            if end != "close":
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                assert watch[0]() is None
        assert all(ref() is None for ref in watch)
    finally:
        gc.enable()


async def test_a_closed_provider_keeps_no_failure(autojump_clock: MockClock) -> None:
    class Heavy(Exception):
        pass

    watch: list[weakref.ref[Heavy]] = []

    async def mint() -> AuthToken:
        error = Heavy()
        watch.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    breaker = BreakerPolicy(threshold=1)
    async with open_provider(mint, eager=False, breaker=breaker) as provider:
        with pytest.raises(Heavy):
            await provider.get()
        with pytest.raises(BreakerOpen) as info:
            await provider.get()
        assert isinstance(info.value.__cause__, Heavy)
        del info
    gc.collect()
    assert watch[0]() is None
    assert provider.status().last_error == "Heavy"


# Contexts, threads, runs


async def test_each_fetch_has_a_context_of_its_own() -> None:
    who = contextvars.ContextVar("who", default="nobody")

    async def fetch() -> str:
        seen = who.get()
        who.set("the fetch")
        return seen

    who.set("the opener")
    async with open_resource(fetch) as resource:
        who.set("the caller")
        assert await resource.get() == "the opener"
        assert await resource.refresh() == "the opener"
        assert who.get() == "the caller"


@pytest.mark.parametrize("kind", ["resource", "provider"])
@pytest.mark.parametrize("filled", [True, False])
async def test_used_from_elsewhere(kind: str, filled: bool) -> None:
    fetch = ScriptedFetch(Value(), Value())
    async with opened(kind, fetch) as resource:
        if filled:
            await resource.get()
            resource.get_nowait()

        def other_run() -> None:
            async def main() -> None:
                for call in (resource.get, resource.lease, resource.refresh, resource.clear):
                    with pytest.raises(RuntimeError, match="belongs to another thread"):
                        await call()
                for nowait in (resource.get_nowait, resource.changes, resource.status):
                    with pytest.raises(RuntimeError, match="belongs to another thread"):
                        nowait()

            trio.run(main)

        def no_run() -> None:
            for nowait in (resource.get_nowait, resource.changes, resource.status):
                with pytest.raises(RuntimeError, match="belongs to another thread"):
                    nowait()

        for where in (other_run, no_run):
            await trio.to_thread.run_sync(where)
        assert fetch.calls == (1 if filled else 0)
        assert resource.status().held == filled
    status = await trio.to_thread.run_sync(resource.status)
    assert status.closed


async def test_a_look_from_another_thread_lifts_no_breaker() -> None:
    breaker = BreakerPolicy(threshold=1, cooldown=1000.0)
    async with open_provider(ScriptedFetch(Down()), eager=False, breaker=breaker) as provider:
        with pytest.raises(Down):
            await provider.get()
        status = provider.status()
        with pytest.raises(RuntimeError, match="belongs to another thread"):
            await trio.to_thread.run_sync(provider.status)
        assert provider.status() == status
        with pytest.raises(BreakerOpen):
            await provider.get()


def test_used_from_another_run_in_the_same_thread() -> None:
    async def make() -> Owner:
        return Owner("x", None, None)

    async def use(owner: Owner) -> None:
        with pytest.raises(RuntimeError, match="another Trio run"):
            owner.check()

    trio.run(use, trio.run(make))


# Closing


@pytest.mark.parametrize("body", [None, Down()])
def test_an_interrupt_while_closing(body: Exception | None) -> None:
    @trio.lowlevel.enable_ki_protection
    async def interrupt() -> None:
        await trio.sleep(2.0)
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            async with open_resource(fetch) as resource:
                with trio.move_on_after(1.0):
                    await resource.get()
                if body is not None:
                    raise body

    fetch = ScriptedFetch(Stubborn(5.0, "a"))
    with pytest.raises(BaseExceptionGroup) as info:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [type(error) for error in info.value.exceptions] == [KeyboardInterrupt]
    assert info.value.exceptions[0].__context__ is body
    assert fetch.running == 0


async def test_a_crash_whose_context_is_the_bodys_exception_makes_no_ring() -> None:
    mine = Down("of the body")
    crash = Wild()

    async def fetch() -> str:
        try:
            try:
                raise mine
            except Down:
                raise LookupError  # noqa: B904 - the context is what is looked at
        except LookupError:
            raise crash  # noqa: B904

    with pytest.raises(Wild):
        async with open_resource(fetch) as resource:
            with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                await resource.get()
            raise mine
    links = []
    link: BaseException | None = crash
    while link is not None:
        assert link not in links
        links.append(link)
        link = link.__context__
    assert mine in links


async def test_a_body_whose_exception_comes_from_the_crash_makes_no_ring() -> None:
    crash = Wild()

    async def fetch() -> str:
        raise crash

    with pytest.raises(Wild):
        async with open_resource(fetch) as resource:
            with pytest.raises(trio.ClosedResourceError):
                await resource.get()
            mine = Down()
            mine.__context__ = LookupError()
            mine.__context__.__context__ = crash
            raise mine
    assert crash.__context__ is mine
    assert mine.__context__ is not None
    assert mine.__context__.__context__ is None


@both
async def test_each_caller_elsewhere_is_told_of_closing(kind: str) -> None:
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with opened(kind, ScriptedFetch(Block(Value()))) as resource:
            for call in (resource.get, resource.get, resource.lease, resource.refresh, resource.changes().__anext__):
                nursery.start_soon(collect, call, got)
            await wait_all_tasks_blocked()
    ends = sorted(type(end).__name__ for end in got)
    assert ends == ["ClosedResourceError"] * 4 + ["StopAsyncIteration"]


@both
async def test_an_owner_without_a_thread_refuses_hits(kind: str) -> None:
    async with opened(kind, ScriptedFetch(Value())) as resource:
        await resource.get()
        resource.get_nowait()
        resource._owner.disown()
        for call in (resource.get, resource.lease, resource.refresh, resource.clear):
            with pytest.raises(RuntimeError, match="another thread or process"):
                await call()
        with pytest.raises(RuntimeError, match="another thread or process"):
            resource.get_nowait()


async def test_a_partial_function_is_a_fetch() -> None:
    async def fetch(one: str, two: str) -> str:
        return one + two

    async with open_resource(partial(partial(fetch, "a"), two="b")) as resource:
        assert await resource.get() == "ab"
    with pytest.raises(TypeError, match="synchronous"):
        async with open_resource(partial(names, [])):  # type: ignore[arg-type]
            raise AssertionError


@both
async def test_a_runner_that_cannot_start_leaves_no_claim(kind: str) -> None:
    class NoNursery:
        def start_soon(self, *args: object, **kwargs: object) -> None:
            raise MemoryError

    async with opened(kind, ScriptedFetch(Value())) as resource:
        owner = resource._owner
        nursery, owner._nursery = owner._nursery, NoNursery()
        for call in (resource.get, resource.lease, resource.refresh):
            with pytest.raises(MemoryError):
                await call()
            assert not resource.status().fetching
        owner._nursery = nursery
        assert isinstance(await resource.get(), Value)


async def test_many_alarms_that_are_off_take_no_room(autojump_clock: MockClock) -> None:
    rung: list[float] = []
    owner = Owner(None, None, None)
    async with hosting(owner):
        alarms = [owner.alarm(float(n), lambda: rung.append(trio.current_time())) for n in range(1, 1001)]
        for alarm in alarms[1:-1]:
            alarm.cancel()
            alarm.cancel()
        assert len(owner._alarms) < 200
        await trio.sleep(2000.0)
    assert rung == [1.0, 1000.0]


async def test_a_fetch_that_holds_up_the_loop_past_its_deadline(autojump_clock: MockClock) -> None:
    async def fetch() -> str:
        autojump_clock.jump(6.0)
        return "late"

    async def fails() -> str:
        autojump_clock.jump(6.0)
        raise Down

    async with open_resource(fetch, fetch_timeout=5.0) as resource:
        with pytest.raises(FetchTimeout):
            await resource.get()
        await wait_all_tasks_blocked()
        assert await resource.get() == "late"
    async with open_resource(fails, fetch_timeout=5.0) as resource:
        with pytest.raises(FetchTimeout):
            await resource.get()


async def test_the_body_uses_it_while_it_is_cancelled_or_raising(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(then=Sleep(1.0, "a"))
    got: list[Any] = []

    @asynccontextmanager
    async def guard() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                got.append(await resource.refresh())

    with trio.CancelScope() as scope:
        async with open_resource(fetch) as resource:
            async with guard():
                scope.cancel()
                await trio.sleep_forever()
    with pytest.raises(Down):
        async with open_resource(fetch) as resource:
            async with guard():
                raise Down
    assert got == ["a", "a"]


@both
async def test_a_hit_that_stands_at_its_checkpoint_when_the_owner_closes(kind: str) -> None:
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with opened(kind, ScriptedFetch(Value())) as resource:
            await resource.get()
            for call in (resource.get, resource.lease, partial(resource.refresh, "x"), resource.clear):
                nursery.start_soon(collect, call, got)
            await trio.lowlevel.checkpoint()
    assert all(not isinstance(answer, Exception) or type(answer) is trio.ClosedResourceError for answer in got)
    assert len(got) == 4


async def test_an_owner_cancelled_before_anything_started() -> None:
    for eager in (True, False):
        events: list[Event] = []
        fetch = ScriptedFetch(then=Token("a", 100.0))
        with trio.CancelScope() as scope:
            scope.cancel()
            async with open_provider(fetch, eager=eager, observe=events.append):
                assert not eager
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert names(events) == ["OwnerClosed"]
        assert fetch.calls == 0


async def test_closing_waits_only_for_what_does_not_answer(autojump_clock: MockClock) -> None:
    async with open_resource(ScriptedFetch(Sleep(50.0, "a"))) as resource:
        with trio.move_on_after(1.0):
            await resource.get()
    assert trio.current_time() == 1.0


# The handoff


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
async def test_joiners_that_leave_the_window_take_nobody_away(when_abandoned: Any, autojump_clock: MockClock) -> None:
    handoff = Handoff()
    fetch = ScriptedFetch("a")
    async with (
        open_resource_with(handoff, fetch, when_abandoned=when_abandoned) as resource,
        trio.open_nursery() as nursery,
    ):
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await handoff.reached()
        with trio.move_on_after(1.0):
            await resource.get()
        assert resource.status().waiting == 1
        assert resource.status().fetching
        handoff.release()
        await wait_all_tasks_blocked()
        assert got == ["a"]


async def test_a_refresh_cancelled_in_the_window(autojump_clock: MockClock) -> None:
    handoff = Handoff(hold={2})
    fetch = ScriptedFetch("a", "b")
    async with open_resource_with(handoff, fetch) as resource, trio.open_nursery() as nursery:
        await resource.get()
        got: list[Any] = []
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when, handoff.reached, 2, scope)
            nursery.start_soon(collect_after, handoff.reached, 2, resource.refresh, got)
            await resource.refresh()
        await wait_all_tasks_blocked()
        assert got == ["b"]
        assert handoff.claims == 3


async def cancel_when(reached: Callable[[int], Awaitable[None]], n: int, scope: trio.CancelScope) -> None:
    await reached(n)
    await wait_all_tasks_blocked()
    scope.cancel()


async def collect_after(
    reached: Callable[[int], Awaitable[None]], n: int, call: Callable[[], Awaitable[Any]], got: list[Any]
) -> None:
    await reached(n)
    await collect(call, got)


async def test_the_timeout_counts_from_the_end_of_the_hook(autojump_clock: MockClock) -> None:
    async def hook() -> None:
        await trio.sleep(100.0)

    async with open_resource_with(hook, ScriptedFetch(Sleep(50.0, "a")), fetch_timeout=10.0) as resource:
        with pytest.raises(FetchTimeout):
            await resource.get()
        assert trio.current_time() == 110.0


async def test_closing_ends_a_background_hook(autojump_clock: MockClock) -> None:
    handoff = Handoff(hold={2})
    events: list[Event] = []
    fetch = ScriptedFetch(then=Token("a", 100.0))
    async with open_provider_with(handoff, fetch, policy=PLAIN(), observe=events.append) as provider:
        await until(provider, "due")
        provider.get_nowait()
        await handoff.reached(2)
    assert names(events) == ["FetchStarted", "FetchSucceeded", "OwnerClosed"]


async def test_a_cancelled_background_window_starts_nothing(autojump_clock: MockClock) -> None:
    """clear() while the hook of a background refresh is in the window: it may finish, but is not kept."""
    handoff = Handoff(hold={2})
    fetch = ScriptedFetch(Token("a", 100.0), Token("old", 100.0), Token("new", 100.0))
    async with open_provider_with(handoff, fetch, policy=PLAIN()) as provider:
        await until(provider, "due")
        provider.get_nowait()
        await handoff.reached(2)
        await provider.clear()
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        handoff.release()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            provider.get_nowait()
        assert (await provider.get()).secret.reveal() == "new"


async def test_a_fetch_that_starts_fenced_takes_no_probes_place(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Down(), Block(Token("old", 100.0)), then=Token("new", 100.0))
    handoff = Handoff(hold={2})
    breaker = BreakerPolicy(threshold=1, cooldown=60.0)
    events: list[Event] = []
    got: list[Any] = []
    async with open_provider_with(
        handoff, fetch, eager=False, policy=PLAIN(), breaker=breaker, observe=events.append
    ) as provider:
        with pytest.raises(Down):
            await provider.get()
        await trio.sleep(60.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, provider.get, got)
            await handoff.reached(2)
            await provider.clear()
            events.clear()
            handoff.release()
            await fetch.called(2)
            # It has started, and observers hear of no probe.
            assert names(events) == ["FetchStarted"]
            assert (await provider.get()).secret.reveal() == "new"
            fetch.release()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """What does not let its traceback be written to."""

    code: int


@dataclasses.dataclass(frozen=True)
class FrozenWild(BaseException):
    code: int


@pytest.mark.parametrize("kind", ["resource", "provider"])
async def test_an_error_that_cannot_be_changed_is_an_error_as_any_other(kind: str, autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Frozen(1), Sleep(1.0, Frozen(2)), "a")
    async with opened(kind, fetch) as resource:
        with pytest.raises(Frozen) as info:
            await resource.get()
        assert info.value.code == 1
        got: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(collect, resource.get, got)
        assert got == [Frozen(2)] * 3
        assert await resource.get() == "a"


async def test_an_error_that_cannot_be_changed_leaves_as_itself(autojump_clock: MockClock) -> None:
    with pytest.raises(Frozen):
        async with open_provider(ScriptedFetch(Frozen(1))):
            raise AssertionError
    for error in (Frozen(2), FrozenWild(3)):
        with pytest.raises(type(error)) as info:
            async with open_resource(ScriptedFetch()):
                raise error
        assert info.value is error
        assert [entry.name for entry in info.traceback] == ["test_an_error_that_cannot_be_changed_leaves_as_itself"]
    events: list[Event] = []
    with pytest.raises(FrozenWild) as crash:
        async with open_resource(ScriptedFetch(FrozenWild(4)), observe=events.append) as resource:
            await resource.get()
    assert isinstance(crash.value.__context__, trio.ClosedResourceError)
    assert names(events)[-1] == "OwnerClosed"


async def test_what_ends_a_generator_leaves_the_body_as_itself() -> None:
    stop = StopAsyncIteration("mine")
    with pytest.raises(StopAsyncIteration) as info:
        async with open_resource(ScriptedFetch()):
            raise stop
    assert info.value is stop

    async def ended() -> AsyncGenerator[None, None]:
        raise stop
        yield

    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):  # a generator of the user's own
        async with open_resource(ScriptedFetch()):
            await anext(ended())
    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        async with open_provider(lambda: anext(ended())):
            raise AssertionError


async def test_an_owner_is_opened_once() -> None:
    manager = open_resource(ScriptedFetch())
    async with manager:
        with pytest.raises(RuntimeError, match="entered once"):
            await manager.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        async with manager:
            raise AssertionError


async def test_a_generator_that_keeps_what_the_body_raises() -> None:
    @owning
    async def keeping() -> AsyncGenerator[None, None]:
        try:
            yield
        except Down:
            pass

    async with keeping():
        raise Down


@pytest.mark.filterwarnings("ignore:.*strict_exception_groups:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::trio.TrioDeprecationWarning")
def test_a_run_that_is_not_strict_about_groups() -> None:
    events: list[Event] = []

    async def main() -> None:
        async with open_resource(ScriptedFetch(), observe=events.append):
            trio.lowlevel.enable_ki_protection(lambda: signal.raise_signal(signal.SIGINT))()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, strict_exception_groups=False)
    assert names(events) == ["OwnerClosed"]


async def test_an_instance_that_is_raised_again_and_again_takes_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_raising, "_LONGEST", 20)
    error = Down()

    async def fetch() -> str:
        raise error

    async with open_resource(fetch) as resource:
        for _ in range(50):
            with pytest.raises(Down) as info:
                await resource.get()
            assert len(list(traceback.walk_tb(info.value.__traceback__))) < 40
            assert "fetch" in [entry.name for entry in info.traceback]
