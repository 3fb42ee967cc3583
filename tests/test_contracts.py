"""The contract suites: sound stores pass, each planted defect is found."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import outcome
import pytest
import trio

from trio_renew._errors import JobLost, StoreError
from trio_renew._policy.capacity import RateLimitConfig
from trio_renew.abc import AdaptiveRateLimitStatus, RateLimitStatus, Registration
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import (
    AdaptiveRateLimitStoreContract,
    CacheStoreContract,
    DedupeStoreContract,
    RateLimitStoreContract,
    StorageContract,
    check_contract,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

# ------------------------------------------------------------------------------------- sound stores, as users write


class DictCache:
    """A cache in a dict, on Trio's clock."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Any, float, frozenset[str]]] = {}

    def live(self, hash: str) -> tuple[Any, float, frozenset[str]] | None:
        entry = self.entries.get(hash)
        return entry if entry is not None and trio.current_time() < entry[1] else None

    async def get(self, hash: str) -> Any:
        entry = self.live(hash)
        return None if entry is None else entry[0]

    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        if value is None:
            raise TypeError("value must not be None")
        deadline = float("inf") if ttl == 0 else trio.current_time() + ttl
        self.entries[hash] = (value, deadline, frozenset(tags))

    async def delete(self, hash: str) -> None:
        self.entries.pop(hash, None)

    async def clear(self, scope: str | None = None) -> None:
        for hash in [hash for hash in self.entries if hash.startswith(scope or "")]:
            del self.entries[hash]

    async def invalidate_tag(self, tag: str) -> int:
        return await self.invalidate_tags([tag])

    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        wanted = set(tags)
        keys = [hash for hash, entry in self.entries.items() if entry[2] & wanted]
        live = sum(self.live(hash) is not None for hash in keys)
        for hash in keys:
            del self.entries[hash]
        return live


class Job:
    """A job of a DictDedupe."""

    def __init__(self, job_id: str, deadline: float, registered: bool) -> None:
        self.job_id = job_id
        self.deadline = deadline
        self.registered = registered
        self.result: tuple[str, Any] | None = None
        self.settled = trio.Event()


class DictDedupe:
    """A dedupe store in a dict, on Trio's clock; has no attribute ``lease``."""

    def __init__(self, lease: float) -> None:
        self.seconds = lease
        self.jobs: dict[str, Job] = {}
        self.all: dict[str, Job] = {}

    def current(self, hash: str) -> Job | None:
        job = self.jobs.get(hash)
        return job if job is not None and job.result is None and trio.current_time() < job.deadline else None

    def owned(self, hash: str, job_id: str | None) -> Job | None:
        job = self.current(hash)
        if job is None or (job.job_id != job_id if job_id is not None else not job.registered):
            return None
        return job

    def join(self, hash: str, registered: bool) -> Registration:
        job = self.current(hash)
        if job is not None:
            return Registration(job.job_id, is_owner=False)
        job = Job(f"job {len(self.all)}", trio.current_time() + self.seconds, registered)
        self.jobs[hash] = self.all[job.job_id] = job
        return Registration(job.job_id, is_owner=True)

    async def register(self, hash: str) -> str:
        return self.join(hash, registered=True).job_id

    async def register_or_join(self, hash: str) -> Registration:
        return self.join(hash, registered=False)

    async def wait_for(self, hash: str, *, job_id: str | None = None) -> Any:
        result = await self.wait_outcome(hash, job_id=job_id)
        return result.value if isinstance(result, outcome.Value) else None

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        job = self.current(hash) if job_id is None else self.all.get(job_id)
        while job is not None and job.result is None and trio.current_time() < job.deadline:
            with trio.move_on_at(job.deadline):
                await job.settled.wait()
        if job is None or job.result is None or trio.current_time() >= job.deadline:
            return outcome.Error(JobLost("lost"))
        kind, result = job.result
        return outcome.Value(result) if kind == "value" else outcome.Error(result)

    def settle(self, hash: str, job_id: str | None, result: tuple[str, Any]) -> None:
        job = self.owned(hash, job_id)
        if job is not None:
            job.result = result
            job.deadline = trio.current_time() + self.seconds
            job.settled.set()

    async def complete(self, hash: str, value: Any, *, job_id: str | None = None) -> None:
        self.settle(hash, job_id, ("value", value))

    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        self.settle(hash, job_id, ("error", error))

    async def is_in_progress(self, hash: str) -> bool:
        return self.current(hash) is not None

    async def extend(self, hash: str, job_id: str) -> bool:
        job = self.owned(hash, job_id)
        if job is None:
            return False
        job.deadline = trio.current_time() + self.seconds
        return True


