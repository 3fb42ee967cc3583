"""The contract of a rate limit, and what the adaptive one shares with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import trio

from ._contracts import Contract, all_at_once, cancelled_call, expect, expect_equal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..abc import Priority

__all__ = ("LimitContract", "RateLimitStoreContract")


class LimitContract(Contract):
    """What the limits have in common.

    Attributes:
      who: The priority as which the common tests ask, where there is one.
    """

    who: ClassVar[tuple[Priority, ...]] = ()

    async def _fill(self, limits: Any, resource: str, *args: Any) -> int:
        """Count as many requests as the limit allows, whatever is counted already; says how many that is."""
        limit = (await limits.get_status(resource)).limit
        expect(isinstance(limit, int) and limit >= 1, "the store must be opened with a limit of at least 1")
        for _ in range(limit):
            await limits.record(resource, *args)
        return int(limit)

    async def _window(self, limits: Any, *args: Any) -> float:
        """Give a lower bound of the window: what a full resource has to wait."""
        await self._fill(limits, "window", *args)
        return float(await limits.get_wait_time("window", *args))

    async def _within_a_window(self, scenario: Callable[[Any], Awaitable[None]], *args: Any) -> None:
        """Run something that must be over within the window to show anything."""
        async with self.open_store() as limits:
            window = await self._window(limits, *args)
        await self.unless_slow(window, scenario)

    async def _proceeds_after_waiting(self, limits: Any, resource: str, *args: Any, not_before: bool = True) -> bool:
        """Wait as long as the store says, and see whether it was long enough; True when that is too long to wait."""
        wait = await limits.get_wait_time(resource, *args)
        if not self.exact and wait > self.patience:
            return True
        if self.exact and not_before:
            await trio.sleep(wait * 0.75)
            expect_equal(
                await limits.can_proceed(resource, *args), False, "before get_wait_time() is over nobody proceeds"
            )
            wait = await limits.get_wait_time(resource, *args)
        await trio.sleep(wait)
        with trio.move_on_after(self.slack):
            while not await limits.can_proceed(resource, *args):  # noqa: ASYNC110 - no store tells when there is room
                await trio.sleep(0.01)
        may = await limits.can_proceed(resource, *args)
        return bool(await limits.acquire(resource, *args)) and bool(may)

    async def test_the_window_slides(self) -> None:
        """Requests leave one window after they came, not all at once."""
        async with self.open_store() as limits:
            window = await self._window(limits, *self.who)
            limit = (await limits.get_status("a")).limit
            if limit < 2 or (not self.exact and window > self.patience):
                return
            started = trio.current_time()
            await limits.record("a", *self.who)
            await trio.sleep(window / 2)
            for _ in range(limit - 1):
                await limits.record("a", *self.who)
            refused = not await limits.can_proceed("a", *self.who)
            if trio.current_time() - started < window * 0.9:
                expect(refused, "a request counts for one window")
            expect(await self._proceeds_after_waiting(limits, "a", *self.who), "after get_wait_time() one may proceed")
            again = await limits.can_proceed("a", *self.who)
            if trio.current_time() - started < window * 1.4:
                expect_equal(again, False, "only what is one window old has left it")

    async def test_what_is_recorded_past_the_limit_counts(self) -> None:
        """Until each of these requests is one window old."""
        async with self.open_store() as limits:
            window = await self._window(limits, *self.who)
            if not self.exact and window > self.patience:
                return
            await self._fill(limits, "a", *self.who)
            await trio.sleep(window / 2)
            started = trio.current_time()
            await self._fill(limits, "a", *self.who)
            await self.pass_by(window / 2)
            refused = not await limits.can_proceed("a", *self.who)
            if trio.current_time() - started < window * 0.9:
                expect(refused, "what is recorded past the limit counts for one window, too")

    async def test_reset_at_is_when_the_oldest_leaves(self) -> None:
        """An instant: now when nothing is counted, else one window after the oldest request."""
        async with self.open_store() as limits:
            window = await self._window(limits, *self.who)
            started = trio.current_time()
            empty = (await limits.get_status("a")).reset_at
            looked = trio.current_time()
            await limits.record("a", *self.who)
            first = (await limits.get_status("a")).reset_at
            spent = trio.current_time() - started
            expect(abs(first - empty - window) <= spent + 0.05, "reset_at is one window after the oldest request")
            if not self.exact and window > self.patience:
                return
            await trio.sleep(window / 4)
            await limits.record("a", *self.who)
            before = trio.current_time()
            again, later = (await limits.get_status("a")).reset_at, (await limits.get_status("b")).reset_at
            after = trio.current_time()
            slow = after - started >= window * 0.9
            expect(abs(again - first) <= 0.05 or slow, "reset_at is when the oldest request leaves, not a later one")
            expect(
                before - looked - 0.05 <= later - empty <= after - started + 0.05,
                "with nothing counted reset_at is now",
            )

    async def test_a_cancelled_acquire_happened_wholly_or_not_at_all(self) -> None:
        """Cancelled, one request is counted or none."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            done = await cancelled_call(lambda: limits.acquire("a", *self.who))
            left = (await limits.get_status("a")).remaining
            expect(left == limit - 1 or (not done and left == limit), "a cancelled acquire() counts once or not at all")

        await self._within_a_window(scenario, *self.who)


