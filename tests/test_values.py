"""Secrets, tokens and leases, and how instants and durations are checked."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import math
import pickle
import time
import traceback

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_renew._values import AuthToken, Lease, Secret, check_instant, check_seconds

TEXT = "hunter" + "2-opaque"


@pytest.mark.parametrize("text", [TEXT, "x", "Ωλ-é", "\udce9 lone", "{}", "%s"])
@pytest.mark.parametrize(
    "render",
    [repr, str, format, lambda s: f"{s!r:>60}", lambda s: f"{s:>60}", lambda s: f"{s}", lambda s: f"{s} {s!r}"],
)
def test_a_secret_never_shows_its_text(text, render):
    shown = render(Secret(text))
    assert "Secret <REDACTED>" in shown
    assert text == "x" or text not in shown


def test_every_secret_is_rendered_alike():
    assert repr(Secret("a")) == str(Secret("b")) == format(Secret("c"), "<<99") == "Secret <REDACTED>"


def test_no_attribute_of_a_secret_holds_the_text():
    secret = Secret(TEXT)
    with pytest.raises(TypeError):
        vars(secret)
    shown = [repr(getattr(secret, name)) for name in dir(secret) if name != "__hash__"]
    assert not any(TEXT in text for text in shown)


@pytest.mark.parametrize("text", ["", "abc", "Ωλ-é", "a\0b", "\ud800"])
def test_reveal_gives_the_text_back(text):
    assert Secret(text).reveal() == text


def test_a_subclass_of_str_is_kept_as_plain_text():
    class Loud(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "loud"

    revealed = Secret(Loud("quiet")).reveal()
    assert type(revealed) is str
    assert revealed == "quiet"


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("x", "x", True),
        ("x", "y", False),
        ("abcde", "abXde", False),
        ("abc", "abcd", False),
        ("abcd", "abc", False),
        ("", "", True),
        ("", "a", False),
        ("é λ ω", "é λ ω", True),
        ("é", "e\u0301", False),
        ("\ud800", "\ud800", True),
        ("\ud800", "?", False),
    ],
)
def test_secrets_are_equal_when_their_texts_are(left, right, equal):
    assert (Secret(left) == Secret(right)) is equal
    assert (Secret(left) != Secret(right)) is not equal


def test_a_secret_is_not_equal_to_its_text():
    assert Secret("a") != "a"
    assert Secret("a") != b"a"
    assert Secret("a") is not None


def test_equality_compares_in_constant_time(monkeypatch):
    import hmac

    seen = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    assert Secret("é1") != Secret("é2")
    assert seen == [("é1".encode(), "é2".encode())]


def test_secrets_have_no_order_and_no_hash():
    with pytest.raises(TypeError):
        Secret("a") < Secret("b")  # noqa: B015
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret("a"))
    with pytest.raises(TypeError, match="unhashable"):
        hash(AuthToken("a"))


def test_a_secret_cannot_be_changed():
    secret = Secret("a")
    with pytest.raises(AttributeError):
        secret._text = lambda: "b"
    with pytest.raises(AttributeError):
        del secret._text
    with pytest.raises(AttributeError):
        secret.other = 1
    assert secret.reveal() == "a"


def test_a_copy_of_a_secret_is_the_secret():
    secret = Secret(TEXT)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    assert copy.deepcopy(AuthToken(secret, 1.0)) == AuthToken(secret, 1.0)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("holder", [Secret(TEXT), AuthToken(TEXT), Lease(AuthToken(TEXT), 1, 0.0, None)])
def test_a_secret_cannot_be_pickled(holder, protocol):
    with pytest.raises(TypeError, match="pickle") as caught:
        pickle.dumps(holder, protocol)
    assert TEXT not in str(caught.value)


def test_json_never_carries_a_secret():
    with pytest.raises(TypeError) as caught:
        json.dumps({"token": Secret(TEXT)})
    assert TEXT not in str(caught.value)
    assert json.loads(json.dumps(Secret(TEXT), default=str)) == "Secret <REDACTED>"
    assert TEXT not in json.dumps(AuthToken(TEXT, 5.0), default=str)


@pytest.mark.parametrize("value", [None, 1, b"abc", ["a"], Secret("a")])
def test_a_secret_is_made_from_text_only(value):
    with pytest.raises(TypeError, match="a Secret is made from a str") as caught:
        Secret(value)
    assert "abc" not in str(caught.value)


def test_the_fingerprint_is_the_beginning_of_the_sha256():
    assert Secret("é").fingerprint() == hashlib.sha256("é".encode()).hexdigest()[:8]
    assert len(Secret("\ud800").fingerprint()) == 8


def test_a_token_takes_text_and_numbers():
    token = AuthToken("abc", 1)
    assert token.secret == Secret("abc")
    assert token.expires_at == 1.0
    assert type(token.expires_at) is float
    assert AuthToken(Secret("abc")) == AuthToken("abc", None)
    assert AuthToken("abc", 1.0) != AuthToken("abc", 2.0)
    assert AuthToken("abc", 1.0) != AuthToken("abd", 1.0)


def test_a_token_is_frozen_and_shows_no_secret():
    token = AuthToken(TEXT, 5.0)
    assert repr(token) == "AuthToken(secret=Secret <REDACTED>, expires_at=5.0)"
    assert TEXT not in f"{token} {attrs.asdict(token)}"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        token.expires_at = 6.0
    assert attrs.evolve(token, expires_at=6).expires_at == 6.0


@pytest.mark.parametrize("secret", [None, 5, b"abc", ("abc",)])
def test_a_token_needs_a_secret(secret):
    with pytest.raises(TypeError, match="secret must be a Secret or a str") as caught:
        AuthToken(secret)
    assert "abc" not in str(caught.value)
    with pytest.raises(TypeError, match="secret must be a Secret or a str"):
        AuthToken.expiring_in(secret, 5.0)


BAD_INSTANTS = [
    (math.nan, "finite"),
    (math.inf, "finite"),
    (-math.inf, "finite"),
    (True, "True"),
    (False, "False"),
    (TEXT, "type str"),
    (b"1", "type bytes"),
    (1e11 + 1e-4, "milliseconds"),
    (1_700_000_000_000, "milliseconds"),
    (10**400, "milliseconds"),
    (-2e11, "milliseconds"),
    (datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC), r"timestamp\(\)"),
    ([], "type list"),
]


@pytest.mark.parametrize(("instant", "reason"), BAD_INSTANTS)
def test_a_bad_expiry_is_a_value_error_that_names_the_field(instant, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        AuthToken(TEXT, instant)
    assert "expires_at" in str(caught.value)
    assert TEXT not in str(caught.value)


def test_the_frames_of_a_failing_constructor_do_not_hold_the_text():
    def frames(error: BaseException) -> str:
        ours = error.__traceback__.tb_next
        return "".join(traceback.StackSummary.extract(traceback.walk_tb(ours), capture_locals=True).format())

    with pytest.raises(ValueError, match="expires_at") as caught:
        AuthToken("hunter" + "2-opaque", math.nan)
    assert TEXT not in frames(caught.value)
    with pytest.raises(ValueError, match="seconds") as caught:
        AuthToken.expiring_in("hunter" + "2-opaque", math.nan)
    assert TEXT not in frames(caught.value)


@pytest.mark.parametrize("instant", [None, 0, -5.0, 1.5, 1e11, 100_000_000_000])
def test_good_instants_become_floats(instant):
    checked = check_instant("at", instant)
    assert checked == instant
    assert checked is None or type(checked) is float


@pytest.mark.parametrize(
    ("arguments", "value", "error", "reason"),
    [
        ({}, "5", TypeError, "wait must be a number of seconds, not an object of type str"),
        ({}, True, TypeError, "wait must be a number of seconds, not True"),
        ({}, None, TypeError, "not None"),
        ({}, math.nan, ValueError, "wait must be at least 0 and finite"),
        ({}, -0.1, ValueError, "not -0.1"),
        ({}, math.inf, ValueError, "finite"),
        ({}, 10**400, ValueError, "a very large int"),
        ({}, -(10**400), ValueError, "at least 0"),
        ({"above": True}, 0, ValueError, "more than 0"),
        ({"above": True}, math.nan, ValueError, "more than 0"),
        ({"minimum": 2.5}, 2.4, ValueError, "at least 2.5"),
        ({"allow_inf": True}, math.nan, ValueError, "at least 0 .seconds., not nan"),
        ({"allow_inf": True}, -math.inf, ValueError, "at least 0"),
        ({"minimum": -math.inf}, math.nan, ValueError, "a number and finite"),
        ({"minimum": -math.inf}, math.inf, ValueError, "a number and finite"),
    ],
)
def test_bad_durations_are_refused_by_name(arguments, value, error, reason):
    with pytest.raises(error, match=reason) as caught:
        check_seconds("wait", value, **arguments)
    assert str(caught.value).startswith("wait must be")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [({}, 0), ({}, 5), ({"above": True}, 0.001), ({"allow_inf": True}, math.inf), ({"minimum": -math.inf}, -3)],
)
def test_good_durations_become_floats(arguments, value):
    checked = check_seconds("wait", value, **arguments)
    assert checked == value
    assert type(checked) is float


def test_expiring_in_counts_from_now():
    assert AuthToken.expiring_in("a", 60, now=1000) == AuthToken("a", 1060.0)
    assert AuthToken.expiring_in(Secret("a"), -5.0, now=1000.0).expires_at == 995.0
    before = time.time()
    token = AuthToken.expiring_in("a", 60.0)
    assert before + 60.0 <= token.expires_at <= time.time() + 60.0


def test_expiring_in_follows_a_test_clock():
    async def main():
        first = AuthToken.expiring_in("a", 60.0)
        await trio.sleep(800.0)
        second = AuthToken.expiring_in("a", 60.0)
        assert second.expires_at - first.expires_at == 800.0

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("seconds", "now", "error", "name"),
    [
        ("60", None, TypeError, "seconds"),
        (True, None, TypeError, "seconds"),
        (math.nan, None, ValueError, "seconds"),
        (math.inf, None, ValueError, "seconds"),
        (60.0, math.nan, ValueError, "now"),
        (60.0, "0", ValueError, "now"),
        (1e12, 0.0, ValueError, "seconds"),
    ],
)
def test_expiring_in_refuses_garbage(seconds, now, error, name):
    with pytest.raises(error, match=name) as caught:
        AuthToken.expiring_in(TEXT, seconds, now=now)
    assert TEXT not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(TEXT, "<str>"), (None, "None"), ({"a": TEXT}, "<dict>"), (Secret(TEXT), "Secret <REDACTED>")],
)
def test_a_lease_shows_the_type_of_its_value(value, shown):
    assert repr(Lease(value, 3, 1.0, None)) == f"Lease(value={shown}, generation=3, issued_at=1.0, expires_at=None)"


def test_a_lease_of_a_token_shows_its_life():
    lease = Lease(AuthToken(TEXT, 9.0), 3, 1.0, 9.0)
    assert "expires_at=9.0" in repr(lease)
    assert TEXT not in repr(lease)
    assert lease == Lease(AuthToken(TEXT, 9.0), 3, 1.0, 9.0)
    assert lease != Lease(AuthToken(TEXT, 9.0), 4, 1.0, 9.0)
