"""No text about an error shows a credential."""

from __future__ import annotations

import dataclasses
import time

import attrs
import pytest

from trio_renew._redact import describe_error, redact, secret_texts
from trio_renew._values import AuthToken, Lease, Secret


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Bearer abc.def-1 x", "Bearer [redacted] x"),
        ("bearer  abc", "bearer  [redacted]"),
        ("bearer%20abc&x=1", "bearer%20[redacted]&x=1"),
        ("bearer+abc", "bearer+[redacted]"),
        ("BEARER\tabc,def", "BEARER\t[redacted],def"),
        ("Bearer: abc;def", "Bearer: [redacted];def"),
        ("Bearer 'abc' x", "Bearer '[redacted]' x"),
        ("'Authorization': 'Bearer abc'", "'Authorization': 'Bearer [redacted]'"),
        ("invalid bearer token abc rejected", "invalid bearer [redacted] rejected"),
        ("token=Bearer abc def", "token=[redacted] def"),
        ("Authorization: Bearer Bearer abc", "Authorization: Bearer [redacted]"),
        ("token=abc", "token=[redacted]"),
        ("access_token=abc&x=1", "access_token=[redacted]&x=1"),
        ("TOKEN=abc def", "TOKEN=[redacted] def"),
        ("client_secret=a/b+c==,x", "client_secret=[redacted],x"),
        ("Password=abc;x", "Password=[redacted];x"),
        ("api_key=abc'x", "api_key=[redacted]'x"),
        ('key=abc"x', 'key=[redacted]"x'),
        ("token=\nabc", "token=\nabc"),
        ("password='hunter 2' x", "password='[redacted]' x"),
        ("password='hunter 2", "password='[redacted]"),
        ("the field token= is empty", "the field token= is empty"),
        ('give "token=" or "key="', 'give "token=" or "key="'),
        ('{"access_token": "abc", "a": 1}', '{"access_token": "[redacted]", "a": 1}'),
        (r"{\"token\":\"abc\"}", r"{\"token\":\"[redacted]\"}"),
        ("Authorization: Basic dXNlcg== x", "Authorization: Basic [redacted] x"),
        ("got eyJhbGciOi.eyJzdWIiOi.c2ln here", "got [redacted] here"),
        ("https://user:pw@host/a", "https://[redacted]@host/a"),
        ("https://user@host", "https://[redacted]@host"),
        ("redis://:p@ss@host:1/0", "redis://[redacted]@host:1/0"),
        ("https://u:it's@host", "https://[redacted]@host"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host?a@b", "https://host?a@b"),
        ("https://host#a@b", "https://host#a@b"),
        ("'https://host' a@b", "'https://host' a@b"),
        ("https://host", "https://host"),
        ("bearers of the keyword: monkey, secretary", "bearers of the keyword: monkey, secretary"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_what_looks_like_a_credential_goes(text, redacted):
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("x" * 501, "x" * 500),
        ("x" * 500, "x" * 500),
        ("x" * 490 + "https://user:pw@host", "x" * 490 + "https://[redacted]"),
        ("x" * 480 + "https://user:pw@host.example", "x" * 480 + "https://[redacted]"),
        ("x" * 481 + "https://u:pw@host.ex", "x" * 481 + "https://[redacted]"),
        ("x" * 480 + "https://u:pw@host.ex", "x" * 480 + "https://[redacted]@host.ex"),
        ("x" * 480 + "https://u:pw@h/path/more", "x" * 480 + "https://[redacted]@h/path/"),
        ("x" * 495 + "token=abc", "x" * 495 + "token"),
        ("x" * 492 + "token=abcdef", "x" * 492 + "token=[redacted]"),
    ],
)
def test_the_text_is_cut_first(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize("piece", ["a", "Bearer ", "token=", "://", "key='", "@", "eyJ", "bearer:", '\\"', " "])
def test_long_texts_take_no_time(piece):
    started = time.perf_counter()
    for text in (piece * 100_000, "Bearer " + piece * 100_000, "https://" + piece * 100_000):
        redact(text)
        describe_error(ValueError(text), [piece * 3, "https"])
    assert time.perf_counter() - started < 2.0


@dataclasses.dataclass
class Pair:
    left: object
    right: object


@attrs.frozen
class FrozenPair:
    left: object
    right: object


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, []),
        (5, []),
        (1.5, []),
        (object(), []),
        ("abc", ["abc"]),
        ("", [""]),
        (Secret("abc"), ["abc"]),
        (AuthToken("abc", 5.0), ["abc"]),
        (Lease(AuthToken("abc"), 1, 0.0, None), ["abc"]),
        (b"abc", ["abc", "abc"]),
        (bytearray(b"\xff"), ["\ufffd", r"\xff"]),
        (["a", ("b", Secret("c"))], ["a", "b", "c"]),
        ({"name": "abc", "more": {"deep": "d"}}, ["abc", "d"]),
        (frozenset({"abc"}), ["abc"]),
        (range(10**9), []),
        (memoryview(b"abc"), []),
        (Pair("abc", Secret("d")), ["abc", "d"]),
        (FrozenPair("abc", [b"d"]), ["abc", "d", "d"]),
    ],
)
def test_the_texts_of_a_value_are_found(value, texts):
    assert secret_texts(value) == texts


