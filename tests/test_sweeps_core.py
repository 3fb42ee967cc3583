"""Every public async operation, cancelled, interrupted and disturbed at every step, in every state.

After each step: a new caller gets a value within one virtual second, nobody waits, at most one fetch ran at a time,
and each FetchStarted has found its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_renew
from trio_renew import (
    AuthToken,
    Backoff,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    RefreshingProvider,
    RefreshPolicy,
    open_provider,
    open_resource,
)
from trio_renew.lowlevel import open_provider_with
from trio_renew.testing import (
    ScriptedFetch,
    Sleep,
    SweepFailure,
    Token,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    interrupt_at_every_line,
    under_schedules,
    victim,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[], Awaitable[object]]
    Operation = Callable[[RefreshingProvider[AuthToken]], Awaitable[object]]

POLICY = RefreshPolicy(jitter=0.0, leeway=0.0, min_interval=0.0, retry=Backoff(initial=0.1, jitter=0.0))


class Shelf:
    """A storage whose calls take a while."""

    def __init__(self) -> None:
        self.held: AuthToken | None = None

    async def get(self) -> AuthToken | None:
        await trio.sleep(0.1)
        return self.held

    async def set(self, value: AuthToken) -> None:
        await trio.sleep(0.1)
        self.held = value

    async def clear(self) -> None:
        await trio.sleep(0.1)
        self.held = None


async def take_one(provider: RefreshingProvider[AuthToken]) -> None:
    async for _ in provider.changes():
        break


OPERATIONS: dict[str, Operation] = {
    "get": lambda provider: provider.get(),
    "lease": lambda provider: provider.lease(),
    "refresh": lambda provider: provider.refresh(),
    "refresh_stale": lambda provider: provider.refresh(stale=AuthToken("old", 1.0)),
    "clear": lambda provider: provider.clear(),
    "changes": take_one,
}
STATES = {"empty": 0.0, "good": 1.0, "due": 50.0, "expired": 70.0}


async def quietly(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except (TimeoutError, trio.ClosedResourceError, OSError):
        pass


def adds_up(events: list[Event]) -> None:
    """Check that each start has one end, and that closing came last."""
    running = 0
    for event in events:
        if isinstance(event, FetchStarted):
            running += 1
        elif isinstance(event, FetchSucceeded | FetchFailed | FetchAbandoned):
            running -= 1
        assert running >= 0
    assert running == 0
    assert isinstance(events[-1], OwnerClosed)


def scenario_of(
    operation: Operation,
    *,
    state: str,
    others: int = 0,
    when_abandoned: Any = "finish",
    victim_is: str = "caller",
    storage: bool = False,
    hook: Callable[[], Awaitable[object]] | None = None,
) -> Scenario:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(0.2, Token("a", 60.0)))
        events: list[Event] = []
        async with open_provider_with(
            hook,
            fetch,
            eager=state != "empty",
            policy=POLICY,
            when_abandoned=when_abandoned,
            observe=events.append,
            storage=Shelf() if storage else None,
        ) as provider:
            await trio.sleep(STATES[state])
            async with trio.open_nursery() as nursery:
                calls = [operation] + [OPERATIONS["get"]] * others
                if operation is take_one:
                    nursery.start_soon(provider.refresh)
                for number, call in enumerate(calls):
                    if (number == 0) == (victim_is == "caller"):
                        nursery.start_soon(in_victim, call, provider)
                    else:
                        nursery.start_soon(call, provider)
            with trio.fail_after(1):
                await provider.get()
            status = provider.status()
            assert status.waiting == 0
            assert status.good
        assert fetch.most_running <= 1 or operation is OPERATIONS["clear"]  # what clear() fences may run on
        assert fetch.running == 0
        adds_up(events)

    return scenario


async def in_victim(call: Operation, provider: RefreshingProvider[AuthToken]) -> None:
    with victim():
        await call(provider)


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
@pytest.mark.parametrize("others", [0, 1, 4])
@pytest.mark.parametrize("state", list(STATES))
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_a_cancelled_caller_harms_nobody(operation: str, state: str, others: int, when_abandoned: Any) -> None:
    report = cancel_at_every_checkpoint(
        scenario_of(OPERATIONS[operation], state=state, others=others, when_abandoned=when_abandoned)
    )
    assert report.steps >= 1


@pytest.mark.parametrize("when_abandoned", ["finish", "cancel"])
@pytest.mark.parametrize("state", list(STATES))
@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_with_a_storage(operation: str, state: str, when_abandoned: Any) -> None:
    report = cancel_at_every_checkpoint(
        scenario_of(OPERATIONS[operation], state=state, others=1, when_abandoned=when_abandoned, storage=True)
    )
    assert report.steps >= 1


@pytest.mark.parametrize("state", list(STATES))
@pytest.mark.parametrize("operation", ["get", "refresh", "lease"])
def test_cancelled_in_the_handoff_window(operation: str, state: str) -> None:
    async def hook() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    report = cancel_at_every_checkpoint(scenario_of(OPERATIONS[operation], state=state, others=2, hook=hook))
    assert report.steps >= 1


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize("keep_warm", [0.0, float("inf")])
def test_the_parent_of_the_owner_cancelled_at_every_step(keep_warm: float, storage: bool) -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(0.2, Token("a", 60.0)))
        events: list[Event] = []
        outcomes: list[object] = []
        started = trio.current_time()

        async def caller(provider: RefreshingProvider[AuthToken]) -> None:
            try:
                while True:
                    outcomes.append(await provider.get())
                    await trio.sleep(7)
            except trio.ClosedResourceError as exc:
                outcomes.append(exc)

        async with trio.open_nursery() as elsewhere:
            with victim():
                async with open_provider(
                    fetch,
                    policy=POLICY,
                    keep_warm=keep_warm,
                    observe=events.append,
                    storage=Shelf() if storage else None,
                ) as provider:
                    elsewhere.start_soon(caller, provider)
                    await trio.sleep(50)
                    await provider.get()
                    await provider.clear()
                    await provider.refresh()
                    await trio.sleep(70)
        assert trio.current_time() - started < 130
        assert not outcomes or isinstance(outcomes[-1], trio.ClosedResourceError)
        assert fetch.running == 0
        adds_up(events)

    report = cancel_at_every_checkpoint(scenario)
    assert report.steps > 20


@pytest.mark.parametrize("state", list(STATES))
def test_the_source_fails_at_every_step(state: str) -> None:
    fetches: list[ScriptedFetch] = []

    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(0.2, Token("a", 60.0)))
        fetches.append(fetch)
        events: list[Event] = []
        async with open_provider(fetch, eager=False, policy=POLICY, observe=events.append) as provider:
            if state != "empty":
                await provider.get()
            await trio.sleep(STATES[state])
            with victim():
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(quietly, provider.get)
                    nursery.start_soon(quietly, provider.refresh)
            with trio.fail_after(1):
                await provider.get()
            assert provider.status().waiting == 0
        adds_up(events)

    report = do_at_every_checkpoint(scenario, lambda: fetches[-1].fail(OSError("down")))
    assert report.steps >= 5


@pytest.mark.parametrize("state", list(STATES))
def test_clear_at_every_step(state: str) -> None:
    opened: list[RefreshingProvider[AuthToken]] = []

    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(0.2, Token("a", 60.0)))
        events: list[Event] = []
        shelf = Shelf()
        async with open_provider(fetch, eager=False, policy=POLICY, observe=events.append, storage=shelf) as provider:
            opened.append(provider)
            if state != "empty":
                await provider.get()
            await trio.sleep(STATES[state])
            with victim():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(provider.get)
                    nursery.start_soon(provider.refresh)
            with trio.fail_after(1):
                token = await provider.get()
            assert shelf.held is token
        adds_up(events)

    report = do_at_every_checkpoint(scenario, lambda: quietly(opened[-1].clear))
    assert report.steps >= 5


def test_interrupted_at_every_line() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Token("a", 60.0))
        events: list[Event] = []
        try:
            async with open_provider(fetch, policy=POLICY, observe=events.append, storage=Shelf()) as provider:
                await trio.sleep(50)
                await provider.get()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(provider.refresh)
                    nursery.start_soon(provider.get)
                await provider.clear()
                await provider.lease()
                await take_one(provider)
                provider.status()
        finally:
            if events:
                adds_up(events)
            assert fetch.running == 0

    report = interrupt_at_every_line(scenario, within=trio_renew)
    assert report.steps > 500


def test_interrupted_with_a_hook_and_a_failing_source() -> None:
    async def hook() -> None:
        await trio.lowlevel.checkpoint()

    async def scenario() -> None:
        fetch = ScriptedFetch(OSError("down"), then=Token("a", 60.0))
        events: list[Event] = []
        try:
            async with open_provider_with(hook, fetch, eager=False, policy=POLICY, observe=events.append) as provider:
                await quietly(provider.get)
                await provider.get()
                with trio.fail_after(1):
                    await provider.refresh()
                await trio.sleep(50)
                provider.get_nowait()
                await trio.sleep(1)
        finally:
            if events:
                adds_up(events)

    report = interrupt_at_every_line(scenario, within=trio_renew)
    assert report.steps > 300


def test_an_interrupt_in_get_nowait_does_not_wedge_the_refresh_that_it_starts(calm: Any) -> None:
    async def scenario() -> None:
        quiet = calm()
        fetch = ScriptedFetch(then=Token("a", 60.0))
        async with open_provider(fetch, policy=POLICY) as provider:
            await trio.sleep(50)

            async def get_nowait() -> None:
                provider.get_nowait()

            await quiet.survive(get_nowait)
            await trio.sleep(70)
            with trio.fail_after(1):
                await provider.get()

    assert interrupt_at_every_line(scenario, within=trio_renew).steps >= 2


def test_under_many_schedules() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Sleep(0.2, "a"))
        async with open_resource(fetch) as resource, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(resource.get)
                nursery.start_soon(resource.clear)
                nursery.start_soon(resource.refresh)
            with trio.move_on_after(0.1):
                await resource.get()
        assert fetch.running == 0

    assert under_schedules(scenario, seeds=100).steps == 100


def test_the_sweep_finds_a_naive_flight() -> None:
    """What the sweeps above would say of a leader that fetches in its own task and forgets to wake the others."""

    async def scenario() -> None:
        event: trio.Event | None = None

        async def get() -> None:
            nonlocal event
            if event is None:
                event = trio.Event()
                await trio.sleep(0.2)
                event.set()
            else:
                await event.wait()

        async def leader() -> None:
            with victim():
                await get()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader)
            await trio.sleep(0.1)
            nursery.start_soon(get)
        with trio.fail_after(1):
            await get()

    with pytest.raises(SweepFailure):
        cancel_at_every_checkpoint(scenario)
