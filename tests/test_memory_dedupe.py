"""The dedupe store of the memory engine, beyond the contract that all dedupe stores share."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from trio_renew._errors import JobLost
from trio_renew.stores._common import DedupeStats, JobInfo
from trio_renew.stores.memory import open_memory_stores


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Thing:
    """A value that can be watched."""


class Planned(Exception):
    pass


async def test_every_method_is_one_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        dedupe = stores.dedupe
        job_id = await dedupe.register("b")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: dedupe.register("a"),
            lambda: dedupe.register_or_join("a"),
            lambda: dedupe.is_in_progress("a"),
            lambda: dedupe.extend("a", "unknown"),
            lambda: dedupe.complete("a", 1),
            lambda: dedupe.fail("a", Planned()),
            lambda: dedupe.complete("b", 1),
            lambda: dedupe.wait_for("b", job_id=job_id),
            lambda: dedupe.wait_outcome("unknown"),
            lambda: dedupe.list_jobs(),
            lambda: dedupe.get_stats(),
            lambda: dedupe.cleanup(),
            lambda: dedupe.clear(),
        ]
        for call in calls:
            before = trio.current_time()
            with trio.testing.assert_checkpoints():
                await call()
            assert trio.current_time() == before


async def test_a_cancelled_call_has_not_happened(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        dedupe = stores.dedupe
        job_id = await dedupe.register("a")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: dedupe.register("b"),
            lambda: dedupe.register_or_join("b"),
            lambda: dedupe.complete("a", 1),
            lambda: dedupe.fail("a", Planned()),
            lambda: dedupe.clear(),
            lambda: dedupe.extend("a", job_id),
        ]
        await trio.sleep(5.0)
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
        assert not await dedupe.is_in_progress("b")
        await trio.sleep(4.75)
        assert await dedupe.is_in_progress("a")
        await trio.sleep(0.25)
        assert not await dedupe.is_in_progress("a")


async def test_a_cancelled_wait_for_a_settled_job_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        job_id = await stores.dedupe.register("a")
        await stores.dedupe.complete("a", 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await stores.dedupe.wait_for("a", job_id=job_id)
        assert scope.cancelled_caught
        assert await stores.dedupe.wait_for("a", job_id=job_id) == 1


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "names"),
    [
        ("register", ("",), {}, "hash"),
        ("register_or_join", (7,), {}, "hash"),
        ("is_in_progress", ("",), {}, "hash"),
        ("extend", ("", "id"), {}, "hash"),
        ("extend", ("a", ""), {}, "job_id"),
        ("complete", ("", 1), {}, "hash"),
        ("complete", ("a", 1), {"job_id": ""}, "job_id"),
        ("complete", ("a", 1), {"job_id": 7}, "job_id"),
        ("fail", ("a", "text"), {}, "error must be an exception"),
        ("fail", ("a", Planned), {}, "error must be an exception"),
        ("wait_for", ("",), {}, "hash"),
        ("wait_outcome", ("a",), {"job_id": ""}, "job_id"),
        ("list_jobs", (), {"limit": -1}, "limit"),
        ("clear", (7,), {}, "scope"),
    ],
)
async def test_bad_arguments_name_themselves_and_change_nothing(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], names: str
) -> None:
    async with open_memory_stores() as stores:
        await stores.dedupe.register("a")
        with pytest.raises((TypeError, ValueError), match=names):
            await getattr(stores.dedupe, method)(*args, **kwargs)
        assert await stores.dedupe.is_in_progress("a")


async def test_errors_come_back_as_themselves(autojump_clock: trio.testing.MockClock) -> None:
    error = Planned("x")
    async with open_memory_stores() as stores:
        job_id = await stores.dedupe.register("a")
        await stores.dedupe.fail("a", error)
        for _ in range(2):
            result = await stores.dedupe.wait_outcome("a", job_id=job_id)
            with pytest.raises(Planned) as caught:
                result.unwrap()
            assert caught.value is error


async def test_waiters_wake_at_once_and_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(lease=4.0) as stores:
        dedupe = stores.dedupe
        woken: list[tuple[float, Any]] = []

        async def wait(hash: str) -> None:
            result = await dedupe.wait_outcome(hash)
            woken.append(
                (trio.current_time(), result.value if isinstance(result, outcome.Value) else type(result.error))
            )

        job_id = await dedupe.register("kept")
        await dedupe.register("settled")
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "kept")
            nursery.start_soon(wait, "settled")
            await trio.sleep(3.0)
            await dedupe.complete("settled", 7)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [(start + 3.0, 7)]
            assert await dedupe.extend("kept", job_id)
        assert woken[1:] == [(start + 7.0, JobLost)]


async def test_a_waiter_may_be_cancelled_at_any_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        await stores.dedupe.register("a")
        for seconds in (0.0, 5.0):
            with trio.move_on_after(seconds) as scope:
                await stores.dedupe.wait_for("a")
            assert scope.cancelled_caught
        await stores.dedupe.complete("a", 1)


async def test_an_outcome_that_is_known_reaches_a_waiter_although_the_bundle_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    results: list[Any] = []

    async def wait(dedupe: Any, hash: str) -> None:
        try:
            results.append(await dedupe.wait_for(hash))
        except trio.ClosedResourceError:
            results.append("closed")

    async with trio.open_nursery() as nursery:
        async with open_memory_stores() as stores:
            for hash in ("settled", "pending"):
                await stores.dedupe.register(hash)
                nursery.start_soon(wait, stores.dedupe, hash)
            await trio.testing.wait_all_tasks_blocked()
            stores.dedupe._settle_now("settled", None, "completed", 7)  # with no checkpoint before the end
    assert sorted(map(str, results)) == ["7", "closed"]


async def test_clear_loses_what_is_in_scope(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        dedupe = stores.dedupe
        results: dict[str, Any] = {}

        async def wait(hash: str) -> None:
            results[hash] = await dedupe.wait_outcome(hash)

        ids = {hash: await dedupe.register(hash) for hash in ("a:1", "b:1", "a:done", "b:done")}
        await dedupe.complete("a:done", 1)
        await dedupe.complete("b:done", 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "a:1")
            nursery.start_soon(wait, "b:1")
            await trio.testing.wait_all_tasks_blocked()
            await dedupe.clear("a:")
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(results["a:1"].error, JobLost)
            assert "b:1" not in results
            assert not await dedupe.is_in_progress("a:1")
            assert await dedupe.is_in_progress("b:1")
            await dedupe.complete("b:1", 3)
        assert results["b:1"].unwrap() == 3
        assert await dedupe.wait_for("a:done", job_id=ids["a:done"]) is None
        assert await dedupe.wait_for("b:done", job_id=ids["b:done"]) == 2
        await dedupe.clear()
        assert await dedupe.list_jobs() == []


async def test_an_id_of_another_key_is_unknown(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        job_id = await stores.dedupe.register("a")
        await stores.dedupe.complete("a", 1)
        assert await stores.dedupe.wait_for("b", job_id=job_id) is None
        assert await stores.dedupe.wait_for("a", job_id=job_id) == 1


async def test_listing_and_stats() -> None:
    clock = SetClock(1000.0)
    async with open_memory_stores(clock=clock, lease=10.0) as stores:
        dedupe = stores.dedupe
        assert await dedupe.list_jobs() == []
        assert await dedupe.get_stats() == DedupeStats(0, 0, 0, 0.0)
        ids = {}
        for hash in ("done", "failed", "pending", "late"):
            ids[hash] = await dedupe.register(hash)
            clock.now += 1.0
        await dedupe.complete("done", 1)
        await dedupe.fail("failed", Planned())
        assert await dedupe.list_jobs() == [
            JobInfo("done", ids["done"], "completed", 1000.0, 1014.0),
            JobInfo("failed", ids["failed"], "failed", 1001.0, 1014.0),
            JobInfo("pending", ids["pending"], "pending", 1002.0, 1012.0),
            JobInfo("late", ids["late"], "pending", 1003.0, 1013.0),
        ]
        assert [job.hash for job in await dedupe.list_jobs(offset=1, limit=2)] == ["failed", "pending"]
        assert await dedupe.get_stats() == DedupeStats(2, 4, 0, 2.0)
        clock.now = 1012.0
        assert await dedupe.get_stats() == DedupeStats(1, 4, 1, 9.0)
        assert await dedupe.cleanup() == 1
        clock.now = 1014.0
        assert await dedupe.list_jobs() == []
        assert await dedupe.cleanup() == 3
        assert await dedupe.get_stats() == DedupeStats(0, 4, 0, 0.0)


async def test_what_is_settled_is_released_after_a_lease(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        thing = Thing()
        watch = weakref.ref(thing)
        await stores.dedupe.register("a")
        await stores.dedupe.complete("a", thing)
        del thing
        await trio.sleep(9.0)
        gc.collect()
        assert watch() is not None
        await trio.sleep(60.0)
        gc.collect()
        assert watch() is None


async def test_outcomes_do_not_pile_up_until_the_next_sweep(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores(lease=1.0) as stores:
        for number in range(20):
            await stores.dedupe.register(f"k{number}")
            await stores.dedupe.complete(f"k{number}", number)
            await trio.sleep(0.5)
        assert len(stores.dedupe._kept) <= 3


async def test_abandoned_jobs_do_not_pile_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        for number in range(100):
            await stores.dedupe.register(f"k{number}")
        await trio.sleep(61.0)
        assert await stores.dedupe.get_stats() == DedupeStats(0, 100, 0, 0.0)


async def test_a_clock_that_goes_back_prolongs_no_lease() -> None:
    clock = SetClock(1000.0)
    async with open_memory_stores(clock=clock, lease=10.0) as stores:
        dedupe = stores.dedupe
        await dedupe.register("a")
        job_id = await dedupe.register("done")
        await dedupe.complete("done", 1)
        clock.now = 0.0
        assert await dedupe.is_in_progress("a")
        clock.now = 9.0
        assert await dedupe.wait_for("done", job_id=job_id) == 1
        clock.now = 10.0
        assert not await dedupe.is_in_progress("a")
        assert await dedupe.wait_for("done", job_id=job_id) is None


async def test_a_waiter_goes_by_the_given_clock(autojump_clock: trio.testing.MockClock) -> None:
    clock = SetClock(1000.0)
    async with open_memory_stores(clock=clock, lease=10.0) as stores:
        await stores.dedupe.register("a")
        with trio.move_on_after(25.0) as scope:
            await stores.dedupe.wait_for("a")
        assert scope.cancelled_caught
        clock.now = 1010.0
        with trio.fail_after(1.0):
            assert await stores.dedupe.wait_for("a") is None


async def test_closed_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        job_id = await stores.dedupe.register("a")
    dedupe = stores.dedupe
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: dedupe.register("a"),
        lambda: dedupe.register_or_join("a"),
        lambda: dedupe.wait_for("a"),
        lambda: dedupe.wait_outcome("a", job_id=job_id),
        lambda: dedupe.complete("a", 1),
        lambda: dedupe.fail("a", Planned()),
        lambda: dedupe.is_in_progress("a"),
        lambda: dedupe.extend("a", job_id),
        lambda: dedupe.list_jobs(),
        lambda: dedupe.get_stats(),
        lambda: dedupe.cleanup(),
        lambda: dedupe.clear(),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()
