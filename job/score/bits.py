"""Bits that an entry declares beside its model, for values and activations that are quantised by simulation.

    {"parameters":  {"*.weight": 4, "stem.weight": {"bits": 8, "scales": 16}},
     "activations": {"block*": 4, "*": {"bits": 8, "sign_bit": true}}}

Patterns are those of a shell, over the names in the state dict and over the paths of layers; the first that
fits holds. `scales` are further 32-bit values kept with the tensor. An activation pattern says how wide the
activations are that a layer's operations read; `sign_bit` that the format has one of its own, which int8,
as a two's complement, has not. A value of 1 bit stands for -1 or +1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from job.errors import UsageError


@dataclass(frozen=True)
class Width:
    """Bits of a value, and whether its sign is a bit of its own (as in IEEE floats)."""

    bits: int
    sign_bit: bool = False


@dataclass(frozen=True)
class ValueBits:
    """Bits of each value of a stored tensor, and the number of 32-bit scales kept with it."""

    bits: int
    scales: int = 0


@dataclass(frozen=True)
class Declared:
    """What was declared: (pattern, bits) in the order of the file."""

    parameters: tuple[tuple[str, ValueBits], ...] = ()
    activations: tuple[tuple[str, Width], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Declared:
        """Read the JSON shown above; raise UsageError naming what in it is wrong."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--bits: not JSON: {error}") from error
        if not isinstance(document, dict) or document.keys() - {"parameters", "activations"}:
            raise UsageError("--bits: expected an object with `parameters` and `activations`")
        return cls(
            tuple(_entries(document, "parameters", ValueBits, {"scales": int})),
            tuple(_entries(document, "activations", Width, {"sign_bit": bool})),
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


def _entries(document: dict[str, Any], section: str, make: Any, extras: dict[str, type]) -> Iterable[Any]:
    entries = document.get(section, {})
    if not isinstance(entries, dict):
        raise UsageError(f"--bits: `{section}` is not an object of patterns")
    for pattern, value in entries.items():
        fields = value if isinstance(value, dict) else {"bits": value}
        bits = fields.get("bits")
        known = {"bits": int, **extras}
        typed = all(type(fields[key]) is known.get(key) for key in fields)
        if not typed or not isinstance(bits, int) or not 1 <= bits <= 32 or fields.get("scales", 0) < 0:
            raise UsageError(
                f"--bits: {section} {pattern!r}: {value!r} is no width",
                f"Write 1 to 32, or an object with `bits` and `{next(iter(extras))}`",
            )
        yield pattern, make(**fields)
