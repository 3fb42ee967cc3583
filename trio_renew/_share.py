"""One flight over several processes: what one of them fetches serves all.

What a flight does (:meth:`Sharing.fetch`), and then its end (:meth:`Sharing.publish`)::

    read the generation, read the record under it ----------- good and new enough --> take it
    own or join the job of that generation
      joined: wait for its outcome, read the generation again --> take it; its owner is gone: from the top
      own:    read both again ------------------------------- good and new enough --> take it, settle the job with it
              ask the source
              read the generation again, prolong the job, write the record, settle the job with it

Invariants:

* A record and a job belong to one generation: their keys carry it. So what was fetched before a ``clear()`` is never
  read after it, whenever it is written.
* A flight that finds that the generation has moved before it has asked anybody goes on in the new one; later, it is
  fenced.
* Only the owner of a job writes, right after it has prolonged it.
* A store that fails is reported, and the flight goes on without it: it asks the source itself, and writes nothing.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final

import attrs
import outcome
import trio

from . import _record
from ._ask import StoreDown, check_methods, check_name
from ._codecs import check_codec
from ._errors import FetchTimeout
from ._generation import Generation
from ._job import Job, given_up
from ._values import Lease, Secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._ask import Ask
    from ._flight import Flight
    from ._held import Held
    from ._owner import Owner
    from ._record import Record
    from .abc import CacheStore, Codec, DedupeStore

__all__ = ("Share", "Sharing")

T = TypeVar("T")

# How the outcome of a job starts, before the text of a record: fetched for this job, found in the store, no value.
_FETCHED, _FOUND, _NOTHING = "+", "=", "-"


def _check_cache(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_methods(attribute.name, "a CacheStore", value, "get", "set", "delete")


def _check_dedupe(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    methods = ("register_or_join", "wait_outcome", "complete", "fail", "extend")
    check_methods(attribute.name, "a DedupeStore", value, *methods)


def _check_key(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_name(attribute.name, value)


def _check_codec(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_codec(attribute.name, value)


@final
@attrs.frozen(eq=False)
class Share:
    """A value that the processes of a fleet fetch once for all of them.

    All providers, in whichever process, that share a key of the same stores see one flight: one of them asks the
    source, the others get what it got. One that dies is replaced within a lease of the dedupe store; ``fetch_timeout``
    should exceed that lease. ``clear()`` reaches all of them, and so does a value that ``refresh(stale=...)`` brought.
    When a store cannot be asked (each call has 5 s, and before a fetch half of what is left of ``fetch_timeout``),
    every process serves what it holds, fetches for itself, and says so (``StorageFailed`` with the name of the store's
    method).

    The store then holds the value, as text: a token in plain text, unless the codec encrypts it
    (:func:`encrypted`).

    Args:
      cache: Where the record of the value is kept, such as the ``cache`` of a store engine. A bounded one may evict
        the mark that a ``clear()`` leaves there.
      dedupe: Where it is agreed who fetches, such as the ``dedupe`` of the same engine.
      key: A non-empty text; the same one for all who share the value.
      codec: Makes the text of a value. None: an :class:`AuthToken` is kept as such, anything else as JSON. A value
        that does not come back from it as it was is a ``TypeError`` at the first fetch.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: ``key`` is empty.

    Example::

        async with open_redis_stores("redis://localhost") as stores:
            share = Share(stores.cache, stores.dedupe, "billing-token")
            async with open_provider(mint, share=share) as provider:
                ...
    """

    cache: CacheStore[Any] = attrs.field(validator=_check_cache)
    dedupe: DedupeStore[Any] = attrs.field(validator=_check_dedupe)
    key: str = attrs.field(validator=_check_key)
    codec: Codec[Any] | None = attrs.field(default=None, validator=_check_codec)


@attrs.frozen
class _Found:
    """What somebody else has fetched; None: no value."""

    record: Record | None


def _is_fenced(flight: Flight[Any, Any]) -> bool:
    # A call, because type checkers do not see that it changes while we wait.
    return flight.fenced


class Sharing(Generic[T]):
    """The part of one provider in a share.

    Args:
      owner: Whose nursery keeps the jobs.
      share: What is shared.
      appraise: Reads the life of a value that was issued at an instant; raises for one that has no life left.
      held: Gives what the provider holds.
      moved: Makes the provider forget, as by ``clear()``, but for a flight that goes on.
      ask: Calls the stores.

    Attributes:
      generation: The generation that the store has, as this provider knows it.
    """

    __slots__ = (
        "_appraise",
        "_ask",
        "_held",
        "_jobs",
        "_last",
        "_owner",
        "_share",
        "_taken",
        "generation",
    )

    def __init__(
        self,
        owner: Owner,
        share: Share,
        *,
        appraise: Callable[[T, float], Held[T]],
        held: Callable[[], Held[T] | None],
        moved: Callable[[Flight[T, Held[T]] | None], object],
        ask: Ask,
    ) -> None:
        self._owner = owner
        self._share = share
        self._appraise = appraise
        self._held = held
        self._ask = ask
        self._jobs: dict[Flight[T, Held[T]], Job] = {}
        self._last: Job | None = None
        # The last record that we took: by the clock of who wrote it, it may have been issued later than by ours.
        self._taken: str | None = None
        self.generation: Generation[Flight[T, Held[T]]] = Generation(owner, share.cache, share.key, moved, ask)

    # The flight

    async def fetch(self, flight: Flight[T, Held[T]], mint: Callable[[], Awaitable[T | None]]) -> T | None:
        """Get the value from the others, or from the source and for the others.

        Raises:
          TypeError: The codec cannot carry what the source gave.
          Exception: What the source raised, here or in another process.
        """
        try:
            found = await self._seek(flight)
        except StoreDown:
            found = None
        if found is not None:
            if found.record is None:
                return None  # noqa: ASYNC910 - reading the store was one
            flight.issued_at = found.record.issued_at
            self._taken = found.record.id
            return cast("T", found.record.value)  # noqa: ASYNC910 - as above
        flight.issued_at = self._owner.clock.now()
        value = await mint()
        if value is not None:
            draft = _record.draft(value, self._share.codec)
            job = self._jobs.get(flight)
            if job is not None:
                job.draft = draft
        return value

    async def _seek(self, flight: Flight[T, Held[T]]) -> _Found | None:
        """Find what the others have; None: it is for us to ask the source."""
        if self._last is not None and self._last.settled:
            # Otherwise we might join our own job of before.
            await self._last.told()
        before: Record | None = None
        first = True
        while True:
            generation, record = await self._read(flight)
            if first:
                before, first = record, False
            if _is_fenced(flight):
                return None
            if record is not None and self._usable(flight, record, before):
                flight.stored = True
                return _Found(record)
            hash = self.generation.key(generation)
            registration = await self._ask(self._share.dedupe, "register_or_join", hash)
            if not registration.is_owner and not self._is_left_over(registration.job_id):
                found = await self._join(flight, hash, registration.job_id)
                if found is not None:
                    return found
                continue
            job = self._own(flight, hash, registration.job_id, generation)
            try:
                # Between our reading and our owning another process may have done it all.
                generation, record = await self._read(flight)
            except StoreDown:
                return None
            if _is_fenced(flight):
                return None
            if generation != job.generation:
                job.give_up()
            elif record is not None and self._usable(flight, record, before):
                flight.stored = True
                job.complete(Secret(_FOUND + record.text))
                return _Found(record)
            else:
                return None

    def _is_left_over(self, job_id: str) -> bool:
        """Whether a job is our own of before: the store could not be told of its end, so it is ours still."""
        return self._last is not None and self._last.id == job_id and self._last.over.is_set()

    def _own(self, flight: Flight[T, Held[T]], hash: str, job_id: str, generation: str) -> Job:
        job = Job(self._share.dedupe, hash, job_id, generation, flight, self._ask)
        self._jobs[flight] = self._last = job
        self._owner.start(job.run, "job")
        return job

    async def _join(self, flight: Flight[T, Held[T]], hash: str, job_id: str) -> _Found | None:
        """Wait for a peer; None: it has brought nothing that we could use.

        Raises:
          Exception: What the peer's source raised.
        """
        # Part of the fetch: as long as that may take.
        found, fetched = self._heard(
            await self._ask(self._share.dedupe, "wait_outcome", hash, job_id=job_id, within=inf)
        )
        if found is None:
            return None
        if found.record is not None:
            if not self._usable(flight, found.record, None if fetched else found.record, joined=True):
                return None
            flight.stored = not fetched
        try:
            await self.generation.look(None)
        except StoreDown:
            pass  # what it brought is good all the same
        return found

    def _heard(self, result: object) -> tuple[_Found | None, bool]:
        """Understand what a peer has said: what it has, and whether it fetched that for this job."""
        if isinstance(result, outcome.Error):
            if given_up(result.error):
                return None, False
            raise result.error
        said = cast("outcome.Value[Any]", result).value
        if said == _NOTHING:
            return _Found(None), True
        try:
            return _Found(_record.read(said[1:], self._share.codec)), said[0] == _FETCHED
        except Exception as exc:
            problem = exc
        finally:
            del said, result
        self._ask.report("wait_outcome", problem)
        return None, False

    def _usable(
        self, flight: Flight[T, Held[T]], record: Record, before: Record | None, *, joined: bool = False
    ) -> bool:
        """Whether a record answers this flight. ``before`` is what was there when the flight began."""
        try:
            news = self._appraise(record.value, record.issued_at)
        except Exception:
            return False  # expired, by our clock
        if not self._owner.clock.now() < news.good_until:
            return False
        rejected: object = flight.stale
        if flight.rejected is not None:
            rejected = flight.rejected.value
        elif isinstance(rejected, Lease):
            rejected = cast("Lease[object]", rejected).value
        if rejected is not None and _record.same(record.value, rejected):
            return False
        held = None if flight.fenced else self._held()
        if held is not None and news.issued_at < held.issued_at:
            return False
        if flight.reason == "forced":
            # Somebody wants a fetch from now on; where it is for another value, any other value will do.
            return rejected is not None or before is None or record.id != before.id
        if joined or held is None or flight.reason != "aging":
            return True
        if record.id == self._taken or (news.issued_at == held.issued_at and _record.same(record.value, held.value)):
            return False
        return news.due_at is None or self._owner.clock.now() < news.due_at

    async def publish(self, flight: Flight[T, Held[T]], held: Held[T]) -> None:  # noqa: ASYNC910 - it may have no job
        """Give a value that the source has given to the others. Raises no Exception."""
        job = self._jobs.get(flight)
        if job is None or job.draft is None or job.settled:
            return  # noqa: ASYNC910 - as above
        record = _record.write(job.draft, held.issued_at, job.generation)
        with trio.CancelScope(shield=True):  # noqa: ASYNC912 - as above
            try:
                if not flight.fenced:
                    # It may have been cleared meanwhile; then this fences the flight.
                    await self.generation.look(None)
                ttl = 0.0 if held.expires_at is None else held.expires_at - self._owner.clock.now()
                lives = held.expires_at is None or ttl > 0.0
                if lives and not _is_fenced(flight) and await job.still_ours():
                    key = self.generation.key(job.generation)
                    await self._ask(self._share.cache, "set", key, record.reveal(), ttl, within=job.hurry)
            except StoreDown:
                pass
        job.complete(Secret(_FETCHED + record.reveal()))

    def nothing(self, flight: Flight[T, Held[T]]) -> None:
        """The source has answered: no value."""
        job = self._jobs.get(flight)
        if job is not None:
            job.complete(Secret(_NOTHING))

    def failed(self, flight: Flight[T, Held[T]], error: BaseException) -> None:
        """The flight has failed. What only took too long here may still be tried by the others."""
        job = self._jobs.get(flight)
        if job is None:
            return
        if isinstance(error, Exception) and not isinstance(error, FetchTimeout):
            job.fail(error)
        else:
            job.give_up()

    def release(self, flight: Flight[T, Held[T]]) -> None:
        """The flight is over: whatever has no outcome yet is left to the others."""
        job = self._jobs.pop(flight, None)
        if job is not None:
            job.draft = None
            job.give_up()

    async def _read(self, flight: Flight[T, Held[T]]) -> tuple[str, Record | None]:
        generation = await self.generation.look(flight)
        key = self.generation.key(generation)
        record = self._stored(await self._ask(self._share.cache, "get", key))
        return generation, record if record is not None and record.generation == generation else None

    def _stored(self, text: object) -> Record | None:
        if text is None:
            return None
        try:
            return _record.read(text, self._share.codec)
        except ValueError as exc:
            problem = exc
        finally:
            del text
        self._ask.report("get", problem)
        return None
