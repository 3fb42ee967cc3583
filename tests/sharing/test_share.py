"""One flight over several processes. Here a process is a provider; all of them are on one memory store in one run."""

from __future__ import annotations

import gc
import traceback
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    AuthTokenCodec,
    Event,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    FetchTimeout,
    JsonCodec,
    MemoryStorage,
    RefreshPolicy,
    RemoteFetchError,
    Secret,
    Share,
    StorageFailed,
    encrypted,
    open_provider,
)
from trio_renew._flight import Flight
from trio_renew._record import Draft, Record
from trio_renew.stores.memory import open_memory_stores
from trio_renew.stores.sqlite import open_sqlite_stores
from trio_renew.testing import Block, ScriptedFetch, Sleep, Stubborn, Token, under_schedules, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_renew import RefreshingProvider

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What the scripted sources raise."""


def text(token: AuthToken) -> str:
    return token.secret.reveal()


def share_of(stores: Any, **options: Any) -> Share:
    return Share(stores.cache, stores.dedupe, "key", **options)


async def into(results: list[Any], call: Callable[[], Awaitable[Any]]) -> None:
    try:
        results.append(await call())
    except Exception as exc:
        results.append(exc)


def failures(events: list[Event]) -> list[str]:
    return [event.operation for event in events if isinstance(event, StorageFailed)]


# Arguments


def test_what_a_share_is_made_of(between: Any) -> None:
    class Cache:
        get = set = delete = print

    class Dedupe:
        register_or_join = wait_outcome = complete = fail = extend = print

    class Codec:
        encode = decode = print

    share = Share(Cache(), Dedupe(), "key", Codec())  # type: ignore[arg-type]
    assert share.key == "key"
    with pytest.raises(TypeError, match="cache must be a CacheStore, but Dedupe has no get"):
        Share(Dedupe(), Dedupe(), "key")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dedupe must be a DedupeStore, but Cache has no register_or_join"):
        Share(Cache(), Cache(), "key")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key must be a str, not of type int"):
        Share(Cache(), Dedupe(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key must not be empty"):
        Share(Cache(), Dedupe(), "")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="codec"):
        Share(Cache(), Dedupe(), "key", 3)  # type: ignore[arg-type]


async def test_what_a_provider_takes() -> None:
    with pytest.raises(TypeError, match="share must be a Share or None, got str"):
        async with open_provider(ScriptedFetch(), share="key"):  # type: ignore[arg-type]
            pass


# One fetch


async def test_cold_start(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(3.0, Token("a", 3600.0)))
    results: list[AuthToken] = []
    events: list[Event] = []

    async def process(stores: Any) -> None:
        share = Share(stores.cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, observe=events.append) as provider, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(into, results, provider.get)

    async with open_memory_stores() as stores, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(process, stores)
    assert fetch.calls == 1
    assert [text(token) for token in results] == ["a"] * 100
    assert trio.current_time() == 3.0
    assert len([e for e in events if isinstance(e, FetchStarted)]) == 5
    assert len([e for e in events if isinstance(e, FetchSucceeded)]) == 5
    assert failures(events) == []


async def test_who_comes_later_takes_what_is_there(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores), policy=PLAIN()) as first:
            issued = (await first.lease()).issued_at
            await trio.sleep(50.0)
            async with open_provider(fetch, share=share_of(stores), policy=PLAIN()) as second:
                assert (await second.lease()).issued_at == issued
                assert second.status().due_at == first.status().due_at
        assert fetch.calls == 1
        # What is left of it counts, not when it came here.
        await trio.sleep(50.0)
        async with open_provider(fetch, share=share_of(stores)) as third:
            assert text(await third.get()) == "b"


def test_whatever_the_order() -> None:
    """Several processes start, refresh and clear, in many orders: never two fetches at once between two clears."""

    async def scenario() -> None:
        running: dict[int, int] = {}
        cleared = 0
        calls = 0

        async def mint() -> AuthToken:
            nonlocal calls
            calls += 1
            mine = cleared
            running[mine] = running.get(mine, 0) + 1
            assert running[mine] == 1
            await trio.sleep(1.0)
            running[mine] -= 1
            return AuthToken.expiring_in(f"t{calls}", 60.0)

        async def process(stores: Any) -> None:
            async with open_provider(mint, share=share_of(stores)) as provider:
                token = await provider.get()
                assert text(await provider.refresh(stale=token)) != text(token)

        async with open_memory_stores() as stores, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(process, stores)
        assert calls == 2

    under_schedules(scenario, seeds=20)


# Renewal


async def test_one_renews_for_all(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        early, late = PLAIN(refresh_at=0.5, refresh_floor=0.0), PLAIN(refresh_at=0.7, refresh_floor=0.0)
        async with (
            open_provider(fetch, share=share, policy=early) as first,
            open_provider(fetch, share=share, policy=late) as second,
        ):
            await until(first, "due")
            assert text(await first.get()) == "a"
            await wait_all_tasks_blocked()
            assert text(first.get_nowait()) == "b"
            # The other one goes on with the old value until it is due there, and then finds the new one.
            assert text(await second.get()) == "a"
            await until(second, "due")
            assert text(await second.get()) == "a"
            await wait_all_tasks_blocked()
            assert text(second.get_nowait()) == "b"
            assert fetch.calls == 2
            leases = await first.lease(), await second.lease()
            assert leases[0].issued_at == leases[1].issued_at
            assert leases[0].expires_at == leases[0].issued_at + 100.0


async def test_due_everywhere_at_once(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(1.0, Token("b", 100.0)))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share, policy=PLAIN()) as first,
            open_provider(fetch, share=share, policy=PLAIN()) as second,
        ):
            await until(first, "due")
            first.get_nowait()
            second.get_nowait()
            await trio.sleep(1.0)
            await wait_all_tasks_blocked()
            assert [text(first.get_nowait()), text(second.get_nowait())] == ["b", "b"]
            assert fetch.calls == 2


async def test_a_value_that_is_due_is_no_renewal(autojump_clock: MockClock) -> None:
    """A record may be newer than what is held, and itself due already."""
    fetch = ScriptedFetch(Token("a", 1000.0), Token("b", 100.0), Token("c", 100.0))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        policy = PLAIN(refresh_before=950.0)
        async with (
            open_provider(fetch, share=share, policy=policy) as first,
            open_provider(fetch, share=share, policy=PLAIN()) as second,
        ):
            await second.refresh(stale=await second.get())
            await until(first, "due")
            first.get_nowait()
            await wait_all_tasks_blocked()
            assert text(first.get_nowait()) == "c"


async def test_what_is_held_is_no_renewal(autojump_clock: MockClock) -> None:
    """Jitter makes it due earlier here than its record says."""
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_memory_stores() as stores:
        policy = RefreshPolicy(jitter=lambda: 0.5, refresh_floor=0.0)
        async with open_provider(fetch, share=share_of(stores), policy=policy) as provider:
            await until(provider, "due")
            provider.get_nowait()
            await wait_all_tasks_blocked()
            assert text(provider.get_nowait()) == "b"


async def test_what_is_held_is_no_renewal_although_its_writers_clock_is_ahead(autojump_clock: MockClock) -> None:
    now = AuthToken.expiring_in("any", 1000.0).expires_at
    assert now is not None
    begin = now - 1000.0

    def clock(ahead: float) -> Callable[[], float]:
        return lambda: begin + ahead + trio.current_time()

    fetch = ScriptedFetch(AuthToken("a", begin + 100.0), AuthToken("b", begin + 200.0))
    events: list[Event] = []
    policy = PLAIN(refresh_at=0.8, refresh_floor=0.0)
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share, clock=clock(2.0), policy=policy),
            open_provider(fetch, share=share, clock=clock(0.0), policy=policy, observe=events.append) as behind,
        ):
            await trio.sleep(80.0)
            assert text(behind.get_nowait()) == "a"
            await wait_all_tasks_blocked()
            assert text(behind.get_nowait()) == "b"
    assert [e.reason for e in events if isinstance(e, FetchStarted)] == ["initial", "aging"]
    assert fetch.calls == 2


async def test_the_same_value_again(autojump_clock: MockClock) -> None:
    """A source that gives the same token until it is old: its record is as new as its fetch."""
    token = AuthToken.expiring_in("a", 1000.0)
    fetch = ScriptedFetch(then=token)
    async with open_memory_stores() as stores:
        policy = PLAIN(refresh_before=900.0)
        async with (
            open_provider(fetch, share=share_of(stores), policy=policy) as first,
            open_provider(fetch, share=share_of(stores), policy=policy) as second,
        ):
            await until(first, "due")
            first.get_nowait()
            await wait_all_tasks_blocked()
            assert fetch.calls == 2
            issued = first.status().issued_at
            second.get_nowait()
            await wait_all_tasks_blocked()
            assert second.status().issued_at == issued
            assert fetch.calls == 3  # 900 s before its end is past: due at once, and so a fetch each time


async def test_never_older_than_the_one_held(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Token("own", 100.0), Token("c", 1000.0))
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            await trio.sleep(10.0)
            cache = between(stores.cache)
            cache.trouble["get"] = Down()
            async with open_provider(fetch, share=Share(cache, stores.dedupe, "key"), policy=PLAIN()) as second:
                cache.trouble.clear()
                assert text(await second.get()) == "own"
                await until(second, "due")
                second.get_nowait()
                await wait_all_tasks_blocked()
                # "a" is good for long, but from before "own".
                assert text(second.get_nowait()) == "c"


# refresh()


async def test_refresh_fetches_although_there_is_a_value(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(1.0, Token("b", 100.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores)) as first,
            open_provider(fetch, share=share_of(stores)) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, first.refresh)
            nursery.start_soon(into, results, second.refresh)
        assert [text(token) for token in results] == ["b", "b"]


async def test_rejected_values_are_replaced_once(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0), Token("d", 100.0))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share) as first, open_provider(fetch, share=share) as second:
            a = await first.get()
            assert await second.get() == a
            b = await first.refresh(stale=a)
            assert await second.refresh(stale=await second.lease()) == b
            assert fetch.calls == 2
            c = await second.refresh(stale=b)
            assert (text(c), fetch.calls) == ("c", 3)
            assert await first.refresh(stale=b) == c
            assert fetch.calls == 3
            # Where nothing is held yet, what is stored counts; but not the value that was rejected.
            async with (
                open_provider(fetch, share=share, eager=False) as third,
                open_provider(fetch, share=share, eager=False) as fourth,
            ):
                assert text(await third.refresh(stale=c)) == "d"
                assert text(await fourth.refresh(stale=await second.lease())) == "d"
                assert fetch.calls == 4


async def test_a_refresh_that_joined_a_reading_has_no_answer(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            pass
        cache = between(stores.cache)
        cache.trouble["get"] = 1.0
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, eager=False) as provider, trio.open_nursery() as nursery:
            nursery.start_soon(into, results, provider.get)
            await wait_all_tasks_blocked()
            nursery.start_soon(into, results, provider.refresh)
        assert [text(token) for token in results] == ["a", "b"]


async def test_a_peer_that_found_the_rejected_value(autojump_clock: MockClock, between: Any) -> None:
    """Who waits for a peer must not take from it the very value that was rejected."""
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)) as first:
            a = await first.get()
            cache = between(stores.cache)
            reads = 0

            async def blind(hash: str) -> Any:
                # Sees nothing before it owns the job, and then all.
                nonlocal reads
                reads += 1
                await trio.sleep(1.0)
                if reads == 2:
                    cache.trouble["get"] = 1.0
                    return "blind"
                return None

            cache.trouble["get"] = blind
            share = Share(cache, stores.dedupe, "key")
            async with open_provider(fetch, share=share, eager=False) as second, trio.open_nursery() as nursery:
                nursery.start_soon(into, results, second.get)
                await trio.sleep(2.5)  # now it owns the job, and reads again
                nursery.start_soon(into, results, partial(first.refresh, stale=a))
                nursery.start_soon(into, results, first.refresh)
        assert [text(token) for token in results] == ["a", "b", "b"]
        assert fetch.calls == 2


@pytest.fixture
def blind(between: Any) -> Callable[[Any], Share]:
    """A share that sees nothing of what is stored before it owns the job, and then takes a second to read it."""

    def make(stores: Any) -> Share:
        cache, dedupe = between(stores.cache), between(stores.dedupe)

        async def nothing(hash: str) -> Any:
            return "first" if hash == "key:generation" else "unreadable"

        async def sees(hash: str) -> None:
            cache.trouble["get"] = 1.0

        cache.trouble["get"] = nothing
        dedupe.trouble["register_or_join"] = sees
        return Share(cache, dedupe, "key")

    return make


async def test_a_refresh_that_joined_a_peers_reading_has_no_answer(autojump_clock: MockClock, blind: Any) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)) as first:
            async with open_provider(fetch, share=blind(stores), eager=False) as second:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(into, results, second.get)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(into, results, first.refresh)
        assert [text(token) for token in results] == ["a", "b"]


@pytest.mark.parametrize("who", ["the owner", "a peer"])
async def test_a_refresh_that_joined_its_own_reading(autojump_clock: MockClock, blind: Any, who: str) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            pass
        async with (
            open_provider(fetch, share=blind(stores), eager=False) as owner,
            open_provider(fetch, share=blind(stores), eager=False) as peer,
            trio.open_nursery() as nursery,
        ):
            for provider in (owner, peer):
                nursery.start_soon(into, results, provider.get)
                await wait_all_tasks_blocked()
            nursery.start_soon(into, results, owner.refresh if who == "the owner" else peer.refresh)
        assert [text(token) for token in results] == ["a", "a", "b"]


async def test_what_came_between_is_a_fetch_from_now_on(autojump_clock: MockClock, between: Any) -> None:
    """Somebody fetched between our reading and our owning the job: that answers a refresh."""
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        share = Share(stores.cache, dedupe, "key")
        async with open_provider(fetch, share=share) as first, open_provider(fetch, share=share_of(stores)) as second:
            dedupe.trouble["register_or_join"] = 1.0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.refresh)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, second.refresh)
            assert [text(token) for token in results] == ["b", "b"]


# Outcomes


async def test_no_value_is_an_outcome(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Sleep(1.0, None), Token("a", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                nursery.start_soon(into, results, second.get)
            assert results == [None, None]
            assert fetch.calls == 1
            assert text(await second.get()) == "a"


async def test_errors_travel(autojump_clock: MockClock, tmp_path: Path) -> None:
    fetch = ScriptedFetch(Sleep(1.0, Down("password=hunter2")), Token("a", 100.0))
    results: list[Any] = []
    async with (
        open_sqlite_stores(tmp_path / "db") as here,
        open_sqlite_stores(tmp_path / "db") as there,
        open_provider(fetch, share=share_of(here), eager=False) as first,
        open_provider(fetch, share=share_of(here), eager=False) as second,
        open_provider(fetch, share=share_of(there), eager=False, policy=PLAIN(permanent=(Down,))) as third,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into, results, first.get)
            await wait_all_tasks_blocked()
            for provider in (second, third):
                nursery.start_soon(into, results, provider.get)
        assert fetch.calls == 1
        assert [type(error) for error in results].count(Down) == 2
        (remote,) = [error for error in results if isinstance(error, RemoteFetchError)]
        assert (remote.type_name, remote.message) == (f"{__name__}.Down", "password=[redacted]")
        # Remembered like one of its own.
        with pytest.raises(RemoteFetchError):
            await third.get()
        assert fetch.calls == 1
        assert [p.status().failures for p in (first, second, third)] == [1, 1, 1]
        # The next one asks the source, and not its own job of before.
        assert text(await first.get()) == "a"


async def test_who_retries_at_once_does_not_join_its_own_failure(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Down(), Token("a", 100.0))
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["fail"] = 2.0
        async with open_provider(fetch, share=Share(stores.cache, dedupe, "key"), eager=False) as provider:
            with pytest.raises(Down):
                await provider.get()
            assert trio.current_time() == 0.0
            assert text(await provider.get()) == "a"
            assert trio.current_time() == 2.0


# Values


@attrs.frozen
class Point:
    x: int
    y: int


class PointCodec:
    """Made of bytes that are no text."""

    def encode(self, value: Point) -> bytes:
        return bytes([0xFF, value.x, value.y])

    def decode(self, data: bytes) -> Point:
        return Point(*data[1:])


class ListCodec(PointCodec):
    def decode(self, data: bytes) -> Any:
        return list(data)


class BoolCodec:
    """Gives back what is equal, and another thing."""

    def encode(self, value: bool) -> bytes:
        return b"1"

    def decode(self, data: bytes) -> Any:
        return 1


class Opaque:
    """Equal to nothing but itself."""


class OpaqueCodec:
    def encode(self, value: Opaque) -> bytes:
        return b"opaque"

    def decode(self, data: bytes) -> Opaque:
        return Opaque()


# Type checkers would not have it: the class is final.
ScopedToken: Any = type("ScopedToken", (AuthToken,), {})


TTL = RefreshPolicy(ttl=100.0)
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        ("text", None),
        ({"a": [1, 2.5, None, True]}, None),
        (0, JsonCodec()),
        ({"a": "b"}, encrypted(JsonCodec(), KEY)),
        (Point(1, 2), PointCodec()),
        (Opaque(), OpaqueCodec()),
    ],
)
async def test_values_arrive_as_they_are(autojump_clock: MockClock, value: Any, codec: Any) -> None:
    fetch = ScriptedFetch(value)
    async with open_memory_stores() as stores:
        share = share_of(stores, codec=codec)
        async with open_provider(fetch, share=share, policy=TTL), open_provider(fetch, share=share, policy=TTL) as peer:
            got = await peer.get()
            assert type(got) is type(value)
            assert got == value or isinstance(value, Opaque)
            assert fetch.calls == 1


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        ((1, 2), None),
        ({1: "a"}, None),
        ({"token": AuthToken("a")}, None),
        (Opaque(), None),
        (ScopedToken(Secret("a")), None),
        (ScopedToken(Secret("a")), AuthTokenCodec()),
        (float("nan"), None),
        ((1, 2), JsonCodec()),
        (Point(1, 2), ListCodec()),
        ("text", PointCodec()),
        (True, BoolCodec()),
    ],
)
async def test_what_the_codec_cannot_carry(autojump_clock: MockClock, value: Any, codec: Any, between: Any) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key", codec)
        with pytest.raises(TypeError):
            async with open_provider(ScriptedFetch(value), share=share, policy=TTL, observe=events.append):
                raise AssertionError("not reached")
        assert "set" not in cache.calls
        # Also where the store is down.
        cache.trouble["get"] = Down()
        with pytest.raises(TypeError):
            async with open_provider(ScriptedFetch(value), share=share, policy=TTL):
                raise AssertionError("not reached")
    assert failures(events) == []
    assert [type(e.error) for e in events if isinstance(e, FetchFailed)] == [TypeError]


@pytest.mark.parametrize(
    "garbage", ["{}", 3, '{"form":"text","value":"a","issued_at":1,"generation":"first","id":"x"}']
)
async def test_garbage_in_the_store(autojump_clock: MockClock, garbage: Any) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        await stores.cache.set("key:first", garbage, 0.0)
        async with open_provider(ScriptedFetch(Token("a", 60.0)), share=share_of(stores), observe=events.append) as p:
            assert text(await p.get()) == "a"
        assert failures(events) == ["get", "get"]
        async with open_provider(ScriptedFetch(), share=share_of(stores)) as peer:
            assert text(await peer.get()) == "a"


async def test_a_record_of_another_generation_is_none(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 60.0), Token("b", 60.0))
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            record = await stores.cache.get("key:first")
        await stores.cache.set("key:generation", "moved", 0.0)
        await stores.cache.set("key:moved", record, 0.0)
        async with open_provider(fetch, share=share_of(stores)) as provider:
            assert text(await provider.get()) == "b"


async def test_a_garbled_outcome(autojump_clock: MockClock) -> None:
    events: list[Event] = []
    results: list[Any] = []
    async with open_memory_stores() as stores:
        job = await stores.dedupe.register_or_join("key:first")
        share = share_of(stores)
        async with open_provider(
            ScriptedFetch(Token("a", 60.0)), share=share, eager=False, observe=events.append
        ) as provider:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, provider.get)
                await wait_all_tasks_blocked()
                await stores.dedupe.complete("key:first", "?", job_id=job.job_id)
    assert [text(token) for token in results] == ["a"]
    assert failures(events) == ["wait_outcome"]


async def test_what_is_no_exception_stays_where_it_is(autojump_clock: MockClock) -> None:
    results: list[Any] = []
    async with open_memory_stores() as stores:
        job = await stores.dedupe.register_or_join("key:first")
        async with open_provider(ScriptedFetch(Token("a", 60.0)), share=share_of(stores), eager=False) as provider:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, provider.get)
                await wait_all_tasks_blocked()
                await stores.dedupe.fail("key:first", SystemExit(3), job_id=job.job_id)
    assert [text(token) for token in results] == ["a"]


# Secrets

SECRET = "hunter2"


def shown(error: BaseException | None) -> str:
    """All that a curious log shows of an error: the locals of every frame, of its causes and contexts, too."""
    if error is None:
        return ""
    told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return told + shown(error.__cause__) + shown(error.__context__)


class Broken:
    """A codec that cannot read what it has written."""

    def encode(self, value: AuthToken) -> bytes:
        return value.secret.reveal().encode()

    def decode(self, data: bytes) -> AuthToken:
        del data
        raise Down


class Changing(Broken):
    def decode(self, data: bytes) -> AuthToken:
        return AuthToken(data.decode(), 1.0)


@pytest.mark.parametrize("codec", [Broken(), Changing()])
async def test_no_traceback_shows_what_a_codec_cannot_carry(autojump_clock: MockClock, codec: Any) -> None:
    async with open_memory_stores() as stores:
        with pytest.raises(TypeError) as caught:
            async with open_provider(ScriptedFetch(Token(SECRET, 60.0)), share=share_of(stores, codec=codec)):
                raise AssertionError("not reached")
    assert "codec of the share" in shown(caught.value)
    assert SECRET not in shown(caught.value)


async def test_no_traceback_shows_what_cannot_be_read(autojump_clock: MockClock) -> None:
    told: list[str] = []
    results: list[Any] = []

    def observe(event: Event) -> None:
        if isinstance(event, StorageFailed):
            told.append(shown(event.error))

    def interrupt(event: Event) -> None:
        if isinstance(event, StorageFailed):
            raise KeyboardInterrupt

    async with open_memory_stores() as stores:
        await stores.cache.set("key:first", f'{{"value":"{SECRET}"', 0.0)
        job = await stores.dedupe.register_or_join("key:first")
        fetch = ScriptedFetch(then=Token("a", 60.0))
        async with open_provider(fetch, share=share_of(stores), eager=False, observe=observe) as provider:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, provider.get)
                await wait_all_tasks_blocked()
                await stores.dedupe.complete("key:first", SECRET, job_id=job.job_id)
        assert len(told) == 4
        assert SECRET not in "".join(told)
        # Nor does that of an interrupt that strikes there.
        await stores.cache.set("key:first", SECRET, 0.0)
        with pytest.raises(KeyboardInterrupt) as caught:
            async with open_provider(fetch, share=share_of(stores), observe=interrupt):
                raise AssertionError("not reached")
        assert "_stored" in shown(caught.value)
        ours = [part for part in shown(caught.value).split("  File ") if "trio_renew/_" in part.split(",")[0]]
        assert SECRET not in "".join(ours)


# Clocks


async def test_expiry_is_judged_on_the_own_clock(autojump_clock: MockClock) -> None:
    now = 1_700_000_000.0
    fetch = ScriptedFetch(AuthToken("a", now + 60.0), AuthToken("b", now + 600.0), then=AuthToken("c", now + 6000.0))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share, clock=lambda: now):
            # Here it is later already.
            async with open_provider(fetch, share=share, clock=lambda: now + 100.0) as ahead:
                assert text(await ahead.get()) == "b"
            # Here it is before it was issued: it counts from its arrival.
            async with open_provider(fetch, share=share, clock=lambda: now - 100.0) as behind:
                assert (await behind.lease()).issued_at == now - 100.0
                assert text(await behind.get()) == "b"
    assert fetch.calls == 2


async def test_a_peer_brings_what_has_expired_here(autojump_clock: MockClock) -> None:
    now = 1_700_000_000.0
    fetch = ScriptedFetch(Sleep(1.0, AuthToken("a", now + 60.0)), AuthToken("b", now + 600.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), clock=lambda: now, eager=False) as first,
            open_provider(fetch, share=share_of(stores), clock=lambda: now + 100.0, eager=False) as ahead,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(into, results, first.get)
            await wait_all_tasks_blocked()
            nursery.start_soon(into, results, ahead.get)
    assert [text(token) for token in results] == ["a", "b"]


async def test_inside_the_leeway_it_is_not_good(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            await trio.sleep(95.0)
            async with open_provider(fetch, share=share_of(stores)) as second:
                assert text(await second.get()) == "b"


async def test_a_value_that_ends_while_it_is_shared_is_not_written(autojump_clock: MockClock, between: Any) -> None:
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        fetch = ScriptedFetch(Token("a", 1.0))

        async def slow(hash: str) -> None:
            if fetch.calls:
                await trio.sleep(2.0)

        cache.trouble["get"] = slow
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, eager=False, policy=PLAIN(serve_expired_for=60.0)) as provider:
            with trio.move_on_after(2.5):
                await provider.get()
        assert "set" not in cache.calls


# With a storage


async def test_a_peers_value_goes_to_the_own_storage(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0))
    storage = MemoryStorage[AuthToken]()
    async with open_memory_stores() as stores:
        async with open_provider(fetch, share=share_of(stores)):
            async with open_provider(fetch, share=share_of(stores), storage=storage) as second:
                assert await storage.get() == await second.get()


def left(*kinds: type) -> list[object]:
    gc.collect()
    return [x for x in gc.get_objects() if isinstance(x, kinds)]


async def test_nothing_is_left_behind(autojump_clock: MockClock) -> None:
    others = left(Flight)
    fetch = ScriptedFetch(
        Token("a", 100.0), Down(), None, Stubborn(5.0, Token("late", 100.0)), Token("b", 100.0), Token("c", 100.0)
    )
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False, fetch_timeout=1.0) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
        ):
            await first.get()
            await second.get()
            await wait_all_tasks_blocked()
            assert left(Flight, Draft, Record) == others
            for error in (Down, None, FetchTimeout):
                with pytest.raises(error) if error else nullcontext():
                    await first.refresh()
            await trio.sleep(10.0)
            await second.refresh()
            await first.refresh(stale=await first.get())
            await wait_all_tasks_blocked()
            assert left(Draft, Record) == []


async def test_types(autojump_clock: MockClock) -> None:
    async with open_memory_stores() as stores:
        block = ScriptedFetch(Block(Token("a", 60.0)))

        async def mint() -> AuthToken:
            token = await block()
            assert isinstance(token, AuthToken)
            return token

        async with open_provider(mint, share=share_of(stores), eager=False) as provider:
            typed: RefreshingProvider[AuthToken] = provider
            with trio.move_on_after(1.0):
                await typed.get()
            assert block.running == 1
            block.release()
            assert text(await typed.get()) == "a"
