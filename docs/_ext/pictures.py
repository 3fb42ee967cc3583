"""Sphinx extension: draws the pictures of the contract from the code that they are about, at build time.

``flight.svg``: scenarios are played on real resources while every move of a flight from one state to another is
recorded; the picture shows what was seen. ``life.svg``: what the functions of the policy say about lives of different
lengths. ``decision.md``: what ``decide`` answers, for each kind of state.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from html import escape
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trio_renew import AuthToken, RefreshPolicy, RenewError, open_resource
from trio_renew._flight import Flight, State
from trio_renew._policy.schedule import due_at, soft_expiry
from trio_renew.lowlevel import CacheState, Closed, Open, decide, open_resource_with

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from sphinx.application import Sphinx

HERE = Path(__file__).parent.parent / "_generated"
STYLE = (
    "text{font:14px sans-serif;fill:#333}.l{font-size:12px}.b{font-weight:bold}"
    ".h{stroke:#fff;stroke-width:5;paint-order:stroke}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.h{stroke:#131416}}"
)

Edge = tuple[State, State]


# The flight: seen, not drawn


@contextmanager
def recording(seen: list[Edge]) -> Generator[None, None, None]:
    """Write down each move of each flight, in order."""
    slot: Any = Flight.__dict__["state"]

    def move(flight: Any, new: State) -> None:
        if hasattr(flight, "settled"):
            seen.append((slot.__get__(flight), new))
        slot.__set__(flight, new)

    Flight.state = property(slot.__get__, move)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Flight.state = slot


async def value() -> str:
    await trio.sleep(1)
    return "value"


async def failure() -> str:
    await trio.sleep(1)
    raise OSError("down")


async def stubborn() -> str:
    with trio.CancelScope(shield=True):
        await trio.sleep(3)
    return "late"


async def quietly(ask: Callable[[], Awaitable[object]], seconds: float = 60) -> None:
    with trio.move_on_after(seconds):
        try:
            await ask()
        except (OSError, RenewError):
            pass


async def it_returns() -> None:
    async with open_resource(value) as resource:
        await quietly(resource.get)


async def it_raises() -> None:
    async with open_resource(failure) as resource:
        await quietly(resource.get)


async def the_claim_is_released() -> None:
    async with open_resource_with(trio.sleep_forever, value) as resource:
        await quietly(resource.get, 1)


async def time_is_up() -> None:
    async with open_resource(value, fetch_timeout=0.5) as resource:
        await quietly(resource.get)
        await trio.sleep(1)


async def it_returns_too_late() -> None:
    async with open_resource(stubborn, fetch_timeout=1) as resource:
        await quietly(resource.get)
        await trio.sleep(5)


async def the_last_caller_leaves() -> None:
    for thousandths in range(200):
        async with open_resource(value, when_abandoned="cancel") as resource:
            await quietly(resource.get, thousandths / 4000)


class Creeping(trio.abc.Clock):
    """A clock that goes on a little with each look at it, and jumps where Trio would sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """A millisecond later."""
        self.now += 0.001
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """None at all."""
        self.now = max(self.now, min(deadline, self.now + 60))
        return 0.0


#: What is played, and what its new moves are called. A move that nobody names, or a name too many, fails the build.
PLAYS: list[tuple[Callable[[], Any], list[str]]] = [
    (it_returns, ["the fetch starts", "it has returned", "written down, callers answered"]),
    (it_raises, ["it has raised, or the owner closes"]),
    (the_claim_is_released, ["the hook was cancelled, or has raised"]),
    (time_is_up, ["fetch_timeout, or the last caller has left", "it has unwound"]),
    (it_returns_too_late, ["it has returned all the same"]),
    (the_last_caller_leaves, ["the last caller has left"]),
]


def explore() -> dict[Edge, str]:
    """Play, and give each move that was seen its name."""
    names: dict[Edge, str] = {}
    for play, causes in PLAYS:
        seen: list[Edge] = []
        with recording(seen):
            trio.run(play, clock=Creeping())
        new = [edge for edge in dict.fromkeys(seen) if edge not in names]
        if len(new) != len(causes):
            raise RuntimeError(f"{play.__name__} made the new moves {new}, but there are names for {causes}")
        names.update(zip(new, causes, strict=True))
    return names


def flight_svg() -> str:
    """The states of a flight and the moves between them."""
    names = explore()
    columns = [State.CLAIMED, State.FETCHING, State.KEEPING, State.DONE]
    at = {state: (90 + 240 * column, 190) for column, state in enumerate(columns)}
    at |= {state: (450 + 240 * extra, 340) for extra, state in enumerate(s for s in State if s not in at)}
    parts = []
    for (old, new), name in names.items():
        (x1, y1), (x2, y2) = at[old], at[new]
        # Straight between neighbours; in a bow over, or under, what lies between.
        far = y1 == y2 and abs(x2 - x1) > 240
        bow = -0.42 * abs(x2 - x1) if far else 0
        if old is State.FETCHING and far:
            bow = -150
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2 + bow
        sx, sy = toward((x1, y1), (cx, cy))
        tx, ty = toward((x2, y2), (cx, cy))
        parts.append(f'<path d="M{sx:.0f},{sy:.0f} Q{cx:.0f},{cy:.0f} {tx:.0f},{ty:.0f}" class="e"/>')
        lx, ly = (sx + 2 * cx + tx) / 4, (sy + 2 * cy + ty) / 4 - 8
        for number, line in enumerate(reversed(broken(name, 44 if far else 18))):
            parts.append(
                f'<text x="{lx:.0f}" y="{ly - 15 * number:.0f}" class="l h" text-anchor="middle">{line}</text>'
            )
    for state, (x, y) in at.items():
        parts.append(f'<rect x="{x - 55}" y="{y - 20}" width="110" height="40" rx="8" class="n"/>')
        parts.append(f'<text x="{x}" y="{y + 5}" class="b" text-anchor="middle" style="fill:#fff">{state.name}</text>')
    marker = (
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="#888"/></marker></defs>'
    )
    style = f"{STYLE}.n{{fill:#3a6ea5}}.e{{fill:none;stroke:#888;stroke-width:1.5;marker-end:url(#a)}}"
    return svg(920, 380, style, marker + "".join(parts))


