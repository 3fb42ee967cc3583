"""A KeyboardInterrupt at every line of every operation, after which the program goes on with the same owner.

An application may catch its interrupt ("press control-C again to quit"). Then nothing may be left claimed, registered
or half done: a new caller gets a value within one virtual second, nobody waits, at most one fetch runs at a time, what
is due is renewed in the background, the breaker has a place for its probe, and the events add up. Where the interrupt
struck the user's code in the owner's own tasks, the owner has ended instead, and then wholly.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from math import inf
from typing import Any

import pytest
import trio

from trio_renew import Budget, BudgetExhausted, RateLimitConfig, Share, _deciding, _flight, _resource, open_resource
from trio_renew.lowlevel import open_provider_with
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import interrupt_at_every_line

STATES = (
    "empty",
    "good",
    "due",
    "leeway",
    "grace",
    "expired",
    "backoff",
    "broken",
    "broken_in_grace",
    "probing",
    "permanent",
)
#: Where a caller waits.
WAITING = (_resource, _deciding, _flight)


def sweep(
    world: Any,
    calm: Any,
    operation: str,
    state: str,
    *,
    others: int = 1,
    storage: bool = False,
    share: bool = False,
    budget: bool = False,
    hook: bool = False,
    **options: Any,
) -> int:
    async def scenario() -> None:
        quiet = calm()
        source, observer = world.Source(), world.Observer()
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(open_memory_stores())
            if storage:
                options["storage"] = world.Shelf()
            if share:
                options["share"] = Share(stores.cache, stores.dedupe, "key")
            if budget:
                options["budget"] = Budget(stores.adaptive, "source")
            tasks = world.living()
            try:
                async with open_provider_with(
                    world.hook if hook else None,
                    source,
                    eager=False,
                    policy=world.POLICY,
                    breaker=world.BREAKER,
                    observe=observer,
                    **options,
                ) as provider:
                    await world.STATES[state](provider, source)

                    async def another() -> None:
                        try:
                            await provider.get()
                        except (KeyboardInterrupt, *world.REFUSED):
                            pass

                    async with trio.open_nursery() as nursery:
                        for _ in range(others):
                            nursery.start_soon(another)
                        await quiet.survive(lambda: world.OPERATIONS[operation](provider), *world.REFUSED)
                        with trio.fail_after(2):
                            while nursery.child_tasks:
                                await trio.sleep(0.1)
                    await world.goes_on(provider, source, warm="keep_warm" in options)
            except KeyboardInterrupt:
                pass  # it struck the user's code in a task of the owner
            assert world.living() == tasks
            await world.is_closed(provider)
            world.adds_up(observer.events)
            assert source.running == 0
            assert source.most_running <= 1 or operation == "clear"  # what is fenced may run on

    return interrupt_at_every_line(scenario, within=world.WITHIN).steps


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
def test_it_goes_on_in_each_state(world: Any, calm: Any, operation: str, state: str) -> None:
    assert sweep(world, calm, operation, state) >= 2


@pytest.mark.parametrize(
    ("operation", "state", "options"),
    [
        *((operation, "empty", {"storage": True}) for operation in ("get", "refresh_stale", "clear")),
        *((operation, "due", {"storage": True}) for operation in ("get_nowait", "refresh", "clear")),
        *((operation, "empty", {"share": True}) for operation in ("get", "refresh_stale")),
        *((operation, "due", {"share": True}) for operation in ("get_nowait", "refresh", "clear")),
        *((operation, "due", {"budget": True}) for operation in ("get_nowait", "refresh")),
        *((operation, "due", {"hook": True}) for operation in ("get_nowait", "refresh")),
        ("get", "empty", {"hook": True}),
        *((operation, "due", {"keep_warm": inf, "others": 0}) for operation in ("get_nowait", "changes", "clear")),
        *(("get", "empty", {"when_abandoned": "cancel", "others": others}) for others in (0, 2)),
        *(
            (
                operation,
                state,
                {"storage": True, "share": True, "budget": True, "hook": True, "keep_warm": 99.0},
            )
            for operation, state in (("get", "empty"), ("get_nowait", "due"))
        ),
    ],
)
def test_it_goes_on_with_all_that_belongs_to_it(
    world: Any, calm: Any, operation: str, state: str, options: dict[str, Any]
) -> None:
    assert sweep(world, calm, operation, state, **options) >= 2


@pytest.mark.parametrize("operation", ["get", "get_nowait", "refresh"])
@pytest.mark.parametrize("state", ["empty", "due", "expired"])
def test_it_goes_on_when_the_budget_is_spent(world: Any, calm: Any, operation: str, state: str) -> None:
    async def scenario() -> None:
        quiet = calm()
        source, observer = world.Source(), world.Observer()
        limit = RateLimitConfig(limit=1, window=300.0)
        async with open_memory_stores(default_config=limit) as stores:
            budget = Budget(stores.adaptive, "source")
            try:
                async with open_provider_with(
                    None, source, eager=False, policy=world.POLICY, budget=budget, observe=observer
                ) as provider:
                    if state == "empty":
                        await stores.adaptive.record("source", "user")
                    await world.STATES[state](provider, source)
                    calls = source.calls
                    await quiet.survive(
                        lambda: world.OPERATIONS[operation](provider), BudgetExhausted, trio.ClosedResourceError
                    )
                    status = provider.status()
                    assert (status.waiting, status.failures, source.calls) == (0, 0, calls)
                    await trio.sleep(300)
                    with trio.fail_after(1):
                        await provider.get()
                    assert source.calls == calls + 1
                    assert provider.status().waiting == 0
            except KeyboardInterrupt:
                pass
            await world.is_closed(provider)
            world.adds_up(observer.events)
            assert source.running == 0

    assert interrupt_at_every_line(scenario, within=world.WITHIN).steps >= 2


@pytest.mark.parametrize("operation", ["get", "lease", "refresh"])
@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
def test_who_is_interrupted_while_waiting_is_counted_out(
    world: Any, calm: Any, operation: str, when_abandoned: Any
) -> None:
    async def scenario() -> None:
        quiet = calm()
        source = world.Source()
        scope = trio.CancelScope()
        async with open_resource(source, when_abandoned=when_abandoned) as resource, trio.open_nursery() as nursery:

            async def first() -> None:
                with scope:
                    await resource.get()

            async def second() -> None:
                with trio.move_on_after(0.1):
                    await world.OPERATIONS[operation](resource)

            nursery.start_soon(first)
            await trio.sleep(0.05)
            await quiet.survive(second)
            assert resource.status().waiting == 1
            scope.cancel()
            await trio.sleep(0.01)
            assert resource.status().waiting == 0
            assert source.running == (when_abandoned == "finish")
            with trio.fail_after(1):
                await resource.get()

    assert interrupt_at_every_line(scenario, within=WAITING).steps >= 2
