"""One resource: laziness, single flight, refresh(stale), clear, storage, closing."""

from __future__ import annotations

import contextvars
import gc
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_renew import (
    Cleared,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    Lease,
    OwnerClosed,
    ReentrantFetchError,
    RenewableResource,
    _owner,
    open_resource,
)
from trio_renew.lowlevel import open_resource_with
from trio_renew.testing import Block, Handoff, ScriptedFetch, Sleep, Stubborn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Down(Exception):
    """What the scripted sources raise."""


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def collect(call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    try:
        into.append(await call())
    except Exception as exc:
        into.append(exc)


# Laziness, hits, values


async def test_nothing_is_fetched_until_somebody_asks(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch("a")
    async with open_resource(fetch) as resource:
        await trio.sleep(1e6)
        assert fetch.calls == 0
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        assert await resource.get() == "a"
        await trio.sleep(1e6)
        assert await resource.get() == "a" == resource.get_nowait()
        assert fetch.calls == 1


@pytest.mark.parametrize("value", [0, False, "", 0.0, (), b""])
async def test_falsy_values_are_values(value: object) -> None:
    fetch = ScriptedFetch(value)
    async with open_resource(fetch) as resource:
        assert await resource.get() is value
        assert await resource.get() is value
        assert resource.get_nowait() is value


async def test_none_is_no_value_and_clears_nothing() -> None:
    fetch = ScriptedFetch(None, "a", None, "b")
    async with open_resource(fetch, observe=(events := []).append) as resource:
        assert await resource.get() is None
        lease = await resource.lease()
        assert (lease.value, lease.generation) == ("a", 1)
        assert await resource.refresh() is None
        assert await resource.get() == "a"
        assert await resource.refresh() == "b"
    assert [event.generation for event in events if isinstance(event, FetchSucceeded)] == [0, 1, 1, 2]


async def test_lease_of_no_value() -> None:
    async with open_resource(ScriptedFetch(None)) as resource:
        lease = await resource.lease()
        assert lease == Lease(None, 0, lease.issued_at, None)


async def test_each_hit_is_one_checkpoint() -> None:
    async with open_resource(ScriptedFetch("a")) as resource:
        await resource.get()
        for call in (resource.get, resource.lease, lambda: resource.refresh(stale="x"), resource.clear):
            with assert_checkpoints():
                await call()
        with assert_no_checkpoints(), pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        with assert_no_checkpoints():
            resource.status()


@pytest.mark.parametrize("method", ["get", "lease", "refresh", "clear"])
async def test_a_cancelled_caller_starts_and_changes_nothing(method: str) -> None:
    fetch = ScriptedFetch("a")
    async with open_resource(fetch) as resource:
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(resource, method)()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert fetch.calls == 0
        assert resource.status().generation == 0


# One flight


async def test_all_share_one_fetch_and_its_value() -> None:
    fetch = ScriptedFetch(Block("a"))
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        for _ in range(100):
            nursery.start_soon(collect, resource.get, got)
        await fetch.called(1)
        await wait_all_tasks_blocked()
        assert resource.status().waiting == 100
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["a"] * 100
        assert fetch.calls == 1
        assert not resource.status().fetching


async def test_all_share_one_failure_with_the_fetchs_own_traceback() -> None:
    async def failing() -> str:
        await trio.lowlevel.checkpoint()
        raise Down("no answer", 7)

    async with open_resource(failing) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        for _ in range(50):
            nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        assert [type(error) for error in got] == [Down] * 50
        assert got[0].args == ("no answer", 7)
        frames = traceback.extract_tb(got[0].__traceback__)
        assert "failing" in [frame.name for frame in frames]
        assert len(frames) < 12
        with pytest.raises(Down):
            await resource.get()


async def test_the_fetch_is_not_the_callers() -> None:
    fetch = ScriptedFetch(Block("a"))
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        scope = trio.CancelScope()

        async def leader() -> None:
            with scope:
                await resource.get()

        nursery.start_soon(leader)
        await fetch.called(1)
        nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert fetch.cancelled == 0
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["a"]


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
async def test_when_the_last_caller_leaves(when_abandoned: Any, autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Sleep(5.0, "a"), "b")
    events: list[Event] = []
    async with open_resource(fetch, when_abandoned=when_abandoned, observe=events.append) as resource:
        with trio.move_on_after(1):
            await resource.get()
        assert await resource.get() == ("a" if when_abandoned == "finish" else "b")
        assert trio.current_time() == (5.0 if when_abandoned == "finish" else 1.0)
    kinds = names(events)
    if when_abandoned == "finish":
        assert kinds == ["FetchStarted", "FetchSucceeded", "OwnerClosed"]
    else:
        assert kinds == ["FetchStarted", "FetchAbandoned", "FetchStarted", "FetchSucceeded", "OwnerClosed"]


async def test_newcomers_wait_while_an_abandoned_fetch_unwinds(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, Down("late")), "b")
    async with open_resource(fetch, when_abandoned="cancel") as resource:
        with trio.move_on_after(1):
            await resource.get()
        assert resource.status().fetching
        assert await resource.get() == "b"
        assert fetch.most_running == 1


async def test_one_of_two_callers_leaving_abandons_nothing(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Sleep(5.0, "a"))
    async with open_resource(fetch, when_abandoned="cancel") as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        with trio.move_on_after(1):
            await resource.get()
        await trio.sleep(5)
        assert got == ["a"]
        assert fetch.cancelled == 0


async def test_an_abandoned_fetch_that_fails_reaches_nobody(autojump_clock: trio.testing.MockClock) -> None:
    events: list[Event] = []
    async with open_resource(
        ScriptedFetch(Stubborn(2.0, Down("late"))), when_abandoned="cancel", observe=events.append
    ) as resource:
        with trio.move_on_after(1):
            await resource.get()
        await trio.sleep(5)
        assert resource.status().last_error is None
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]