class RateLimitStoreContract(LimitContract):
    """What a :class:`~trio_renew.abc.RateLimitStore` must do. Each ``open_store`` opens an empty one.

    Open it with a small limit (1 to 50) and, when it does not live by Trio's clock (``virtual = True``), with a short
    window (say half a second): what happens after a window longer than ``patience`` seconds is not checked then.

    Example::

        class TestMyLimits(RateLimitStoreContract):
            @asynccontextmanager
            async def open_store(self):
                yield MyLimits(limit=5, window=0.5)

        check_contract(TestMyLimits)  # or let pytest run the class
    """

    async def test_a_fresh_resource_may_proceed(self) -> None:
        """Nothing is counted: all is left, and nothing to wait for."""
        async with self.open_store() as limits:
            status = await limits.get_status("a")
            expect_equal(status.remaining, status.limit, "with nothing counted the whole limit remains")
            expect_equal(await limits.can_proceed("a"), True, "a fresh resource may proceed")
            expect_equal(float(await limits.get_wait_time("a")), 0.0, "who may proceed need not wait")
            await limits.reset("a")

    async def test_as_many_as_the_limit_acquire(self) -> None:
        """And not one more; a refusal counts nothing."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            for number in range(limit):
                expect_equal((await limits.get_status("a")).remaining, limit - number, "each request counts once")
                expect_equal(await limits.can_proceed("a"), True, "below the limit one may proceed")
                expect_equal(await limits.acquire("a"), True, "below the limit one acquires")
            for _ in range(3):
                expect_equal(await limits.can_proceed("a"), False, "at the limit nobody proceeds")
                expect_equal(await limits.acquire("a"), False, "at the limit nobody acquires")
            status = await limits.get_status("a")
            expect_equal((status.remaining, status.limit), (0, limit), "at the limit nothing remains")
            expect(await limits.get_wait_time("a") > 0, "who is refused has to wait")

        await self._within_a_window(scenario)

    async def test_acquire_is_atomic(self) -> None:
        """However many come at once, as many as the limit are let through."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            granted = await all_at_once(lambda _: limits.acquire("a"), 2 * limit + 5)
            expect_equal(sum(granted), limit, "of many at once exactly as many as the limit acquire")

        await self._within_a_window(scenario)

    async def test_record_counts_in_any_case(self) -> None:
        """Also past the limit; what remains is never negative."""

        async def scenario(limits: Any) -> None:
            limit = await self._fill(limits, "a")
            expect_equal(await limits.acquire("a"), False, "what was recorded counts")
            await all_at_once(lambda _: limits.record("a"), limit)
            expect_equal((await limits.get_status("a")).remaining, 0, "what remains is never negative")

        await self._within_a_window(scenario)

    async def test_looking_counts_nothing(self) -> None:
        """can_proceed, get_status and get_wait_time change nothing."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            for _ in range(limit + 2):
                expect_equal(await limits.can_proceed("a"), True, "can_proceed() counts nothing")
                await limits.get_wait_time("a")
            expect_equal((await limits.get_status("a")).remaining, limit, "looking counts nothing")

        await self._within_a_window(scenario)

    async def test_waiting_is_long_enough(self) -> None:
        """After get_wait_time() one may proceed, if nobody else did."""
        async with self.open_store() as limits:
            await self._fill(limits, "a")
            expect(await self._proceeds_after_waiting(limits, "a"), "after get_wait_time() one may proceed")
            wait = await self._window(limits)
            if self.exact or wait <= self.patience:
                await limits.record("b")
                await trio.sleep(wait / 2)
                await self._fill(limits, "b")
                expect(await self._proceeds_after_waiting(limits, "b"), "and so when more than the limit was recorded")

    async def test_a_refusal_counts_nothing(self) -> None:
        """Who is refused does not keep others waiting."""
        async with self.open_store() as limits:
            wait = await self._window(limits)
            if not self.exact and wait > self.patience:
                return
            limit = await self._fill(limits, "a")
            await trio.sleep(wait / 2)
            before = await limits.get_wait_time("a")
            for _ in range(limit):
                await limits.acquire("a")
            if before > 0:
                after = await limits.get_wait_time("a")
                expect(after <= before + (1e-6 if self.exact else 0.05), "a refused acquire() counts nothing")

    async def test_reset_forgets(self) -> None:
        """A full resource may proceed again, others stay as they are."""

        async def scenario(limits: Any) -> None:
            limit = await self._fill(limits, "a")
            await self._fill(limits, "b")
            await limits.reset("a")
            expect_equal(await limits.acquire("a"), True, "after reset() one may proceed")
            expect_equal((await limits.get_status("a")).remaining, limit - 1, "reset() forgets all that was counted")
            expect_equal(await limits.can_proceed("b"), False, "reset() leaves other resources")

        await self._within_a_window(scenario)

    async def test_resources_are_independent(self) -> None:
        """Any text is a resource of its own."""

        async def scenario(limits: Any) -> None:
            await self._fill(limits, "a")
            for resource in ("A", "ab", "漢字", "🎉", "https://api.example.com"):
                expect_equal(await limits.acquire(resource), True, f"{resource!r} is a resource of its own")

        await self._within_a_window(scenario)
