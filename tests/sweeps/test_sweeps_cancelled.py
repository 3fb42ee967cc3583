"""Cancelled at every step: the caller, another caller, the body, and the parent of the owner, in every state.

Afterwards all others have what they wanted, a new caller gets a value within one virtual second, nobody waits, at
most one fetch ran at a time, the events add up, and when the owner has closed no task is left.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import trio

from trio_renew import Budget, Share
from trio_renew.lowlevel import open_provider_with
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import cancel_at_every_checkpoint, victim

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
#: What is done where; the rest comes the same way as these.
CASES = [
    *(("get", state) for state in STATES),
    *(("refresh", state) for state in STATES),
    *(("get_nowait", state) for state in ("due", "backoff")),
    *(("lease", state) for state in ("empty", "good", "expired")),
    *(("refresh_stale", state) for state in ("empty", "good", "broken_in_grace", "probing")),
    *(("refresh_leased", state) for state in ("empty", "due")),
    *(("clear", state) for state in ("empty", "good", "due", "permanent")),
    *(("changes", state) for state in ("empty", "good", "expired", "broken")),
]
#: With what the owner is opened.
WITH: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cancel": {"when_abandoned": "cancel"},
    "storage": {"storage": True},
    "storage, cancel": {"storage": True, "when_abandoned": "cancel"},
    "share": {"share": True},
    "budget": {"budget": True},
    "hook": {"hook": True},
    "keep_warm": {"keep_warm": float("inf")},
    "all": {"storage": True, "share": True, "budget": True, "hook": True, "keep_warm": 99.0},
}


class Stage:
    """What a run needs: the source, the observer, and how to open an owner with them, once or again."""

    def __init__(self, world: Any, stores: Any, options: dict[str, Any]) -> None:
        self.source, self.observer, self.shelf = world.Source(), world.Observer(), world.Shelf()
        self.options = options | {"policy": world.POLICY, "breaker": world.BREAKER}
        self.after_claim = world.hook if self.options.pop("hook", False) else None
        if "storage" in options:
            self.options["storage"] = self.shelf
        if "share" in options:
            self.options["share"] = Share(stores.cache, stores.dedupe, "key")
        if "budget" in options:
            self.options["budget"] = Budget(stores.adaptive, "source")

    def open(self, **more: Any) -> Any:
        return open_provider_with(self.after_claim, self.source, **self.options, **more)


def sweep(world: Any, operation: str, state: str, victim_is: str, others: int, given: str) -> int:
    async def call(provider: Any, what: str) -> None:
        try:
            await world.OPERATIONS[what](provider)
        except* world.REFUSED:
            pass

    async def in_victim(provider: Any, *whats: str) -> None:
        with victim():
            async with trio.open_nursery() as nursery:
                for what in whats:
                    nursery.start_soon(call, provider, what)

    async def scenario() -> None:
        async with open_memory_stores() as stores:
            stage = Stage(world, stores, WITH[given])
            tasks = world.living()
            async with trio.open_nursery() as elsewhere:
                with victim() if victim_is == "parent" else nullcontext():
                    async with stage.open(eager=False, observe=stage.observer) as provider:
                        await world.STATES[state](provider, stage.source)
                        for _ in range(others):
                            elsewhere.start_soon(call, provider, "get")
                        if victim_is == "caller":
                            elsewhere.start_soon(in_victim, provider, operation)
                        elif victim_is == "another":
                            elsewhere.start_soon(in_victim, provider, "get")
                            await call(provider, operation)
                        elif victim_is == "body":
                            await in_victim(provider, operation, "get")
                        else:
                            await call(provider, operation)
                        with trio.fail_after(1):
                            while elsewhere.child_tasks:
                                status = provider.status()
                                assert status.fetching or not status.waiting
                                await trio.sleep(0.1)
                        assert provider.status().waiting == 0
                        if victim_is != "parent":
                            await world.goes_on(provider, stage.source, warm="keep_warm" in stage.options)
            assert world.living() == tasks
            if victim_is != "parent" or stage.observer.events:
                await world.is_closed(provider)
                world.adds_up(stage.observer.events)
            assert stage.source.running == 0
            assert stage.source.most_running <= 1 or "clear" in (operation, victim_is)  # what is fenced may run on

    return cancel_at_every_checkpoint(scenario).steps


@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize(("operation", "state"), CASES)
def test_the_caller(world: Any, operation: str, state: str, others: int) -> None:
    assert sweep(world, operation, state, "caller", others, "nothing") >= 1


@pytest.mark.parametrize("victim_is", ["another", "body", "parent"])
@pytest.mark.parametrize(("operation", "state"), CASES)
def test_somebody_else(world: Any, operation: str, state: str, victim_is: str) -> None:
    assert sweep(world, operation, state, victim_is, 1, "nothing") >= 1


@pytest.mark.parametrize("victim_is", ["caller", "another", "body", "parent"])
@pytest.mark.parametrize(("operation", "state"), [("get", "empty"), ("refresh", "due"), ("clear", "due")])
@pytest.mark.parametrize("given", list(WITH)[1:])
def test_with_all_that_belongs_to_it(world: Any, operation: str, state: str, victim_is: str, given: str) -> None:
    assert sweep(world, operation, state, victim_is, 1, given) >= 1


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("given", list(WITH))
def test_opening(world: Any, given: str, stored: bool) -> None:
    async def scenario() -> None:
        async with open_memory_stores() as stores:
            stage = Stage(world, stores, WITH[given])
            if stored:
                async with stage.open():
                    pass
            tasks = world.living()
            with victim():
                async with stage.open(observe=stage.observer):
                    pass
            if stage.observer.events:
                world.adds_up(stage.observer.events)
            assert world.living() == tasks
            assert stage.source.running == 0
            # It has left nothing behind that the next one would have to wait for.
            with trio.fail_after(1):
                async with stage.open() as provider:
                    assert provider.status().good

    assert cancel_at_every_checkpoint(scenario).steps >= 1


@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize("given", list(WITH))
def test_closing(world: Any, given: str, others: int) -> None:
    async def scenario() -> None:
        async with open_memory_stores() as stores:
            stage = Stage(world, stores, WITH[given])
            tasks = world.living()
            outcomes: list[object] = []

            async def another(provider: Any) -> None:
                try:
                    outcomes.append(await provider.refresh())
                except trio.ClosedResourceError as exc:
                    outcomes.append(exc)

            async with trio.open_nursery() as elsewhere:
                with victim():
                    async with stage.open(observe=stage.observer) as provider:
                        with trio.CancelScope(shield=True):
                            await trio.sleep(40)
                            provider.get_nowait()  # a background refresh is on its way
                            await trio.sleep(0.25)  # where there is a storage, it writes
                            for _ in range(others):
                                elsewhere.start_soon(another, provider)
                            await trio.sleep(0.01)
            assert len(outcomes) in (0, others)
            world.adds_up(stage.observer.events)
            assert world.living() == tasks
            assert stage.source.running == 0
            with trio.fail_after(1):
                async with stage.open() as provider:
                    assert provider.status().good

    assert cancel_at_every_checkpoint(scenario).steps >= 1