async def test_clear_lets_those_go_on_who_wait_for_an_unwinding_fetch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fetch = ScriptedFetch(Stubborn(50.0, Down("late")), then="b")
    async with open_resource(fetch, when_abandoned="cancel") as resource, trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await resource.get()
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        nursery.start_soon(collect, resource.refresh, got)
        await trio.sleep(1)
        assert got == []
        await resource.clear()
        await trio.sleep(1)
        assert got == ["b", "b"]


async def test_a_value_returned_in_spite_of_cancellation_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, "a"))
    events: list[Event] = []
    async with open_resource(fetch, when_abandoned="cancel", observe=events.append) as resource:
        with trio.move_on_after(1):
            await resource.get()
        assert await resource.get() == "a"
    assert names(events) == ["FetchStarted", "FetchSucceeded", "OwnerClosed"]


async def test_a_timeout_is_exact_also_when_the_fetch_is_slow_to_unwind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fetch = ScriptedFetch(Stubborn(2.0, "a"))
    events: list[Event] = []
    async with open_resource(fetch, fetch_timeout=3.0, observe=events.append) as resource:
        started = trio.current_time()
        with pytest.raises(FetchTimeout, match="3 s"):
            await resource.get()
        assert trio.current_time() - started == 3.0
        assert fetch.running == 1
        # A newcomer waits for the slot, then finds what the late fetch brought.
        assert await resource.get() == "a"
    assert names(events) == ["FetchStarted", "FetchFailed", "FetchSucceeded", "OwnerClosed"]
    assert isinstance(events[1], FetchFailed)
    assert isinstance(events[1].error, TimeoutError)


async def test_a_fetch_that_ends_at_exactly_its_deadline_is_late(autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(8):
        async with open_resource(ScriptedFetch(Sleep(3.0, "a")), fetch_timeout=3.0) as resource:
            with pytest.raises(FetchTimeout):
                await resource.get()
        assert seed >= 0


async def test_newcomers_wait_for_the_slot_no_longer_than_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(50.0, Down("late")), "b")
    async with open_resource(fetch, fetch_timeout=3.0) as resource:
        for _ in range(2):
            before = trio.current_time()
            for call in (resource.get, resource.refresh):
                with pytest.raises(FetchTimeout):
                    await call()
                    assert trio.current_time() - before == 3.0
        await resource.clear()
        assert await resource.get() == "b"  # what clear() has fenced may still run beside it
        assert fetch.running == 1


@pytest.mark.parametrize("timeout", [None, float("inf")])
async def test_no_limit(timeout: float | None, autojump_clock: trio.testing.MockClock) -> None:
    async with open_resource(ScriptedFetch(Sleep(1e7, "a")), fetch_timeout=timeout) as resource:
        assert await resource.get() == "a"


