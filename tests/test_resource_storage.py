"""A resource and its storage: who reads, who writes, who clears, in what order, and what happens when it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Event,
    FetchStarted,
    FetchSucceeded,
    MintedTokenAlreadyExpired,
    RefreshPolicy,
    ServedExpired,
    StorageFailed,
    StoreError,
    open_provider,
    open_resource,
)
from trio_renew._clock import wall_now
from trio_renew.testing import Block, ScriptedFetch, Token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Broken(Exception):
    """What the scripted storage raises."""


class Shelf:
    """A storage in memory whose calls can be slow, stubborn or broken."""

    def __init__(self, held: Any = None) -> None:
        self.held = held
        self.log: list[str] = []
        self.delay: dict[str, float] = {}
        self.stubborn: set[str] = set()
        self.broken: dict[str, BaseException] = {}

    async def _do(self, operation: str) -> None:
        self.log.append(operation)
        with trio.CancelScope(shield=operation in self.stubborn):
            await trio.sleep(self.delay.get(operation, 0.0))
        if operation in self.broken:
            raise self.broken[operation]
        self.log.append(f"{operation} done")

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


async def test_what_is_stored_is_handed_out_without_a_fetch() -> None:
    shelf = Shelf("stored")
    fetch = ScriptedFetch("new")
    events: list[Event] = []
    async with open_resource(fetch, storage=shelf, observe=events.append) as resource:
        assert shelf.log == []
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        got: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(collect, resource.get, got)
        assert got == ["stored"] * 5
        assert shelf.log == ["get", "get done"]
        assert events == []
        assert (await resource.lease()).generation == 1
        assert await resource.refresh(stale="stored") == "new"
        assert shelf.held == "new"
    assert fetch.calls == 1


async def test_refresh_fetches_also_when_something_is_stored() -> None:
    shelf = Shelf("stored")
    async with open_resource(ScriptedFetch("new", "newer"), storage=shelf) as resource:
        assert await resource.refresh() == "new"
        assert await resource.get() == "new"
        assert "get" not in shelf.log


async def test_refresh_of_a_stale_value_reads_the_storage_first() -> None:
    fetch = ScriptedFetch("new")
    async with open_resource(fetch, storage=Shelf("stored")) as resource:
        assert await resource.refresh(stale="older") == "stored"
        assert fetch.calls == 0
    async with open_resource(fetch, storage=Shelf("stored")) as resource:
        assert await resource.refresh(stale="stored") == "new"


async def test_a_refresh_during_the_read_has_not_been_answered_by_it(autojump_clock: MockClock) -> None:
    shelf = Shelf("stored")
    shelf.delay["get"] = 5.0
    fetch = ScriptedFetch("new")
    async with open_resource(fetch, storage=shelf) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await wait_all_tasks_blocked()
        assert await resource.refresh() == "new"
        await wait_all_tasks_blocked()
        assert got == ["new"]
        assert resource.get_nowait() == "new"


async def test_the_callers_get_the_value_after_it_was_written(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 2.0
    fetch = ScriptedFetch("a")
    async with open_resource(fetch, storage=shelf) as resource:
        assert await resource.get() == "a"
        assert trio.current_time() == 2.0
        assert shelf.held == "a"


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
async def test_a_fetch_that_has_returned_is_not_abandoned_any_more(
    when_abandoned: Any, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 2.0
    fetch = ScriptedFetch("a")
    async with open_resource(fetch, storage=shelf, when_abandoned=when_abandoned) as resource:
        with trio.move_on_after(1):
            await resource.get()
        assert await resource.get() == "a"
        assert fetch.calls == 1
        assert shelf.held == "a"


async def test_a_read_that_fails_is_reported_once_and_fetched_instead() -> None:
    shelf = Shelf("stored")
    shelf.broken["get"] = Broken("no disk")
    events: list[Event] = []
    fetch = ScriptedFetch("a", "b")
    async with open_resource(fetch, storage=shelf, observe=events.append) as resource:
        assert await resource.get() == "a"
        await resource.refresh()
        assert shelf.log.count("get") == 1
    assert events[0] == StorageFailed("get", shelf.broken["get"])
    assert names(events).count("StorageFailed") == 1


async def test_a_write_that_fails_loses_nothing_and_is_tried_at_the_next_renewal() -> None:
    shelf = Shelf()
    shelf.broken["set"] = Broken("disk full")
    events: list[Event] = []
    async with open_resource(ScriptedFetch("a", "b"), storage=shelf, observe=events.append) as resource:
        assert await resource.get() == "a"
        assert resource.get_nowait() == "a"
        del shelf.broken["set"]
        assert await resource.refresh() == "b"
        assert shelf.held == "b"
    assert names(events)[:3] == ["FetchStarted", "StorageFailed", "FetchSucceeded"]


@pytest.mark.parametrize("operation", ["get", "set", "clear"])
@pytest.mark.parametrize("stubborn", [False, True])
async def test_each_call_is_bounded(operation: str, stubborn: bool, autojump_clock: MockClock) -> None:
    shelf = Shelf("stored" if operation == "get" else None)
    shelf.delay[operation] = 50.0
    if stubborn:
        shelf.stubborn.add(operation)
    events: list[Event] = []
    async with open_resource(
        ScriptedFetch("a", "b"), storage=shelf, fetch_timeout=3.0, observe=events.append
    ) as resource:
        assert await resource.get() == "a"
        if operation == "clear":
            await resource.clear()
            with pytest.raises(trio.WouldBlock):
                resource.get_nowait()
        assert trio.current_time() == 3.0
        failed = [event for event in events if isinstance(event, StorageFailed)]
        assert [event.operation for event in failed] == [operation]
        assert isinstance(failed[0].error, StoreError)
        assert "3 s" in str(failed[0].error)
    assert len([event for event in events if isinstance(event, StorageFailed)]) == 1


async def test_a_storage_that_never_ends_a_call_wedges_nobody(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 500.0
    shelf.stubborn.add("set")
    events: list[Event] = []
    async with open_resource(
        ScriptedFetch("a", "b"), storage=shelf, fetch_timeout=3.0, observe=events.append
    ) as resource:
        assert await resource.get() == "a"
        assert await resource.refresh() == "b"
        assert trio.current_time() == 6.0
        await resource.clear()
        assert trio.current_time() == 9.0
    assert shelf.log[2:] == ["set", "set done", "clear", "clear done"]  # the clear has the last word
    assert shelf.held is None
    assert [event.operation for event in events if isinstance(event, StorageFailed)] == ["set", "set", "clear"]


async def test_clear_against_a_write_in_progress(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 2.0
    async with open_resource(ScriptedFetch("old", "new"), storage=shelf) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await trio.sleep(1)
        await resource.clear()
        assert shelf.held is None
        assert got == ["old"]
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        assert await resource.get() == "new"
        assert shelf.held == "new"
        assert shelf.log.count("get") == 1  # after a clear the storage is not read again


async def test_clear_before_the_write_keeps_the_old_value_out(autojump_clock: MockClock) -> None:
    shelf = Shelf("older")
    shelf.delay["clear"] = 5.0
    fetch = ScriptedFetch(Block("old"), "new")
    async with open_resource(fetch, storage=shelf) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.refresh, got)
        await fetch.called(1)
        nursery.start_soon(resource.clear)
        await wait_all_tasks_blocked()
        fetch.release()
        assert await resource.get() == "new"
        assert got == ["old"]
    assert shelf.held == "new"
    assert shelf.log == ["clear", "clear done", "set", "set done"]


async def test_clear_during_the_read(autojump_clock: MockClock) -> None:
    shelf = Shelf("old")
    shelf.delay["get"] = 5.0
    async with open_resource(ScriptedFetch("new"), storage=shelf) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await trio.sleep(1)
        await resource.clear()
        await wait_all_tasks_blocked()
        assert got == ["new"]


async def test_clear_goes_on_when_its_caller_leaves(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["clear"] = 5.0
    async with open_resource(ScriptedFetch("a"), storage=shelf) as resource:
        await resource.get()
        with trio.move_on_after(1) as scope:
            await resource.clear()
        assert scope.cancelled_caught
        await trio.sleep(5)
        assert shelf.held is None


async def test_a_clear_that_fails_is_reported_not_raised() -> None:
    shelf = Shelf("old")
    shelf.broken["clear"] = Broken("no disk")
    events: list[Event] = []
    async with open_resource(ScriptedFetch("new"), storage=shelf, observe=events.append) as resource:
        await resource.clear()
        assert await resource.get() == "new"
    assert names(events)[:2] == ["Cleared", "StorageFailed"]


async def test_closing_lets_a_write_finish_and_the_fetch_has_succeeded(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 5.0
    events: list[Event] = []
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        async with open_resource(ScriptedFetch("a"), storage=shelf, observe=events.append) as resource:
            nursery.start_soon(collect, resource.get, got)
            await trio.sleep(1)
        assert trio.current_time() == 5.0
    assert isinstance(got[0], trio.ClosedResourceError)
    assert shelf.held == "a"
    assert names(events) == ["FetchStarted", "FetchSucceeded", "OwnerClosed"]


async def test_closing_waits_for_a_write_no_longer_than_its_bound(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay["set"] = 500.0
    async with open_resource(ScriptedFetch("a"), storage=shelf, fetch_timeout=3.0) as resource:
        with trio.move_on_after(1):
            await resource.get()
    assert trio.current_time() == 3.0


async def test_closing_during_clear_and_read(autojump_clock: MockClock) -> None:
    shelf = Shelf("old")
    shelf.delay.update(clear=5.0, get=50.0)
    got: list[Any] = []
    ended: list[float] = []

    async def ask(call: Callable[[], Awaitable[Any]]) -> None:
        await collect(call, got)
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        async with open_resource(ScriptedFetch("a"), storage=shelf) as resource:
            nursery.start_soon(ask, resource.get)
            await trio.sleep(1)
        assert trio.current_time() == 1.0  # a read is not waited for
        async with open_resource(ScriptedFetch("a"), storage=shelf) as resource:
            nursery.start_soon(ask, resource.clear)
            await trio.sleep(1)
        assert trio.current_time() == 6.0  # a clear is, by the nursery alone
    assert [type(error) for error in got] == [trio.ClosedResourceError] * 2
    assert ended == [1.0, 2.0]
    assert shelf.held is None


@pytest.mark.parametrize("operation", ["get", "set", "clear"])
async def test_an_interrupt_in_the_storage_ends_the_owner(operation: str) -> None:
    shelf = Shelf()
    shelf.broken[operation] = KeyboardInterrupt()
    events: list[Event] = []
    got: list[Any] = []
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyboardInterrupt):
            async with open_resource(ScriptedFetch("a"), storage=shelf, observe=events.append) as resource:
                nursery.start_soon(collect, resource.clear if operation == "clear" else resource.get, got)
                await trio.sleep_forever()
    assert [type(error) for error in got] == [trio.ClosedResourceError]
    started = names(events).count("FetchStarted")
    assert sum(name in ("FetchAbandoned", "FetchSucceeded") for name in names(events)) == started


# The provider


async def test_a_good_stored_value_opens_without_a_fetch(autojump_clock: MockClock) -> None:
    shelf = Shelf(AuthToken("stored", wall_now() + 100.0))
    fetch = ScriptedFetch(Token("new", 100.0))
    async with open_provider(fetch, storage=shelf, policy=RefreshPolicy(jitter=0.0, leeway=0.0)) as provider:
        assert fetch.calls == 0
        status = provider.status()
        assert status.issued_at == wall_now()  # it counts as issued when it was read
        assert status.due_at == wall_now() + 70.0


async def test_an_expired_stored_value_is_replaced_or_serves_when_the_source_is_down(
    autojump_clock: MockClock,
) -> None:
    shelf = Shelf(AuthToken("stored", wall_now() - 10.0))
    async with open_provider(ScriptedFetch(Token("new", 100.0)), storage=shelf) as provider:
        assert provider.get_nowait().secret.reveal() == "new"
    shelf.held = AuthToken("stored", wall_now() - 10.0)
    events: list[Event] = []
    policy = RefreshPolicy(serve_expired_for=60.0)
    async with open_provider(
        ScriptedFetch(Broken("down"), then=Token("new", 60.0)), storage=shelf, policy=policy, observe=events.append
    ) as provider:
        assert ServedExpired(10.0) in events
        assert (await provider.get()).secret.reveal() == "new"
    shelf.held = AuthToken("stored", wall_now() - 100.0)
    with pytest.raises(Broken):
        async with open_provider(ScriptedFetch(Broken("down")), storage=shelf, policy=policy):
            pass
    shelf.held = None
    with pytest.raises(MintedTokenAlreadyExpired):
        async with open_provider(ScriptedFetch(Token("old", -5.0)), storage=shelf):
            pass


async def test_a_stored_value_that_lives_by_ttl_is_due_at_once(autojump_clock: MockClock) -> None:
    policy = RefreshPolicy(ttl=100.0, jitter=0.0)
    fetch = ScriptedFetch("new")
    events: list[Event] = []
    async with open_provider(fetch, storage=Shelf("stored"), policy=policy, observe=events.append) as provider:
        await wait_all_tasks_blocked()
        assert provider.get_nowait() == "new"
    assert [event.reason for event in events if isinstance(event, FetchStarted)] == ["aging"]


async def test_a_stored_value_without_a_readable_life_is_a_failed_read(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    async with open_provider(
        ScriptedFetch(Token("new", 100.0)), storage=Shelf("bare"), observe=events.append
    ) as provider:
        assert provider.get_nowait().secret.reveal() == "new"
    assert isinstance(events[0], StorageFailed)
    assert isinstance(events[0].error, TypeError)
    assert isinstance(events[2], FetchSucceeded)


async def test_closing_before_the_read_has_started(autojump_clock: MockClock) -> None:
    shelf = Shelf("old")
    shelf.delay["get"] = 20.0
    for checkpoints in range(6):
        got: list[Any] = []
        async with trio.open_nursery() as nursery:
            async with open_resource(ScriptedFetch("a"), storage=shelf) as resource:
                nursery.start_soon(collect, resource.get, got)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
        assert isinstance(got[0], trio.ClosedResourceError)
    assert trio.current_time() == 0.0
