"""Bits that an entry declares for its model, for values and sums that are quantised by simulation.

    {"parameters":   {"*.weight": 4, "stem.weight": {"bits": 8, "scales": 16}},
     "activations":  {"block*:relu": 32, "block*": 4, "*": {"bits": 8, "sign_bit": true}},
     "accumulators": {"head": 32, "stem": 20, "*": "exact"}}

Patterns are those of a shell. A parameter's is compared with the names in the state dict; it holds for the
parameter and for what is computed from it ahead of time. An activation's and an accumulator's is compared
with the path of each layer and with `layer:kind`, the kinds being those that the score's table lists. The
first pattern that matches holds.

- parameters: `scales` are further 32-bit values kept with the tensor; `block`, for example [4, 4], is the
  size of the blocks that are zero or kept whole, of the matrix of filters. 1 bit stands for -1 or +1.
- activations: the bits of what a layer's operations read; `sign_bit` that the format has one of its own,
  which int8, as a two's complement, has not.
- accumulators: the bits of a dot product's or a mean's sums, or `exact`: an adder tree over the products,
  each level of which is a bit wider. They make a figure of their own; the score keeps 32 bits for sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from job.errors import UsageError

Bits = Annotated[int, Field(ge=1, le=32)]
Side = Annotated[int, Field(ge=1)]
Accumulator = Bits | Literal["exact"]
Found = TypeVar("Found")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _none_or_two(sides: list[int]) -> list[int]:
    if len(sides) not in (0, 2):
        raise ValueError(sides)
    return sides


class ValueBits(_Record):
    """Bits of each value of a stored tensor, the number of 32-bit scales, and the sides of its blocks.

    Without `scales` those that the model has for the tensor are counted.
    """

    bits: Bits
    scales: Annotated[int, Field(ge=0)] | None = None
    block: Annotated[list[Side], AfterValidator(_none_or_two)] = []


class ActivationBits(_Record):
    """Bits of the values that an operation reads, and whether their sign is a bit of its own."""

    bits: Bits
    sign_bit: bool = False


def _bare(value: Any) -> Any:
    return {"bits": value} if type(value) is int else value


Parameter = Annotated[ValueBits, BeforeValidator(_bare)]
Activation = Annotated[ActivationBits, BeforeValidator(_bare)]


class Declared(_Record):
    """The declared bits by pattern, in the order of the file."""

    parameters: dict[str, Parameter] = {}
    activations: dict[str, Activation] = {}
    accumulators: dict[str, Accumulator] = {}

    @classmethod
    def parse(cls, text: str | bytes) -> Declared:
        """Read the JSON shown above; raise UsageError that names the invalid entry."""
        try:
            json.loads(text)  # pydantic's own message names neither line nor column
        except ValueError as error:
            raise UsageError(f"--bits: not JSON: {error}") from error
        except RecursionError as error:
            raise UsageError("--bits: not JSON: too deeply nested") from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _explain(error) from error

    def value(self, name: str) -> ValueBits | None:
        """Return the bits declared for the stored tensor `name`."""
        return _first(self.parameters, name)

    def pattern(self, bits: ValueBits) -> str:
        """Return the pattern of the parameters for which `bits`, one of those that `value` returns, hold."""
        return next(pattern for pattern, found in self.parameters.items() if found is bits)

    def activation(self, layer: str, kind: str) -> ActivationBits | None:
        """Return the bits declared for what operations of `kind` in `layer` read."""
        return _first(self.activations, layer, f"{layer}:{kind}")

    def accumulator(self, layer: str, kind: str) -> Accumulator | None:
        """Return the bits declared for the sums of operations of `kind` in `layer`."""
        return _first(self.accumulators, layer, f"{layer}:{kind}")

    def check(self, names: Iterable[str], layers: Iterable[str]) -> None:
        """Raise UsageError for a pattern that matches nothing, which must be misspelt.

        `names` are those of the stored tensors, `layers` paths of layers and `path:kind`.
        """
        known_names, known_layers = list(names), list(dict.fromkeys(layers))
        for what, patterns, known in (
            ("parameters", self.parameters, known_names),
            ("activations", self.activations, known_layers),
            ("accumulators", self.accumulators, known_layers),
        ):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    raise UsageError(
                        f"--bits: no {what} match {pattern!r}",
                        f"There are for example {', '.join(known[:4]) or 'none'}",
                    )


def _first(patterns: Mapping[str, Found], *names: str) -> Found | None:
    fitting = (
        bits for pattern, bits in patterns.items() if any(fnmatchcase(name, pattern) for name in names)
    )
    return next(fitting, None)


def _explain(error: ValidationError) -> UsageError:
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    section, *rest = map(str, first["loc"]) if first["loc"] else ("",)
    if section not in Declared.model_fields:
        return UsageError("--bits: expected an object with `parameters`, `activations` and `accumulators`")
    if not rest:
        return UsageError(f"--bits: `{section}` is not an object of patterns")
    if first["type"] == "extra_forbidden":
        fields = (ValueBits if section == "parameters" else ActivationBits).model_fields
        return UsageError(
            f"--bits: {section} {rest[0]!r} has no field {rest[-1]!r}; the fields are {', '.join(fields)}"
        )
    return UsageError(
        f"--bits: {section} {rest[0]!r}: {json.dumps(first['input'])} is not a width",
        'Write the bits, 1 to 32, or an object with `bits` and what goes with them; a sum may be "exact"',
    )
