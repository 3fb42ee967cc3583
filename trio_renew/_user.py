"""The user's functions: what is accepted as one, and how an async one is called.

Invariants:

* A KeyboardInterrupt may strike in them as in any task, also where we, who call them, are protected from it.
* What is no function of the right kind is refused when it is given, as far as that can be seen, and not when it is
  needed.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, TypeVar

from trio.lowlevel import disable_ki_protection

from ._values import is_async_function

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("call_user", "check_async_function", "check_function")

X = TypeVar("X")


def _awaitable(what: str, result: Awaitable[X]) -> Awaitable[X]:
    if not inspect.isawaitable(result):
        raise TypeError(f"{what} must be an async function, but it returned {type(result).__name__}, not an awaitable")
    return result


@disable_ki_protection
async def call_user(what: str, function: Callable[..., Awaitable[X]], *args: Any) -> X:
    """Await a user's async function, called ``what``, where a KeyboardInterrupt may strike as in any task."""
    # One expression: an interrupt between making the coroutine and awaiting it would leave it unawaited.
    return await _awaitable(what, function(*args))


def check_function(name: str, function: object, what: str) -> None:
    """Refuse what is neither None nor a plain function.

    Raises:
      TypeError: It is not callable, or an async function: its result would never be awaited.
    """
    if function is not None and (not callable(function) or is_async_function(function)):
        got = "an async function" if callable(function) else type(function).__name__
        raise TypeError(f"{name} must be {what} or None, got {got}")


def check_async_function(name: str, function: object, *, takes: str = "no arguments") -> None:
    """Refuse at the earliest point what cannot be an async function of these arguments.

    Raises:
      TypeError: It is a coroutine object, not callable, a generator function, or a plain synchronous function.
    """
    if inspect.iscoroutine(function):
        function.close()
        raise TypeError(
            f"{name} must be an async function, got a coroutine object: pass the function without calling it"
        )
    if not callable(function):
        raise TypeError(f"{name} must be an async function of {takes}, got {type(function).__name__}")
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    generates = inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner)
    # A lambda or a wrapper may well return an awaitable; that shows when it is called.
    plain = isinstance(inner, types.FunctionType | types.MethodType) and not inspect.iscoroutinefunction(inner)
    opaque = inner is not inspect.unwrap(inner) or getattr(inner, "__name__", "") == "<lambda>"
    if generates or (plain and not opaque):
        kind = "a generator function" if generates else "a synchronous function"
        raise TypeError(f"{name} must be an async function of {takes}, got {kind}: {function!r}")
