"""What processes tell each other about a value: its text, when it was issued, and under which generation.

Invariants:

* What is written can be read back to an equal value of the same type; a value for which this does not hold is refused
  (``TypeError``) before it is written anywhere.
* No message shows a value, and no traceback does that shows the locals of our frames: texts are in boxes there.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, cast

import attrs

from ._codecs import AuthTokenCodec, JsonCodec
from ._values import AuthToken, Secret, check_instant

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
        # One of a class derived from it would come back without what that adds.
        token = type(value) is AuthToken
        return Draft("token" if token else "json", (_TOKEN if token else _JSON).encode(cast(Any, value)).decode())
    kind = type(value).__name__
    try:
        carried = _carry(value, codec)
    except Exception as exc:
        raise TypeError(f"the codec of the share cannot carry a value of type {kind}: {type(exc).__name__}") from exc
    if carried is None:
        raise TypeError(f"a value of type {kind} would come back from the codec of the share as another one")
    return carried


def _carry(value: object, codec: Codec[Any]) -> Draft | None:
    data = back = None
    try:
        data = codec.encode(value)
        back = codec.decode(data)
        if type(back) is not type(value) or not (type(value).__eq__ is object.__eq__ or back == value):
            return None
        try:
            return Draft("text", data.decode())
        except UnicodeDecodeError:
            return Draft("base64", base64.b64encode(data).decode())
    finally:
        del data, back


def write(value: Draft, issued_at: float, generation: str) -> Secret:
    """Make the text of a record."""
    about = {"form": value.form, "issued_at": issued_at, "generation": generation, "id": os.urandom(8).hex()}
    return Secret(_JSON.encode({**about, "value": value.text}).decode())


def read(text: object, codec: Codec[Any] | None) -> Record:
    """Read a record.

    Raises:
      ValueError: It is none, or the codec cannot read its value.
    """
    try:
        return _parse(text, codec)
    except Exception as exc:
        kind = type(exc).__name__
    finally:
        del text
    raise ValueError(f"what the store holds is no record that can be read here: {kind}")


def _parse(text: object, codec: Codec[Any] | None) -> Record:
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
