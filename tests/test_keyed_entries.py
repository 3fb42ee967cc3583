"""The lean store under the cache, against a simple one; without a clock and without Trio."""

from __future__ import annotations

import gc
import random
import weakref
from math import inf
from typing import Any

import pytest

from trio_renew._keyed._entries import SIZE, Entries


class Simple:
    """The same, as slow and as plain as can be."""

    def __init__(self, max_entries: int, grace: float) -> None:
        self.max_entries = max_entries
        self.grace = grace
        self.entries: dict[Any, tuple[Any, float, float, tuple[str, ...]]] = {}

    def store(self, key: Any, value: Any, now: float, life: float, tags: tuple[str, ...]) -> None:
        self.entries.pop(key, None)
        while len(self.entries) >= self.max_entries:
            expired = [each for each in self.entries if self.deadline(each) <= now]
            if expired and self.grace:
                del self.entries[min(expired, key=self.deadline)]
            elif expired:
                for each in expired:
                    del self.entries[each]
            else:
                del self.entries[next(iter(self.entries))]
        self.entries[key] = (value, now, life, tags)

    def deadline(self, key: Any) -> float:
        _, stored, life, _ = self.entries[key]
        return stored + life

    def live(self, now: float) -> dict[Any, Any]:
        return {key: entry[0] for key, entry in self.entries.items() if now < self.deadline(key)}

    def use(self, key: Any) -> None:
        self.entries[key] = self.entries.pop(key)

    def drop_tag(self, tag: str, now: float) -> int:
        live = self.live(now)
        gone = [key for key, entry in self.entries.items() if tag in entry[3]]
        for key in gone:
            del self.entries[key]
        return sum(key in live for key in gone)

    def limit(self, life: float) -> None:
        self.entries = {
            key: (value, stored, min(had, life), tags) for key, (value, stored, had, tags) in self.entries.items()
        }


def live(entries: Entries[Any, Any], now: float) -> dict[Any, Any]:
    return {key: entry.value for key, entry in entries.map.items() if now < entry.deadline}


def check_invariants(entries: Entries[Any, Any], now: float) -> None:
    heap = entries._heap
    chunks = {id(item[2]): item for item in heap if item[1] == item[2].ticket and item[2].live}
    listed = 0
    for item in chunks.values():
        soonest, _, chunk = item
        assert soonest == chunk.soonest
        assert len(chunk.keys) <= SIZE
        assert chunk is entries._open or chunk.live >= SIZE // 4
        inside = entries._entries_of(chunk)
        assert len(inside) == chunk.live
        listed += len(inside)
        assert all(chunk.soonest <= entry.deadline <= chunk.latest for entry in inside.values())
    assert listed == sum(entry.deadline < inf for entry in entries.map.values())
    assert len(heap) <= 4 * len(entries.map) // SIZE * 4 + 200
    assert entries.count(now) == len(live(entries, now))


@pytest.mark.parametrize("seed", range(12))
def test_it_behaves_like_the_simple_one(seed: int) -> None:
    chance = random.Random(seed)
    max_entries = chance.choice((3, 40, 3000))
    grace = chance.choice((0.0, 5.0, 300.0))
    entries: Entries[int, int] = Entries(max_entries, grace, chance.choice((None, 0.5)))
    simple = Simple(max_entries, grace)
    now = 0.0
    lives = chance.choice(((10.0,), (1.0, 10.0, 100.0), (50.0, inf)))
    for step in range(4000):
        match chance.randrange(20):
            case 0:
                now += chance.choice((0.1, 1.0, 10.0))
            case 1 | 2:
                key = chance.randrange(5000)
                dropped = entries.drop(key)
                assert (dropped is not None and now < dropped.deadline) == (key in simple.live(now))
                simple.entries.pop(key, None)
            case 3 if chance.random() < 0.1:
                tag = str(chance.randrange(50))
                assert entries.drop_tag(tag, now) == simple.drop_tag(tag, now)
            case 4 if chance.random() < 0.05:
                life = chance.choice((5.0, 50.0))
                entries.limit(life)
                simple.limit(life)
            case 5 if chance.random() < 0.02:
                entries.clear()
                simple.entries.clear()
            case 6 | 7 | 8 if simple.live(now):
                key = chance.choice(list(simple.live(now)))
                entries.map.move_to_end(key)
                simple.use(key)
            case 9 if chance.random() < 0.2:
                while entries.sweep(now):
                    pass
                simple.entries = {
                    key: entry for key, entry in simple.entries.items() if simple.deadline(key) + grace > now
                }
                assert entries.next_end() > now
            case _:
                key = chance.randrange(5000)
                tags = (str(key % 50),) if chance.random() < 0.5 else ()
                life = chance.choice(lives)
                entries.store(key, step, now, life, tags)
                simple.store(key, step, now, life, tags)
        if step % 50 == 0 or max_entries == 3:
            assert live(entries, now) == simple.live(now)
            check_invariants(entries, now)
    assert list(live(entries, now)) == list(simple.live(now))


