"""The key of a request, the same in every process, every version, and other languages.

Invariants:

* A pure function of its arguments; what it gives never changes from one version to the next.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import cast

__all__ = ("hash_request",)


def hash_request(endpoint: str, params: Mapping[str, object] | None = None) -> str:
    """Give the key of a request: the same for the same request, in every process and every version.

    It is the SHA-256 of a compact JSON text in which numbers and booleans have become text (``10`` and ``"10"`` are
    the same request) and the order of a mapping's keys does not matter; the order of a list does. None is a value of
    its own: a parameter that is None differs from one that is not there. Leave out what is absent.

    Args:
      endpoint: What is asked for, such as a URL without its query.
      params: With what: None, bool, numbers, str, and lists, tuples and mappings (with str keys) of these.

    Returns:
      64 characters of lower-case hex.

    Raises:
      TypeError: An argument, or something in ``params``, has another type.
      ValueError: ``params`` contains itself, or is nested too deeply.

    Example::

        hash_request("https://api.example.com/items", {"q": "a b", "page": 1})
    """
    if not isinstance(endpoint, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"endpoint must be a str, not {endpoint!r}")
    if params is not None and not isinstance(params, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"params must be a mapping, not {params!r}")
    try:
        request = {"endpoint": endpoint, "params": _normal(params or {})}
        text = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("params must not contain itself or be nested deeply") from None
    # A lone surrogate stands in the text as the escape that JSON writers of other languages put there.
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def _normal(value: object) -> object:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return _number_text(value)
        case list() | tuple():
            items = cast("list[object] | tuple[object, ...]", value)
            return [_normal(item) for item in items]
        case Mapping():
            mapping = cast("Mapping[object, object]", value)
            texts: dict[str, object] = {}
            for key, item in mapping.items():
                if not isinstance(key, str):
                    raise TypeError(f"params must have str keys only, not {key!r}")
                texts[key] = item
            return {key: _normal(texts[key]) for key in sorted(texts, key=_key_order)}
        case _:
            raise TypeError(f"params must not contain a {type(value).__qualname__}; make it a str first")


def _key_order(key: str) -> tuple[int, int, bytes]:
    # The digests are shared with JavaScript: keys that are array indexes come first, in numeric order; the others
    # follow by their UTF-16 units.
    if key.isascii() and key.isdigit() and (key == "0" or key[0] != "0") and len(key) <= 10 and int(key) < 2**32 - 1:
        return 0, int(key), b""
    return 1, 0, key.encode("utf-16-be", errors="surrogatepass")


def _number_text(value: float) -> str:
    # Both languages write the shortest digits that read back as the number, but set the point differently.
    if value != value:
        return "NaN"
    if value in (math.inf, -math.inf):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = whole + ("" if fraction == "0" else fraction)
    point = len(whole) + int(exponent or 0)
    leading = len(digits) - len(digits.lstrip("0"))
    digits, point = digits[leading:].rstrip("0"), point - leading
    if 0 < point <= 21:
        whole, fraction = digits[:point].ljust(point, "0"), digits[point:]
        return f"{sign}{whole}.{fraction}" if fraction else sign + whole
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{'+' if point > 0 else '-'}{abs(point - 1)}"
