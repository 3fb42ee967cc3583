"""The script: what is done to the token endpoint, and what must hold meanwhile.

Invariants:

* Lengths are in lives of a token, so that a shorter run is the same play at a higher speed.
* A scene that counts token requests begins with a fresh token: no renewal of its own falls into it unless it is meant.
* What the server can count is taken from the server.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import trio

from .._errors import RenewError
from .._events import BreakerChanged, FetchSucceeded
from .._policy.backoff import Backoff
from .._policy.breaker import BreakerPolicy
from .._policy.schedule import RefreshPolicy
from .._provider import open_provider
from .load import Load, percentile
from .remote import Remote, open_remote
from .view import breaker_in_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .._events import Event
    from .._provider import RefreshingProvider
    from .._values import AuthToken
    from .report import Report
    from .view import View

__all__ = ("LIVES", "play")

#: How many lives of a token the whole script takes, about.
LIVES = 9.3

_CALLERS = 500
_THRESHOLD = 5
_COOLDOWN = 0.3
# A scheduler of a busy machine may be late by that much, in seconds.
_SLACK = 1.0


def _policy(life: float) -> RefreshPolicy:
    return RefreshPolicy(
        refresh_at=0.6,
        refresh_floor=0.3 * life,
        jitter=0.05,
        leeway=0.1 * life,
        min_interval=0.1 * life,
        retry=Backoff(initial=0.1 * life, multiplier=2.0, maximum=0.4 * life, jitter=0.5),
    )


def most_within(times: list[float], window: float) -> int:
    """The largest number of instants that lie within one window of that length."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most


