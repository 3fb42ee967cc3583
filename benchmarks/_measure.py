"""How things are measured: interleaved rounds, medians, ratios.

Invariants:

* What is compared is measured in the same run, in turns, so that a slow moment of the machine meets both.
* A figure is the median over rounds of the ratio of the two; the times are there for orientation only.
* The cyclic garbage collector is off while a round runs.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("Figure", "per_await", "per_call", "ratio", "turns", "turns_async")


@attrs.frozen
class Figure:
    """One line of the table.

    Attributes:
      name: What was measured.
      ratio: Ours divided by the other one's (or a plain number where there is no other).
      goal: The most that it should be; None: for information.
      ours: Seconds, bytes or whatever `unit` says.
      other: The same of what it is compared with.
      against: What that is.
      unit: Of `ours` and `other`.
    """

    name: str
    ratio: float
    goal: float | None
    ours: float
    other: float
    against: str
    unit: str = "ns"

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None without one."""
        return None if self.goal is None else self.ratio <= self.goal


def per_call(function: Callable[[], object], number: int) -> float:
    """Nanoseconds per call, the loop included."""
    gc.disable()
    try:
        turns_left = range(number)
        start = time.perf_counter_ns()
        for _ in turns_left:
            function()
        return (time.perf_counter_ns() - start) / number
    finally:
        gc.enable()


async def per_await(function: Callable[[], Awaitable[object]], number: int) -> float:
    """Nanoseconds per awaited call, the loop included."""
    gc.disable()
    try:
        turns_left = range(number)
        start = time.perf_counter_ns()
        for _ in turns_left:
            await function()
        return (time.perf_counter_ns() - start) / number
    finally:
        gc.enable()


def turns(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each in turn, `rounds` times; the first round warms up and is dropped."""
    seen: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                seen[name].append(value)
    return seen


async def turns_async(measures: dict[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, list[float]]:
    """The same for asynchronous measures."""
    seen: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = await measure()
            if number:
                seen[name].append(value)
    return seen


def ratio(name: str, seen: dict[str, list[float]], ours: str, other: str, goal: float | None, **more: Any) -> Figure:
    """Make a figure of two of the things that were measured in turns."""
    ratios = [a / b for a, b in zip(seen[ours], seen[other], strict=True)]
    return Figure(
        name,
        statistics.median(ratios),
        goal,
        statistics.median(seen[ours]),
        statistics.median(seen[other]),
        other,
        **more,
    )
