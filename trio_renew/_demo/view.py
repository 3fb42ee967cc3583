"""What is shown while the demo runs: a live view on a terminal, plain lines elsewhere, nothing for ``--json``."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .._events import (
    BreakerChanged,
    Cleared,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    OwnerClosed,
    ServedExpired,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .._events import Event
    from .._held import Status
    from .._provider import RefreshingProvider
    from .._values import AuthToken
    from .load import Load

__all__ = ("LiveView", "NoView", "PlainView", "View", "in_words")

_EVENTS = 9
_GENERATIONS = 6
_WIDTH = 60


class View(Protocol):
    """What the scenes tell."""

    def scene(self, name: str, text: str) -> None:
        """A scene begins."""

    def event(self, event: Event) -> None:
        """The provider has told something."""

    async def run(self, provider: RefreshingProvider[AuthToken], load: Load) -> None:
        """Show what goes on, until cancelled."""


def in_words(event: Event) -> str:
    """An event in a few words."""
    match event:
        case FetchStarted():
            return f"fetch started ({event.reason})"
        case FetchSucceeded():
            life = "no end" if event.remaining is None else f"{event.remaining:.2f} s to live"
            return f"fetch succeeded in {event.duration:.2f} s: generation {event.generation}, {life}"
        case FetchFailed():
            error = type(event.error).__name__
            held = "nothing held" if event.remaining is None else f"{event.remaining:.2f} s left of the old one"
            return f"fetch failed after {event.duration:.2f} s: {error}, {held}"
        case FetchAbandoned():
            return f"fetch abandoned ({event.reason})"
        case BreakerChanged():
            return f"breaker: {breaker_in_words(event.old)} -> {breaker_in_words(event.new)}"
        case ServedExpired():
            return f"served a token past its best, {event.age:.2f} s after its end"
        case Cleared():
            return f"cleared: generation {event.generation}"
        case OwnerClosed():
            return "closed"
        case _:
            return type(event).__name__


def breaker_in_words(state: object) -> str:
    """The state of a breaker, without its numbers."""
    return {"Closed": "closed", "Open": "open", "HalfOpen": "half-open"}.get(type(state).__name__, "none")


class _Told:
    """The latest events, each with its time; the same kind twice in a row is counted."""

    def __init__(self) -> None:
        self.started = trio.current_time()
        self.latest: deque[tuple[float, str, int]] = deque(maxlen=_EVENTS)
        self._kind: type[object] | None = None

    def add(self, event: Event) -> bool:
        """Whether it is another kind than the last one."""
        is_new = type(event) is not self._kind
        self._kind = type(event)
        count = 1 if is_new else self.latest.pop()[2] + 1
        self.latest.append((trio.current_time() - self.started, in_words(event), count))
        return is_new


class NoView:
    """Shows nothing."""

    def scene(self, name: str, text: str) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""

    async def run(self, provider: RefreshingProvider[AuthToken], load: Load) -> None:
        """Nothing."""
        await trio.sleep_forever()


class PlainView:
    """Lines, for logs and pipes.

    Args:
      console: Where they go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = _Told()

    def _line(self, text: str) -> None:
        at = trio.current_time() - self._told.started
        self._console.print(f"{at:6.2f} s  {text}", highlight=False, markup=False, soft_wrap=True)

    def scene(self, name: str, text: str) -> None:
        """Say that a scene begins."""
        self._line(f"== {name}: {text}")

    def event(self, event: Event) -> None:
        """Say it, once for a row of the same kind."""
        if self._told.add(event):
            self._line(in_words(event))

    async def run(self, provider: RefreshingProvider[AuthToken], load: Load) -> None:
        """Say every two seconds how it goes."""
        while True:
            await trio.sleep(2)
            self._line(_pulse_in_words(provider.status(), load))


def _pulse_in_words(status: Status, load: Load) -> str:
    rate, p50, p95, p99 = load.pulse()
    latencies = " / ".join(f"{1000 * value:.0f}" for value in (p50, p95, p99))
    return (
        f"{rate:.0f} requests/s, p50/p95/p99 {latencies} ms, ok {load.ok}, 401 {load.rejected}, failed {load.failed}, "
        f"waiting {status.waiting}, breaker {breaker_in_words(status.breaker)}"
    )


class LiveView:
    """A picture that moves.

    Args:
      console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = _Told()
        self._scene = ("starting", "the server starts")
        self._lives: deque[Status] = deque(maxlen=_GENERATIONS)

    def scene(self, name: str, text: str) -> None:
        """Another headline."""
        self._scene = (name, text)

    def event(self, event: Event) -> None:
        """Another line among the events."""
        self._told.add(event)

    async def run(self, provider: RefreshingProvider[AuthToken], load: Load) -> None:
        """Paint ten times a second."""
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self.paint(provider.status(), load, time.time()), refresh=True)
                await trio.sleep(0.1)

    def paint(self, status: Status, load: Load, now: float) -> RenderableType:
        """One picture."""
        if status.held and (not self._lives or self._lives[-1].generation != status.generation):
            self._lives.append(status)
        elapsed = trio.current_time() - self._told.started
        headline = Text.assemble((f"{elapsed:5.1f} s  {self._scene[0]}", "bold"), f"  {self._scene[1]}")
        events = Text("\n".join(self._event_lines()) or "nothing yet")
        return Group(
            headline,
            Panel(self._timeline(now), title="generations of the token", title_align="left"),
            Panel(Text(_pulse_in_words(status, load)), title="load", title_align="left"),
            Panel(events, title="events", title_align="left"),
        )

    def _event_lines(self) -> list[str]:
        return [f"{at:6.2f} s  {text}{f'  (x{count})' if count > 1 else ''}" for at, text, count in self._told.latest]

    def _timeline(self, now: float) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        if not self._lives:
            return Text("nothing held")
        begin = self._lives[0].issued_at or now
        end = max([now, *(life.expires_at or now for life in self._lives)])
        scale = _WIDTH / max(end - begin, 0.001)
        for life in self._lives:
            marks = [life.issued_at or begin, life.due_at or end, life.expires_at or end]
            first, due, last = (round((mark - begin) * scale) for mark in marks)
            bar = Text(" " * first)
            bar.append("━" * (due - first), "green")
            bar.append("━" * (last - due), "yellow")
            at = round((now - begin) * scale)
            if first <= at < last:
                bar.stylize("reverse", at, at + 1)
            table.add_row(f"{life.generation:3d}", bar)
        return table
