"""What a codec encodes it gives back; what it could not give back it refuses."""

from __future__ import annotations

import collections
import enum
import math
import sys
import traceback
from typing import NamedTuple

import pytest
from cryptography.fernet import Fernet

from trio_renew._codecs import AuthTokenCodec, JsonCodec, check_codec, encrypted
from trio_renew._values import AuthToken, Secret


class Kind(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int


def everything_shown(error: BaseException) -> str:
    """Show an error and all frames but the test's own, with their locals."""
    error.__traceback__ = error.__traceback__.tb_next
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


circle: list[object] = []
circle.append(circle)
deep: list[object] = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 10**30, 1.0, -0.0, 1e300, "", "abc", "é😀", "\ud800", "a\0b", [], {},
        [1, [2.5, None], {"a": [True]}], {"": {"é": ["\U0001f600"]}},
    ],
)  # fmt: skip
def test_json_gives_back_what_it_takes(value):
    data = JsonCodec().encode(value)
    assert type(data) is bytes
    assert JsonCodec().decode(data) == value
    assert type(JsonCodec().decode(data)) is type(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ((1, 2), "value is of type tuple"),
        ({"a": [1, (2,)]}, r"value\['a'\]\[1\] is of type tuple"),
        ({1: 2}, "value has a key of type int"),
        ({"a": {None: 2}}, r"value\['a'\] has a key of type NoneType"),
        ({True: 2}, "key of type bool"),
        ({(1, 2): 2}, "key of type tuple"),
        ({Kind.A: 1}, "key of type Kind"),
        (math.nan, "value is nan"),
        ([math.inf], r"value\[0\] is inf"),
        (-math.inf, "-inf"),
        (b"abc", "type bytes"),
        ({1}, "type set"),
        (object(), "type object"),
        (Kind.A, "type Kind"),
        (Number.ONE, "type Number"),
        (Point(1), "type Point"),
        (collections.OrderedDict(a=1), "type OrderedDict"),
        (AuthToken("opaque"), "type AuthToken"),
        ("\ud83d" + "\ude00", "surrogates"),
        (circle, "ValueError"),
        (deep, "RecursionError"),
        (10**5000, "ValueError"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_json_refuses_what_would_come_back_as_something_else(value, reason):
    with pytest.raises(TypeError, match=reason) as caught:
        JsonCodec().encode(value)
    assert "opaque" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"[" * 100_000, b'"opaque'])
def test_what_is_no_json_is_a_value_error_without_the_data(data):
    with pytest.raises(ValueError, match=f"these {len(data)} bytes are no JSON") as caught:
        JsonCodec().decode(data)
    assert type(caught.value) is ValueError
    assert caught.value.__context__ is None
    assert "opaque" not in everything_shown(caught.value)


@pytest.mark.parametrize("token", [AuthToken("abc"), AuthToken("", 5.25), AuthToken("é\ud800", 1e10)])
def test_a_token_comes_back(token):
    decoded = AuthTokenCodec().decode(AuthTokenCodec().encode(token))
    assert decoded == token
    assert type(decoded.expires_at) is type(token.expires_at)


@pytest.mark.parametrize("value", [None, "abc", Secret("abc"), {"secret": "abc", "expires_at": None}])
def test_only_a_token_is_encoded(value):
    with pytest.raises(TypeError, match="encodes an AuthToken") as caught:
        AuthTokenCodec().encode(value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b'"opaque"', b"{}", b'{"secret": "opaque"}', b'{"expires_at": 1}',
        b'{"secret": 5, "expires_at": 1}', b'{"secret": "opaque", "expires_at": "1"}',
        b'{"secret": "opaque", "expires_at": 1e12}', b'{"secret": "opaque", "expires_at": true}',
    ],
)  # fmt: skip
def test_what_is_no_token_is_a_value_error_without_the_secret(data):
    with pytest.raises(ValueError) as caught:
        AuthTokenCodec().decode(data)
    assert type(caught.value) is ValueError
    assert "opaque" not in everything_shown(caught.value)


