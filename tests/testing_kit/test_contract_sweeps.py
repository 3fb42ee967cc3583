"""Sweeps, held to their promises by an onlooker that shares no code with them."""

import contextlib
import functools
import gc
import os
import random
import signal
import sys
import threading
import warnings

import pytest
import trio

from trio_renew import open_provider, open_resource
from trio_renew.testing import (
    ScriptedFetch,
    Sleep,
    SweepFailure,
    SweepReport,
    Token,
    _runs as runs,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    interrupt_at_every_line,
    under_schedules,
    victim,
)

HERE = sys.modules[__name__]


class Onlooker(trio.abc.Instrument):
    """Sees each step that a task makes inside of a victim, and whether that was cancelled by then."""

    def __init__(self, scope):
        self.scope = scope
        self.at_entry = scope.cancel_called
        self.steps = []

    def before_task_step(self, task):
        if not task.name.startswith("<"):  # Trio's own
            self.steps.append(self.scope.cancel_called)


class Watched:
    """Opens victims under the eye of an onlooker; one of each run is kept."""

    def __init__(self):
        self.onlookers = []

    @contextlib.contextmanager
    def victim(self):
        with victim() as scope:
            onlooker = Onlooker(scope)
            self.onlookers.append(onlooker)
            trio.lowlevel.add_instrument(onlooker)
            try:
                yield scope
            finally:
                trio.lowlevel.remove_instrument(onlooker)


async def waits_for_a_lock(watched):
    lock = trio.Lock()

    async def other():
        for _ in range(3):
            async with lock:
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(other)
        with watched.victim():
            async with lock:
                await trio.sleep(10)
    with trio.fail_after(0.1):
        await lock.acquire()


async def reads_a_channel(watched):
    send, receive = trio.open_memory_channel(2)

    async def produce():
        async with send:
            with contextlib.suppress(trio.BrokenResourceError):
                for number in range(5):
                    await send.send(number)

    async def started(task_status):
        await trio.sleep(1)
        task_status.started()
        await trio.sleep(1)

    async with receive, trio.open_nursery() as nursery:
        with watched.victim():
            nursery.start_soon(produce)
            await nursery.start(started)
            async for _ in receive:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.1)
        receive.close()


async def is_notified(watched):
    condition = trio.Condition()

    async def notify():
        await trio.sleep(1)
        async with condition:
            condition.notify_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify)
        with watched.victim():
            async with condition:
                await condition.wait()
    assert not condition.locked()


async def asks_a_thread(watched):
    async def back():
        await trio.sleep(1)

    with watched.victim():
        await trio.to_thread.run_sync(lambda: trio.from_thread.run(back))


async def has_a_nursery(watched):
    async def child(n):
        with trio.move_on_after(n):
            await trio.sleep(2)

    with watched.victim():
        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(child, n)


async def asks_a_provider(watched):
    fetch = ScriptedFetch(then=Sleep(0.5, Token("a", 60.0)))
    async with open_provider(fetch, eager=False) as provider, trio.open_nursery() as nursery:
        nursery.start_soon(provider.get)
        with watched.victim():
            await provider.refresh()
            await provider.get()
        with trio.fail_after(1):
            await provider.get()


