"""The pool: values with a lifetime of their own, opened once, borrowed, retired, and closed in order."""

from __future__ import annotations

import gc
import math
import traceback
import weakref
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Cleared,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    OwnerClosed,
    PoolStatus,
    ProviderPool,
    open_provider,
    open_provider_pool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio_renew import RefreshingProvider


class Down(Exception):
    """What goes wrong."""


class Value:
    """A value that knows its key and number."""

    def __init__(self, key: Any, number: int) -> None:
        self.key = key
        self.number = number
        self.is_open = True
        self.crash = trio.Event()

    def __repr__(self) -> str:
        return f"{self.key}#{self.number}"


class Source:
    """Opens values, and writes down what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.delay = 0.0
        self.opened: list[Value] = []
        self.open_error: BaseException | None = None
        self.close_error: BaseException | None = None
        self.close_delay = 0.0

    @asynccontextmanager
    async def __call__(self, key: Any) -> AsyncGenerator[Value, None]:
        self.log.append(f"opening {key}")
        if self.delay:
            await trio.sleep(self.delay)
        if self.open_error is not None:
            raise self.open_error
        value = Value(key, len(self.opened))
        self.opened.append(value)
        self.log.append(f"open {value}")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live, value)
                yield value
                nursery.cancel_scope.cancel()
        finally:
            value.is_open = False
            with trio.CancelScope(shield=True):
                await trio.sleep(self.close_delay)
            self.log.append(f"closed {value}")
            if self.close_error is not None:
                raise self.close_error

    async def _live(self, value: Value) -> None:
        await value.crash.wait()
        raise Down(repr(value))


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


class Borrower:
    """A task that borrows until it is told to let go."""

    def __init__(self, pool: ProviderPool[Any, Value], key: Any) -> None:
        self.pool = pool
        self.key = key
        self.let_go = trio.Event()
        self.value: Value | None = None
        self.ended: Any = None
        self.scope = trio.CancelScope()

    async def __call__(self) -> None:
        try:
            with self.scope:
                async with self.pool.borrow(self.key) as self.value:
                    assert self.value.is_open
                    await self.let_go.wait()
                    assert self.value.is_open
            self.ended = "cancelled" if self.scope.cancelled_caught else "fine"
        except Exception as exc:
            self.ended = exc

    async def run_in(self, nursery: trio.Nursery) -> Borrower:
        nursery.start_soon(self)
        await wait_all_tasks_blocked()
        return self


def status(pool: ProviderPool[Any, Any]) -> tuple[int, int, int]:
    now = pool.status()
    return now.entries, now.borrowed, now.opening


# Borrowing


async def test_one_opening_for_all_who_wait(autojump_clock: MockClock) -> None:
    source = Source()
    source.delay = 1.0
    async with open_provider_pool(source, name="p") as pool, trio.open_nursery() as nursery:
        borrowers = [await Borrower(pool, "a").run_in(nursery) for _ in range(3)]
        other = await Borrower(pool, "b").run_in(nursery)
        assert pool.status() == PoolStatus("p", 0, 100, 0, 2, False)
        assert "a" not in pool
        await trio.sleep(1.0)
        await wait_all_tasks_blocked()
        assert pool.status() == PoolStatus("p", 2, 100, 4, 0, False)
        assert "a" in pool
        assert len(pool) == 2
        assert len({id(borrower.value) for borrower in borrowers}) == 1
        assert other.value is not borrowers[0].value
        later = await Borrower(pool, "a").run_in(nursery)
        assert later.value is borrowers[0].value
        for borrower in (*borrowers, other, later):
            borrower.let_go.set()
        await wait_all_tasks_blocked()
        assert {borrower.ended for borrower in (*borrowers, other, later)} == {"fine"}
        assert status(pool) == (2, 0, 0)
        assert all(value.is_open for value in source.opened)


async def test_entering_is_a_checkpoint_and_a_borrow_is_for_once() -> None:
    async with open_provider_pool(Source()) as pool:
        for _ in range(2):
            borrow = pool.borrow("a")
            with assert_checkpoints():
                await borrow.__aenter__()
            with pytest.raises(RuntimeError, match="one async with"):
                await borrow.__aenter__()
            await borrow.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="one async with"):
            await borrow.__aenter__()
        assert status(pool) == (1, 0, 0)


async def test_what_the_block_raises_leaves_it() -> None:
    async with open_provider_pool(Source()) as pool:
        with pytest.raises(Down):
            async with pool.borrow("a"):
                raise Down
        with trio.CancelScope() as scope:
            async with pool.borrow("a"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert status(pool) == (1, 0, 0)


async def test_a_cancelled_borrower_leaves_no_borrow_behind(autojump_clock: MockClock) -> None:
    source = Source()
    source.delay = 1.0
    async with open_provider_pool(source) as pool:
        with trio.move_on_after(0.5):
            async with pool.borrow("a"):
                raise AssertionError
        await wait_all_tasks_blocked()
        assert status(pool) == (0, 0, 0)
        assert source.opened == []
        async with pool.borrow("a"):
            pass
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.borrow("a"):
                raise AssertionError
        assert status(pool) == (1, 0, 0)


async def test_an_opening_goes_on_while_one_waits(autojump_clock: MockClock) -> None:
    source = Source()
    source.delay = 1.0
    async with open_provider_pool(source) as pool, trio.open_nursery() as nursery:
        one = await Borrower(pool, "a").run_in(nursery)
        two = await Borrower(pool, "a").run_in(nursery)
        one.scope.cancel()
        await trio.sleep(1.5)
        assert (one.ended, two.ended) == ("cancelled", None)
        assert two.value is source.opened[0]
        two.let_go.set()


async def test_one_that_opens_in_spite_of_its_cancellation_is_closed_again(autojump_clock: MockClock) -> None:
    log: list[str] = []
    events: list[Event] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        log.append("open")
        yield key
        log.append("closed")

    async with open_provider_pool(open_value, observe=events.append) as pool:
        with trio.move_on_after(1):
            async with pool.borrow("a"):
                raise AssertionError
        assert log == []
        async with pool.borrow("a") as value:  # waits until that one is out of the way
            assert value == "a"
            assert log == ["open", "closed", "open"]
            assert trio.current_time() == 10
    assert names(events) == ["FetchStarted", "FetchAbandoned", "FetchStarted", "FetchSucceeded", "OwnerClosed"]
    assert events[1] == FetchAbandoned("absent", name=None, key="a")


async def test_a_timeout_hits_all_who_wait_at_exactly_that_time(autojump_clock: MockClock) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        yield key
        closed.append(key)

    async with open_provider_pool(open_value, fetch_timeout=5.0) as pool, trio.open_nursery() as nursery:
        borrowers = [await Borrower(pool, "a").run_in(nursery) for _ in range(2)]  # type: ignore[arg-type]
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        assert [type(borrower.ended) for borrower in borrowers] == [FetchTimeout] * 2
        late = await Borrower(pool, "a").run_in(nursery)  # type: ignore[arg-type]
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        assert isinstance(late.ended, FetchTimeout)
        assert "earlier opening of 'a'" in str(late.ended)
        await trio.sleep(20)
        assert closed == ["a"]


async def test_inside_an_opening_the_deadline_is_its_own(autojump_clock: MockClock) -> None:
    deadlines: list[float] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        deadlines.append(trio.current_effective_deadline())
        yield key
        deadlines.append(trio.current_effective_deadline())

    async with open_provider_pool(open_value, fetch_timeout=5.0) as pool:
        with trio.move_on_after(1):
            async with pool.borrow("a"):
                pass
        await trio.sleep(100)
    assert deadlines == [5.0, math.inf]


async def test_a_failed_opening_fails_those_who_wait_and_is_not_kept(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source()
    source.delay = 1.0
    source.open_error = Down("no")
    async with open_provider_pool(source, observe=events.append) as pool, trio.open_nursery() as nursery:
        borrowers = [await Borrower(pool, "a").run_in(nursery) for _ in range(3)]
        await trio.sleep(2)
        assert [type(borrower.ended) for borrower in borrowers] == [Down] * 3
        assert status(pool) == (0, 0, 0)
        source.open_error = None
        async with pool.borrow("a") as value:
            assert value.is_open
    assert names(events) == ["FetchStarted", "FetchFailed", "FetchStarted", "FetchSucceeded", "OwnerClosed"]
    assert isinstance(events[1], FetchFailed)
    assert (events[1].reason, events[1].key, events[1].remaining) == ("absent", "a", None)


async def test_an_open_value_that_is_no_context_manager() -> None:
    def plain(key: str) -> Any:
        return key

    def coroutine(key: str) -> Any:
        async def value() -> str:
            return key

        return value()

    async def function(key: str) -> str:
        return key

    bad: Any
    for bad in (plain, coroutine):
        async with open_provider_pool(bad) as pool:
            with pytest.raises(TypeError, match="async context manager"):
                async with pool.borrow("a"):
                    raise AssertionError
    for bad in (5, function):
        with pytest.raises(TypeError, match="open_value"):
            async with open_provider_pool(bad):
                raise AssertionError


# Retiring


async def test_deleting_frees_the_key_and_closes_after_the_last_borrower(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source()
    async with open_provider_pool(source, observe=events.append) as pool, trio.open_nursery() as nursery:
        assert pool.delete("a") is False
        one = await Borrower(pool, "a").run_in(nursery)
        two = await Borrower(pool, "a").run_in(nursery)
        assert pool.delete("a") is True
        assert "a" not in pool
        assert status(pool) == (0, 2, 0)
        three = await Borrower(pool, "a").run_in(nursery)
        assert three.value is not one.value
        one.let_go.set()
        await wait_all_tasks_blocked()
        assert source.opened[0].is_open
        two.let_go.set()
        await wait_all_tasks_blocked()
        assert not source.opened[0].is_open
        three.let_go.set()
        await wait_all_tasks_blocked()
        assert source.opened[1].is_open
        assert pool.clear() == 1
        await wait_all_tasks_blocked()
        assert not source.opened[1].is_open
        assert pool.clear() == 0
    generations = [event.generation for event in events if isinstance(event, FetchSucceeded | Cleared)]
    assert generations == [1, 2, 3, 4, 5]


async def test_an_opening_that_was_invalidated_serves_only_those_who_waited(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source()
    source.delay = 1.0
    async with open_provider_pool(source, observe=events.append) as pool, trio.open_nursery() as nursery:
        one = await Borrower(pool, "a").run_in(nursery)
        assert pool.delete("a") is True
        assert pool.status().opening == 1
        two = await Borrower(pool, "a").run_in(nursery)
        assert pool.status().opening == 2
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert one.value is not two.value
        assert status(pool) == (1, 2, 0)
        one.let_go.set()
        two.let_go.set()
        await wait_all_tasks_blocked()
        assert [value.is_open for value in source.opened] == [value is two.value for value in source.opened]
    fetched = [event.generation for event in events if isinstance(event, FetchSucceeded)]
    assert sorted(fetched) == [0, 2]


async def test_idle_values_close_after_their_time(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source, idle_timeout=10.0) as pool:
        async with pool.borrow("a"):
            await trio.sleep(50)
        await trio.sleep(9.5)
        async with pool.borrow("a"):
            pass
        await trio.sleep(9.5)
        assert "a" in pool
        await trio.sleep(0.5)
        await wait_all_tasks_blocked()
        assert "a" not in pool
        assert source.log == ["opening a", "open a#0", "closed a#0"]


async def test_several_idle_values_close_one_after_the_other(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source, idle_timeout=10.0) as pool:
        for key in "abc":
            async with pool.borrow(key):
                await trio.sleep(1)
        async with pool.borrow("a"):
            pass
        await trio.sleep(9)
        await wait_all_tasks_blocked()
        assert [value.is_open for value in source.opened] == [True, False, True]
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert [value.is_open for value in source.opened] == [False, False, False]


@pytest.mark.parametrize(("idle_timeout", "stays"), [(0, False), (math.inf, True)])
async def test_idle_at_once_or_never(idle_timeout: float, stays: bool, autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source, idle_timeout=idle_timeout) as pool:
        async with pool.borrow("a"):
            async with pool.borrow("a"):
                pass
            assert source.opened[0].is_open
        if stays:
            await trio.sleep(1e6)
        await wait_all_tasks_blocked()
        assert source.opened[0].is_open is stays
        assert ("a" in pool) is stays


async def test_the_ttl_retires_also_what_is_borrowed(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source()
    async with open_provider_pool(source, ttl=10, observe=events.append) as pool, trio.open_nursery() as nursery:
        one = await Borrower(pool, "a").run_in(nursery)
        async with pool.borrow("b"):
            pass
        await trio.sleep(9.5)
        assert len(pool) == 2
        await trio.sleep(0.5)
        await wait_all_tasks_blocked()
        assert len(pool) == 0
        assert [value.is_open for value in source.opened] == [True, False]
        two = await Borrower(pool, "a").run_in(nursery)
        assert two.value is not one.value
        one.let_go.set()
        two.let_go.set()
    assert isinstance(events[1], FetchSucceeded)
    assert events[1].remaining == 10.0


async def test_a_ttl_of_never_serves_only_those_who_wait(autojump_clock: MockClock) -> None:
    source = Source()
    source.delay = 1.0
    async with open_provider_pool(source, ttl=False) as pool, trio.open_nursery() as nursery:
        borrowers = [await Borrower(pool, "a").run_in(nursery) for _ in range(3)]
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert len({id(borrower.value) for borrower in borrowers}) == 1
        assert status(pool) == (0, 3, 0)
        for borrower in borrowers:
            assert source.opened[0].is_open
            borrower.let_go.set()
            await wait_all_tasks_blocked()
        assert not source.opened[0].is_open


async def test_a_given_clock_is_looked_at_at_least_every_minute_and_at_each_use(autojump_clock: MockClock) -> None:
    now = 1000.0
    source = Source()
    async with open_provider_pool(source, ttl=600, idle_timeout=300, clock=lambda: now) as pool:
        async with pool.borrow("a"):
            pass
        await trio.sleep(10_000)
        assert "a" in pool
        now += 300
        assert "a" not in pool
        async with pool.borrow("a"):
            now -= 500
            assert "a" in pool
            now += 599
            assert "a" in pool
            now += 1
            await trio.sleep(60)
            assert pool.status().entries == 0
        async with pool.borrow("a"):
            pass
        now += 300
        await trio.sleep(60)
        assert not any(value.is_open for value in source.opened)


async def test_only_idle_values_are_evicted_the_least_recently_used_first(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source, max_entries=2) as pool, trio.open_nursery() as nursery:
        for key in "abab":
            async with pool.borrow(key):
                pass
        async with pool.borrow("a"):
            pass
        one = await Borrower(pool, "c").run_in(nursery)
        assert ["a" in pool, "b" in pool, "c" in pool] == [True, False, True]
        two = await Borrower(pool, "a").run_in(nursery)
        three = await Borrower(pool, "d").run_in(nursery)
        assert len(pool) == 3  # all of it borrowed
        one.let_go.set()
        await wait_all_tasks_blocked()
        assert ["a" in pool, "c" in pool, "d" in pool] == [True, False, True]
        two.let_go.set()
        three.let_go.set()
        await wait_all_tasks_blocked()
        assert len(pool) == 2


# Crashes


async def test_a_crash_cancels_the_borrowers_and_raises_there(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    source.close_delay = 5.0
    async with open_provider_pool(source) as pool, trio.open_nursery() as nursery:
        borrowers = [await Borrower(pool, "a").run_in(nursery) for _ in range(3)]
        source.opened[0].crash.set()
        await wait_all_tasks_blocked()
        assert "a" not in pool  # free at once
        fresh = await Borrower(pool, "a").run_in(nursery)
        assert fresh.value is source.opened[1]
        assert [borrower.ended for borrower in borrowers] == [None] * 3  # its teardown is not over
        assert status(pool) == (1, 1, 0)
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        for borrower in borrowers:
            assert isinstance(borrower.ended, ExceptionGroup)
            assert [type(error) for error in borrower.ended.exceptions] == [Down]
            assert borrower.ended.__context__ is None
        fresh.let_go.set()
    assert caplog.records == []


async def test_the_traceback_of_a_crash_does_not_grow_with_the_borrowers(autojump_clock: MockClock) -> None:
    lengths: set[int] = set()

    async def use() -> None:
        try:
            async with pool.borrow("a"):
                await trio.sleep_forever()
        except ExceptionGroup as exc:
            assert exc.__context__ is None
            lengths.add(sum(1 for _ in traceback.walk_tb(exc.__traceback__)))

    source = Source()
    async with open_provider_pool(source) as pool, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(use)
        await wait_all_tasks_blocked()
        source.opened[0].crash.set()
    assert len(lengths) == 1


async def test_its_borrowers_leave_before_it_is_torn_down(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source) as pool:
        with pytest.raises(ExceptionGroup):
            async with pool.borrow("a") as value:
                value.crash.set()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(5)
                    source.log.append(f"left {value}, open: {value.is_open}")
    assert source.log == ["opening a", "open a#0", "left a#0, open: True", "closed a#0"]


async def test_a_block_that_ends_by_itself_keeps_its_own_outcome(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source) as pool:
        async with pool.borrow("a") as value:
            value.crash.set()
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
        with pytest.raises(LookupError):
            async with pool.borrow("a") as value:
                value.crash.set()
                try:
                    await trio.sleep_forever()
                finally:
                    raise LookupError
        await wait_all_tasks_blocked()


async def test_without_borrowers_a_crash_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    async with open_provider_pool(source) as pool:
        async with pool.borrow("a") as value:
            pass
        value.crash.set()
        await wait_all_tasks_blocked()
        assert "a" not in pool
        async with pool.borrow("a") as again:
            assert again is not value
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "'a'" in caplog.records[0].getMessage()


async def test_a_value_that_ends_by_itself_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    scopes: list[trio.CancelScope] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            yield key

    async with open_provider_pool(open_value) as pool:
        with pytest.raises(trio.BrokenResourceError, match="'a' ended by itself"):
            async with pool.borrow("a"):
                scopes[0].cancel()
                await trio.sleep_forever()
        async with pool.borrow("a"):
            pass
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert len(caplog.records) == 1


async def test_a_value_that_does_not_leave_its_own_scope_as_it_should() -> None:
    class Careless:
        async def __aenter__(self) -> Self:
            self.scope = trio.CancelScope()
            self.scope.__enter__()
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None:
            self.scope.__exit__(kind, error, traceback)

    async with open_provider_pool(lambda key: Careless()) as pool:
        with pytest.raises(trio.BrokenResourceError):
            async with pool.borrow("a") as value:
                value.scope.cancel()
                await trio.sleep_forever()


async def test_an_error_at_closing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    source.close_error = Down("at closing")
    async with open_provider_pool(source) as pool:
        async with pool.borrow("a"):
            pass
        pool.delete("a")
        await wait_all_tasks_blocked()
        assert len(caplog.records) == 1
        async with pool.borrow("a"):
            pass
    assert len(caplog.records) == 2
    assert caplog.records[1].exc_info is not None


async def test_a_crash_right_after_opening_reaches_those_who_were_about_to_get_it(autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        async with trio.open_nursery() as nursery:

            async def explode() -> None:
                for _ in range(delay):
                    await trio.lowlevel.checkpoint()
                raise Down(key)

            nursery.start_soon(explode)
            await trio.sleep(1)
            yield key

    for delay in range(12):  # noqa: B007 - explode looks at it
        async with open_provider_pool(open_value) as pool:
            with pytest.raises(ExceptionGroup) as caught:
                async with pool.borrow("a"):
                    await trio.sleep_forever()
            assert caught.group_contains(Down)
            assert status(pool) == (0, 0, 0)


class Instant:
    """A value that crashes a given number of scheduling steps after it has opened."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    async def __aenter__(self) -> Self:
        self.manager = trio.open_nursery()
        nursery = await self.manager.__aenter__()
        nursery.start_soon(self._explode)
        return self

    async def _explode(self) -> None:
        for _ in range(self.steps):
            await trio.lowlevel.checkpoint()
        raise Down

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self.manager.__aexit__(kind, error, traceback)


