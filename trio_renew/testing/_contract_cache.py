"""The contract of a cache store."""

from __future__ import annotations

from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any

import trio

from ._contracts import Contract, all_at_once, cancelled_call, expect, expect_equal, refuses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("CacheStoreContract",)


class CacheStoreContract(Contract):
    """What a :class:`~trio_renew.abc.CacheStore` must do. Each ``open_store`` opens an empty one.

    The values are what JSON can carry; define ``make_value(self, number)`` for a store of something else. Set
    ``virtual = True`` when the store lives by Trio's clock: then times to live are checked to the instant.

    Example::

        class TestMyCache(CacheStoreContract):
            @asynccontextmanager
            async def open_store(self):
                yield MyCache()

        check_contract(TestMyCache)  # or let pytest run the class
    """

    async def test_an_unknown_key_gives_none(self) -> None:
        """Nothing is stored: None, and nothing to delete."""
        async with self.open_store() as cache:
            expect_equal(await cache.get("unknown"), None, "get() of an unknown key gives None")
            await cache.delete("unknown")

    async def test_what_was_set_is_there(self) -> None:
        """Read your writes, each key for itself, the last value of each."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0)
            await cache.set("b", self.make_value(2), 60.0)
            await cache.set("a", self.make_value(3), 60.0)
            for _ in range(2):
                expect_equal(await cache.get("a"), self.make_value(3), "get() gives what was set last")
                expect_equal(await cache.get("b"), self.make_value(2), "another key keeps its value")

    async def test_falsy_values_are_values(self) -> None:
        """Whatever is not None comes back as it is."""
        if type(self).make_value is not Contract.make_value:
            return  # noqa: ASYNC910 - nothing to test
        values: list[Any] = ["text", "", 7, 0, 1.5, True, False, [1, [2]], [], {"a": {"b": 1}}, {}, "漢字 é 🎉"]
        async with self.open_store() as cache:
            for number, value in enumerate(values):
                await cache.set(f"k{number}", value, 60.0)
            for number, value in enumerate(values):
                expect_equal(await cache.get(f"k{number}"), value, "a value comes back as it was")

    async def test_none_is_refused(self) -> None:
        """None is no value, and refusing it changes nothing."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0)
            expect(await _refused(partial(cache.set, "a", None, 60.0), TypeError), "set() of None is a TypeError")
            expect_equal(await cache.get("a"), self.make_value(1), "a refused set() changes nothing")

    async def test_bad_arguments_change_nothing(self) -> None:
        """What is refused has not half happened."""
        bad: list[tuple[Any, Any]] = [(ttl, ()) for ttl in (nan, inf, -inf, "60")]
        bad += [(60.0, tags) for tags in ("tag", [""], [1])]
        async with self.open_store() as cache:
            for number, (ttl, tags) in enumerate(bad):
                key = f"k{number}"
                await cache.set(key, self.make_value(1), 60.0, tags=[f"old{number}"])
                if await _refused(partial(cache.set, key, self.make_value(2), ttl, tags=tags), TypeError, ValueError):
                    expect_equal(await cache.get(key), self.make_value(1), "a refused set() changes nothing")
                    expect_equal(await cache.invalidate_tag(f"old{number}"), 1, "a refused set() leaves the tags")

    async def test_deleted_is_gone(self) -> None:
        """Delete takes one key."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0)
            await cache.set("ab", self.make_value(2), 60.0)
            expect_equal(await cache.get("a"), self.make_value(1), "get() gives what was set")
            await cache.delete("a")
            expect_equal(await cache.get("a"), None, "a deleted key is gone")
            expect_equal(await cache.get("ab"), self.make_value(2), "delete() leaves other keys")
            await cache.set("a", self.make_value(3), 60.0)
            expect_equal(await cache.get("a"), self.make_value(3), "a deleted key takes a new value")

    async def test_clear_takes_everything(self) -> None:
        """Without a scope nothing is left."""
        async with self.open_store() as cache:
            for number in range(5):
                await cache.set(f"k{number}", self.make_value(number), 0.0)
                expect_equal(await cache.get(f"k{number}"), self.make_value(number), "get() gives what was set")
            await cache.clear()
            found = [await cache.get(f"k{number}") for number in range(5)]
            expect_equal(found, [None] * 5, "clear() forgets everything")

    async def test_clear_takes_exactly_a_prefix(self) -> None:
        """A scope is a prefix: no pattern, and case matters."""
        keys = ["A:1", "a:1", "A:2", "c_t:1", "cat:1", "c%:1", "c:1", "b*:1", "bx:1", "[x]:1", "x:1", "é:1", "1A:1"]
        for scope in ("A:", "c_t:", "c%", "b*", "[x]", "é", "nothing", "\\", "A", ""):
            async with self.open_store() as cache:
                for key in keys:
                    await cache.set(key, self.make_value(1), 60.0)
                await cache.clear(scope)
                left = [key for key in keys if await cache.get(key) is not None]
                wanted = [key for key in keys if not key.startswith(scope)]
                expect_equal(left, wanted, f"clear({scope!r}) forgets exactly the keys that start with it")

    async def test_a_value_lives_for_its_ttl(self) -> None:
        """Good while less than the ttl has passed, and not at the ttl."""
        ttl = 5.0 if self.exact else 0.5
        async with self.open_store() as cache:
            started = trio.current_time()
            await cache.set("a", self.make_value(1), ttl)
            await trio.sleep(ttl * 0.75)
            found = await cache.get("a")
            slow = trio.current_time() - started >= ttl
            expect(found == self.make_value(1) or slow, "an entry is good while less than its ttl has passed")
            await self.pass_by(ttl - ttl * 0.75)
            expect_equal(await cache.get("a"), None, "an entry has expired when its ttl has passed")

    async def test_ttl_zero_is_for_ever(self) -> None:
        """0 never expires, below 0 has expired at once and takes the old value with it."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 0)
            await cache.set("b", self.make_value(2), 60.0)
            await cache.set("b", self.make_value(3), -1)
            expect_equal(await cache.get("b"), None, "a ttl below 0 has expired at once")
            await trio.sleep(1e6 if self.exact else 0.05)
            expect_equal(await cache.get("a"), self.make_value(1), "a ttl of 0 never expires")

    async def test_a_new_value_has_a_ttl_of_its_own(self) -> None:
        """The ttl of what was there before means nothing."""
        ttl = 5.0 if self.exact else 0.2
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), ttl)
            await cache.set("a", self.make_value(2), 3600.0)
            await cache.set("b", self.make_value(1), 3600.0)
            await cache.set("b", self.make_value(2), ttl)
            await self.pass_by(ttl)
            expect_equal(await cache.get("a"), self.make_value(2), "a longer ttl replaces a shorter one")
            expect_equal(await cache.get("b"), None, "a shorter ttl replaces a longer one")

    async def test_tags_invalidate(self) -> None:
        """A tag takes what carries it, and says how much that was."""
        async with self.open_store() as cache:
            for key, tags in (("u1", ["users"]), ("u2", ("users", "new")), ("o", ["other", "users2"]), ("n", [])):
                await cache.set(key, self.make_value(1), 60.0, tags=tags)
            expect_equal(await cache.invalidate_tag("unknown"), 0, "an unknown tag counts 0")
            expect_equal(await cache.invalidate_tag("users"), 2, "a tag counts what carries it")
            left = [key for key in ("u1", "u2", "o", "n") if await cache.get(key) is not None]
            expect_equal(left, ["o", "n"], "a tag takes what carries it and nothing else")
            expect_equal(await cache.invalidate_tag("users"), 0, "what is gone is not counted again")
            expect_equal(await cache.invalidate_tag("new"), 0, "an entry that is gone has no tags")

    async def test_several_tags_count_each_entry_once(self) -> None:
        """invalidate_tags takes the union."""
        async with self.open_store() as cache:
            for key, tags in (("a", ["x", "y"]), ("b", ["y"]), ("c", ["z"]), ("d", ["x", "x"])):
                await cache.set(key, self.make_value(1), 60.0, tags=tags)
            expect_equal(await cache.invalidate_tags([]), 0, "no tag takes nothing")
            expect_equal(await cache.invalidate_tags(["unknown", "x", "y", "x"]), 3, "each entry counts once")
            left = [key for key in ("a", "b", "c", "d") if await cache.get(key) is not None]
            expect_equal(left, ["c"], "the tags take what carries any of them and nothing else")

    async def test_tags_are_replaced_with_the_value(self) -> None:
        """A new value has the tags that it came with, and no others."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0, tags=["old"])
            await cache.set("a", self.make_value(2), 60.0, tags=["new"])
            await cache.set("b", self.make_value(1), 60.0, tags=["old"])
            await cache.set("b", self.make_value(2), 60.0)
            expect_equal(await cache.invalidate_tag("old"), 0, "an old tag does not count a newer value")
            expect_equal(await cache.get("a"), self.make_value(2), "an old tag does not take a newer value")
            expect_equal(await cache.get("b"), self.make_value(2), "set() without tags drops the old ones")
            expect_equal(await cache.invalidate_tag("new"), 1, "the new tag takes it")

    async def test_tags_end_with_their_entry(self) -> None:
        """Deleted, cleared and expired entries are not counted, and their tags do not take what comes after them."""
        ttl = 5.0 if self.exact else 0.1
        async with self.open_store() as cache:
            keys = ["deleted", "scope:cleared", "expired", "gone", "read"]
            for key in keys:
                await cache.set(key, self.make_value(1), ttl if key in ("expired", "read") else 60.0, tags=["t"])
            await cache.delete("deleted")
            await cache.clear("scope:")
            await cache.set("gone", self.make_value(1), -1, tags=["t"])
            await self.pass_by(ttl)
            expect_equal(await cache.get("read"), None, "an entry has expired when its ttl has passed")
            expect_equal(await cache.invalidate_tag("t"), 0, "a tag counts live entries only")
            for key in keys:
                await cache.set(key, self.make_value(2), 60.0)
            expect_equal(await cache.invalidate_tag("t"), 0, "the tags of what is gone do not count what comes after")
            left = [key for key in keys if await cache.get(key) is not None]
            expect_equal(left, keys, "the tags of what is gone do not take what comes after it")

    async def test_any_text_is_a_key(self) -> None:
        """Keys and tags are texts of any kind."""
        keys = ["漢字", "é", "e\u0301", "🎉", "a b", "a'b\"c", "k\n", "0", "a" * 300, "a" * 299 + "b"]
        async with self.open_store() as cache:
            for number, key in enumerate(keys):
                await cache.set(key, self.make_value(number), 60.0, tags=[key])
            for number, key in enumerate(keys):
                expect_equal(await cache.get(key), self.make_value(number), f"{key!r} is a key of its own")
                expect_equal(await cache.invalidate_tag(key), 1, f"{key!r} is a tag of its own")

    async def test_many_at_once(self) -> None:
        """Tasks do not disturb one another."""
        async with self.open_store() as cache:

            async def set_and_get(number: int) -> Any:
                await cache.set(f"k{number}", self.make_value(number), 60.0, tags=["all"])
                return await cache.get(f"k{number}")

            found = await all_at_once(set_and_get, 30)
            expect_equal(found, [self.make_value(number) for number in range(30)], "each task finds its own value")
            expect_equal(await cache.invalidate_tag("all"), 30, "each entry is counted")

    async def test_a_cancelled_set_happened_wholly_or_not_at_all(self) -> None:
        """Cancelled, the old value with its tags is there, or the new one with its own."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0, tags=["old"])
            done = await cancelled_call(lambda: cache.set("a", self.make_value(2), 60.0, tags=["new"]))
            found = await cache.get("a")
            counts = (await cache.invalidate_tag("old"), await cache.invalidate_tag("new"))
            expect(
                (found == self.make_value(2) and counts == (0, 1))
                or (not done and found == self.make_value(1) and counts == (1, 0)),
                f"a set() that was cancelled happened wholly or not at all; found {found!r}, tags {counts}",
            )

    async def test_a_cancelled_removal_happened_wholly_or_not_at_all(self) -> None:  # noqa: ASYNC910 - there are removals
        """Cancelled, all that it takes is gone or nothing of it, and what is left has its tags."""
        tags = {"s:1": ["x"], "s:2": ["x", "y"], "s:3": ["y"], "t:1": ["x", "y"], "t:2": ["z"]}
        removals: dict[str, tuple[Callable[[Any], Awaitable[object]], set[str]]] = {
            "delete()": (lambda cache: cache.delete("s:2"), {"s:2"}),
            "clear(scope)": (lambda cache: cache.clear("s:"), {"s:1", "s:2", "s:3"}),
            "clear()": (lambda cache: cache.clear(), set(tags)),
            "invalidate_tag()": (lambda cache: cache.invalidate_tag("x"), {"s:1", "s:2", "t:1"}),
            "invalidate_tags()": (lambda cache: cache.invalidate_tags(["x", "y"]), {"s:1", "s:2", "s:3", "t:1"}),
        }
        for name, (remove, taken) in removals.items():
            async with self.open_store() as cache:
                for key in tags:
                    await cache.set(key, self.make_value(1), 60.0, tags=tags[key])
                done = await cancelled_call(partial(remove, cache))
                left = {key for key in tags if await cache.get(key) is not None}
                expect(
                    left == set(tags) - taken or (not done and left == set(tags)),
                    f"a {name} that was cancelled takes all or nothing; left is {sorted(left)}",
                )
                counted = await cache.invalidate_tags(["x", "y", "z"])
                expect_equal(counted, len(left), f"after a {name} that was cancelled what is left has its tags")

    async def test_what_cannot_be_stored_leaves_nothing_old(self) -> None:
        """A value that the store refuses as a StoreError was meant to replace the old one: that is gone."""
        async with self.open_store() as cache:
            await cache.set("a", self.make_value(1), 60.0, tags=["old"])
            if await refuses(partial(cache.set, "a", object(), 60.0, tags=["new"])):
                expect_equal(await cache.get("a"), None, "what a refused value was to replace is gone")
                counts = (await cache.invalidate_tag("old"), await cache.invalidate_tag("new"))
                expect_equal(counts, (0, 0), "a value that was refused leaves no tags")


async def _refused(function: Callable[[], Awaitable[object]], *errors: type[Exception]) -> bool:
    try:
        await function()
    except errors:
        return True  # noqa: ASYNC910 - the store's own
    return False