async def test_inside_the_fetch_the_deadline_is_its_own(autojump_clock: trio.testing.MockClock) -> None:
    seen = []

    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        seen.append(trio.current_effective_deadline())
        return "a"

    with trio.move_on_after(1000):
        async with open_resource(fetch, fetch_timeout=7.0) as resource:
            with trio.move_on_after(2):
                await resource.get()
    assert seen == [7.0]


async def test_the_fetch_runs_in_a_copy_of_the_owners_context() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    var.set("owner")
    seen = []

    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        seen.append(var.get())
        var.set("fetch")
        return "a"

    async with open_resource(fetch) as resource:
        var.set("caller")
        await resource.get()
        await resource.refresh()
    assert seen == ["owner", "owner"]
    assert var.get() == "caller"


# refresh


async def test_refresh_stale_fetches_once_for_all_who_saw_it_fail() -> None:
    fetch = ScriptedFetch("a", Block("b"))
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        stale = await resource.get()
        got: list[Any] = []
        for _ in range(20):
            nursery.start_soon(collect, lambda: resource.refresh(stale=stale), got)
        await fetch.called(2)
        await wait_all_tasks_blocked()
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["b"] * 20
        assert await resource.refresh(stale=stale) == "b"
        assert await resource.refresh("a") == "b"
        assert fetch.calls == 2


async def test_stale_is_compared_by_identity_then_type_and_equality_or_by_generation() -> None:
    nan = float("nan")
    fetch = ScriptedFetch(1, True, nan, nan, "x", "x")
    async with open_resource(fetch) as resource:
        first = await resource.lease()
        assert first.value == 1
        assert await resource.refresh(stale=True) == 1  # held is int 1: another value
        assert fetch.calls == 1
        assert await resource.refresh(stale=first) is True
        assert await resource.refresh(stale=first) is True  # an old lease
        assert await resource.refresh(stale=True) is nan
        assert await resource.refresh(stale=nan) is nan  # identical: stale
        assert fetch.calls == 4
        await resource.refresh()
        lease = await resource.lease()
        assert await resource.refresh(stale=lease) == "x"
        assert (await resource.lease()).generation == lease.generation + 1


async def test_an_old_lease_of_an_equal_value_has_been_answered() -> None:
    fetch = ScriptedFetch("x", "x", "x")
    async with open_resource(fetch) as resource:
        old = await resource.lease()
        await resource.refresh()
        assert await resource.refresh(stale=old) == "x"
        assert fetch.calls == 2
        assert await resource.refresh(stale="x") == "x"  # by value there is no telling
        assert fetch.calls == 3


async def test_a_failed_refresh_keeps_the_old_value() -> None:
    fetch = ScriptedFetch("a", Down("x"), Down("y"), "b")
    async with open_resource(fetch) as resource:
        await resource.get()
        with pytest.raises(Down):
            await resource.refresh()
        assert await resource.get() == "a"
        with pytest.raises(Down):
            await resource.refresh(stale="a")
        assert resource.status().last_error == "Down: y"
        assert await resource.refresh(stale="a") == "b"
        assert resource.status().last_error is None


async def test_refresh_joins_and_get_is_served_meanwhile() -> None:
    fetch = ScriptedFetch("a", Block("b"))
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        await resource.get()
        got: list[Any] = []
        nursery.start_soon(collect, resource.refresh, got)
        await fetch.called(2)
        assert await resource.get() == "a"
        nursery.start_soon(collect, resource.refresh, got)
        assert await resource.refresh(stale="older") == "a"  # differs and is good: also while a flight runs
        await wait_all_tasks_blocked()
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["b", "b"]


# clear


async def test_clear_fences_what_is_in_flight() -> None:
    fetch = ScriptedFetch(Block("old"), "new")
    events: list[Event] = []
    async with open_resource(fetch, observe=events.append) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await fetch.called(1)
        await resource.clear()
        assert await resource.get() == "new"
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["old"]
        assert resource.get_nowait() == "new"
    assert names(events) == [
        "FetchStarted",
        "Cleared",
        "FetchStarted",
        "FetchSucceeded",
        "FetchSucceeded",
        "OwnerClosed",
    ]
    assert [e.generation for e in events if isinstance(e, Cleared | FetchSucceeded)] == [1, 2, 0]