async def test_a_crash_at_any_step_after_opening() -> None:
    for steps in range(12):
        async with open_provider_pool(lambda key, steps=steps: Instant(steps)) as pool, trio.open_nursery() as nursery:
            results: list[Any] = []

            async def use() -> None:
                try:
                    async with pool.borrow("a"):
                        await trio.sleep_forever()
                except ExceptionGroup as exc:
                    results.append(exc.exceptions[0])  # noqa: B023

            for _ in range(3):
                nursery.start_soon(use)
            await wait_all_tasks_blocked()
            assert [type(result) for result in results] == [Down] * 3
            assert status(pool) == (0, 0, 0)


async def test_leaving_between_the_opening_and_getting_it() -> None:
    """The last waiter is cancelled in the steps in which the value opens: it goes, or stays idle, but is not stuck."""
    for steps in range(12):
        source = Source()
        go = trio.Event()

        @asynccontextmanager
        async def open_value(key: str) -> AsyncGenerator[Value, None]:
            await go.wait()  # noqa: B023
            async with source(key) as value:  # noqa: B023
                yield value

        async with open_provider_pool(open_value, idle_timeout=0) as pool:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def use() -> None:
                        async with pool.borrow("a"):
                            pass

                    async def cancel() -> None:
                        go.set()  # noqa: B023
                        for _ in range(steps):  # noqa: B023
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(use)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(cancel)
            await wait_all_tasks_blocked()
            assert status(pool) == (0, 0, 0)
            assert not any(value.is_open for value in source.opened)
            async with pool.borrow("a") as value:
                assert value.is_open


