"""Caches on the bus of the Redis engine, and a server that is killed and comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_renew import Event, StorageFailed, open_provider_cache
from trio_renew.stores.redis import open_redis_bus

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Server


async def resolve(key: Any) -> str:
    await trio.lowlevel.checkpoint()
    return f"value of {key!r}"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def test_what_may_have_been_missed_is_dropped_when_the_server_returns(own_server: Server) -> None:
    events: list[Event] = []
    async with (
        open_redis_bus(own_server.url) as one,
        open_redis_bus(own_server.url) as two,
        open_provider_cache(resolve, bus=one, name="n") as here,
        open_provider_cache(resolve, bus=two, name="n", observe=events.append) as there,
    ):
        for key in (7, "7"):
            await there.get(key)
        here.delete(7)
        await until(lambda: 7 not in there)
        assert "7" in there
        own_server.kill()
        await until(lambda: any(isinstance(event, StorageFailed) for event in events))
        assert there.get_nowait("7") == "value of '7'"  # the TTL is what bounds staleness now
        own_server.start()
        await until(lambda: "7" not in there)
        await there.get("7")
        here.delete("7")
        await until(lambda: "7" not in there)
