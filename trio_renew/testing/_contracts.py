"""Contract suites: what every store must do, as tests that a user runs on an implementation of their own.

Invariants:

* A suite uses the methods of the protocol and nothing else.
* Under virtual time instants are exact. On a real clock a test claims only what holds however slow the machine is:
  "not yet" only when less time has passed by its own watch, "by now" only after a margin.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import trio
import trio.testing

from .._clock import under_test_clock
from .._errors import StoreError
from ._internals import borrowed_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ("Contract", "StorageContract", "check_contract")


class Contract:
    """What the suites have in common: how a store is opened, and how time passes for it.

    Attributes:
      lease: The seconds of a dedupe job's lease in the store that ``open_store`` opens.
      virtual: Whether the store lives by Trio's clock, so that an autojump clock makes its time pass. Under
        ``check_contract`` no time is spent then; pytest runs the tests on the clock that its plugin gives them.
    """

    lease: ClassVar[float] = 10.0
    virtual: ClassVar[bool] = False

    #: Seconds that a store on a real clock may be late, and for which it is waited at most when it need not wait.
    margin: ClassVar[float] = 0.25
    patience: ClassVar[float] = 15.0

    def open_store(self) -> AbstractAsyncContextManager[Any]:
        """Open an empty store; what is in it is dropped when it is left. To be defined by the user."""
        raise NotImplementedError(f"{type(self).__qualname__} must define open_store(self): an async context manager")

    def make_value(self, number: int) -> Any:
        """Make a value that the store can hold, another one for each number."""
        return {"number": number, "text": f"value {number}"}

    # ------------------------------------------------------------------------------------------------ for the suites

    @property
    def exact(self) -> bool:
        """Whether time passes only when everybody sleeps."""
        return self.virtual and under_test_clock()

    @property
    def slack(self) -> float:
        """How late something may be."""
        return 0.0 if self.exact else self.margin

    @contextmanager
    def in_time(self, promise: str, seconds: float | None = None) -> Generator[None, None, None]:
        """Fail with what was promised, instead of hanging."""
        with trio.move_on_after(self.patience if seconds is None else seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise AssertionError(f"{promise}: it has not happened")

    async def unless_slow(self, seconds: float, scenario: Callable[[Any], Awaitable[None]]) -> None:
        """Run something that must be over within ``seconds`` to show anything; again, when the machine was slow."""
        tries_left = 4
        while True:  # noqa: ASYNC913 - the store's own, at most five times
            tries_left -= 1
            started = trio.current_time()
            try:
                async with self.open_store() as store:
                    await scenario(store)
            except Exception:
                # An AssertionError, or a group of them from a nursery.
                if not tries_left or trio.current_time() - started < seconds:
                    raise
            else:
                return

    async def pass_by(self, seconds: float) -> None:
        """Let so much time pass that something has ended."""
        await trio.sleep(seconds + self.slack)


def expect(holds: object, promise: str) -> None:
    """Raise an AssertionError that says what was promised."""
    if not holds:
        raise AssertionError(promise)


def expect_equal(actual: object, wanted: object, promise: str) -> None:
    """Raise an AssertionError that says what was promised, and what came instead."""
    if type(actual) is not type(wanted) or actual != wanted:
        raise AssertionError(f"{promise}: expected {wanted!r}, got {actual!r}")


async def all_at_once(function: Callable[[int], Awaitable[Any]], times: int) -> list[Any]:
    """Call it that often in tasks of their own; the results in the order of the calls."""
    results: list[Any] = [None] * times

    async def one(number: int) -> None:
        results[number] = await function(number)

    async with trio.open_nursery() as nursery:
        for number in range(times):
            nursery.start_soon(one, number)
    return results


async def cancelled_call(function: Callable[[], Awaitable[Any]]) -> bool:
    """Make a call in a scope that is cancelled already; says whether it was over before it noticed."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await function()
    return not scope.cancelled_caught


async def refuses(function: Callable[[], Awaitable[Any]]) -> bool:
    """Make a call with a value that most stores cannot keep; says whether it was refused with a StoreError.

    A store that keeps it, or knows it for something else than its values, is right as well.
    """
    try:
        await function()
    except StoreError:
        return True  # noqa: ASYNC910 - the store's own
    except Exception:
        return False  # noqa: ASYNC910 - as above
    return False


