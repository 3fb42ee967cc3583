"""The contract of an adaptive rate limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ._contract_rates import LimitContract
from ._contracts import all_at_once, expect, expect_equal

if TYPE_CHECKING:
    from ..abc import Priority

__all__ = ("AdaptiveRateLimitStoreContract",)


class AdaptiveRateLimitStoreContract(LimitContract):
    """What a :class:`~trio_renew.abc.AdaptiveRateLimitStore` must do. Each ``open_store`` opens an empty one.

    Open it with a limit of 1 to 50; for the rest see :class:`RateLimitStoreContract`.

    Example::

        class TestMyAdaptiveLimits(AdaptiveRateLimitStoreContract):
            @asynccontextmanager
            async def open_store(self):
                yield MyAdaptiveLimits(limit=20, window=0.5)

        check_contract(TestMyAdaptiveLimits)  # or let pytest run the class
    """

    who: ClassVar[tuple[Priority, ...]] = ("user",)

    async def test_a_fresh_resource_is_divided(self) -> None:
        """Nothing is counted: all is left, in two whole shares that make up the limit."""
        async with self.open_store() as limits:
            status = await limits.get_status("a")
            self._expect_shares(status)
            expect_equal(status.remaining, status.limit, "with nothing counted the whole limit remains")
            expect_equal(status.recent_user_activity, 0, "a fresh resource has no activity")
            expect_equal(status.background_paused, False, "background work is not paused without users")
            expect_equal(await limits.can_proceed("a", "user"), True, "a user may proceed on a fresh resource")
            expect_equal(float(await limits.get_wait_time("a", "user")), 0.0, "who may proceed need not wait")
            share = status.background_max > 0
            expect_equal(await limits.can_proceed("a", "background"), share, "background work may use its share")
            waits = await limits.get_wait_time("a", "background") > 0
            expect_equal(waits, not share, "background work need not wait for its share")

    async def test_users_may_use_the_whole_limit(self) -> None:
        """They borrow what the background does not use, and not one more."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            granted = await all_at_once(lambda _: limits.acquire("a", "user"), limit + 5)
            expect_equal(sum(granted), limit, "users may use the whole limit and no more")
            expect_equal(await limits.can_proceed("a", "user"), False, "at the limit no user proceeds")
            expect_equal(await limits.can_proceed("a", "background"), False, "at the limit no background work proceeds")
            status = await limits.get_status("a")
            self._expect_shares(status)
            expect_equal(status.remaining, 0, "at the limit nothing remains")
            expect_equal(status.recent_user_activity, limit, "user requests are activity")
            expect(await limits.get_wait_time("a", "user") > 0, "a user who is refused has to wait")
            expect(await limits.get_wait_time("a", "background") > 0, "background work that is refused has to wait")

        await self._within_a_window(scenario, "user")

    async def test_background_work_stays_in_its_share(self) -> None:
        """As many as background_max, and users still proceed."""

        async def scenario(limits: Any) -> None:
            status = await limits.get_status("a")
            granted = await all_at_once(lambda _: limits.acquire("a", "background"), status.limit + 5)
            expect_equal(sum(granted), status.background_max, "background work uses its share and no more")
            expect(await limits.get_wait_time("a", "background") > 0, "background work that is refused has to wait")
            found = await limits.get_status("a")
            expect_equal(found.remaining, status.limit - status.background_max, "both kinds count")
            expect_equal(found.recent_user_activity, 0, "background work is no user activity")
            room = found.remaining > 0
            expect_equal(await limits.can_proceed("a", "user"), room, "users may use what the background may not")

        await self._within_a_window(scenario, "user")

    async def test_both_kinds_share_one_limit(self) -> None:
        """Together never more than the limit."""

        async def scenario(limits: Any) -> None:
            limit = (await limits.get_status("a")).limit
            kinds: tuple[Priority, Priority] = ("user", "background")
            granted = await all_at_once(lambda number: limits.acquire("a", kinds[number % 2]), 3 * limit)
            expect_equal(sum(granted), limit, "both kinds together use the limit and no more")
            expect_equal((await limits.get_status("a")).remaining, 0, "what remains is never negative")

        await self._within_a_window(scenario, "user")

    async def test_the_default_is_background(self) -> None:
        """Who does not say so is no user."""

        async def scenario(limits: Any) -> None:
            await limits.record("a")
            await limits.record("a", "background")
            await limits.record("a", "user")
            expect_equal((await limits.get_status("a")).recent_user_activity, 1, "without a priority it is background")
            status = await limits.get_status("b")
            granted = [await limits.acquire("b") for _ in range(status.limit)]
            expect_equal(
                sum(granted), status.background_max, "acquire() without a priority uses the background's share"
            )

        await self._within_a_window(scenario, "user")

    async def test_a_division_holds_for_its_interval(self) -> None:
        """More requests do not change it at once."""

        async def scenario(limits: Any) -> None:
            before = await limits.get_status("a")
            for _ in range(before.limit):
                await limits.record("a", "user")
            after = await limits.get_status("a")
            expect_equal(
                (after.user_reserved, after.background_max, after.background_paused, after.reason),
                (before.user_reserved, before.background_max, before.background_paused, before.reason),
                "a division holds until it is recalculated",
            )

        await self._within_a_window(scenario, "user")

    async def test_waiting_is_long_enough(self) -> None:
        """After get_wait_time() a user may proceed, if nobody else did."""
        async with self.open_store() as limits:
            await self._fill(limits, "a", "user")
            expect(await self._proceeds_after_waiting(limits, "a", "user"), "after get_wait_time() a user may proceed")

    async def test_reset_forgets(self) -> None:
        """Requests and activity of that resource, and of no other."""

        async def scenario(limits: Any) -> None:
            limit = await self._fill(limits, "a", "user")
            await self._fill(limits, "b", "user")
            await limits.reset("a")
            status = await limits.get_status("a")
            expect_equal((status.remaining, status.recent_user_activity), (limit, 0), "reset() forgets all")
            expect_equal(await limits.acquire("a", "user"), True, "after reset() one may proceed")
            expect_equal(await limits.can_proceed("b", "user"), False, "reset() leaves other resources")

        await self._within_a_window(scenario, "user")

    async def test_reset_forgets_the_background(self) -> None:
        """Its share is free again."""

        async def scenario(limits: Any) -> None:
            share = (await limits.get_status("a")).background_max
            for _ in range(share):
                await limits.record("a", "background")
            expect_equal(await limits.can_proceed("a", "background"), False, "a share that is used up is used up")
            await limits.reset("a")
            expect_equal(
                await limits.can_proceed("a", "background"), share > 0, "reset() forgets the background's work"
            )

        await self._within_a_window(scenario, "user")

    async def test_waiting_is_long_enough_for_the_background(self) -> None:
        """After get_wait_time() background work may proceed, if nobody else did and there are no users."""
        async with self.open_store() as limits:
            share = (await limits.get_status("a")).background_max
            for _ in range(share):
                await limits.record("a", "background")
            if share:
                # Not before? A new division may let it proceed earlier.
                proceeds = await self._proceeds_after_waiting(limits, "a", "background", not_before=False)
                expect(proceeds, "after get_wait_time() background work may proceed")

    def _expect_shares(self, status: Any) -> None:
        shares = (status.user_reserved, status.background_max)
        expect(
            all(type(share) is int and 0 <= share <= status.limit for share in shares),
            "shares are whole, within the limit",
        )
        expect_equal(sum(shares), status.limit, "the shares make up the limit")
        expect(isinstance(status.reason, str) and status.reason, "a division has a reason")