async def test_clear_then_a_late_rejection_fetches() -> None:
    fetch = ScriptedFetch("a", "a")
    async with open_resource(fetch) as resource:
        lease = await resource.lease()
        await resource.clear()
        assert await resource.refresh(stale=lease) == "a"
        assert fetch.calls == 2


async def test_a_fenced_fetch_that_fails_answers_those_who_joined() -> None:
    fetch = ScriptedFetch(Block(Down("x")), "new")
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await fetch.called(1)
        await resource.clear()
        await resource.get()
        fetch.release()
        await wait_all_tasks_blocked()
        assert isinstance(got[0], Down)
        assert resource.status().last_error is None


# The handoff


async def test_cancelled_in_the_handoff_the_claim_is_released_and_others_decide_again() -> None:
    handoff = Handoff(hold={1})
    fetch = ScriptedFetch("a")
    async with open_resource_with(handoff, fetch) as resource, trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        got: list[Any] = []

        async def victim() -> None:
            with scope:
                await resource.get()

        nursery.start_soon(victim)
        await handoff.reached()
        assert resource.status().fetching
        assert resource.status().waiting == 1
        nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        assert resource.status().waiting == 2
        scope.cancel()
        await wait_all_tasks_blocked()
        assert got == ["a"]
        assert handoff.claims == 2


async def test_an_exception_of_the_hook_is_the_claimers() -> None:
    calls = 0

    async def hook() -> None:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        if calls == 1:
            raise Down("hook")

    fetch = ScriptedFetch("a")
    events: list[Event] = []
    async with open_resource_with(hook, fetch, observe=events.append) as resource:
        with pytest.raises(Down, match="hook"):
            await resource.get()
        assert events == []
        assert await resource.get() == "a"


async def test_clear_in_the_handoff_window_answers_but_keeps_nothing() -> None:
    handoff = Handoff()
    async with open_resource_with(handoff, ScriptedFetch("a")) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await handoff.reached()
        await resource.clear()
        handoff.release()
        await wait_all_tasks_blocked()
        assert got == ["a"]
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()


async def test_closing_in_the_handoff_window() -> None:
    handoff = Handoff()
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_resource_with(handoff, ScriptedFetch("a")) as resource:
            nursery.start_soon(collect, resource.get, got)
            await handoff.reached()
        handoff.release()
    assert isinstance(got[0], trio.ClosedResourceError)


# Re-entry and misuse


async def test_a_fetch_that_asks_itself_is_refused_at_once() -> None:
    got: list[Any] = []

    async def fetch() -> str:
        for method in ("get", "lease", "refresh", "clear"):
            with pytest.raises(ReentrantFetchError, match=rf"{method}\(\)"):
                await getattr(resource, method)()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, resource.get, got)
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        assert resource.status().fetching
        return "a"

    async with open_resource(fetch) as resource:
        assert await resource.get() == "a"
        assert isinstance(got[0], ReentrantFetchError)


async def test_a_task_that_outlives_the_fetch_it_was_started_in_may_ask() -> None:
    async with trio.open_nursery() as nursery:
        got: list[Any] = []

        async def later() -> None:
            await go.wait()
            await collect(resource.get, got)

        async def fetch() -> str:
            await trio.lowlevel.checkpoint()
            nursery.start_soon(later)
            return "a"

        go = trio.Event()
        async with open_resource(fetch) as resource:
            await resource.get()
            go.set()
            await wait_all_tasks_blocked()
            assert got == ["a"]


@pytest.mark.parametrize("fetch", [None, 3, "x", lambda: 3])
async def test_what_is_no_async_function(fetch: Any) -> None:
    with pytest.raises(TypeError, match="async function"):
        async with open_resource(fetch) as resource:
            await resource.get()


