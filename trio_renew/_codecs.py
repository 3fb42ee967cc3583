"""How values become bytes, and values again.

Invariants:

* What a codec encodes, it decodes to an equal value of the same types; it refuses (``TypeError``) what it could not
  give back so.
* No message of a codec shows the value: it may be a secret. Nor does an error of decoding carry the bytes, in itself
  or in the locals of our frames.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast, final

import attrs

from ._values import AuthToken, Secret, check_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .abc import Codec

__all__ = ("AuthTokenCodec", "JsonCodec", "check_codec", "encrypted")

T = TypeVar("T")


def check_codec(name: str, codec: object) -> None:
    """Refuse what is no codec.

    Raises:
      TypeError: ``encode`` or ``decode`` is missing, or it is a class instead of an instance.
    """
    if isinstance(codec, type):
        raise TypeError(f"{name} must be an object with encode and decode, not the class {codec.__name__}: call it")
    for method in ("encode", "decode"):
        if not callable(getattr(codec, method, None)):
            raise TypeError(f"{name} must be an object with encode and decode; {type(codec).__name__} has no {method}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _null(value: object) -> None:
    return None


# Made once: json.dumps and json.loads with options of their own make them anew for each call.
_dump = json.JSONEncoder(separators=(",", ":"), default=_null, skipkeys=True).encode
_load = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _check_json(value: object) -> None:
    """Refuse what JSON would give back as something else. The value is known to have no circles."""
    left: list[tuple[str, object]] = [("value", value)]
    while left:
        where, item = left.pop()
        kind = type(item)
        if kind is dict:
            for key, inner in cast("dict[object, object]", item).items():
                if type(key) is not str:
                    raise TypeError(f"{where} has a key of type {type(key).__name__}; JSON has keys of type str only")
                left.append((f"{where}[{key!r}]", inner))
        elif kind is list:
            left.extend((f"{where}[{index}]", inner) for index, inner in enumerate(cast("list[object]", item)))
        elif kind is float:
            if not math.isfinite(cast("float", item)):
                raise TypeError(f"{where} is {item!r}, which JSON cannot carry")
        elif kind not in (str, int, bool, type(None)):
            raise TypeError(f"{where} is of type {kind.__name__}, which JSON would not give back as such")


@final
@attrs.frozen
class JsonCodec:
    """Values as JSON in UTF-8: None, bool, int, float, str, and lists and dicts with ``str`` keys of these.

    Anything that would come back as something else is a ``TypeError``: tuples, subclasses of these types, other
    keys, NaN and infinity.

    Example::

        FileStorage("state.json", JsonCodec())
    """

    def encode(self, value: Any, /) -> bytes:
        """Give the JSON text of a value.

        Raises:
          TypeError: JSON cannot carry this value, or would give back another one.
        """
        try:
            text = _dump(value)
        except (ValueError, RecursionError) as error:
            raise TypeError(f"the value cannot be written as JSON: {type(error).__name__}") from None
        _check_json(value)
        # Two halves of a surrogate pair would come back as one character.
        if "\\ud" in text and _load(text) != value:
            raise TypeError("the value contains surrogates that JSON would not give back as they are")
        return text.encode()

    def decode(self, data: bytes, /) -> Any:
        """Give the value of a JSON text.

        Raises:
          ValueError: It is no JSON in UTF-8.
        """
        try:
            return _load(data.decode())
        except (ValueError, RecursionError) as error:
            problem = type(error).__name__
        # Outside, and without the data: that error carries it, and a traceback may show the locals of this frame.
        size, data = len(data), b""
        raise ValueError(f"these {size} bytes are no JSON in UTF-8: {problem}")


@final
@attrs.frozen
class AuthTokenCodec:
    """An :class:`AuthToken` as JSON: its secret in plain text and its expiry.

    Wrap it with :func:`encrypted` where the text must not be readable.

    Example::

        FileStorage("token.json", AuthTokenCodec())
    """

    def encode(self, value: AuthToken, /) -> bytes:
        """Give the bytes of a token.

        Raises:
          TypeError: It is no token.
        """
        if not isinstance(value, AuthToken):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"an AuthTokenCodec encodes an AuthToken, not an object of type {type(value).__name__}")
        try:
            return JsonCodec().encode({"secret": value.secret.reveal(), "expires_at": value.expires_at})
        except TypeError:
            pass
        # Outside: the frames of that error hold the text.
        raise TypeError("the secret contains surrogates that JSON would not give back as they are")

    def decode(self, data: bytes, /) -> AuthToken:
        """Give the token of the bytes.

        Raises:
          ValueError: They are none.
        """
        record, data = _read_token(data), b""
        if record is None:
            raise ValueError("these bytes are no AuthToken: not a JSON object with secret and expires_at")
        secret, expires_at = record
        return AuthToken(secret, check_instant("expires_at", expires_at))


def _read_token(data: bytes) -> tuple[Secret, Any] | None:
    try:
        record = JsonCodec().decode(data)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    fields = cast("dict[str, Any]", record)
    if not isinstance(fields.get("secret"), str) or "expires_at" not in fields:
        return None
    return Secret(fields["secret"]), fields["expires_at"]


@final
class _Encrypted(Generic[T]):
    __slots__ = ("_codec", "_failed", "_fernet")

    def __init__(self, codec: Codec[T], fernet: Any, failed: type[Exception]) -> None:
        self._codec = codec
        self._fernet = fernet
        self._failed = failed

    def encode(self, value: T, /) -> bytes:
        """Encode a value, and encrypt that."""
        return cast("bytes", self._fernet.encrypt(self._codec.encode(value)))

    def decode(self, data: bytes, /) -> T:
        """Decrypt, and decode what comes out of it."""
        # What is decrypted is no local of this frame: a traceback may show them.
        return self._codec.decode(self._decrypt(data))

    def _decrypt(self, data: bytes) -> bytes:
        try:
            return cast("bytes", self._fernet.decrypt(data))
        except self._failed:
            raise ValueError("these bytes cannot be decrypted: another key, or they were changed") from None

    def __repr__(self) -> str:
        return f"encrypted({self._codec!r})"


def encrypted(codec: Codec[T], key: Secret | str | bytes | Sequence[Secret | str | bytes]) -> Codec[T]:
    """Make a codec whose bytes cannot be read or changed without the key (Fernet: AES-128 in CBC mode, and HMAC).

    It needs the extra ``trio_renew[crypto]``.

    Args:
      codec: What makes the bytes that are encrypted.
      key: A key of ``cryptography.fernet.Fernet.generate_key()``. Of several the first one encrypts, and all
        decrypt: put a new key in front to rotate.

    Raises:
      ImportError: The extra is not installed.
      TypeError: ``codec`` is no codec, or ``key`` is not made of texts.
      ValueError: A key is no Fernet key, or there is none.

    Example::

        key = os.environ["TOKEN_KEY"]
        FileStorage("token.bin", encrypted(AuthTokenCodec(), key))
    """
    check_codec("codec", codec)
    try:
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet
    except ImportError as error:
        raise ImportError("encrypted() needs the package cryptography: pip install 'trio_renew[crypto]'") from error
    keys = [key] if isinstance(key, (Secret, str, bytes)) else list(key)
    texts = [one.reveal() if isinstance(one, Secret) else one for one in keys]
    if not texts:
        raise ValueError("key must be a Fernet key or several, but there is none")
    fernets: list[Fernet] = []
    for text in texts:
        if not isinstance(text, (str, bytes)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"key must be a Secret, a str or bytes, or several, not of type {type(text).__name__}")
        try:
            fernets.append(Fernet(text))
        except ValueError:
            raise ValueError(
                "key must be a Fernet key: 32 bytes in URL-safe base64, as Fernet.generate_key() gives"
            ) from None
    return _Encrypted(codec, MultiFernet(fernets), InvalidToken)
