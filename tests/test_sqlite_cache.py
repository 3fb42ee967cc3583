"""The cache of the SQLite engine beyond the contract: limits, clocks, rows that cannot be read, listings, cleaning."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings, strategies as st

from trio_renew._errors import StoreError
from trio_renew.stores import _sqlite_cache
from trio_renew.stores._common import CacheEntryInfo, CacheStats
from trio_renew.stores.sqlite import open_sqlite_stores

if TYPE_CHECKING:
    from pathlib import Path


class Hands:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def raw(path: Path, *statements: str) -> list[Any]:
    rows: list[Any] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


async def keys(cache: Any) -> list[str]:
    return [entry.hash for entry in await cache.list_entries()]


# --------------------------------------------------------------------------------------------------------------- limits


async def test_beyond_max_items_the_longest_stored_go(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", max_items=3) as stores:
        for key in "abc":
            await stores.cache.set(key, 1, 0, tags=[key])
        await stores.cache.get("a")
        await stores.cache.set("b", 2, 0)
        assert await keys(stores.cache) == ["a", "c", "b"]
        await stores.cache.set("d", 1, 0)
        assert await keys(stores.cache) == ["c", "b", "d"]
        assert await stores.cache.invalidate_tag("a") == 0


async def test_expired_entries_go_before_live_ones(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", max_items=2, clock=clock) as stores:
        await stores.cache.set("a", 1, 60)
        await stores.cache.set("b", 1, 5)
        clock.now += 5
        await stores.cache.set("c", 1, 60)
        assert await keys(stores.cache) == ["a", "c"]
        assert raw(tmp_path / "s.db", "SELECT hash FROM renew_cache ORDER BY id") == [("a",), ("c",)]


async def test_max_total_bytes_always_holds(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", max_total_bytes=30) as stores:
        for number in range(10):
            await stores.cache.set(f"k{number}", "x" * (number + 1), 0)
            stats = await stores.cache.get_stats()
            assert stats.total_bytes is not None
            assert stats.total_bytes <= 30
        assert await keys(stores.cache) == ["k8", "k9"]
        await stores.cache.set("big", "x" * 28, 0)
        assert await keys(stores.cache) == ["big"]


@pytest.mark.parametrize("limit", ["max_entry_size_bytes", "max_total_bytes"])
async def test_a_value_that_is_too_large_leaves_nothing(tmp_path: Path, limit: str) -> None:
    async with open_sqlite_stores(tmp_path / "s.db", **{limit: 12}) as stores:  # type: ignore[arg-type]
        await stores.cache.set("a", "x" * 10, 0, tags=["t"])
        with pytest.raises(StoreError, match=f"13 bytes, more than {limit}=12"):
            await stores.cache.set("a", "x" * 11, 0, tags=["t"])
        assert await stores.cache.get("a") is None
        assert await stores.cache.invalidate_tag("t") == 0


async def test_bounds_count_one_prefix(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path, prefix="a", max_items=1) as one, open_sqlite_stores(path, prefix="b") as two:
        await two.cache.set("x", 1, 0)
        await one.cache.set("x", 1, 0)
        await one.cache.set("y", 1, 0)
        assert await keys(two.cache) == ["x"]
        assert await keys(one.cache) == ["y"]


async def test_a_file_beyond_a_new_bound_is_brought_within_it(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        for number in range(10):
            await stores.cache.set(f"k{number}", 1, 0)
    async with open_sqlite_stores(tmp_path / "s.db", max_items=2) as stores:
        await stores.cache.set("new", 1, 0)
        assert await keys(stores.cache) == ["k9", "new"]


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
async def test_a_value_that_cannot_be_encoded_leaves_nothing(tmp_path: Path, value: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.cache.set("a", 1, 0, tags=["t"])
        with pytest.raises(StoreError, match="cannot encode the value of 'a'") as caught:
            await stores.cache.set("a", value, 0)
        assert caught.value.__cause__ is not None
        assert await stores.cache.get("a") is None
        assert await stores.cache.invalidate_tag("t") == 0


async def test_a_codec_must_give_bytes(tmp_path: Path) -> None:
    class Odd:
        def encode(self, value: Any) -> Any:
            return 5 if value == "bad" else bytearray(json.dumps(value).encode())

        def decode(self, data: bytes) -> Any:
            return json.loads(data)

    async with open_sqlite_stores(tmp_path / "s.db", codec=Odd()) as stores:
        await stores.cache.set("a", "good", 0)
        assert await stores.cache.get("a") == "good"
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.cache.set("a", "bad", 0)
        job = await stores.dedupe.register("j")
        with pytest.raises(StoreError, match="cannot encode"):
            await stores.dedupe.complete("j", "bad")
        assert await stores.dedupe.extend("j", job)


async def test_a_row_that_cannot_be_decoded_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 0, tags=["t"])
        raw(path, "UPDATE renew_cache SET value = x'00ff'")
        assert await stores.cache.get("a") is None
        assert raw(path, "SELECT * FROM renew_cache") == raw(path, "SELECT * FROM renew_tags") == []


async def test_values_are_copies(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        value = [1]
        await stores.cache.set("a", value, 0)
        value.append(2)
        found = await stores.cache.get("a")
        assert found == [1]
        found.append(3)
        assert await stores.cache.get("a") == [1]


async def test_a_large_value(tmp_path: Path) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await stores.cache.set("a", "ü" * 1_000_000, 60)
        assert await stores.cache.get("a") == "ü" * 1_000_000


async def test_two_bundles_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as one, open_sqlite_stores(path) as two:
        await one.cache.set("a", 1, 60, tags=["t"])
        assert await two.cache.get("a") == 1
        await two.cache.set("a", 2, 60)
        assert await one.cache.get("a") == 2
        assert await one.cache.invalidate_tag("t") == 0


async def test_a_prefix_is_exact_whatever_it_contains(tmp_path: Path) -> None:
    names = ["a\0b", "a\0c", "a", "ab", "A\0b", "\U0010ffff", "\U0010ffffx", "%", "_", "ü", "üx", "u"]
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        for scope in ("a\0", "\U0010ffff", "%", "_", "ü", "a"):
            for name in names:
                await stores.cache.set(name, 1, 0)
                await stores.dedupe.register(name)
                await stores.rate_limit.record(name)
            await stores.cache.clear(scope)
            await stores.dedupe.clear(scope)
            await stores.rate_limit.clear(scope)
            left = {name for name in names if not name.startswith(scope)}
            assert set(await keys(stores.cache)) == left
            assert {job.hash for job in await stores.dedupe.list_jobs()} == left
            assert {info.resource for info in await stores.rate_limit.list_resources()} == left


# --------------------------------------------------------------------------------------------------------------- clocks


async def test_an_entry_is_good_while_now_is_before_its_deadline(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        await stores.cache.set("a", 1, 60, tags=["t"])
        await stores.cache.set("b", 1, 60, tags=["t"])
        clock.now = 1059.999
        assert await stores.cache.get("a") == 1
        assert len(await keys(stores.cache)) == 2
        clock.now = 1060.0
        assert await stores.cache.get("a") is None
        assert raw(tmp_path / "s.db", "SELECT hash FROM renew_cache") == [("b",)]
        assert await keys(stores.cache) == []
        assert await stores.cache.get_stats() == CacheStats(1, 1, 1)
        assert await stores.cache.invalidate_tag("t") == 0
        assert await stores.cache.get_stats() == CacheStats(0, 0, 0)


async def test_what_seems_to_come_from_the_future_is_dated_now(tmp_path: Path) -> None:
    clock = Hands(5000.0)
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock) as stores:
        for key in "abcd":
            await stores.cache.set(key, 1, 60, tags=[key])
        await stores.cache.set("e", 1, 0)
        clock.now = 1000.0
        assert await stores.cache.get("a") == 1
        assert (await stores.cache.list_entries())[0] == CacheEntryInfo("a", 1060.0, created_at=1000.0, size=1)
        clock.now = 1060.0
        assert await keys(stores.cache) == ["e"]
        await stores.cache.set("a", 1, 60, tags=["a"])
        clock.now = 500.0
        assert await stores.cache.invalidate_tags(["a"]) == 1


async def test_any_look_dates_what_comes_from_the_future(tmp_path: Path) -> None:
    for look in ("list_entries", "get_stats", "cleanup"):
        clock = Hands(5000.0)
        async with open_sqlite_stores(tmp_path / f"{look}.db", clock=clock) as stores:
            await stores.cache.set("a", 1, 60)
            clock.now = 1000.0
            await getattr(stores.cache, look)()
            clock.now = 1060.0
            assert await stores.cache.get("a") is None


async def test_under_a_test_clock_time_is_exact(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_sqlite_stores(tmp_path / "s.db") as stores:
        await trio.sleep(0.1)
        for ttl in (0.05, 0.3, 0.7, 1.1, 800.0):
            await stores.cache.set("a", 1, ttl)
            await trio.sleep(ttl * 0.99)
            assert await stores.cache.get("a") == 1
            await trio.sleep(ttl - ttl * 0.99)
            assert await stores.cache.get("a") is None


# ----------------------------------------------------------------------------------------------------------- for people


async def test_listing(tmp_path: Path) -> None:
    clock = Hands()
    async with open_sqlite_stores(tmp_path / "s.db", clock=clock, max_items=10, max_total_bytes=100) as stores:
        assert await stores.cache.list_entries() == []
        assert await stores.cache.get_stats() == CacheStats(0, 0, 0, 10, 100)
        for number in range(5):
            await stores.cache.set(f"k{number}", number, number * 10)
        await stores.cache.set("gone", 1, -1)
        pages = [[entry.hash for entry in await stores.cache.list_entries(start, 2)] for start in (0, 2, 4, 6)]
        assert pages == [["k0", "k1"], ["k2", "k3"], ["k4"], []]
        assert (await stores.cache.list_entries(0, 2)) == [
            CacheEntryInfo("k0", 0.0, created_at=1000.0, size=1),
            CacheEntryInfo("k1", 1010.0, created_at=1000.0, size=1),
        ]
        clock.now += 20
        stats = await stores.cache.get_stats()
        assert (stats.total_items, stats.expired, stats.item_utilization) == (5, 2, 0.5)
        assert await stores.cache.cleanup() == 2
        assert await stores.cache.cleanup() == 0
        assert await keys(stores.cache) == ["k0", "k3", "k4"]
        for bad in (-1, 1.5, True):
            with pytest.raises((TypeError, ValueError), match="offset"):
                await stores.cache.list_entries(bad)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- cleaning


async def test_what_has_expired_goes_within_a_minute_untouched(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path, lease=5) as stores:
        await stores.cache.set("a", 1, 30, tags=["t"])
        await stores.cache.set("b", 1, 1000)
        await stores.cache.set("c", 1, 0)
        await stores.dedupe.register("j")
        await stores.rate_limit.set_cooldown("r", trio_now := (await stores.rate_limit.get_status("r")).reset_at + 20)
        assert trio_now
        await trio.sleep(90)
        assert raw(path, "SELECT hash FROM renew_cache ORDER BY id") == [("b",), ("c",)]
        assert raw(path, "SELECT * FROM renew_tags") == []
        assert raw(path, "SELECT * FROM renew_jobs") == raw(path, "SELECT * FROM renew_cooldowns") == []
        await trio.sleep(1000)
        assert raw(path, "SELECT hash FROM renew_cache") == [("c",)]
        # Nothing ends any more: a year passes without a look.
        await trio.sleep(365 * 86400)


async def test_many_expired_entries_go_in_several_steps(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_cache, "AT_ONCE", 10)
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        for number in range(35):
            await stores.cache.set(f"k{number}", 1, 30)
        await trio.sleep(31)
        assert await stores.cache.cleanup() == 35
        for number in range(35):
            await stores.cache.set(f"k{number}", 1, 30)
        await trio.sleep(95)
        assert raw(path, "SELECT COUNT(*) FROM renew_cache") == [(0,)]


async def test_cleaning_survives_a_file_that_cannot_be_used(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "s.db"
    async with open_sqlite_stores(path) as stores:
        await stores.cache.set("a", 1, 30)
        raw(path, "PRAGMA user_version = 99")
        path.rename(tmp_path / "moved.db")
        (tmp_path / "s.db").write_bytes(b"no database at all" * 100)
        await trio.sleep(120)
        path.unlink()
        await stores.cache.set("a", 1, 30)
        await trio.sleep(120)
        assert raw(path, "SELECT hash FROM renew_cache") == []


# ---------------------------------------------------------------------------------------------------------------- model

KEYS = st.sampled_from(["a", "ab", "b", "a:1", "A"])
TAGS = st.lists(st.sampled_from(["t", "u", "v"]), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 99), st.sampled_from([-1.0, 0.0, 5.0, 20.0]), TAGS),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("clear"), st.sampled_from([None, "a", "A", "b", "x"])),
        st.tuples(st.just("tags"), TAGS),
        st.tuples(st.just("sleep"), st.sampled_from([1.0, 4.0, 5.0, 61.0])),
        st.tuples(st.just("cleanup")),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


class Model:
    """What a cache with at most three items is: a dict in the order of storing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.items: dict[str, tuple[int, float | None, set[str]]] = {}

    def live(self) -> dict[str, tuple[int, float | None, set[str]]]:
        return {key: item for key, item in self.items.items() if item[1] is None or self.now < item[1]}

    def drop(self, which: Any) -> int:
        gone = [key for key in self.live() if which(key)]
        self.items = {key: item for key, item in self.live().items() if key not in gone}
        return len(gone)

    def set(self, key: str, value: int, ttl: float, tags: list[str]) -> None:
        self.items.pop(key, None)
        if ttl >= 0:
            self.items[key] = (value, self.now + ttl if ttl else None, set(tags))
        if len(self.items) > 3:
            self.items = self.live()
        while len(self.items) > 3:
            self.items.pop(next(iter(self.items)))


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_it_is_a_dict(steps: list[Any]) -> None:
    async def main() -> None:
        model = Model()
        with TemporaryDirectory() as folder:
            todo = list(steps)
            while todo is not None:
                async with open_sqlite_stores(f"{folder}/s.db", max_items=3) as stores:
                    todo = await until_reopened(stores.cache, model, todo)

    async def until_reopened(cache: Any, model: Model, steps: list[Any]) -> Any:
        for number, step in enumerate(steps):
            match step:
                case ("set", key, value, ttl, tags):
                    await cache.set(key, value, ttl, tags=tags)
                    model.set(key, value, ttl, tags)
                case ("get", key):
                    assert await cache.get(key) == model.live().get(key, (None,))[0]
                case ("delete", key):
                    await cache.delete(key)
                    model.drop(lambda other, key=key: other == key)
                case ("clear", scope):
                    await cache.clear(scope)
                    model.drop(lambda key, scope=scope: key.startswith(scope or ""))
                case ("tags", tags):
                    count = model.drop(lambda key, tags=tags: model.items[key][2] & set(tags))
                    assert await cache.invalidate_tags(tags) == count
                case ("sleep", seconds):
                    await trio.sleep(seconds)
                    model.now += seconds
                case ("cleanup",):
                    await cache.cleanup()
                case _:
                    return steps[number + 1 :]
            assert [entry.hash for entry in await cache.list_entries()] == list(model.live())
        return None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