class Stage:
    """One performance of the script."""

    def __init__(
        self, remote: Remote, provider: RefreshingProvider[AuthToken], load: Load, report: Report, view: View
    ) -> None:
        self.remote = remote
        self.provider = provider
        self.load = load
        self.report = report
        self.view = view
        self.life = remote.settings.lifetime
        self.random = random.Random(report.seed)
        self.hanging = 0
        self.breaker_changes: list[str] = []

    @asynccontextmanager
    async def scene(self, name: str, text: str) -> AsyncGenerator[dict[str, Any], None]:
        """Play a scene; afterwards the dict has what the server and the workers counted in it."""
        self.view.scene(name, text)
        before = (await self.remote.faults())["counters"]
        started, failed, ok = trio.current_time(), self.load.failed, self.load.ok
        seen: dict[str, Any] = {"scene": name}
        yield seen
        after = (await self.remote.faults())["counters"]
        for key in ("token_requests", "tokens_issued", "tokens_refused", "api_ok", "api_revoked", "api_expired"):
            seen[key] = after[key] - before[key]
        seen["times"] = after["token_request_times"][before["token_requests"] :]
        seen["requests_ok"] = self.load.ok - ok
        seen["requests_failed"] = self.load.failed - failed
        seen["seconds"] = round(trio.current_time() - started, 3)
        self.report.scenes.append({key: value for key, value in seen.items() if key != "times"})

    async def _fresh_token(self) -> None:
        with trio.move_on_after(5):
            while True:
                try:
                    await self.provider.refresh()
                except (RenewError, httpx2.HTTPError):
                    await trio.sleep(0.05)
                else:
                    return

    def _caused(self, seen: dict[str, Any]) -> int:
        """How many token requests there were before the renewal of what the first of them brought."""
        times: list[float] = seen["times"]
        return sum(at < times[0] + 0.5 * self.life for at in times)

    async def steady(self) -> None:
        """Nothing is wrong."""
        async with self.scene("steady state", "one renewal per token, ahead of time") as seen:
            await trio.sleep(2.3 * self.life)
        tokens = max(1, seen["tokens_issued"])
        most = most_within(seen["times"], 0.4 * self.life)
        promise = self.report.promise
        each = seen["token_requests"] / tokens
        promise("fetches per token, in steady state", "1", each, each == 1)
        promise("token requests within 0.4 lives, in steady state", "<= 1", most, most <= 1)
        failed = seen["requests_failed"]
        promise("requests failed in steady state", "0", failed, failed == 0, "workers")

    async def slow(self) -> None:
        """The endpoint takes its time, but a renewal starts early enough."""
        latency = 0.2 * self.life
        async with self.scene("slow endpoint", f"each token request takes {latency:.2f} s") as seen:
            self.load.waited = 0
            await self.remote.faults(latency=latency)
            await trio.sleep(1.4 * self.life)
            waited = self.load.waited
        promise = self.report.promise
        promise("token requests at a slow endpoint", ">= 1", seen["token_requests"], seen["token_requests"] >= 1)
        promise("callers who waited for it while a token was good", "0", waited, waited == 0, "workers")

    async def short_outage(self) -> None:
        """The endpoint is down, and up again before the token ends."""
        await self._fresh_token()
        async with self.scene("short outage", "the endpoint is down while the token is good") as seen:
            ours = self.load.ours
            await self.remote.faults(outage=True)
            minted_at = self.remote.ledger[-1].minted_at
            await trio.sleep(max(0.0, minted_at + 0.75 * self.life - time.time()))
        await trio.sleep(0.25 * self.life)
        ours = self.load.ours - ours
        # They are due from 0.55 lives on, and pause for at least 0.05, 0.1 and 0.2 lives after each failure.
        tries = sum(at < minted_at + 0.85 * self.life for at in seen["times"])
        promise = self.report.promise
        promise("token requests while the endpoint was down and the token good", "1 to 3", tries, 1 <= tries <= 3)
        promise("requests failed during it", "0", ours, ours == 0, "workers")

    async def long_outage(self) -> None:
        """The endpoint is down for longer than the token lives."""
        await self._fresh_token()
        length = 1.8
        self.breaker_changes.clear()
        async with self.scene("long outage", "the endpoint is down for longer than the token lives") as seen:
            await self.remote.faults(outage=True)
            await trio.sleep(length * self.life)
        ended = time.time()
        cooldown = _COOLDOWN * self.life
        with trio.move_on_after(cooldown + _SLACK):
            await self.load.success()
        recovery = time.time() - ended
        await trio.sleep(0.4 * self.life)
        most = _THRESHOLD + math.ceil(length / _COOLDOWN)
        tries = seen["tokens_refused"]
        promise = self.report.promise
        promise("token requests during a long outage", f"<= {most}", tries, tries <= most)
        course = ", ".join(dict.fromkeys(self.breaker_changes))
        full = "open, half-open, closed"
        promise("the breaker's course", full, course, course == full, "workers")
        bound, kept = f"< {cooldown + _SLACK:.2f}", recovery < cooldown + _SLACK
        promise("seconds from its end to the first success", bound, recovery, kept, "workers")

    async def revocation(self) -> None:
        """All tokens are revoked at once: every worker gets a 401."""
        await self.load.pause()
        # Time for the others to come to the gate: then all of them go on at once.
        await trio.sleep(0.2 * self.life)
        await self._fresh_token()
        rejected, answered = self.load.rejected, self.load.answered
        async with self.scene("revocation", "all tokens are revoked at once") as seen:
            await self.remote.faults(latency=0.1 * self.life)
            await self.remote.revoke_all()
            self.load.go_on()
            await trio.sleep(0.3 * self.life)
            await self.load.pause()
        self.load.go_on()
        rejected, answered = self.load.rejected - rejected, self.load.answered - answered
        promise = self.report.promise
        promise("requests rejected by the revocation", ">= 1", seen["api_revoked"], seen["api_revoked"] >= 1)
        caused = self._caused(seen)
        promise("token requests that it caused", "1", caused, caused == 1)
        seen_answered, kept = f"{answered} of {rejected}", answered == rejected
        promise("rejected requests that then succeeded", "all", seen_answered, kept, "workers")

    async def cancellations(self) -> None:
        """Hundreds of callers want a token that is being fetched, and are cancelled at random moments."""
        for name, longest in (("callers of whom some leave", 0.4), ("callers who all leave", 0.15)):
            # In the second round all leave before the fetch is done: its value is kept, nobody has to ask again.
            await self.load.pause()
            await self._fresh_token()
            latency = 0.2 * self.life
            text = "each is cancelled at a random moment of its own, while the token is fetched"
            async with self.scene(f"{_CALLERS} {name}", text) as seen:
                await self.remote.faults(latency=latency)
                await self.provider.clear()
                self.remote.end_tokens()
                left = await self._impatient(longest * self.life)
                await self.provider.get()
            self.load.go_on()
            tries = self._caused(seen)
            self.report.promise(f"token requests for {_CALLERS} {name}", "1", tries, tries == 1)
            self.report.figures[f"{name}: served"] = left["served"]
            self.report.figures[f"{name}: cancelled"] = left["cancelled"]

    async def _impatient(self, longest: float) -> Counter[str]:
        ended: Counter[str] = Counter()

        async def caller(patience: float) -> None:
            with trio.move_on_after(patience) as scope:
                await self.provider.get()
            ended["cancelled" if scope.cancelled_caught else "served"] += 1

        with trio.move_on_after(longest + 2 * _SLACK):
            async with trio.open_nursery() as nursery:
                for _ in range(_CALLERS):
                    nursery.start_soon(caller, self.random.uniform(0, longest))
        self.hanging += _CALLERS - ended.total()
        return ended

    def told(self, event: Event) -> None:
        """Hear what the provider tells."""
        self.report.events[type(event).__name__] = self.report.events.get(type(event).__name__, 0) + 1
        if isinstance(event, BreakerChanged):
            self.breaker_changes.append(breaker_in_words(event.new))

    async def play(self) -> None:
        """All scenes, and what holds for the whole of them."""
        await self.steady()
        await self.slow()
        await self.short_outage()
        await self.long_outage()
        await self.revocation()
        await self.cancellations()
        self.hanging += await self.load.stop(5 * _SLACK)
        await self._whole()

    async def _whole(self) -> None:
        load, promise = self.load, self.report.promise
        status, counters = self.provider.status(), (await self.remote.state())["counters"]
        at_once = counters["token_requests_at_once"]
        promise("token requests at the same time, ever", "1", at_once, at_once == 1)
        promise("requests failed while a token was good", "0", load.ours, load.ours == 0, "workers")
        hanging = self.hanging + status.waiting
        promise("callers left hanging", "0", hanging, hanging == 0, "workers")
        latencies = sorted(load.latencies)
        self.report.figures |= {
            "requests": load.ok + load.failed,
            "requests failed while no token could be had": load.failed - load.ours,
            "generations": status.generation,
            "token requests": counters["token_requests"],
            **{f"latency p{share:g} ms": round(1000 * percentile(latencies, share / 100), 1) for share in (50, 95, 99)},
        }


