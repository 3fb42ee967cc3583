"""The request hash: one key per request, in every process and other languages."""

from __future__ import annotations

import enum
import hashlib
import math
import re
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_renew.stores._hashing import hash_request


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


VECTORS = [
    ("e", {}, "998c304594172c172a052e95600a7abc9d3e13f9c092c9522f6cbae9a22028c7"),
    ("issues/retrieve", {"id": 1}, "096cecaa26fbf9b0bd455131d5166403fb2df40fb54b9098a0ff111d375b3d52"),
    ("issues/retrieve", {"id": "1", "name": None}, "9d5eece6bb955202a6aa18c13829f8f29aca53a88b4dfa0d86a1613130f1979c"),
    (
        "https://api.example.com/items",
        {"q": "a b", "tag": ["a", "b"]},
        "1b90a2899a32e76d5b6a824ce8d68fb2dd56bf8754510f0033de81c94ae5cc49",
    ),
    (
        "e",
        {"b": True, "a": {"z": 1.5, "y": [1, "x", False]}},
        "f59839e953723b95d605c69fb859115eab00272c8a6e33a228e126f0d86d0ed9",
    ),
    ("e", {"q": "é☃"}, "559558aaaca01b90bd4d7fd2e0b9bec483be06e709481f0e994fb025bedc0b21"),
]


@pytest.mark.parametrize(("endpoint", "params", "digest"), VECTORS)
def test_known_digests(endpoint: str, params: dict[str, Any], digest: str) -> None:
    assert hash_request(endpoint, params) == digest


def test_no_params_are_empty_params() -> None:
    assert hash_request("e") == hash_request("e", {}) == hash_request("e", None)


def test_none_is_a_value_and_absent_is_not_there() -> None:
    assert hash_request("e", {"a": None}) != hash_request("e")
    assert hash_request("e", {"a": None}) != hash_request("e", {"a": "null"})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 10}, {"a": "10"}),
        ({"a": True}, {"a": "true"}),
        ({"a": False}, {"a": "false"}),
        ({"a": 1.0}, {"a": 1}),
        ({"a": -0.0}, {"a": "0"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": OrderedDict(x=1)}, {"a": {"x": "1"}}),
        ({"a": enum.IntEnum("Color", "RED").RED}, {"a": 1}),
    ],
)
def test_the_same_request(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert hash_request("e", left) == hash_request("e", right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"__proto__": 1}, {"__proto__": 2}),
        ({"__proto__": 1}, {}),
        ({"a": []}, {"a": {}}),
        ({"a": ""}, {"a": None}),
    ],
)
def test_different_requests(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert hash_request("e", left) != hash_request("e", right)
    assert hash_request("e", left) != hash_request("f", left)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        (100.0, "100"),
        (1e20, "100000000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.25e22, "1.25e+22"),
        (0.000001, "0.000001"),
        (0.00001234, "0.00001234"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (5e-324, "5e-324"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_numbers_become_the_text_that_javascript_gives_them(number: float, text: str) -> None:
    assert hash_request("e", {"a": number}) == hash_request("e", {"a": text})


def test_keys_that_are_array_indexes_come_first_in_numeric_order() -> None:
    # The digest of {"endpoint":"e","params":{"9":"1","10":"2","b":"3"}}, whatever order they come in.
    digest = hash_text('{"endpoint":"e","params":{"9":"1","10":"2","b":"3"}}')
    assert hash_request("e", {"b": 3, "10": 2, "9": 1}) == digest


def test_keys_that_only_look_like_indexes_are_texts() -> None:
    params = {"01": 1, "4294967295": 2, "4294967294": 3, "0": 4, "-1": 5, "²": 6, "1.5": 7}
    wanted = '"0":"4","4294967294":"3","-1":"5","01":"1","1.5":"7","4294967295":"2","²":"6"'
    assert hash_request("e", params) == hash_text('{"endpoint":"e","params":{' + wanted + "}}")


def test_other_keys_are_in_the_order_of_their_utf_16_units() -> None:
    # U+1F389 is beyond U+FF5E as a character, and before it as a surrogate pair.
    wanted = '{"endpoint":"e","params":{"\U0001f389":"1","\uff5e":"2"}}'
    assert hash_request("e", {"\uff5e": 2, "\U0001f389": 1}) == hash_text(wanted)


def test_a_lone_surrogate_is_escaped() -> None:
    assert hash_request("e", {"a": "\ud800"}) == hash_text('{"endpoint":"e","params":{"a":"\\ud800"}}')


@pytest.mark.parametrize(
    ("endpoint", "params", "names"),
    [
        (1, {}, "endpoint"),
        ("e", [], "params"),
        ("e", {1: "a"}, "params"),
        ("e", {"a": {None: 1}}, "params"),
        ("e", {"a": b"x"}, "bytes"),
        ("e", {"a": {1, 2}}, "set"),
        ("e", {"a": object()}, "object"),
    ],
)
def test_wrong_types_are_refused(endpoint: Any, params: Any, names: str) -> None:
    with pytest.raises(TypeError, match=names):
        hash_request(endpoint, params)


def test_params_that_contain_themselves_are_refused() -> None:
    params: dict[str, Any] = {}
    params["self"] = [params]
    with pytest.raises(ValueError, match="params must not contain itself"):
        hash_request("e", params)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), values, max_size=4))
def test_any_request_has_a_key_that_does_not_depend_on_order(endpoint: str, params: dict[str, Any]) -> None:
    key = hash_request(endpoint, params)
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert hash_request(endpoint, dict(reversed(params.items()))) == key
