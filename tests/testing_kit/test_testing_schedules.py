"""Schedules: an order-dependent defect is found, its seed repeats it, and a seed is the same order each time."""

import random

import pytest
import trio

from trio_renew.testing import SweepFailure, cancel_at_every_checkpoint, under_schedules, victim


async def trace():
    """In which order five tasks run, three times each."""
    order = []

    async def child(n):
        for _ in range(3):
            order.append(n)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(child, n)
    return tuple(order), random.random()


def test_seeds_are_different_orders_and_repeat_exactly():
    first, second = [], []
    assert under_schedules(trace, first.append, seeds=30).steps == 30
    assert under_schedules(trace, second.append, seeds=range(30)).steps == 30
    assert first == second
    assert len({order for order, _ in first}) > 20
    assert len({number for _, number in first}) == 30
    alone = []
    under_schedules(trace, alone.append, seeds=[17])
    assert alone == [first[17]]


def test_a_sweep_uses_its_seed_in_each_run():
    def orders(seed):
        seen = []
        cancel_at_every_checkpoint(traced, seen.append, seed=seed)
        return seen

    async def traced():
        found = await trace()
        with victim():
            await trio.sleep(1)
        return found

    first = orders(4)
    assert len(first) == 4
    assert len(set(first)) == 1
    assert orders(4) == first
    assert orders(5) != first


async def racy():
    """Two tasks read, wait and write: right only if they happen not to overlap... or in one order of finishing."""
    counter = {"writes": []}

    async def writer(name):
        await trio.lowlevel.checkpoint()
        counter["writes"].append(name)

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(writer, name)
    assert counter["writes"][-1] != "b", "b came last"


def test_an_order_dependent_defect_is_found_and_repeated():
    with pytest.raises(SweepFailure, match="b came last") as caught:
        under_schedules(racy)
    failure = caught.value
    assert failure.step is None
    assert failure.place is None
    assert isinstance(failure.__cause__, AssertionError)
    assert f"under_schedules(racy, seeds=[{failure.seed}])" in str(failure)
    with pytest.raises(SweepFailure) as caught:
        under_schedules(racy, seeds=[failure.seed])
    assert caught.value.seed == failure.seed
    # Nothing before it failed.
    if failure.seed:
        assert under_schedules(racy, seeds=failure.seed).steps == failure.seed


def test_sound_code_passes_and_a_check_may_be_async():
    async def check(result):
        order, _ = result
        await trio.sleep(1)
        assert sorted(order) == sorted(list(range(5)) * 3)

    assert under_schedules(trace, check).steps == 100


def test_a_deadlock_in_some_orders_is_found():
    async def scenario():
        first, second = trio.Lock(), trio.Lock()

        async def both(one, other):
            async with one:
                await trio.lowlevel.checkpoint()
                async with other:
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(both, first, second)
            nursery.start_soon(both, second, first)

    with pytest.raises(SweepFailure, match="nobody can go on"):
        under_schedules(scenario)


def test_victims_are_plain_but_single():
    async def scenario():
        with victim() as scope:
            await trio.sleep(1)
        assert not scope.cancel_called

    assert under_schedules(scenario, seeds=3).steps == 3


@pytest.mark.parametrize(
    ("seeds", "error"), [(0, ValueError), ((), ValueError), (True, TypeError), (["a"], TypeError)], ids=repr
)
def test_bad_seeds(seeds, error):
    with pytest.raises(error, match="seeds"):
        under_schedules(trace, seeds=seeds)