async def test_what_looks_like_an_async_function() -> None:
    async def real() -> str:
        await trio.lowlevel.checkpoint()
        return "a"

    def sync() -> str:
        return "a"

    def generator() -> Any:
        yield "a"

    async def asyncgen() -> Any:
        yield "a"

    for bad in (sync, generator, asyncgen, real()):
        with pytest.raises(TypeError, match="fetch must be an async function"):
            async with open_resource(bad):  # type: ignore[arg-type]
                pass
    async with open_resource(lambda: real()) as resource:
        assert await resource.get() == "a"


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("fetch_timeout", float("nan"), ValueError),
        ("fetch_timeout", -1.0, ValueError),
        ("fetch_timeout", "3", TypeError),
        ("when_abandoned", "never", ValueError),
        ("observe", 3, TypeError),
        ("clock", 3, TypeError),
        ("name", 3, TypeError),
        ("storage", object(), TypeError),
    ],
)
async def test_bad_arguments_name_themselves(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
        async with open_resource(ScriptedFetch("a"), **{argument: value}):
            pass


async def test_used_from_another_thread() -> None:
    async with open_resource(ScriptedFetch("a")) as resource:
        await resource.get()
        seen: list[BaseException] = []

        def elsewhere() -> None:
            for call in (resource.get_nowait, lambda: trio.run(resource.get), resource.changes):
                try:
                    call()
                except RuntimeError as exc:
                    seen.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        assert len(seen) == 3
        assert all("another thread" in str(error) for error in seen)


async def test_used_in_a_forked_child() -> None:
    async with open_resource(ScriptedFetch("a")) as resource:
        await resource.get()
        resource.get_nowait()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                resource.get_nowait()
            except RuntimeError as exc:
                status = 0 if "another thread or process" in str(exc) else 2
            finally:
                os._exit(status)
        _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert resource.get_nowait() == "a"


async def test_what_happens_in_a_forked_child_happens_to_all_owners() -> None:
    async with open_resource(ScriptedFetch("a")) as resource:
        await resource.get()
        _owner._disown_after_fork()
        with pytest.raises(RuntimeError, match="another thread or process"):
            resource.get_nowait()
        with pytest.raises(RuntimeError, match="another thread or process"):
            await resource.get()


# Closing


async def test_after_closing() -> None:
    async with open_resource(ScriptedFetch("a"), name="csrf") as resource:
        await resource.get()
        assert repr(resource) == "<RenewableResource 'csrf'>"
    for method in ("get", "lease", "refresh", "clear"):
        with pytest.raises(trio.ClosedResourceError):
            await getattr(resource, method)()
    for call in (resource.get_nowait, resource.changes):
        with pytest.raises(trio.ClosedResourceError):
            call()
    status = resource.status()
    assert (status.closed, status.held, status.good, status.fetching) == (True, False, False, False)
    assert repr(resource) == "<RenewableResource 'csrf' (closed)>"


async def test_callers_elsewhere_get_closed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, "a"))
    got: list[Any] = []
    events: list[Event] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await collect(resource.get, got)
            got.append(trio.current_time())

        async with open_resource(fetch, observe=events.append) as resource:
            nursery.start_soon(ask)
            await fetch.called(1)
    assert isinstance(got[0], trio.ClosedResourceError)
    assert got[1] == 0.0
    assert trio.current_time() == 5.0  # the stubborn one was waited for
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]


async def test_the_body_leaves_first() -> None:
    async with open_resource(ScriptedFetch(Block("a"))) as resource:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as nursery:
                        got: list[Any] = []
                        nursery.start_soon(collect, resource.get, got)
                        await resource._fetch.called(1)  # type: ignore[attr-defined]
                        resource._fetch.release()  # type: ignore[attr-defined]
                    assert got == ["a"]


async def test_cancelled_around_the_owner_the_body_can_still_use_it() -> None:
    got = []
    with trio.CancelScope() as scope:
        async with open_resource(ScriptedFetch("a")) as resource:
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    got.append(await resource.get())
    assert got == ["a"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), StopIteration(), StopAsyncIteration()])
async def test_an_exception_of_the_body_leaves_as_itself(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with open_resource(ScriptedFetch(Block("a"))) as resource, trio.open_nursery() as nursery:
            nursery.start_soon(collect, resource.get, [])
            await resource._fetch.called(1)  # type: ignore[attr-defined]
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.ClosedResourceError):
            resource.get_nowait()
        async with open_resource(ScriptedFetch(Block("a"))):
            raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_ends_the_owner_and_leaves_as_itself(kind: type[BaseException]) -> None:
    events: list[Event] = []
    got: list[Any] = []

    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        raise kind("from the fetch")

    async with trio.open_nursery() as nursery:
        with pytest.raises(kind, match="from the fetch") as caught:
            async with open_resource(fetch, observe=events.append) as resource:
                nursery.start_soon(collect, resource.get, got)
                await trio.sleep_forever()
        assert caught.value.__context__ is None
        with pytest.raises(kind) as caught:
            async with open_resource(fetch) as second:
                nursery.start_soon(collect, second.get, got)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("body")
        assert isinstance(caught.value.__context__, ValueError)
    assert [type(error) for error in got] == [trio.ClosedResourceError] * 2
    assert names(events) == ["FetchStarted", "FetchAbandoned", "OwnerClosed"]


