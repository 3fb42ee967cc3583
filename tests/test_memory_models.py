"""The memory engine against models that are too simple to be wrong."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from trio_renew import AdaptiveConfig, JobLost, RateLimitConfig
from trio_renew._policy.capacity import capacity_of
from trio_renew.stores.memory import open_memory_stores


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


KEYS = st.sampled_from(["a", "b", "a:1", "a:2", "b:1"])
TAGS = st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)

cache_steps = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("set"), KEYS, st.integers(1, 9), st.sampled_from([-1, 0, 0.5, 2.0, 5]), TAGS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("clear"), st.sampled_from([None, "", "a:", "b"])),
        st.tuples(st.just("invalidate_tags"), TAGS),
        st.tuples(st.just("cleanup")),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 4.0])),
    ),
    max_size=40,
)


class CacheModel:
    """Entries in a list, the least recently used first; all of it is looked through each time."""

    def __init__(self, clock: SetClock, max_items: int | None, max_bytes: int | None) -> None:
        self.clock = clock
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.entries: list[tuple[str, int, float, set[str]]] = []

    def live(self) -> list[tuple[str, int, float, set[str]]]:
        return [entry for entry in self.entries if self.clock.now < entry[2]]

    def get(self, key: str) -> int | None:
        for entry in self.entries:
            if entry[0] == key:
                self.entries.remove(entry)
                if self.clock.now >= entry[2]:
                    return None
                self.entries.append(entry)
                return entry[1]
        return None

    def set(self, key: str, value: int, ttl: float, tags: list[str]) -> None:
        self.delete(key)
        if ttl >= 0:
            deadline = self.clock.now + ttl if ttl else float("inf")
            self.entries.append((key, value, deadline, set(tags)))
        while self.max_items is not None and len(self.entries) > self.max_items:
            self.entries.pop(0)
        while self.max_bytes is not None and sum(entry[1] for entry in self.entries) > self.max_bytes:
            self.entries.pop(0)

    def delete(self, key: str) -> None:
        self.entries = [entry for entry in self.entries if entry[0] != key]

    def clear(self, scope: str | None) -> None:
        self.entries = [entry for entry in self.entries if not entry[0].startswith(scope or "")]

    def invalidate_tags(self, tags: list[str]) -> int:
        count = sum(bool(entry[3] & set(tags)) for entry in self.live())
        self.entries = [entry for entry in self.entries if not entry[3] & set(tags)]
        return count

    def cleanup(self) -> int:
        before = len(self.entries)
        self.entries = self.live()
        return before - len(self.entries)


class UnaryCodec:
    """A number has as many bytes as it says."""

    def encode(self, value: Any, /) -> bytes:
        return b"x" * int(value)

    def decode(self, data: bytes, /) -> Any:
        return len(data)


@settings(max_examples=150, deadline=None)
@given(cache_steps, st.none() | st.integers(1, 4), st.none() | st.integers(9, 20))
def test_the_cache(steps: list[tuple[Any, ...]], max_items: int | None, max_bytes: int | None) -> None:
    async def main() -> None:
        clock = SetClock()
        model = CacheModel(clock, max_items, max_bytes)
        async with open_memory_stores(
            clock=clock, codec=UnaryCodec(), max_items=max_items, max_total_bytes=max_bytes
        ) as stores:
            for name, *args in steps:
                if name == "pass":
                    clock.now += args[0]
                elif name == "set":
                    *plain, tags = args
                    await stores.cache.set(*plain, tags=tags)
                    model.set(*plain, tags)
                else:
                    assert await getattr(stores.cache, name)(*args) == getattr(model, name)(*args)
                stats = await stores.cache.get_stats()
                assert stats.total_items == len(model.entries)
                assert stats.expired == len(model.entries) - len(model.live())
                if max_bytes is not None:
                    assert stats.total_bytes == sum(entry[1] for entry in model.entries)
                lru = [info.hash for info in await stores.cache.get_lru_items(50)]
                assert lru == [entry[0] for entry in model.live()]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


dedupe_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["register", "register_or_join", "is_in_progress"]), st.sampled_from("ab")),
        st.tuples(
            st.sampled_from(["complete", "fail", "extend", "wait_for"]), st.sampled_from("ab"), st.integers(-4, -1)
        ),
        st.tuples(st.sampled_from(["complete", "fail"]), st.sampled_from("ab"), st.none()),
        st.tuples(st.just("pass"), st.sampled_from([1.0, 4.0, 6.0])),
        st.tuples(st.just("clear"), st.sampled_from([None, "a"])),
    ),
    max_size=40,
)


class JobModel:
    """One job: whose it is, when it ends, and what became of it."""

    def __init__(self, hash: str, deadline: float, registered: bool) -> None:
        self.hash = hash
        self.deadline = deadline
        self.registered = registered
        self.status = "pending"
        self.result: Any = None


class DedupeModel:
    """Every job there ever was, in a list; its id is its position."""

    def __init__(self, clock: SetClock) -> None:
        self.clock = clock
        self.jobs: list[JobModel] = []

    def current(self, hash: str) -> JobModel | None:
        for job in self.jobs:
            if job.hash == hash and job.status == "pending" and self.clock.now < job.deadline:
                return job
        return None

    def owned(self, hash: str, number: int | None) -> JobModel | None:
        job = self.current(hash)
        if job is None or not (job.registered if number is None else job is self.jobs[number]):
            return None
        return job

    def settle(self, hash: str, number: int | None, status: str, result: Any) -> None:
        job = self.owned(hash, number)
        if job is not None:
            job.status, job.result, job.deadline = status, result, self.clock.now + 10.0

    def kept(self, hash: str, number: int) -> JobModel | None:
        job = self.jobs[number]
        return job if job.hash == hash and job.status != "pending" and self.clock.now < job.deadline else None


@settings(max_examples=200, deadline=None)
@given(dedupe_steps)
def test_the_dedupe_store(steps: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        clock = SetClock()
        model = DedupeModel(clock)
        ids: list[str] = []
        async with open_memory_stores(clock=clock, lease=10.0) as stores:
            dedupe = stores.dedupe
            for step, (name, *args) in enumerate(steps):
                if name == "pass":
                    clock.now += args[0]
                    continue
                if name == "clear":
                    await dedupe.clear(args[0])
                    for job in model.jobs:
                        if job.hash.startswith(args[0] or ""):
                            job.deadline = clock.now
                    continue
                hash = args[0]
                current = model.current(hash)
                if name == "is_in_progress":
                    assert await dedupe.is_in_progress(hash) == (current is not None)
                    continue
                if name in ("register", "register_or_join"):
                    found = await getattr(dedupe, name)(hash)
                    job_id = found if name == "register" else found.job_id
                    if current is None:
                        assert job_id not in ids
                        ids.append(job_id)
                        model.jobs.append(JobModel(hash, clock.now + 10.0, name == "register"))
                    else:
                        assert job_id == ids[model.jobs.index(current)]
                    assert name == "register" or found.is_owner == (current is None)
                    continue
                number = args[1]
                if number is not None:
                    number += len(ids)
                    if number < 0:
                        continue
                job_id = None if number is None else ids[number]
                if name == "complete":
                    await dedupe.complete(hash, step, job_id=job_id)
                    model.settle(hash, number, "completed", step)
                elif name == "fail":
                    error = ValueError(step)
                    await dedupe.fail(hash, error, job_id=job_id)
                    model.settle(hash, number, "failed", error)
                elif name == "extend":
                    owned = model.owned(hash, number)
                    assert await dedupe.extend(hash, job_id) == (owned is not None)
                    if owned is not None:
                        owned.deadline = clock.now + 10.0
                elif current is None or current is not model.jobs[number]:
                    kept = model.kept(hash, number)
                    result = await dedupe.wait_outcome(hash, job_id=job_id)
                    if kept is None:
                        assert isinstance(result.error, JobLost)
                    else:
                        assert kept.result == (result.value if kept.status == "completed" else result.error)
                pending = [job for job in model.jobs if job.status == "pending" and clock.now < job.deadline]
                assert (await dedupe.get_stats()).active_jobs == len(pending)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


rate_steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["acquire", "can_proceed", "record", "get_status", "get_wait_time"]),
            st.sampled_from("ab"),
            st.sampled_from(["user", "background"]),
        ),
        st.tuples(st.just("pass"), st.sampled_from([0.25, 1.0, 4.0, 10.0, 40.0])),
        st.tuples(st.just("reset"), st.sampled_from("ab")),
        st.tuples(st.just("set_cooldown"), st.sampled_from("ab"), st.sampled_from([-1.0, 1.0, 5.0])),
        st.tuples(st.just("clear_cooldown"), st.sampled_from("ab")),
        st.tuples(st.just("set_resource_config"), st.sampled_from("ab"), st.integers(0, 6)),
        st.tuples(st.just("cleanup")),
    ),
    max_size=50,
)
ADAPTIVE = AdaptiveConfig(
    monitoring_window=20.0,
    high_activity_threshold=4,
    moderate_activity_threshold=2,
    recalculation_interval=5.0,
    sustained_inactivity_threshold=30.0,
    min_user_reserved=1,
)
WINDOW = 10.0


class RateModel:
    """Every request there ever was, in a list."""

    def __init__(self, clock: SetClock) -> None:
        self.clock = clock
        self.requests: list[tuple[str, float, str]] = []
        self.cooldowns: dict[str, float] = {}
        self.limits: dict[str, int] = {}
        self.divisions: dict[str, tuple[float, Any]] = {}

    def limit(self, resource: str) -> int:
        return self.limits.get(resource, 4)

    def times(
        self, resource: str, window: float = WINDOW, kinds: tuple[str, ...] = ("user", "background")
    ) -> list[float]:
        now = self.clock.now
        return [at for name, at, kind in self.requests if name == resource and kind in kinds and now < at + window]

    def cooling(self, resource: str) -> bool:
        return self.clock.now < self.cooldowns.get(resource, 0.0)

    def may_proceed(self, resource: str) -> bool:
        return len(self.times(resource)) < self.limit(resource) and not self.cooling(resource)

    def wait(self, times: list[float], most: int) -> float:
        return 0.0 if len(times) < most else times[len(times) - most] + WINDOW - self.clock.now

    def wait_time(self, resource: str) -> float:
        limit = self.limit(resource)
        wait = self.wait(self.times(resource), limit) if limit else WINDOW
        return max(wait, self.cooldowns.get(resource, 0.0) - self.clock.now if self.cooling(resource) else 0.0)

    def division(self, resource: str) -> Any:
        now = self.clock.now
        computed_at, division = self.divisions.get(resource, (float("-inf"), None))
        if division is None or now >= computed_at + ADAPTIVE.recalculation_interval:
            users = self.times(resource, 86_400.0, ("user",))
            background = self.times(resource, 20.0, ("background",))
            computed_at, division = now, capacity_of(self.limit(resource), users, background, now, ADAPTIVE)
            self.divisions[resource] = (computed_at, division)
        return computed_at, division


def change(model: RateModel, name: str, args: list[Any]) -> list[Any]:
    """Do to the model what is common to both limits; gives the arguments for the store."""
    resource = args[0] if args else ""
    if name == "reset":
        model.requests = [request for request in model.requests if request[0] != resource]
        model.divisions.pop(resource, None)
    elif name == "set_cooldown":
        until = model.clock.now + args[1]
        if args[1] > 0:
            model.cooldowns[resource] = max(until, model.cooldowns.get(resource, 0.0))
        return [resource, until]
    elif name == "clear_cooldown":
        model.cooldowns.pop(resource, None)
    elif name == "set_resource_config":
        model.limits[resource] = args[1]
        model.divisions.pop(resource, None)
        return [resource, RateLimitConfig(limit=args[1], window=WINDOW)]
    return args


CHANGES = ("reset", "set_cooldown", "clear_cooldown", "set_resource_config", "cleanup")
DEFAULT = RateLimitConfig(limit=4, window=WINDOW)


@settings(max_examples=200, deadline=None)
@given(rate_steps)
def test_the_rate_limit(steps: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        clock = SetClock()
        model = RateModel(clock)
        async with open_memory_stores(clock=clock, default_config=DEFAULT) as stores:
            limits = stores.rate_limit
            for name, *args in steps:
                if name == "pass":
                    clock.now += args[0]
                    continue
                if name in CHANGES:
                    await getattr(limits, name)(*change(model, name, args))
                    continue
                resource = args[0]
                result = await getattr(limits, name)(resource)
                if name in ("acquire", "can_proceed"):
                    assert result == model.may_proceed(resource)
                elif name == "get_wait_time":
                    assert result == model.wait_time(resource)
                elif name == "get_status":
                    times = model.times(resource)
                    assert result.remaining == max(0, model.limit(resource) - len(times))
                    assert result.reset_at == (times[0] + WINDOW if times else clock.now)
                if name == "record" or (name == "acquire" and result):
                    model.requests.append((resource, clock.now, "user"))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=200, deadline=None)
@given(rate_steps)
def test_the_adaptive_rate_limit(steps: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        clock = SetClock()
        model = RateModel(clock)
        async with open_memory_stores(clock=clock, default_config=DEFAULT, adaptive_config=ADAPTIVE) as stores:
            limits = stores.adaptive
            for name, *args in steps:
                if name == "pass":
                    clock.now += args[0]
                    continue
                if name in CHANGES:
                    await getattr(limits, name)(*change(model, name, args))
                    continue
                resource, kind = args
                if name == "get_status":
                    status = await limits.get_status(resource)
                    _, division = model.division(resource)
                    times = model.times(resource)
                    assert status.remaining == max(0, model.limit(resource) - len(times))
                    assert status.reset_at == (times[0] + WINDOW if times else clock.now)
                    assert (status.user_reserved, status.background_max) == (
                        division.user_reserved,
                        division.background_max,
                    )
                    assert (status.background_paused, status.reason) == (division.background_paused, division.reason)
                    assert status.recent_user_activity == len(model.times(resource, 20.0, ("user",)))
                    continue
                result = await getattr(limits, name)(resource, kind)
                if name == "record":
                    model.requests.append((resource, clock.now, kind))
                    continue
                computed_at, division = model.division(resource)
                mine = model.times(resource, kinds=("background",))
                blocked = kind == "background" and (division.background_paused or len(mine) >= division.background_max)
                if name == "get_wait_time":
                    wanted = model.wait_time(resource)
                    if kind == "background" and model.limit(resource):
                        if division.background_paused or not division.background_max:
                            cooling = model.cooldowns.get(resource, 0.0) - clock.now
                            wanted = max(computed_at + 5.0 - clock.now, cooling)
                        else:
                            wanted = max(wanted, model.wait(mine, division.background_max))
                    assert result == wanted
                    continue
                assert result == (model.may_proceed(resource) and not blocked)
                if name == "acquire" and result:
                    model.requests.append((resource, clock.now, kind))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
