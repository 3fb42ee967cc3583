"""The workers: they share one provider, use leases, and answer a 401 with ``refresh(stale=...)``.

Invariants:

* A request has failed if it did not end with a 200, after at most one refresh.
* A failure is *ours* if one token was usable from the start of the request to its end: then nothing excuses it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import httpx2
import trio

from .._errors import RenewError

if TYPE_CHECKING:
    from random import Random

    from .._provider import RefreshingProvider
    from .._values import AuthToken
    from .remote import Remote

__all__ = ("Load", "percentile")

#: Requests per second of all workers together: more would measure the machine, not the library.
RATE = 400.0
#: Seconds of requests that the live figures speak of.
RECENT = 2.0


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the (sorted) values lies; 0 without any."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Load:
    """What the workers do, and what came of it.

    Args:
      provider: Where they get their token.
      remote: What they ask.
      workers: How many there are.
      random: Decides how long each rests between two requests.
    """

    def __init__(self, provider: RefreshingProvider[AuthToken], remote: Remote, workers: int, random: Random) -> None:
        self.ok = 0
        self.rejected = 0
        self.answered = 0
        self.failed = 0
        self.ours = 0
        self.waited = 0
        self.running = 0
        self.latencies: list[float] = []
        self.recent: deque[tuple[float, float]] = deque()
        self._provider = provider
        self._remote = remote
        self._workers = workers
        self._random = random
        self._stopped = trio.Event()
        self._idle = trio.Event()
        self._quiet = trio.Event()
        self._busy = 0
        self._success = trio.Event()
        self._gate = trio.Event()
        self._gate.set()

    async def pause(self) -> None:  # noqa: ASYNC910 - it waits only where there is something to wait for
        """Let no worker start another request, and wait until those that run are done."""
        self._gate = trio.Event()
        if self._busy:
            await self._quiet.wait()

    def go_on(self) -> None:
        """Let them work again."""
        self._gate.set()

    async def stop(self, patience: float) -> int:
        """Let all workers finish, and say how many have not after that many seconds."""
        self._stopped.set()
        self.go_on()
        with trio.move_on_after(patience):  # noqa: ASYNC912 - it waits only where there is something to wait for
            if self.running:
                await self._idle.wait()
        return self.running  # noqa: ASYNC910 - as above

    async def success(self) -> None:
        """Wait for the next request that succeeds."""
        await self._success.wait()

    async def work(self) -> None:
        """One worker: a request, a rest, and again."""
        rest = self._workers / RATE
        self.running += 1
        try:
            await self._rest(self._random.uniform(0, rest))
            while not self._stopped.is_set():
                await self._gate.wait()
                self._busy += 1
                try:
                    took = await self._request()
                finally:
                    self._busy -= 1
                    if not self._busy:
                        self._quiet.set()
                        self._quiet = trio.Event()
                # A machine that is slow gets less to do: it is not what is measured here.
                await self._rest(self._random.uniform(0.5, 1.5) * max(rest, 4 * min(took, 0.25)))
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def _rest(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._stopped.wait()

    async def _request(self) -> float:
        """One request: gives the seconds that it took."""
        provider, started, began = self._provider, time.time(), trio.current_time()
        status = provider.status()
        if status.good:
            self.waited = max(self.waited, status.waiting)
        try:
            lease = await provider.lease()
            answer = await self._remote.use(lease.value)
            if answer == 401:
                self.rejected += 1
                answer = await self._remote.use(await provider.refresh(stale=lease))
                self.answered += answer == 200
        except (RenewError, httpx2.HTTPError):
            answer = 0
        took = trio.current_time() - began
        self._note(answer == 200, started, took)
        return took  # noqa: ASYNC910 - what failed was one

    def _note(self, ok: bool, started: float, took: float) -> None:
        now = time.time()
        if ok:
            self.ok += 1
            self._success.set()
            self._success = trio.Event()
        else:
            self.failed += 1
            self.ours += self._remote.was_usable(started, now)
        self.latencies.append(took)
        self.recent.append((now, took))
        while self.recent[0][0] < now - RECENT:
            self.recent.popleft()

    def pulse(self) -> tuple[float, float, float, float]:
        """Requests per second, and the 50th, 95th and 99th percentile of their latency, of the last seconds."""
        since = time.time() - RECENT
        recent = sorted(took for at, took in self.recent if at >= since)
        return (len(recent) / RECENT, percentile(recent, 0.5), percentile(recent, 0.95), percentile(recent, 0.99))
