"""Where in a function's code an exception would do what no signal can do.

Python handles signals at calls, at the start of functions and at backward jumps, so that it never skips the exit of a
``with``. A trace function can raise at the start of any line. These functions name the lines where it must not.
"""

from __future__ import annotations

import dis
import sys
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ("Exits", "exits_of")

_CANNOT_RAISE = ("NOP", "JUMP_", "POP_JUMP_")
_GOES_ELSEWHERE = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")


@attrs.frozen
class Exits:
    """The offsets of a function's code where a line may begin but nothing must be raised.

    Attributes:
      leaving: A line begins there with nothing but the call of a context manager's exit. That is where Python comes by
        the line of the ``with`` once more, on the way from its body to ``__exit__``; an exception would skip that.
      unseen: Where an exception could miss its handler. An instruction that does nothing (``pass``, ``try:``) or only
        jumps, inside of a ``with`` or ``try``: since it cannot raise, Python does not care which handler it has in the
        table. And, from Python 3.12 on, the way back to the start of a loop that stands on one line (a comprehension,
        too): what a trace function raises there ends the whole function.
    """

    leaving: frozenset[int]
    unseen: frozenset[int]


def exits_of(code: CodeType) -> Exits:
    """Read a function's code."""
    steps = list(dis.get_instructions(code))
    leaving = frozenset(step.offset for n, step in enumerate(steps) if _leaves(steps[n : n + 5]))
    # From Python 3.12 on all of a coroutine is in a handler of Python's own, which nobody misses.
    own = {step.offset for step in steps if step.opname == "CALL_INTRINSIC_1"}
    handlers = _Handlers([entry for entry in _handled(code) if entry[2] not in own])
    harmless = [n for n, step in enumerate(steps) if step.opname.startswith(_CANNOT_RAISE)]
    unseen = frozenset(steps[n].offset for n in harmless if handlers.miss(steps, n))
    lost = ways_back(steps if sys.version_info >= (3, 12) else [])
    return Exits(leaving, unseen | lost)


def ways_back(steps: list[dis.Instruction]) -> frozenset[int]:
    """Give where Python may say that it is when it goes back on one line: from where it goes, or to where."""
    lines = {step.offset: _line(step) for step in steps}
    found = [step for step in steps if step.opname == "JUMP_BACKWARD" and lines.get(step.argval) == _line(step)]
    return frozenset(offset for step in found for offset in (step.offset, step.argval))


def _line(step: dis.Instruction) -> int | None:
    return None if step.positions is None else step.positions.lineno


def _leaves(ahead: list[dis.Instruction]) -> bool:
    names = [step.opname for step in ahead]
    if names[:2] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]:
        return True
    # A result of the body (`return x`) is moved out of the way first.
    begin = names[:1] == ["SWAP"]
    return (
        names[begin : begin + 3] == ["LOAD_CONST"] * 3
        and names[begin + 3 : begin + 4] in (["PRECALL"], ["CALL"])
        and all(step.argval is None for step in ahead[begin : begin + 3])
    )


class _Handlers:
    """Which handler an instruction has, by the table."""

    def __init__(self, entries: list[tuple[int, int, int]]) -> None:
        self._entries = entries
        self._reach: dict[int, tuple[int, int]] = {}
        for start, end, handler in entries:
            first, last = self._reach.get(handler, (start, end))
            self._reach[handler] = min(first, start), max(last, end)

    def of(self, offset: int) -> int | None:
        """Where its handler begins, if it has one."""
        return next((handler for start, end, handler in self._entries if start <= offset < end), None)

    def miss(self, steps: list[dis.Instruction], n: int) -> bool:
        """Say whether an instruction that cannot raise may be in a block whose handler the table denies it."""
        here, before = steps[n], steps[n - 1]
        own = self.of(here.offset)
        # The end of a block is such an instruction, too, and has the handler of what is around the block. So it is
        # only safe where it goes on as what was before it, and where that is what was done before it.
        if before.opname == "NOP" or before.opname in _GOES_ELSEWHERE or self.of(before.offset) != own:
            return True
        return own is None and any(first <= here.offset < last for first, last in self._reach.values())


def _handled(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Read the table of handlers: from which offset to which one, and where the handler is; in ascending order."""
    numbers = _numbers(code.co_exceptiontable)
    for start in numbers:
        length, handler, _depth = next(numbers), next(numbers), next(numbers)
        # In the table offsets count code units of two bytes.
        yield 2 * start, 2 * (start + length), 2 * handler


def _numbers(table: bytes) -> Iterator[int]:
    # Big-endian digits of six bits; 0x40 says that more follow (0x80 marks the first number of an entry).
    number = 0
    for byte in table:
        number = number << 6 | byte & 0x3F
        if not byte & 0x40:
            yield number
            number = 0