def toward(center: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Where the line from the middle of a box to another point leaves the box."""
    dx, dy = other[0] - center[0], other[1] - center[1]
    length = hypot(dx, dy)
    scale = min(57 / abs(dx) if dx else 99, 22 / abs(dy) if dy else 99) if length else 0
    return center[0] + dx * scale, center[1] + dy * scale


def broken(text: str, width: int) -> list[str]:
    """The text in lines of about that many characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [escape(line) for line in lines]


# The life of a token


def life_svg() -> str:
    """When a token is renewed, and until when it is served, under the default policy."""
    policy = RefreshPolicy()
    grace = attrs.evolve(policy, serve_expired_for=300.0)
    assert isinstance(policy.jitter, float)
    rows = [
        (30.0, policy, "30 s"),
        (120.0, policy, "2 min"),
        (600.0, policy, "10 min"),
        (3600.0, grace, "1 h, grace 5 min"),
    ]
    left, width, parts = 130, 640, []
    for number, (life, used, title) in enumerate(rows):
        y = 60 + 62 * number
        first, last = due_at(used, 0.0, life, policy.jitter), due_at(used, 0.0, life, 0.0)
        soft = soft_expiry(used, 0.0, life)
        assert first is not None
        assert last is not None
        assert soft is not None
        end = life + used.serve_expired_for
        scale = width / (life * 1.1)
        spans = [(0.0, first, "good"), (first, last, "jitter"), (last, soft, "due"), (soft, life, "leeway")]
        spans += [(life, end, "grace")] if end > life else []
        for start, stop, kind in spans:
            x = left + start * scale
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{(stop - start) * scale:.1f}" height="22" class="{kind}"/>')
        parts.append(f'<text x="{left - 10}" y="{y + 16}" text-anchor="end">{title}</text>')
        for instant, low in ((first, False), (last, True), (soft, False), (life, True)):
            x, dy = left + instant * scale, 36 if low else -4
            parts.append(f'<text x="{x:.1f}" y="{y + dy}" class="l" text-anchor="middle">{instant:g}</text>')
    legend = [
        ("good", "served"),
        ("jitter", "due from a random instant in here"),
        ("due", "served, and renewed in the background"),
        ("leeway", "callers wait for a fetch; served if it fails"),
        ("grace", "served if a fetch fails (serve_expired_for)"),
    ]
    for number, (kind, text) in enumerate(legend):
        x, y = left + 330 * (number % 2), 320 + 24 * (number // 2)
        parts.append(f'<rect x="{x}" y="{y}" width="16" height="14" class="{kind}"/>')
        parts.append(f'<text x="{x + 24}" y="{y + 12}" class="l">{text}</text>')
    style = STYLE + ".good{fill:#4c9f70}.jitter{fill:#8fbf6a}.due{fill:#e0c050}"
    style += ".leeway{fill:#e08a3c}.grace{fill:#c8553d;opacity:.6}"
    parts.insert(0, f'<text x="{left}" y="20" class="b">seconds since the token was issued</text>')
    return svg(920, 400, style, "".join(parts))


def svg(width: int, height: int, style: str, content: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return f"{head}<style>{style}</style>{content}</svg>\n"


# What is decided


def decision_table() -> str:
    """What a caller gets, asked of ``decide`` itself."""
    words = {
        "ServeCached": "the held value",
        "ServeAndRefresh": "the held value; a background refresh starts",
        "Join": "waits for the running fetch",
        "MintNow": "waits for a fetch that starts now",
    }
    token = AuthToken("x", 100.0)
    moments = {"nothing held": (None, 50.0), "good": (token, 50.0), "due": (token, 85.0), "expired": (token, 100.0)}
    lines = ["| the value | a fetch runs | the breaker | what `get()` does |", "| --- | --- | --- | --- |"]
    breakers = {"closed": Closed(0), "open": Open(1000.0)}
    for (moment, (held, now)), runs, (shown, breaker) in itertools.product(
        moments.items(), (False, True), breakers.items()
    ):
        state = CacheState(held, None if held is None else 80.0, runs, breaker, None if held is None else 100.0)
        action = words[type(decide(state, now)[0]).__name__]
        if action == words["MintNow"] and shown == "open":
            action = "`BreakerOpen`, or what `serve_expired_for` allows"
        lines.append(f"| {moment} | {'yes' if runs else 'no'} | {shown} | {action} |")
    return "\n".join(lines) + "\n"


def draw(app: Sphinx | None = None) -> None:
    """Write all of it."""
    HERE.mkdir(exist_ok=True)
    for name, make in (("flight.svg", flight_svg), ("life.svg", life_svg), ("decision.md", decision_table)):
        (HERE / name).write_text(make(), encoding="utf8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", draw)
    return {"version": "1", "parallel_read_safe": True}
