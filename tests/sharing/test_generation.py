"""clear() over several processes: nothing fetched before it comes back, anywhere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    Cleared,
    Event,
    FetchSucceeded,
    MemoryStorage,
    RefreshPolicy,
    Share,
    StorageFailed,
    open_provider,
)
from trio_renew.stores.memory import open_memory_stores
from trio_renew.testing import (
    ScriptedFetch,
    Sleep,
    Stubborn,
    Token,
    cancel_at_every_checkpoint,
    do_at_every_checkpoint,
    until,
    victim,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_renew import RefreshingProvider

PLAIN = partial(RefreshPolicy, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None)


class Down(Exception):
    """What broken stores raise."""


def text(token: AuthToken) -> str:
    return token.secret.reveal()


def share_of(stores: Any) -> Share:
    return Share(stores.cache, stores.dedupe, "key")


async def into(results: list[Any], call: Callable[[], Awaitable[Any]]) -> None:
    try:
        results.append(await call())
    except Exception as exc:
        results.append(exc)


def failures(events: list[Event]) -> list[str]:
    return [event.operation for event in events if isinstance(event, StorageFailed)]


def cleared(events: list[Event]) -> list[int]:
    return [event.generation for event in events if isinstance(event, Cleared)]


# Noticed by the peers


async def test_noticed_when_due(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0))
    events: list[Event] = []
    storage = MemoryStorage[AuthToken]()
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share) as first,
            open_provider(fetch, share=share, policy=PLAIN(), storage=storage, observe=events.append) as second,
        ):
            await first.clear()
            assert text(await first.get()) == "b"
            # The other one does not know, until it has a reason to look.
            assert text(await second.get()) == "a"
            assert text(await storage.get()) == "a"  # type: ignore[arg-type]
            await until(second, "due")
            second.get_nowait()
            await wait_all_tasks_blocked()
            assert cleared(events) == [2]
            # It went on in the new generation: what is there was fetched after the clear.
            assert text(second.get_nowait()) == "b"
            assert fetch.calls == 2
            assert text(await storage.get()) == "b"  # type: ignore[arg-type]
    assert [e.generation for e in events if isinstance(e, FetchSucceeded)] == [1, 3]


async def test_noticed_at_a_refresh(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share) as first:
            async with open_provider(fetch, share=share, observe=events.append) as second:
                await first.clear()
                assert text(await second.refresh()) == "b"
                assert second.status().generation == 3
                assert text(second.get_nowait()) == "b"
                assert text(await first.get()) == "b"
    assert cleared(events) == [2]


async def test_a_refresh_without_value_after_a_clear_elsewhere(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), None)
    events: list[Event] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share) as first:
            async with open_provider(fetch, share=share, observe=events.append) as second:
                await first.clear()
                assert await second.refresh() is None
                with pytest.raises(trio.WouldBlock):
                    second.get_nowait()
    assert [e.generation for e in events if isinstance(e, FetchSucceeded)] == [1, 2]


async def test_cleared_again_after_going_on(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(2.0, Token("b", 100.0)))
    events: list[Event] = []
    results: list[Any] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share) as first:
            async with open_provider(fetch, share=share, observe=events.append) as second:
                await first.clear()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(into, results, second.refresh)
                    await trio.sleep(1.0)
                    await second.clear()
                assert [text(token) for token in results] == ["b"]
                assert second.status().generation == 3
    assert cleared(events) == [2, 3]
    assert [e.generation for e in events if isinstance(e, FetchSucceeded)] == [1, 2]


async def test_who_waits_meanwhile_goes_on_waiting(autojump_clock: MockClock) -> None:
    """A flight that finds the generation moved before it has fetched answers all its callers with what it keeps."""
    fetch = ScriptedFetch(Token("a", 100.0), Sleep(1.0, Token("b", 100.0)))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share) as first,
            open_provider(fetch, share=share, policy=PLAIN()) as second,
        ):
            await first.clear()
            await until(second, "expiry")
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(into, results, second.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, second.get)
            assert [text(token) for token in results] == ["b"] * 4
            assert fetch.calls == 2


async def test_noticed_on_use_of_what_never_ends(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a"), Token("b"))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with (
            open_provider(fetch, share=share_of(stores)) as first,
            open_provider(fetch, share=Share(cache, stores.dedupe, "key"), observe=events.append) as second,
        ):
            await first.clear()
            cache.calls.clear()
            for _ in range(59):
                await trio.sleep(1.0)
                assert text(await second.get()) == "a"
            assert cache.calls == []
            await trio.sleep(1.0)
            assert text(second.get_nowait()) == "a"
            await wait_all_tasks_blocked()
            assert cache.calls == ["get"]
            assert cleared(events) == [2]
            assert text(await second.get()) == "b"


async def test_a_look_at_most_once_a_minute(autojump_clock: MockClock, between: Any) -> None:
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(ScriptedFetch(Token("a")), share=share) as provider:
            cache.calls.clear()
            for _ in range(300):
                await trio.sleep(1.0)
                await provider.get()
                provider.get_nowait()
            await wait_all_tasks_blocked()
            assert cache.calls == ["get"] * 5
            # One that does not come back is not asked again meanwhile.
            cache.trouble["get"] = 4.0
            await trio.sleep(60.0)
            await provider.get()
            await provider.get()
            assert trio.current_time() == 360.0


async def test_a_look_that_is_slow_is_the_only_one(autojump_clock: MockClock, between: Any) -> None:
    now = 1_700_000_000.0
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(ScriptedFetch(Token("a")), share=share, clock=lambda: now) as provider:
            cache.trouble["get"] = 4.0
            cache.calls.clear()
            for _ in range(3):
                now += 60.0
                provider.get_nowait()
                await wait_all_tasks_blocked()
            assert cache.calls == ["get"]
            await trio.sleep(5.0)
            now += 60.0
            provider.get_nowait()
            await wait_all_tasks_blocked()
            assert cache.calls == ["get", "get"]


async def test_closing_does_not_wait_for_a_look(autojump_clock: MockClock, between: Any) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(ScriptedFetch(Token("a")), share=share, observe=events.append) as provider:
            cache.trouble["get"] = "hang"
            await trio.sleep(60.0)
            await provider.get()
            await wait_all_tasks_blocked()
        assert trio.current_time() == 60.0
    assert failures(events) == []


async def test_a_look_at_a_store_that_is_down(autojump_clock: MockClock, between: Any) -> None:
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(ScriptedFetch(Token("a")), share=share, observe=events.append) as provider:
            cache.trouble["get"] = Down()
            await trio.sleep(60.0)
            await provider.get()
            await wait_all_tasks_blocked()
            assert failures(events) == ["get"]
            assert text(await provider.get()) == "a"


async def test_what_was_stored_by_a_run_before(autojump_clock: MockClock) -> None:
    """A value from the own storage is of no known generation: a first look makes that known."""
    fetch = ScriptedFetch(Token("new", 1000.0))
    storage = MemoryStorage[AuthToken]()
    await storage.set(AuthToken.expiring_in("old", 1000.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores), eager=False) as first,
            open_provider(fetch, share=share_of(stores), storage=storage, observe=events.append) as second,
        ):
            assert text(await second.get()) == "old"
            await wait_all_tasks_blocked()
            await first.clear()
            assert text(await first.get()) == "new"
            await until(second, "due")
            await second.get()
            await wait_all_tasks_blocked()
            assert text(await second.get()) == "new"
    assert cleared(events) == [2]


async def test_under_the_wall_clock_hits_do_not_hide_a_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_renew._renewing._LOOK_EVERY", 0.2)
    monkeypatch.setattr("trio_renew._renewing._MARGIN", 0.001)
    fetch = ScriptedFetch(Token("a"), Token("b"))
    async with open_memory_stores() as stores:
        async with (
            open_provider(fetch, share=share_of(stores)) as first,
            open_provider(fetch, share=share_of(stores)) as second,
        ):
            await first.clear()
            with trio.fail_after(5.0):
                while text(await second.get()) == "a":
                    await trio.sleep(0.01)


# Against a fetch


async def test_a_clear_elsewhere_during_a_mint(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(2.0, Token("a", 100.0)), Token("b", 100.0), Token("c", 100.0))
    results: list[Any] = []
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with (
            open_provider(fetch, share=share, eager=False, observe=events.append) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
            open_provider(fetch, share=share_of(stores), eager=False) as third,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                nursery.start_soon(into, results, second.get)
                await trio.sleep(1.0)
                await third.clear()
                # The new generation does not wait for the old one.
                assert text(await third.get()) == "b"
                assert trio.current_time() == 1.0
            assert [text(token) for token in results] == ["a", "a"]
            assert "set" not in cache.calls
            for provider in (first, second):
                with pytest.raises(trio.WouldBlock):
                    provider.get_nowait()
                assert text(await provider.get()) == "b"
    assert fetch.calls == 2
    assert [type(event).__name__ for event in events] == [
        "FetchStarted",
        "Cleared",
        "FetchSucceeded",
        "FetchStarted",
        "FetchSucceeded",
        "OwnerClosed",
    ]


async def test_the_own_clear_during_a_mint(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Sleep(2.0, Token("a", 100.0)), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, eager=False) as provider, trio.open_nursery() as nursery:
            nursery.start_soon(into, results, provider.get)
            await trio.sleep(1.0)
            await provider.clear()
            assert text(await provider.get()) == "b"
        assert [text(token) for token in results] == ["a"]
        assert cache.calls.count("set") == 2  # the generation, and one record


async def test_a_peers_old_value_still_answers_who_waited_for_it(autojump_clock: MockClock) -> None:
    """It is older than what is held since the own clear(), and the right answer for those of before."""
    fetch = ScriptedFetch(Sleep(2.0, Token("a", 100.0)), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share, eager=False) as owner,
            open_provider(fetch, share=share, eager=False) as peer,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, owner.get)
                await wait_all_tasks_blocked()
                nursery.start_soon(into, results, peer.get)
                await trio.sleep(1.0)
                await peer.clear()
                assert text(await peer.get()) == "b"
            assert [text(token) for token in results] == ["a", "a"]
            assert text(peer.get_nowait()) == "b"
            assert fetch.calls == 2


def test_the_own_clear_at_any_step_of_a_flight() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(then=Token("a", 60.0))
        async with open_memory_stores() as stores:
            async with open_provider(fetch, share=share_of(stores), eager=False) as provider:
                with victim():
                    box.append(provider.clear)
                    await provider.get()
                await wait_all_tasks_blocked()
                calls = fetch.calls
                with trio.fail_after(1.0):
                    await provider.get()
                assert fetch.calls <= calls + 1 <= 3

    async def action() -> None:
        await box[-1]()

    box: list[Any] = []
    do_at_every_checkpoint(scenario, action)


def test_a_clear_elsewhere_at_any_step_of_a_flight() -> None:
    class Source:
        when = "before"

        async def __call__(self) -> AuthToken:
            when = self.when
            await trio.sleep(1.0)
            return AuthToken.expiring_in(when, 60.0)

        async def clear(self, provider: RefreshingProvider[AuthToken]) -> None:
            self.when = "meanwhile"
            await provider.clear()
            self.when = "after"

    async def scenario() -> None:
        source = Source()
        async with open_memory_stores() as stores:
            share = share_of(stores)
            async with (
                open_provider(source, share=share, eager=False) as first,
                open_provider(source, share=share, eager=False) as second,
            ):
                box.append(lambda: source.clear(second))
                with victim():
                    await first.get()
                await wait_all_tasks_blocked()
                if source.when != "before":
                    async with open_provider(source, share=share) as third:
                        assert text(await third.get()) == text(await second.get()) != "before"

    async def action() -> None:
        await box[-1]()

    box: list[Any] = []
    do_at_every_checkpoint(scenario, action)


async def test_moved_between_reading_and_owning(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["register_or_join"] = 1.0
        share = Share(stores.cache, dedupe, "key")
        async with (
            open_provider(fetch, share=share, eager=False) as first,
            open_provider(fetch, share=share_of(stores), eager=False) as second,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, first.get)
                await wait_all_tasks_blocked()
                await second.clear()
                assert text(await second.get()) == "b"
            assert [text(token) for token in results] == ["b"]
            assert dedupe.calls == ["register_or_join", "fail"]
            # It is kept: the flight went on in the new generation.
            assert text(first.get_nowait()) == "b"


async def test_cleared_while_the_job_was_taken(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        dedupe = between(stores.dedupe)
        dedupe.trouble["register_or_join"] = 1.0
        share = Share(stores.cache, dedupe, "key")
        async with open_provider(fetch, share=share, eager=False) as provider:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, provider.get)
                await wait_all_tasks_blocked()
                await provider.clear()
            # It answers its caller, and is not kept.
            assert [text(token) for token in results] == ["a"]
            assert text(await provider.get()) == "b"


async def test_cleared_while_it_was_read(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)

        async def slow(hash: str) -> None:
            await trio.sleep(1.0)

        cache.trouble["get"] = slow
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, eager=False) as provider:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(into, results, provider.get)
                await trio.sleep(0.5)
                await provider.clear()
            assert [text(token) for token in results] == ["a"]
            cache.trouble.clear()
            assert text(await provider.get()) == "b"


async def test_what_was_read_before_a_clear_is_no_news(autojump_clock: MockClock, between: Any) -> None:
    """A look that was under way when the own clear() came must not take its old answer for another clear."""
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")

        async def late(hash: str) -> Any:
            answer = await stores.cache.get(hash)
            await trio.sleep(1.0)
            return answer or "first"

        fetch = ScriptedFetch(Token("a"), Token("b"))
        async with open_provider(fetch, share=share, observe=events.append) as provider:
            await trio.sleep(60.0)
            cache.trouble["get"] = late
            provider.get_nowait()
            await wait_all_tasks_blocked()
            cache.trouble.clear()
            await provider.clear()
            assert text(await provider.get()) == "b"
            await trio.sleep(2.0)
            assert text(provider.get_nowait()) == "b"
    assert len(cleared(events)) == 1


# The store's part


async def test_what_was_cleared_is_deleted(autojump_clock: MockClock) -> None:
    async with open_memory_stores() as stores:
        async with open_provider(ScriptedFetch(Token("a")), share=share_of(stores)) as provider:
            assert await stores.cache.get("key:first") is not None
            await provider.clear()
            assert await stores.cache.get("key:first") is None
            mark = await stores.cache.get("key:generation")
        async with open_provider(ScriptedFetch(Token("b")), share=share_of(stores)):
            assert await stores.cache.get(f"key:{mark}") is not None
        # One that has never looked clears as well: to log a fleet out.
        async with open_provider(ScriptedFetch(), share=share_of(stores), eager=False) as admin:
            await admin.clear()
            assert await stores.cache.get(f"key:{mark}") is None
            assert await stores.cache.get("key:generation") not in (None, mark)


async def test_a_clear_that_the_store_does_not_take(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Token("b", 1000.0), Token("c", 1000.0), Token("d", 1000.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with (
            open_provider(fetch, share=share, observe=events.append) as first,
            open_provider(fetch, share=share_of(stores)) as second,
        ):
            cache.trouble["set"] = Down()
            await first.clear()
            assert failures(events) == ["set"]
            # The store still has what was cleared; it is not taken.
            assert text(await first.get()) == "b"
            assert failures(events) == ["set", "set"]
            assert text(await second.get()) == "a"
            # When the store is back, the clear is made up for.
            cache.trouble.clear()
            assert text(await first.refresh()) == "c"
            assert text(await second.refresh(stale=await second.get())) == "c"
            assert fetch.calls == 3
            # What cannot be deleted is not read anyway.
            cache.trouble["delete"] = Down()
            await first.clear()
            assert failures(events)[2:] == ["delete"]
            assert text(await first.get()) == "d"


async def test_who_waited_for_a_clear_that_failed_does_not_try_again(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 1000.0), Token("b", 1000.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with open_provider(fetch, share=Share(cache, stores.dedupe, "key"), observe=events.append) as provider:
            cache.trouble["set"] = "hang"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(provider.clear)
                nursery.start_soon(provider.clear)
                await wait_all_tasks_blocked()
                assert text(await provider.get()) == "b"
                assert trio.current_time() == 5.0
            assert failures(events) == ["set"]


async def test_a_clear_in_progress_leaves_time_to_fetch(autojump_clock: MockClock, between: Any) -> None:
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        share = Share(cache, stores.dedupe, "key")
        async with open_provider(fetch, share=share, fetch_timeout=4.0, observe=events.append) as provider:
            await wait_all_tasks_blocked()
            cache.trouble["set"] = "hang"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(provider.clear)
                await wait_all_tasks_blocked()
                assert text(await provider.get()) == "b"
                assert trio.current_time() == 2.0
    assert [e.operation for e in events if isinstance(e, StorageFailed)] == ["set", "set"]


async def test_two_clears_at_once(autojump_clock: MockClock, between: Any) -> None:
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with open_provider(ScriptedFetch(Token("a"), Token("b")), share=Share(cache, stores.dedupe, "key")) as p:
            cache.trouble["set"] = 1.0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(p.clear)
                await trio.sleep(0.5)
                nursery.start_soon(p.clear)
            assert trio.current_time() == 2.0
            assert text(await p.get()) == "b"


async def test_the_caller_of_a_clear_leaves(autojump_clock: MockClock, between: Any) -> None:
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with open_provider(ScriptedFetch(Token("a")), share=Share(cache, stores.dedupe, "key")) as provider:
            cache.trouble["set"] = 2.0
            with trio.move_on_after(1.0):
                await provider.clear()
            assert await stores.cache.get("key:generation") is None
        # Closing has waited for it.
        assert trio.current_time() == 2.0
        assert await stores.cache.get("key:generation") is not None


async def test_closing_while_a_clear_waits(autojump_clock: MockClock, between: Any) -> None:
    results: list[Any] = []
    async with open_memory_stores() as stores:
        cache = between(stores.cache)
        async with trio.open_nursery() as nursery:
            async with open_provider(ScriptedFetch(Token("a")), share=Share(cache, stores.dedupe, "key")) as provider:
                cache.trouble["set"] = 2.0

                async def clear() -> None:
                    await into(results, provider.clear)
                    results.append(trio.current_time())

                nursery.start_soon(clear)
                await wait_all_tasks_blocked()
            # At once, and not when the store has it.
            assert [type(results[0]), *results[1:]] == [trio.ClosedResourceError, 0.0]
            assert trio.current_time() == 2.0
        assert await stores.cache.get("key:generation") is not None


async def test_a_clear_waits_for_the_storage_too(autojump_clock: MockClock) -> None:
    class Slow(MemoryStorage[AuthToken]):  # type: ignore[misc]
        async def clear(self) -> None:
            await trio.sleep(3.0)
            await super().clear()

    storage = Slow()
    async with open_memory_stores() as stores:
        async with open_provider(ScriptedFetch(Token("a")), share=share_of(stores), storage=storage) as provider:
            await provider.clear()
            assert trio.current_time() == 3.0
            assert await storage.get() is None


async def test_an_evicted_mark(autojump_clock: MockClock) -> None:
    """A store that has lost the mark: everybody forgets, to be safe, and one fetches."""
    fetch = ScriptedFetch(Token("a", 100.0), Token("b", 100.0), Token("c", 100.0))
    events: list[Event] = []
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with (
            open_provider(fetch, share=share, policy=PLAIN(), observe=events.append) as first,
            open_provider(fetch, share=share, policy=PLAIN()) as second,
        ):
            await first.clear()
            await first.get()
            await second.refresh(stale=await second.get())
            await stores.cache.delete("key:generation")
            await until(first, "due")
            for provider in (first, second):
                await provider.get()
                await wait_all_tasks_blocked()
                assert text(provider.get_nowait()) == "c"
    assert cleared(events) == [2, 4]


async def test_a_late_value_after_a_clear(autojump_clock: MockClock) -> None:
    fetch = ScriptedFetch(Stubborn(5.0, Token("late", 100.0)), Token("b", 100.0))
    async with open_memory_stores() as stores:
        share = share_of(stores)
        async with open_provider(fetch, share=share, eager=False, fetch_timeout=1.0) as provider:
            with pytest.raises(TimeoutError):
                await provider.get()
            await provider.clear()
            assert text(await provider.get()) == "b"
            await trio.sleep(10.0)
            assert text(await provider.get()) == "b"


def test_a_clear_cancelled_at_every_step() -> None:
    async def scenario() -> None:
        fetch = ScriptedFetch(Token("a", 60.0), Token("b", 60.0))
        events: list[Event] = []
        async with open_memory_stores() as stores:
            async with (
                open_provider(fetch, share=share_of(stores), observe=events.append) as first,
                open_provider(fetch, share=share_of(stores)) as second,
            ):
                with victim():
                    await first.clear()
                await wait_all_tasks_blocked()
                with trio.fail_after(1):
                    happened = bool(cleared(events))
                    assert text(await first.get()) == ("b" if happened else "a")
                    assert (await stores.cache.get("key:generation") is not None) == happened
                    calls = fetch.calls
                    a = await second.get()
                    assert text(await second.refresh(stale=a if happened else AuthToken("x"))) == text(
                        await first.get()
                    )
                    assert fetch.calls == calls

    report = cancel_at_every_checkpoint(scenario)
    assert report.steps >= 2
