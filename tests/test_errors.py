"""The tree of errors, and what each of them carries."""

from __future__ import annotations

import copy
import pickle

import pytest

from trio_renew import _errors
from trio_renew._errors import (
    BreakerOpen,
    BudgetExhausted,
    CredentialError,
    FetchTimeout,
    JobLost,
    MintedTokenAlreadyExpired,
    ReentrantFetchError,
    RemoteFetchError,
    RenewError,
    StoreError,
    Unconfigured,
)

EXAMPLES = [
    CredentialError("no"),
    BreakerOpen(1000.5),
    BudgetExhausted(1000.5),
    Unconfigured("mint"),
    MintedTokenAlreadyExpired("late"),
    FetchTimeout("slow"),
    ReentrantFetchError("ring"),
    StoreError("down"),
    JobLost("gone"),
    RemoteFetchError("builtins.ValueError", "bad"),
]


def test_the_examples_are_all_there_is():
    assert {type(error).__name__ for error in EXAMPLES} | {"RenewError"} == set(_errors.__all__)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_a_renew_error_that_can_be_pickled_and_copied(error):
    assert isinstance(error, RenewError)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_what_is_a_credential_error():
    kinds = {type(error) for error in EXAMPLES if isinstance(error, CredentialError)}
    assert kinds == {CredentialError, BreakerOpen, BudgetExhausted, Unconfigured, MintedTokenAlreadyExpired}
    assert issubclass(FetchTimeout, TimeoutError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BreakerOpen(1000.5), "the source has failed too often and is left alone until 1000.500 (POSIX seconds)"),
        (BudgetExhausted(1000), "the budget allows no fetch before 1000.000 (POSIX seconds)"),
        (Unconfigured("mint"), "mint is not configured"),
        (RemoteFetchError("a.B", "bad"), "a.B: bad"),
        (RemoteFetchError("a.B", ""), "a.B"),
    ],
)
def test_the_texts_of_errors(error, text):
    assert str(error) == text


def test_the_attributes_of_errors():
    assert BreakerOpen(5.0).retry_at == BudgetExhausted(5.0).retry_at == 5.0
    assert Unconfigured("mint").field == "mint"
    remote = RemoteFetchError("builtins.ValueError", "bad")
    assert (remote.type_name, remote.message, remote.args) == ("builtins.ValueError", "bad", remote.args)


def test_a_remote_error_is_cut_first_and_redacted_then():
    assert RemoteFetchError("a.B", "x" * 10_000).message == "x" * 500
    error = RemoteFetchError("a.B", "Bearer abc.def" + "x" * 10_000)
    assert error.message == "Bearer [redacted]"
    assert "abc" not in repr(error) + str(error) + repr(error.args)


def test_a_remote_error_that_is_passed_on_keeps_what_it_says():
    first = RemoteFetchError("a.B", "https://u:p@h/?token=abc with Bearer token abc and 'key=1'")
    assert RemoteFetchError(first.type_name, first.message).message == first.message


@pytest.mark.parametrize("arguments", [(1, "a"), ("a", 1), ("a", b"abc"), (None, "a")])
def test_a_remote_error_needs_texts(arguments):
    with pytest.raises(TypeError, match=r"(type_name|message) must be a str"):
        RemoteFetchError(*arguments)
