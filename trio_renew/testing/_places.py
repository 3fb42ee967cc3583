"""Where code stands, as ``file:line``: the innermost line that is neither Trio's nor the kit's."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from types import FrameType

_TRIO = os.path.dirname(trio.__file__) + os.sep
_KIT = os.path.dirname(__file__) + os.sep
# Its frames stand between two of the user's, or between the user's and Trio's: they never say where one is.
_CONTEXTLIB = contextlib.__file__


def _is_users(filename: str) -> bool:
    return not filename.startswith((_TRIO, _KIT)) and filename != _CONTEXTLIB


def of_task(task: trio.lowlevel.Task) -> str | None:
    """Where a suspended task stands; None when it is nowhere but in Trio."""
    found = None
    # Something that is awaited without being written in Python ends the walk with a TypeError.
    with contextlib.suppress(TypeError):
        for frame, line in task.iter_await_frames():
            if _is_users(frame.f_code.co_filename):
                found = f"{frame.f_code.co_filename}:{line}"
    return found


def of_caller() -> str | None:
    """Where the code stands that has called into the kit."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def of_function(function: object) -> str | None:
    """Where a function begins; None for one that was not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    # An object that can be called is written where its class says what a call does.
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def name_of(function: object) -> str:
    """What a function is called in the source, for messages."""
    return getattr(function, "__name__", None) or repr(function)
