"""A KeyboardInterrupt at every line of opening, closing and clear(), after which the program goes on.

What opened is open, or it has left nothing behind and opens at the next try. What closes has closed. A ``clear()``
has happened wholly, everywhere, or not at all.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_renew import (
    AuthToken,
    Cleared,
    RefreshingProvider,
    RefreshPolicy,
    RenewableResource,
    Share,
    StorageFailed,
    open_provider,
    open_resource,
)
from trio_renew.lowlevel import open_provider_with
from trio_renew.stores.memory import MemoryStores, open_memory_stores
from trio_renew.testing import interrupt_at_every_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

POLICY = RefreshPolicy(jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


async def caller(resource: RenewableResource[Any]) -> None:
    try:
        await resource.refresh()
    except (KeyboardInterrupt, trio.ClosedResourceError):
        pass


VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "storage": {"storage": True},
    "share": {"share": True},
    "hook": {"hook": True},
    "all": {"storage": True, "share": True, "hook": True, "keep_warm": 60.0},
}


def options_of(world: Any, variant: str, stores: MemoryStores[Any], shelf: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"policy": POLICY, **VARIANTS[variant]}
    options["after_claim"] = world.hook if options.pop("hook", False) else None
    if "storage" in options:
        options["storage"] = shelf
    if "share" in options:
        options["share"] = Share(stores.cache, stores.dedupe, "key")
    return options


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_opening(world: Any, calm: Any, variant: str, stored: bool) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer, shelf = world.Source(), world.Observer(), world.Shelf()
        async with open_memory_stores() as stores:
            options = options_of(world, variant, stores, shelf)
            if stored:
                async with open_provider_with(mint=source, **options) as provider:
                    await provider.get()
            tasks = world.living()
            opened: list[RefreshingProvider[AuthToken]] = []
            try:
                async with AsyncExitStack() as stack:
                    manager = open_provider_with(mint=source, observe=observer, **options)

                    async def enter() -> None:
                        opened.append(await stack.enter_async_context(manager))

                    await quiet.survive(enter)
                    for provider in opened:
                        if not provider.status().closed:
                            with trio.fail_after(1):
                                await provider.get()
                            assert provider.status().waiting == 0
            except KeyboardInterrupt:
                pass
            for provider in opened:
                await world.is_closed(provider)
            world.adds_up(observer.events)
            assert source.running == 0
            assert world.living() == tasks
            # What was interrupted has left nothing behind that the next one would have to wait for.
            with trio.fail_after(1):
                async with open_provider_with(mint=source, **options) as provider:
                    await provider.get()
            if "storage" in options:
                assert shelf.held is not None

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_closing(world: Any, calm: Any, variant: str, busy: bool) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer, shelf = world.Source(), world.Observer(), world.Shelf()
        async with open_memory_stores() as stores:
            options = options_of(world, variant, stores, shelf)
            tasks = world.living()
            async with trio.open_nursery() as nursery:
                stack = AsyncExitStack()
                provider = await stack.enter_async_context(open_provider_with(mint=source, observe=observer, **options))
                if busy:
                    nursery.start_soon(caller, provider)
                    nursery.start_soon(caller, provider)
                    await trio.sleep(0.25)  # where there is a storage, it writes
                    nursery.start_soon(caller, provider)
                    await trio.sleep(0)
                await quiet.survive(stack.aclose)
                await world.is_closed(provider)
            world.adds_up(observer.events)
            assert source.running == 0
            assert world.living() == tasks
            with trio.fail_after(1):
                async with open_provider_with(mint=source, **options) as provider:
                    await provider.get()

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


@pytest.mark.parametrize("fetching", [False, True])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_clear_is_one_step(world: Any, calm: Any, variant: str, fetching: bool) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer, shelf = world.Source(), world.Observer(), world.Shelf()
        async with open_memory_stores() as stores:
            options = options_of(world, variant, stores, shelf)
            try:
                async with (
                    trio.open_nursery() as nursery,
                    open_provider_with(mint=source, observe=observer, **options) as provider,
                ):
                    if fetching:
                        nursery.start_soon(caller, provider)
                        await trio.sleep(0.1)
                    before = provider.get_nowait()
                    await quiet.survive(provider.clear)
                    cleared = any(isinstance(event, Cleared) for event in observer.events)
                    assert (before is provider.get_nowait()) if not cleared else not provider.status().held
                    with trio.fail_after(2):
                        if cleared:
                            assert await provider.get() != before
                            # And so it is for the others, and for who comes later.
                            async with open_provider_with(mint=source, **options) as other:
                                assert await other.get() != before
                        await provider.refresh()
                        await provider.clear()
                        await provider.get()
            except* KeyboardInterrupt:
                await world.is_closed(provider)
            world.adds_up(observer.events)
            if any(isinstance(event, Cleared) for event in observer.events):
                await trio.sleep(1)
                assert shelf.held != before
                async with open_provider_with(mint=source, **options) as other:
                    assert await other.get() != before

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


@pytest.mark.parametrize("variant", ["storage", "all"])
def test_what_was_fetched_is_written(world: Any, calm: Any, variant: str) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, shelf = world.Source(), world.Shelf()
        async with open_memory_stores() as stores:
            options = options_of(world, variant, stores, shelf)
            try:
                async with open_provider_with(mint=source, **options) as provider:
                    await quiet.survive(provider.refresh, trio.ClosedResourceError)
            except KeyboardInterrupt:
                await world.is_closed(provider)
            assert shelf.held is source.last

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


@pytest.mark.parametrize("keep_warm", [0.0, float("inf")])
def test_a_peer_does_not_wait_for_who_was_interrupted(world: Any, calm: Any, keep_warm: float) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, got = world.Source(), []
        async with open_memory_stores() as stores:
            share = Share(stores.cache, stores.dedupe, "key")
            async with open_provider(source, share=share, policy=POLICY, eager=False) as peer:

                async def wait_for_it() -> None:
                    await trio.sleep(0.1)
                    got.append(await peer.get())

                started, patience = trio.current_time(), 1.0
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_for_it)
                    try:
                        async with open_provider(
                            source, share=share, policy=POLICY, eager=False, keep_warm=keep_warm
                        ) as provider:
                            await quiet.survive(provider.get, trio.ClosedResourceError)
                            with trio.fail_after(1):
                                await provider.get()
                    except KeyboardInterrupt:
                        # Where it struck the store's code, the store may not know: then the lease has to run out.
                        patience += stores.dedupe.lease
                        await world.is_closed(provider)
                assert len(got) == 1
                assert trio.current_time() - started < patience

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


async def take_one(resource: RenewableResource[Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resource.refresh)
        async for _ in resource.changes():
            break


RESOURCE: dict[str, Callable[[RenewableResource[Any]], Awaitable[object]]] = {
    "get": lambda resource: resource.get(),
    "refresh": lambda resource: resource.refresh(),
    "clear": lambda resource: resource.clear(),
    "changes": take_one,
}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("operation", list(RESOURCE))
def test_a_resource_goes_on(world: Any, calm: Any, operation: str, held: bool) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer, shelf = world.Source(), world.Observer(), world.Shelf()
        tasks = world.living()
        try:
            async with open_resource(source, storage=shelf, observe=observer) as resource:
                if held:
                    await resource.get()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller, resource)
                    await quiet.survive(lambda: RESOURCE[operation](resource), trio.ClosedResourceError)
                with trio.fail_after(1):
                    token = await resource.get()
                status = resource.status()
                assert (status.held, status.waiting, status.fetching) == (True, 0, False)
                assert shelf.held is token
                assert await resource.refresh() != token
        except KeyboardInterrupt:
            pass
        await world.is_closed(resource)
        world.adds_up(observer.events)
        assert source.running == 0
        assert world.living() == tasks

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


class Interrupted:
    """A store between the provider and the real one, in which interrupts and failures strike in turn."""

    def __init__(self, store: Any, operation: str, *troubles: BaseException) -> None:
        self._store = store
        self._operation = operation
        self._troubles = list(troubles)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        async def call(*args: Any, **options: Any) -> Any:
            await trio.lowlevel.checkpoint()
            if name == self._operation:
                self.calls.append(name)
                if self._troubles:
                    raise self._troubles.pop(0)
            return await real(*args, **options)

        return call


@pytest.mark.parametrize("again", [[], [OSError("full")]])
async def test_an_interrupted_write_is_made_once_more(world: Any, autojump_clock: MockClock, again: Any) -> None:
    shelf = world.Shelf()
    storage = Interrupted(shelf, "set", KeyboardInterrupt(), *again)
    source, observer = world.Source(), world.Observer()
    with pytest.raises(KeyboardInterrupt):
        async with open_resource(source, storage=storage, observe=observer) as resource:
            await resource.get()
    assert storage.calls == ["set", "set"]
    assert (shelf.held is source.last) == (not again)
    assert [event.error for event in observer.events if isinstance(event, StorageFailed)] == again
    await world.is_closed(resource)


async def test_an_interrupted_clear_is_made_once_more(world: Any, autojump_clock: MockClock) -> None:
    shelf = world.Shelf()
    storage = Interrupted(shelf, "clear", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        async with open_resource(world.Source(), storage=storage) as resource:
            await resource.get()
            with pytest.raises(trio.ClosedResourceError):
                await resource.clear()
    assert storage.calls == ["clear", "clear"]
    assert shelf.held is None


async def test_an_interrupted_read_is_not(world: Any, autojump_clock: MockClock) -> None:
    storage = Interrupted(world.Shelf(), "get", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        async with open_resource(world.Source(), storage=storage) as resource:
            await resource.get()
    assert storage.calls == ["get"]


@pytest.mark.parametrize("again", [[], [OSError("down")]])
async def test_an_interrupted_clear_of_the_share_is_made_once_more(
    world: Any, autojump_clock: MockClock, again: Any
) -> None:
    source = world.Source()
    async with open_memory_stores() as stores:
        share = Share(stores.cache, stores.dedupe, "key")
        async with open_provider(source, share=share, policy=POLICY) as provider:
            before = await provider.get()
        cache = Interrupted(stores.cache, "set", KeyboardInterrupt(), *again)
        with pytest.raises(KeyboardInterrupt):
            async with open_provider(source, share=Share(cache, stores.dedupe, "key"), policy=POLICY) as provider:
                assert await provider.get() == before
                await provider.clear()
        assert cache.calls == ["set", "set"]
        async with open_provider(source, share=share, policy=POLICY) as provider:
            assert (await provider.get() == before) == bool(again)


async def test_an_interrupt_in_the_share_leaves_the_storage_its_value(world: Any, autojump_clock: MockClock) -> None:
    source, shelf = world.Source(), world.Shelf()
    async with open_memory_stores() as stores:
        cache = Interrupted(stores.cache, "set", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            async with open_provider(source, share=Share(cache, stores.dedupe, "key"), storage=shelf, policy=POLICY):
                pass
    assert shelf.held is source.last is not None
