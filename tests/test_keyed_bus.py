"""Caches and pools on the real bus of one machine: two buses over one file stand for two processes."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from trio_renew import Event, StorageFailed, invalidate_provider, open_provider_cache, open_provider_pool
from trio_renew.stores.sqlite import open_sqlite_bus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path


async def resolve(key: Any) -> str:
    await trio.lowlevel.checkpoint()
    return f"value of {key!r}"


@asynccontextmanager
async def open_value(key: Any) -> AsyncGenerator[str, None]:
    yield f"open {key!r}"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)


async def test_what_is_dropped_here_is_dropped_there(tmp_path: Path) -> None:
    file = tmp_path / "bus.db"
    keys = (7, "7", b"7", 7.5, None, ("a", 7))
    async with (
        open_sqlite_bus(file) as one,
        open_sqlite_bus(file) as two,
        open_provider_cache(resolve, bus=one, name="n") as here,
        open_provider_cache(resolve, bus=two, name="n", tags=lambda key, value: [type(key).__name__]) as there,
        open_provider_cache(resolve, bus=two, name="other") as other,
        open_provider_pool(open_value, bus=two, name="n") as pool,
    ):

        async def fill() -> None:
            for key in keys:
                await there.get(key)
                await other.get(key)
                async with pool.borrow(key):
                    pass

        await fill()
        for number, key in enumerate(keys, 1):
            assert here.delete(key) is False
            await until(lambda key=key: key not in there and key not in pool)
            assert len(there) == len(pool) == len(keys) - number
        await fill()
        here.invalidate_tag("int")
        await until(lambda: 7 not in there)
        assert len(there) == len(keys) - 1
        assert len(pool) == len(keys)
        here.delete(frozenset("a"))  # no key that a message can carry
        await until(lambda: len(there) == len(pool) == 0)
        assert len(other) == len(keys)
        await fill()
        here.clear()
        await until(lambda: len(there) == len(pool) == 0)
        await here.get("7")
        await fill()
        assert invalidate_provider("7") is True
        assert ("7" in here, "7" in there, "7" in pool, "7" in other) == (False, False, False, False)


async def test_an_outage_is_told_to_the_observer(tmp_path: Path) -> None:
    file = tmp_path / "bus.db"
    events: list[Event] = []
    async with (
        open_sqlite_bus(file) as bus,
        open_provider_cache(resolve, bus=bus, name="n", observe=events.append) as cache,
    ):
        await cache.get("a")
        with sqlite3.connect(file) as connection:
            connection.execute("ALTER TABLE renew_bus RENAME TO away")
        connection.close()
        cache.delete("b")  # which makes it look
        await until(lambda: any(isinstance(event, StorageFailed) for event in events))
        assert "a" in cache  # as long as nothing is known
        failures = [event for event in events if isinstance(event, StorageFailed)]
        assert [(event.operation, event.name) for event in failures] == [("bus", "n")]
