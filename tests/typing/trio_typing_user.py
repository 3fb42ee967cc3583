"""Never run: a user who has trio-typing installed, whose stubs shadow the types of Trio.

Errors inside of installed packages are silent, and what a checker cannot resolve turns into ``Any`` in silence; so
every type is asserted here.
"""

from __future__ import annotations

from typing import Any, assert_type

import outcome
import trio
import trio_typing
from trio_typing import TaskStatus

from trio_renew import (
    AuthToken,
    Event,
    Lease,
    RefreshingProvider,
    RenewableResource,
    Status,
    open_provider,
    open_resource,
    static_provider,
)
from trio_renew.abc import DedupeStore
from trio_renew.lowlevel import open_provider_with
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import ScriptedFetch, cancel_at_every_checkpoint


async def mint() -> AuthToken:
    await trio.sleep(0)
    return AuthToken.expiring_in("text", 60.0)


async def fetch() -> str:
    return "text"


def observe(event: Event) -> None:
    print(event)


async def serve(provider: RefreshingProvider[AuthToken], *, task_status: TaskStatus[str]) -> None:
    token = await provider.get()
    assert_type(token, AuthToken)
    task_status.started(token.secret.reveal())
    await trio.sleep_forever()


async def use() -> None:
    async with open_provider(mint, observe=observe, keep_warm=60.0) as provider:
        assert_type(provider, RefreshingProvider[AuthToken])
        assert_type(await provider.get(), AuthToken)
        assert_type(provider.get_nowait(), AuthToken)
        assert_type(await provider.current_token(), AuthToken)
        lease = await provider.lease()
        assert_type(lease, Lease[AuthToken])
        assert_type(await provider.refresh(stale=lease), AuthToken)
        assert_type(provider.status(), Status)
        assert_type(provider.status().last_error, str | None)
        async for token in provider.changes():
            assert_type(token, AuthToken)
        async with trio.open_nursery() as nursery:
            assert_type(nursery, trio.Nursery)
            nursery.start_soon(provider.get)
            nursery.start_soon(provider.clear)
            nursery.start_soon(worker, provider)
            nursery.start_soon(worker, 3)  # type: ignore[arg-type]

    async with open_resource(fetch) as resource:
        assert_type(resource, RenewableResource[str])
        assert_type(await resource.get(), str)
        await resource.refresh(stale=3)  # type: ignore[arg-type]

    async with open_provider_with(trio.lowlevel.checkpoint, mint) as provider:
        assert_type(provider, RefreshingProvider[AuthToken])

    open_resource(lambda: "text")  # type: ignore[arg-type, return-value]
    assert_type(await static_provider(AuthToken("x")).get(), AuthToken)


async def worker(provider: RefreshingProvider[AuthToken]) -> None:
    assert_type((await provider.get()).expires_at, float | None)


async def stores(dedupe: DedupeStore[str]) -> None:
    assert_type(await dedupe.wait_outcome("key"), outcome.Value[str] | outcome.Error)
    async with open_memory_stores(lease=5.0) as opened:
        assert_type(await opened.rate_limit.acquire("resource"), bool)
        value: Any = await opened.cache.get("key")
        print(value)


async def scenario() -> None:
    script = ScriptedFetch("a")
    async with open_resource(script) as resource:
        await resource.get()
    assert_type(script.calls, int)


def test() -> None:
    assert_type(cancel_at_every_checkpoint(scenario).steps, int)
    assert trio_typing
