"""The scripted source does what its script says, counts what happens, and is loud at its end."""

import math

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_renew._clock import wall_now
from trio_renew.testing import Block, ScriptedFetch, ScriptExhausted, Sleep, Stubborn, Token


async def test_values_come_in_order(autojump_clock):
    fetch = ScriptedFetch("a", 0, None, False)
    assert [await fetch() for _ in range(4)] == ["a", 0, None, False]
    assert fetch.calls == 4
    assert fetch.running == 0
    assert fetch.most_running == 1
    assert fetch.cancelled == 0


async def test_each_call_is_a_checkpoint(autojump_clock):
    fetch = ScriptedFetch("a", Sleep(0.0, "b"), Block("c"), then="d")
    with assert_checkpoints():
        await fetch()
    with assert_checkpoints():
        await fetch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        await fetch.called(3)
        fetch.release()
    with assert_checkpoints():
        await fetch()


async def test_exceptions_are_raised_as_they_are(autojump_clock):
    error = ValueError("down")
    fetch = ScriptedFetch(error, OSError, then=error)
    with pytest.raises(ValueError, match="down") as caught:
        await fetch()
    assert caught.value is error
    with pytest.raises(OSError):
        await fetch()
    with pytest.raises(ValueError, match="down") as caught:
        await fetch()
    assert caught.value is error


async def test_the_traceback_of_a_shared_error_does_not_grow(autojump_clock):
    error = ValueError("down")
    fetch = ScriptedFetch(then=error)

    async def frames():
        with pytest.raises(ValueError, match="down"):
            await fetch()
        traceback, found = error.__traceback__, 0
        while traceback is not None:
            traceback, found = traceback.tb_next, found + 1
        return found

    first = await frames()
    for _ in range(10):
        assert await frames() == first


async def test_a_token_is_made_at_that_moment(autojump_clock):
    fetch = ScriptedFetch(Token("a", 60.0), Sleep(5.0, Token("b", 60.0)), Token("c"))
    start = wall_now()
    assert (await fetch()).expires_at == start + 60.0
    token = await fetch()
    assert token.expires_at == start + 65.0
    assert token.secret.reveal() == "b"
    assert (await fetch()).expires_at is None


def test_a_token_does_not_show_its_text():
    assert "hush" not in repr(Token("hush", 1.0))
    assert "hush" not in repr(Block(Token("hush", 1.0)))


async def test_block_waits_for_release(autojump_clock):
    fetch = ScriptedFetch(Block("a"), Block(ValueError("b")))
    results = []

    async def call():
        try:
            results.append(await fetch())
        except ValueError as error:
            results.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await fetch.called()
        nursery.start_soon(call)
        await fetch.called(2)
        await wait_all_tasks_blocked()
        assert (fetch.running, fetch.most_running, results) == (2, 2, [])
        fetch.release()
        await wait_all_tasks_blocked()
        assert (fetch.running, results) == (1, ["a"])
        fetch.release()
    assert results == ["a", "b"]
    assert fetch.running == 0


async def test_two_releases_let_two_go(autojump_clock):
    fetch = ScriptedFetch(then=Block())
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(fetch)
        await fetch.called(3)
        fetch.release()
        fetch.release()
        await wait_all_tasks_blocked()
        assert fetch.running == 1
        fetch.release()


async def test_release_and_fail_without_a_call_do_nothing(autojump_clock):
    fetch = ScriptedFetch("a", Sleep(1.0, "b"), Block("c"))
    fetch.release()
    fetch.fail(ValueError("nobody"))
    assert await fetch() == "a"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        await fetch.called(2)
        fetch.release()  # it sleeps, it does not wait at a Block
        await wait_all_tasks_blocked()
        assert fetch.running == 1
    assert trio.current_time() == 1.0
    with trio.move_on_after(1.0) as scope:
        await fetch()
    assert scope.cancelled_caught


async def test_sleep_takes_its_time(autojump_clock):
    fetch = ScriptedFetch(Sleep(5.0, "a"), Sleep(2.0, ValueError("b")))
    assert await fetch() == "a"
    assert trio.current_time() == 5.0
    with pytest.raises(ValueError, match="b"):
        await fetch()
    assert trio.current_time() == 7.0
    assert fetch.starts == [0.0, 5.0]


@pytest.mark.parametrize("step", [Block("a"), Sleep(5.0, "a"), Stubborn(5.0, "a")], ids=repr)
async def test_fail_makes_the_running_call_raise_now(step, autojump_clock):
    fetch = ScriptedFetch(step)
    seen = []

    async def call():
        with pytest.raises(OSError, match="gone"):
            await fetch()
        seen.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await fetch.called()
        fetch.fail(OSError("gone"))
        fetch.fail(ValueError("too late, it fails already"))
    assert seen == [0.0]


async def test_fail_wins_over_a_release(autojump_clock):
    fetch = ScriptedFetch(Block("a"))

    async def call():
        with pytest.raises(OSError, match="gone"):
            await fetch()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await fetch.called()
        await wait_all_tasks_blocked()
        fetch.release()
        fetch.fail(OSError("gone"))


async def test_fail_takes_the_oldest_call_that_does_not_fail_yet(autojump_clock):
    fetch = ScriptedFetch(then=Block())
    seen = []

    async def call():
        try:
            await fetch()
        except OSError as error:
            seen.append(str(error))

    async with trio.open_nursery() as nursery:
        for n in (1, 2):
            nursery.start_soon(call)
            await fetch.called(n)
        fetch.fail(OSError("first"))
        fetch.fail(OSError)
    assert sorted(seen) == ["", "first"]


