"""The handoff parks claims in the window, and keeps nothing."""

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_renew.testing import Handoff, all_claims


async def test_it_parks_all_claims_until_release(autojump_clock):
    handoff = Handoff()
    passed = []

    async def claim(name):
        await handoff()
        passed.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim, "a")
        await handoff.reached()
        nursery.start_soon(claim, "b")
        await handoff.reached(2)
        await wait_all_tasks_blocked()
        assert (handoff.claims, passed) == (2, [])
        handoff.release()
        await wait_all_tasks_blocked()
        assert sorted(passed) == ["a", "b"]
        nursery.start_soon(claim, "c")
        await handoff.reached(3)
        await wait_all_tasks_blocked()
        assert len(passed) == 2
        handoff.release()
    assert passed[2] == "c"


@pytest.mark.parametrize("hold", [{2}, [2], range(2, 3), iter([2])], ids=["set", "list", "range", "iterator"])
async def test_it_parks_only_those_claims(hold, autojump_clock):
    handoff = Handoff(hold=hold)
    with assert_no_checkpoints():
        await handoff()
    with trio.move_on_after(1.0) as scope:
        await handoff()
    assert scope.cancelled_caught
    await handoff()
    assert handoff.claims == 3


async def test_a_parked_claim_can_be_cancelled(autojump_clock):
    handoff = Handoff()
    with trio.CancelScope() as scope:
        scope.cancel()
        with assert_checkpoints():
            await handoff()
    assert scope.cancelled_caught
    assert repr(handoff) == "<Handoff: 1 claims, parked []>"
    handoff.release()


async def test_reached(autojump_clock):
    handoff = Handoff(hold=())
    await handoff()
    with assert_checkpoints():
        await handoff.reached(1)
    with trio.move_on_after(1.0) as scope:
        await handoff.reached(2)
    assert scope.cancelled_caught
    with pytest.raises(ValueError, match=r"reached\(n\) must be at least 1, not 0"):
        await handoff.reached(0)
    for bad in ("3", 1.0, None, True):
        with pytest.raises(TypeError, match=r"reached\(n\): a whole number is needed"):
            await handoff.reached(bad)


@pytest.mark.parametrize("hold", [2, object()])
def test_hold_must_be_a_collection(hold):
    with pytest.raises(TypeError, match=r"such as \{2\}, not"):
        Handoff(hold=hold)


def test_all_claims_has_every_number():
    assert 1 in all_claims
    assert 10**9 in all_claims
    assert repr(all_claims) == "all_claims"
