"""Never run: what type checkers must make of the public API, and what they must not let pass.

Lines with an ``ignore`` are mistakes: a checker that does not see one of them reports the ignore as unused.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, assert_type

import attrs
import trio

from trio_renew import (
    AuthToken,
    AuthTokenCodec,
    BreakerChanged,
    BreakerPolicy,
    CacheStore,
    Cleared,
    Closed,
    Codec,
    CredentialProvider,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FileStorage,
    HalfOpen,
    JsonCodec,
    Lease,
    MemoryStorage,
    Open,
    OwnerClosed,
    Reason,
    RefreshingProvider,
    RefreshPolicy,
    Registry,
    Renewable,
    RenewableResource,
    Secret,
    ServedExpired,
    ServiceDescriptor,
    StaticProvider,
    Status,
    Storage,
    StorageFailed,
    describe,
    hash_request,
    open_provider,
    open_resource,
    static_provider,
    tiered_refresh_before,
)
from trio_renew.lowlevel import decide, open_provider_with, open_resource_with
from trio_renew.stores.memory import open_memory_stores


async def fetch_text() -> str:
    return "text"


async def fetch_maybe() -> str | None:
    return None


async def mint() -> AuthToken:
    return AuthToken.expiring_in("text", 60)


@attrs.frozen
class Keys:
    """A value of the user's own."""

    valid_until: float


async def fetch_keys() -> Keys:
    return Keys(0.0)


async def one_resource() -> None:
    async with open_resource(fetch_text) as resource:
        assert_type(resource, RenewableResource[str])
        assert_type(await resource.get(), str)
        assert_type(resource.get_nowait(), str)
        assert_type(await resource.refresh(), str)
        assert_type(await resource.refresh("old"), str)
        assert_type(await resource.refresh(stale=None), str)
        assert_type(await resource.lease(), Lease[str])
        assert_type(await resource.refresh(stale=await resource.lease()), str)
        assert_type(await resource.clear(), None)
        assert_type(resource.status(), Status)
        async for value in resource.changes():
            assert_type(value, str)
        await resource.refresh(stale=3)  # type: ignore[arg-type]
        renewable: Renewable[str] = resource
        assert_type(await renewable.get(), str)
        wrong: Renewable[int] = resource  # type: ignore[assignment]
        del wrong

    async with open_resource(fetch_maybe) as maybe:
        assert_type(await maybe.get(), str | None)

    async with open_resource_with(trio.lowlevel.checkpoint, fetch_text) as resource:
        assert_type(await resource.get(), str)

    with open_resource(fetch_text):  # type: ignore[attr-defined]
        pass
    open_resource(fetch_text())  # type: ignore[arg-type]
    open_resource(lambda: "text")  # type: ignore[arg-type, return-value]
    open_resource(fetch_text, 30.0)  # type: ignore[call-arg, arg-type]
    open_resource(fetch_text, when_abandoned="stop")  # type: ignore[arg-type]


async def one_provider() -> None:
    assert_type(open_provider(mint), AbstractAsyncContextManager[RefreshingProvider[AuthToken]])
    async with open_provider(mint, keep_warm=math.inf, fetch_timeout=None, name="x") as provider:
        assert_type(provider, RefreshingProvider[AuthToken])
        token = await provider.get()
        assert_type(token, AuthToken)
        assert_type(await provider.current_token(), AuthToken)
        assert_type(token.secret, Secret)
        assert_type(token.secret.reveal(), str)
        assert_type(token.expires_at, float | None)
        lease = await provider.lease()
        assert_type(lease.value, AuthToken)
        assert_type(lease.generation, int)
        assert_type(await provider.refresh(stale=lease), AuthToken)
        assert_type(provider.status().breaker, Closed | Open | HalfOpen | None)
        resource: RenewableResource[AuthToken] = provider
        credentials: CredentialProvider[AuthToken] = provider
        renewable: Renewable[AuthToken] = provider
        del resource, credentials, renewable
        token.secret = Secret("other")  # type: ignore[misc]
        provider.refresh_now()  # type: ignore[attr-defined]

    async with open_provider(fetch_keys, expires_at=lambda keys: keys.valid_until) as keys:
        assert_type(await keys.get(), Keys)
    async with open_provider_with(None, mint, policy=RefreshPolicy(refresh_before=tiered_refresh_before)) as provider:
        assert_type(provider, RefreshingProvider[AuthToken])

    RefreshPolicy(
        refresh_before=300.0, jitter=lambda: 0.5, permanent=(ValueError, OSError), retry=None, due="one_waits"
    )
    RefreshPolicy(permanent=lambda error: isinstance(error, OSError))
    RefreshPolicy(due="later")  # type: ignore[arg-type]
    BreakerPolicy(threshold="5")  # type: ignore[arg-type]


