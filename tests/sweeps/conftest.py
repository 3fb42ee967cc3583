"""What the sweeps of a provider share: the user's code, what is done in which state, what must hold afterwards."""

from __future__ import annotations

import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerOpen,
    BreakerPolicy,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    RefreshingProvider,
    RefreshPolicy,
    Registry,
    RenewableResource,
    describe,
)
from trio_renew.testing import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    Provider = RefreshingProvider[AuthToken]
    Operation = Callable[[Provider], Awaitable[object]]

#: The user's code, which is here, and the rooms of one provider. The engines have sweeps of their own.
WITHIN = [
    sys.modules[__name__],
    *(module for name, module in sys.modules.items() if name.startswith("trio_renew._") and "_keyed" not in name),
]
POLICY = RefreshPolicy(jitter=0.0, min_interval=0.0, retry=Backoff(initial=5.0, jitter=0.0), serve_expired_for=30.0)


NUMBERS = count()
BREAKER = BreakerPolicy(threshold=2, cooldown=20.0)


# The user's code


class Source:
    """Makes tokens, or fails as it is told. It may be interrupted, but for its bookkeeping."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.last: AuthToken | None = None
        self.calls = 0
        self.running = 0
        self.most_running = 0

    @trio.lowlevel.enable_ki_protection
    async def __call__(self) -> AuthToken:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            self.last = await self.ask()
            return self.last
        finally:
            self.running -= 1

    @trio.lowlevel.disable_ki_protection
    async def ask(self) -> AuthToken:
        await trio.sleep(0.2)
        if self.error is not None:
            raise self.error
        return AuthToken.expiring_in(f"token {next(NUMBERS)}", 60.0)


class Shelf:
    """A storage whose calls take a while."""

    def __init__(self, held: AuthToken | None = None) -> None:
        self.held = held

    async def get(self) -> AuthToken | None:
        await trio.sleep(0.1)
        return self.held

    async def set(self, value: AuthToken) -> None:
        await trio.sleep(0.1)
        self.held = value

    async def clear(self) -> None:
        await trio.sleep(0.1)
        self.held = None


async def hook() -> None:
    await trio.lowlevel.checkpoint()


class Observer:
    """Notes what it is told, and then does something that can be interrupted."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.last: Event | None = None

    @trio.lowlevel.enable_ki_protection
    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.look(event)

    @trio.lowlevel.disable_ki_protection
    def look(self, event: Event) -> None:
        self.last = event


# What is done


async def take_new(provider: Provider) -> None:
    before = provider.status().generation
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.refresh)
        async for _ in provider.changes():
            if provider.status().generation > before:
                break


async def nowait(provider: Provider) -> None:
    try:
        provider.get_nowait()
    except trio.WouldBlock:
        pass
    await trio.sleep(0.5)  # so that what it has started is interrupted, too


async def look(provider: Provider) -> None:
    provider.status()
    registry = Registry()
    registry.register(describe("token", provider))
    registry.resolve("token")
    await trio.lowlevel.checkpoint()


async def refresh_stale(provider: Provider) -> None:
    try:
        stale = provider.get_nowait()
    except trio.WouldBlock:
        stale = AuthToken("old", 1.0)
    await provider.refresh(stale=stale)


async def refresh_leased(provider: Provider) -> None:
    await provider.refresh(stale=await provider.lease())


OPERATIONS: dict[str, Operation] = {
    "get": lambda provider: provider.get(),
    "get_nowait": nowait,
    "lease": lambda provider: provider.lease(),
    "refresh": lambda provider: provider.refresh(),
    "refresh_stale": refresh_stale,
    "refresh_leased": refresh_leased,
    "clear": lambda provider: provider.clear(),
    "changes": take_new,
    "look": look,
}


# In which state


async def fail_once(provider: Provider, source: Source) -> None:
    source.error = OSError("down")
    try:
        await provider.refresh()
    except (OSError, BreakerOpen):
        pass


