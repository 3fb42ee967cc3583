"""``do_at_every_checkpoint``: the same sweep with a function in the place of the cancellation."""

import pytest
import trio

from trio_renew.testing import (
    Block,
    ScriptedFetch,
    Sleep,
    SweepFailure,
    do_at_every_checkpoint,
    victim,
)


async def two_sleeps():
    await trio.sleep(1)
    await trio.sleep(1)


def test_the_action_is_called_once_per_run_at_each_step():
    log = []

    async def scenario():
        log.append("run")
        with victim():
            for n in range(3):
                log.append(n)
                await trio.lowlevel.checkpoint()
        log.append("end")

    report = do_at_every_checkpoint(scenario, lambda: log.append("action"))
    assert report.steps == 3
    undisturbed = ["run", 0, 1, 2, "end"]
    expected = list(undisturbed)
    for at in range(1, 5):
        expected += [*undisturbed[:at], "action", *undisturbed[at:]]
    assert log == expected + undisturbed


def test_a_call_can_be_failed_at_each_step():
    """Also a call that does nothing but return a value: between its start and its end lies a checkpoint."""
    outcomes = []

    async def scenario():
        nonlocal fetch
        fetch = ScriptedFetch("a", Sleep(1.0, "b"))
        for _ in range(2):
            try:
                with victim() if not fetch.calls else trio.CancelScope():
                    outcomes.append(await fetch())
            except OSError as error:
                outcomes.append(str(error))

    fetch = ScriptedFetch()
    assert do_at_every_checkpoint(scenario, lambda: fetch.fail(OSError("gone"))).steps == 1
    assert outcomes == ["a", "b", "a", "b", "gone", "b", "a", "b"]


def test_an_action_may_close_the_owner_by_cancelling_the_scope_around_it():
    async def scenario():
        nonlocal owner
        done = []

        async def child():
            try:
                await trio.sleep(2)
            finally:
                done.append(trio.current_time())

        with trio.CancelScope() as owner:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await trio.sleep(1)
        return done

    owner = trio.CancelScope()
    seen = []
    assert do_at_every_checkpoint(scenario, lambda: owner.cancel(), seen.append).steps == 4
    assert all(len(done) <= 1 for done in seen)
    assert seen[0] == [2.0]


def test_an_async_action_runs_beside_the_scenario_and_is_over_before_the_check():
    log = []

    async def scenario():
        with victim():
            await trio.sleep(1)
        log.append(("scenario", trio.current_time()))
        return "result"

    async def action():
        await trio.sleep(3)
        log.append(("action", trio.current_time()))

    def check(result):
        log.append(result)

    assert do_at_every_checkpoint(scenario, action, check).steps == 1
    undisturbed = [("scenario", 1.0), "result"]
    assert log == [
        *undisturbed,
        ("scenario", 1.0),
        ("action", 3.0),
        "result",
        ("scenario", 1.0),
        ("action", 4.0),
        "result",
        *undisturbed,
    ]


def test_a_lambda_that_returns_a_coroutine_is_an_async_action():
    seen = []

    async def action():
        await trio.sleep(0.5)
        seen.append(trio.current_time())

    do_at_every_checkpoint(two_sleeps, lambda: action())
    assert seen == [0.5, 1.5, 2.5]


def test_steps_of_the_action_are_not_the_scenarios():
    async def action():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two_sleeps)
            await two_sleeps()

    assert do_at_every_checkpoint(two_sleeps, action).steps == 2


class Once:
    """Takes one owner at a time; a release that comes twice is an error. Wrong: open() forgets its flag on failure."""

    def __init__(self, fetch):
        self.fetch = fetch
        self.busy = False

    async def get(self):
        assert not self.busy, "still busy"
        self.busy = True
        value = await self.fetch()
        self.busy = False
        return value


def test_a_planted_defect_is_found_at_its_step():
    async def scenario():
        nonlocal fetch
        fetch = ScriptedFetch(Block("a"), then="b")
        once = Once(fetch)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def release():
                await trio.sleep(1)
                fetch.release()

            with victim():
                try:
                    await once.get()
                except OSError:
                    pass
        await once.get()

    fetch = ScriptedFetch()

    def fail_it():
        fetch.fail(OSError("gone"))

    with pytest.raises(SweepFailure, match="AssertionError: still busy") as caught:
        do_at_every_checkpoint(scenario, fail_it)
    # At the entry there is no call to fail; the first step of the other task finds one.
    assert caught.value.step == 1
    assert "do_at_every_checkpoint(scenario, fail_it, only=1)" in str(caught.value)
    with pytest.raises(SweepFailure, match="step 1"):
        do_at_every_checkpoint(scenario, fail_it, only=1)


@pytest.mark.parametrize("whole", [True, False])
def test_an_action_that_raises_is_a_failure(whole):
    error = ValueError("the action's")

    async def scenario():
        if not whole:
            with victim():
                await two_sleeps()
        await two_sleeps()

    def action():
        raise error

    async def later():
        await trio.sleep(0.5)
        raise error

    for act in (action, later):
        with pytest.raises(SweepFailure, match="the action raised ValueError: the action's") as caught:
            do_at_every_checkpoint(scenario, act)
        assert caught.value.step == 0
        assert caught.value.__cause__ is error


def test_what_a_run_raises_while_it_is_ended_does_not_hide_the_first_failure():
    async def scenario():
        try:
            await two_sleeps()
        except trio.Cancelled:
            raise ValueError("in the cleanup") from None

    def action():
        raise OSError("first")

    with pytest.raises(SweepFailure, match="the action raised OSError: first"):
        do_at_every_checkpoint(scenario, action)


def test_interrupt_and_exit_of_an_action_leave_as_themselves():
    def action():
        raise KeyboardInterrupt

    async def later():
        raise SystemExit(3)

    with pytest.raises(KeyboardInterrupt):
        do_at_every_checkpoint(two_sleeps, action)
    with pytest.raises(SystemExit):
        do_at_every_checkpoint(two_sleeps, later)


def test_a_scenario_that_fails_cancels_its_action():
    ended = []

    async def scenario():
        with victim():
            await trio.sleep(1)
        if started:
            raise ValueError("after the action")

    async def action():
        started.append(True)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    started = []
    with pytest.raises(SweepFailure, match="the scenario raised ValueError: after the action"):
        do_at_every_checkpoint(scenario, action)
    assert ended == [1.0]


def test_an_action_that_never_ends_is_a_failure():
    with pytest.raises(SweepFailure, match="nobody can go on"):
        do_at_every_checkpoint(two_sleeps, trio.sleep_forever)


def test_an_undisturbed_failure_says_so():
    async def scenario():
        raise ValueError("always")

    with pytest.raises(SweepFailure, match="fails undisturbed") as caught:
        do_at_every_checkpoint(scenario, lambda: None)
    assert caught.value.step is None


def test_its_arguments_are_checked_like_the_other_sweeps():
    with pytest.raises(TypeError, match="action: a function is needed"):
        do_at_every_checkpoint(two_sleeps, None)
    with pytest.raises(ValueError, match="only=3: the scenario has 2 steps"):
        do_at_every_checkpoint(two_sleeps, lambda: None, only=3)
    with pytest.raises(SweepFailure, match="limit=1 is reached"):
        do_at_every_checkpoint(two_sleeps, lambda: None, limit=1)
