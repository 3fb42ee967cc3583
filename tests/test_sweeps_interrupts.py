"""A KeyboardInterrupt at every line of every operation, after which the program goes on with the same owner.

An application may catch its interrupt ("press control-C again to quit"). Then nothing may be left claimed, registered
or half done: a new caller gets a value within one virtual second, nobody waits, at most one fetch runs at a time, what
is due is renewed in the background, the breaker has a place for its probe, and the events add up. Where the interrupt
struck the user's code in the owner's own tasks, the owner has ended instead, and then wholly.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew import (
    AuthToken,
    Backoff,
    BreakerOpen,
    BreakerPolicy,
    Budget,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    RefreshingProvider,
    RefreshPolicy,
    Registry,
    Share,
    describe,
)
from trio_renew.lowlevel import open_provider_with
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import interrupt_at_every_line, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Provider = RefreshingProvider[AuthToken]
    Operation = Callable[[Provider], Awaitable[object]]

#: The user's code, which is here, and the rooms of one provider. The engines have sweeps of their own.
WITHIN = [
    sys.modules[__name__],
    *(module for name, module in sys.modules.items() if name.startswith("trio_renew._") and "_keyed" not in name),
]
POLICY = RefreshPolicy(jitter=0.0, min_interval=0.0, retry=Backoff(initial=5.0, jitter=0.0), serve_expired_for=30.0)


# The user's code


class Source:
    """Makes tokens, or fails as it is told. It may be interrupted, but for its bookkeeping."""

    def __init__(self, life: float = 60.0) -> None:
        self.life = life
        self.error: Exception | None = None
        self.calls = 0
        self.running = 0
        self.most_running = 0

    @trio.lowlevel.enable_ki_protection
    async def __call__(self) -> AuthToken:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            return await self.ask()
        finally:
            self.running -= 1

    @trio.lowlevel.disable_ki_protection
    async def ask(self) -> AuthToken:
        await trio.sleep(0.2)
        if self.error is not None:
            raise self.error
        return AuthToken.expiring_in(f"token {self.calls}", self.life)


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
DOWN = (OSError, BreakerOpen, PermissionError)


# What must hold afterwards


def adds_up(events: list[Event]) -> None:
    """Each start has one end, before the next start unless there was a clear(); closing comes last, once."""
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


async def is_closed(provider: Provider) -> None:
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


def sweep(
    calm: Any,
    operation: str,
    state: str,
    *,
    others: int = 1,
    storage: bool = False,
    share: bool = False,
    budget: bool = False,
    after_claim: Callable[[], Awaitable[object]] | None = None,
    **options: Any,
) -> int:
    async def scenario() -> None:
        quiet = calm()
        source, observer = Source(), Observer()
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(open_memory_stores())
            if storage:
                options["storage"] = Shelf()
            if share:
                options["share"] = Share(stores.cache, stores.dedupe, "key")
            if budget:
                options["budget"] = Budget(stores.adaptive, "source")
            tasks = trio.lowlevel.current_statistics().tasks_living
            try:
                async with open_provider_with(
                    after_claim,
                    source,
                    eager=False,
                    policy=POLICY,
                    breaker=BreakerPolicy(threshold=2, cooldown=20.0),
                    observe=observer,
                    **options,
                ) as provider:
                    await STATES[state](provider, source)

                    async def another() -> None:
                        try:
                            await provider.get()
                        except (KeyboardInterrupt, trio.ClosedResourceError, *DOWN):
                            pass

                    async with trio.open_nursery() as nursery:
                        for _ in range(others):
                            nursery.start_soon(another)
                        await quiet.survive(lambda: OPERATIONS[operation](provider), trio.ClosedResourceError, *DOWN)
                        with trio.fail_after(2):
                            while nursery.child_tasks:
                                await trio.sleep(0.1)
                    await goes_on(provider, source, warm="keep_warm" in options)
            except KeyboardInterrupt:
                pass  # it struck the user's code in a task of the owner
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            await is_closed(provider)
            adds_up(observer.events)
            assert source.running == 0
            assert source.most_running <= 1 or operation == "clear"  # what is fenced may run on

    return interrupt_at_every_line(scenario, within=WITHIN).steps


@pytest.mark.parametrize(
    ("operation", "state"),
    [
        *(("get", state) for state in STATES),
        *(("get_nowait", state) for state in ("good", "due", "backoff", "broken_in_grace")),
        *(("lease", state) for state in ("empty", "good")),
        *(("refresh", state) for state in ("empty", "good", "backoff", "broken", "probing", "permanent")),
        *(("refresh_stale", state) for state in ("empty", "good", "broken_in_grace", "probing")),
        *(("refresh_leased", state) for state in ("empty", "due")),
        *(("clear", state) for state in ("empty", "due", "permanent")),
        *(("changes", state) for state in ("empty", "due")),
        ("look", "good"),
    ],
)
def test_it_goes_on_in_each_state(calm: Any, operation: str, state: str) -> None:
    assert sweep(calm, operation, state) >= 5


@pytest.mark.parametrize(
    ("operation", "state", "options"),
    [
        *((operation, "empty", {"storage": True}) for operation in ("get", "refresh_stale", "clear")),
        *((operation, "due", {"storage": True}) for operation in ("get_nowait", "refresh", "clear")),
        *((operation, "empty", {"share": True}) for operation in ("get", "refresh_stale")),
        *((operation, "due", {"share": True}) for operation in ("get_nowait", "refresh", "clear")),
        *((operation, "due", {"budget": True}) for operation in ("get_nowait", "refresh")),
        *((operation, "due", {"after_claim": hook}) for operation in ("get_nowait", "refresh")),
        ("get", "empty", {"after_claim": hook}),
        *((operation, "due", {"keep_warm": inf, "others": 0}) for operation in ("get_nowait", "changes", "clear")),
        *(("get", "empty", {"when_abandoned": "cancel", "others": others}) for others in (0, 2)),
        *(
            (
                operation,
                state,
                {"storage": True, "share": True, "budget": True, "after_claim": hook, "keep_warm": 99.0},
            )
            for operation, state in (("get", "empty"), ("get_nowait", "due"))
        ),
    ],
)
def test_it_goes_on_with_all_that_belongs_to_it(calm: Any, operation: str, state: str, options: dict[str, Any]) -> None:
    assert sweep(calm, operation, state, **options) >= 8