async def test_after_a_crash_the_owner_is_closed_also_for_its_body() -> None:
    async def fetch() -> str:
        await trio.lowlevel.checkpoint()
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with open_resource(fetch) as resource:
            try:
                await resource.get()
            except trio.ClosedResourceError:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
                assert resource.status().closed
                with pytest.raises(trio.ClosedResourceError):
                    resource.get_nowait()
                raise


async def test_an_observer_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError("observer")

    async with open_resource(ScriptedFetch("a"), observe=observe) as resource:
        assert await resource.get() == "a"
        await resource.clear()
    assert "an observer raised at FetchStarted" in caplog.text


async def test_an_observer_that_interrupts_ends_the_owner() -> None:
    def observe(event: Event) -> None:
        if isinstance(event, FetchSucceeded):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with open_resource(ScriptedFetch("a"), observe=observe) as resource:
            with pytest.raises(trio.ClosedResourceError):
                await resource.get()
            await trio.sleep_forever()


async def test_observers_see_committed_state() -> None:
    seen: list[tuple[str, bool, int]] = []

    def observe(event: Event) -> None:
        status = resource.status()
        seen.append((type(event).__name__, status.held, status.generation))

    async with open_resource(ScriptedFetch("a"), observe=observe) as resource:
        await resource.get()
        await resource.clear()
    assert seen == [
        ("FetchStarted", False, 0),
        ("FetchSucceeded", True, 1),
        ("Cleared", False, 2),
        ("OwnerClosed", False, 2),
    ]


# changes


async def test_changes_hand_out_what_is_good_and_each_new_value() -> None:
    fetch = ScriptedFetch("a", "b", "c", "c")
    async with trio.open_nursery() as nursery:
        seen: list[str] = []

        async def follow(resource: RenewableResource[str]) -> None:
            async for value in resource.changes():
                seen.append(value)  # noqa: PERF401 - the others look at it meanwhile

        async with open_resource(fetch) as resource:
            nursery.start_soon(follow, resource)
            await wait_all_tasks_blocked()
            assert fetch.calls == 0
            await resource.get()
            await wait_all_tasks_blocked()
            assert seen == ["a"]
            await resource.refresh()
            await resource.refresh()  # latest wins
            await wait_all_tasks_blocked()
            assert seen == ["a", "b", "c"] or seen == ["a", "c"]
            await resource.refresh()
            await wait_all_tasks_blocked()
            assert seen[-2:] == ["c", "c"]
            late = resource.changes()
            assert await late.__anext__() == "c"
            with trio.CancelScope() as scope:
                scope.cancel()
                await late.__anext__()
            assert scope.cancelled_caught
        with pytest.raises(StopAsyncIteration):
            await late.__anext__()


async def test_nothing_keeps_a_dropped_value_alive() -> None:
    class Value:
        pass

    async def fetch() -> Value:
        await trio.lowlevel.checkpoint()
        return Value()

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, Value) for thing in gc.get_objects())

    async with open_resource(fetch) as resource:
        await resource.get()
        resource.get_nowait()
        await resource.refresh()
        assert alive() == 1
        await resource.clear()
        assert alive() == 0
        await resource.get()
    assert alive() == 0


async def test_events_of_a_failed_and_abandoned_fetch_add_up() -> None:
    events: list[Event] = []
    async with open_resource(ScriptedFetch(Down("x"), Block("a")), observe=events.append, name="n") as resource:
        with pytest.raises(Down):
            await resource.get()
        with trio.move_on_after(0.01):
            await resource.get()
    assert names(events) == ["FetchStarted", "FetchFailed", "FetchStarted", "FetchAbandoned", "OwnerClosed"]
    assert {(event.name, event.key) for event in events} == {("n", None)}
    assert isinstance(events[0], FetchStarted)
    assert isinstance(events[3], FetchAbandoned)
    assert isinstance(events[4], OwnerClosed)
