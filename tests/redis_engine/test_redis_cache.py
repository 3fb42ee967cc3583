"""The cache on a server: tags and what ends with them, sizes, broken values, listings, many entries, a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import trio
from hypothesis import HealthCheck, given, settings, strategies as st

from trio_renew import StoreError
from trio_renew.stores import _redis_room
from trio_renew.stores._redis_scripts import DESCRIBE_ENTRIES, DROP
from trio_renew.stores.redis import open_redis_stores

if TYPE_CHECKING:
    from .conftest import Server


def number_of(answer: bytes) -> int:
    return int(answer.strip(b":\r\n"))


async def test_one_round_trip_each(own_server: Server) -> None:
    """Counted by the server: what a script calls inside counts for the script."""
    async with open_redis_stores(own_server.url) as stores:
        job_id = await stores.dedupe.register("warm")
        before = commands(own_server)
        await stores.cache.set("a", 1, 60.0, tags=("t",))
        await stores.cache.get("a")
        await stores.rate_limit.acquire("a")
        await stores.adaptive.acquire("a")
        await stores.dedupe.register_or_join("a")
        await stores.dedupe.complete("warm", 1, job_id=job_id)
        sent = {name: count - before.get(name, 0) for name, count in commands(own_server).items()}
    assert sum(sent.get(name, 0) for name in ("eval", "evalsha")) == 5
    assert sent["get"] >= 1
    assert sent.get("subscribe", 0) == sent.get("scan", 0) == 0


def commands(server: Server) -> dict[str, int]:
    lines = server.ask("INFO", "commandstats").decode().splitlines()
    rows = (line.removeprefix("cmdstat_").split(":calls=") for line in lines if line.startswith("cmdstat_"))
    return {name: int(rest.split(",")[0]) for name, rest in rows}


async def test_tags_live_as_long_as_the_last_of_their_entries(server: Server, prefix: str) -> None:
    def ttl(tag: str) -> int:
        return number_of(server.ask("PTTL", f"{prefix}t:{tag}"))

    async with open_redis_stores(server.url, prefix=prefix) as stores:
        cache = stores.cache
        await cache.set("a", 1, 100.0, tags=("t",))
        assert 99_000 < ttl("t") <= 100_001
        await cache.set("b", 1, 200.0, tags=("t",))
        assert 199_000 < ttl("t") <= 200_001
        await cache.set("c", 1, 0, tags=("t",))
        assert ttl("t") == -1
        await cache.delete("c")
        assert 199_000 < ttl("t") <= 200_001
        await cache.set("b", 1, 200.0)
        assert 99_000 < ttl("t") <= 100_001
        await cache.set("a", 1, 100.0, tags=("u",))
        assert ttl("t") == -2
        assert await cache.invalidate_tags(["t", "u"]) == 1
        assert ttl("u") == -2
        assert await cache.get("b") == 1


async def test_a_stale_member_of_a_tag_takes_nothing_newer(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        cache = stores.cache
        await cache.set("a", 1, 0.02, tags=("t",))
        await cache.set("keeps", 1, 0, tags=("t",))
        await trio.sleep(0.03)
        await cache.set("a", 2, 60.0, tags=("other",))
        assert number_of(server.ask("ZCARD", f"{prefix}t:t")) == 2
        assert await cache.cleanup() == 1
        assert number_of(server.ask("ZCARD", f"{prefix}t:t")) == 1
        # The same with the member put back, as an eviction by the server would leave it.
        server.ask("ZADD", f"{prefix}t:t", "inf", "a")
        assert await cache.invalidate_tag("t") == 1
        assert await cache.get("a") == 2


async def test_cleanup_finds_what_the_server_has_evicted(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.set("evicted", 1, 0, tags=("t", "u"))
        await stores.cache.set("stays", 1, 60.0, tags=("t",))
        server.ask("DEL", f"{prefix}c:evicted")
        assert await stores.cache.cleanup() == 2
        assert number_of(server.ask("EXISTS", f"{prefix}t:u")) == 0
        assert 59_000 < number_of(server.ask("PTTL", f"{prefix}t:t")) <= 60_001
        assert await stores.cache.invalidate_tag("t") == 1


async def test_a_large_value(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.set("a", "é" * 1_000_000, 60.0)
        assert await stores.cache.get("a") == "é" * 1_000_000


async def test_what_is_too_large_or_cannot_be_encoded_takes_the_old_value_along(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix, max_entry_size_bytes=10) as stores:
        cache = stores.cache
        await cache.set("a", "12345678", 60.0, tags=("t",))
        assert await cache.get("a") == "12345678"
        with pytest.raises(StoreError, match="max_entry_size_bytes=10"):
            await cache.set("a", "123456789", 60.0, tags=("t",))
        assert await cache.get("a") is None
        await cache.set("a", 1, 60.0, tags=("t",))
        with pytest.raises(StoreError, match="cannot encode"):
            await cache.set("a", object(), 60.0)
        assert await cache.get("a") is None
        # Also where nothing would be kept of it.
        with pytest.raises(StoreError, match="cannot encode"):
            await cache.set("a", object(), -1.0)
        assert await cache.invalidate_tag("t") == 0


async def test_what_cannot_be_decoded_is_absent_and_removed(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        for data in ("", "x", "zzzzzzzz", "00000000" + "0" * 16 + "not json", "00000003" + "0" * 16 + "[[[x"):
            server.ask("SET", f"{prefix}c:a", data)
            assert await stores.cache.get("a") is None
            assert number_of(server.ask("EXISTS", f"{prefix}c:a")) == 0


async def test_a_bad_value_that_was_replaced_stays(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        await stores.cache.set("a", 1, 60.0)
        keys = (f"{prefix}c:a".encode(), f"{prefix}t:".encode())
        assert await stores.cache._room.link.run(DROP, keys, b"a", b"what was there before") == 0
        assert await stores.cache.get("a") == 1


async def test_entries_are_listed_and_counted(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        cache = stores.cache
        assert await cache.list_entries() == []
        for key, ttl in (("é", 60.0), ("a", 0.0), ("c", 1e300), ("b", 0.0001)):
            await cache.set(key, key, ttl, tags=("t",))
        await trio.sleep(0.005)
        entries = await cache.list_entries()
        assert [entry.hash for entry in entries] == ["é", "a", "c"]
        first, second, _ = entries
        assert first.created_at is not None
        assert first.expires_at - first.created_at == pytest.approx(60.0, abs=0.01)
        assert (second.expires_at, second.size) == (0.0, 3)
        assert [entry.hash for entry in await cache.list_entries(1, 1)] == ["a"]
        stats = await cache.get_stats()
        assert (stats.total_items, stats.expired, stats.total_bytes) == (3, 0, 8 + 3 + 3)


async def test_what_ends_while_it_is_listed_is_left_out(server: Server, prefix: str) -> None:
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        now, rows = await stores.cache._room.describe(DESCRIBE_ENTRIES, b"c:", ["gone"])
        assert now > 1e9
        assert rows == [("gone", [])]


async def test_many_entries_are_cleared_in_batches(server: Server, prefix: str) -> None:
    number = 2 * _redis_room._BATCH + 10
    async with open_redis_stores(server.url, prefix=prefix) as stores, trio.open_nursery() as nursery:
        for each in range(number):
            nursery.start_soon(stores.cache.set, f"k{each}", each, 60.0)
        nursery.start_soon(stores.cache.set, "other", 1, 60.0)
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        assert (await stores.cache.get_stats()).total_items == number + 1
        await stores.cache.clear("k")
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["other"]


async def test_a_cancelled_clear_goes_on_and_takes_nothing_newer(own_server: Server) -> None:
    async with open_redis_stores(own_server.url) as stores:
        limited = (stores.rate_limit, stores.adaptive)
        for number in range(20):
            await stores.cache.set(f"old{number}", 1, 60.0)
            await stores.dedupe.register(f"old{number}")
            for limits in limited:
                await limits.record(f"old{number}")
                await limits.can_proceed(f"old{number}")
        await stores.dedupe.complete("old0", 1)
        await stores.rate_limit.set_cooldown("old0", 2e9)
        own_server.pause()
        for store in (stores.cache, stores.dedupe, *limited):
            with trio.move_on_after(0.02) as scope:
                await store.clear()
            assert scope.cancelled_caught
        # Over the same connection: the wipes have asked what time it is, and have not yet looked around.
        async with trio.open_nursery() as nursery:
            for name in ("new", "old1"):
                nursery.start_soon(stores.cache.set, name, 2, 60.0)
                nursery.start_soon(stores.rate_limit.record, name)
                nursery.start_soon(stores.adaptive.acquire, name)
            nursery.start_soon(stores.dedupe.register, "new")
            nursery.start_soon(stores.rate_limit.set_cooldown, "new", 2e9)
            await trio.sleep(0.02)
            own_server.resume()
        with trio.fail_after(5):
            while (
                await stores.cache.get("old19") is not None
                or len(await stores.rate_limit.list_resources()) != 2
                or len(await stores.adaptive.list_resources()) != 2
                or len(await stores.dedupe.list_jobs()) != 1
            ):
                await trio.sleep(0.005)
        assert await stores.cache.get("new") == await stores.cache.get("old1") == 2
        for limits in limited:
            found = [(info.resource, info.request_count) for info in await limits.list_resources()]
            assert found == [("new", 1), ("old1", 1)]
        assert await stores.rate_limit.get_cooldown("new") == 2e9
        assert await stores.rate_limit.get_cooldown("old0") is None
        assert [job.hash for job in await stores.dedupe.list_jobs()] == ["new"]


KEYS = st.sampled_from(["a", "b", "ab", "é*", "[a]"])
TAGS = st.lists(st.sampled_from(["t", "u", 'é"\\', "🎉"]), max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.sampled_from([0.0, 60.0, -1.0]), TAGS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("clear"), st.sampled_from(["", "a", "é*", "["])),
    st.tuples(st.just("tags"), TAGS),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
async def test_it_behaves_like_a_dict(server: Server, steps: list[Any]) -> None:
    model: dict[str, tuple[int, frozenset[str]]] = {}
    prefix = f"{uuid4().hex}:"
    async with open_redis_stores(server.url, prefix=prefix) as stores:
        cache = stores.cache
        for number, (what, *args) in enumerate(steps):
            if what == "set":
                key, ttl, tags = args
                await cache.set(key, number, ttl, tags=tags)
                model.pop(key, None)
                if ttl >= 0:
                    model[key] = number, frozenset(tags)
            elif what == "delete":
                await cache.delete(args[0])
                model.pop(args[0], None)
            elif what == "clear":
                await cache.clear(args[0])
                model = {key: entry for key, entry in model.items() if not key.startswith(args[0])}
            else:
                hit = {key for key, (_, carried) in model.items() if carried & set(args[0])}
                assert await cache.invalidate_tags(args[0]) == len(hit)
                model = {key: entry for key, entry in model.items() if key not in hit}
            assert {key: await cache.get(key) for key in ("a", "b", "ab", "é*", "[a]")} == {
                key: model[key][0] if key in model else None for key in ("a", "b", "ab", "é*", "[a]")
            }
        # Nothing is left but what describes what is there.
        assert set(await cache._room.names(b"t:")) == {tag for _, carried in model.values() for tag in carried}
        await cache.clear()
