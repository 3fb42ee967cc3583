"""What every engine's cache promises beyond the contract suite: limits, tags, scopes, bad arguments, listings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trio_renew import StoreError

if TYPE_CHECKING:
    from .conftest import Engine

# Of JSON: a text of n characters has n + 2 bytes.
FIVE = "abc"


class Spoiled:
    """Bytes of whatever kind."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def encode(self, value: Any, /) -> Any:
        return self.given if value == "spoiled" else value.encode()

    def decode(self, data: bytes, /) -> Any:
        return data.decode()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("", 1, 1.0), "hash"),
        ((None, 1, 1.0), "hash"),
        ((b"a", 1, 1.0), "hash"),
        (([], 1, 1.0), "hash"),
        (("\ud800", 1, 1.0), "hash"),
        (("a", None, 1.0), "value"),
        (("a", 1, float("nan")), "ttl"),
        (("a", 1, float("inf")), "ttl"),
        (("a", 1, float("-inf")), "ttl"),
        (("a", 1, True), "ttl"),
        (("a", 1, "1"), "ttl"),
        (("a", 1, None), "ttl"),
        (("a", 1, 10**400), "ttl"),
    ],
    ids=lambda given: ascii(given)[:20],
)
def test_a_bad_argument_is_named_and_changes_nothing(
    engine: Engine, arguments: tuple[Any, Any, Any], named: str
) -> None:
    """It is a TypeError or a ValueError, and what was there is there."""

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", "old", 0, tags=("t",))
        with pytest.raises((TypeError, ValueError), match=named):
            await stores.cache.set(*arguments)
        for tags in ("text", None, 5, ("",), ("b", 5), ("\ud800",)):
            with pytest.raises((TypeError, ValueError), match="tag"):
                await stores.cache.set("a", "new", 1.0, tags=tags)
        assert await stores.cache.get("a") == "old"
        assert await stores.cache.invalidate_tags(["b", "t"]) == 1

    engine.run(scenario)


@pytest.mark.parametrize("key", ["", None, 5, b"a", [], {}, "\ud800"])
def test_a_bad_key_is_named_by_every_method(engine: Engine, key: Any) -> None:
    """Also one that cannot be hashed."""

    async def scenario(stores: Any) -> None:
        for call in (stores.cache.get, stores.cache.delete):
            with pytest.raises((TypeError, ValueError), match=r"^hash"):
                await call(key)
        with pytest.raises((TypeError, ValueError), match="tag"):
            await stores.cache.invalidate_tag(key)

    engine.run(scenario)


def test_bad_bounds_of_a_listing(engine: Engine) -> None:
    """And any large bound means everything."""

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", 1, 0)
        for offset, limit, named in ((-1, 1, "offset"), (0, -1, "limit"), (0, 1.0, "limit"), (True, 1, "offset")):
            with pytest.raises((TypeError, ValueError), match=named):
                await stores.cache.list_entries(offset, limit)
            with pytest.raises((TypeError, ValueError), match=named):
                await stores.dedupe.list_jobs(offset, limit)
        assert len(await stores.cache.list_entries(0, 10**30)) == 1
        assert await stores.cache.list_entries(10**30, 10**30) == []
        assert await stores.dedupe.list_jobs(10**30, 10**30) == []

    engine.run(scenario)


def test_a_value_may_be_just_as_large_as_allowed(engine: Engine) -> None:
    """One byte more is a StoreError, and the old value and its tags are gone."""

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", FIVE, 0, tags=("t",))
        assert await stores.cache.get("a") == FIVE
        with pytest.raises(StoreError, match="max_entry_size_bytes=5"):
            await stores.cache.set("a", FIVE + "d", 0, tags=("u",))
        assert await stores.cache.get("a") is None
        assert await stores.cache.invalidate_tags(["t", "u"]) == 0
        await stores.cache.set("a", FIVE, 0)
        assert await stores.cache.get("a") == FIVE

    engine.run(scenario, max_entry_size_bytes=5)


def test_all_values_may_be_just_as_large_as_allowed(local: Engine) -> None:
    """Beyond that some go, and a value that can never fit goes alone."""

    async def scenario(stores: Any) -> None:
        for key in "abc":
            await stores.cache.set(key, FIVE, 0)
        assert (await stores.cache.get_stats()).total_bytes == 15
        await stores.cache.set("b", FIVE, 0)
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["a", "c", "b"]
        await stores.cache.set("d", 1, 0)
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["c", "b", "d"]
        with pytest.raises(StoreError, match="max_total_bytes=15"):
            await stores.cache.set("b", "x" * 14, 0)
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["c", "d"]
        await stores.cache.set("e", "x" * 13, 0)
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["e"]

    local.run(scenario, max_total_bytes=15)


