"""Errors that are passed on as they are.

Invariants:

* The traceback and the context of an error are set past its own ``__setattr__``: not every error lets itself be
  changed (a frozen dataclass does not), and each one leaves as itself.
* Raising an error again leaves its context alone, whatever is being handled around us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

__all__ = ("call_all", "chain", "raise_as_it_is", "raise_shared", "set_context", "set_traceback", "without_our_frames")

_context: Any = BaseException.__dict__["__context__"]
_traceback: Any = BaseException.__dict__["__traceback__"]

_OUR_PACKAGES = (__package__, f"{__package__}._keyed")
#: No recursion leaves a traceback of so many entries: a source does that raises one instance again and again.
_LONGEST = 10_000


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set ``error.__context__``."""
    _context.__set__(error, context)


def set_traceback(error: BaseException, traceback: TracebackType | None) -> None:
    """Set ``error.__traceback__``."""
    _traceback.__set__(error, traceback)


def raise_as_it_is(error: BaseException) -> NoReturn:
    """Raise an error without making what is being handled around us its context."""
    context = error.__context__
    try:
        raise error
    finally:
        set_context(error, context)
        del error, context


def raise_shared(error: BaseException, traceback: TracebackType | None, context: BaseException | None) -> NoReturn:
    """Raise one error in one of many callers, with the fetch's own traceback and nobody else's frames."""
    # One instance for all: copying would lose what a foreign exception keeps outside of its args. Set back each time,
    # it does not grow with the number of callers.
    set_context(error, context)
    set_traceback(error, traceback)
    try:
        raise error
    finally:
        del error, traceback, context


def call_all(functions: Iterable[Callable[[], None]]) -> None:
    """Call each of them, also when one is interrupted; the last thing that was raised is raised at the end."""
    raised: BaseException | None = None
    for function in functions:
        try:
            function()
        except BaseException as exc:  # noqa: ASYNC103 - it is raised below
            raised = exc
    if raised is not None:
        try:
            raise raised
        finally:
            del raised


def without_our_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Drop our own leading frames: they would keep the flight, and so its value, alive."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__package__") in _OUR_PACKAGES:
        traceback = traceback.tb_next
    # An error that was raised before brings that traceback along, behind the new one: without a bound it would grow
    # with every fetch.
    last, room = traceback, _LONGEST
    while last is not None and room:
        last, room = last.tb_next, room - 1
    if last is not None:
        last.tb_next = None
    return traceback


def chain(error: BaseException, context: BaseException) -> None:
    """Put ``context`` at the end of ``error``'s own chain of contexts, and make no ring of it."""
    link, seen = error, {id(error)}
    while link.__context__ is not None and id(link.__context__) not in seen:
        link = link.__context__
        seen.add(id(link))
    if id(context) in seen:
        return
    inner = context
    while inner.__context__ is not None:
        if id(inner.__context__) in seen:
            set_context(inner, None)
        else:
            inner = inner.__context__
    set_context(link, context)