def test_looking_for_texts_is_bounded():
    ring: list[object] = ["abc"]
    ring.append(ring)
    assert set(secret_texts(ring)) == {"abc"}
    assert len(secret_texts(["x"] * 100_000)) == 1000
    deep: object = "abc"
    for _ in range(50):
        deep = [deep]
    assert secret_texts(deep) == []


def test_a_field_that_is_not_set_is_no_error():
    value = Pair.__new__(Pair)
    assert secret_texts(value) == []


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("opaque")


@pytest.mark.parametrize(
    ("error", "secrets", "described"),
    [
        (ValueError("down"), [], "ValueError: down"),
        (ValueError(), [], "ValueError"),
        (KeyError("a b"), [], "KeyError: 'a b'"),
        (ValueError("got abcd!"), ["abcd"], "ValueError: got [redacted]!"),
        (ValueError("got abcdef and abcd"), ["abcd", "abcdef"], "ValueError: got [redacted] and [redacted]"),
        (ValueError("down"), ["", "  "], "ValueError: down"),
        (ValueError("a bad a"), ["a"], "ValueError: [redacted] bad [redacted]"),
        (ValueError("Bearer xyz"), [], "ValueError: Bearer [redacted]"),
        (ValueError(repr('it\'s \\ "q"')), ['it\'s \\ "q"'], "ValueError: '[redacted]'"),
        (ValueError("?q=a%20b%2Fc"), ["a b/c"], "ValueError: ?q=[redacted]"),
        (ValueError("lone \ud800abc"), ["\ud800abc"], "ValueError: lone [redacted]"),
        (Broken(), [], "Broken: <its text cannot be read: RuntimeError>"),
    ],
)
def test_an_error_is_described_without_secrets(error, secrets, described):
    assert describe_error(error, secrets) == described


@pytest.mark.parametrize("before", [450, 480, 495, 499, 500, 510])
def test_the_cut_leaves_no_half_secret(before):
    secret = "opaque-0123456789" * 5
    described = describe_error(ValueError("x" * before + secret + "y" * 1000), [secret])
    assert "opa" not in described
    assert len(described) <= len("ValueError: ") + 500


def test_a_secret_that_is_longer_than_the_cut_goes_as_a_whole():
    secret = "opaque" * 1000
    assert describe_error(ValueError(secret + " rejected"), [secret]) == "ValueError: [redacted]"


def test_what_comes_after_the_cut_stays_there():
    described = describe_error(ValueError("long-secret" * 45 + "-----tail"), ["long-secret"])
    assert "tail" not in described


class Opaque(list[object]):
    def __iter__(self):
        raise RuntimeError("opaque")


class Stubborn:
    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.right = "abc"

    @property
    def __class__(self):
        raise RuntimeError("opaque")

    def __getattribute__(self, name: str) -> object:
        if name == "left":
            raise RuntimeError("opaque")
        return object.__getattribute__(self, name)


class Half:
    def __init__(self) -> None:
        self.right = "abc"

    def __getattribute__(self, name: str) -> object:
        if name == "left":
            raise RuntimeError("opaque")
        return object.__getattribute__(self, name)

    __slots__ = ("left", "right")


def test_a_value_that_does_not_let_itself_be_looked_at():
    assert secret_texts(Opaque(["abc"])) == []
    assert secret_texts(["a", Opaque(["abc"]), "b"]) == ["a", "b"]
    assert secret_texts(["a", Stubborn(), "b"]) == ["a", "b"]
    assert secret_texts(Half()) == ["abc"]


@pytest.mark.parametrize(
    "value",
    [
        "a secret of its own, " * 50_000,
        b"a secret of its own, " * 50_000,
        list(range(1_000_000)),
        [f"a secret of its own, number {number} of many" for number in range(100_000)],
        dict.fromkeys(range(100_000), object()),
    ],
    ids=["text", "bytes", "numbers", "texts", "objects"],
)
def test_large_values_take_no_time(value):
    started = time.perf_counter()
    described = describe_error(ValueError(f"rejected: {str(value)[:2000]}"), secret_texts(value))
    assert time.perf_counter() - started < 0.5
    assert "secret of" not in described


def test_what_overlaps_goes_as_a_whole():
    assert redact("an abcdef here", ["abcd", "cdef"]) == "an [redacted] here"
    assert redact("an abcdefgh here", ["abcdefgh", "cdef"]) == "an [redacted] here"


def test_a_long_secret_goes_whichever_way_it_is_quoted():
    secret = "it's " + "opaque " * 200
    for shown in (secret, secret + '"'):
        assert describe_error(ValueError(f"bad {shown!r}"), [shown]).startswith("ValueError: bad ")
        assert "opaque" not in describe_error(ValueError(f"bad {shown!r}"), [shown])