async def empty(provider: Provider, source: Source) -> None:
    pass


async def good(provider: Provider, source: Source) -> None:
    await provider.get()


async def due(provider: Provider, source: Source) -> None:
    await provider.get()
    await trio.sleep(50)


async def leeway(provider: Provider, source: Source) -> None:
    await provider.get()
    source.error = OSError("down")
    await trio.sleep(57)


async def grace(provider: Provider, source: Source) -> None:
    await provider.get()
    source.error = OSError("down")
    await trio.sleep(70)


async def expired(provider: Provider, source: Source) -> None:
    await provider.get()
    await trio.sleep(200)


async def backoff(provider: Provider, source: Source) -> None:
    await provider.get()
    await trio.sleep(49)
    await fail_once(provider, source)


async def broken(provider: Provider, source: Source) -> None:
    for _ in range(2):
        await fail_once(provider, source)


async def broken_in_grace(provider: Provider, source: Source) -> None:
    await grace(provider, source)
    await broken(provider, source)


async def probing(provider: Provider, source: Source) -> None:
    await broken(provider, source)
    source.error = None
    await trio.sleep(20)


async def permanent(provider: Provider, source: Source) -> None:
    source.error = PermissionError("revoked")
    try:
        await provider.refresh()
    except PermissionError:
        pass


STATES = {
    state.__name__: state
    for state in (
        empty,
        good,
        due,
        leeway,
        grace,
        expired,
        backoff,
        broken,
        broken_in_grace,
        probing,
        permanent,
    )
}
#: What an operation may raise where the source is down, or the owner has closed.
REFUSED = (OSError, BreakerOpen, trio.ClosedResourceError)


# What must hold afterwards


def living() -> int:
    """How many tasks there are."""
    return trio.lowlevel.current_statistics().tasks_living


def adds_up(events: list[Event]) -> None:
    """Each start has one end; closing comes last, once."""
    running = 0
    for event in events:
        if isinstance(event, FetchStarted):
            running += 1
        elif isinstance(event, FetchSucceeded | FetchFailed | FetchAbandoned):
            running -= 1
        assert running >= 0
    assert running == 0
    assert [isinstance(event, OwnerClosed) for event in events].index(True) == len(events) - 1


async def goes_on(provider: Provider, source: Source, *, warm: bool = False) -> None:
    """It works as if nothing had happened."""
    source.error = None
    # The source is well again; what is remembered of its failures passes.
    await trio.sleep(25)
    with trio.fail_after(1):
        await provider.get()
    status = provider.status()
    assert status.good
    assert (status.waiting, status.fetching) == (0, False)
    # Renewed in the background, and by nothing else: nobody waits for it.
    await until(provider, "due", 1.0)
    if not warm:
        provider.get_nowait()
    await trio.sleep(1)
    after = provider.status()
    assert after.generation > status.generation
    assert (after.waiting, after.fetching, after.failures) == (0, False, 0)
    # The breaker opens, and lets one probe through.
    await trio.sleep(1)
    await broken(provider, source)
    source.error = None
    with pytest.raises(BreakerOpen):
        await provider.refresh()
    await trio.sleep(20.01)
    with trio.fail_after(1):
        await provider.refresh()
    # And it forgets.
    await provider.clear()
    assert not provider.status().held
    with trio.fail_after(1):
        await provider.get()


async def is_closed(provider: RenewableResource[Any]) -> None:
    """Nobody gets anything from it any more."""
    status = provider.status()
    assert (status.closed, status.held, status.fetching, status.waiting) == (True, False, False, 0)
    for call in (provider.get, provider.lease, provider.refresh, provider.clear):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        provider.get_nowait()
    with pytest.raises(trio.ClosedResourceError):
        provider.changes()


@pytest.fixture
def world() -> ModuleType:
    """Give all of this: tests cannot import it."""
    return sys.modules[__name__]
