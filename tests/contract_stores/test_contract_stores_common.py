"""What all stores of all engines promise alike: names, closing, cancellation, secrets, storages on top of them."""

from __future__ import annotations

import sqlite3
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_renew
from trio_renew import (
    AuthToken,
    AuthTokenCodec,
    JsonCodec,
    RateLimitConfig,
    Share,
    StorageFailed,
    StoreError,
    StoreStorage,
    open_provider,
)
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
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trio_renew.testing._contracts import Contract

    from .conftest import Engine

NAMES = [
    "AdaptiveConfig",
    "AdaptiveRateLimitStatus",
    "AdaptiveRateLimitStore",
    "Budget",
    "Bus",
    "CacheStore",
    "Codec",
    "DedupeStore",
    "JobLost",
    "JsonCodec",
    "RateLimitConfig",
    "RateLimitStatus",
    "RateLimitStore",
    "Registration",
    "RemoteFetchError",
    "Share",
    "StoreError",
    "hash_request",
]

#: Every method of every store, with arguments that are right.
CALLS: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "cache": [
        ("get", ("a",)),
        ("set", ("a", 1, 1.0)),
        ("delete", ("a",)),
        ("clear", ()),
        ("clear", ("a",)),
        ("invalidate_tag", ("t",)),
        ("invalidate_tags", (["t"],)),
        ("invalidate_tags", ([],)),
        ("list_entries", ()),
        ("get_stats", ()),
        ("cleanup", ()),
    ],
    "dedupe": [
        ("register", ("a",)),
        ("register_or_join", ("a",)),
        ("wait_for", ("a",)),
        ("wait_outcome", ("a",)),
        ("complete", ("a", 1)),
        ("fail", ("a", ValueError())),
        ("is_in_progress", ("a",)),
        ("extend", ("a", "j")),
        ("list_jobs", ()),
        ("get_stats", ()),
        ("cleanup", ()),
        ("clear", ()),
    ],
    "rate_limit": [
        *[(name, ("a",)) for name in ("acquire", "can_proceed", "record", "get_status", "reset", "get_wait_time")],
        *[(name, ("a",)) for name in ("get_cooldown", "clear_cooldown", "get_resource_config")],
        ("set_cooldown", ("a", 9e10)),
        ("set_resource_config", ("a", RateLimitConfig())),
        *[(name, ()) for name in ("list_resources", "get_stats", "cleanup", "clear")],
    ],
}
CALLS["adaptive"] = CALLS["rate_limit"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_at_the_front_door(name: str) -> None:
    """And is found there by whoever looks."""
    assert getattr(trio_renew, name).__name__ == name
    assert name in trio_renew.__all__
    assert name in dir(trio_renew)


@pytest.mark.parametrize("store", CALLS)
def test_after_closing_every_method_refuses(engine: Engine, store: str) -> None:
    """With the error for it."""

    async def main() -> None:
        async with engine.open() as stores:
            held = getattr(stores, store)
            assert {name for name, _ in CALLS[store]} == {
                name for name in dir(held) if not name.startswith("_") and name in dict(CALLS[store])
            }
        for name, arguments in CALLS[store]:
            with pytest.raises(trio.ClosedResourceError):
                await getattr(held, name)(*arguments)

    engine.run_alone(main)


@pytest.mark.parametrize("store", CALLS)
def test_every_method_is_a_checkpoint(engine: Engine, store: str) -> None:
    """Whoever is cancelled already does nothing, or all of it, and leaves."""

    async def scenario(stores: Any) -> None:
        held = getattr(stores, store)
        for name, arguments in CALLS[store]:
            with trio.CancelScope() as scope:
                scope.cancel()
                await getattr(held, name)(*arguments)
            if not engine.virtual:
                continue
            assert scope.cancelled_caught, name
        if engine.virtual:
            assert await stores.cache.list_entries() == []
            assert await stores.dedupe.list_jobs() == []
            assert await stores.rate_limit.list_resources() == await stores.adaptive.list_resources() == []

    engine.run(scenario)


def test_whoever_waits_when_it_closes(engine: Engine) -> None:
    """Gets the error too, in each way of waiting."""
    got: list[str] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with engine.open(lease=60.0) as stores:
                job = await stores.dedupe.register_or_join("a")

                async def wait(method: Any, job_id: str | None) -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await method("a", job_id=job_id)
                    got.append(method.__name__)

                for method in (stores.dedupe.wait_for, stores.dedupe.wait_outcome):
                    for job_id in (None, job.job_id):
                        nursery.start_soon(wait, method, job_id)
                await trio.sleep(0.05)
                assert got == []
            with trio.fail_after(0.5):
                while len(got) < 4:
                    await trio.sleep(0.01)

    engine.run_alone(main)


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.004])
def test_a_cancelled_set_leaves_value_and_tags_of_one_kind(engine: Engine, delay: float) -> None:
    """The old ones or the new ones."""

    async def main() -> None:
        async with engine.open() as stores:
            cache = stores.cache
            for _ in range(5):
                await cache.set("a", "old", 0, tags=("old",))
                with trio.move_on_after(delay):
                    await cache.set("a", "new", 0, tags=("new",))
                found = await cache.get("a")
                assert found in ("old", "new")
                assert await cache.invalidate_tag({"old": "new", "new": "old"}[found]) == 0
                assert await cache.invalidate_tag(found) == 1
                for count in range(3):
                    await cache.set(f"k{count}", 1, 0, tags=("t",))
                with trio.move_on_after(delay) as scope:
                    assert await cache.invalidate_tag("t") == 3
                left = [await cache.get(f"k{count}") for count in range(3)]
                assert left == [None] * 3 or (left == [1] * 3 and scope.cancelled_caught)
                await cache.clear()

    trio.run(main)


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002])
def test_a_cancelled_settling_settles_wholly_or_not_at_all(engine: Engine, delay: float) -> None:
    """Then the owner may still do it."""

    async def main() -> None:
        async with engine.open(lease=60.0) as stores:
            for number in range(5):
                job = await stores.dedupe.register_or_join("a")
                assert job.is_owner
                with trio.move_on_after(delay):
                    await stores.dedupe.complete("a", number, job_id=job.job_id)
                await stores.dedupe.complete("a", number, job_id=job.job_id)
                assert not await stores.dedupe.is_in_progress("a")
                assert await stores.dedupe.wait_for("a", job_id=job.job_id) == number

    trio.run(main)


