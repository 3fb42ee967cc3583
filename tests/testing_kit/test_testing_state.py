"""A sweep leaves nothing behind in the process, costs little, and needs no pytest."""

import gc
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pytest
import trio
import trio.testing

from trio_renew import open_resource
from trio_renew.testing import (
    ScriptedFetch,
    Sleep,
    SweepFailure,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    interrupt_at_every_line,
    under_schedules,
    victim,
)

trio_run = sys.modules["trio._core._run"]
THIS = sys.modules[__name__]


def state():
    """All that a sweep borrows."""
    return {
        "random": random.getstate(),
        "schedule": trio_run._r.getstate(),
        "deterministic": trio_run._ALLOW_DETERMINISTIC_SCHEDULING,
        "interrupts": signal.getsignal(signal.SIGINT),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "trace": sys.gettrace(),
        "profile": sys.getprofile(),
        "warnings": list(warnings.filters),
        "asyncgens": sys.get_asyncgen_hooks(),
        "unraisable": sys.unraisablehook,
        "in a run": trio.lowlevel.in_trio_run(),
    }


async def fine():
    random.random()
    with victim():
        await trio.sleep(1)
    await trio.sleep(1)


async def failing():
    random.random()
    with victim():
        await trio.sleep(1)
    raise ValueError("always")


async def interrupting():
    await trio.sleep(1)
    raise KeyboardInterrupt


async def fails_when_disturbed():
    with victim() as scope:
        await trio.sleep(1)
    assert not scope.cancel_called


async def never_ending():
    await trio.sleep_forever()


SWEEPS = {
    "cancel": cancel_at_every_checkpoint,
    "do": lambda scenario: do_at_every_checkpoint(scenario, lambda: None),
    "schedules": lambda scenario: under_schedules(scenario, seeds=3),
    "interrupts": lambda scenario: interrupt_at_every_line(scenario, within=THIS),
}


@pytest.mark.parametrize("collecting", [True, False], ids=["gc on", "gc off"])
@pytest.mark.parametrize("scenario", [fine, failing, interrupting, fails_when_disturbed, never_ending])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_no_global_state_is_left_behind(sweep, scenario, collecting):
    random.seed(123)
    was_collecting = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        before = state()
        try:
            SWEEPS[sweep](scenario)
        except (SweepFailure, KeyboardInterrupt):
            pass
        assert state() == before
    finally:
        (gc.enable if was_collecting else gc.disable)()


def test_each_run_has_a_seeded_random():
    seen = []

    async def scenario():
        with victim():
            await trio.sleep(1)
        return random.random()

    cancel_at_every_checkpoint(scenario, seen.append, seed=5)
    assert set(seen) == {random.Random(5).random()}


def test_the_collector_does_not_come_in_between():
    seen = []

    async def scenario():
        seen.append(gc.isenabled())
        await trio.sleep(1)

    cancel_at_every_checkpoint(scenario)
    assert set(seen) == {False}


def test_trios_own_interrupt_handling_is_as_outside():
    handlers = []

    async def scenario():
        handlers.append(signal.getsignal(signal.SIGINT))
        with victim():
            await trio.sleep(1)

    cancel_at_every_checkpoint(scenario)
    assert all(handler is not signal.default_int_handler for handler in handlers)

    async def interrupted():
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(1)

    for sweep in SWEEPS.values():
        with pytest.raises(KeyboardInterrupt):
            sweep(interrupted)


def test_warnings_are_as_outside():
    async def scenario():
        warnings.warn("careful", stacklevel=1)
        with victim():
            await trio.sleep(1)

    with pytest.warns(UserWarning, match="careful"):
        cancel_at_every_checkpoint(scenario)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SweepFailure, match="UserWarning: careful"):
            cancel_at_every_checkpoint(scenario)


def test_a_failure_holds_no_lock_for_the_next_sweep():
    with pytest.raises(SweepFailure):
        cancel_at_every_checkpoint(failing)
    assert cancel_at_every_checkpoint(fine).steps == 1


def test_what_a_sound_scenario_uses_is_gone_when_the_sweep_is():
    class Thing:
        pass

    async def scenario():
        thing = Thing()
        with victim():
            await trio.sleep(1)
        return thing

    cancel_at_every_checkpoint(scenario, lambda thing: None)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Thing]


def test_the_current_context_is_not_changed():
    import contextvars

    variable = contextvars.ContextVar("variable", default="outside")

    async def scenario():
        variable.set("inside")
        await trio.sleep(1)

    cancel_at_every_checkpoint(scenario)
    assert variable.get() == "outside"


async def a_dozen_steps():
    lock = trio.Lock()

    async def use():
        async with lock:
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use)


def best_of(function, runs):
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(runs):
            function()
        times.append((time.process_time() - start) / runs)
    return min(times)


def test_a_step_costs_at_most_three_bare_runs():
    def bare():
        trio.run(a_dozen_steps, clock=trio.testing.MockClock(autojump_threshold=0))

    steps = cancel_at_every_checkpoint(a_dozen_steps).steps
    assert steps >= 20
    alone = best_of(bare, 20)
    # Every step is a run; two more are undisturbed, and one is cancelled at the entry.
    swept = best_of(lambda: cancel_at_every_checkpoint(a_dozen_steps), 1) / (steps + 3)
    assert swept <= 3 * alone