def test_a_secret_that_json_would_change_is_refused():
    with pytest.raises(TypeError, match="the secret contains surrogates") as caught:
        AuthTokenCodec().encode(AuthToken("opaque\ud83d" + "\ude00"))
    assert "opaque" not in everything_shown(caught.value)


def test_an_error_after_decrypting_shows_nothing():
    data = encrypted(JsonCodec(), KEY).encode({"secret": "opaque"})
    with pytest.raises(ValueError) as caught:
        encrypted(AuthTokenCodec(), KEY).decode(data)
    assert "opaque" not in everything_shown(caught.value)


def test_codecs_are_values():
    assert JsonCodec() == JsonCodec()
    assert repr(JsonCodec()) == "JsonCodec()"
    assert repr(AuthTokenCodec()) == "AuthTokenCodec()"


class Half:
    def encode(self, value: object) -> bytes:
        raise AssertionError


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (JsonCodec, "not the class JsonCodec: call it"),
        (Half(), "Half has no decode"),
        (None, "NoneType has no encode"),
    ],
)
def test_what_is_no_codec_is_refused(codec, reason):
    with pytest.raises(TypeError, match=reason):
        check_codec("codec", codec)


KEY = Fernet.generate_key()


@pytest.mark.parametrize(
    "key",
    [KEY, KEY.decode(), Secret(KEY.decode()), [KEY], (Secret(KEY.decode()),)],
    ids=["bytes", "str", "secret", "list", "tuple"],
)
def test_encrypted_bytes_come_back_and_cannot_be_read(key):
    codec = encrypted(AuthTokenCodec(), key)
    token = AuthToken("opaque-text", 5.0)
    data = codec.encode(token)
    assert b"opaque" not in data
    assert codec.decode(data) == token
    assert codec.encode(token) != data
    assert repr(codec) == "encrypted(AuthTokenCodec())"


def test_a_key_is_rotated_by_putting_a_new_one_in_front():
    old, new = Fernet.generate_key(), Fernet.generate_key()
    data = encrypted(JsonCodec(), old).encode("abc")
    both = encrypted(JsonCodec(), [new, old])
    assert both.decode(data) == "abc"
    assert encrypted(JsonCodec(), new).decode(both.encode("abc")) == "abc"


@pytest.mark.parametrize(
    "change", [lambda data: data[:-4], lambda data: b"x" + data, lambda data: b"", lambda data: b"{}"]
)
def test_changed_bytes_are_refused(change):
    codec = encrypted(JsonCodec(), KEY)
    with pytest.raises(ValueError, match="cannot be decrypted"):
        codec.decode(change(codec.encode("abc")))


def test_another_key_is_refused():
    with pytest.raises(ValueError, match="cannot be decrypted"):
        encrypted(JsonCodec(), Fernet.generate_key()).decode(encrypted(JsonCodec(), KEY).encode("abc"))


def test_bytes_that_decrypt_to_garbage_are_the_codecs_business():
    data = encrypted(JsonCodec(), KEY).encode("abc")
    with pytest.raises(ValueError, match="no AuthToken"):
        encrypted(AuthTokenCodec(), KEY).decode(data)


@pytest.mark.parametrize(
    ("key", "error"),
    [("opaque", ValueError), (b"opaque", ValueError), ([], ValueError), ([5], TypeError), ("é" * 44, ValueError)],
)
def test_a_bad_key_is_refused_and_not_shown(key, error):
    with pytest.raises(error, match="key must be") as caught:
        encrypted(JsonCodec(), key)
    assert "opaque" not in str(caught.value)


def test_encrypting_needs_a_codec():
    with pytest.raises(TypeError, match="codec must be"):
        encrypted(JsonCodec, KEY)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    with pytest.raises(ImportError, match=r"pip install 'trio_renew\[crypto\]'"):
        encrypted(JsonCodec(), KEY)