@pytest.mark.parametrize("where", ["open", "close", "live"])
async def test_what_is_no_exception_ends_the_pool(where: str) -> None:
    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[trio.CancelScope, None]:
        if where == "open":
            raise SystemExit(1)
        with trio.CancelScope() as scope:
            try:
                yield scope
            finally:
                if where in ("close", "live"):
                    raise SystemExit(1)

    with pytest.raises(SystemExit):
        async with open_provider_pool(open_value) as pool:
            if where == "open":
                with pytest.raises(trio.ClosedResourceError):
                    async with pool.borrow("a"):
                        raise AssertionError
            elif where == "close":
                async with pool.borrow("a"):
                    pass
                pool.delete("a")
                await wait_all_tasks_blocked()
            else:
                with pytest.raises(trio.ClosedResourceError):
                    async with pool.borrow("a") as scope:
                        scope.cancel()
                        await trio.sleep_forever()
            assert pool.status().closed


# Closing


async def test_closing_goes_one_by_one_in_reverse_order(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    source = Source()
    source.close_delay = 1.0
    async with trio.open_nursery() as nursery:
        async with open_provider_pool(source, observe=events.append) as pool:
            borrowers = [await Borrower(pool, key).run_in(nursery) for key in "abc"]
            async with pool.borrow("d"):
                pass
            pool.delete("b")
        for borrower in borrowers:
            assert isinstance(borrower.ended, trio.ClosedResourceError)
    assert [line for line in source.log if line.startswith("closed")] == [
        f"closed {v}" for v in ("d#3", "c#2", "b#1", "a#0")
    ]
    assert trio.current_time() == 4.0
    assert names(events)[-1] == "OwnerClosed"
    assert pool
    assert (len(pool), "a" in pool) == (0, False)
    assert pool.status() == PoolStatus(None, 0, 100, 0, 0, True)
    with pytest.raises(trio.ClosedResourceError):
        async with pool.borrow("a"):
            raise AssertionError
    for call in (pool.clear, lambda: pool.delete("a")):
        with pytest.raises(trio.ClosedResourceError):
            call()


async def test_values_may_be_built_on_values(autojump_clock: MockClock) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def open_value(key: int) -> AsyncGenerator[int, None]:
        if key:
            async with pool.borrow(key - 1):
                yield key
                await trio.sleep(1)  # what it stands on is still there
                log.append(f"closed {key}")
        else:
            yield key
            log.append(f"closed {key}")

    async with open_provider_pool(open_value) as pool:
        async with pool.borrow(3):
            pass
        assert len(pool) == 4
    assert log == ["closed 3", "closed 2", "closed 1", "closed 0"]


async def test_closing_while_something_opens(autojump_clock: MockClock) -> None:
    source = Source()
    source.delay = 10.0
    async with trio.open_nursery() as nursery:
        async with open_provider_pool(source) as pool:
            borrower = await Borrower(pool, "a").run_in(nursery)
        await wait_all_tasks_blocked()
        assert isinstance(borrower.ended, trio.ClosedResourceError)
    assert trio.current_time() == 0
    assert source.opened == []


async def test_one_that_opens_while_the_pool_closes_is_closed_again(autojump_clock: MockClock) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        log.append("open")
        yield key
        log.append("closed")

    async with trio.open_nursery() as nursery:
        async with open_provider_pool(open_value) as pool:
            borrower = await Borrower(pool, "a").run_in(nursery)  # type: ignore[arg-type]
        assert isinstance(borrower.ended, trio.ClosedResourceError)
    assert log == ["open", "closed"]


async def test_a_crash_while_closing_is_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    async with trio.open_nursery() as nursery:
        async with open_provider_pool(source) as pool:
            first = await Borrower(pool, "a").run_in(nursery)
            async with pool.borrow("b") as second:
                source.close_delay = 5.0
            nursery.start_soon(trio.sleep, 1)

            async def crash() -> None:
                await trio.sleep(1)
                source.opened[0].crash.set()

            nursery.start_soon(crash)
    assert not second.is_open
    assert isinstance(first.ended, Exception)
    assert len(caplog.records) == 1


async def test_a_cancelled_pool_closes_its_values() -> None:
    source = Source()
    with trio.CancelScope() as scope:
        async with open_provider_pool(source) as pool:
            async with pool.borrow("a"):
                pass
            scope.cancel()
            await trio.sleep_forever()
    assert source.log[-1] == "closed a#0"


async def test_the_pool_lets_go_of_what_has_closed(autojump_clock: MockClock) -> None:
    source = Source()
    async with open_provider_pool(source, idle_timeout=10) as pool:
        async with pool.borrow("a") as value:
            pass
        seen = weakref.ref(value)
        del value
        source.opened.clear()
        await trio.sleep(11)
        gc.collect()
        assert seen() is None


async def test_providers_in_a_pool(autojump_clock: MockClock) -> None:
    minted: list[str] = []

    def open_tenant(tenant: str) -> Any:
        async def mint() -> AuthToken:
            minted.append(tenant)
            return AuthToken.expiring_in(f"{tenant}-{len(minted)}", 100.0)

        return open_provider(mint, name=tenant)

    events: list[Event] = []
    async with open_provider_pool(open_tenant, observe=events.append, name="tokens") as pool:
        provider: RefreshingProvider[AuthToken]
        async with pool.borrow("acme") as provider:
            assert (await provider.get()).secret.reveal() == "acme-1"
        await trio.sleep(99)
        async with pool.borrow("acme") as provider:
            assert (await provider.get()).secret.reveal() == "acme-2"
        pool.delete("acme")
        async with pool.borrow("acme") as provider:
            assert (await provider.get()).secret.reveal() == "acme-3"
    assert events[0] == FetchStarted("absent", name="tokens", key="acme")
    assert events[-1] == OwnerClosed(name="tokens", key=None)


async def test_an_opening_in_another_run_is_refused() -> None:
    async with open_provider_pool(Source()) as pool:

        def elsewhere() -> None:
            async def main() -> None:
                async with pool.borrow("a"):
                    raise AssertionError

            with pytest.raises(RuntimeError):
                trio.run(main)
            with pytest.raises(RuntimeError):
                len(pool)

        await trio.to_thread.run_sync(elsewhere)
        assert status(pool) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ttl": "1"}, TypeError),
        ({"ttl": math.nan}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"idle_timeout": None}, TypeError),
        ({"max_entries": 0}, ValueError),
        ({"fetch_timeout": -1}, ValueError),
    ],
)
async def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        async with open_provider_pool(Source(), **arguments):
            raise AssertionError


async def test_one_that_opens_at_exactly_its_deadline_is_late(autojump_clock: MockClock) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def open_value(key: str) -> AsyncGenerator[str, None]:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        yield key
        closed.append(key)

    for _ in range(10):  # whatever the scheduler does first
        async with open_provider_pool(open_value, fetch_timeout=5.0) as pool:
            with pytest.raises(FetchTimeout):
                async with pool.borrow("a"):
                    raise AssertionError
            await wait_all_tasks_blocked()
            assert status(pool) == (0, 0, 0)
    assert closed == ["a"] * 10
