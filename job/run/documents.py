"""Small JSON objects in a store, sealed: a changed byte in one is noticed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from job.errors import ConfigurationError, DataError
from job.store.base import Part, Store

MAX_BYTES = 2**20
LARGEST = 10**12
"""Bound of every number here: no count of steps, bytes or attempts comes near."""


class NewerSchemaError(ConfigurationError):
    """A later version of this program wrote it."""


def encode(schema: str, fields: dict[str, Any]) -> bytes:
    """Return `fields` with their schema and the SHA-256 over both, as JSON; NaN and infinity become null.

    The seal is the same in every version of every schema, so that damage and a newer schema differ.
    """
    content = _finite({"schema": schema, **fields})
    return json.dumps({**content, "sha256": _seal(content)}, indent=1).encode()


def decode(data: bytes, schema: str, key: str) -> dict[str, Any]:
    """Return the fields of a document; `key` names it in errors.

    Raises DataError when it is damaged or something else, NewerSchemaError when its schema is unknown.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"{key} is larger than the {MAX_BYTES} bytes allowed")
    try:
        content = json.loads(data)
        seal = content.pop("sha256", None) if isinstance(content, dict) else None
        whole = seal is not None and seal == _seal(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{key} is not JSON, or cut short ({error})") from error
    if not whole:
        raise DataError(f"{key} has been changed since it was written: its own SHA-256 differs")
    if content.get("schema") != schema:
        _refuse_schema(content.get("schema"), schema, key)
    return dict(content)


def read(store: Store, key: str) -> Part:
    """Return the bytes and version of a document, and one byte of what is too much."""
    return store.get_range(key, 0, MAX_BYTES + 1)


def text(content: dict[str, Any], name: str, pattern: str) -> str:
    """Return a field that must match all of `pattern`, else DataError."""
    value = content.get(name)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise DataError(f"its {name} is {_short(value)}")
    return value


def number(content: dict[str, Any], name: str, least: int = 0, most: int = LARGEST) -> int:
    """Return a field that must be a whole number from `least` to `most`, else DataError."""
    value = content.get(name)
    if type(value) is not int or not least <= value <= most:
        raise DataError(f"its {name} is {_short(value)}")
    return value


def flag(content: dict[str, Any], name: str) -> bool:
    """Return a field that must be true or false, else DataError."""
    value = content.get(name)
    if not isinstance(value, bool):
        raise DataError(f"its {name} is {_short(value)}")
    return value


def mapping(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a field that must be a JSON object, else DataError."""
    value = content.get(name)
    if not isinstance(value, dict):
        raise DataError(f"its {name} is {_short(value)}")
    return value


def _refuse_schema(found: Any, schema: str, key: str) -> None:
    name = schema.rpartition("/")[0]
    if isinstance(found, str) and re.fullmatch(rf"{re.escape(name)}/[1-9][0-9]{{0,3}}", found):
        raise NewerSchemaError(
            f"{key} is of schema {found}; this version reads {schema}",
            "Go on with the version that wrote it, or a newer one",
        )
    raise DataError(f"{key} is of schema {_short(found)}, not {schema}")


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