def test_storing_the_same_few_keys_again_and_again_needs_no_more_room() -> None:
    entries: Entries[int, str] = Entries(10_000)
    for turn in range(20_000):
        entries.store(turn % 5, "v", float(turn), 1e9)
    assert len(entries._open.keys) <= SIZE
    assert len(entries._heap) < 200
    for key in range(3000):
        entries.store(key, "v", 3e4, 1e9)
    for key in range(3000):
        if key % 9:
            entries.drop(key)
    check_invariants(entries, 3e4)
    assert sum(len(item[2].keys) for item in entries._heap) < 4 * len(entries.map) + 2 * SIZE


def test_stale_heap_items_are_purged() -> None:
    entries: Entries[int, str] = Entries(100)
    for key in range(100_000):
        entries.store(key, "v", float(key), 1e9)
    assert len(entries._heap) < 100
    check_invariants(entries, 1e5)


@pytest.mark.parametrize("others", [0, SIZE])
def test_one_key_that_comes_and_goes_needs_no_more_room(others: int) -> None:
    class Key:
        pass

    entries: Entries[Any, str] = Entries(1000)
    for number in range(others):
        entries.store(number, "v", 0.0, 1e9)
    for turn in range(5000):
        key = Key()
        entries.store(key, "v", float(turn), 1e9)
        entries.drop(key)
    assert len(entries._heap) < 100
    check_invariants(entries, 5e3)
    gone = weakref.ref(key)
    del key
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_a_key_whose_hash_has_changed_is_in_nobodys_way(grace: float) -> None:
    class Key:
        number = 0

        def __hash__(self) -> int:
            return self.number

    for others in (0, 1):
        for until in (5.0, 20.0):
            entries: Entries[Any, str] = Entries(1 + others, grace)
            key = Key()
            entries.store(key, "lost", 0.0, 10.0)
            for number in range(others):
                entries.store(number, "v", 0.0, 10.0)
            key.number = 1
            while entries.sweep(until):
                pass
            for number in range(3):
                entries.store(number, "new", until, 10.0)
            assert list(entries.map) == [1, 2] if others else [2]
            assert entries.next_end() > until


def test_dropped_values_are_not_kept() -> None:
    class Thing:
        pass

    entries: Entries[int, Thing] = Entries(10)
    things = []
    for key in range(12):
        thing = Thing()
        things.append(weakref.ref(thing))
        entries.store(key, thing, 0.0, 10.0 + key, ("tag",))
    del thing
    entries.drop(5)
    entries.store(7, Thing(), 0.0, 10.0)
    while entries.sweep(18.0):
        pass
    gc.collect()
    assert [key for key in range(12) if things[key]() is not None] == [9, 10, 11]
    entries.clear()
    gc.collect()
    assert all(thing() is None for thing in things)


def test_a_clock_that_went_back_is_followed() -> None:
    entries: Entries[str, str] = Entries(10)
    entries.store("a", "A", 1000.0, 300.0)
    entries.store("b", "B", 1000.0, inf)
    entries.failed_at["a"] = 1100.0
    entries.rewind(500.0)
    assert entries.map["a"].deadline == 800.0
    assert entries.map["b"].deadline == inf
    assert entries.failed_at == {"a": 500.0}
    assert entries.next_end() == 800.0
    check_invariants(entries, 500.0)
    entries.rewind(600.0)
    assert (entries.map["a"].deadline, entries.failed_at) == (800.0, {"a": 500.0})


def test_the_fraction_of_an_aging_entry_follows_its_life() -> None:
    entries: Entries[str, str] = Entries(10, refresh_at=0.5)
    entries.store("a", "A", 0.0, 100.0)
    entries.store("b", "B", 0.0, inf)
    assert (entries.map["a"].fresh, entries.map["a"].life) == (50.0, 100.0)
    assert (entries.map["b"].fresh, entries.map["b"].life) == (inf, inf)
    entries.limit(10.0)
    assert (entries.map["a"].fresh, entries.map["a"].life) == (5.0, 10.0)
    assert (entries.map["b"].fresh, entries.map["b"].life) == (5.0, 10.0)


def test_the_last_one_in_its_grace_makes_room() -> None:
    entries: Entries[str, str] = Entries(1, grace=100.0)
    entries.store("a", "A", 0.0, 10.0)
    entries.store("b", "B", 20.0, 10.0)
    assert list(entries.map) == ["b"]
    check_invariants(entries, 20.0)