class StorageContract(Contract):
    """What a :class:`~trio_renew.abc.Storage` must do. Each ``open_store`` opens an empty one.

    The values are dicts that JSON can carry; define ``make_value(self, number)`` for a storage of something else.

    Example::

        class TestMyStorage(StorageContract):
            @asynccontextmanager
            async def open_store(self):
                yield MyStorage()

        check_contract(TestMyStorage)  # or let pytest run the class
    """

    async def test_an_empty_storage_gives_none(self) -> None:
        """Nothing is stored: None."""
        async with self.open_store() as storage:
            expect_equal(await storage.get(), None, "an empty storage gives None")

    async def test_what_was_set_is_there(self) -> None:
        """Read your writes."""
        async with self.open_store() as storage:
            await storage.set(self.make_value(1))
            expect_equal(await storage.get(), self.make_value(1), "get() gives what set() has stored")
            expect_equal(await storage.get(), self.make_value(1), "reading does not take the value away")

    async def test_a_later_value_replaces_it(self) -> None:
        """Replacement is monotonic: an older value never comes back."""
        async with self.open_store() as storage:
            for number in range(5):
                await storage.set(self.make_value(number))
                for _ in range(2):
                    expect_equal(await storage.get(), self.make_value(number), "the last value set is the one stored")

    async def test_cleared_is_gone(self) -> None:
        """After clear there is nothing, and clearing nothing is fine."""
        async with self.open_store() as storage:
            await storage.clear()
            await storage.set(self.make_value(1))
            expect_equal(await storage.get(), self.make_value(1), "get() gives what set() has stored")
            await storage.clear()
            expect_equal(await storage.get(), None, "clear() forgets the value")
            await storage.clear()
            await storage.set(self.make_value(2))
            expect_equal(await storage.get(), self.make_value(2), "a cleared storage takes a new value")

    async def test_a_cancelled_set_happened_wholly_or_not_at_all(self) -> None:
        """Cancelled, the old value or the new one is there."""
        async with self.open_store() as storage:
            await storage.set(self.make_value(1))
            done = await cancelled_call(lambda: storage.set(self.make_value(2)))
            found = await storage.get()
            expect(
                found == self.make_value(2) or (not done and found == self.make_value(1)),
                f"a set() that was cancelled leaves the old value or the new one, not {found!r}",
            )

    async def test_a_cancelled_clear_happened_wholly_or_not_at_all(self) -> None:
        """Cancelled, the value is there or it is not."""
        async with self.open_store() as storage:
            await storage.set(self.make_value(1))
            done = await cancelled_call(storage.clear)
            found = await storage.get()
            expect(
                found is None or (not done and found == self.make_value(1)),
                f"a clear() that was cancelled leaves the value or nothing, not {found!r}",
            )


def check_contract(contract: type[Contract]) -> None:
    """Run a contract suite without pytest, each test in a Trio run of its own.

    With ``virtual = True`` the runs have an autojump clock and a seeded schedule, so that no time is spent and a
    failure comes back.

    Args:
      contract: A subclass of one of the suites that defines ``open_store``. Tests that it adds are run too.

    Raises:
      ExceptionGroup: Of all failures, each with a note that names its test.
      TypeError: It is no such class.
      RuntimeError: Called inside a Trio run.

    Example::

        class MyStore(CacheStoreContract):
            virtual = True

            @asynccontextmanager
            async def open_store(self):
                yield MyCacheStore()

        check_contract(MyStore)
    """
    if Contract not in getattr(contract, "__mro__", ()):
        raise TypeError(f"contract must be a subclass of one of the contract suites, not {contract!r}")
    names = [name for name in dir(contract) if name.startswith("test_") and callable(getattr(contract, name))]
    if not names:
        raise TypeError(f"contract must have tests, and {contract.__qualname__} has none: derive from a suite")
    failures: list[Exception] = []
    with borrowed_state("check_contract") as seed:
        for name in names:
            seed(0)
            try:
                _run(contract, name)
            except Exception as error:
                error.add_note(f"in {contract.__qualname__}.{name}")
                failures.append(error)
    if failures:
        raise ExceptionGroup(f"{contract.__qualname__}: {len(failures)} of {len(names)} tests failed", failures)


def _run(contract: type[Contract], name: str) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0) if contract.virtual else None

    async def run() -> None:  # noqa: ASYNC910 - the test's own
        # A store that never answers fails its test; virtual seconds cost nothing.
        with trio.fail_after(1e9 if contract.virtual else 120 + 20 * contract.lease):  # noqa: ASYNC912 - as above
            result = getattr(contract(), name)()
            if inspect.isawaitable(result):
                await result

    trio.run(run, clock=clock)
