"""The provider against a pure model: random calls, failures, clears, cancellations and time, step by step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import trio
from hypothesis import HealthCheck, event, given, settings, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_renew import (
    AuthToken,
    BreakerOpen,
    BreakerPolicy,
    Event,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    RefreshPolicy,
    open_provider,
)

LIFE, FRACTION, FLOOR, THRESHOLD, COOLDOWN = 1000.0, 0.8, 30.0, 3, 30.0
LATENCY = 0.5


class Down(Exception):
    """What the source raises while it is down."""


@attrs.define
class Model:
    """What a provider does, without a task: fetches take no time of their own here, and are counted."""

    now: float = 0.0
    failing: bool = False
    fetches: int = 0
    expires: float | None = None
    due: float | None = None
    number: int = 0
    failures: int = 0
    open_until: float | None = None

    def admitted(self) -> bool:
        return self.open_until is None or self.now >= self.open_until

    def fetch(self) -> bool:
        """Fetch now: issued at the start, made at the end."""
        self.fetches += 1
        issued = self.now
        self.now += LATENCY
        if self.failing:
            self.failures += 1
            if self.open_until is not None or self.failures >= THRESHOLD:
                self.open_until = self.now + COOLDOWN
            return False
        self.failures = 0
        self.open_until = None
        self.expires = self.now + LIFE
        life = self.expires - issued
        self.due = max(issued, min(issued + FRACTION * life, self.expires - FLOOR))
        self.number = self.fetches
        return True

    def good(self) -> bool:
        return self.expires is not None and self.now < self.expires

    def get(self) -> tuple[str, object]:
        if self.good():
            assert self.due is not None
            served = self.number
            if self.now >= self.due and self.admitted():
                self.fetch()
                return "background", served
            return "hit", served
        if not self.admitted():
            return "refused", BreakerOpen
        return ("minted", self.number) if self.fetch() else ("error", Down)

    def refresh(self, stale: int | None) -> tuple[str, object]:
        if stale is not None and self.good() and self.number != stale:
            return "moved on", self.number
        if not self.admitted():
            return "refused", BreakerOpen
        return ("forced", self.number) if self.fetch() else ("error", Down)

    def clear(self) -> None:
        self.expires = self.due = None


OPERATIONS = st.sampled_from(
    [
        *[("get", None)] * 6,
        *[("get_nowait", None)] * 2,
        ("refresh", None),
        *[("stale", back) for back in (0, 1, 2)],
        ("clear", None),
        *[("sleep", seconds) for seconds in (1.0, 29.0, 31.0, 150.0, 600.0, 850.0, 850.0, 1001.0)],
        *[("fail", None)] * 2,
        *[("work", None)] * 2,
        *[("cancelled", None)] * 2,
    ]
)
seen: Counter[str] = Counter()


async def play(steps: list[tuple[str, Any]]) -> None:
    model = Model()
    running = most = 0
    events: list[Event] = []

    async def mint() -> AuthToken:
        nonlocal running, most
        running += 1
        most = max(most, running)
        number = starts.append(trio.current_time()) or len(starts)
        try:
            await trio.sleep(LATENCY)
        finally:
            running -= 1
        if model_failing[0]:
            raise Down
        return AuthToken.expiring_in(str(number), LIFE)

    starts: list[float] = []
    model_failing = [False]
    policy = RefreshPolicy(
        refresh_at=FRACTION, refresh_floor=FLOOR, jitter=0.0, leeway=0.0, min_interval=0.0, retry=None
    )
    async with open_provider(
        mint, eager=False, policy=policy, breaker=BreakerPolicy(THRESHOLD, COOLDOWN), observe=events.append
    ) as provider:

        async def call(what: str, method: Any, *arguments: Any) -> tuple[str, object]:
            try:
                token = await method(*arguments)
            except (Down, BreakerOpen) as exc:
                return what, type(exc)
            return what, int(token.secret.reveal())

        for operation, argument in steps:
            # Whole instants: what the model thinks of a boundary is what the float says.
            model.now = trio.current_time()
            if operation == "get":
                kind, expected = model.get()
                assert (await call(kind, provider.get))[1] == expected
            elif operation == "get_nowait":
                if model.good():
                    kind, expected = model.get()
                    assert int(provider.get_nowait().secret.reveal()) == expected
                else:
                    kind = "would block"
                    try:
                        provider.get_nowait()
                    except trio.WouldBlock:
                        pass
                    else:
                        raise AssertionError("an expired value was served")
            elif operation in ("refresh", "stale"):
                held = provider.status().held
                stale = None
                if operation == "stale" and held:
                    stale = max(0, model.number - argument)
                if stale == model.number and model.open_until is not None:
                    continue  # the one try through an open breaker has tests of its own
                kind, expected = model.refresh(stale)
                token = None if stale is None else next((t for n, t in tokens.items() if n == stale), AuthToken("x"))
                assert (await call(kind, provider.refresh, token))[1] == expected
            elif operation == "clear":
                kind = "clear"
                model.clear()
                await provider.clear()
            elif operation == "sleep":
                kind = "sleep"
                await trio.sleep(argument)
            elif operation == "cancelled":
                # The caller leaves half way; the fetch goes on without it.
                kind = "cancelled"
                if not model.good() and model.admitted():
                    model.fetch()
                elif model.good():
                    kind = "cancelled " + model.get()[0]
                with trio.move_on_after(LATENCY / 2):
                    await call(kind, provider.get)
            else:
                kind = operation
                model.failing = model_failing[0] = operation == "fail"
            seen[kind] += 1
            event(kind)
            # Let what runs in the background land before looking again.
            with trio.fail_after(LATENCY * 2):
                while provider.status().fetching:
                    await trio.sleep(LATENCY / 2)
            await wait_all_tasks_blocked()
            status = provider.status()
            if status.held and status.good:
                token_now = provider._held
                assert token_now is not None
                tokens[int(token_now.value.secret.reveal())] = token_now.value
            assert len(starts) == model.fetches
            assert status.held == (model.expires is not None)
            assert status.failures == model.failures
            assert most <= 1
            assert status.waiting == 0
    ends = sum(isinstance(e, FetchSucceeded | FetchFailed | FetchAbandoned) for e in events)
    assert ends == sum(isinstance(e, FetchStarted) for e in events) == model.fetches
    assert isinstance(events[-1], OwnerClosed)


tokens: dict[int, AuthToken] = {}


@given(st.lists(OPERATIONS, min_size=8, max_size=40))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_the_provider_does_what_the_model_does(steps: list[tuple[str, Any]]) -> None:
    tokens.clear()
    trio.run(play, steps, clock=MockClock(autojump_threshold=0))


def test_the_interesting_cases_did_occur() -> None:
    test_the_provider_does_what_the_model_does()
    total = sum(seen.values())
    for kind in ("background", "minted", "error", "refused", "moved on", "forced", "cancelled"):
        assert seen[kind] >= total / 200, (kind, seen)