@pytest.mark.parametrize(
    "scenario",
    [waits_for_a_lock, reads_a_channel, is_notified, asks_a_thread, has_a_nursery, asks_a_provider],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_kth_run_is_cancelled_before_the_kth_step_of_any_task(scenario, seed):
    watched = Watched()
    steps = cancel_at_every_checkpoint(functools.partial(scenario, watched), seed=seed).steps
    undisturbed, at_entry, *disturbed, last = watched.onlookers
    assert undisturbed.steps == last.steps == [False] * steps
    assert at_entry.at_entry
    assert len(disturbed) == steps
    for step, onlooker in enumerate(disturbed, 1):
        assert not onlooker.at_entry
        # The onlooker is asked after the kit: it sees the scope cancelled at that very step, and ever after.
        assert onlooker.steps[:step] == [False] * (step - 1) + [True]
        assert all(onlooker.steps[step:])


def test_an_action_comes_at_the_same_places():
    watched = Watched()
    seen = []

    def action():
        seen.append(len(watched.onlookers[-1].steps))

    scenario = functools.partial(waits_for_a_lock, watched)
    steps = cancel_at_every_checkpoint(scenario).steps
    assert do_at_every_checkpoint(scenario, action).steps == steps
    assert seen[1:] == list(range(steps))  # at the entry this run has no onlooker yet


# What a victim is


async def two_children():
    async def child():
        with victim():
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        nursery.start_soon(child)


async def one_inside_of_the_other():
    with victim(), victim():
        await trio.sleep(1)


async def the_same_again():
    mark = victim()
    for _ in range(2):
        with mark:
            await trio.sleep(1)


SWEEPS = {
    "cancel": cancel_at_every_checkpoint,
    "do": lambda scenario, check=None: do_at_every_checkpoint(scenario, lambda: None, check),
    "schedules": lambda scenario, check=None: under_schedules(scenario, check, seeds=2),
    "interrupts": lambda scenario, check=None: interrupt_at_every_line(scenario, check, within=HERE),
}


@pytest.mark.parametrize("scenario", [two_children, one_inside_of_the_other, the_same_again])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_second_victim_is_a_runtime_error_wherever_it_comes_up(sweep, scenario):
    with pytest.raises(RuntimeError, match="second one in this run"):
        SWEEPS[sweep](scenario)


def test_a_victim_of_the_check_is_a_plain_scope():
    cancelled = []

    async def scenario():
        await trio.sleep(1)

    async def check():
        with victim() as scope:
            for _ in range(5):
                await trio.sleep(1)
        cancelled.append(scope.cancel_called)

    assert cancel_at_every_checkpoint(scenario, check) == SweepReport(1)
    assert cancelled == [False] * 4


def test_a_victim_that_outlives_the_scenario_is_left_in_peace_by_the_check():
    async def daemon():
        with victim():
            await trio.sleep(100)

    async def scenario():
        trio.lowlevel.spawn_system_task(daemon)
        await trio.sleep(1)

    async def check():
        for _ in range(5):
            await trio.sleep(1)

    # The daemon's beginning, and the end of the sleep.
    assert cancel_at_every_checkpoint(scenario, check).steps <= 2


class Callable:
    async def __call__(self):
        await trio.sleep(1)


async def sleeper(seconds):
    await trio.sleep(seconds)


@pytest.mark.parametrize(
    ("scenario", "where"),
    [
        (functools.partial(functools.partial(sleeper), 1), sleeper),
        (Callable(), Callable.__call__),
        (Callable().__call__, Callable.__call__),
        (functools.wraps(sleeper)(lambda: sleeper(1)), sleeper),
    ],
    ids=["partial", "object", "method", "wrapped"],
)
def test_a_whole_scenario_has_a_place_whatever_it_is(scenario, where):
    runs_seen = []

    def check():
        runs_seen.append(True)
        assert len(runs_seen) != 2

    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(scenario, check)
    assert caught.value.step == 0
    assert caught.value.place == f"{__file__}:{where.__code__.co_firstlineno}"


@pytest.mark.parametrize("seeds", [None, 3.5, "12", [1, "2"], [None]])
def test_seeds_that_are_none_are_named(seeds):
    with pytest.raises(TypeError, match="seeds: a whole number"):
        under_schedules(Callable(), seeds=seeds)


# The limit is what may be reached, not what may not


def test_as_many_steps_as_the_limit_are_fine():
    async def scenario():
        for _ in range(3):
            await trio.sleep(1)

    assert cancel_at_every_checkpoint(scenario, limit=3).steps == 3
    with pytest.raises(SweepFailure, match="limit=2") as caught:
        cancel_at_every_checkpoint(scenario, limit=2)
    assert caught.value.step == 3
    assert do_at_every_checkpoint(scenario, lambda: None, limit=3).steps == 3


# Actions


def test_an_owner_is_closed_at_each_step_and_its_callers_are_told():
    scope = trio.CancelScope()
    ends = []

    async def scenario():
        nonlocal scope
        scope = trio.CancelScope()
        fetch = ScriptedFetch(then=Sleep(1.0, "a"))

        async def caller(resource):
            with contextlib.suppress(trio.ClosedResourceError):
                ends.append(await resource.get())
                return
            ends.append("closed")

        async with trio.open_nursery() as callers:
            with scope:
                async with open_resource(fetch) as resource:
                    with victim():
                        callers.start_soon(caller, resource)
                        callers.start_soon(caller, resource)
                        await resource.get()
        assert fetch.running == 0

    steps = do_at_every_checkpoint(scenario, lambda: scope.cancel()).steps
    assert steps >= 5
    assert len(ends) == 2 * (steps + 3)
    assert set(ends) == {"a", "closed"}


def test_a_task_that_an_action_starts_is_the_scenarios_and_one_beside_it_is_not():
    nursery = None
    done = []

    async def scenario():
        nonlocal nursery
        done.clear()
        async with trio.open_nursery() as nursery:
            with victim():
                await trio.sleep(1)
                await trio.sleep(1)
        done.append("scenario")

    async def late(name, seconds):
        await trio.sleep(seconds)
        done.append(name)

    def check():
        done.append("check")

    assert do_at_every_checkpoint(scenario, lambda: nursery.start_soon(late, "task", 5), check, only=1).steps == 2
    assert done == ["task", "scenario", "check"]
    assert do_at_every_checkpoint(scenario, lambda: late("action", 5), check, only=1).steps == 2
    assert done == ["scenario", "action", "check"]


async def waits_for_ever():
    await trio.Event().wait()


def test_an_action_that_never_ends_is_told_with_its_place():
    async def scenario():
        with victim():
            await trio.sleep(1)

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        do_at_every_checkpoint(scenario, waits_for_ever)
    where = f"{__file__}:{waits_for_ever.__code__.co_firstlineno + 1}"
    # The scenario is over by then, and stands nowhere.
    assert str(caught.value).splitlines()[1] == f"    action at {where}"
    assert "None" not in str(caught.value)


# What leaves as itself, also in the middle


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["scenario", "child", "check"])
def test_interrupt_and_exit_leave_in_the_middle_of_a_sweep(kind, where):
    async def raises(scope):
        if scope.cancel_called:
            raise kind("mine")

    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        if where == "scenario":
            await raises(scope)
        elif where == "child":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raises, scope)
        return scope

    async def check(scope):
        if where == "check":
            await raises(scope)

    with pytest.raises((kind, BaseExceptionGroup)) as caught:
        cancel_at_every_checkpoint(scenario, check)
    error = caught.value
    if where == "child":
        (error,) = error.exceptions
    assert type(error) is kind
    assert error.args == ("mine",)


