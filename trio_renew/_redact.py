"""How a text about an error loses its secrets before anybody sees it.

Invariants:

* A text is cut first, then searched: the work is bounded whatever an error says. Each pattern is linear in what is
  left.
* Better too much than too little: an authority of a URL that the cut leaves without its end may be the beginning of
  user info, so it goes as a whole; a secret that the cut would leave half goes as a whole too.
* Redacting a redacted text changes nothing that is not cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import fields as dataclass_fields, is_dataclass
from typing import Any, cast
from urllib.parse import quote

import attrs

from ._values import AuthToken, Lease, Secret

__all__ = ("REDACTED", "describe_error", "redact", "secret_texts")

REDACTED = "[redacted]"

#: How many characters of an error's text are kept.
_KEPT = 500
#: How deep :func:`secret_texts` looks into a value, and how many texts it takes.
_DEPTH, _MOST = 6, 1000
#: A shorter secret is looked for as a word only: "a" is in every sentence.
_SHORT = 4

_USER_INFO = re.compile(r"""(://)[^\s/?#"<>]*@""")
_CUT_AUTHORITY = re.compile(r"""(://)[^\s/?#"<>]*\Z""")
_CREDENTIAL = re.compile(
    r"""
    (
        bearer (?: \s* [:=] \s* | \s+ | %20 | \+ | (?=\\*["'`]) )
      | (?: token | secret | password | key ) =
      | (?: token | secret | password | key ) \\*["'] \s* : \s* (?=\\*["'])
      | authorization \\*["']? \s* [:=] \s* \\*["']? (?! bearer ) \w+ \s+
    )
    (?:
        (\\*) (["'`]) (?=[^\s,;&"'`]) .*? (?: (?=\2\3) | \Z )   # quoted: up to the quote of the same kind
      | (?: token \s+ )? [^\s,;&"'`]+
    )
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_JWT = re.compile(r"\beyJ[\w-]{4,}\.[\w-]+(?:\.[\w-]*)?")


def _redact_kept(text: str, *, cut: bool) -> str:
    if cut:
        text = _CUT_AUTHORITY.sub(rf"\1{REDACTED}", text)
    text = _USER_INFO.sub(rf"\1{REDACTED}@", text)
    text = _CREDENTIAL.sub(lambda found: f"{found[1]}{found[2] or ''}{found[3] or ''}{REDACTED}", text)
    return _JWT.sub(REDACTED, text)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Give the first 500 characters of a text, without what looks like a credential.

    That is: what follows ``Bearer``, ``token=``, ``secret=``, ``password=`` and ``key=``, in upper or lower case, up
    to white space, a comma, a semicolon, ``&`` or a quote; user info in URLs; JSON Web Tokens.

    Args:
      text: The text, of any length.
      secrets: Texts that must not be seen either; empty ones are ignored.
    """
    pattern, longest = _pattern(secrets)
    kept, cut = text[:_KEPT], len(text) > _KEPT
    if pattern is not None:
        # A secret may begin before the cut and end after it.
        seen = text[: _KEPT + longest]
        pieces: list[str] = []
        position = 0
        for found in pattern.finditer(seen):
            if found.start() >= _KEPT:
                break
            pieces += (seen[position : found.start()], REDACTED)
            position = found.end()
        pieces.append(seen[position:_KEPT])
        kept = "".join(pieces)
    return _redact_kept(kept, cut=cut)


def secret_texts(value: object) -> list[str]:
    """Collect the texts in a value that should not be seen: all of them, some levels deep."""
    texts: list[str] = []
    _collect(value, texts, _DEPTH)
    return texts


def _collect(value: object, texts: list[str], depth: int) -> None:
    if depth == 0 or len(texts) >= _MOST:
        return
    if isinstance(value, Secret):
        texts.append(value.reveal())
    elif isinstance(value, str):
        texts.append(value)
    elif isinstance(value, (bytes, bytearray)):
        texts += (bytes(value).decode("utf-8", "replace"), repr(bytes(value))[2:-1])
    elif isinstance(value, AuthToken):
        texts.append(value.secret.reveal())
    else:
        for part in _parts(value):
            _collect(part, texts, depth - 1)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Lease):
        return (cast("Lease[object]", value).value,)
    if isinstance(value, Mapping):
        # The keys are names.
        return tuple(cast("Mapping[object, object]", value).values())
    kind = cast("Any", type(value))
    if issubclass(kind, (Sequence, AbstractSet)) and kind not in (range, memoryview):
        return tuple(cast("Iterable[object]", value))
    if is_dataclass(kind):
        names = [field.name for field in dataclass_fields(kind)]
    elif attrs.has(kind):
        names = [field.name for field in attrs.fields(kind)]
    else:
        # What a plain object was given; its properties are not asked.
        slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
        names = [name for given in slots for name in ((given,) if isinstance(given, str) else given)]
        names += getattr(value, "__dict__", ())
    return [getattr(value, name, None) for name in names]


def _forms(secret: str) -> set[str]:
    """Give the ways in which a text may stand in another one: as it is, escaped, in a URL."""
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        quote(secret, safe="", errors="replace"),
    }


def _pattern(secrets: Iterable[str]) -> tuple[re.Pattern[str] | None, int]:
    forms: set[str] = set()
    for secret in secrets:
        if secret.strip():
            forms |= _forms(secret)
    if not forms:
        return None, 0
    longest_first = sorted(forms, key=len, reverse=True)
    found = "|".join(
        re.escape(form) if len(form) >= _SHORT else rf"(?<!\w){re.escape(form)}(?!\w)" for form in longest_first
    )
    return re.compile(found), len(longest_first[0])


def describe_error(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Describe an error for people: its type's name and a bounded text without these secrets and other credentials.

    Args:
      error: The error; also one whose ``str`` fails.
      secrets: Texts that must not be seen, from :func:`secret_texts`; empty ones are ignored.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as failure:
        return f"{name}: <its text cannot be read: {type(failure).__name__}>"
    kept = redact(text, secrets)[:_KEPT]
    return f"{name}: {kept}" if kept else name
