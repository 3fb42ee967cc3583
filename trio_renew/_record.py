"""What processes tell each other about a value: its text, when it was issued, and under which generation.

Invariants:

* What is written can be read back to an equal value of the same type; a value for which this does not hold is refused
  (``TypeError``) before it is written anywhere.
* No message shows a value.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, cast

import attrs

from ._codecs import AuthTokenCodec, JsonCodec
from ._values import AuthToken, check_instant

if TYPE_CHECKING:
    from .abc import Codec

__all__ = ("Draft", "Record", "draft", "read", "same", "write")

_JSON = JsonCodec()
_TOKEN = AuthTokenCodec()


@attrs.frozen
class Draft:
    """A value as text; ``form`` says how it is to be read."""

    form: str
    text: str = attrs.field(repr=False)


@attrs.frozen
class Record:
    """A value that somebody has fetched.

    Attributes:
      value: The value.
      issued_at: When its fetch started, on that one's clock.
      generation: The generation of the store in which it was fetched.
      id: Tells it from every other record.
      text: The record as it is stored.
    """

    value: Any = attrs.field(repr=False)
    issued_at: float
    generation: str
    id: str
    text: str = attrs.field(repr=False)


def same(one: object, other: object) -> bool:
    """Say whether two values are one: by identity, then by type and equality."""
    return one is other or (type(one) is type(other) and bool(one == other))


def draft(value: object, codec: Codec[Any] | None) -> Draft:
    """Make the text of a value.

    Raises:
      TypeError: The codec cannot carry it, or it would come back as something else.
    """
    if codec is None:
        token = isinstance(value, AuthToken)
        return Draft("token" if token else "json", (_TOKEN if token else _JSON).encode(cast(Any, value)).decode())
    kind = type(value).__name__
    try:
        data = codec.encode(value)
        back = codec.decode(data)
        exact = type(back) is type(value) and (type(value).__eq__ is object.__eq__ or bool(back == value))
    except Exception as exc:
        raise TypeError(f"the codec of the share cannot carry a value of type {kind}: {type(exc).__name__}") from exc
    if not exact:
        raise TypeError(f"a value of type {kind} would come back from the codec of the share as another one")
    try:
        return Draft("text", data.decode())
    except UnicodeDecodeError:
        return Draft("base64", base64.b64encode(data).decode())


def write(value: Draft, issued_at: float, generation: str) -> str:
    """Make the text of a record."""
    fields = {"form": value.form, "value": value.text, "issued_at": issued_at, "generation": generation}
    return _JSON.encode({**fields, "id": os.urandom(8).hex()}).decode()


def read(text: object, codec: Codec[Any] | None) -> Record:
    """Read a record.

    Raises:
      ValueError: It is none, or the codec cannot read its value.
    """
    try:
        fields = _JSON.decode(cast(str, text).encode())
        data: bytes = fields["value"].encode()
        form = fields["form"]
        if form in ("token", "json"):
            codec = _TOKEN if form == "token" else _JSON
        elif form == "base64":
            data = base64.b64decode(data)
        value = cast("Codec[Any]", codec).decode(data)
        issued_at = check_instant("issued_at", fields["issued_at"])
        return Record(value, cast(float, issued_at) + 0.0, fields["generation"], fields["id"], cast(str, text))
    except Exception as exc:
        # Its text may hold the value.
        raise ValueError(f"what the store holds is no record that can be read here: {type(exc).__name__}") from None
