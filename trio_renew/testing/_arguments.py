"""Refuse what a user has given by mistake, with words that say what would be right."""

from __future__ import annotations

__all__ = ("check_functions", "check_number")


def check_functions(**given: object) -> None:
    """Refuse arguments that are no functions."""
    for name, value in given.items():
        if callable(value) or (name == "check" and value is None):
            continue
        close = getattr(value, "close", None)
        if close is not None:  # a coroutine: `scenario()` instead of `scenario`
            close()
        raise TypeError(f"{name}: a function is needed (not called: without parentheses), not {value!r}")


def check_number(name: str, value: object, least: int | None = None) -> None:
    """Refuse what is no whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: a whole number is needed, not {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
