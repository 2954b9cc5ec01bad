"""What an operator's schema says of a call: its arguments by name, what it changes, whether it is random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


def plain_name(operator: Any) -> str:
    """Return `aten.add` for add, add_ and every overload of either."""
    name = str(operator._overloadpacket)
    return name[:-1] if operator._schema.is_mutable and name.endswith("_") else name


def by_name(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call under their schema names, defaults included."""
    arguments = operator._schema.arguments
    defaults = {
        argument.name: argument.default_value for argument in arguments if argument.has_default_value()
    }
    given = dict(zip((argument.name for argument in arguments), args, strict=False))
    return {**defaults, **given, **kwargs}


def written(operator: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """Return those of the (named) arguments that the operator changes in place."""
    changed = [
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [tensor for name in changed for tensor in tensors(arguments.get(name))]


def is_random(operator: Any) -> bool:
    """Return whether the result differs from call to call, so that none can be computed ahead of time."""
    return torch.Tag.nondeterministic_seeded in operator.tags


def tensors(value: Any) -> list[Tensor]:
    """Return every tensor inside a nested structure."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
