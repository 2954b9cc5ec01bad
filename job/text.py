"""Text as people may see it: quantities in words, and addresses without user, password, query or fragment."""

from __future__ import annotations

import math
import re

HIDDEN = "***"

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_PUNCTUATION = "'\")]}>,.:"  # that may follow an address in a sentence
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/|$)")
_SECRET = re.compile(r"sig|token|key|pass|pwd|secret|auth|credential", re.IGNORECASE)


def redact(address: str) -> str:
    """Return `address` without what may be a secret; a path, and what is not an address, as it is.

    A password may hold any character, `@`, `/`, `?` and `#` too. Where it cannot be told from a query, host
    and path are left out with it.
    """
    found = _ADDRESS.fullmatch(address)
    if not found or _is_path(*found.groups()):
        return address
    scheme, slashes, rest = found.groups()
    start = f"{scheme}:{slashes}"
    if scheme.lower() in ("s3", "gs") and _BUCKET.match(rest):  # a key may hold the other characters
        return start + rest.partition("?")[0]
    head = re.split("[?#;]", rest, maxsplit=1)[0]
    if "@" in rest[len(head) :]:
        return start + HIDDEN
    before, _, after = head.rpartition("@")
    return start + (f"{HIDDEN}@" if "/" in before else "") + after


def redact_text(text: str) -> str:
    """Return `text` with every address in it redacted."""
    return _IN_TEXT.sub(_redact_found, text)


def has_credentials(text: str) -> bool:
    """Return whether an address in `text` seems to hold a user, a password or a signature."""
    return any(map(_has_credentials, _IN_TEXT.findall(text)))


def innermost(error: BaseException) -> str:
    """Return the innermost cause of `error`, for a message, such as `Connection refused`.

    Only the system's own words: a library's may hold the address, and a server's anything.
    """
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    words = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _redact_found(found: re.Match[str]) -> str:
    address = found[0].rstrip(_PUNCTUATION)
    return redact(address) + found[0][len(address) :]


def _has_credentials(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    head = re.split("[?#;]", rest, maxsplit=1)[0]
    authority = head.partition("/")[0]
    if scheme.lower() in ("s3", "gs") and _BUCKET.match(rest):
        authority = ""
    has_password = ":" in authority and "@" in rest  # which may hold a slash, or what begins a query
    return "@" in authority or has_password or bool(_SECRET.search(rest[len(head) :]))


def _is_path(scheme: str, slashes: str, rest: str) -> bool:
    """Return whether this names a file: `file:///path`, or words with a colon such as `demo:`."""
    return (scheme.lower() == "file" and len(slashes) != 2) or (not slashes and "@" not in rest)


def duration(seconds: float) -> str:
    """Return `12 s`, `34 min` or `5 h 06 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def percent(share: float) -> str:
    """Return a share of 1 as `80.46 %`."""
    return f"{100 * share:.2f} %"


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `28th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def power_of_ten(value: float) -> str:
    """Return a power of ten as `10⁻⁴`."""
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
