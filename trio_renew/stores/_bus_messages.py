"""How invalidations travel between processes.

Invariants:

* str, bytes, int, float, bool, None and tuples of these arrive as exactly what they were: 7 is not "7", 1 not True.
* Any other key arrives as everything of its name: what cannot be named exactly is dropped with the rest.
* What cannot be read is not guessed.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("Item", "What", "item_of", "read_items", "write_items")

What: TypeAlias = Literal["key", "tag", "all"]
#: A name, what is dropped, and the JSON text of the key.
Item: TypeAlias = tuple[str, What, str]


_WHAT: tuple[What, ...] = ("key", "tag", "all")


class _Inexact(Exception):
    pass


def item_of(name: str, what: What, key: object) -> Item:
    """Make an item; a key that would not arrive exactly becomes everything of this name."""
    try:
        return name, what, json.dumps(_written(key))
    except (_Inexact, ValueError, RecursionError):
        # A ValueError comes from an integer that Python refuses to print.
        return name, "all", "null"


def _written(key: object) -> object:
    kind = type(key)
    if key is None or kind in (bool, int, float):
        return key
    if kind is str:
        text = cast("str", key)
        try:
            text.encode()
        except UnicodeEncodeError:
            # Two surrogates that stand side by side would come back as one character.
            return {"s": b64encode(text.encode("utf-8", "surrogatepass")).decode()}
        return text
    if kind is bytes:
        return {"b": b64encode(cast("bytes", key)).decode()}
    if kind is tuple:
        return [_written(part) for part in cast("tuple[object, ...]", key)]
    raise _Inexact


def _read(written: object) -> object:
    if isinstance(written, list):
        return tuple(_read(part) for part in cast("list[object]", written))
    if isinstance(written, dict):
        ((kind, text),) = cast("dict[str, str]", written).items()
        data = b64decode(text, validate=True)
        return data if kind == "b" else data.decode("utf-8", "surrogatepass")
    return written


def write_items(sender: str, items: Iterable[Item]) -> bytes:
    """Give the message that carries these items."""
    return json.dumps([sender, list(items)]).encode()


def read_items(message: bytes) -> tuple[str, list[tuple[str, What, object]]]:
    """Give the sender and the items of a message.

    Raises:
      ValueError: It is none.
    """
    try:
        sender, items = json.loads(message)
        if not isinstance(sender, str):
            raise ValueError("a message starts with its sender")
        return sender, [(name, _what(what), _read(json.loads(key))) for name, what, key in items]
    except (TypeError, RecursionError) as error:
        raise ValueError(f"this is no message: {error}") from error


def _what(what: object) -> What:
    for known in _WHAT:
        if what == known:
            return known
    raise ValueError(f"what must be 'key', 'tag' or 'all', not {what!r}")