def test_who_goes_first(local: Engine) -> None:
    """In memory the least recently used, in the file the longest stored."""

    async def scenario(stores: Any) -> None:
        for key in "abc":
            await stores.cache.set(key, key, 0, tags=(key,))
        assert await stores.cache.get("a") == "a"
        await stores.cache.set("d", "d", 0)
        gone = "b" if local.kind == "memory" else "a"
        assert await stores.cache.get(gone) is None
        assert await stores.cache.invalidate_tag(gone) == 0
        left = [entry.hash for entry in await stores.cache.list_entries()]
        assert left == sorted({*"abcd"} - {gone})
        # What is stored anew is the youngest.
        await stores.cache.set(left[0], "again", 0)
        await stores.cache.set("e", "e", 0)
        await stores.cache.set("f", "f", 0)
        assert await stores.cache.get(left[0]) == "again"

    local.run(scenario, max_items=3)


def test_job_results_have_no_bounds(engine: Engine) -> None:
    """The bounds are the cache's."""
    bounds = {"max_entry_size_bytes": 1} | ({} if engine.kind == "redis" else {"max_items": 1, "max_total_bytes": 1})

    async def scenario(stores: Any) -> None:
        for key in "ab":
            job = await stores.dedupe.register_or_join(key)
            await stores.dedupe.complete(key, "x" * 1000, job_id=job.job_id)
            assert await stores.dedupe.wait_for(key, job_id=job.job_id) == "x" * 1000

    engine.run(scenario, lease=60.0, **bounds)


def test_a_value_that_cannot_be_encoded_takes_the_old_one_away(engine: Engine) -> None:
    """Where values are encoded; in memory they are, when they are measured."""
    bounds = {"max_total_bytes": 1000} if engine.kind == "memory" else {}

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", "old", 0, tags=("t",))
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.cache.set("a", object(), 0, tags=("u",))
        assert await stores.cache.get("a") is None
        assert await stores.cache.invalidate_tags(["t", "u"]) == 0

    engine.run(scenario, **bounds)


@pytest.mark.parametrize("given", ["text", 5, None, [1]], ids=str)
def test_a_codec_that_gives_no_bytes(sharing: Engine, given: Any) -> None:
    """A StoreError, in the cache and in a job, which stays its owner's."""

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", "old", 0)
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.cache.set("a", "spoiled", 0)
        assert await stores.cache.get("a") is None
        job = await stores.dedupe.register_or_join("a")
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.dedupe.complete("a", "spoiled", job_id=job.job_id)
        assert await stores.dedupe.extend("a", job.job_id)

    sharing.run(scenario, codec=Spoiled(given), lease=60.0)


def test_a_codec_may_give_a_bytearray_or_nothing(sharing: Engine) -> None:
    """Both are bytes."""

    class Loose:
        def encode(self, value: Any, /) -> Any:
            return bytearray(value.encode())

        def decode(self, data: bytes, /) -> Any:
            assert isinstance(data, bytes)
            return data.decode()

    async def scenario(stores: Any) -> None:
        job = await stores.dedupe.register_or_join("a")
        for value in ("text", ""):
            await stores.cache.set("a", value, 0, tags=("t",))
            assert await stores.cache.get("a") == value
        await stores.dedupe.complete("a", "", job_id=job.job_id)
        assert await stores.dedupe.wait_for("a", job_id=job.job_id) == ""

    sharing.run(scenario, codec=Loose(), lease=60.0)


def test_a_negative_ttl_takes_the_old_value_and_its_tags_away(engine: Engine) -> None:
    """However close to zero it is; and zero in any type is for ever."""

    async def scenario(stores: Any) -> None:
        for ttl in (-1, -1e-9, -1e300, -5e-324):
            await stores.cache.set("a", "old", 0, tags=("t",))
            await stores.cache.set("a", "new", ttl, tags=("u",))
            assert await stores.cache.get("a") is None
            assert await stores.cache.invalidate_tags(["t", "u"]) == 0
            assert await stores.cache.list_entries() == []
        for ttl in (0, 0.0, -0.0):
            await stores.cache.set("a", "new", ttl)
            assert (await stores.cache.list_entries())[0].expires_at == 0.0
            assert await stores.cache.get("a") == "new"
        for ttl in (1e15, 1e300, 10**20):
            await stores.cache.set("a", ttl, ttl)
            assert await stores.cache.get("a") == ttl

    engine.run(scenario)


def test_tags_are_replaced_in_one_step(engine: Engine) -> None:
    """Nobody finds a new value under its old tags, or without any."""

    async def scenario(stores: Any) -> None:
        cache = stores.cache
        await cache.set("a", 1, 0, tags=["x", "y", "x", "x"])
        await cache.set("a", 2, 0, tags=iter(["y", "z"]))
        assert await cache.invalidate_tag("x") == 0
        assert await cache.get("a") == 2
        assert await cache.invalidate_tags(tag for tag in ("x", "y", "z", "y")) == 1
        await cache.set("a", 3, 0, tags=("x",))
        await cache.set("a", 4, 0)
        assert await cache.invalidate_tags(["x", "y", "z"]) == 0
        assert await cache.get("a") == 4
        # A tag is a text like any other.
        odd = ["*", "[a]", "%", "_", "é☃🎉", "\0", '"', "\\", "a" * 300, " "]
        await cache.set("a", 5, 0, tags=odd)
        for tag in odd:
            await cache.set("b", 6, 0, tags=(tag,))
            await cache.set("c", 7, 0, tags=(tag + "x",))
            assert await cache.invalidate_tag(tag) == 1 + (tag == odd[0])
            assert await cache.get("c") == 7
        assert await cache.get("a") is None

    engine.run(scenario)


