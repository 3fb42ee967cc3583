"""Every schedule: all orders are tried, each once; a failure comes back by its choices; the number is bounded."""

import itertools
import math
import sys

import pytest
import trio
import trio.testing

from trio_renew.testing import SweepFailure, under_every_schedule, victim

trio_run = sys.modules["trio._core._run"]


def tasks_with_steps(tasks, steps):
    """A scenario that returns the order in which its tasks made their steps."""

    async def scenario():
        order = []

        async def child(name):
            for _ in range(steps):
                order.append(name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for name in range(tasks):
                nursery.start_soon(child, name)
        return tuple(order)

    return scenario


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_all_orders_of_one_step_are_there(tasks):
    seen = []
    report = under_every_schedule(tasks_with_steps(tasks, 1), seen.append)
    assert set(seen) == set(itertools.permutations(range(tasks)))
    assert report.steps == len(seen)


def test_orders_are_combined_and_none_comes_twice():
    async def scenario():
        order = []

        async def child(name):
            order.append(name)
            await trio.lowlevel.checkpoint()
            order.append(name)
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(child, name)
            await trio.testing.wait_all_tasks_blocked()
            assert len(order) == 6
            result = tuple(order)
            nursery.cancel_scope.cancel()
            # They are over at the same moment, and then in each order too.
        return result

    seen = []
    report = under_every_schedule(scenario, seen.append)
    perms = list(itertools.permutations("abc"))
    assert set(seen) == {first + second for first in perms for second in perms}
    assert report.steps == math.factorial(3) ** 3


def test_without_a_choice_there_is_one_schedule():
    async def scenario():
        await trio.sleep(1)

    assert under_every_schedule(scenario).steps == 1


def test_what_the_check_does_is_not_multiplied():
    async def check():
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(trio.lowlevel.checkpoint)

    assert under_every_schedule(tasks_with_steps(2, 1), check).steps == 4  # two starts, two ends


def lost_update(repaired):
    """Two tasks add to a counter; with a checkpoint between reading and writing, one update may be lost."""

    async def scenario():
        counter = 0
        lock = trio.Lock()

        async def add(wait):
            nonlocal counter
            async with lock if repaired else trio.CapacityLimiter(2):
                seen = counter
                if wait:
                    await trio.lowlevel.checkpoint()
                counter = seen + 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, True)
            nursery.start_soon(add, False)
        assert counter == 2

    return scenario


def test_a_race_is_found_and_its_choices_repeat_it():
    scenario = lost_update(False)
    with pytest.raises(SweepFailure, match="a schedule of under_every_schedule fails: the scenario raised") as caught:
        under_every_schedule(scenario)
    failure = caught.value
    assert failure.choices is not None
    assert failure.step is None
    assert f"only={list(failure.choices)})" in str(failure)
    assert isinstance(failure.__cause__, AssertionError)
    with pytest.raises(SweepFailure) as again:
        under_every_schedule(scenario, only=failure.choices)
    assert again.value.choices == failure.choices
    assert under_every_schedule(lost_update(True)).steps == 2


def test_a_deadlock_in_one_order_is_found():
    async def scenario():
        first, second = trio.Event(), trio.Event()

        async def early():
            first.set()
            await second.wait()

        async def late():
            if first.is_set():
                second.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(early)
            nursery.start_soon(late)

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        under_every_schedule(scenario)
    with pytest.raises(SweepFailure, match="nobody can go on"):
        under_every_schedule(scenario, only=caught.value.choices)


def test_one_schedule_by_its_choices():
    seen = []
    scenario = tasks_with_steps(3, 1)
    assert under_every_schedule(scenario, seen.append, only=[2, 1]).steps == 1
    assert under_every_schedule(scenario, seen.append, only=iter([])).steps == 1
    assert seen == [(2, 1, 0), (0, 1, 2)]


@pytest.mark.parametrize("only", [[3], [0, 2], [0] * 50])
def test_choices_that_are_not_there(only):
    with pytest.raises(ValueError, match=r"only=.*: there are no such choices: it had \[3, 2"):
        under_every_schedule(tasks_with_steps(3, 1), only=only)


def test_too_many_schedules():
    runs = []
    with pytest.raises(SweepFailure, match=r"limit=20 .* under_schedules\("):
        under_every_schedule(tasks_with_steps(3, 2), runs.append, limit=20)
    assert len(runs) == 20
    # Exactly as many as allowed is no failure.
    steps = under_every_schedule(tasks_with_steps(2, 2)).steps
    assert under_every_schedule(tasks_with_steps(2, 2), limit=steps).steps == steps


def test_a_scenario_that_does_not_repeat_itself():
    sizes = iter([2, 3, 4, 5])

    async def scenario():
        await tasks_with_steps(next(sizes), 1)()

    with pytest.raises(ValueError, match="does not repeat itself") as caught:
        under_every_schedule(scenario)
    assert "[2, 2] to choose from" in str(caught.value)


def test_victims_are_plain():
    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        assert not scope.cancel_called

    assert under_every_schedule(scenario).steps == 1


@pytest.mark.parametrize("end", [None, ValueError("always"), KeyboardInterrupt()], ids=repr)
def test_the_scheduler_is_left_as_it_was(end):
    async def scenario():
        await tasks_with_steps(2, 1)()
        if end is not None:
            raise end

    before = trio_run._r, trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    try:
        under_every_schedule(scenario)
    except (SweepFailure, KeyboardInterrupt):
        assert end is not None
    assert (trio_run._r, trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"only": [True]}, TypeError),
        ({"only": ["a"]}, TypeError),
        ({"only": [-1]}, ValueError),
        ({"limit": 0}, ValueError),
        ({"limit": 1.5}, TypeError),
    ],
    ids=repr,
)
def test_bad_arguments(options, error):
    with pytest.raises(error, match=next(iter(options))):
        under_every_schedule(tasks_with_steps(2, 1), **options)


def test_bad_functions():
    with pytest.raises(TypeError, match="scenario: a function is needed"):
        under_every_schedule(None)