async def _ask(remote: Remote) -> None:  # noqa: ASYNC910 - what failed was one
    try:
        await remote.ask_for_token()
    except httpx2.HTTPStatusError:
        pass


async def _sabotage(remote: Remote) -> None:
    """Ask for tokens beside the provider, two at a time: the table must notice."""
    while True:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, remote)
            nursery.start_soon(_ask, remote)
        await trio.sleep(0.1 * remote.settings.lifetime)


async def play(report: Report, view: View, *, sabotage: bool = False) -> None:
    """Run the whole script once, and fill the report."""
    life = report.seconds / LIVES
    stage: Stage | None = None
    random.seed(report.seed)

    def observe(event: Event) -> None:
        if isinstance(event, FetchSucceeded):
            remote.usable()
        view.event(event)
        if stage is not None:
            stage.told(event)

    async with open_remote(life, report.workers) as remote:
        async with open_provider(
            remote.mint,
            policy=_policy(life),
            breaker=BreakerPolicy(threshold=_THRESHOLD, cooldown=_COOLDOWN * life),
            fetch_timeout=max(2.0, life),
            observe=observe,
            name="demo",
        ) as provider:
            load = Load(provider, remote, report.workers, random.Random(report.seed))
            stage = Stage(remote, provider, load, report, view)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(view.run, provider, load)
                if sabotage:
                    nursery.start_soon(_sabotage, remote)
                for _ in range(report.workers):
                    nursery.start_soon(load.work)
                await stage.play()
                nursery.cancel_scope.cancel()
        before = (await remote.state())["counters"]["token_requests"]
        await trio.sleep(0.2 * life)
        after = (await remote.state())["counters"]["token_requests"]
    report.promise("token requests after closing", "0", after - before, after == before)
