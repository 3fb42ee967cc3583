"""Small deliberate defects of the flight, the resource and the provider. The suite has to notice each of them.

Each is a module of ``trio_renew``, a piece of its text that stands there once, and what it becomes. Defects of other
rooms name the tests that have to notice them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("DEFECTS", "Defect")


class Defect(NamedTuple):
    """One way to break it."""

    what: str
    module: str
    text: str
    becomes: str
    #: Whose business it is, where it is not the suite's.
    tests: tuple[str, ...] = ()


DEFECTS = (
    Defect(
        "the claim is not released when the fetch raises",
        "_flight.py",
        "            del outcome, error\n            self._end()",
        "            failed = error is not None\n            del outcome, error\n            failed or self._end()",
    ),
    Defect(
        "the claim is not released when the hook does not return",
        "_flight.py",
        "            self._settle()\n            self._free()\n            raise\n        finally:\n",
        "            self._settle()\n            raise\n        finally:\n",
    ),
    Defect(
        "those who joined in the handoff window are not woken",
        "_flight.py",
        "            # Those who joined have no outcome: they decide again.\n            self._settle()\n",
        "",
    ),
    Defect(
        "the serving task does not count while it is in the hook",
        "_flight.py",
        '        self.waiting += 1\n        try:\n            await call_user("after_claim", hook)',
        '        self.waiting += 0\n        try:\n            await call_user("after_claim", hook)',
    ),
    Defect(
        "a waiter that leaves is not counted out",
        "_flight.py",
        "        self.waiting -= 1\n        if not self.waiting and self.home",
        "        if not self.waiting - 1 and self.home",
    ),
    Defect(
        "the last caller but one abandons the fetch",
        "_flight.py",
        "        if not self.waiting and self.home._cancel_when_left",
        "        if self.waiting <= 1 and self.home._cancel_when_left",
    ),
    Defect(
        "background refreshes are abandoned, too",
        "_flight.py",
        " and self.home._cancel_when_left and not self.background:",
        " and self.home._cancel_when_left:",
    ),
    Defect(
        "newcomers join an abandoned fetch",
        "_flight.py",
        "        self.state = State.LEFT\n        self.joinable = False",
        "        self.state = State.LEFT",
    ),
    Defect(
        "the fetch is not shielded from what cancels the owner's parent",
        "_flight.py",
        "self._scope = trio.CancelScope(shield=True)",
        "self._scope = trio.CancelScope()",
    ),
    Defect(
        "a stubborn fetch delays the timeout of its callers",
        "_flight.py",
        "            self._alarm = self._owner.alarm(self._scope.deadline, self._time_out)\n",
        "",
    ),
    Defect(
        "a fetch that ends at exactly its deadline is in time",
        "_flight.py",
        "trio.current_time() >= self._scope.deadline",
        "trio.current_time() > self._scope.deadline",
    ),
    Defect(
        "a late value is thrown away",
        "_flight.py",
        "        if self._owner.closed or (late and (self.fenced or value is None)):",
        "        if self._owner.closed or late:",
    ),
    Defect(
        "an abandoned fetch that fails tells of a failure",
        "_flight.py",
        "        elif self._owner.closed or self.state is State.LEFT:\n            return",
        "        elif self._owner.closed:\n            return",
    ),
    Defect(
        "an abandoned fetch has no end event",
        "_flight.py",
        "                self._owner.tell(FetchAbandoned(",
        "                self._owner.tell() if True else self._owner.tell(FetchAbandoned(",
    ),
    Defect(
        "the callers are woken before the outcome is committed",
        "_flight.py",
        "        self._told_end = True\n        self.held = held\n        self.answered = True\n",
        "        self._told_end = True\n        self._settle()\n        self._owner.tell(FetchAbandoned(self.reason))\n"
        "        self.held = held\n        self.answered = True\n",
    ),
    Defect(
        "clear() does not wake those who wait for an unwinding fetch",
        "_flight.py",
        "        self.fenced = True\n        if self._freed is not None:\n            self._freed.set()",
        "        self.fenced = True",
    ),
    Defect(
        "closing does not cancel the fetch",
        "_flight.py",
        "        if self.state is not State.KEEPING:\n            self._scope.cancel()\n        self._settle()",
        "        self._settle()",
    ),
    Defect(
        "closing cancels a fetch that has returned",
        "_flight.py",
        "        if self._owner.closed or (late and (self.fenced or value is None)):",
        "        if self._owner.closed or self.fenced or (late and value is None):",
    ),
    Defect(
        "callers elsewhere are not woken at closing",
        "_flight.py",
        "            self._scope.cancel()\n        self._settle()\n        if self._freed is not None:",
        "            self._scope.cancel()\n        if self._freed is not None:",
    ),
    Defect(
        "the shared error's traceback grows with each caller",
        "_raising.py",
        "    set_traceback(error, traceback)\n",
        "",
    ),
    Defect(
        "the shared error keeps the context of the caller before",
        "_raising.py",
        "    set_context(error, context)\n    set_traceback",
        "    set_traceback",
    ),
    Defect(
        "a fetch that asks itself is not refused",
        "_flight.py",
        " and flight.home is home and flight.state not in (State.KEEPING, State.DONE):",
        " and flight.home is home and flight.state is State.CLAIMED:",
    ),
    Defect(
        "what a fetch leaves behind may never ask again",
        "_flight.py",
        " and flight.home is home and flight.state not in (State.KEEPING, State.DONE):",
        " and flight.home is home:",
    ),
    Defect(
        "the context of the caller reaches the fetch",
        "_owner.py",
        "        self._context.run(lambda: self._nursery.start_soon(self._guard, work, name=label))",
        "        self._nursery.start_soon(self._guard, work, name=label)",
    ),
    Defect(
        "a crash leaves the owner open",
        "_owner.py",
        "        self.close()\n        self._nursery.cancel_scope.cancel()",
        "        self._nursery.cancel_scope.cancel()",
    ),
    Defect(
        "a crash does not end the body",
        "_owner.py",
        "        self.close()\n        self._nursery.cancel_scope.cancel()",
        "        self.close()",
    ),
    Defect(
        "an alarm that was cancelled rings",
        "_owner.py",
        "        if self.callback is not None:\n            self.callback = None",
        "        if self.callback is not None:",
    ),
    Defect(
        "the checkpoint of a hit comes after the reading of the clock",
        "_deciding.py",
        "                if held is not None and now < held.good_until:\n                    await checkpoint()\n"
        "                    waited = True\n                    continue",
        "                if held is not None and now < held.good_until:\n                    await checkpoint()\n"
        "                    return held",
    ),
    Defect(
        "a cancelled caller starts a fetch",
        "_deciding.py",
        "                await checkpoint_if_cancelled()\n",
        "",
    ),
    Defect(
        "clear() does not fence what is in flight",
        "_keeping.py",
        "            self._flight.fence()\n",
        "",
    ),
    Defect(
        "a fenced value is kept",
        "_keeping.py",
        "            if flight.fenced:\n                held.generation = flight.generation",
        "            if False:\n                held.generation = flight.generation",
    ),
    Defect(
        "1 is True",
        "_deciding.py",
        "type(held) is type(stale) and ",
        "",
    ),
    Defect(
        "a stale lease is compared by value",
        "_deciding.py",
        "            return held.generation == stale.generation",
        "            return _same(held.value, stale.value)",
    ),
    Defect(
        "old callers of a fenced flight get the new value instead of their error",
        "_deciding.py",
        "            held = None if flight.fenced else self._console(now, permanent=flight.permanent)",
        "            held = self._console(now, permanent=flight.permanent)",
    ),
    Defect(
        "generations do not grow with clear()",
        "_keeping.py",
        "        self._generation += 1\n        self._held = None",
        "        self._held = None",
    ),
    Defect(
        "a cleared storage is read again",
        "_stash.py",
        '        """What is stored is not wanted any more."""\n        self.unread = False',
        '        """What is stored is not wanted any more."""\n        self.unread = self.unread',
    ),
    Defect(
        "a write does not wait for the clear before it",
        "_stash.py",
        "            self._last = call.ended",
        "            self._last = None",
    ),
    Defect(
        "a fetch that brings an expired value succeeds",
        "_life.py",
        "    if now >= expires_at and not stored:",
        "    if now > expires_at and not stored:",
    ),
    Defect(
        "a fenced failure moves the breaker",
        "_renewing.py",
        "        if not flight.fenced:\n            self._note_failure(flight, error)",
        "        if True:\n            self._note_failure(flight, error)",
    ),
    Defect(
        "an abandoned try through the open breaker uses it up",
        "_renewing.py",
        "            self._overridden = 0  # an abandoned try was none",
        "            pass",
    ),
    Defect(
        "permanent failures are counted by the breaker",
        "_caution.py",
        "            self._backoff.lift()\n            return True, ()\n",
        "            self._backoff.lift()\n",
    ),
    Defect(
        "clear() keeps the permanent failure",
        "_caution.py",
        "        self._permanent = None\n        self._permanent_hold.lift()",
        "        pass",
    ),
    Defect(
        "the leeway does not end with the value",
        "_renewing.py",
        "        if now >= held.expires_at and not age < self._policy.serve_expired_for:",
        "        if False:",
    ),
    Defect(
        "the breaker half-opens for nobody",
        "_caution.py",
        "            if admitted:\n                return self._move_breaker(breaker)",
        "            if False:\n                return self._move_breaker(breaker)",
    ),
    Defect(
        "keep_warm goes on without any use",
        "_renewing.py",
        "        if at < self._in_use.until(now):",
        "        if True:",
    ),
    Defect(
        "an interrupt in get_nowait() leaves its background refresh claimed",
        "_deciding.py",
        "    @enable_ki_protection\n    def _get_nowait(self)",
        "    def _get_nowait(self)",
    ),
    Defect(
        "an interrupt in changes() takes the alarm of keep_warm away",
        "_held.py",
        "    @enable_ki_protection\n    async def __anext__(self)",
        "    async def __anext__(self)",
    ),
    Defect(
        "an interrupted observer keeps a clear() from the share",
        "_renewing.py",
        "        settled = self._drop_here(None)\n        return",
        "        settled = self._drop_here(None)\n        self._owner.tell(Cleared(0))\n        return",
    ),
    Defect(
        "a clear() of the storage that is interrupted is given up",
        "_stash.py",
        '            if call.operation != "get":\n                call.scope',
        '            if call.operation == "set":\n                call.scope',
    ),
    Defect(
        "a write to the storage that is interrupted is given up",
        "_stash.py",
        '            if call.operation != "get":\n                call.scope',
        '            if call.operation == "clear":\n                call.scope',
    ),
    Defect(
        "a clear() of the share that is interrupted is given up",
        "_generation.py",
        "            with suppress(StoreDown):\n                await self._put()",
        "            with suppress(StoreDown):\n                pass",
    ),
    Defect(
        "an interrupt in the share leaves the storage without the new value",
        "_renewing.py",
        "        finally:\n            # Also where a Keyboard",
        "        except ZeroDivisionError:\n            raise\n        else:\n            # Also where a Keyboard",
    ),
    Defect(
        "a caller of get() that is interrupted while it waits is not counted out",
        "_resource.py",
        "    @enable_ki_protection\n    async def get(self)",
        "    async def get(self)",
    ),
    Defect(
        "an interrupt lets the sweeper of the memory engine sleep for ever",
        "stores/_memory_rates.py",
        "    @enable_ki_protection\n    def _set_cooldown(self",
        "    def _set_cooldown(self",
        ("test_memory_sweeps.py",),
    ),
    Defect(
        "an interrupt dates an entry of the memory engine twice",
        "stores/_memory_life.py",
        "    @enable_ki_protection\n    def _given_now(self",
        "    def _given_now(self",
        ("test_memory_sweeps.py",),
    ),
    Defect(
        "an interrupt in get() of a cache leaves its resolution claimed",
        "_keyed/_cache.py",
        "    @enable_ki_protection\n    async def get(self",
        "    async def get(self",
        ("test_keyed_interrupts.py",),
    ),
    Defect(
        "an interrupt splits an invalidation of all caches",
        "_keyed/_roster.py",
        "@enable_ki_protection\ndef _invalidate_everywhere(",
        "def _invalidate_everywhere(",
        ("test_keyed_interrupts.py",),
    ),
    Defect(
        "who waits for a fetch that unwinds waits for ever",
        "_flight.py",
        "with trio.move_on_after(self.home._fetch_timeout):",
        "with trio.CancelScope():",
    ),
    Defect(
        "a late value that cannot be kept is a second failure",
        "_flight.py",
        "            if not late:\n                self.unusable",
        "            if True:\n                self.unusable",
    ),
    Defect(
        "a background hook that raises tells no start",
        "_flight.py",
        "                self._may_start()  # a hook that raised: a fetch that failed at once\n",
        "",
    ),
    Defect(
        "refresh(stale) returns another value that is no good",
        "_deciding.py",
        "                    if now < rejected.good_until:\n                        return rejected",
        "                    if True:\n                        return rejected",
    ),
    Defect(
        "a None inside the leeway is handed out although the old value may still be served",
        "_deciding.py",
        "            return None if flight.fenced else self._console(now)",
        "            return None",
    ),
    Defect(
        "a refresh that joined a fetch which found the value in the share is answered",
        "_deciding.py",
        "            if flight.stored and not ours:",
        "            if False:",
        ("sharing/test_*.py",),
    ),
    Defect(
        "issued after it arrived, when the clock goes back",
        "_renewing.py",
        "value, min(flight.issued_at, arrived), arrived)",
        "value, flight.issued_at, arrived)",
    ),
    Defect(
        "the breaker's change is told after the fetch that caused it",
        "_renewing.py",
        "self._owner.tell(*events, self._succeeded(flight, held))",
        "self._owner.tell(self._succeeded(flight, held), *events)",
    ),
    Defect(
        "FetchFailed tells nothing of the life that is left",
        "_renewing.py",
        "        remaining = None if held is None else held.remaining(now)\n        duration",
        "        remaining = None\n        duration",
    ),
    Defect(
        "what is served inside the leeway is not told",
        "_renewing.py",
        "        self._owner.tell(ServedExpired(age, name=self._owner.name))\n",
        "        if age:\n            self._owner.tell(ServedExpired(age, name=self._owner.name))\n",
    ),
    Defect(
        "the age of what is served counts from the leeway",
        "_renewing.py",
        "age = max(0.0, now - held.expires_at)",
        "age = max(0.0, now - held.good_until)",
    ),
    Defect(
        "background refreshes do not keep min_interval",
        "_caution.py",
        "holds = (self._backoff, self._put_off, self._interval, self._permanent_hold)",
        "holds = (self._backoff, self._put_off, self._permanent_hold)",
    ),
    Defect(
        "a success does not end the backoff",
        "_caution.py",
        "        self.failures = self._setbacks = 0\n        self._backoff.lift()",
        "        self.failures = 0",
    ),
    Defect(
        "a clock that goes back prolongs a hold",
        "_caution.py",
        "        if self._until - now > self._length:",
        "        if False:",
    ),
    Defect(
        "a permanent failure leaves the backoff running",
        "_caution.py",
        "            self._setbacks = 0\n            self._backoff.lift()\n            return True, ()",
        "            return True, ()",
    ),
    Defect(
        "an owner that has lost its job writes",
        "_share.py",
        "and not _is_fenced(flight) and await job.still_ours():",
        "and not _is_fenced(flight):",
        ("sharing/test_*.py",),
    ),
    Defect(
        "a value of a peer that is older than the one held is taken",
        "_share.py",
        "        if held is not None and news.issued_at < held.issued_at:\n            return False\n",
        "",
        ("sharing/test_*.py",),
    ),
    Defect(
        "a job is never prolonged",
        "_job.py",
        "                await self.still_ours()\n            except StoreDown:",
        "                pass\n            except StoreDown:",
        ("sharing/test_*.py",),
    ),
    Defect(
        "a late resolution is kept although its key was deleted",
        "_keyed/_caching.py",
        "        if not flight.fenced:\n            if life:",
        "        if True:\n            if life:",
        ("test_keyed_*.py",),
    ),
    Defect(
        "a hit of a cache is no use",
        "_keyed/_caching.py",
        "        self._touch(key)\n        if now",
        "        if now",
        ("test_keyed_*.py",),
    ),
    Defect(
        "a failed renewal is tried again at once",
        "_keyed/_caching.py",
        "        if key not in self._flights and now >= failed_at + _RETRY:",
        "        if key not in self._flights:",
        ("test_keyed_*.py",),
    ),
    Defect(
        "the jitter of a cache prolongs lives",
        "_keyed/_caching.py",
        "self._ttl * (1.0 - random() * self._jitter)",
        "self._ttl * (1.0 + random() * self._jitter)",
        ("test_keyed_*.py",),
    ),
    Defect(
        "a None is remembered for longer than the ttl",
        "_keyed/_caching.py",
        "            return min(self._negative_ttl, self._ttl)",
        "            return self._negative_ttl",
        ("test_keyed_*.py",),
    ),
    Defect(
        "the deadline of an entry is inclusive for its tag",
        "_keyed/_entries.py",
        "        return sum(entry is not None and now < entry.deadline for entry in dropped)",
        "        return sum(entry is not None and now <= entry.deadline for entry in dropped)",
        ("test_keyed_*.py",),
    ),
    Defect(
        "an old value's tags take the new one",
        "_keyed/_entries.py",
        "            del keys[key]\n            if not keys:\n                del self._tagged[tag]",
        "            if not keys:\n                del self._tagged[tag]",
        ("test_keyed_*.py",),
    ),
    Defect(
        "a fenced start takes the probe's place",
        "_caution.py",
        "        if not fenced:\n            admitted",
        "        if True:\n            admitted",
    ),
)