def test_an_interrupted_run_costs_at_most_three_bare_runs():
    def bare():
        trio.run(a_dozen_steps, clock=trio.testing.MockClock(autojump_threshold=0))

    lines = interrupt_at_every_line(a_dozen_steps, within=THIS).steps
    alone = best_of(bare, 20)
    swept = best_of(lambda: interrupt_at_every_line(a_dozen_steps, within=THIS), 1) / (lines + 2)
    assert swept <= 3 * alone


def test_it_works_without_pytest_and_registers_nothing():
    program = textwrap.dedent(
        """
        import sys
        import trio_renew
        assert "trio_renew.testing" not in sys.modules, "imported with the library"
        assert "trio.testing" not in sys.modules, "imported with the library"
        sys.modules["pytest"] = sys.modules["_pytest"] = None    # as if it were not installed
        import threading
        threads = threading.active_count()
        import trio
        from trio_renew.testing import *
        assert threading.active_count() == threads

        async def scenario():
            with victim():
                await trio.sleep(1)

        print(cancel_at_every_checkpoint(scenario).steps)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_no_thread_is_left():
    before = threading.active_count()
    cancel_at_every_checkpoint(fine)
    assert threading.active_count() == before


class TestInAClass:
    """A plain method of a test class is as good as a function."""

    def test_a_method(self):
        assert cancel_at_every_checkpoint(self.scenario, self.check).steps == 1

    async def scenario(self):
        with victim():
            await trio.sleep(1)
        return self

    def check(self, result):
        assert result is self


def test_with_fixtures(tmp_path):
    async def scenario():
        with victim():
            await trio.sleep(1)
        (tmp_path / "file").write_text("x")

    assert cancel_at_every_checkpoint(scenario, lambda: (tmp_path / "file").unlink()).steps == 1


async def test_from_an_async_test_in_a_thread(autojump_clock, nursery):
    assert (await trio.to_thread.run_sync(cancel_at_every_checkpoint, fine)).steps == 1


async def test_beside_a_busy_run_it_repeats_itself_and_leaves_that_alone(autojump_clock):
    orders = []
    busy = True

    async def scenario():
        order = []

        async def write(name):
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(name)

        async with trio.open_nursery() as nursery:
            for name in range(4):
                nursery.start_soon(write, name)
        return tuple(order)

    async def keep_busy():
        while busy:
            await trio.lowlevel.checkpoint()

    def sweep():
        under_schedules(scenario, orders.append, seeds=[7] * 50)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(keep_busy)
        await trio.to_thread.run_sync(sweep)
        busy = False
    assert len(orders) == 50
    assert len(set(orders)) == 1


class Recorder(trio.abc.Instrument):
    """Who made which step when."""

    def __init__(self):
        self.steps = []

    def before_task_step(self, task):
        if not task.name.startswith("<"):  # Trio's own
            self.steps.append((task.name, trio.current_time()))


@pytest.mark.parametrize("seed", range(3))
def test_a_run_is_repeated_exactly(seed):
    """Every run goes as the undisturbed one up to the step at which it is disturbed."""
    traces = []

    async def scenario():
        recorder = Recorder()
        trio.lowlevel.add_instrument(recorder)
        traces.append(recorder.steps)
        fetch = ScriptedFetch(Sleep(1.0, "a"), Sleep(1.0, "b"), then=Sleep(0.5, "c"))
        async with open_resource(fetch) as resource, trio.open_nursery() as nursery:

            async def caller(n):
                await trio.sleep(random.random() * 2)
                with trio.move_on_after(0.5 + n / 10):
                    await resource.refresh()

            for n in range(8):
                nursery.start_soon(caller, n, name=f"caller {n}")
            with victim():
                entries.append(len(recorder.steps))
                for _ in range(3):
                    await resource.refresh()

    entries = []
    report = cancel_at_every_checkpoint(scenario, seed=seed)
    assert report.steps > 30
    undisturbed = traces[0]
    assert traces[-1] == undisturbed
    assert len(traces) == report.steps + 3
    for step, trace in enumerate(traces[1:-1]):
        # The step before which it is cancelled is still the same one.
        assert trace[: entries[0] + step] == undisturbed[: entries[0] + step]
    assert len(set(entries)) == 1


def test_nested_scopes_and_many_waiters_are_repeated_exactly():
    traces = []

    async def scenario():
        recorder = Recorder()
        trio.lowlevel.add_instrument(recorder)
        traces.append(recorder.steps)
        log = []

        async def child(n, depth):
            try:
                with trio.CancelScope(shield=depth % 2 > 0), trio.move_on_after(1):
                    async with trio.open_nursery() as nursery:
                        for m in range(3 if depth < 2 else 0):
                            nursery.start_soon(child, m, depth + 1, name=f"{n}.{m}")
                        await trio.sleep(2)
            finally:
                log.append(n)

        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(child, n, 0, name=f"{n}")
        return log

    logs = []
    under_schedules(scenario, logs.append, seeds=[3] * 20)
    assert all(trace == traces[0] for trace in traces)
    assert all(log == logs[0] for log in logs)
