"""``until`` comes at the instant exactly, on the provider's own clock."""

import math
import random
from types import SimpleNamespace

import attrs
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_renew import AuthToken, RefreshPolicy, open_provider, static_provider
from trio_renew._clock import Clock, wall_now
from trio_renew.testing import ScriptedFetch, Token, until


@attrs.frozen
class Life:
    due_at: float | None = None
    expires_at: float | None = None


class Provider:
    def __init__(self, due_at=None, expires_at=None, clock=None):
        self._life = Life(due_at, expires_at)
        if clock is not None:
            self._clock = SimpleNamespace(now=clock)

    def status(self):
        return self._life


async def test_it_sleeps_to_the_instant(autojump_clock):
    start = wall_now()
    provider = Provider(start + 48.0, start + 60.0)
    await until(provider, "due")
    assert trio.current_time() == pytest.approx(48.0)
    await until(provider, "expiry", -1.0)
    assert wall_now() == start + 59.0
    await until(provider, "expiry")
    assert wall_now() == start + 60.0
    await until(provider, "expiry", offset=2.5)
    assert wall_now() == start + 62.5


async def test_it_is_exact_at_any_time(autojump_clock):
    numbers = random.Random(7)
    clock = Clock()
    for _ in range(300):
        await trio.sleep(numbers.random() * 10 ** numbers.randint(-8, 3))
        instant = clock.now() + numbers.random() * 10 ** numbers.randint(-8, 3)
        await until(Provider(due_at=instant, clock=clock.now), "due")
        assert clock.now() == instant


async def test_it_is_exact_on_ties(autojump_clock):
    # Half a unit of the reading off the grid: rounding goes to the even neighbour, up or down.
    clock = Clock()
    start = clock.now()
    tick = math.ulp(start)
    for n in range(20):
        await trio.sleep_until(n + tick * (n % 5) / 2)
        for ahead in (1, 2, 3, 1000):
            instant = clock.now() + ahead * tick
            await until(Provider(due_at=instant, clock=clock.now), "due")
            assert clock.now() == instant


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9, -1e9, 1e15])
async def test_it_reads_any_clock_that_goes_with_trios(scale, autojump_clock):
    def now():
        return trio.current_time() + scale

    instant = now() + 7.25
    await until(Provider(expires_at=instant, clock=now), "expiry")
    assert now() == pytest.approx(instant)
    assert now() >= instant


@pytest.mark.parametrize("lifetime", [1.0, 59.9, 3600.0])
async def test_with_a_provider(lifetime, autojump_clock):
    await trio.sleep(0.123456789)
    fetch = ScriptedFetch(then=Token("a", lifetime))
    async with open_provider(fetch, policy=RefreshPolicy(leeway=0.0, min_interval=0.0)) as provider:
        for generation in range(1, 20):
            status = provider.status()
            assert status.generation == generation
            await until(provider, "due")
            assert provider._clock.now() == status.due_at
            assert (await provider.lease()).generation == generation
            await wait_all_tasks_blocked()
            await trio.sleep(generation * 0.01)
        status = provider.status()
        await until(provider, "expiry", -1e-6)
        assert provider.status().good
        await until(provider, "expiry")
        assert provider._clock.now() == status.expires_at
        assert not provider.status().good


async def test_a_clock_of_whole_seconds(autojump_clock):
    def now():
        return float(math.floor(trio.current_time()))

    await trio.sleep(0.7)
    await until(Provider(due_at=3.0, clock=now), "due")
    assert now() == 3.0


async def aging(clock, life, instant, offset=0.0):
    """How far past the instant a provider's clock stands after `until`."""

    async def mint():
        return AuthToken("a", clock() + life)

    async with open_provider(mint, clock=clock) as provider:
        status = provider.status()
        await until(provider, instant, offset)
    return clock() - offset - (status.due_at if instant == "due" else status.expires_at)


@pytest.mark.parametrize("life", [0.37, 60.0, 2592000.0])
@pytest.mark.parametrize("speed", [0.001, 0.5, 2.0, 1000.0])
async def test_a_clock_that_goes_at_another_speed(speed, life, autojump_clock):
    for start in (1.0, 1.7e9):

        def clock(start=start):
            return start + speed * trio.current_time()

        for instant, offset in (("due", -life / 100), ("due", 0.0), ("expiry", 0.0), ("expiry", 5.0)):
            assert -1e-6 <= await aging(clock, life, instant, offset) <= 1e-6


@pytest.mark.parametrize("step", [1.0, 60.0, 3600.0])
@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0])
async def test_a_clock_that_goes_in_steps(step, speed, autojump_clock):
    def clock():
        return 1.7e9 + speed * trio.current_time() // step * step

    for life in (1.5 * step, 86400.0):
        # Just past a step is a whole step to go, and looking every microsecond would take too long.
        for offset in (0.0, 1e-6, -1e-6, 0.3):
            turns = Turns()
            trio.lowlevel.add_instrument(turns)
            assert 0.0 <= await aging(clock, life, "expiry", offset) <= step
            trio.lowlevel.remove_instrument(turns)
            assert turns.number < 2000


class Turns(trio.abc.Instrument):
    number = 0

    def before_task_step(self, task):
        self.number += 1


async def test_a_clock_that_goes_back_for_a_while(autojump_clock):
    moved = 0.0

    def clock():
        return 100.0 + moved + trio.current_time()

    async def move():
        nonlocal moved
        await trio.sleep(10)
        moved -= 20.0
        await trio.sleep(5)
        moved += 60.0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        assert await aging(clock, 60.0, "expiry") >= 0.0


async def test_a_clock_that_stands_is_an_error(autojump_clock):
    with pytest.raises(RuntimeError, match=r"stands at 100\.0 while Trio's goes on"):
        await until(Provider(due_at=105.0, clock=lambda: 100.0), "due")


async def test_it_is_a_checkpoint_also_when_the_instant_has_passed(autojump_clock):
    start = wall_now()
    await trio.sleep(10.0)
    with assert_checkpoints():
        await until(Provider(due_at=start + 3.0), "due")
    assert trio.current_time() == 10.0


async def test_it_can_be_cancelled(autojump_clock):
    provider = Provider(due_at=wall_now() + 60.0)
    with trio.move_on_after(1.0) as scope:
        await until(provider, "due")
    assert scope.cancelled_caught


async def test_what_it_refuses(autojump_clock):
    with pytest.raises(ValueError, match="no value that is ever due"):
        await until(Provider(expires_at=3.0), "due")
    with pytest.raises(ValueError, match="no value that is ever expired"):
        await until(Provider(due_at=3.0), "expiry")
    with pytest.raises(ValueError, match='"due" or "expiry" is needed, not \'dew\''):
        await until(Provider(3.0, 3.0), "dew")
    for bad in (math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match="a finite number of seconds is needed"):
            await until(Provider(3.0, 3.0), "due", bad)
    for bad in (static_provider("a"), None, SimpleNamespace(status=lambda: SimpleNamespace(expires_at=3.0))):
        with pytest.raises(TypeError, match=r"something whose status\(\) has due_at is needed, not"):
            await until(bad, "due")
