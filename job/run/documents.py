"""Records as small JSON objects in a store, sealed, so that a changed byte in one is noticed.

A seal has no key: it protects against damage. What somebody who may write the bucket puts there is held by
the records' types.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from job.errors import ConfigurationError, DataError
from job.store.base import Part, Store

MAX_BYTES = 2**20
MAX_DEPTH = 32


class NewerSchemaError(ConfigurationError):
    """A later version of this program wrote it."""


class Record(BaseModel):
    """Some fields. No value is converted, no number is NaN or infinite, and an unknown field is left out."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def parse(cls, content: Any, name: str) -> Self:
        """Return the record in `content`; DataError naming `name` and the first field that is mistyped."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise mistyped(name, error) from error


class Document(Record):
    """A record that is stored by itself, sealed.

    The seal is the same in every version of every schema, so that damage and a newer schema differ.
    """

    SCHEMA: ClassVar[str]

    def encode(self) -> bytes:
        """Return the fields with their schema and the SHA-256 over both, as JSON."""
        content = {"schema": self.SCHEMA, **self.model_dump()}
        return json.dumps({**content, "sha256": _seal(content)}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, key: str) -> Self:
        """Return the document in `data`; `key` names it in errors.

        Raises DataError when it is damaged or something else, NewerSchemaError when its schema is unknown.
        """
        return cls.parse(_unsealed(data, cls.SCHEMA, key), key)

    @classmethod
    def read(cls, store: Store, key: str) -> Self:
        """Return the document at `key`; raises what `decode` and the store do."""
        return cls.decode(fetch(store, key).data, key)


def fetch(store: Store, key: str, most: int = MAX_BYTES) -> Part:
    """Return at most `most` + 1 bytes of an object and its version.

    The extra byte shows that it is too large.
    """
    return store.get_range(key, 0, most + 1)


def json_object(data: bytes, name: str, most: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in `data`: of bounded size, depth and numbers.

    Raises DataError naming `name`.
    """
    if len(data) > most:
        raise DataError(f"{name} is larger than the {most} bytes allowed")
    try:
        content = json.loads(data, parse_constant=_no_number)
        _check_plain(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON, or cut short ({str(error)[:100]})") from error
    if not isinstance(content, dict):
        raise DataError(f"{name} holds no JSON object")
    return content


def _unsealed(data: bytes, schema: str, key: str) -> dict[str, Any]:
    content = json_object(data, key)
    seal = content.pop("sha256", None)
    if seal is None or seal != _seal(content):
        raise DataError(f"{key} has been changed since it was written: its own SHA-256 differs")
    found = content.pop("schema", None)
    if found == schema:
        return content
    name = schema.rpartition("/")[0]
    if isinstance(found, str) and re.fullmatch(rf"{re.escape(name)}/[1-9][0-9]{{0,3}}", found):
        raise NewerSchemaError(
            f"{key} is of schema {found}; this version reads {schema}",
            "Resume with the version that wrote it, or a newer one",
        )
    raise DataError(f"{key} is of schema {str(found)[:60]!r}, not {schema}")


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def mistyped(name: str, error: ValidationError, fix: str = "") -> DataError:
    """Return the error that names `name` and the first field that is not as typed."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:100]
    reason = f"{place}: {first['msg']}" if place else first["msg"]
    return DataError(f"{name} is not what this program writes ({reason[:200]})", fix)


def _check_plain(content: Any) -> None:
    """Raise ValueError for what is too deep, or too large a number."""
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, float):
            if not math.isfinite(value):
                _no_number(str(value))
        elif isinstance(value, int) and abs(value) >= 2**64:
            raise ValueError("a number of more than 64 bits")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")
