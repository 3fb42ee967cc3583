"""Where in a function's code an exception would do what no signal can do.

Python handles signals at calls, at the start of functions and at backward jumps, so that it never skips the exit of a
``with``. A trace function can raise at the start of any line. These functions name the lines where it must not.
"""

from __future__ import annotations

import dis
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ("leaves_a_with", "slips_past_handlers")


def _ahead(code: CodeType, offset: int) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.offset >= offset][:5]


def leaves_a_with(code: CodeType, offset: int) -> bool:
    """Say whether a line begins at this offset with nothing but the call of a context manager's exit.

    That is where Python comes by the line of the ``with`` once more, on the way from its body to ``__exit__``. An
    exception there would skip the exit.
    """
    ahead = _ahead(code, offset)
    names = [step.opname for step in ahead]
    if names[:2] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]:
        return True
    # A result of the body (`return x`) is moved out of the way first.
    ahead = ahead[1:] if names[:1] == ["SWAP"] else ahead[:4]
    nones, call = ahead[:3], ahead[3:]
    return (
        len(call) == 1
        and call[0].opname in ("PRECALL", "CALL")
        and all(step.opname == "LOAD_CONST" and step.argval is None for step in nones)
    )


def slips_past_handlers(code: CodeType, offset: int) -> bool:
    """Say whether an exception at this offset would miss the handlers around it.

    A line may begin with an instruction that does nothing (``pass``, ``try:``). Since it cannot raise, Python leaves
    it out of the table of handlers, also where it stands in a ``with`` or ``try``.
    """
    if _ahead(code, offset)[0].opname != "NOP":
        return False
    handlers: dict[int, list[tuple[int, int]]] = {}
    for start, end, handler in _handled(code):
        handlers.setdefault(handler, []).append((start, end))
    if any(start <= offset < end for ranges in handlers.values() for start, end in ranges):
        return False
    return any(ranges[0][0] <= offset < ranges[-1][1] for ranges in handlers.values())


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