@pytest.mark.parametrize("scope", ["c_t:", "A:", "%", "*", "[ab]", "\\", "é", "🎉", "\0", "a", "a:", "?"])
def test_a_scope_is_an_exact_prefix(engine: Engine, scope: str) -> None:
    """Nothing in it is special, in any of the stores; a key that the scope is longer than stays."""
    others = ["cat:1", "a1", "b", "x" + scope, scope[:-1] or "q", scope.swapcase() + "1", "e\u0301"]
    keys = [scope, scope + "1", scope + scope] + [key for key in others if not key.startswith(scope)]
    stay = sorted({key for key in keys if not key.startswith(scope)})

    async def scenario(stores: Any) -> None:
        settled: dict[str, str] = {}
        for key in keys:
            await stores.cache.set(key, 1, 0)
            await stores.rate_limit.record(key)
            await stores.adaptive.record(key)
            await stores.rate_limit.set_cooldown(key, 9e10)
            settled[key] = await stores.dedupe.register(key)
            await stores.dedupe.complete(key, key)
            await stores.dedupe.register(key)
        for store in (stores.cache, stores.rate_limit, stores.adaptive, stores.dedupe):
            await store.clear(scope)
        assert sorted(entry.hash for entry in await stores.cache.list_entries()) == stay
        for limits in (stores.rate_limit, stores.adaptive):
            assert [info.resource for info in await limits.list_resources()] == stay
        for key in keys:
            outcome = key if key in stay else None
            assert await stores.dedupe.wait_for(key, job_id=settled[key]) == outcome
            assert await stores.dedupe.is_in_progress(key) == (key in stay)
            assert await stores.rate_limit.get_cooldown(key) == (9e10 if key in stay else None)
        await stores.cache.clear("")
        assert await stores.cache.list_entries() == []

    engine.run(scenario, lease=60.0)


def test_entries_are_listed_as_they_were_stored(engine: Engine) -> None:
    """In that order, in pages, with sizes where they are measured, without what has expired."""

    async def scenario(stores: Any) -> None:
        for key in "cabed":
            await stores.cache.set(key, FIVE, 0)
        await stores.cache.set("x", FIVE, -1)
        await stores.cache.set("a", FIVE, 1000.0)
        pages = [await stores.cache.list_entries(offset, 2) for offset in (0, 2, 4, 6)]
        assert [[entry.hash for entry in page] for page in pages] == [["c", "b"], ["e", "d"], ["a"], []]
        assert await stores.cache.list_entries(0, 0) == []
        assert {entry.size for page in pages for entry in page} == {None if engine.kind == "memory" else 5}
        last = pages[2][0]
        assert 990 < last.expires_at - last.created_at <= 1000.01
        assert pages[0][0].expires_at == 0.0
        stats = await stores.cache.get_stats()
        assert (stats.total_items, stats.total_bytes) == (5, None if engine.kind == "memory" else 25)

    engine.run(scenario)


def test_cleaning_up_counts_what_has_expired(local: Engine) -> None:
    """Until then it is counted as expired, and served to nobody."""

    async def scenario(stores: Any) -> None:
        for key in "abc":
            await stores.cache.set(key, key, local.unit, tags=("t",))
        await stores.cache.set("d", "d", 0, tags=("t",))
        await local.pass_by(local.unit)
        stats = await stores.cache.get_stats()
        assert (stats.total_items, stats.expired) == (4, 3)
        assert [entry.hash for entry in await stores.cache.list_entries()] == ["d"]
        assert await stores.cache.cleanup() == 3
        assert await stores.cache.cleanup() == 0
        stats = await stores.cache.get_stats()
        assert (stats.total_items, stats.expired) == (1, 0)
        assert await stores.cache.invalidate_tag("t") == 1

    local.run(scenario)


def test_expired_entries_do_not_count_as_invalidated(engine: Engine) -> None:
    """At their deadline they are gone for every method."""

    async def scenario(stores: Any) -> None:
        await stores.cache.set("a", 1, engine.unit, tags=("t", "u"))
        await stores.cache.set("b", 1, 0, tags=("t",))
        await engine.pass_by(engine.unit)
        assert await stores.cache.invalidate_tags(["u", "t"]) == 1
        assert await stores.cache.get("a") is None

    engine.run(scenario)
