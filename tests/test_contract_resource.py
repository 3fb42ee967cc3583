"""One resource where its rules meet: refresh(stale), storage, changes, status, arguments, types."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, assert_type

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Event,
    Lease,
    MemoryStorage,
    RefreshingProvider,
    RenewableResource,
    Secret,
    Status,
    open_provider,
    open_resource,
)
from trio_renew.testing import Block, ScriptedFetch, Sleep, Token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Down(Exception):
    """What the scripted sources raise."""


class Shelf:
    """A storage that can be slow or broken."""

    def __init__(self, held: Any = None) -> None:
        self.held = held
        self.delay: dict[str, float] = {}
        self.broken: set[str] = set()
        self.calls: list[str] = []

    async def _do(self, operation: str) -> None:
        self.calls.append(operation)
        await trio.sleep(self.delay.get(operation, 0.0))
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


# refresh(stale)


@pytest.mark.parametrize(
    ("held", "stale", "moved"),
    [
        (1, True, True),
        (1, 1.0, True),
        (1, "1", True),
        (0, False, True),
        (0, 0, False),
        ("", "", False),
        (False, False, False),
        ((1, 2), (1, 2), False),
        ([1], [1], False),
        (math.nan, float("nan"), True),
        (math.nan, math.nan, False),
        ("v2", "v1", True),
    ],
)
async def test_what_counts_as_the_same(held: object, stale: object, moved: bool) -> None:
    fetch = ScriptedFetch(held, "new")
    async with open_resource(fetch) as resource:
        await resource.get()
        assert await resource.refresh(stale=stale) is (held if moved else "new") or held == "new"
        assert fetch.calls == (1 if moved else 2)


async def test_a_moved_slot_answers_while_a_flight_runs() -> None:
    fetch = ScriptedFetch("a", "b", Block("c"))
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        old = await resource.lease()
        await resource.refresh()
        got: list[Any] = []
        nursery.start_soon(collect, resource.refresh, got)
        await wait_all_tasks_blocked()
        assert await resource.refresh(stale="a") == "b"
        assert await resource.refresh(stale=old) == "b"
        nursery.start_soon(collect, lambda: resource.refresh(stale="b"), got)
        nursery.start_soon(collect, lambda: resource.refresh(stale=None), got)
        await wait_all_tasks_blocked()
        assert got == []
        fetch.release()
        await wait_all_tasks_blocked()
        assert got == ["c"] * 3
        assert fetch.calls == 3


async def test_late_rejections_cost_one_fetch() -> None:
    fetch = ScriptedFetch("a", Sleep(1.0, "b"), "c")
    async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
        await resource.get()
        got: list[Any] = []
        for _ in range(100):
            nursery.start_soon(collect, lambda: resource.refresh(stale="a"), got)
        await fetch.called(2)
        await wait_all_tasks_blocked(0.01)
        assert resource.status().waiting == 100
        nursery.cancel_scope.cancel()
    assert fetch.calls == 2


async def test_the_same_value_again_is_a_new_generation() -> None:
    value = object()
    fetch = ScriptedFetch(then=value)
    async with open_resource(fetch) as resource:
        old = await resource.lease()
        assert await resource.refresh(stale=old) is value
        assert await resource.refresh(stale=old) is value
        assert fetch.calls == 2
        new = await resource.lease()
        assert (old.generation, new.generation) == (1, 2)
        assert await resource.refresh(stale=value) is value
        assert fetch.calls == 3


async def test_an_equality_that_raises_is_the_callers() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise Down

    fetch = ScriptedFetch(Odd(), "new")
    async with open_resource(fetch) as resource:
        value = await resource.get()
        with pytest.raises(Down):
            await resource.refresh(stale=Odd())
        assert await resource.refresh(stale=value) == "new"


async def test_a_failed_refresh_of_a_stale_value_is_not_remembered() -> None:
    fetch = ScriptedFetch("a", Down(), None, "b")
    async with open_resource(fetch) as resource:
        await resource.get()
        with pytest.raises(Down):
            await resource.refresh(stale="a")
        assert await resource.refresh(stale="a") is None
        assert await resource.get() == "a"
        assert await resource.refresh(stale="a") == "b"


# Storage


async def test_refresh_of_a_stale_value_finds_another_one_stored() -> None:
    shelf = Shelf("stored")
    fetch = ScriptedFetch("new", "newer")
    async with open_resource(fetch, storage=shelf) as resource:
        assert await resource.refresh(stale="other") == "stored"
        assert fetch.calls == 0
        assert await resource.refresh(stale="stored") == "new"
    shelf = Shelf("stored")
    async with open_resource(fetch, storage=shelf) as resource:
        assert await resource.refresh(stale="stored") == "newer"


async def test_a_failed_refresh_leaves_the_storage_to_be_read() -> None:
    shelf = Shelf("stored")
    async with open_resource(ScriptedFetch(Down()), storage=shelf) as resource:
        with pytest.raises(Down):
            await resource.refresh()
        assert await resource.get() == "stored"


async def test_get_nowait_does_not_read_and_the_reader_may_leave(autojump_clock: MockClock) -> None:
    shelf = Shelf("stored")
    shelf.delay["get"] = 5.0
    events: list[Event] = []
    async with open_resource(ScriptedFetch(), storage=shelf, observe=events.append) as resource:
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()
        assert shelf.calls == []
        with trio.move_on_after(1.0):
            await resource.get()
        assert not resource.status().fetching
        await trio.sleep(5.0)
        lease = await resource.lease()
        assert (lease.value, lease.generation) == ("stored", 1)
    assert shelf.calls == ["get"]
    assert names(events) == ["OwnerClosed"]


async def test_a_read_that_brings_nothing_is_not_repeated() -> None:
    for broken in (True, False):
        shelf = Shelf()
        if broken:
            shelf.broken.add("get")
        fetch = ScriptedFetch(None, Down(), "a")
        async with open_resource(fetch, storage=shelf) as resource:
            assert await resource.get() is None
            with pytest.raises(Down):
                await resource.get()
            assert await resource.get() == "a"
        assert shelf.calls == ["get", "set"]


async def test_a_cleared_storage_is_not_read_again_though_clearing_failed() -> None:
    shelf = Shelf("stored")
    shelf.broken.add("clear")
    fetch = ScriptedFetch("new")
    async with open_resource(fetch, storage=shelf) as resource:
        await resource.clear()
        assert await resource.get() == "new"
    assert shelf.calls == ["clear", "set"]


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_clear_against_a_write(when: str, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = {"set": 2.0, "clear": 1.0}
    fetch = ScriptedFetch(Sleep(2.0, "old"))
    async with open_resource(fetch, storage=shelf) as resource, trio.open_nursery() as nursery:
        got: list[Any] = []
        nursery.start_soon(collect, resource.get, got)
        await trio.sleep({"before": 1.0, "during": 3.0, "after": 5.0}[when])
        await resource.clear()
        await trio.sleep(10.0)
        assert got == ["old"]
        assert shelf.held is None
        with pytest.raises(trio.WouldBlock):
            resource.get_nowait()


async def test_a_write_of_the_next_session_comes_after_the_clear(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = {"set": 5.0, "clear": 5.0}
    fetch = ScriptedFetch("old", "new")
    async with open_resource(fetch, storage=shelf) as resource, trio.open_nursery() as nursery:
        nursery.start_soon(resource.get)
        await trio.sleep(1.0)
        nursery.start_soon(resource.clear)
        await trio.sleep(1.0)
        assert await resource.get() == "new"
        assert trio.current_time() == 15.0
        assert shelf.held == "new"


async def test_without_a_limit_a_storage_may_take_its_time(autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = {"get": 1000.0, "set": 1000.0, "clear": 1000.0}
    async with open_resource(ScriptedFetch("a"), storage=shelf, fetch_timeout=None) as resource:
        assert await resource.get() == "a"
        await resource.clear()
        assert trio.current_time() == 3000.0


# changes()


async def test_changes_wait_past_what_is_no_longer_good(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_provider(fetch) as provider, trio.open_nursery() as nursery:
        await trio.sleep(100.0)
        got: list[Any] = []
        nursery.start_soon(collect, provider.changes().__anext__, got)
        await wait_all_tasks_blocked()
        assert got == []
        assert fetch.calls == 1
        await provider.get()
        await wait_all_tasks_blocked()
        assert [token.secret.reveal() for token in got] == ["b"]


async def test_changes_across_a_clear_and_the_end() -> None:
    fetch = ScriptedFetch("a", "b", "c", "d")
    got: list[Any] = []

    async def follow(slow: bool) -> None:
        async for value in changes:
            got.append(value)
            if slow:
                await trio.sleep(3600.0)
        got.append("over")

    async with trio.open_nursery() as nursery:
        async with open_resource(fetch) as resource:
            changes = resource.changes()
            nursery.start_soon(follow, False)
            await wait_all_tasks_blocked()
            for call in (resource.get, resource.clear, resource.get, resource.refresh):
                await call()
                await wait_all_tasks_blocked()
            assert got == ["a", "b", "c"]
            latest = resource.changes()
            assert await latest.__anext__() == "c"
            with trio.move_on_after(0.01) as scope:
                await latest.__anext__()
            assert scope.cancelled_caught
            await resource.refresh()
            assert await latest.__anext__() == "d"
        await wait_all_tasks_blocked()
        assert got == ["a", "b", "c", "d", "over"]
        with pytest.raises(StopAsyncIteration):
            await latest.__anext__()
    with pytest.raises(trio.ClosedResourceError):
        resource.changes()


async def test_a_change_that_came_before_the_end_is_not_handed_out_after_it() -> None:
    async with open_resource(ScriptedFetch("a")) as resource:
        await resource.get()
        changes = resource.changes()
    with pytest.raises(StopAsyncIteration):
        await changes.__anext__()


# status()


async def test_status_in_each_state(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(5.0, "a"), Sleep(5.0, Down("password=hunter2")), Sleep(5.0, None))
    async with open_resource(fetch, name="csrf") as resource, trio.open_nursery() as nursery:
        empty = Status(
            name="csrf",
            generation=0,
            held=False,
            good=False,
            issued_at=None,
            expires_at=None,
            due_at=None,
            fetching=False,
            waiting=0,
            breaker=None,
            failures=None,
            next_attempt_at=None,
            last_error=None,
            closed=False,
        )
        with assert_no_checkpoints():
            assert resource.status() == empty
        got: list[Any] = []
        for _ in range(3):
            nursery.start_soon(collect, resource.get, got)
        await trio.sleep(1.0)
        status = resource.status()
        assert (status.fetching, status.waiting, status.held) == (True, 3, False)
        await trio.sleep(5.0)
        status = resource.status()
        assert (status.fetching, status.waiting, status.held, status.good, status.generation) == (
            False,
            0,
            True,
            True,
            1,
        )
        assert status.issued_at is not None
        nursery.start_soon(collect, resource.refresh, got)
        await trio.sleep(6.0)
        status = resource.status()
        assert status.last_error is not None
        assert status.last_error.startswith("Down: ")
        assert "hunter2" not in status.last_error
        assert status.failures is None
    assert resource.status() == Status(
        name="csrf",
        generation=1,
        held=False,
        good=False,
        issued_at=None,
        expires_at=None,
        due_at=None,
        fetching=False,
        waiting=0,
        breaker=None,
        failures=None,
        next_attempt_at=None,
        last_error=status.last_error,
        closed=True,
    )


@pytest.mark.parametrize("kind", ["held", "fetched"])
async def test_last_error_shows_no_secret(kind: str, autojump_clock: MockClock) -> None:
    class Leaky(AuthTokenLike):
        @property
        def expires_at(self) -> float:
            raise Down(f"cannot read the life of {self.secret.reveal()}")

    calls = 0

    async def mint() -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            return AuthToken("s3cret-held")
        if kind == "held":
            raise Down("rejected: s3cret-held " + "x" * 5000)
        return Leaky(Secret("s3cret-fetched"))

    async with open_provider(mint) as provider:
        with pytest.raises(Down):
            await provider.refresh()
        text = provider.status().last_error
        assert text is not None
        assert len(text) < 700
        assert "s3cret" not in text


class AuthTokenLike:
    """Something with a secret."""

    def __init__(self, secret: Secret) -> None:
        self.secret = secret


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"storage": object()}, TypeError),
        ({"storage": MemoryStorage}, TypeError),
        ({"fetch_timeout": 0.0}, ValueError),
        ({"fetch_timeout": -1}, ValueError),
        ({"fetch_timeout": math.nan}, ValueError),
        ({"fetch_timeout": True}, TypeError),
        ({"fetch_timeout": "30"}, TypeError),
        ({"when_abandoned": ""}, ValueError),
        ({"when_abandoned": ["finish"]}, ValueError),
        ({"observe": "print"}, TypeError),
        ({"clock": 5}, TypeError),
        ({"name": 5}, TypeError),
    ],
)
async def test_bad_arguments_name_themselves(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        async with open_resource(ScriptedFetch("a"), **kwargs):
            raise AssertionError


async def test_optional_arguments_are_keywords_only() -> None:
    openers: tuple[Any, ...] = (open_resource, open_provider)
    for opener in openers:
        with pytest.raises(TypeError):
            opener(ScriptedFetch("a"), None)


# Types, for the type checker as much as for the run


async def fetch_text() -> str:
    return "text"


async def fetch_maybe() -> str | None:
    return None


async def mint_token() -> AuthToken:
    return AuthToken("a")


async def test_types() -> None:
    assert_type(open_resource(fetch_text), AbstractAsyncContextManager[RenewableResource[str], bool | None])
    async with open_resource(fetch_text) as text, open_resource(fetch_maybe) as maybe:
        assert_type(text, RenewableResource[str])
        assert_type(await text.get(), str)
        assert_type(text.get_nowait(), str)
        assert_type(await text.refresh(), str)
        assert_type(await text.refresh(stale=await text.lease()), str)
        assert_type(await text.lease(), Lease[str])
        assert_type(maybe, RenewableResource[str | None])
        assert_type(await maybe.get(), str | None)
        async for value in text.changes():
            assert_type(value, str)
            break
    async with open_provider(mint_token) as provider:
        assert_type(provider, RefreshingProvider[AuthToken])
        assert_type(await provider.get(), AuthToken)
        assert_type(await provider.current_token(), AuthToken)
        assert isinstance(provider, RenewableResource)
