"""Cancellation sweeps find planted defects at the right step, and nothing in sound code."""

import contextlib
import gc
import inspect
import signal
import threading
import time
from functools import partial

import pytest
import trio
import trio.testing

from trio_renew.testing import (
    Block,
    ScriptedFetch,
    SweepFailure,
    SweepReport,
    _runs as runs,
    _sweeps as sweeps,
    cancel_at_every_checkpoint,
    victim,
)


def line_of(function, text):
    """``file:line`` of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    found = [number for number, line in enumerate(lines, first) if text in line]
    assert len(found) == 1
    return f"{inspect.getsourcefile(inspect.unwrap(function))}:{found[0]}"


# Planted defects


class LeakyPool:
    """Forgets to give its place back when the user is cancelled."""

    def __init__(self):
        self.places = trio.Semaphore(1)

    async def use(self):
        await self.places.acquire()
        await trio.sleep(1)
        self.places.release()


async def test_the_pool_is_fine_without_cancellation(autojump_clock):
    pool = LeakyPool()
    await pool.use()
    await pool.use()


async def leaky():
    pool = LeakyPool()
    with victim():
        await pool.use()
    with trio.fail_after(5):
        await pool.use()


def test_a_leaked_semaphore_is_found():
    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(leaky)
    failure = caught.value
    assert isinstance(failure, AssertionError)
    # Cancelled at its entry the pool is never entered; the next step is inside.
    assert (failure.step, failure.seed) == (1, 0)
    assert isinstance(failure.__cause__, trio.TooSlowError)
    text = str(failure)
    assert "step 1" in text
    assert failure.place in text
    assert "cancel_at_every_checkpoint(leaky, only=1)" in text


def test_the_failure_can_be_repeated_alone():
    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(leaky, only=1)
    assert caught.value.step == 1
    assert cancel_at_every_checkpoint(leaky, only=0) == SweepReport(2)


class WaitersThatSleepOn:
    """A hand-made event whose setter is a task that can be cancelled: then nobody is ever woken."""

    def __init__(self):
        self.event = trio.Event()

    async def work(self):
        await trio.sleep(1)
        await trio.sleep(2)
        self.event.set()

    async def wait(self):
        await self.event.wait()


async def never_woken():
    waiters = WaitersThatSleepOn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiters.wait, name="the waiter")
        with victim():
            await waiters.work()


def test_a_waiter_who_is_never_woken_is_found():
    with pytest.raises(SweepFailure, match="never ends: nobody can go on") as caught:
        cancel_at_every_checkpoint(never_woken)
    failure = caught.value
    assert failure.step == 0
    assert failure.place == line_of(never_woken, "with victim()")
    assert failure.__cause__ is None
    assert f"the waiter at {line_of(WaitersThatSleepOn.wait, 'await')}" in str(failure)
    assert "    never_woken at " in str(failure)
    # Each single step repeats, with the place where the victim stood.
    for step, where in ((2, "sleep(1)"), (3, "sleep(2)")):
        with pytest.raises(SweepFailure) as caught:
            cancel_at_every_checkpoint(never_woken, only=step)
        assert caught.value.step == step
        assert caught.value.place == line_of(WaitersThatSleepOn.work, where)


class FlaggedCache:
    """One loader, shown by a flag; those who find it set wait for the value. Wrong: the flag outlives the loader."""

    def __init__(self):
        self.loading = False
        self.value = None

    async def get(self):
        await trio.lowlevel.checkpoint()
        if self.value is None:
            while self.loading:
                await trio.sleep(1)
            self.loading = True
            await trio.sleep(3)
            self.value = "value"
            self.loading = False
        return self.value


async def flagged():
    cache = FlaggedCache()
    with victim():
        await cache.get()
    return cache


def test_a_run_that_goes_on_for_ever_is_found(monkeypatch):
    monkeypatch.setattr(sweeps, "SPARE_STEPS", 1000)

    async def scenario():
        cache = await flagged()
        await cache.get()

    with pytest.raises(SweepFailure, match=r"never ends: it has made 1[0-9]+ steps") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 2
    assert caught.value.place == line_of(FlaggedCache.get, "await trio.sleep(3)")


def test_the_check_finds_it_too():
    def check(cache):
        assert not cache.loading, "the flag is still set"

    with pytest.raises(SweepFailure, match="the check raised AssertionError: the flag is still set") as caught:
        cancel_at_every_checkpoint(flagged, check)
    assert caught.value.step == 2
    assert "cancel_at_every_checkpoint(flagged, check, only=2)" in str(caught.value)


async def while_it_only_waits():
    """The victim waits; all steps are made by others."""
    log = []
    ready = trio.Event()

    async def other():
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        log.append("done")
        ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with victim():
            await ready.wait()
            log.append("woken")
    return log


def test_steps_of_others_count_while_the_victim_only_waits():
    seen = []
    report = cancel_at_every_checkpoint(while_it_only_waits, seen.append)
    assert report.steps == 7
    # Undisturbed, at the entry and before 7 steps, and undisturbed again. When the victim is cancelled just before
    # its own last step, it has been woken already.
    assert seen[0] == ["done", "woken"]
    assert seen[1:8] == [["done"]] * 7
    assert seen[8:] == [["done", "woken"]] * 2


def test_the_place_is_where_the_victim_stood_not_who_made_the_step():
    def check(log):
        assert "woken" in log

    for step in (1, 3, 6):
        with pytest.raises(SweepFailure) as caught:
            cancel_at_every_checkpoint(while_it_only_waits, check, only=step)
        assert caught.value.place == line_of(while_it_only_waits, "await ready.wait()")


def test_without_a_victim_the_whole_scenario_is_cancelled():
    results = []

    async def scenario():
        await trio.sleep(1)
        await trio.sleep(1)
        return "end"

    report = cancel_at_every_checkpoint(scenario, results.append)
    assert report.steps == 2
    # Undisturbed; at the entry and before both steps (a sleep that is over still answers); undisturbed again.
    assert results == ["end", None, None, None, "end"]


def test_the_whole_scenario_stands_at_its_first_line_when_it_is_cancelled_at_once():
    async def scenario():
        await trio.sleep(1)

    def check(result=None):
        raise ValueError("no")

    def only_cancelled(result):
        assert undisturbed.pop(), "no"

    undisturbed = [False, True]
    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(scenario, only_cancelled)
    assert caught.value.step == 0
    assert caught.value.place == line_of(scenario, "async def scenario")
    with pytest.raises(SweepFailure, match="fails undisturbed") as caught:
        cancel_at_every_checkpoint(scenario, check)
    assert caught.value.step is None
    assert caught.value.place is None


def test_places_inside_of_context_managers_and_generators():
    @contextlib.asynccontextmanager
    async def opened():
        await trio.sleep(1)
        yield
        await trio.sleep(2)

    async def numbers():
        await trio.sleep(3)
        yield 1

    async def scenario():
        with victim():
            async with opened():
                pass
            async with contextlib.aclosing(numbers()) as them:
                async for _ in them:
                    pass
        return True

    def check(result):
        assert undisturbed.pop()

    for step, where in ((1, "sleep(1)"), (2, "sleep(2)")):
        undisturbed = [False, True]
        with pytest.raises(SweepFailure) as caught:
            cancel_at_every_checkpoint(scenario, check, only=step)
        assert caught.value.place == line_of(opened, where)
    undisturbed = [False, True]
    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(scenario, check, only=3)
    assert caught.value.place == line_of(numbers, "sleep(3)")


# Sound code


async def trios_lock():
    lock = trio.Lock()

    async def use():
        async with lock:
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        nursery.start_soon(use)
        with victim():
            await use()
    with trio.fail_after(0.5):
        async with lock:
            pass


async def trios_channel():
    send, receive = trio.open_memory_channel(1)
    got = []

    async def produce():
        async with send:
            for n in range(5):
                await send.send(n)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        with victim():
            got.append(await receive.receive())
            got.append(await receive.receive())
        got += [n async for n in receive]
    assert sorted(got) == got
    assert len(got) == 5


async def trios_event_and_nursery():
    event = trio.Event()

    async def child(n):
        await event.wait()
        await trio.sleep(n)

    async with trio.open_nursery() as outer:
        outer.start_soon(child, 1)
        with victim():
            async with trio.open_nursery() as nursery:
                for n in range(4):
                    nursery.start_soon(child, n)
                await trio.sleep(1)
                event.set()
        event.set()


async def trios_condition():
    condition = trio.Condition()
    woken = []

    async def wait(name):
        async with condition:
            await condition.wait()
            woken.append(name)

    async def wake():
        for _ in range(3):
            await trio.sleep(1)
            async with condition:
                condition.notify_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "other")
        nursery.start_soon(wake)
        with victim():
            await wait("victim")
    assert "other" in woken


async def shielded():
    done = []
    with victim():
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            done.append("inner")
        await trio.sleep(1)
    assert done == ["inner"]


@pytest.mark.parametrize(
    "scenario",
    [trios_lock, trios_channel, trios_event_and_nursery, trios_condition, shielded],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_found_in_sound_code(scenario, seed):
    assert cancel_at_every_checkpoint(scenario, seed=seed).steps >= 2


def test_a_victim_in_a_child_task():
    async def scenario():
        seen = []

        async def child():
            with victim() as scope:
                await trio.sleep(1)
                await trio.sleep(1)
            seen.append(scope.cancelled_caught)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep, 5)
        assert trio.current_time() == 5
        return seen

    results = []
    assert cancel_at_every_checkpoint(scenario, results.append).steps == 2
    assert results == [[False], [True], [True], [True], [False]]


def test_code_that_ends_its_own_scope_is_not_disturbed_later():
    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        caught = scope.cancelled_caught
        await trio.sleep(1)
        return caught

    seen = []
    assert cancel_at_every_checkpoint(scenario, seen.append).steps == 1
    assert seen == [False, True, True, False]


# Checks


def test_a_check_may_be_async_and_runs_in_the_same_run():
    times = []

    async def scenario():
        with victim():
            await trio.sleep(1)
        await trio.sleep(4)
        return trio.current_time()

    async def check(ended):
        await trio.sleep(1)
        times.append((ended, trio.current_time()))

    cancel_at_every_checkpoint(scenario, check)
    assert times == [(5, 6), (4, 5), (5, 6), (5, 6)]


@pytest.mark.parametrize("takes", ["nothing", "one", "perhaps", "any", "keywords"])
def test_a_check_gets_the_result_if_it_takes_an_argument(takes):
    seen = []
    checks = {
        "nothing": lambda: seen.append("called"),
        "one": lambda result: seen.append(result),
        "perhaps": lambda result=None: seen.append(result),
        "any": lambda *results: seen.extend(results),
        "keywords": lambda **results: seen.append("called"),
    }

    async def scenario():
        with victim():
            await trio.sleep(1)
        return "result"

    cancel_at_every_checkpoint(scenario, checks[takes])
    assert seen == ["called" if takes in ("nothing", "keywords") else "result"] * 4


def test_a_check_without_a_signature_gets_nothing():
    class NoSignature:
        __signature__ = "none"

        def __call__(self):
            seen.append("called")

    seen = []
    cancel_at_every_checkpoint(five_steps, NoSignature(), only=0)
    assert seen == ["called", "called"]


def test_a_lambda_that_returns_a_coroutine_is_awaited():
    seen = []

    async def note(result):
        await trio.sleep(1)
        seen.append(result)

    async def work():
        await trio.sleep(1)
        return "done"

    cancel_at_every_checkpoint(lambda: work(), lambda result: note(result))
    assert seen == ["done", None, None, "done"]


# What leaves, and how


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_and_exit_leave_as_themselves(kind):
    async def at_once():
        await trio.sleep(1)
        raise kind

    with pytest.raises(kind):
        cancel_at_every_checkpoint(at_once)

    async def when_cancelled():
        with victim() as scope:
            await trio.sleep(1)
        if scope.cancelled_caught:
            raise kind

    with pytest.raises(kind):
        cancel_at_every_checkpoint(when_cancelled)

    async def in_a_child():
        async def child():
            raise kind

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    with pytest.raises(BaseExceptionGroup) as caught:
        cancel_at_every_checkpoint(in_a_child)
    assert isinstance(caught.value.exceptions[0], kind)

    async def fine():
        await trio.sleep(1)

    def check():
        raise kind

    with pytest.raises(kind):
        cancel_at_every_checkpoint(fine, check)


def test_other_exceptions_are_failures_whatever_they_are():
    class Odd(BaseException):
        pass

    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        if scope.cancelled_caught:
            raise Odd("seen")

    with pytest.raises(SweepFailure, match="the scenario raised Odd: seen") as caught:
        cancel_at_every_checkpoint(scenario)
    assert isinstance(caught.value.__cause__, Odd)


def test_a_group_of_one_is_told_by_its_content():
    async def scenario():
        async def child():
            raise ValueError("inner")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    with pytest.raises(SweepFailure, match="raised ValueError: inner") as caught:
        cancel_at_every_checkpoint(scenario)
    assert isinstance(caught.value.__cause__, ExceptionGroup)


def test_a_scenario_that_fails_undisturbed_says_so():
    error = ValueError("always")

    async def scenario():
        await trio.sleep(1)
        raise error

    with pytest.raises(SweepFailure, match=r"the scenario fails undisturbed \(seed 3\)") as caught:
        cancel_at_every_checkpoint(scenario, seed=3)
    assert caught.value.step is None
    assert caught.value.seed == 3
    assert caught.value.__cause__ is error
    assert "cancel_at_every_checkpoint(scenario, seed=3)" in str(caught.value)


def test_a_scenario_that_never_ends_undisturbed_says_so(monkeypatch):
    async def asleep():
        await trio.sleep_forever()

    with pytest.raises(SweepFailure, match=r"(?s)fails undisturbed.*nobody can go on"):
        cancel_at_every_checkpoint(asleep)

    async def restless():
        while True:
            await trio.sleep(1)

    monkeypatch.setattr(runs.Run.__init__, "__kwdefaults__", runs.Run.__init__.__kwdefaults__ | {"most": 1000})
    with pytest.raises(SweepFailure, match=r"(?s)fails undisturbed.*it has made 1001 steps"):
        cancel_at_every_checkpoint(restless)


def test_a_crash_of_a_system_task_is_found():
    async def scenario():
        async def crash():
            raise ValueError("system")

        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep(1)

    with pytest.raises(SweepFailure, match="the run raised TrioInternalError"):
        cancel_at_every_checkpoint(scenario)


def test_steps_of_system_tasks_that_the_scenario_starts_count():
    async def scenario():
        async def background():
            for _ in range(3):
                await trio.sleep(1)

        trio.lowlevel.spawn_system_task(background)
        await trio.sleep(10)

    assert cancel_at_every_checkpoint(scenario).steps == 5


# Limits and single steps


async def five_steps():
    for _ in range(5):
        await trio.sleep(1)


def test_only_beyond_the_last_step():
    assert cancel_at_every_checkpoint(five_steps, only=5).steps == 5
    with pytest.raises(ValueError, match="only=6: the scenario has 5 steps"):
        cancel_at_every_checkpoint(five_steps, only=6)


def test_limit():
    assert cancel_at_every_checkpoint(five_steps, limit=5).steps == 5
    with pytest.raises(SweepFailure, match="limit=4 is reached: the scenario has 5 steps") as caught:
        cancel_at_every_checkpoint(five_steps, limit=4)
    assert caught.value.step == 5


def test_a_victim_without_a_step_tests_nothing():
    async def nothing():
        pass

    async def empty_victim():
        await trio.sleep(1)
        with victim():
            pass
        await trio.sleep(1)

    for scenario in (nothing, empty_victim):
        with pytest.raises(ValueError, match="nothing was tested"):
            cancel_at_every_checkpoint(scenario)


def test_a_second_victim_is_refused():
    async def scenario():
        with victim():
            await trio.sleep(1)
        with pytest.raises(RuntimeError, match="a scenario has one victim"):
            with victim():
                raise AssertionError("not reached")

    assert cancel_at_every_checkpoint(scenario).steps == 1

    async def careless():
        for _ in range(2):
            with victim():
                await trio.sleep(1)

    with pytest.raises(SweepFailure) as caught:
        cancel_at_every_checkpoint(careless)
    # A mistake of the test rather than a finding: it can be caught as what it is.
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_outside_of_a_sweep_a_victim_is_a_plain_scope(autojump_clock):
    for _ in range(2):
        with victim() as scope:
            assert isinstance(scope, trio.CancelScope)
            scope.cancel()
            await trio.sleep(1)
        assert scope.cancelled_caught


def test_outside_of_trio_a_victim_says_what_a_scope_says():
    with pytest.raises(RuntimeError, match="async context"):
        with victim():
            raise AssertionError("not reached")


def test_a_victim_that_only_the_first_run_has_tests_nothing():
    runs_made = []

    async def scenario():
        runs_made.append(None)
        if len(runs_made) == 1:
            with victim():
                await five_steps()

    with pytest.raises(ValueError, match=r"(?s)nothing was tested.*not repeat"):
        cancel_at_every_checkpoint(scenario)
    runs_made.clear()
    with pytest.raises(ValueError, match="only=3"):
        cancel_at_every_checkpoint(scenario, only=3)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"only": -1}, ValueError),
        ({"only": 1.0}, TypeError),
        ({"only": True}, TypeError),
        ({"limit": 0}, ValueError),
        ({"limit": "many"}, TypeError),
        ({"seed": None}, TypeError),
        ({"check": 3}, TypeError),
    ],
    ids=repr,
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        cancel_at_every_checkpoint(five_steps, **arguments)


def test_a_scenario_must_be_an_async_function():
    with pytest.raises(TypeError, match="without parentheses"):
        cancel_at_every_checkpoint(five_steps())
    with pytest.raises(TypeError, match="scenario: a function is needed"):
        cancel_at_every_checkpoint(None)
    with pytest.raises(TypeError, match="scenario: an async function of no arguments is needed"):
        cancel_at_every_checkpoint(lambda: None)


async def test_it_cannot_be_called_inside_of_trio():
    with pytest.raises(RuntimeError, match="call it from a plain"):
        cancel_at_every_checkpoint(five_steps)


async def test_it_can_be_called_in_a_thread():
    report = await trio.to_thread.run_sync(cancel_at_every_checkpoint, five_steps)
    assert report.steps == 5


def test_one_sweep_at_a_time():
    async def scenario():
        await trio.to_thread.run_sync(second)

    def second():
        with pytest.raises(RuntimeError, match="another sweep is going on"):
            cancel_at_every_checkpoint(five_steps)
        seen.append(True)

    seen = []
    cancel_at_every_checkpoint(scenario, only=0)
    assert seen


# Runs that do not want to end


def test_a_shielded_deadlock_ends():
    async def scenario():
        pool = LeakyPool()
        with victim():
            await pool.use()
        with trio.CancelScope(shield=True):
            await pool.use()

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 1


def test_a_task_that_ignores_cancellation_ends():
    async def scenario():
        pool = LeakyPool()
        with victim():
            await pool.use()
        while True:
            try:
                await pool.use()
                break
            except trio.Cancelled:  # noqa: ASYNC103
                pass

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 1


def test_a_task_that_ignores_everything_is_torn_down():
    async def scenario():
        pool = LeakyPool()
        with victim():
            await pool.use()
        ends = 0
        # It outlives all cancellations, and what is raised in it then.
        while ends < 65:
            try:
                with trio.CancelScope(shield=ends % 2 > 0):
                    await pool.use()
                break
            except BaseException:
                ends += 1

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 1


async def shielded():
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def in_a_nursery():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("wait", [shielded, in_a_nursery, trio.sleep_forever, partial(trio.sleep, 1)])
def test_a_task_that_never_stops_swallowing_everything_is_torn_down(wait, monkeypatch):
    monkeypatch.setitem(runs.Run.__init__.__kwdefaults__, "most", 1000)

    async def scenario():
        while True:
            try:
                await wait()
            except BaseException:
                pass

    with pytest.raises(SweepFailure, match="it never ends"):
        cancel_at_every_checkpoint(scenario)
    # Nor does it go on when it is forgotten.
    gc.collect()
    assert cancel_at_every_checkpoint(partial(trio.sleep, 1)).steps == 1


def test_a_task_that_spins_and_ignores_cancellation_is_torn_down(monkeypatch):
    monkeypatch.setattr(sweeps, "SPARE_STEPS", 1000)

    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        while scope.cancelled_caught:
            try:
                await trio.sleep(1)
            except trio.Cancelled:  # noqa: ASYNC103
                pass

    with pytest.raises(SweepFailure, match="it has made") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 0


def test_a_task_that_shields_itself_again_and_again_is_torn_down():
    async def scenario():
        pool = LeakyPool()
        with victim():
            await pool.use()
        while True:
            with trio.CancelScope(shield=True):
                try:
                    await pool.use()
                    break
                except trio.Cancelled:  # noqa: ASYNC103
                    pass

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 1


def test_a_wait_that_cannot_be_aborted_is_torn_down():
    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        if scope.cancelled_caught:
            await trio.lowlevel.wait_task_rescheduled(lambda raise_cancel: trio.lowlevel.Abort.FAILED)

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        cancel_at_every_checkpoint(scenario)
    assert caught.value.step == 0


def test_a_task_that_spins_from_its_first_step_is_torn_down(monkeypatch):
    monkeypatch.setattr(sweeps, "SPARE_STEPS", 0)

    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        if scope.cancelled_caught:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:

                    async def again():
                        nursery.start_soon(again)

                    nursery.start_soon(again)

    with pytest.raises(SweepFailure, match="it has made"):
        cancel_at_every_checkpoint(scenario)


async def test_a_deadline_is_waited_for(autojump_clock):
    run = runs.Run(five_steps, None)
    with trio.move_on_after(5):
        await trio.lowlevel.checkpoint()
        run.stuck(runs._Probe.PATIENT_ROUNDS)
        assert run.endless is None
        # Unless the clock does not come nearer to it.
        run.stuck(100)
        assert run.endless == "it never ends: nobody can go on"


def test_a_victim_that_only_later_runs_have():
    made = []

    async def scenario():
        made.append(None)
        with contextlib.ExitStack() as stack:
            if len(made) > 1:
                stack.enter_context(victim())
            await trio.sleep(1)

    # The first run has made the whole scenario the victim.
    assert cancel_at_every_checkpoint(scenario).steps == 1


def test_an_interrupt_that_is_still_pending_at_the_end_leaves():
    @trio.lowlevel.enable_ki_protection
    async def scenario():
        await trio.sleep(1)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        cancel_at_every_checkpoint(scenario)


def test_a_cancelled_of_long_ago_is_a_finding():
    async def scenario():
        kept = []
        with victim() as scope:
            try:
                await trio.sleep(1)
            except trio.Cancelled as error:
                kept.append(error)
                raise
        if scope.cancelled_caught:
            raise kept[0]

    with pytest.raises(SweepFailure, match="the run raised Cancelled"):
        cancel_at_every_checkpoint(scenario)


def test_a_thread_may_still_wake_a_run():
    async def scenario():
        await trio.to_thread.run_sync(time.sleep, 0.05)

    assert cancel_at_every_checkpoint(scenario).steps == 2


def test_a_thread_of_the_users_may_still_wake_a_run():
    async def scenario():
        event = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def later():
            time.sleep(0.05)
            token.run_sync_soon(event.set)

        thread = threading.Thread(target=later)
        thread.start()
        try:
            with trio.CancelScope(shield=True):
                await event.wait()
        finally:
            thread.join()

    assert cancel_at_every_checkpoint(scenario).steps == 1


def test_a_socket_may_still_wake_a_run_but_not_for_ever(monkeypatch):
    async def scenario():
        left, right = trio.socket.socketpair()
        with left, right:
            with victim() as scope:
                await left.send(b"x")
                await trio.lowlevel.checkpoint()
            if scope.cancelled_caught and not sent:
                await right.recv(1)
            await right.recv(1)

    sent = [True]
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    with pytest.raises(SweepFailure, match="nobody can go on"):
        cancel_at_every_checkpoint(scenario)


async def test_the_clock_of_a_run_stays_usable():
    """A run under MockClock: autojump, from 0."""

    def sweep():
        async def scenario():
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, trio.testing.MockClock)
            assert clock.autojump_threshold == 0
            assert trio.current_time() == 0
            await trio.sleep(1000)

        return cancel_at_every_checkpoint(scenario)

    assert (await trio.to_thread.run_sync(sweep)).steps == 1


def test_a_scripted_source_in_a_sweep():
    async def scenario():
        fetch = ScriptedFetch(then=Block("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            await fetch.called()
            fetch.release()
        return fetch

    def check(fetch):
        assert fetch is None or fetch.running == 0

    assert cancel_at_every_checkpoint(scenario, check).steps >= 3