class DictLimits:
    """A rate limit in a dict, on Trio's clock."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self.times: dict[str, list[float]] = {}

    def counted(self, resource: str) -> list[float]:
        now = trio.current_time()
        times = [at for at in self.times.get(resource, []) if now < at + self.window]
        self.times[resource] = times
        return times

    async def acquire(self, resource: str) -> bool:
        if len(self.counted(resource)) >= self.limit:
            return False
        self.times[resource].append(trio.current_time())
        return True

    async def can_proceed(self, resource: str) -> bool:
        return len(self.counted(resource)) < self.limit

    async def record(self, resource: str) -> None:
        self.counted(resource).append(trio.current_time())

    async def get_status(self, resource: str) -> RateLimitStatus:
        times = self.counted(resource)
        reset_at = times[0] + self.window if times else trio.current_time()
        return RateLimitStatus(max(0, self.limit - len(times)), reset_at, self.limit)

    async def reset(self, resource: str) -> None:
        self.times.pop(resource, None)

    async def get_wait_time(self, resource: str) -> float:
        times = self.counted(resource)
        if not self.limit:
            return self.window
        if len(times) < self.limit:
            return 0.0
        return times[len(times) - self.limit] + self.window - trio.current_time()


class DictAdaptiveLimits:
    """An adaptive rate limit with a fixed division, on Trio's clock."""

    def __init__(self, limit: int, window: float) -> None:
        self.all = DictLimits(limit, window)
        self.users = DictLimits(limit, 900.0)
        self.background = DictLimits(limit // 2, window)

    async def acquire(self, resource: str, priority: str = "background") -> bool:
        if not await self.can_proceed(resource, priority):
            return False
        await self.record(resource, priority)
        return True

    async def can_proceed(self, resource: str, priority: str = "background") -> bool:
        if priority == "background" and not await self.background.can_proceed(resource):
            return False
        return await self.all.can_proceed(resource)

    async def record(self, resource: str, priority: str = "background") -> None:
        await self.all.record(resource)
        await (self.users if priority == "user" else self.background).record(resource)

    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        status = await self.all.get_status(resource)
        share = self.background.limit
        return AdaptiveRateLimitStatus(
            status.remaining,
            status.reset_at,
            status.limit,
            user_reserved=status.limit - share,
            background_max=share,
            background_paused=False,
            recent_user_activity=len(self.users.counted(resource)),
            reason="half and half",
        )

    async def reset(self, resource: str) -> None:
        for limits in (self.all, self.users, self.background):
            await limits.reset(resource)

    async def get_wait_time(self, resource: str, priority: str = "background") -> float:
        wait = await self.all.get_wait_time(resource)
        return max(wait, await self.background.get_wait_time(resource)) if priority == "background" else wait


class TextStorage:
    """A storage in a text."""

    def __init__(self) -> None:
        self.text: str | None = None

    async def get(self) -> Any:
        return None if self.text is None else json.loads(self.text)

    async def set(self, value: Any) -> None:
        self.text = json.dumps(value)

    async def clear(self) -> None:
        self.text = None


SUITES: dict[str, tuple[type[Any], Callable[[], Any]]] = {
    "cache": (CacheStoreContract, DictCache),
    "dedupe": (DedupeStoreContract, lambda: DictDedupe(10.0)),
    "rate_limit": (RateLimitStoreContract, lambda: DictLimits(5, 60.0)),
    "adaptive": (AdaptiveRateLimitStoreContract, lambda: DictAdaptiveLimits(6, 60.0)),
    "storage": (StorageContract, TextStorage),
}
ENGINE = ("cache", "dedupe", "rate_limit", "adaptive")


def contract_of(suite: type[Any], make: Callable[[], Any], **attributes: Any) -> type[Any]:
    """Make a contract for a store that is made by a function."""

    @asynccontextmanager
    async def open_store(self: Any) -> AsyncGenerator[Any, None]:
        yield make()

    return type("Custom", (suite,), {"open_store": open_store, "virtual": True, **attributes})


@pytest.mark.parametrize("kind", SUITES)
def test_a_sound_custom_store_passes(kind: str) -> None:
    check_contract(contract_of(*SUITES[kind]))


def test_sound_stores_that_refuse_some_values_pass() -> None:
    class Cache(DictCache):
        async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
            if type(value) is object:
                await self.delete(hash)
                raise StoreError("it cannot be encoded")
            await super().set(hash, value, ttl, tags=tags)

    class Dedupe(DictDedupe):
        async def complete(self, hash: str, value: Any, *, job_id: str | None = None) -> None:
            if type(value) is object:
                raise StoreError("it cannot be encoded")
            await super().complete(hash, value, job_id=job_id)

    check_contract(contract_of(CacheStoreContract, Cache))
    check_contract(contract_of(DedupeStoreContract, lambda: Dedupe(10.0)))


def test_a_limit_without_a_share_for_background_work_passes() -> None:
    check_contract(contract_of(AdaptiveRateLimitStoreContract, lambda: DictAdaptiveLimits(1, 60.0)))


@pytest.mark.parametrize("kind", ENGINE)
@pytest.mark.parametrize("virtual", [True, False])
def test_the_memory_engine_passes(kind: str, virtual: bool) -> None:
    class Memory(SUITES[kind][0]):  # type: ignore[misc]
        lease: ClassVar[float] = 10.0 if virtual else 0.2

        @asynccontextmanager
        async def open_store(self) -> AsyncGenerator[Any, None]:
            config = RateLimitConfig(limit=20, window=60.0 if virtual else 0.2)
            async with open_memory_stores(lease=self.lease, default_config=config) as stores:
                yield getattr(stores, kind)

    Memory.virtual = virtual
    check_contract(Memory)


class TestUnderPytest(DedupeStoreContract):
    """A suite is an ordinary test class; on a real clock here."""

    lease = 0.2

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[Any, None]:
        async with open_memory_stores(lease=self.lease) as stores:
            yield stores.dedupe


class TestUnderPytestOnTriosClock(CacheStoreContract):
    """A store that lives by Trio's clock passes on a real one as well."""

    virtual = True

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[Any, None]:
        async with open_memory_stores() as stores:
            yield stores.cache


# -------------------------------------------------------------------------------------------------- planted defects


class LateExpiry(DictCache):
    def live(self, hash: str) -> tuple[Any, float, frozenset[str]] | None:
        entry = self.entries.get(hash)
        return entry if entry is not None and trio.current_time() <= entry[1] else None


class EarlyExpiry(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        await super().set(hash, value, ttl * 0.5, tags=tags)


class ZeroExpires(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        await super().set(hash, value, ttl or 3600.0, tags=tags)


class NegativeKeepsTheOld(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        if ttl >= 0:
            await super().set(hash, value, ttl, tags=tags)


class TakesNone(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        await super().set(hash, 0 if value is None else value, ttl, tags=tags)


class RefusesHalfway(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        self.entries.pop(hash, None)
        if not isinstance(ttl, (int, float)):
            raise TypeError("ttl must be a number")
        await super().set(hash, value, ttl, tags=tags)


class CaseInsensitive(DictCache):
    async def clear(self, scope: str | None = None) -> None:
        for hash in [hash for hash in self.entries if hash.lower().startswith((scope or "").lower())]:
            del self.entries[hash]


class ClearsNothingWithoutScope(DictCache):
    async def clear(self, scope: str | None = None) -> None:
        if scope:
            await super().clear(scope)


class KeepsOldTags(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        old = self.entries.get(hash, (None, 0.0, frozenset[str]()))[2]
        await super().set(hash, value, ttl, tags={*tags, *old})


class CountsTheDead(DictCache):
    def live(self, hash: str) -> tuple[Any, float, frozenset[str]] | None:
        return self.entries.get(hash)

    async def get(self, hash: str) -> Any:
        entry = super().live(hash)
        return None if entry is None else entry[0]


class CountsTags(DictCache):
    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        wanted = list(tags)
        return sum(len(set(wanted) & entry[2]) for entry in self.entries.values()) and await super().invalidate_tags(
            wanted
        ) + (len(wanted) > 1)


class ForgetsFalsy(DictCache):
    async def get(self, hash: str) -> Any:
        return await super().get(hash) or None


class TextsOnly(DictCache):
    async def get(self, hash: str) -> Any:
        value = await super().get(hash)
        return value if value is None else int(value) if isinstance(value, bool) else value


class SetInTwoSteps(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        await super().set(hash, value, ttl)
        await trio.lowlevel.checkpoint()
        await super().set(hash, value, ttl, tags=tags)


class StripsKeys(DictCache):
    async def get(self, hash: str) -> Any:
        return await super().get(hash.strip())


class ClearsNothingForAnEmptyScope(DictCache):
    async def clear(self, scope: str | None = None) -> None:
        if scope != "":
            await super().clear(scope)


class TagsArePrefixes(DictCache):
    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        every = {tag for entry in self.entries.values() for tag in entry[2]}
        return await super().invalidate_tags([tag for tag in every if tag.startswith(tuple(tags))])


class DeletesAPrefix(DictCache):
    async def delete(self, hash: str) -> None:
        await super().clear(hash)


class CutsKeys(DictCache):
    async def get(self, hash: str) -> Any:
        return await super().get(hash[:255])

    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        await super().set(hash[:255], value, ttl, tags=tags)


class StaleAfterClear(DictCache):
    """Has a second level, which clear() forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.near: dict[str, Any] = {}

    async def get(self, hash: str) -> Any:
        if hash not in self.near or self.live(hash) is not None:
            self.near[hash] = await super().get(hash)
        return self.near[hash]

    async def delete(self, hash: str) -> None:
        self.near.pop(hash, None)
        await super().delete(hash)


class ClearsOneByOne(DictCache):
    async def clear(self, scope: str | None = None) -> None:
        for hash in [hash for hash in self.entries if hash.startswith(scope or "")]:
            await super().clear(hash)
            await trio.lowlevel.checkpoint()


class DeletesTheTagsFirst(DictCache):
    async def delete(self, hash: str) -> None:
        if hash in self.entries:
            value, deadline, _ = self.entries[hash]
            self.entries[hash] = (value, deadline, frozenset())
        await trio.lowlevel.checkpoint()
        await super().delete(hash)


class InvalidatesOneByOne(DictCache):
    async def invalidate_tags(self, tags: Iterable[str]) -> int:
        count = 0
        for tag in tags:
            count += await super().invalidate_tags([tag])
            await trio.lowlevel.checkpoint()
        return count


class RefusedLeavesTheOld(DictCache):
    async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
        if type(value) is object:
            raise StoreError("it cannot be encoded")
        await super().set(hash, value, ttl, tags=tags)


class AsyncOwnership(DictDedupe):
    async def register_or_join(self, hash: str) -> Registration:
        known = self.current(hash)
        await trio.lowlevel.checkpoint()
        if known is None:
            self.jobs.pop(hash, None)
        return self.join(hash, registered=False)


class NoFencing(DictDedupe):
    def owned(self, hash: str, job_id: str | None) -> Job | None:
        return self.current(hash)


class LateCompletion(DictDedupe):
    def owned(self, hash: str, job_id: str | None) -> Job | None:
        job = self.jobs.get(hash)
        return job if job is not None and job.job_id == job_id and job.result is None else super().owned(hash, job_id)


class SettledIsACache(DictDedupe):
    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        job = self.jobs.get(hash)
        return await super().wait_outcome(hash, job_id=job.job_id if job_id is None and job is not None else job_id)


class SettledBlocks(DictDedupe):
    def join(self, hash: str, registered: bool) -> Registration:
        job = self.jobs.get(hash)
        if job is not None and trio.current_time() < job.deadline:
            return Registration(job.job_id, is_owner=False)
        return super().join(hash, registered)


class NeverWakes(DictDedupe):
    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        job = self.current(hash)
        if job is not None:
            await trio.sleep_forever()
        return await super().wait_outcome(hash, job_id=job_id)


class NeverLost(DictDedupe):
    def join(self, hash: str, registered: bool) -> Registration:
        registration = super().join(hash, registered)
        self.all[registration.job_id].deadline = float("inf")
        return registration


class LostEarly(DictDedupe):
    def join(self, hash: str, registered: bool) -> Registration:
        registration = super().join(hash, registered)
        if registration.is_owner:
            self.all[registration.job_id].deadline -= self.seconds / 2
        return registration


class ExtendsNothing(DictDedupe):
    async def extend(self, hash: str, job_id: str) -> bool:
        return self.owned(hash, job_id) is not None


class ExtendsAnybody(DictDedupe):
    async def extend(self, hash: str, job_id: str) -> bool:
        await super().extend(hash, job_id)
        return True


class HidesErrors(DictDedupe):
    async def fail(self, hash: str, error: BaseException, *, job_id: str | None = None) -> None:
        self.settle(hash, job_id, ("value", None))


class RaisesErrors(DictDedupe):
    async def wait_for(self, hash: str, *, job_id: str | None = None) -> Any:
        return (await self.wait_outcome(hash, job_id=job_id)).unwrap()


class SharesOneOutcome(DictDedupe):
    def __init__(self, lease: float) -> None:
        super().__init__(lease)
        self.outcomes: dict[str | None, outcome.Outcome[Any]] = {}

    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        result = await super().wait_outcome(hash, job_id=job_id)
        return self.outcomes.setdefault(job_id, result)


class NoneIsLost(DictDedupe):
    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        result = await super().wait_outcome(hash, job_id=job_id)
        lost = isinstance(result, outcome.Value) and result.value is None
        return outcome.Error(JobLost("lost")) if lost else result


class OutcomesForWaitersOnly(DictDedupe):
    def settle(self, hash: str, job_id: str | None, result: tuple[str, Any]) -> None:
        super().settle(hash, job_id, result)
        for known in [known for known, job in self.all.items() if job.result is not None]:
            del self.all[known]


class OutcomesForEver(DictDedupe):
    def settle(self, hash: str, job_id: str | None, result: tuple[str, Any]) -> None:
        super().settle(hash, job_id, result)
        for job in self.all.values():
            job.deadline = float("inf") if job.result is not None else job.deadline


class LeavingEndsTheJob(DictDedupe):
    async def wait_outcome(self, hash: str, *, job_id: str | None = None) -> outcome.Outcome[Any]:
        try:
            return await super().wait_outcome(hash, job_id=job_id)
        except trio.Cancelled:
            self.jobs.pop(hash, None)
            raise


class SettlesWithoutAnId(DictDedupe):
    async def register_or_join(self, hash: str) -> Registration:
        return self.join(hash, registered=True)


class NeedsAnId(DictDedupe):
    async def register(self, hash: str) -> str:
        return self.join(hash, registered=False).job_id


class CancelledRegistrationStays(DictDedupe):
    async def register_or_join(self, hash: str) -> Registration:
        registration = self.join(hash, registered=False)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.jobs[hash].deadline = float("inf")
            raise
        return registration


class ExtensionsAddUp(DictDedupe):
    async def extend(self, hash: str, job_id: str) -> bool:
        job = self.owned(hash, job_id)
        if job is not None:
            job.deadline += self.seconds
        return job is not None


class JoiningExtends(DictDedupe):
    def join(self, hash: str, registered: bool) -> Registration:
        registration = super().join(hash, registered)
        self.all[registration.job_id].deadline = trio.current_time() + self.seconds
        return registration


class OutcomesAreKeptFromTheStart(DictDedupe):
    def settle(self, hash: str, job_id: str | None, result: tuple[str, Any]) -> None:
        job = self.owned(hash, job_id)
        super().settle(hash, job_id, result)
        if job is not None:
            job.deadline = float(job.job_id.partition("@")[2]) + self.seconds

    def join(self, hash: str, registered: bool) -> Registration:
        registration = super().join(hash, registered)
        if registration.is_owner:
            job = self.jobs[hash]
            self.all[f"{job.job_id}@{trio.current_time()}"] = job
            job.job_id = f"{job.job_id}@{trio.current_time()}"
        return Registration(self.jobs[hash].job_id, registration.is_owner)


class SettlesInTwoSteps(DictDedupe):
    async def complete(self, hash: str, value: Any, *, job_id: str | None = None) -> None:
        job = self.owned(hash, job_id)
        if job is not None:
            job.result = ("value", None)
            await trio.lowlevel.checkpoint()
            job.result = None
        await super().complete(hash, value, job_id=job_id)


class RefusedSettles(DictDedupe):
    async def complete(self, hash: str, value: Any, *, job_id: str | None = None) -> None:
        await super().complete(hash, None if type(value) is object else value, job_id=job_id)
        if type(value) is object:
            raise StoreError("it cannot be encoded")


class CheckThenRecord(DictLimits):
    async def acquire(self, resource: str) -> bool:
        may = await self.can_proceed(resource)
        await trio.lowlevel.checkpoint()
        if may:
            await self.record(resource)
        return may


class RefusalsCount(DictLimits):
    async def acquire(self, resource: str) -> bool:
        may = await self.can_proceed(resource)
        await self.record(resource)
        return may


class LookingCounts(DictLimits):
    async def can_proceed(self, resource: str) -> bool:
        may = await super().can_proceed(resource)
        await self.record(resource)
        return may


class NegativeRemaining(DictLimits):
    async def get_status(self, resource: str) -> RateLimitStatus:
        status = await super().get_status(resource)
        return RateLimitStatus(self.limit - len(self.counted(resource)), status.reset_at, status.limit)


class FixedWindow(DictLimits):
    def counted(self, resource: str) -> list[float]:
        times = self.times.setdefault(resource, [])
        if times and trio.current_time() >= times[0] + self.window:
            times.clear()
        return times


class WaitsTooShort(DictLimits):
    async def get_wait_time(self, resource: str) -> float:
        return await super().get_wait_time(resource) / 2


class WaitsForTheOldestOnly(DictLimits):
    async def get_wait_time(self, resource: str) -> float:
        times = self.counted(resource)
        return max(0.0, times[0] + self.window - trio.current_time()) if len(times) >= self.limit else 0.0


class BlockedWithNothingToWaitFor(DictLimits):
    async def get_wait_time(self, resource: str) -> float:
        return 0.0


class ResetsInThePast(DictLimits):
    async def get_status(self, resource: str) -> RateLimitStatus:
        status = await super().get_status(resource)
        return RateLimitStatus(status.remaining, trio.current_time(), status.limit)


class ResetTakesAll(DictLimits):
    async def reset(self, resource: str) -> None:
        self.times.clear()


class ResetTakesOne(DictLimits):
    async def reset(self, resource: str) -> None:
        self.counted(resource)[:1] = []


class OneResource(DictLimits):
    def counted(self, resource: str) -> list[float]:
        return super().counted("all")

    async def acquire(self, resource: str) -> bool:
        return await super().acquire("all")


class CancelledAcquireCountsTwice(DictLimits):
    async def acquire(self, resource: str) -> bool:
        granted = await super().acquire(resource)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            await self.record(resource)
            raise
        return granted


class RecordsNothingPastTheLimit(DictLimits):
    async def record(self, resource: str) -> None:
        if len(self.counted(resource)) < self.limit:
            await super().record(resource)


class ResetsWithTheNewest(DictLimits):
    async def get_status(self, resource: str) -> RateLimitStatus:
        status = await super().get_status(resource)
        times = self.counted(resource)
        reset_at = times[-1] + self.window if times else status.reset_at
        return RateLimitStatus(status.remaining, reset_at, status.limit)


class ResetsAfterADuration(DictLimits):
    async def get_status(self, resource: str) -> RateLimitStatus:
        status = await super().get_status(resource)
        return RateLimitStatus(status.remaining, self.window if self.counted(resource) else 0.0, status.limit)


class NeverLooksAtTheClockFirst(DictLimits):
    async def can_proceed(self, resource: str) -> bool:
        return len(self.times.get(resource, [])) < self.limit


class Rigid(DictAdaptiveLimits):
    async def can_proceed(self, resource: str, priority: str = "background") -> bool:
        if priority == "user" and len(self.users.counted(resource)) >= self.all.limit - self.background.limit:
            return False
        return await super().can_proceed(resource, priority)


class BackgroundTakesAll(DictAdaptiveLimits):
    async def can_proceed(self, resource: str, priority: str = "background") -> bool:
        return await self.all.can_proceed(resource)


class UsersHaveNoLimit(DictAdaptiveLimits):
    async def can_proceed(self, resource: str, priority: str = "background") -> bool:
        return priority == "user" or await super().can_proceed(resource, priority)


class DefaultIsUser(DictAdaptiveLimits):
    async def record(self, resource: str, priority: str = "user") -> None:
        await super().record(resource, priority)


class FractionalShares(DictAdaptiveLimits):
    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        status = await super().get_status(resource)
        fields = {name: getattr(status, name) for name in AdaptiveRateLimitStatus.__slots__ if name[0] != "_"}
        return AdaptiveRateLimitStatus(**{**fields, "user_reserved": 3.5, "background_max": 2.5})


class RestlessDivision(DictAdaptiveLimits):
    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        self.background.limit = max(0, self.all.limit // 2 - len(self.all.counted(resource)))
        return await super().get_status(resource)


class ResetKeepsActivity(DictAdaptiveLimits):
    async def reset(self, resource: str) -> None:
        await self.all.reset(resource)
        await self.background.reset(resource)


class BackgroundWaitsTooShort(DictAdaptiveLimits):
    async def get_wait_time(self, resource: str, priority: str = "background") -> float:
        return await super().get_wait_time(resource, priority) / (2 if priority == "background" else 1)


class ResetKeepsTheBackground(DictAdaptiveLimits):
    async def reset(self, resource: str) -> None:
        await self.all.reset(resource)
        await self.users.reset(resource)


class FixedUserWindow(DictAdaptiveLimits):
    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self.all = FixedWindow(limit, window)


class CancelledUserCountsTwice(DictAdaptiveLimits):
    async def acquire(self, resource: str, priority: str = "background") -> bool:
        granted = await super().acquire(resource, priority)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            await self.record(resource, priority)
            raise
        return granted


class NeverResets(DictAdaptiveLimits):
    async def get_status(self, resource: str) -> AdaptiveRateLimitStatus:
        return attrs.evolve(await super().get_status(resource), reset_at=0.0)


class ForgetfulStorage(TextStorage):
    async def get(self) -> Any:
        value = await super().get()
        self.text = None
        return value


class FirstWins(TextStorage):
    async def set(self, value: Any) -> None:
        if self.text is None:
            await super().set(value)


class ClearKeeps(TextStorage):
    async def clear(self) -> None:
        pass


class HalfWritten(TextStorage):
    async def set(self, value: Any) -> None:
        self.text = None
        await trio.lowlevel.checkpoint()
        await super().set(value)


class HalfCleared(TextStorage):
    async def clear(self) -> None:
        if self.text is not None:
            self.text = '"cleared"'
        await trio.lowlevel.checkpoint()
        await super().clear()


class StaleStorage(TextStorage):
    seen: Any = None

    async def get(self) -> Any:
        self.seen = await super().get() or self.seen
        return self.seen


class NotEmpty(TextStorage):
    def __init__(self) -> None:
        self.text = "7"


def defects(base: type[Any]) -> list[type[Any]]:
    return base.__subclasses__()


PLANTED = [
    *(("cache", defect) for defect in defects(DictCache)),
    *(("dedupe", defect) for defect in defects(DictDedupe)),
    *(("rate_limit", defect) for defect in defects(DictLimits)),
    *(("adaptive", defect) for defect in defects(DictAdaptiveLimits)),
    *(("storage", defect) for defect in defects(TextStorage)),
]
ARGUMENTS: dict[str, tuple[Any, ...]] = {"dedupe": (10.0,), "rate_limit": (5, 60.0), "adaptive": (6, 60.0)}


@pytest.mark.parametrize(("kind", "defect"), PLANTED, ids=[defect.__name__ for _, defect in PLANTED])
def test_a_planted_defect_is_found(kind: str, defect: type[Any]) -> None:
    contract = contract_of(SUITES[kind][0], lambda: defect(*ARGUMENTS.get(kind, ())))
    with pytest.raises(ExceptionGroup, match=r"Custom: \d+ of \d+ tests failed") as caught:
        check_contract(contract)
    for failure in caught.value.exceptions:
        assert failure.__notes__[-1].startswith("in Custom.test_")


# ------------------------------------------------------------------------------------------------------- the runner


def test_what_is_no_suite_is_refused() -> None:
    for bad in (None, object, CacheStoreContract(), DictCache):
        with pytest.raises(TypeError, match="contract must be a subclass"):
            check_contract(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must have tests"):
        check_contract(CacheStoreContract.__mro__[1])


def test_a_suite_without_a_store_says_what_is_missing() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        check_contract(StorageContract)
    assert all(isinstance(error, NotImplementedError) for error in caught.value.exceptions)
    assert "StorageContract must define open_store(self)" in str(caught.value.exceptions[0])


async def test_it_does_not_run_inside_a_run() -> None:
    with pytest.raises(RuntimeError, match="cannot be called inside"):
        check_contract(contract_of(*SUITES["storage"]))


def test_own_tests_are_run_too() -> None:
    ran: list[str] = []

    class Mine(contract_of(*SUITES["storage"])):  # type: ignore[misc]
        async def test_async(self) -> None:
            ran.append("async")

        def test_sync(self) -> None:
            ran.append("sync")

        async def test_failing(self) -> None:
            raise ValueError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        check_contract(Mine)
    assert ran == ["async", "sync"]
    (error,) = caught.value.exceptions
    assert (type(error), error.__notes__) == (ValueError, [f"in {Mine.__qualname__}.test_failing"])


def test_an_interrupt_ends_it() -> None:
    class Mine(contract_of(*SUITES["storage"])):  # type: ignore[misc]
        async def test_a(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_contract(Mine)


def test_a_suite_of_other_values() -> None:
    class Numbers(TextStorage):
        async def set(self, value: Any) -> None:
            assert isinstance(value, int)
            await super().set(value)

    class NumberCache(DictCache):
        async def set(self, hash: str, value: Any, ttl: float, *, tags: Iterable[str] = ()) -> None:
            if not isinstance(value, int):
                raise TypeError("numbers only")
            await super().set(hash, value, ttl, tags=tags)

    def make_value(self: object, number: int) -> int:
        return number + 1

    check_contract(contract_of(StorageContract, Numbers, make_value=make_value))
    check_contract(contract_of(CacheStoreContract, NumberCache, make_value=make_value))


def test_on_a_real_clock_a_slow_machine_shows_nothing() -> None:
    """A scenario that took longer than a lease is tried again, and only so often."""
    tries: list[int] = []

    class Slow(contract_of(*SUITES["storage"], virtual=False)):  # type: ignore[misc]
        async def test_slow(self) -> None:
            async def scenario(store: Any) -> None:
                tries.append(1)
                await trio.sleep(0.01)
                raise AssertionError("it took too long to mean anything")

            await self.unless_slow(0.005, scenario)

        async def test_slow_once(self) -> None:
            first = [True]

            async def scenario(store: Any) -> None:
                if first.pop() if first else False:
                    await trio.sleep(0.01)
                    raise AssertionError("it took too long to mean anything")

            await self.unless_slow(0.005, scenario)

    with pytest.raises(ExceptionGroup, match="1 of"):
        check_contract(Slow)
    assert len(tries) == 4


def test_what_takes_too_long_on_a_real_clock_is_not_waited_for() -> None:
    make = SUITES["rate_limit"][1]
    check_contract(contract_of(RateLimitStoreContract, make, virtual=False, patience=1.0))
    check_contract(contract_of(RateLimitStoreContract, lambda: DictLimits(1, 0.2), virtual=False))
