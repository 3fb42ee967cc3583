"""The bundle of the memory engine: its options, its lifetime, and how one leaves it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from trio_renew import JsonCodec
from trio_renew._policy.capacity import AdaptiveConfig, RateLimitConfig
from trio_renew.stores.memory import open_memory_stores


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("codec", None),
        ("codec", object()),
        ("codec", JsonCodec),
        ("max_items", 0),
        ("max_items", 1.5),
        ("max_items", True),
        ("max_entry_size_bytes", 0),
        ("max_total_bytes", -1),
        ("max_total_bytes", "1"),
        ("lease", 0),
        ("lease", -1.0),
        ("lease", float("inf")),
        ("lease", float("nan")),
        ("lease", None),
        ("default_config", (60, 60)),
        ("resource_configs", []),
        ("resource_configs", {"a": 5}),
        ("resource_configs", {"": RateLimitConfig()}),
        ("resource_configs", {7: RateLimitConfig()}),
        ("adaptive_config", {}),
        ("clock", 5),
        ("clock", trio.sleep_forever),
    ],
)
async def test_options_are_checked_and_named(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises((TypeError, ValueError), match=option):
        async with open_memory_stores(**options):
            pass


async def test_options_reach_the_stores() -> None:
    async with open_memory_stores(
        lease=3.0,
        default_config=RateLimitConfig(limit=7, window=1.0),
        resource_configs={"b": RateLimitConfig(limit=8, window=2.0)},
        adaptive_config=AdaptiveConfig(min_user_reserved=6),
    ) as stores:
        assert stores.dedupe.lease == 3.0
        for limits in (stores.rate_limit, stores.adaptive):
            assert (await limits.get_status("a")).limit == 7
            assert (await limits.get_status("b")).limit == 8
        assert (await stores.adaptive.get_status("a")).user_reserved == 6


class Planned(Exception):
    pass


class PlannedExit(BaseException):
    pass


@pytest.mark.parametrize("error", [Planned("x"), PlannedExit("x"), ExceptionGroup("g", [Planned("x")])])
async def test_an_exception_of_the_body_leaves_as_itself(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with open_memory_stores():
            raise error
    assert caught.value is error
    assert caught.value.__context__ is None


async def test_it_leaves_as_itself_also_in_a_cancelled_scope() -> None:
    error = Planned("x")
    with pytest.raises(Planned) as caught, trio.CancelScope() as scope:
        async with open_memory_stores() as stores:
            await stores.cache.set("a", 1, 1.0)
            scope.cancel()
            raise error
    assert caught.value is error


async def test_cancelling_the_surroundings_ends_it() -> None:
    with trio.CancelScope() as scope:
        async with open_memory_stores() as stores:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        await stores.cache.get("a")


async def test_opening_in_a_cancelled_scope_neither_hangs_nor_leaks() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_memory_stores() as stores:
            stores.cache.set_nowait("a", 1, 1.0)
    with pytest.raises(trio.ClosedResourceError):
        stores.cache.get_nowait("a")


async def test_the_body_can_use_the_stores_while_it_is_being_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.CancelScope() as scope:
        async with open_memory_stores() as stores:
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await stores.cache.set("a", 1, 1.0)
                    await trio.sleep(0.5)
                    assert await stores.cache.get("a") == 1


async def test_closing_does_not_wait_for_the_sweeper(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores() as stores:
        await stores.cache.set("a", 1, 1.0)
        before = trio.current_time()
    assert trio.current_time() == before


async def test_an_idle_bundle_has_no_timer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_stores():
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


def test_closing_during_a_sweep_is_quiet() -> None:
    async def main() -> None:
        async with open_memory_stores() as stores:
            for number in range(5000):
                stores.cache.set_nowait(f"k{number}", 1, 1.0)
            await trio.sleep(60.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