# What is left when a run had to be torn down


def process():
    old = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(old)
    return {
        "files": len(os.listdir("/dev/fd")),
        "wakeup": old,
        "interrupts": signal.getsignal(signal.SIGINT),
        "in a run": trio.lowlevel.in_trio_run(),
        "generators": sys.get_asyncgen_hooks(),
        "threads": threading.active_count(),
        "gc": gc.isenabled(),
        "warnings": list(warnings.filters),
        "random": random.getstate(),
    }


async def shielding_itself_again():
    for _ in range(200):
        with trio.CancelScope(shield=True), contextlib.suppress(BaseException):
            await trio.sleep_forever()


async def not_to_be_aborted():
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


async def spinning():
    while True:
        with contextlib.suppress(trio.Cancelled):
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("scenario", [shielding_itself_again, not_to_be_aborted, spinning])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_run_that_was_torn_down_leaves_nothing(sweep, scenario, monkeypatch):
    monkeypatch.setattr(runs.Run.__init__, "__kwdefaults__", {**runs.Run.__init__.__kwdefaults__, "most": 1000})
    before = process()
    with pytest.raises(SweepFailure, match="never ends"):
        SWEEPS[sweep](scenario)
    assert process() == before


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_check_that_never_ends_is_found(sweep):
    async def scenario():
        await trio.sleep(1)

    with pytest.raises(SweepFailure, match="nobody can go on"):
        SWEEPS[sweep](scenario, trio.sleep_forever)