def test_fail_takes_exceptions_only():
    with pytest.raises(TypeError, match=r"fail\(error\): an exception is needed, not 'gone'"):
        ScriptedFetch().fail("gone")


async def test_stubborn_goes_on_after_it_was_cancelled(autojump_clock):
    fetch = ScriptedFetch(Stubborn(3.0, "e"), Stubborn(3.0, ValueError("late")))
    with trio.move_on_after(2.0) as scope:
        assert await fetch() == "e"
    assert not scope.cancelled_caught
    assert trio.current_time() == 5.0
    with trio.move_on_after(2.0), pytest.raises(ValueError, match="late"):
        await fetch()
    assert trio.current_time() == 10.0
    assert fetch.cancelled == 2


async def test_stubborn_can_be_released_and_failed(autojump_clock):
    fetch = ScriptedFetch(Stubborn(3.0, "e"), Stubborn(3.0, "f"))
    results = []

    async def call():
        results.append(await fetch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await fetch.called()
        await wait_all_tasks_blocked()
        fetch.release()
    assert (results, trio.current_time(), fetch.cancelled) == (["e"], 0.0, 0)

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await fetch.called(2)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(1.0)
                fetch.fail(OSError("now"))
    assert [str(error) for error in caught.value.exceptions] == ["now"]
    assert trio.current_time() == 1.0


@pytest.mark.parametrize("step", ["a", Block("a"), Sleep(5.0, "a")], ids=repr)
async def test_a_cancelled_call_leaves_and_is_counted(step, autojump_clock):
    fetch = ScriptedFetch(step)
    with trio.CancelScope() as scope:
        scope.cancel()
        await fetch()
    assert scope.cancelled_caught
    assert (fetch.calls, fetch.cancelled, fetch.running) == (1, 1, 0)


async def test_a_script_that_runs_out_is_loud(autojump_clock):
    fetch = ScriptedFetch("a")
    await fetch()
    with pytest.raises(ScriptExhausted, match="call 2 of a ScriptedFetch whose script has 1 steps"):
        await fetch()
    assert issubclass(ScriptExhausted, AssertionError)
    assert fetch.calls == 2


async def test_then_is_what_all_later_calls_do(autojump_clock):
    fetch = ScriptedFetch("a", then=Sleep(1.0, "b"))
    assert [await fetch() for _ in range(3)] == ["a", "b", "b"]
    assert trio.current_time() == 2.0


async def test_it_stands_in_for_a_resolver(autojump_clock):
    fetch = ScriptedFetch("a")
    assert await fetch("key") == "a"


async def test_called_waits_for_that_call(autojump_clock):
    fetch = ScriptedFetch(then="a")
    seen = []

    async def watch(n):
        await fetch.called(n)
        seen.append((n, fetch.calls))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, 1)
        nursery.start_soon(watch, 3)
        await wait_all_tasks_blocked()
        for calls in (1, 2, 3):
            await fetch()
            await wait_all_tasks_blocked()
            assert len(seen) == (1 if calls < 3 else 2)
    assert sorted(seen) == [(1, 1), (3, 3)]
    with assert_checkpoints():
        await fetch.called(3)
    with pytest.raises(ValueError, match=r"called\(n\) must be at least 1, not 0"):
        await fetch.called(0)
    for bad in ("3", 1.0, None, True):
        with pytest.raises(TypeError, match=r"called\(n\): a whole number is needed"):
            await fetch.called(bad)


async def test_a_watcher_can_leave(autojump_clock):
    fetch = ScriptedFetch("a")
    with trio.move_on_after(1.0) as scope:
        await fetch.called()
    assert scope.cancelled_caught
    assert await fetch() == "a"


def test_bad_scripts_are_refused():
    with pytest.raises(TypeError, match="not another Sleep"):
        Block(Sleep(1.0))
    with pytest.raises(TypeError, match="not another Block"):
        Stubborn(1.0, Block())
    with pytest.raises(TypeError, match="a number of seconds is needed, not 'soon'"):
        Sleep("soon")
    with pytest.raises(TypeError, match="not True"):
        Sleep(True)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        Stubborn(-1)
    with pytest.raises(ValueError, match="not nan"):
        Sleep(math.nan)


async def test_the_repr_says_how_far_it_is(autojump_clock):
    fetch = ScriptedFetch("hush", "b")
    await fetch()
    assert repr(fetch) == "<ScriptedFetch: 1 calls, 0 running, 1 steps left>"


async def test_a_call_that_is_leaving_does_not_take_the_release_of_another(autojump_clock):
    fetch = ScriptedFetch(Block("first"), Block("second"))
    leaving = trio.CancelScope()

    async def first():
        with leaving:
            await fetch()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await fetch.called(1)

        async def second():
            with trio.fail_after(1):
                assert await fetch() == "second"

        nursery.start_soon(second)
        await fetch.called(2)
        await trio.testing.wait_all_tasks_blocked()
        leaving.cancel()
        fetch.release()
    assert fetch.cancelled == 1


async def test_one_that_will_not_leave_can_be_released_at_once(autojump_clock):
    fetch = ScriptedFetch(Stubborn(3.0, "late"))
    with trio.CancelScope() as scope:

        async def release():
            await fetch.called()
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            fetch.release()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(release)
            assert await fetch() == "late"
            assert trio.current_time() == 0.0