def events(event: Event) -> Reason | None:
    """The union is closed: nothing is left at the end."""
    match event:
        case FetchStarted() | FetchAbandoned():
            assert_type(event.reason, Literal["initial", "absent", "aging", "expired", "forced"])
            return event.reason
        case FetchSucceeded():
            assert_type(event.remaining, float | None)
            return event.reason
        case FetchFailed():
            assert_type(event.error, BaseException)
            return event.reason
        case BreakerChanged():
            assert_type(event.new, Closed | Open | HalfOpen)
        case ServedExpired():
            assert_type(event.age, float)
        case StorageFailed():
            assert_type(event.operation, str)
        case Cleared():
            assert_type(event.generation, int)
        case OwnerClosed():
            assert_type(event.name, str | None)
    return None


def observing(observe: Callable[[Event], None], wrong: Callable[[str], None]) -> None:
    open_provider(mint, observe=observe)
    open_provider(mint, observe=wrong)  # type: ignore[arg-type]


async def standing_in() -> None:
    token = AuthToken("text")
    assert_type(static_provider(token), StaticProvider[AuthToken])
    provider: CredentialProvider[AuthToken] = static_provider(token)
    assert_type(await provider.current_token(), AuthToken)
    assert_type(provider.get_nowait(), AuthToken)


def storing() -> None:
    file: Storage[AuthToken] = FileStorage("token", AuthTokenCodec())
    path: Storage[AuthToken] = FileStorage(Path("token"), AuthTokenCodec())
    memory: Storage[str] = MemoryStorage[str]()
    codec: Codec[Any] = JsonCodec()
    del file, path, codec
    open_resource(fetch_text, storage=memory)


class InADict:
    """A storage of the user's own: no base class."""

    def __init__(self) -> None:
        self._held: AuthToken | None = None

    async def get(self) -> AuthToken | None:
        return self._held

    async def set(self, value: AuthToken) -> None:
        self._held = value

    async def clear(self) -> None:
        self._held = None


def storing_elsewhere() -> None:
    open_provider(mint, storage=InADict())


def naming(resource: RenewableResource[str]) -> None:
    descriptor = describe("csrf", resource)
    assert_type(descriptor, ServiceDescriptor[RenewableResource[str]])
    assert_type(descriptor.resource, RenewableResource[str])
    registry = Registry()
    assert_type(registry.register(descriptor), None)


async def engines() -> None:
    async with open_memory_stores() as stores:
        cache: CacheStore[Any] = stores.cache
        assert_type(await cache.invalidate_tag("tag"), int)
        assert_type((await stores.dedupe.register_or_join("key")).is_owner, bool)
        assert_type(await stores.rate_limit.acquire("resource"), bool)
        assert_type((await stores.adaptive.get_status("resource")).user_reserved, int)
        await stores.adaptive.acquire("resource", "guest")  # type: ignore[arg-type]
    assert_type(hash_request("endpoint", {"a": 1}), str)


async def wrapping() -> AsyncGenerator[RefreshingProvider[AuthToken], None]:
    async with open_provider(mint) as provider:
        yield provider


def deciding() -> None:
    decide("state", 0.0)  # type: ignore[arg-type]