def test_never_more_than_the_limit(sharing: Engine) -> None:
    """Over several store objects, all at once."""
    allowed = {"rate_limit": 0, "adaptive": 0}

    async def main() -> None:
        config = RateLimitConfig(limit=7, window=600.0)
        async with sharing.open(default_config=config) as one, sharing.open(default_config=config) as two:

            async def ask(kind: str, stores: Any, *args: str) -> None:
                if await getattr(stores, kind).acquire("a", *args):
                    allowed[kind] += 1

            async with trio.open_nursery() as nursery:
                for _ in range(15):
                    for stores in (one, two):
                        nursery.start_soon(ask, "rate_limit", stores)
                        nursery.start_soon(ask, "adaptive", stores, "user")
                        nursery.start_soon(ask, "adaptive", stores, "background")

    trio.run(main)
    assert allowed == {"rate_limit": 7, "adaptive": 7}


# Secrets

SECRET = "hunter2-and-more"


def shown(error: BaseException) -> str:
    """Everything that a careful reporter of errors shows."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


class Fragile:
    """A codec of tokens that fails where it is told to."""

    def __init__(self) -> None:
        self.broken = False

    def encode(self, value: AuthToken, /) -> bytes:
        return AuthTokenCodec().encode(value)

    def decode(self, data: bytes, /) -> AuthToken:
        if self.broken:
            del data
            raise ValueError("no")
        return AuthTokenCodec().decode(data)


def test_no_traceback_shows_a_secret_that_is_too_large(engine: Engine) -> None:
    """Neither as a token nor as the text that a storage makes of it."""

    token = AuthToken(SECRET)

    async def scenario(stores: Any) -> None:
        with pytest.raises(StoreError, match="max_entry_size_bytes") as caught:
            await stores.cache.set("a", token, 0)
        assert SECRET not in shown(caught.value)

    engine.run(scenario, codec=AuthTokenCodec(), max_entry_size_bytes=5)

    async def through_storage(stores: Any) -> None:
        storage: Any = StoreStorage(stores.cache, "a", codec=AuthTokenCodec())
        with pytest.raises(StoreError, match="max_entry_size_bytes") as caught:
            await storage.set(token)
        assert SECRET not in shown(caught.value)

    engine.run(through_storage, max_entry_size_bytes=5)


def test_no_traceback_shows_a_secret_when_the_file_is_broken(tmp_path: Path) -> None:
    """Nor what is read of it."""
    from trio_renew.stores.sqlite import open_sqlite_stores

    path = tmp_path / "no folder" / "s.db"

    async def main() -> None:
        codec = Fragile()
        async with open_sqlite_stores(path, codec=codec, lease=60.0) as stores:
            storage: Any = StoreStorage(stores.cache, "s")
            token = AuthToken(SECRET)
            for call in (
                lambda: stores.cache.set("a", token, 0),
                lambda: storage.set(token),
                lambda: stores.dedupe.complete("a", token, job_id="x"),
            ):
                with pytest.raises(StoreError) as caught:
                    await call()
                assert SECRET not in shown(caught.value)
            path.parent.mkdir()
            job = await stores.dedupe.register_or_join("a")
            await stores.dedupe.complete("a", token, job_id=job.job_id)
            codec.broken = True
            with pytest.raises(StoreError, match="cannot decode") as caught:
                await stores.dedupe.wait_outcome("a", job_id=job.job_id)
            assert SECRET not in shown(caught.value)
        async with open_sqlite_stores(tmp_path / "no other folder" / "s.db") as stores:
            storage = StoreStorage(stores.cache, "s", codec=AuthTokenCodec())
            with pytest.raises(StoreError) as caught:
                await storage.set(token)
            assert SECRET not in shown(caught.value)

    trio.run(main)


def test_no_traceback_shows_a_secret_when_there_is_no_server(tmp_path: Path) -> None:
    """However far it has come."""
    from trio_renew.stores.redis import open_redis_stores

    async def main() -> None:
        async with open_redis_stores(f"unix://{tmp_path}/nobody.sock", codec=AuthTokenCodec()) as stores:
            storage: Any = StoreStorage(stores.cache, "s")
            token = AuthToken(SECRET)
            for call in (
                lambda: stores.cache.set("a", token, 0, tags=("t",)),
                lambda: storage.set(token),
                lambda: stores.dedupe.complete("a", token, job_id="x"),
            ):
                with pytest.raises(StoreError) as caught:
                    await call()
                assert SECRET not in shown(caught.value)

    trio.run(main)


def test_no_traceback_shows_a_secret_that_the_server_refuses(engine: Engine, server_url: Any) -> None:
    """Here the whole command has been made."""
    if engine.kind != "redis":
        return

    async def main() -> None:
        async with engine.open(codec=AuthTokenCodec(), lease=60.0) as stores:
            token = AuthToken(SECRET)
            cache, dedupe = stores.cache, stores.dedupe
            # What stands in the place of an entry, or of a job, is of another kind: the scripts fail.
            link, room = cache._room.link, cache._room
            await link.call(b"LPUSH", room.key(b"c:", "a"), b"x")
            await link.call(b"LPUSH", room.key(b"j:", "a"), b"x")
            for call in (
                lambda: cache.set("a", token, 0, tags=("t",)),
                lambda: dedupe.complete("a", token, job_id="x"),
            ):
                with pytest.raises(StoreError) as caught:
                    await call()
                assert SECRET not in shown(caught.value)
            job = await dedupe.register_or_join("b")
            await dedupe.complete("b", token, job_id=job.job_id)
            assert await dedupe.wait_for("b", job_id=job.job_id) == token
        async with engine.open(codec=Fragile(), lease=60.0) as stores:
            stores.dedupe._room.options.codec.broken = True
            with pytest.raises(StoreError, match="cannot decode") as caught:
                await stores.dedupe.wait_for("b", job_id=job.job_id)
            assert SECRET not in shown(caught.value)

    engine.run_alone(main)


def test_no_traceback_of_a_share_shows_a_secret(engine: Engine) -> None:
    """What a store refuses is reported, to observers that show everything."""
    reported: list[tuple[str, str]] = []

    def observe(event: object) -> None:
        if isinstance(event, StorageFailed):
            reported.append((event.operation, shown(event.error)))

    async def mint() -> AuthToken:
        await trio.lowlevel.checkpoint()
        return AuthToken(SECRET)

    async def scenario(stores: Any) -> None:
        share = Share(stores.cache, stores.dedupe, "k")
        async with open_provider(mint, share=share, observe=observe) as provider:
            assert (await provider.get()).secret.reveal() == SECRET

    # There is room for a generation, and not for a record.
    engine.run(scenario, max_entry_size_bytes=100)
    assert [operation for operation, _ in reported] == ["set"]
    assert SECRET not in reported[0][1]


# Storages, and stores of somebody else


@pytest.mark.parametrize("codec", [None, JsonCodec()], ids=["as it is", "as text"])
def test_a_storage_in_a_store(engine: Engine, codec: Any) -> None:
    """Keeps the contract of storages in every engine, without a time to live."""

    class InStore(StorageContract):
        virtual = engine.virtual

        @asynccontextmanager
        async def open_store(self) -> AsyncGenerator[Any, None]:
            async with engine.open() as stores:
                storage: StoreStorage[Any] = StoreStorage(stores.cache, "the key", codec=codec)
                await storage.clear()
                yield storage
                for entry in await stores.cache.list_entries():
                    assert (entry.hash, entry.expires_at) == ("the key", 0.0)

    check_contract(InStore)


PROTOCOLS: list[tuple[type[Contract], str, type[Any]]] = [
    (CacheStoreContract, "cache", trio_renew.CacheStore),
    (DedupeStoreContract, "dedupe", trio_renew.DedupeStore),
    (RateLimitStoreContract, "rate_limit", trio_renew.RateLimitStore),
    (AdaptiveRateLimitStoreContract, "adaptive", trio_renew.AdaptiveRateLimitStore),
]


class Narrow:
    """A store that has the methods of its protocol, and counts who asks for more."""

    def __init__(self, store: Any, protocol: type[Any]) -> None:
        self._store = store
        self._names = {name for name in vars(protocol) if not name.startswith("_")}

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(name)
        return getattr(self._store, name)


@pytest.mark.parametrize(("kind", "store", "protocol"), PROTOCOLS, ids=[store for _, store, _ in PROTOCOLS])
def test_a_custom_store_needs_the_methods_of_its_protocol_only(
    kind: type[Contract], store: str, protocol: type[Any]
) -> None:
    """The suites ask for nothing else, and notice when one of them does nothing."""

    def contract(missing: str = "") -> type[Contract]:
        class Custom(kind):  # type: ignore[misc, valid-type]
            virtual = True
            lease = 10.0

            @asynccontextmanager
            async def open_store(self) -> AsyncGenerator[Any, None]:
                limit = RateLimitConfig(limit=5, window=60.0)
                async with open_memory_stores(lease=10.0, default_config=limit) as stores:
                    narrow = Narrow(getattr(stores, store), protocol)
                    if missing:
                        setattr(narrow, missing, nothing)
                    yield narrow

        return Custom

    async def nothing(*args: Any, **kwargs: Any) -> None:
        await trio.lowlevel.checkpoint()

    assert isinstance(Narrow(object(), protocol), protocol) is False
    check_contract(contract())
    for name in sorted(name for name in vars(protocol) if not name.startswith("_")):
        with pytest.raises(ExceptionGroup):
            check_contract(contract(missing=name))


def test_bundles_of_different_prefixes_see_nothing_of_each_other(sharing: Engine) -> None:
    """Whatever is special in a prefix, and whichever is cleared."""

    async def main() -> None:
        first = sharing.prefix
        for one_prefix, other_prefix in (("x", "y"), ("X", "x"), ("*", "a"), ("[a]", "a"), ("_", "z"), ("", "é")):
            sharing.prefix = f"{one_prefix}{first}"
            async with sharing.open(lease=60.0) as one:
                sharing.prefix = f"{other_prefix}{first}"
                async with sharing.open(lease=60.0) as other:
                    for stores in (one, other):
                        await stores.cache.set("a", 1, 0, tags=("t",))
                        assert (await stores.dedupe.register_or_join("a")).is_owner
                        await stores.rate_limit.record("a")
                        await stores.adaptive.record("a")
                        await stores.rate_limit.set_cooldown("a", 9e10)
                    assert await one.cache.invalidate_tag("t") == 1
                    for store in (one.cache, one.dedupe, one.rate_limit, one.adaptive):
                        await store.clear()
                    assert await other.cache.get("a") == 1
                    assert await other.dedupe.is_in_progress("a")
                    assert (await other.rate_limit.list_resources())[0].request_count == 1
                    assert (await other.adaptive.list_resources())[0].request_count == 1
                    assert await other.rate_limit.get_cooldown("a") == 9e10
                    assert await other.cache.invalidate_tag("t") == 1
                    for store in (other.cache, other.dedupe, other.rate_limit, other.adaptive):
                        await store.clear()

    sharing.run_alone(main)


def test_nothing_is_left_of_what_is_gone(sharing: Engine) -> None:
    """Tags, indexes, jobs and windows end with what they describe."""
    lease = sharing.unit / 2

    async def main() -> None:
        short = RateLimitConfig(10, lease)
        async with sharing.open(lease=lease, default_config=short) as stores:
            cache, dedupe = stores.cache, stores.dedupe
            for ttl in (0, lease):
                for number in range(4):
                    await cache.set(f"k{number}", number, ttl, tags=("t", f"t{number}"))
                await cache.set("k0", 0, ttl, tags=("u",))
                await cache.invalidate_tag("t1")
                await cache.delete("k2")
                if not ttl:
                    await cache.clear("k")
            job = await dedupe.register("a")
            await dedupe.complete("a", 1, job_id=job)
            await dedupe.register("b")
            await dedupe.fail("b", ValueError())
            await dedupe.register("c")
            for limits in (stores.rate_limit, stores.adaptive):
                await limits.acquire("a")
                await limits.set_cooldown("a", (await limits.get_status("x")).reset_at + lease)
            await stores.adaptive.clear()
            await sharing.pass_by(lease)
            for store in (cache, dedupe, stores.rate_limit, stores.adaptive):
                await store.cleanup()
            if sharing.kind == "redis":
                # Until the server's own sweeping is done.
                await trio.sleep(0.1)
                assert await cache._room.link.call(b"KEYS", f"{sharing.prefix}*".encode()) == []
        if sharing.kind == "sqlite":
            with sqlite3.connect(sharing.place) as file:
                tables = ("cache", "tags", "jobs", "requests", "cooldowns", "activity")
                counts = {name: file.execute(f"SELECT COUNT(*) FROM renew_{name}").fetchone()[0] for name in tables}
                assert counts == dict.fromkeys(tables, 0)
                assert file.execute("SELECT SUM(items), SUM(bytes) FROM renew_usage").fetchone() == (0, 0)
            file.close()

    sharing.run_alone(main)
