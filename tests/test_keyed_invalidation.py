"""Invalidation: it wins over what is in progress, reaches every cache and pool of the process, and uses the bus."""

from __future__ import annotations

import math
import os
import signal
import threading
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    Cleared,
    Event,
    FetchSucceeded,
    Listener,
    StorageFailed,
    clear_provider_caches,
    invalidate_provider,
    open_provider_cache,
    open_provider_pool,
)
from trio_renew._keyed._roster import Message, roster
from trio_renew.stores.sqlite import open_sqlite_bus
from trio_renew.testing import Block, ScriptedFetch, under_schedules

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

What = Literal["key", "tag", "all"]


@pytest.fixture(autouse=True)
def nobody_is_left_behind() -> Iterator[None]:
    yield
    assert roster.members == {}


class Source:
    """Resolves keys to ``key#n``."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def __call__(self, key: Any) -> str:
        self.calls.append(key)
        await trio.lowlevel.checkpoint()
        return f"{key}#{self.calls.count(key)}"


@asynccontextmanager
async def open_value(key: Any) -> AsyncGenerator[str, None]:
    yield f"open {key}"


class MemoryBus:
    """Delivers at once to everybody else of the name."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.messages: list[tuple[str, What, object]] = []
        self.broken: Exception | None = None

    def attach(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def detach(self, listener: Listener) -> None:
        self.listeners.remove(listener)
        if self.broken is not None:
            raise self.broken

    def publish(self, sender: Listener, what: What, key: object) -> None:
        if self.broken is not None:
            raise self.broken
        self.messages.append((sender.name, what, key))
        for listener in self.listeners:
            if listener is not sender and listener.name == sender.name:
                listener.invalidated(what, key)


# While something is in progress


@pytest.mark.parametrize("how", ["delete", "clear", "provider", "all"])
async def test_it_wins_over_a_resolution_in_progress(how: str) -> None:
    script: ScriptedFetch[Any] = ScriptedFetch(Block("old"), "new")

    async def resolve(key: str) -> str:
        return await script()

    async with open_provider_cache(resolve) as cache, trio.open_nursery() as nursery:
        results: list[str] = []

        async def call() -> None:
            results.append(await cache.get("a"))

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        answer = {
            "delete": lambda: cache.delete("a"),
            "clear": cache.clear,
            "provider": lambda: invalidate_provider("a"),
            "all": clear_provider_caches,
        }[how]()
        assert answer == (how in ("delete", "provider"))
        assert cache.status().resolving == 1
        assert cache.status().waiting == 1
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        assert results == ["new"]
        script.release()
        await wait_all_tasks_blocked()
        assert results == ["new", "old"]
        assert cache.get_nowait("a") == "new"


async def test_a_fenced_resolution_that_fails_is_not_consoled(autojump_clock: MockClock) -> None:
    script: ScriptedFetch[Any] = ScriptedFetch("A", Block(ValueError()), "B")

    async def resolve(key: str) -> str:
        return await script()

    async with open_provider_cache(resolve, ttl=10, serve_expired_for=100) as cache:
        await cache.get("a")
        await trio.sleep(10)

        async def fail() -> None:
            with pytest.raises(ValueError):
                await cache.get("a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            cache.delete("a")
            await cache.get("a")
            script.release()
        assert cache.get_nowait("a") == "B"


# All over the process


async def test_every_cache_and_pool_is_reached() -> None:
    source = Source()
    async with (
        open_provider_cache(source) as one,
        open_provider_cache(source) as two,
        open_provider_pool(open_value) as pool,
    ):
        assert invalidate_provider("a") is False
        for cache in (one, two):
            await cache.get("a")
            await cache.get("b")
        async with pool.borrow("a"):
            pass
        assert invalidate_provider("a") is True
        assert ("a" in one, "a" in two, "a" in pool) == (False, False, False)
        assert invalidate_provider("a") is False
        async with pool.borrow("c"):
            pass
        assert clear_provider_caches() == 3
        assert clear_provider_caches() == 0
        assert len(one) == len(two) == len(pool) == 0


async def test_a_cache_leaves_alone_when_it_closes() -> None:
    source = Source()
    async with open_provider_cache(source) as one:
        async with open_provider_cache(source) as two:
            await one.get("a")
            await two.get("b")
        assert invalidate_provider("b") is False
        assert invalidate_provider("a") is True
    assert invalidate_provider("a") is False
    assert clear_provider_caches() == 0


def test_outside_of_trio_and_without_caches() -> None:
    assert invalidate_provider("a") is False
    assert clear_provider_caches() == 0
    with pytest.raises(TypeError):
        invalidate_provider([])


class Elsewhere:
    """A run in another thread, with a cache and a pool, that does what it is told."""

    def __init__(self, run_clock: trio.abc.Clock | None = None, **options: Any) -> None:
        self.source = Source()
        self.events: list[Event] = []
        self._ready = threading.Event()
        self._options = options
        self._thread = threading.Thread(target=lambda: trio.run(self._main, clock=run_clock))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with (
            open_provider_cache(self.source, observe=self.events.append, **self._options) as self.cache,
            open_provider_pool(open_value) as self.pool,
        ):
            self._ready.set()
            await self._stop.wait()

    def do(self, call: Callable[[], Any]) -> Any:
        """Run a synchronous function there."""
        return trio.from_thread.run_sync(call, trio_token=self._token)

    def get(self, key: Any) -> Any:
        return trio.from_thread.run(self.cache.get, key, trio_token=self._token)

    def borrow(self, key: Any) -> None:
        async def use() -> None:
            async with self.pool.borrow(key):
                pass

        trio.from_thread.run(use, trio_token=self._token)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keep that run from taking any step."""
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            assert go.wait(10)

        self._token.run_sync_soon(hold)
        assert held.wait(10)
        try:
            yield
        finally:
            go.set()


@pytest.mark.parametrize("clock", ["own", "mock", "given"])
def test_another_runs_cache_is_reached_at_once_and_says_so(clock: str) -> None:
    options: dict[str, Any] = {"clock": lambda: 1000.0} if clock == "given" else {}
    with Elsewhere(MockClock() if clock == "mock" else None, **options) as there:
        assert invalidate_provider("a") is False
        for key in "abc":
            there.get(key)
            there.get(key)
        there.borrow("p")
        with there.busy():
            assert invalidate_provider("a") is True
            assert invalidate_provider("a") is False  # it is as good as gone
            assert invalidate_provider("p") is True
            assert clear_provider_caches() == 2
            assert clear_provider_caches() == 0
            assert invalidate_provider("b") is False
        assert there.do(lambda: (len(there.cache), len(there.pool))) == (0, 0)
        assert there.get("a") == "a#2"
        assert any(isinstance(event, Cleared) and event.key == "a" for event in there.events)


def test_it_counts_before_the_next_use_there() -> None:
    with Elsewhere() as there:
        there.get("a")
        served: list[Any] = []

        def use_between() -> None:
            # In that run, in one step: it is invalidated from here on, whoever has been woken.
            thread = threading.Thread(target=lambda: served.append(invalidate_provider("a")))
            assert there.cache.get_nowait("a") == "a#1"
            assert there.cache.get_nowait("a") == "a#1"
            thread.start()
            thread.join()
            try:
                served.append(there.cache.get_nowait("a"))
            except trio.WouldBlock:
                served.append("gone")

        there.do(use_between)
        assert served == [True, "gone"]


def test_what_is_in_progress_there_is_not_kept() -> None:
    with Elsewhere() as there:
        script: ScriptedFetch[Any] = ScriptedFetch(Block("old"))
        results: list[Any] = []

        async def slow(key: Any) -> Any:
            return await script()

        there.cache._resolve = slow
        thread = threading.Thread(target=lambda: results.append(there.get("a")))
        thread.start()
        while not there.do(lambda: there.cache.status().waiting):
            pass
        with there.busy():
            assert invalidate_provider("a") is True
            there._token.run_sync_soon(script.release)
        thread.join(10)
        assert results == ["old"]
        assert there.do(lambda: "a" in there.cache) is False


def test_expired_entries_there_are_not_counted() -> None:
    clock = MockClock()
    with Elsewhere(clock) as there:
        there.get("a")
        there.do(lambda: clock.jump(300))
        assert invalidate_provider("a") is False
        there.get("a")
        there.get("b")
        there.do(lambda: there.cache.set_ttl(10))
        there.do(lambda: clock.jump(10))
        assert clear_provider_caches() == 0


def test_a_worker_thread_of_the_run_counts_as_elsewhere() -> None:
    async def main() -> None:
        async with open_provider_cache(Source()) as cache:
            await cache.get("a")
            assert await trio.to_thread.run_sync(invalidate_provider, "a") is True
            assert "a" not in cache

    trio.run(main)


def test_counting_goes_on_while_the_cache_changes() -> None:
    """The other run stores and drops while we look."""
    with Elsewhere(max_entries=500) as there:
        stop = threading.Event()

        async def churn() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await there.cache.get(number)

        thread = threading.Thread(target=lambda: trio.from_thread.run(churn, trio_token=there._token))
        thread.start()
        try:
            for number in range(300):
                assert 0 <= clear_provider_caches() <= 501
                invalidate_provider(number)
        finally:
            stop.set()
            thread.join(10)


def test_caches_that_open_and_close_meanwhile() -> None:
    stop = threading.Event()
    runs = threading.Barrier(3)

    async def main() -> None:
        runs.wait(10)
        while not stop.is_set():
            async with open_provider_cache(Source()) as cache:
                await cache.get("a")
                await cache.get("a")

    threads = [threading.Thread(target=trio.run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        runs.wait(10)
        for _ in range(2000):
            invalidate_provider("a")
            clear_provider_caches()
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_an_interrupted_observer_of_an_invalidation_from_elsewhere_ends_the_cache() -> None:
    def observe(event: Event) -> None:
        if isinstance(event, Cleared):
            raise KeyboardInterrupt

    async def main() -> None:
        async with open_provider_cache(Source(), observe=observe) as cache:
            await cache.get("a")
            await trio.to_thread.run_sync(invalidate_provider, "a")
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


def test_a_message_that_comes_too_late_is_dropped() -> None:
    async def main() -> None:
        async with open_provider_cache(Source()) as cache:
            await cache.get("a")
            members.append(cache)
        # As from a thread that had taken its list before the cache closed.
        assert await trio.to_thread.run_sync(lambda: cache._take_up(message, [])) == 0
        assert cache._take_up(message, []) == 0
        cache._bus_failed(OSError())

    members: list[Any] = []
    message = Message("key", "a", True)
    trio.run(main)
    (cache,) = members
    assert cache._take_up(message, []) == 0
    cache._soon(lambda: None)  # its run is over


def test_closing_empties_the_inbox_without_a_word() -> None:
    with Elsewhere() as there:
        there.get("a")
        with there.busy():
            invalidate_provider("a")
            there._token.run_sync_soon(there._stop.set)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_has_no_caches() -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get("a")
        await cache.get("a")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refused = 0
                for call in (lambda: cache.get_nowait("a"), lambda: cache.delete("a")):
                    try:
                        call()
                    except RuntimeError:
                        refused += 1
                code = 0 if (refused, invalidate_provider("a"), clear_provider_caches()) == (2, False, 0) else 2
            finally:
                os._exit(code)
        _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        assert status == 0
        assert cache.get_nowait("a") == "a#1"


def test_under_many_schedules_nothing_invalidated_is_served() -> None:
    async def scenario() -> None:
        version = 0

        async def resolve(key: str) -> int:
            seen = version
            await trio.sleep(0.5)
            return seen

        async with open_provider_cache(resolve, ttl=100) as cache, trio.open_nursery() as nursery:

            async def rotate() -> None:
                nonlocal version
                for _ in range(3):
                    await trio.sleep(0.5)
                    version += 1
                    invalidate_provider("a")

            async def use() -> None:
                for _ in range(8):
                    asked = version
                    assert await cache.get("a") >= asked
                    await trio.sleep(0.25)

            nursery.start_soon(rotate)
            for _ in range(3):
                nursery.start_soon(use)

    under_schedules(scenario, seeds=25)


async def test_an_interrupted_observer_keeps_no_other_from_hearing_it() -> None:
    def interrupted(event: Event) -> None:
        if isinstance(event, Cleared):
            raise KeyboardInterrupt

    told: list[Event] = []
    async with (
        open_provider_cache(Source(), observe=interrupted) as first,
        open_provider_pool(open_value, observe=told.append) as second,
    ):
        await first.get("a")
        async with second.borrow("a"):
            pass
        with pytest.raises(KeyboardInterrupt):
            invalidate_provider("a")
        assert isinstance(told[-1], Cleared)
        assert "a" not in first
        assert "a" not in second


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_an_interrupted_observer_of_a_sibling_keeps_nobody_from_hearing_it(engine: str, tmp_path: Path) -> None:
    def interrupted(event: Event) -> None:
        if isinstance(event, Cleared):
            raise KeyboardInterrupt

    told: list[Event] = []
    async with (
        nullcontext(MemoryBus()) if engine == "memory" else open_sqlite_bus(tmp_path / "b.db") as bus,
        open_provider_cache(Source(), bus=bus, name="n", observe=told.append) as first,
        open_provider_cache(Source(), bus=bus, name="n", observe=interrupted) as second,
        open_provider_cache(Source(), bus=bus, name="n") as third,
    ):
        for cache in (first, second, third):
            await cache.get("a")
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            first.delete("a")
        assert [type(event) for event in told] == [Cleared]
        assert "a" not in second
        assert engine == "memory" or "a" not in third  # the test's bus stops there


def test_an_idle_value_whose_time_is_over_is_not_counted_elsewhere() -> None:
    async def main() -> None:
        async with open_provider_pool(open_value, idle_timeout=10.0) as pool:
            async with pool.borrow("a"), pool.borrow("b"):
                pass
            clock.jump(5)
            async with pool.borrow("b"):
                # Nobody has looked since: the thread is not waited for by this run.
                clock.jump(5)
                counts.append(elsewhere(clear_provider_caches))
                assert len(pool) == 0

    def elsewhere(call: Callable[[], int]) -> int:
        thread = threading.Thread(target=lambda: results.append(call()))
        thread.start()
        thread.join()
        return results.pop()

    clock = MockClock()
    results: list[int] = []
    counts: list[int] = []
    trio.run(main, clock=clock)
    assert counts == [1]


async def test_a_signal_handler_may_call_it() -> None:
    """At once, where it interrupts what is not ours."""
    counts: list[int] = []
    async with open_provider_cache(Source()) as cache, open_provider_pool(open_value) as pool:
        with handler(lambda: counts.append(clear_provider_caches())) as number:
            for kill in (lambda: signal.raise_signal(number), lambda: kill_soon(number)):
                await cache.get("a")
                async with pool.borrow("a"):
                    pass
                kill()
                with trio.fail_after(10):
                    while not counts:
                        await trio.sleep(0.01)
                assert counts.pop() == 2
                assert len(cache) == len(pool) == 0


@contextmanager
def handler(call: Callable[[], object]) -> Iterator[signal.Signals]:
    number = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM
    before = signal.signal(number, lambda *_: call() and None)
    try:
        yield number
    finally:
        signal.signal(number, before)


def kill_soon(number: signal.Signals) -> None:
    """While Trio waits for something to happen."""
    threading.Timer(0.05, lambda: signal.pthread_kill(threading.main_thread().ident or 0, number)).start()


# The bus


async def test_what_is_sent() -> None:
    bus = MemoryBus()
    async with (
        open_provider_cache(Source(), bus=bus, name="n", tags=lambda key, value: ["t"], max_entries=1) as cache,
        open_provider_pool(open_value, bus=bus, name="n") as pool,
        open_provider_pool(open_value, bus=bus, name="other") as other,
    ):
        await cache.get("a")
        await cache.get("b")
        cache.set_ttl(False)
        assert bus.messages == []
        cache.delete("x")
        cache.invalidate_tag("t")
        cache.clear()
        pool.delete(7)
        other.clear()
        assert bus.messages == [
            ("n", "key", "x"),
            ("n", "tag", "t"),
            ("n", "all", None),
            ("n", "key", 7),
            ("other", "all", None),
        ]
        bus.messages.clear()
        invalidate_provider("k")
        clear_provider_caches()
        assert sorted(bus.messages, key=repr) == sorted(
            [
                ("n", "key", "k"),
                ("n", "key", "k"),
                ("other", "key", "k"),
                ("n", "all", None),
                ("n", "all", None),
                ("other", "all", None),
            ],
            key=repr,
        )
    assert bus.listeners == []


async def test_siblings_hear_it_and_do_not_answer() -> None:
    bus = MemoryBus()
    source = Source()
    events: list[Event] = []
    async with (
        open_provider_cache(source, bus=bus, name="n", tags=lambda key, value: [str(value)]) as one,
        open_provider_cache(source, bus=bus, name="n", tags=lambda key, value: ["t"], observe=events.append) as two,
        open_provider_pool(open_value, bus=bus, name="n") as pool,
    ):
        for key in (7, "7"):
            await two.get(key)
        async with pool.borrow(7):
            pass
        assert one.delete(7) is False
        assert (7 in two, "7" in two, 7 in pool) == (False, True, False)
        async with pool.borrow(7):
            pass
        one.invalidate_tag("t")
        assert len(two) == 0
        assert 7 in pool
        await two.get(7)
        one.clear()
        assert len(two) == len(pool) == 0
        assert len(bus.messages) == 3
    assert [event.key for event in events if isinstance(event, Cleared)] == [7, None, None]


async def test_what_a_sibling_holds_is_counted_as_its_own() -> None:
    """Though it hears of it on the bus before its turn comes."""
    bus = MemoryBus()
    script: ScriptedFetch[str] = ScriptedFetch(Block("late"))
    async with (
        open_provider_cache(Source(), bus=bus, name="n"),
        open_provider_cache(Source(), bus=bus, name="n") as second,
        open_provider_pool(open_value, bus=bus, name="n") as pool,
        open_provider_cache(lambda key: script(), bus=bus, name="n") as slow,
        trio.open_nursery() as nursery,
    ):
        await second.get("a")
        assert invalidate_provider("a") is True
        assert invalidate_provider("a") is False
        await second.get("a")
        await second.get("b")
        async with pool.borrow("a"):
            pass
        assert clear_provider_caches() == 3
        assert clear_provider_caches() == 0
        nursery.start_soon(slow.get, "c")
        await wait_all_tasks_blocked()
        assert invalidate_provider("c") is True
        script.release()


def test_what_came_from_elsewhere_just_before_closing_is_still_sent() -> None:
    bus = MemoryBus()

    async def main() -> None:
        async with open_provider_cache(Source(), bus=bus, name="n"):
            # No step of this run lies between the message and closing.
            for target, arguments in (
                (invalidate_provider, ("a",)),
                (bus.listeners[0].invalidated, ("key", "b")),
                (clear_provider_caches, ()),
            ):
                thread = threading.Thread(target=target, args=arguments)
                thread.start()
                thread.join()

    trio.run(main)
    assert bus.messages == [("n", "key", "a"), ("n", "all", None)]


def deep() -> object:
    key: object = ()
    for _ in range(5000):
        key = (key,)
    return key


@pytest.mark.parametrize("key", [math.nan, (1, (math.nan,)), deep()], ids=["nan", "in a tuple", "deep"])
async def test_what_no_key_can_equal_drops_everything(key: object) -> None:
    bus = MemoryBus()
    async with open_provider_cache(Source(), bus=bus, name="n") as cache:
        await cache.get("a")
        bus.listeners[0].invalidated("key", ("a", (1.0, None)))
        assert "a" in cache
        bus.listeners[0].invalidated("key", key)
        assert "a" not in cache


async def test_what_was_missed_and_what_cannot_be_named_is_dropped() -> None:
    bus = MemoryBus()
    async with open_provider_cache(Source(), bus=bus, name="n") as cache:
        await cache.get("a")
        bus.listeners[0].missed()
        assert "a" not in cache
        await cache.get("a")
        bus.listeners[0].invalidated("key", ["unhashable"])
        assert "a" not in cache
        assert bus.messages == []


async def test_a_bus_in_trouble_is_reported() -> None:
    bus = MemoryBus()
    events: list[Event] = []
    async with open_provider_cache(Source(), bus=bus, name="n", observe=events.append) as cache:
        await cache.get("a")
        error = OSError("away")
        bus.listeners[0].failed(error)
        bus.broken = ValueError("defect")
        assert cache.delete("a") is True
        assert [event for event in events if isinstance(event, StorageFailed)] == [
            StorageFailed("bus", error, name="n"),
            StorageFailed("bus", bus.broken, name="n"),
        ]


async def test_a_bus_may_call_from_another_thread() -> None:
    bus = MemoryBus()
    events: list[Event] = []
    async with open_provider_cache(Source(), bus=bus, name="n", observe=events.append) as cache:
        await cache.get("a")
        await trio.to_thread.run_sync(bus.listeners[0].invalidated, "key", "a")
        assert "a" not in cache
        await trio.to_thread.run_sync(bus.listeners[0].failed, OSError())
        await wait_all_tasks_blocked()
        assert isinstance(events[-1], StorageFailed)
        assert bus.messages == []


async def test_an_interrupted_observer_of_trouble_that_another_thread_tells_of_ends_the_cache() -> None:
    def interrupted(event: Event) -> None:
        if isinstance(event, StorageFailed):
            raise SystemExit(3)

    bus = MemoryBus()
    with pytest.raises(SystemExit):
        async with open_provider_cache(Source(), bus=bus, name="n", observe=interrupted):
            await trio.to_thread.run_sync(bus.listeners[0].failed, OSError("down"))
            await trio.sleep_forever()


async def test_a_bus_needs_a_name() -> None:
    for name in (None, ""):
        with pytest.raises(ValueError, match="a bus needs a name"):
            async with open_provider_cache(Source(), bus=MemoryBus(), name=name):
                raise AssertionError
        with pytest.raises(ValueError, match="a bus needs a name"):
            async with open_provider_pool(open_value, bus=MemoryBus(), name=name):
                raise AssertionError


async def test_a_bus_that_is_closed_fails_the_opening() -> None:
    class Closed(MemoryBus):
        def attach(self, listener: Listener) -> None:
            raise trio.ClosedResourceError

        def detach(self, listener: Listener) -> None:
            pass

    with pytest.raises(trio.ClosedResourceError):
        async with open_provider_cache(Source(), bus=Closed(), name="n"):
            raise AssertionError


async def test_keys_that_are_equal_are_one() -> None:
    async with open_provider_cache(Source()) as cache:
        await cache.get(1)
        assert 1.0 in cache
        assert "1" not in cache


def in_another_thread(call: Callable[[], Any]) -> Any:
    """Call it there, and let nothing of ours run meanwhile."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(10)
    return results[0]


@pytest.mark.parametrize("fails", [False, True])
async def test_one_that_comes_in_the_last_step_of_a_resolution_wins(fails: bool) -> None:
    async def resolve(key: str) -> str:
        await trio.lowlevel.checkpoint()
        assert in_another_thread(lambda: invalidate_provider(key)) is True
        if fails:
            raise LookupError
        return "old"

    async with open_provider_cache(resolve) as cache:
        try:
            assert await cache.get("a") == "old"
        except LookupError:
            assert fails
        assert "a" not in cache
        assert cache.status().resolving == 0


async def test_one_that_comes_in_the_last_step_of_an_opening_wins() -> None:
    @asynccontextmanager
    async def open_it(key: str) -> AsyncGenerator[str, None]:
        assert in_another_thread(lambda: invalidate_provider(key)) is True
        yield key

    async with open_provider_pool(open_it) as pool, pool.borrow("a") as value:
        assert value == "a"
        assert "a" not in pool


async def test_hits_of_other_keys_are_fast_again_afterwards() -> None:
    async with open_provider_cache(Source()) as cache:
        for key in "ab":
            await cache.get(key)
            await cache.get(key)
        in_another_thread(lambda: invalidate_provider("a"))
        assert not cache._fast_thread
        assert cache.get_nowait("b") == "b#1"
        assert cache._fast_thread
        assert "a" not in cache


class Meddler:
    """A key that does something when it is hashed: where another thread may come in between."""

    def __init__(self) -> None:
        self.meddle: list[Callable[[], Any]] = []

    def __hash__(self) -> int:
        if self.meddle:
            self.meddle.pop()()
        return 1


@pytest.mark.parametrize("itself", [False, True])
async def test_counting_begins_again_when_the_cache_changes_under_it(itself: bool) -> None:
    meddler = Meddler()
    async with open_provider_cache(Source()) as cache:
        await cache.get(meddler)
        await cache.get("b")
        await cache.get("c")
        meddler.meddle.append(lambda: cache.delete(meddler if itself else "b"))
        assert cache._live_elsewhere(0.0) == list(cache._live)
        assert meddler.meddle == []
        assert len(cache) == 2


@pytest.mark.parametrize("itself", [False, True])
async def test_counting_begins_again_when_the_pool_changes_under_it(itself: bool) -> None:
    meddler = Meddler()
    async with open_provider_pool(open_value) as pool:
        async with pool.borrow(meddler), pool.borrow("b"), pool.borrow("c"):
            pass
        meddler.meddle.append(lambda: pool.delete(meddler if itself else "b"))
        assert pool._live_elsewhere(0.0) == list(pool._open)
        assert meddler.meddle == []
        assert len(pool) == 2


def test_in_the_thread_of_the_run_but_outside_of_it() -> None:
    """A guest run: between its steps its thread belongs to the host."""
    host: list[Callable[[], Any]] = []
    outcomes: list[Any] = []
    wake = threading.Event()
    caches: list[Any] = []

    def soon(function: Callable[[], Any]) -> None:
        host.append(function)
        wake.set()

    async def main() -> None:
        async with open_provider_cache(Source()) as cache:
            await cache.get("a")
            caches.append(cache)
            while "a" in cache:
                await trio.lowlevel.checkpoint()

    trio.lowlevel.start_guest_run(main, run_sync_soon_threadsafe=soon, done_callback=outcomes.append)
    affected = None
    while not outcomes:
        assert wake.wait(10)
        wake.clear()
        while host:
            host.pop(0)()
            if caches and affected is None:
                affected = invalidate_provider("a")
    assert affected is True
    outcomes[0].unwrap()


async def test_a_message_in_a_closed_inbox_is_nothing() -> None:
    async with open_provider_cache(Source()) as cache:
        pass
    cache._inbox.append(Message("key", "a", True))
    cache._empty_inbox()
    assert not cache._inbox


def test_after_a_fork_the_child_begins_anew() -> None:
    roster.begin_anew()  # in a child of ours no line is measured
    assert invalidate_provider("a") is False


def test_a_pool_hears_an_invalidation_from_another_thread_before_it_keeps_what_has_opened() -> None:
    """In whatever order the run takes up the message and the opening that was under way when it came."""

    @asynccontextmanager
    async def values(key: str) -> AsyncGenerator[str, None]:
        await trio.lowlevel.checkpoint()
        thread = threading.Thread(target=invalidate_provider, args=(key,))
        thread.start()
        thread.join()
        yield key

    async def scenario() -> None:
        async with open_provider_pool(values) as pool:
            async with pool.borrow("a") as value:
                assert value == "a"
                assert len(pool) == 0
            assert "a" not in pool

    assert under_schedules(scenario, seeds=30).steps == 30


async def test_who_has_waited_for_an_opening_gets_no_closed_value_for_an_invalidation_that_comes_just_then() -> None:
    is_open: list[str] = []

    @asynccontextmanager
    async def values(key: str) -> AsyncGenerator[str, None]:
        is_open.append(key)
        yield key
        is_open.remove(key)

    def observe(event: Event) -> None:
        if isinstance(event, FetchSucceeded):
            # It has opened, and those who wait for it have not had their step yet.
            thread = threading.Thread(target=invalidate_provider, args=(event.key,))
            thread.start()
            thread.join()

    async with open_provider_pool(values, observe=observe) as pool:
        async with pool.borrow("a"):
            await wait_all_tasks_blocked()
            assert "a" not in pool
            assert is_open == ["a"]
        await wait_all_tasks_blocked()
        assert is_open == []


async def test_a_fenced_resolution_that_fails_does_not_hold_up_the_next_renewal(autojump_clock: MockClock) -> None:
    script: ScriptedFetch[Any] = ScriptedFetch(Block(ValueError()), "A", "B")

    async def resolve(key: str) -> str:
        return await script()

    async def fail() -> None:
        with pytest.raises(ValueError):
            await cache.get("a")

    async with open_provider_cache(resolve, ttl=1.0, refresh_at=0.5) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        cache.delete("a")
        await cache.get("a")
        await trio.sleep(0.25)
        script.release()
        await trio.sleep(0.25)
        assert cache.get_nowait("a") == "A"
        await wait_all_tasks_blocked()
        assert cache.get_nowait("a") == "B"
