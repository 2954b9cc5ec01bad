"""Bits that an entry declares beside its model, for values and activations that are quantised by simulation.

    {"parameters":  {"*.weight": 4, "stem.weight": {"bits": 8, "scales": 16}},
     "activations": {"block*": 4, "*": {"bits": 8, "sign_bit": true}}}

Patterns are those of a shell, over the names in the state dict and over the paths of layers; the first that
fits holds. `scales` are further 32-bit values kept with the tensor; `block`, for example [4, 4], is the size
of the blocks that are zero or kept whole, of the matrix of filters. An activation pattern says how wide the
activations are that a layer's operations read; `sign_bit` that the format has one of its own, which int8,
as a two's complement, has not. A value of 1 bit stands for -1 or +1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from job.errors import UsageError


@dataclass(frozen=True)
class Width:
    """Bits of a value, and whether its sign is a bit of its own (as in IEEE floats)."""

    bits: int
    sign_bit: bool = False


@dataclass(frozen=True)
class ValueBits:
    """Bits of each value of a stored tensor, the number of 32-bit scales, and the sides of its blocks."""

    bits: int
    scales: int = 0
    block: tuple[int, ...] = ()


Bits = TypeVar("Bits", ValueBits, Width)


@dataclass(frozen=True)
class Declared:
    """What was declared: (pattern, bits) in the order of the file."""

    parameters: tuple[tuple[str, ValueBits], ...] = ()
    activations: tuple[tuple[str, Width], ...] = ()

    @classmethod
    def parse(cls, text: str | bytes) -> Declared:
        """Read the JSON shown above; raise UsageError naming what in it is wrong."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--bits: not JSON: {error}") from error
        if not isinstance(document, dict) or document.keys() - {"parameters", "activations"}:
            raise UsageError("--bits: expected an object with `parameters` and `activations`")
        return cls(
            tuple(_entries(document, "parameters", _value_bits)),
            tuple(_entries(document, "activations", _width)),
        )

    def value(self, name: str) -> ValueBits | None:
        """Return the bits declared for the stored tensor `name`."""
        return next((bits for pattern, bits in self.parameters if fnmatchcase(name, pattern)), None)

    def activation(self, layer: str) -> Width | None:
        """Return the width declared for the activations that `layer` reads."""
        return next((width for pattern, width in self.activations if fnmatchcase(layer, pattern)), None)

    def check(self, names: Iterable[str], layers: Iterable[str]) -> None:
        """Raise UsageError for a pattern that fits nothing, which is a misspelt one."""
        for what, entries, known in (
            ("parameters", self.parameters, list(names)),
            ("activations", self.activations, list(layers)),
        ):
            for pattern, _ in entries:
                if not any(fnmatchcase(name, pattern) for name in known):
                    raise UsageError(
                        f"--bits: no {what} fit {pattern!r}",
                        f"There are for example {', '.join(known[:4]) or 'none'}",
                    )


def _entries(
    document: dict[str, Any], section: str, read: Callable[[dict[str, Any]], Bits]
) -> Iterator[tuple[str, Bits]]:
    entries = document.get(section, {})
    if not isinstance(entries, dict):
        raise UsageError(f"--bits: `{section}` is not an object of patterns")
    for pattern, value in entries.items():
        try:
            yield pattern, read(dict(value) if isinstance(value, dict) else {"bits": value})
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"--bits: {section} {pattern!r}: {json.dumps(value)} is no width",
                "Write the bits, 1 to 32, or an object with `bits` and what goes with them",
            ) from error


def _value_bits(fields: dict[str, Any]) -> ValueBits:
    block = fields.pop("block", [])
    if not isinstance(block, list) or len(block) not in (0, 2):
        raise ValueError(block)
    result = ValueBits(**fields, block=tuple(_whole(side, 1) for side in block))
    _whole(result.bits, 1, 32)
    _whole(result.scales, 0)
    return result


def _width(fields: dict[str, Any]) -> Width:
    result = Width(**fields)
    _whole(result.bits, 1, 32)
    if not isinstance(result.sign_bit, bool):
        raise ValueError(result.sign_bit)
    return result


def _whole(value: object, low: int, high: float = math.inf) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(value)
    return value
