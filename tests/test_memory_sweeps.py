"""The memory engine under cancellation and KeyboardInterrupt at every place where they can strike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew import RateLimitConfig
from trio_renew.stores import _memory_adaptive, _memory_cache, _memory_dedupe, _memory_life, _memory_rates, memory
from trio_renew.stores.memory import MemoryCacheStore, MemoryDedupeStore, MemoryStores, open_memory_stores
from trio_renew.testing import cancel_at_every_checkpoint, do_at_every_checkpoint, interrupt_at_every_line, victim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODULES = (memory, _memory_life, _memory_cache, _memory_dedupe, _memory_rates, _memory_adaptive)


class LengthCodec:
    """A text has the bytes of its UTF-8."""

    def encode(self, value: Any, /) -> bytes:
        return str(value).encode()

    def decode(self, data: bytes, /) -> Any:
        return data.decode()


def assert_sound_cache(cache: MemoryCacheStore[Any]) -> None:
    """What the books say is what is there."""
    entries = cache._entries
    assert cache._bytes == sum(entry.size for entry in entries.values()) <= 20
    assert len(entries) <= 3
    tags = {(tag, key) for key, entry in entries.items() for tag in entry.tags}
    assert tags == {(tag, key) for tag, keys in cache._tags.items() for key in keys}
    assert all(cache._tags.values())


def assert_sound_jobs(dedupe: MemoryDedupeStore[Any]) -> None:
    """A job is in the table while it is pending, and kept when it was settled."""
    for hash, job in dedupe._jobs.items():
        assert (job.hash, job.status, job.settled.is_set()) == (hash, "pending", False)
    for job_id, job in dedupe._kept.items():
        assert job.job_id == job_id
        assert job.settled.is_set()
        assert job.status in ("completed", "failed")


def test_an_interrupt_at_any_line_leaves_the_books_right() -> None:
    async def scenario() -> None:
        config = RateLimitConfig(limit=3, window=10.0)
        async with open_memory_stores(
            codec=LengthCodec(), max_items=3, max_total_bytes=20, default_config=config
        ) as stores:
            cache, dedupe = stores.cache, stores.dedupe
            try:
                for number in range(4):
                    await cache.set(f"k{number}", "x" * number, 5.0, tags=["t", f"t{number}"])
                await cache.set("k3", "x" * 15, 50.0, tags=["t"])
                await cache.get("k2")
                await cache.invalidate_tag("t2")
                await cache.delete("k3")
                await dedupe.register("a")
                job = await dedupe.register_or_join("b")
                await dedupe.complete("a", 1)
                await dedupe.extend("b", job.job_id)
                await trio.sleep(70.0)
                await dedupe.register("b")
                await dedupe.clear()
                for limits in (stores.rate_limit, stores.adaptive):
                    for _ in range(4):
                        await limits.acquire("a")
                    await limits.set_cooldown("a", 1e11)
                    await limits.reset("a")
                    await limits.clear()
            finally:
                assert_sound_cache(cache)
                assert_sound_jobs(dedupe)
                for resource, record in stores.adaptive._records.items():
                    assert resource == "a"
                    assert len(record.times) == len(record.users) + len(record.background_times)

    assert interrupt_at_every_line(scenario, within=MODULES).steps > 200


async def wait_for_a_job(stores: MemoryStores[Any]) -> None:
    async with trio.open_nursery() as nursery:
        job = await stores.dedupe.register_or_join("a")
        nursery.start_soon(stores.dedupe.wait_for, "a")
        await trio.sleep(1.0)
        await stores.dedupe.complete("a", 7, job_id=job.job_id)


async def lose_a_job(stores: MemoryStores[Any]) -> None:
    job = await stores.dedupe.register_or_join("a")
    await stores.dedupe.wait_outcome("a", job_id=job.job_id)


async def wait_for_the_sweeper(_: MemoryStores[Any]) -> None:
    await trio.sleep(130.0)


CALLS: dict[str, Callable[[MemoryStores[Any]], Awaitable[object]]] = {
    "set": lambda stores: stores.cache.set("k1", "x" * 18, 5.0, tags=["u"]),
    "get": lambda stores: stores.cache.get("k0"),
    "invalidate_tag": lambda stores: stores.cache.invalidate_tag("t"),
    "wait": wait_for_a_job,
    "lose": lose_a_job,
    "extend": lambda stores: stores.dedupe.extend("j", "nobody's"),
    "fail": lambda stores: stores.dedupe.fail("j", OSError()),
    "acquire": lambda stores: stores.rate_limit.acquire("r"),
    "status": lambda stores: stores.adaptive.get_status("r"),
    "wait_time": lambda stores: stores.adaptive.get_wait_time("r"),
    "cooldown": lambda stores: stores.rate_limit.set_cooldown("c", 1e11),
    "clear_cooldown": lambda stores: stores.rate_limit.clear_cooldown("c"),
    "config": lambda stores: stores.adaptive.set_resource_config("r", RateLimitConfig(limit=30, window=10.0)),
    "user": lambda stores: stores.adaptive.acquire("r", "user"),
    "stats": lambda stores: stores.dedupe.get_stats(),
    "cleanup": lambda stores: stores.rate_limit.cleanup(),
    "sweep": wait_for_the_sweeper,
}


@pytest.mark.parametrize("given_clock", [False, True])
@pytest.mark.parametrize("call", list(CALLS))
def test_who_goes_on_after_an_interrupt_finds_sound_stores(calm: Any, call: str, given_clock: bool) -> None:
    async def scenario() -> None:
        quiet = calm()
        back = 0.0

        def clock() -> float:
            return 1e9 + trio.current_time() - back

        config = RateLimitConfig(limit=3, window=10.0)
        async with open_memory_stores(
            codec=LengthCodec(),
            max_items=3,
            max_total_bytes=20,
            lease=4.0,
            default_config=config,
            clock=clock if given_clock else None,
        ) as stores:
            cache, dedupe = stores.cache, stores.dedupe
            await trio.sleep(130.0)  # the sweeper sleeps
            await cache.set("k0", "x", 5.0, tags=["t"])
            await dedupe.register("j")
            back = 2.0  # where it counts, all is to be dated now
            await quiet.survive(lambda: CALLS[call](stores))

            assert_sound_cache(cache)
            assert_sound_jobs(dedupe)
            entry = cache._entries.get("k0")
            assert entry is None or entry.deadline - entry.created == 5.0
            # One owner at a time, and who waits hears of it.
            await trio.sleep(6.5)
            job = await dedupe.register_or_join("j")
            assert job.is_owner
            assert not (await dedupe.register_or_join("j")).is_owner
            await dedupe.complete("j", 1, job_id=job.job_id)
            assert await dedupe.wait_for("j", job_id=job.job_id) == 1
            # What the limit of a user's share says is what it is.
            status = await stores.adaptive.get_status("r")
            assert status.limit == status.user_reserved + status.background_max
            assert status.limit == (await stores.adaptive.get_resource_config("r")).limit
            await trio.sleep(10.0)
            assert [await stores.rate_limit.acquire("r") for _ in range(4)] == [True, True, True, False]
            # And what ends is forgotten without being asked for.
            await stores.rate_limit.clear_cooldown("c")
            await cache.set("k2", "y", 5.0)
            await trio.sleep(500.0)
            for table in (cache._entries, cache._tags, dedupe._jobs, dedupe._kept):
                assert not table
            for table in (stores.rate_limit._records, stores.rate_limit._cooldowns):
                assert not table

    assert interrupt_at_every_line(scenario, within=MODULES).steps >= 2


@pytest.mark.parametrize("kind", ["rate_limit", "adaptive"])
def test_a_cooldown_is_forgotten_also_when_setting_it_was_interrupted(calm: Any, kind: str) -> None:
    async def scenario() -> None:
        quiet = calm()
        async with open_memory_stores() as stores:
            limits = getattr(stores, kind)
            until = limits._life.wall() + 10.0
            await quiet.survive(lambda: limits.set_cooldown("c", until))
            await trio.sleep(200.0)
            assert not limits._cooldowns
            # The sweeper goes on for who comes later.
            await stores.cache.set("a", "x", 5.0)
            await trio.sleep(200.0)
            assert not stores.cache._entries

    assert interrupt_at_every_line(scenario, within=MODULES).steps >= 5


def test_a_wait_may_be_cancelled_at_every_step() -> None:
    async def scenario() -> None:
        async with open_memory_stores(lease=4.0) as stores, trio.open_nursery() as nursery:
            dedupe = stores.dedupe
            job = await dedupe.register_or_join("a")
            found: list[Any] = []

            async def stay() -> None:
                found.append(await dedupe.wait_for("a", job_id=job.job_id))

            async def work() -> None:
                await trio.sleep(3.0)
                await dedupe.extend("a", job.job_id)
                await trio.sleep(3.0)
                await dedupe.complete("a", 7, job_id=job.job_id)

            nursery.start_soon(stay)
            nursery.start_soon(work)
            with victim():
                await dedupe.wait_for("a", job_id=job.job_id)
            with trio.fail_after(10.0):
                assert await dedupe.wait_for("a", job_id=job.job_id) == 7
            await trio.sleep(0)
            assert found == [7]

    assert cancel_at_every_checkpoint(scenario).steps >= 3


def test_a_store_may_be_cancelled_at_every_step() -> None:
    async def scenario() -> None:
        async with open_memory_stores(codec=LengthCodec(), max_total_bytes=20) as stores:
            with victim():
                for number in range(3):
                    await stores.cache.set("a", f"value {number}", 5.0, tags=[f"t{number}"])
                    await stores.rate_limit.acquire("a")
                    await stores.adaptive.acquire("a", "user")
            assert_sound_cache(stores.cache)
            value = await stores.cache.get("a")
            tags = [number for number in range(3) if await stores.cache.invalidate_tag(f"t{number}")]
            assert [value] == ([f"value {number}" for number in tags] or [None])

    assert cancel_at_every_checkpoint(scenario).steps >= 9


def test_the_bundle_may_be_cancelled_at_every_step() -> None:
    async def scenario() -> None:
        with victim():
            async with open_memory_stores() as stores:
                await stores.cache.set("a", 1, 1.0)
                await trio.sleep(61.0)
                await stores.dedupe.register("a")
                await stores.dedupe.wait_for("a")

    assert cancel_at_every_checkpoint(scenario).steps >= 4


def test_closing_at_every_step_wakes_who_waits() -> None:
    scopes: list[trio.CancelScope] = []

    async def scenario() -> None:
        results: list[Any] = []

        async def wait(dedupe: MemoryDedupeStore[Any], job_id: str) -> None:
            try:
                results.append(await dedupe.wait_for("a", job_id=job_id))
            except trio.ClosedResourceError:
                results.append("closed")

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                scopes[:] = [scope]
                async with open_memory_stores() as stores:
                    job_id = await stores.dedupe.register("a")
                    nursery.start_soon(wait, stores.dedupe, job_id)
                    with victim():
                        await trio.sleep(1.0)
                        await stores.dedupe.complete("a", 7)
                        await trio.sleep(1.0)
        assert results in (["closed"], [7])

    def close() -> None:
        scopes[0].cancel()

    assert do_at_every_checkpoint(scenario, close).steps >= 3
