"""The part of a process that fetches for others: a job of a dedupe store, kept alive until it is settled.

Invariants:

* A job is settled at most once, with the first outcome that it is given, and by its own task: who gives the outcome
  never waits for the store.
* Its task beats (``extend``) four times per lease, ends when the job is settled or lost, and never raises an
  Exception. It outlives the fetch, by one bounded call.
* A job whose flight nobody waits for any more is given up at the next beat: the peers need not wait until a fetch
  that does not answer to cancellation has unwound.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import trio

from ._ask import PATIENCE, Ask, StoreDown, half_the_time
from ._errors import JobLost, RemoteFetchError, StoreError
from ._flight import State
from ._values import Secret

if TYPE_CHECKING:
    from ._flight import Flight
    from ._record import Draft
    from .abc import DedupeStore

__all__ = ("Job", "given_up")

# The lease of a store that does not say.
_LEASE = 10.0
_BEATS_PER_LEASE = 4
#: As whose failure a job comes back that somebody gave up. It is the name of no type: nobody's fetch fails with it.
_GIVEN_UP = "trio_renew.given-up"


def given_up(error: BaseException) -> bool:
    """Say whether a job that ended so has no outcome: its owner died, left, or was refused."""
    if isinstance(error, RemoteFetchError):
        return error.type_name == _GIVEN_UP
    # What is no Exception is not for other processes, whoever put it there.
    return isinstance(error, JobLost) or not isinstance(error, Exception)


def _lease_of(dedupe: object) -> float:
    lease: Any = getattr(dedupe, "lease", _LEASE)
    number = isinstance(lease, (int, float)) and not isinstance(lease, bool)
    return float(lease) if number and isfinite(lease) and lease > 0 else _LEASE


class Job:
    """One job that is ours.

    Attributes:
      id: Its id in the store.
      generation: The store's generation in which it was taken.
      draft: The value that it has brought, as text; None before.
      hurry: Seconds that a call may take, so that two of them end within a lease.
      lost: Somebody else may have it: nothing may be written any more.
      over: Set when the store knows its outcome, or cannot be told.
    """

    __slots__ = (
        "_ask",
        "_ask_once",
        "_beating",
        "_dedupe",
        "_flight",
        "_hash",
        "_lease",
        "_reported",
        "_told",
        "draft",
        "generation",
        "hurry",
        "id",
        "lost",
        "over",
    )

    def __init__(
        self,
        dedupe: DedupeStore[Any],
        hash: str,
        job_id: str,
        generation: str,
        flight: Flight[Any, Any],
        ask: Ask,
    ) -> None:
        self._dedupe = dedupe
        self._hash = hash
        self.id = job_id
        self._flight: Flight[Any, Any] | None = flight
        self._ask = ask
        self._lease = _lease_of(dedupe)
        self.hurry = min(PATIENCE, self._lease / 2)
        self._reported = False
        self._ask_once = Ask(self._report_once)
        self._beating = trio.CancelScope()
        self._told: tuple[str, Secret | Exception | None] | None = None
        self.generation = generation
        self.draft: Draft | None = None
        self.lost = False
        self.over = trio.Event()

    @property
    def settled(self) -> bool:
        """Whether it has an outcome, or is lost."""
        return self.lost or self._told is not None

    def complete(self, text: Secret) -> None:
        """Let those who wait have this."""
        self._settle("complete", text)

    def fail(self, error: Exception) -> None:
        """Let those who wait fail with this."""
        self._settle("fail", error)

    def give_up(self) -> None:
        """Let one of those who wait take over, at once."""
        self._settle("fail", RemoteFetchError(_GIVEN_UP, "the one who fetched for the others has given it up"))

    def _settle(self, operation: str, outcome: Secret | Exception) -> None:
        if self._told is None:
            self._told = (operation, outcome)
            self._beating.cancel()

    async def still_ours(self) -> bool:
        """Prolong it; False when it is somebody else's.

        Raises:
          StoreDown: The store cannot be asked.
        """
        if not self.lost and not await self._ask_once(self._dedupe, "extend", self._hash, self.id, within=self.hurry):
            self.lost = True
        return not self.lost  # noqa: ASYNC910 - without an answer it was at least asked

    async def told(self) -> None:
        """Wait until the store knows its outcome, or cannot be told.

        Raises:
          StoreDown: That takes longer than a fetch can wait.
        """
        with trio.move_on_after(half_the_time()):
            await self.over.wait()
            return
        operation = "extend" if self._told is None else self._told[0]
        self._ask.report(operation, StoreError(f"{operation}() of the fetch before has not ended yet"))
        raise StoreDown

    async def run(self) -> None:  # noqa: ASYNC910 - a task's own work
        """Keep it until it is settled, and tell the store. In a task of the owner's."""
        with trio.CancelScope(shield=True):  # noqa: ASYNC912 - as above
            try:
                with self._beating:
                    await self._beat()
                if self._told is not None and not self.lost:
                    operation, outcome = self._told
                    # Revealed in the call: no local holds the text.
                    await self._ask(
                        self._dedupe,
                        operation,
                        self._hash,
                        outcome.reveal() if isinstance(outcome, Secret) else outcome,
                        job_id=self.id,
                    )
            except StoreDown:
                pass  # the peers find out when the lease has run out
            finally:
                self._told = self._told and (self._told[0], None)
                self._flight = None
                self.over.set()

    async def _beat(self) -> None:  # noqa: ASYNC910 - a task's own work
        pause = self._lease / _BEATS_PER_LEASE
        beat_at = trio.current_time() + pause
        while not self.lost:
            await trio.sleep_until(beat_at)
            # From its start: one that has waited long for an answer is followed at once by another.
            beat_at = trio.current_time() + pause
            if self._flight is not None and self._flight.state is State.LEFT:
                self.give_up()
                return
            try:
                await self.still_ours()
            except StoreDown:
                pass  # it may be back before the lease has run out

    def _report_once(self, operation: str, error: BaseException) -> None:
        if not self._reported:
            self._reported = True
            self._ask.report(operation, error)
