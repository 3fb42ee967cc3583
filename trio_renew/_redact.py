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
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import fields as dataclass_fields, is_dataclass
from itertools import islice
from typing import Any, cast
from urllib.parse import quote

import attrs

from ._values import AuthToken, Lease, Secret

__all__ = ("REDACTED", "describe_error", "redact", "secret_texts")

REDACTED = "[redacted]"

#: How many characters of an error's text are kept.
_KEPT = 500
#: How deep :func:`secret_texts` looks into a value, how many parts it looks at, and how many texts it takes.
_DEPTH, _LOOKS, _MOST = 6, 10_000, 1000
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
      | (?: (?: token | bearer ) \s+ )* [^\s,;&"'`]+
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
    kept, cut = text[:_KEPT], len(text) > _KEPT
    pieces: list[str] = []
    position = 0
    # A secret may begin before the cut and end after it.
    for start, end in _places(text[: 2 * _KEPT], secrets):
        if start >= _KEPT:
            break
        pieces += (kept[position:start], REDACTED)
        position = end
    kept = "".join((*pieces, kept[position:]))
    return _redact_kept(kept, cut=cut)


def secret_texts(value: object) -> list[str]:
    """Collect the texts in a value that should not be seen: all of them, some levels deep.

    Whatever the value is, it takes a bounded time and raises no Exception.
    """
    looked_at = islice(_look_into(value, _DEPTH), _LOOKS)
    return list(islice((text for text in looked_at if text is not None), _MOST))


def _look_into(value: object, depth: int) -> Iterator[str | None]:
    """Give the texts, and None for each value that is looked at."""
    yield None
    try:
        if isinstance(value, Secret):
            yield value.reveal()
        elif isinstance(value, str):
            yield value
        elif isinstance(value, (bytes, bytearray)):
            beginning = bytes(value[: 4 * _KEPT])
            yield beginning.decode("utf-8", "replace")
            yield repr(beginning)[2:-1]
        elif isinstance(value, AuthToken):
            yield value.secret.reveal()
        elif depth > 1:
            for part in _parts(value):
                yield from _look_into(part, depth - 1)
    except Exception:
        return  # code of the value's own; there may be anything


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Lease):
        return (cast("Lease[object]", value).value,)
    if isinstance(value, Mapping):
        # The keys are names.
        return cast("Mapping[object, object]", value).values()
    kind = cast("Any", type(value))
    if issubclass(kind, (Sequence, AbstractSet)) and kind not in (range, memoryview):
        return cast("Iterable[object]", value)
    if is_dataclass(kind):
        names = [field.name for field in dataclass_fields(kind)]
    elif attrs.has(kind):
        names = [field.name for field in attrs.fields(kind)]
    else:
        # What a plain object was given; its properties are not asked.
        slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
        names = [name for given in slots for name in ((given,) if isinstance(given, str) else given)]
        names += getattr(value, "__dict__", ())
    return (_field(value, name) for name in names)


def _field(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # as above
        return None


def _forms(secret: str) -> set[str]:
    """Give the ways in which a text may stand in another one: as it is, escaped, in a URL; the beginning is enough."""
    text = secret[:_KEPT]
    forms = {
        text,
        repr(text)[1:-1],
        repr(text + "'\"")[1:-4],  # as it is in a text with both kinds of quotes
        json.dumps(text)[1:-1],
        quote(text, safe="", errors="replace"),
    }
    return {form[:_KEPT] for form in forms}


def _places(text: str, secrets: Iterable[str]) -> list[tuple[int, int]]:
    """Find where secrets stand in a text: beginning and end, in order; those that overlap are one."""
    forms: set[str] = set()
    for secret in secrets:
        if secret.strip():
            forms |= _forms(secret)
    found = sorted((start, start + len(form)) for form in forms for start in _occurrences(text, form))
    places: list[tuple[int, int]] = []
    for start, end in found:
        if places and start < places[-1][1]:
            start, end = places[-1][0], max(end, places.pop()[1])
        places.append((start, end))
    return places


def _occurrences(text: str, form: str) -> Iterator[int]:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        if len(form) >= _SHORT or not (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
            yield start
        start = text.find(form, start + 1)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


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
